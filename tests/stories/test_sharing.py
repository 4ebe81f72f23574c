"""What one session of an agent computed, the agent's next one does not compute again; nobody else profits."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from meshnode import client, manifest
from tests import world

SYSTEM = "You are the concierge of a hotel by the sea, and this is all that you must know about it. " * 8
QUESTION = "When is breakfast?"


def wants(sharing: str) -> manifest.Manifest:
    return manifest.read(
        {
            "characteristics": {"context_tokens": 2048},
            "migration": {"sharing": sharing},
            "agent": {"system": SYSTEM, "max_tokens": 64},
        }
    )


async def asked(mesh: client.Mesh, sharing: str) -> float:
    """Open a session, ask, close it; the seconds to the first token."""
    async with mesh.session(wants(sharing)) as session:
        started = trio.current_time()
        said: list[int] = []
        first = 0.0
        async for token in session.say(QUESTION):
            first = first or trio.current_time() - started
            said.append(token.id)
    assert said == world.expected(wants(sharing), QUESTION, 64)
    return first


async def reused(place: world.World) -> int:
    """Tokens found since the last time this was asked, once the sessions before are out of the engine."""
    engine = place.machines["a"].engine
    assert engine is not None
    await place.wait_until(lambda: not engine.core.contexts)
    return engine.statistics().reused_tokens


@pytest.mark.parametrize(("sharing", "shares"), [("tenant", True), ("session", False)])
async def test_an_agents_next_session_takes_the_system_text_as_it_is(
    sharing: str, shares: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with world.world() as place:
        await place.start("a")
        async with place.agent("a") as mesh:
            cold = await asked(mesh, sharing)
            assert await reused(place) == 0
            warm = await asked(mesh, sharing)
            assert (await reused(place) >= len(SYSTEM) // 16 * 16) is shares
            assert (warm < cold / 10) is shares


async def test_another_agent_finds_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await place.start("a")
        async with place.agent("a") as first, place.agent("a") as second:
            cold = await asked(first, "tenant")
            assert await asked(second, "tenant") > cold * 0.9
        assert await reused(place) == 0
