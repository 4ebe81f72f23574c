"""The whole way with the node's own code, over the in-memory network, under virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from meshnode import errors, manifest
from meshnode.sessions.attach import Moved
from tests import world

WANTS = manifest.read({"characteristics": {"context_tokens": 1024}, "agent": {"max_tokens": 64}})
QUESTION = "Why does a session outlive its host? " * 3


async def mesh_of(place: world.World, count: int) -> None:
    await place.start("a")
    for name in "bcdefgh"[: count - 1]:
        await place.start(name, join=["a"])
    await place.wait_meshed()


async def test_a_single_node_chats_and_says_that_there_is_no_failover(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await mesh_of(place, 1)
        async with place.agent("a") as mesh, mesh.session(WANTS) as session:
            said = [token.id async for token in session.say(QUESTION)]
        assert said == world.expected(WANTS, QUESTION, 64)
        assert session.end_reason == "stop"
        assert "no failover" in session.notices[0]


async def test_three_nodes_give_host_replica_and_witness(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await mesh_of(place, 3)
        async with place.agent("a") as mesh, mesh.session(WANTS) as session:
            assert [seat.role for seat in session.seats] == ["host", "replica", "witness"]
            assert session.notices == ()
            said = [token.id async for token in session.say(QUESTION)]
            second = [token.id async for token in session.say("And then?")]
        assert said == world.expected(WANTS, QUESTION, 64)
        assert second


@pytest.mark.parametrize("at", [0, 1, 7, 20, 33, 50])
async def test_a_killed_host_loses_repeats_and_changes_nothing(at: int, autojump_clock: trio.testing.MockClock) -> None:
    async with world.world(seed=at) as place:
        await mesh_of(place, 3)
        survivor = "a"
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            said: list[int] = []
            gaps: list[float] = []
            last = trio.current_time()
            await session.wait_moved(1)
            if at == 0:
                place.kill(place.name_of(session.host))
            async for token in session.say(QUESTION):
                said.append(token.id)
                gaps.append(trio.current_time() - last)
                last = trio.current_time()
                if len(said) == at:
                    survivor = place.name_of(session.host)
                    place.kill(survivor)
            moves = [event.item for event in session.history if isinstance(event.item, Moved)]
        assert said == world.expected(WANTS, QUESTION, 64)
        assert [move.epoch for move in moves][:1] == [1]
        assert len(moves) == 2
        assert max(gaps) < 2.0


async def test_unmet_constraints_are_refused_with_every_reason(autojump_clock: trio.testing.MockClock) -> None:
    wants = manifest.read({"placement": {"model": "gpt-9", "zones": ["moon"], "numeric_class": "f32"}})
    async with world.world() as place:
        await mesh_of(place, 3)
        async with place.agent("a") as mesh:
            with pytest.raises(errors.Refused) as caught:
                async with mesh.session(wants):
                    pass
        assert caught.value.status == 488
        text = str(caught.value)
        assert "gpt-9" in text
        assert "moon" in text
        assert "f32" in text


async def test_a_turn_with_bad_options_is_refused_and_the_session_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await mesh_of(place, 3)
        async with place.agent("a") as mesh, mesh.session(WANTS) as session:

            async def refused(**asked: object) -> str:
                with pytest.raises(errors.Refused) as caught:
                    async for _ in session.say("Hello?", **asked):
                        pass
                assert caught.value.status == 400
                return str(caught.value)

            found = await refused(temperature=99, stop=["a", ""], tempo=3)
            assert all(word in found for word in ("temperature: must be", "stop: must be", "tempo: unknown key"))
            assert "one grammar" in await refused(regex="a", schema={})
            assert "vocabulary" in await refused(logit_bias={100_000: 1.0})
            assert "grammar: " in await refused(regex="(")
            assert len([token async for token in session.say("Hello?", regex="[a-z]+", temperature=1)]) > 1


async def test_without_peers_the_answer_comes_within_the_invite_time(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await place.start("a")
        place.kill("a")
        before = trio.current_time()
        async with place.agent("a") as mesh:
            with pytest.raises(errors.Refused) as caught:
                async with mesh.session(WANTS):
                    pass
        assert caught.value.status == 408
        assert trio.current_time() - before <= 10.5


async def test_a_session_whose_agent_died_is_kept_as_long_as_its_manifest_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wants = manifest.read({"scaling": {"keep_cold_s": 60}})
    async with world.world() as place:
        await mesh_of(place, 3)

        async def die_while_it_speaks() -> None:
            async with place.agent("a") as mesh, mesh.session(wants) as session:
                async for _ in session.say("Hello?"):
                    place.network.crash(mesh.me)
                    raise RuntimeError("the agent dies")

        with pytest.raises(RuntimeError):
            await die_while_it_speaks()

        def sessions() -> int:
            return sum(len(one.brain.sessions.members) for one in place.machines.values() if one.brain is not None)

        assert sessions() == 3
        died_at = trio.current_time()
        await place.wait_until(lambda: sessions() == 0)
        assert 55 <= trio.current_time() - died_at <= 75
