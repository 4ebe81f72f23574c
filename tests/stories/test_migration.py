"""Sessions that move because somebody wants it. The client's answer must not show any of it, and hardly the clock."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from meshnode import client, manifest
from meshnode.ids import PeerId
from meshnode.sessions import moves
from meshnode.sessions.attach import Moved
from meshnode.sessions.lifecycle import State
from meshnode.sessions.member import Member
from tests import world

WANTS = manifest.read({"characteristics": {"context_tokens": 2048}, "agent": {"max_tokens": 64}})
QUESTION = "Who drives while the drivers change seats? " * 3
STEP_S = 0.02
"""What the world's engine takes for a token."""
ROUND_TRIP_S = 0.006
PAUSE_S = 2 * STEP_S + 4 * ROUND_TRIP_S
DEMANDS = {"temperature": 0.8, "seed": 5, "presence_penalty": 0.5, "logit_bias": {104: 1.5}, "regex": "[a-z]*"}


async def three(place: world.World) -> None:
    await place.start("a")
    await place.start("b", join=["a"])
    await place.start("c", join=["a", "b"])
    await place.wait_meshed()


def epochs(session: client.Session) -> list[int]:
    return [event.item.epoch for event in session.history if isinstance(event.item, Moved)]


def order(place: world.World, at: PeerId | None, order: moves.Order) -> None:
    pump = place.machines[place.name_of(at)].driver
    assert pump is not None
    pump.submit(order)


def migrate(place: world.World, session: client.Session, to: PeerId | None = None) -> None:
    order(place, session.host, moves.Migrate(session.id, to))


def member(place: world.World, session: client.Session, at: PeerId | None) -> Member:
    brain = place.machines[place.name_of(at)].brain
    assert brain is not None
    return brain.sessions.members[session.id]


def notes(place: world.World, what: str) -> list[str]:
    found = [one for machine in place.machines.values() for one in machine.notes if one[1].what == what]
    return [note.detail for _, note in sorted(found, key=lambda one: one[0])]


def replica(session: client.Session) -> PeerId:
    return next(seat.peer for seat in session.seats if seat.role == "replica")


