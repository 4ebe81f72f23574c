"""Voters that are lost for good: another node takes the seat, and what comes after finds a whole session."""

from __future__ import annotations

import functools

import pytest
import trio
import trio.testing

from meshnode import client, journal, manifest, observe
from meshnode.sessions.attach import Reseated
from meshnode.sessions.member import Member
from meshnode.snapshots import disk
from meshnode.wire.award import Seat
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


def noted(place: world.World, what: str, detail: str = "") -> bool:
    """Whether any node wrote this milestone."""
    notes = [note for machine in place.machines.values() for _, note in machine.notes]
    return any(note.what == what and detail in note.detail for note in notes)


async def start_again(place: world.World, name: str) -> None:
    await place.start(name, join=[one for one in place.machines if one != name])


async def test_without_a_spare_node_the_session_says_so_and_takes_the_next_that_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            first = [token.id async for token in session.say(QUESTION)]
            lost = of_role(place, session, "replica")
            place.kill(lost)
            await world.pass_time(6.0)
            assert words(place, session) == "degraded: no spare node"
            assert seat_names(place, session) == set("abc"), "nothing is changed before there is somebody"
            await place.start("d", join=[one for one in "abc" if one != lost])
            with trio.fail_after(15.0):
                await place.wait_until(lambda: settled(place, session, 2))
            assert seat_names(place, session) == set("abcd") - {lost}
            assert words(place, session) == ""
            second = [token.id async for token in session.say("And now?")]
        assert first == world.expected(WANTS, QUESTION, 64)
        assert second


