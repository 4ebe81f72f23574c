"""Hosts that die, hang, come back and are cut off. The client's answer must not show any of it."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from meshnode import client, manifest
from meshnode.sessions.attach import Moved
from tests import world

WANTS = manifest.read({"characteristics": {"context_tokens": 1024}, "agent": {"max_tokens": 64}})
QUESTION = "What is a lease, and who holds it? " * 3


async def three(place: world.World) -> None:
    await place.start("a")
    await place.start("b", join=["a"])
    await place.start("c", join=["a", "b"])
    await place.wait_meshed()


def epochs(session: client.Session) -> list[int]:
    return [event.item.epoch for event in session.history if isinstance(event.item, Moved)]


async def test_a_frozen_host_is_replaced_and_when_it_thaws_changes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            frozen = b""
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 20:
                    assert session.host is not None
                    frozen = session.host
                    place.network.freeze(session.host)
                if len(said) == 40:
                    place.network.thaw(session.host if session.host == frozen else client.PeerId(frozen))
            await world.pass_time(5.0)
            second = [token.id async for token in session.say("And now?")]
            assert session.host != frozen
        assert said == world.expected(WANTS, QUESTION, 64)
        assert len(second) > 1
        assert epochs(session) == [1, 2]


DEMANDS = {"temperature": 0.8, "seed": 5, "presence_penalty": 0.5, "logit_bias": {104: 1.5}, "regex": "[a-z]*"}


async def test_a_new_host_draws_as_the_turn_asked(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[client.Token] = []
            async for token in session.say(QUESTION, logprobs=2, **DEMANDS):
                said.append(token)
                if len(said) == 20:
                    place.kill(place.name_of(session.host))
        assert [token.id for token in said] == world.expected(WANTS, QUESTION, 64, **DEMANDS)
        assert all(token.logprob == -0.5 and len(token.top) == 2 for token in said)
        assert epochs(session) == [1, 2]


async def test_a_stop_string_that_two_hosts_say_half_of_ends_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    text = "".join(map(chr, world.expected(WANTS, QUESTION, 59)))
    stop = text[20:50]  # longer than a host may run ahead: when it dies, some of it is said and nothing shown
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[client.Token] = []
            async for token in session.say(QUESTION, stop=["nowhere", stop]):
                said.append(token)
                if len(said) == 30:
                    place.kill(place.name_of(session.host))
            assert session.end_reason == "stop string"
            assert "".join(token.text for token in said) == text[: text.index(stop)]
            assert len(said) == 50
            assert epochs(session) == [1, 2]
            second = [token.id async for token in session.say("And now?")]
            assert len(second) > 1


async def test_a_host_cut_from_its_voters_releases_nothing_while_another_serves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 10:
                    assert session.host is not None
                    host = session.host
                    for machine in place.machines.values():
                        if machine.id != host:
                            place.network.partition(host, machine.id)
            place.network.heal()
            await world.pass_time(5.0)
            old = place.machines[place.name_of(host)]
            assert old.brain is not None
            (member,) = old.brain.sessions.members.values()
            assert member.serving is None, "the old host must step down once it hears of the new epoch"
        assert said == world.expected(WANTS, QUESTION, 64)
        assert epochs(session) == [1, 2]


async def test_a_restarted_host_reads_its_journal_and_follows(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) in (10, 30, 50):
                    name = place.name_of(session.host)
                    place.kill(name)
                    await world.pass_time(0.05)
                    await place.start(name, join=[one for one in place.machines if one != name])
        assert said == world.expected(WANTS, QUESTION, 64)
        assert len(epochs(session)) >= 3


async def test_all_voters_may_die_at_once_and_come_back(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            async for token in session.say(QUESTION):
                said.append(token.id)
                if len(said) == 25:
                    for name in place.machines:
                        place.kill(name)
                    for name in place.machines:
                        await place.start(name, join=[one for one in place.machines if one != name])
        assert said == world.expected(WANTS, QUESTION, 64)


async def test_without_a_quorum_the_agent_is_told_and_the_session_survives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            first = [token.id async for token in session.say(QUESTION)]
            dead = [name for name in place.machines if place.machines[name].id != session.host]
            for name in dead:
                place.kill(name)
            before = trio.current_time()
            with pytest.raises(client.errors.Refused) as caught:
                async for _ in session.say("Anybody there?"):
                    pass
            assert "no quorum" in str(caught.value)
            assert trio.current_time() - before <= 11.0
            for name in dead:
                await place.start(name, join=[one for one in place.machines if one != name])
            await world.pass_time(5.0)
            third = [token.id async for token in session.say("And now?")]
        assert first == world.expected(WANTS, QUESTION, 64)
        assert third


@pytest.mark.parametrize("seed", range(12))
async def test_any_storm_of_kills_freezes_and_cuts_leaves_the_answer_whole(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    dice = random.Random(seed)
    faults = 0
    async with world.world(seed=seed) as place:
        await place.start("a")
        for name in "bcde":
            await place.start(name, join=["a"])
        await place.wait_meshed()
        async with place.agent(*place.machines) as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            with trio.fail_after(300):
                async for token in session.say(QUESTION):
                    said.append(token.id)
                    if dice.random() < 0.08:
                        faults += 1
                        await _fault(place, session, dice)
        assert said == world.expected(WANTS, QUESTION, 64)
        assert faults > 0


async def _fault(place: world.World, session: client.Session, dice: random.Random) -> None:
    """One fault that a majority survives, mended after a while."""
    seats = [place.name_of(seat.peer) for seat in session.seats]
    victim = dice.choice(seats)
    machine = place.machines[victim]
    kind = dice.choice(("kill", "freeze", "cut"))
    if kind == "kill":
        place.kill(victim)
        await world.pass_time(dice.uniform(0.0, 3.0))
        await place.start(victim, join=[name for name in place.machines if name != victim])
    elif kind == "freeze":
        place.network.freeze(machine.id)
        await world.pass_time(dice.uniform(0.0, 4.0))
        place.network.thaw(machine.id)
    else:
        for other in place.machines.values():
            if other.id != machine.id:
                place.network.partition(machine.id, other.id)
        await world.pass_time(dice.uniform(0.0, 4.0))
        place.network.heal()
