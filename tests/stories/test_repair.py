"""Voters that are lost for good: another node takes the seat, and what comes after finds a whole session."""

from __future__ import annotations

import trio
import trio.testing

from meshnode import client, observe
from meshnode.sessions.attach import Reseated
from meshnode.sessions.member import Member
from tests import world
from tests.stories.test_takeover import QUESTION, WANTS, epochs, three


def member_of(place: world.World, name: str) -> Member:
    brain = place.machines[name].brain
    assert brain is not None
    (member,) = brain.sessions.members.values()
    return member


def owner(place: world.World, session: client.Session) -> Member:
    return member_of(place, place.name_of(session.host))


def settled(place: world.World, session: client.Session, number: int) -> bool:
    name = place.name_of(session.host)
    return place.machines[name].running and owner(place, session).seating.settled.number >= number


def seat_names(place: world.World, session: client.Session) -> set[str]:
    return {place.name_of(seat.peer) for seat in owner(place, session).seating.settled.seats}


def of_role(place: world.World, session: client.Session, role: str) -> str:
    return next(place.name_of(seat.peer) for seat in session.seats if seat.role == role)


async def four(place: world.World) -> None:
    await three(place)
    await place.start("d", join=["a", "b", "c"])
    await place.wait_meshed()


def words(place: world.World, session: client.Session) -> str:
    brain = place.machines[place.name_of(session.host)].brain
    assert brain is not None
    (row,) = observe.sessions(brain)
    return str(row["repair"])


async def test_a_fourth_node_takes_a_lost_replicas_seat_and_then_survives_the_host(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await four(place)
        async with place.agent("a", "b", "c", "d") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            spare = set("abcd") - {place.name_of(seat.peer) for seat in session.seats}
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 8:
                    lost = of_role(place, session, "replica")
                    place.kill(lost)
                    with trio.fail_after(8.0):
                        await place.wait_until(lambda: settled(place, session, 2))
                    assert seat_names(place, session) == set("abcd") - {lost}
                if len(said) == 40:
                    host = place.name_of(session.host)
                    place.kill(host)
            assert place.name_of(session.host) in spare, "it has the pages, and the witness stands behind it"
        assert said == world.expected(WANTS, QUESTION, 64)
        assert epochs(session) == [1, 2]
        changes = [event.item.number for event in session.history if isinstance(event.item, Reseated)]
        assert changes[:2] in ([1, 2], [2])