async def test_a_voter_that_comes_back_to_a_taken_seat_forgets_the_session_and_becomes_the_spare(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await four(place)
        async with place.agent("a", "b", "c", "d") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 8:
                    lost = of_role(place, session, "replica")
                    place.kill(lost)
                    await place.wait_until(lambda: settled(place, session, 2))
                    await start_again(place, lost)
                    assert knows(place, lost), "its journal does"
                    with trio.fail_after(10.0):
                        await place.wait_until(functools.partial(forgot, place, lost))
                    second = next(place.name_of(seat.peer) for seat in session_seats(place, session, "replica"))
                    place.kill(second)
                    with trio.fail_after(15.0):
                        await place.wait_until(lambda: settled(place, session, 4))
                    assert lost in seat_names(place, session)
        assert said == world.expected(WANTS, QUESTION, 64)
        assert epochs(session) == [1], "who came back deposed nobody"


def forgot(place: world.World, name: str) -> bool:
    return not knows(place, name)


def knows(place: world.World, name: str) -> bool:
    brain = place.machines[name].brain
    assert brain is not None
    return bool(brain.sessions.members)


def session_seats(place: world.World, session: client.Session, role: str) -> list[Seat]:
    return [seat for seat in owner(place, session).seating.settled.seats if seat.role == role]


async def test_a_newcomer_that_dies_while_it_catches_up_is_given_up_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await four(place)
        async with place.agent("a", "b", "c", "d") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 30:
                    spare = (set("abcd") - {place.name_of(seat.peer) for seat in session.seats}).pop()
                    place.kill(of_role(place, session, "replica"))
                    await place.wait_until(lambda: noted(place, "newcomer"))
                    place.kill(spare)
                    assert not noted(place, "configuration"), "it had not caught up"
                    await place.start("e", join=["a", "b", "c"])
                    with trio.fail_after(30.0):
                        await place.wait_until(lambda: settled(place, session, 2))
                    assert "e" in seat_names(place, session)
        assert noted(place, "newcomer given up")
        assert said == world.expected(WANTS, QUESTION, 64)


STEPS = {
    "asked in": ("newcomer", ""),
    "seated": ("configuration", "seated number=1"),
    "seat released": ("seats changed", "number=1"),
    "unseated": ("configuration", "unseated number=2"),
    "all released": ("seats changed", "number=2"),
}


@pytest.mark.parametrize("who", ["host", "newcomer", "witness"])
@pytest.mark.parametrize("step", STEPS)
async def test_whoever_dies_in_whatever_step_of_a_repair_and_restarts_costs_no_token(
    step: str, who: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with world.world() as place:
        await four(place)
        async with place.agent("a", "b", "c", "d") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 20:
                    spare = (set("abcd") - {place.name_of(seat.peer) for seat in session.seats}).pop()
                    victim = {"host": of_role(place, session, "host"), "newcomer": spare}.get(who)
                    victim = victim or of_role(place, session, "witness")
                    place.kill(of_role(place, session, "replica"))
                    await place.wait_until(lambda: noted(place, *STEPS[step]))
                    place.kill(victim)
                    await world.pass_time(0.5)
                    await start_again(place, victim)
            with trio.fail_after(60.0):
                await place.wait_until(lambda: settled(place, session, 2))
            second = [token.id async for token in session.say("And now?")]
            assert len(seat_names(place, session)) == 3
        assert said == world.expected(WANTS, QUESTION, 64)
        assert second


async def test_two_of_five_voters_lost_one_after_the_other_are_both_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked = manifest.read(
        {
            "characteristics": {"context_tokens": 1024},
            "agent": {"max_tokens": 64},
            "migration": {"replicas": 4},
        }
    )
    async with world.world() as place:
        await place.start("a")
        for name in "bcdefg":
            await place.start(name, join=["a"])
        await place.wait_meshed()
        async with place.agent("a", "b", "c") as mesh, mesh.session(asked) as session:
            assert len(session.seats) == 5
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 10:
                    dead = [place.name_of(seat.peer) for seat in session.seats if seat.role == "replica"][:2]
                    for name in dead:
                        place.kill(name)
                    with trio.fail_after(20.0):
                        await place.wait_until(lambda: settled(place, session, 4))
                    assert not set(dead) & seat_names(place, session)
                    place.kill(place.name_of(session.host))
        assert said == world.expected(asked, QUESTION, 64)


async def test_a_voter_that_lost_its_disk_takes_its_seat_anew_where_nobody_else_can(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            first = [token.id async for token in session.say(QUESTION)]
            lost = of_role(place, session, "replica")
            place.kill(lost)
            place.machines[lost].disk = disk.MemoryDisk()
            place.machines[lost].journal = journal.MemoryJournal()
            await start_again(place, lost)
            with trio.fail_after(30.0):
                await place.wait_until(lambda: settled(place, session, 2))
            assert seat_names(place, session) == set("abc")
            member = member_of(place, lost)
            assert member.voter.joined is not None
            assert member.voter.joined.since >= 4, "it votes from where its old seat was gone"
            place.kill(place.name_of(session.host))
            second = [token.id async for token in session.say("And now?")]
        assert first == world.expected(WANTS, QUESTION, 64)
        assert second


async def test_a_voter_with_an_older_copy_of_its_disk_is_found_out_and_comes_in_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            lost = of_role(place, session, "replica")
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 10:
                    copy = copied(place.machines[lost].journal)
                if len(said) == 40:
                    place.kill(lost)
                    place.machines[lost].journal = copy
                    await start_again(place, lost)
            with trio.fail_after(30.0):
                await place.wait_until(lambda: settled(place, session, 2))
            assert noted(place, "voter rolled back")
            assert member_of(place, lost).voter.joined is not None
        assert said == world.expected(WANTS, QUESTION, 64)


def copied(of: journal.MemoryJournal) -> journal.MemoryJournal:
    fresh = journal.MemoryJournal()
    fresh.append(list(of.replay()))
    return fresh


@pytest.mark.parametrize("names", ["a", "ab"])
async def test_one_node_and_two_have_nothing_to_repair_and_say_so(
    names: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with world.world() as place:
        for at, name in enumerate(names):
            await place.start(name, join=names[:at])
        await place.wait_meshed()
        async with place.agent(*names) as mesh, mesh.session(WANTS) as session:
            said = [token.id async for token in session.say(QUESTION)]
            assert words(place, session) == "no failover: it was placed without replicas"
            await place.start("c", join=names)
            await place.start("d", join=names)
            await world.pass_time(10.0)
            assert seat_names(place, session) == {place.name_of(session.host)}
        assert said == world.expected(WANTS, QUESTION, 64)