@pytest.mark.parametrize("at", [1, 7, 20, 33, 50])
async def test_a_move_in_mid_answer_pauses_for_two_steps_at_most_and_changes_nothing(
    at: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with world.world(seed=at) as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            said: list[int] = []
            times: list[float] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                times.append(trio.current_time())
                if len(said) == at:
                    migrate(place, session)
            assert session.host == replica(session)
        assert said == world.expected(WANTS, QUESTION, 64)
        assert epochs(session) == [1, 2]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert max(gaps) <= PAUSE_S
        assert notes(place, "detected") == []


async def test_a_move_of_a_long_context_pauses_no_longer_than_one_of_a_short(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pauses: dict[int, float] = {}
    for length in (10, 1600):
        async with world.world(seed=3) as place:
            await three(place)
            async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
                times: list[float] = []
                async for _ in session.say("w" * length):
                    times.append(trio.current_time())
                    if len(times) == 10:
                        migrate(place, session)
                assert epochs(session) == [1, 2]
            pauses[length] = max(later - earlier for earlier, later in itertools.pairwise(times))
    assert pauses[1600] <= 1.2 * pauses[10]


async def test_a_target_that_lost_its_pages_computes_them_before_the_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            times: list[float] = []
            said: list[int] = []
            async for token in session.say(QUESTION):
                times.append(trio.current_time())
                said.append(token.id)
                if len(said) == 10:
                    pump = place.machines[place.name_of(replica(session))].driver
                    assert pump is not None
                    assert pump.hands is not None
                    pump.hands.pages.drop(session.id)
                    pump.hands._hot.drop(session.id)
                    migrate(place, session)
        assert notes(place, "ready") == ["pages=0"]
        assert said == world.expected(WANTS, QUESTION, 64)
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= PAUSE_S


async def test_a_session_goes_to_and_fro_during_one_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            hosts: list[PeerId | None] = []
            async for token in session.say(QUESTION, logprobs=2, **DEMANDS):
                said.append(token.id)
                if len(said) in (5, 25, 45):
                    hosts.append(session.host)
                    migrate(place, session, next(one for one in hosts_of(session) if one != session.host))
            first, second = hosts[:2]
            assert hosts == [first, second, first]
            assert session.host == second
        assert said == world.expected(WANTS, QUESTION, 64, **DEMANDS)
        assert epochs(session) == [1, 2, 3, 4]


def hosts_of(session: client.Session) -> list[PeerId]:
    return [seat.peer for seat in session.seats if seat.role != "witness"]


async def answers(place: world.World, session: client.Session, *, between: object = None) -> list[list[int]]:
    """Two turns, and something between them."""
    first = [token.id async for token in session.say(QUESTION)]
    if callable(between):
        await between()
    return [first, [token.id async for token in session.say("And then?")]]


async def test_an_idle_session_moves_and_its_next_turn_is_the_same(autojump_clock: trio.testing.MockClock) -> None:
    found: list[list[list[int]]] = []
    for moved in (False, True):
        async with world.world() as place:
            await three(place)
            async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:

                async def move(place: world.World = place, session: client.Session = session) -> None:
                    migrate(place, session)
                    await session.wait_moved(2)

                found.append(await answers(place, session, between=move if moved else None))
                assert epochs(session) == ([1, 2] if moved else [1])
    assert found[0] == found[1]


@pytest.mark.parametrize("after_s", [0.02, 0.3, 0.8])
async def test_a_move_during_prefill_loses_no_turn(after_s: float, autojump_clock: trio.testing.MockClock) -> None:
    text = "why " * 200
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            said: list[int] = []

            async def move() -> None:
                await world.pass_time(after_s)
                assert not said
                migrate(place, session)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(move)
                async for token in session.say(text):
                    said.append(token.id)
            await session.wait_moved(2)
        assert said == world.expected(WANTS, text, 64)


@pytest.mark.parametrize("what", ["moving", "arriving", "ready", "handed over", "referred", "elected"])
@pytest.mark.parametrize("who", ["owner", "target", "witness"])
async def test_whoever_dies_in_mid_move_costs_a_pause_and_nothing_else(
    what: str, who: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with world.world(seed=len(what)) as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            owner, target = session.host, replica(session)
            witness = next(seat.peer for seat in session.seats if seat.peer not in (owner, target))
            victim = {"owner": owner, "target": target, "witness": witness}[who]

            async def strike() -> None:
                await place.wait_until(lambda: bool(notes(place, what)))
                place.kill(place.name_of(victim))

            said: list[int] = []
            times: list[float] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(strike)
                async for token in session.say(QUESTION):
                    said.append(token.id)
                    times.append(trio.current_time())
                    if len(said) == 10:
                        migrate(place, session)
            assert session.host != victim
        assert said == world.expected(WANTS, QUESTION, 64)
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 2.5


async def test_a_target_that_was_cut_off_gives_the_session_back(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            owner, target = session.host, replica(session)

            async def strike() -> None:
                await place.wait_until(lambda: bool(notes(place, "handed over")))
                place.network.freeze(target)

            said: list[int] = []
            times: list[float] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(strike)
                async for token in session.say(QUESTION):
                    said.append(token.id)
                    times.append(trio.current_time())
                    if len(said) == 10:
                        migrate(place, session)
            assert session.host == owner
            place.network.thaw(target)
        assert said == world.expected(WANTS, QUESTION, 64)
        assert "not taken" in notes(place, "detected")
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 1.5


async def test_a_client_that_is_away_during_the_move_finds_the_new_owner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 10:
                    place.network.freeze(mesh.me)
                    migrate(place, session)
                    await place.wait_until(lambda: bool(notes(place, "elected")))
                    await world.pass_time(1.0)
                    place.network.thaw(mesh.me)
            assert session.host == replica(session)
        assert said == world.expected(WANTS, QUESTION, 64)


async def test_moves_that_cannot_be_are_refused_with_a_reason(autojump_clock: trio.testing.MockClock) -> None:
    fixed = manifest.read({"migration": {"movable": False}})
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session, mesh.session(fixed) as other:
            await session.wait_moved(1)
            await other.wait_moved(1)
            witness = next(seat.peer for seat in session.seats if seat.role == "witness")
            migrate(place, session, witness)
            migrate(place, session, session.host)
            order(place, witness, moves.Migrate(session.id))
            migrate(place, other)
            async for _ in session.say(QUESTION):
                if session.host is not None and not notes(place, "moving"):
                    migrate(place, session)
                    migrate(place, session)
            await place.wait_until(lambda: len(notes(place, "move refused")) == 5)
        refusals = notes(place, "move refused")
        for words in ("inside its group only", "runs there already", "owned by another", "movable", "moved already"):
            assert [words for said in refusals if words in said] == [words]


async def test_a_session_that_is_being_recovered_is_not_moved(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            place.kill(place.name_of(session.host))
            left = member(place, session, replica(session))
            await place.wait_until(lambda: left.state is State.RECOVERING)
            order(place, replica(session), moves.Migrate(session.id))
            await place.wait_until(lambda: bool(notes(place, "move refused")))
            said = [token.id async for token in session.say(QUESTION)]
        assert "settled" in notes(place, "move refused")[0]
        assert said == world.expected(WANTS, QUESTION, 64)
