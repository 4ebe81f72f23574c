"""A node that is to stop hands its sessions over, in the order that policy.py says, and takes nothing new."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from meshnode import errors, manifest
from meshnode.sessions import moves
from tests import world
from tests.stories.test_migration import QUESTION, WANTS, epochs, migrate, notes, order, three


async def test_a_node_that_drains_hands_all_over_takes_nothing_and_may_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        await place.start("d", join=["a"])
        await place.wait_meshed()
        async with place.agent("a", "b", "c", "d") as mesh, mesh.session(WANTS) as idle, mesh.session(WANTS) as busy:
            await idle.wait_moved(1)
            said: list[int] = []
            leaving = None
            async for token in busy.say(QUESTION):
                said.append(token.id)
                if len(said) == 10:
                    leaving = busy.host
                    order(place, leaving, moves.Drain(20.0))
            assert busy.host != leaving
            brain = place.machines[place.name_of(leaving)].brain
            assert brain is not None
            await place.wait_until(lambda: brain.sessions.moves.left(brain.sessions.members.values()) == [])
            async with mesh.session(WANTS) as third:
                assert leaving not in [seat.peer for seat in third.seats]
            place.kill(place.name_of(leaving))
            assert [token.id async for token in busy.say("And then?")]
        assert said == world.expected(WANTS, QUESTION, 64)
        assert len(epochs(busy)) == 2, "its old owner had left before it stopped"


async def test_a_node_that_drains_no_more_is_nominated_again(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await place.start("a")
        async with place.agent("a") as mesh:
            order(place, place.machines["a"].id, moves.Drain(0.0))
            with pytest.raises(errors.Refused) as caught:
                async with mesh.session(WANTS):
                    pass
            order(place, place.machines["a"].id, moves.Undrain())
            async with mesh.session(WANTS) as session:
                assert session.seats[0].peer == place.machines["a"].id
        assert caught.value.status in (480, 488, 503)
        assert notes(place, "draining") == ["patience_s=0"]


async def test_a_session_without_a_replica_stays_and_the_drain_says_why(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await place.start("a")
        async with place.agent("a") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            order(place, session.host, moves.Drain(0.0))
            await place.wait_until(lambda: bool(notes(place, "draining")))
            brain = place.machines["a"].brain
            assert brain is not None
            (left,) = brain.sessions.moves.left(brain.sessions.members.values())
            assert (left.moving, left.able) == (False, False)
            assert "no replica" in left.why
            assert [token.id async for token in session.say(QUESTION)] == world.expected(WANTS, QUESTION, 64)


async def test_a_drain_moves_idle_sessions_first_and_a_call_when_its_answer_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    call = manifest.read({"characteristics": {"kind": "synchronous", "context_tokens": 1024}})
    async with world.world() as place:
        await place.start("a")
        await place.start("b", join=["a"])
        await place.start("c", join=["a"], host=False)
        await place.wait_meshed()
        async with place.agent("a", "b", "c") as mesh, mesh.session(call) as calling:
            await calling.wait_moved(1)
            leaving = calling.host
            async with mesh.session(WANTS) as one, mesh.session(WANTS) as two, mesh.session(WANTS) as last:
                idle = (one, two, last)
                for session in idle:
                    if (await session.wait_moved(1)).host != leaving:
                        migrate(place, session, leaving)
                        await session.wait_moved(2)
                said: list[int] = []
                async for token in calling.say(QUESTION):
                    said.append(token.id)
                    if len(said) == 5:
                        order(place, leaving, moves.Drain(60.0))
                assert calling.host == leaving, "it stays in mid-sentence"
                assert leaving not in [session.host for session in idle]
                await calling.wait_moved(2)
            assert said == world.expected(call, QUESTION, 64)


async def test_a_drain_whose_patience_is_over_moves_a_call_in_mid_sentence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    call = manifest.read({"characteristics": {"kind": "synchronous", "context_tokens": 1024}})
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(call) as calling:
            await calling.wait_moved(1)
            leaving = calling.host
            said: list[int] = []
            async for token in calling.say(QUESTION):
                said.append(token.id)
                if len(said) == 5:
                    order(place, leaving, moves.Drain(0.3))
            assert calling.host != leaving
            assert said == world.expected(call, QUESTION, 64)
