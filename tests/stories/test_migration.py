"""Sessions that move because somebody wants it. The client's answer must not show any of it, and hardly the clock."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from meshnode import client, errors, manifest
from meshnode.ids import PeerId
from meshnode.sessions import moves
from meshnode.sessions.attach import Moved
from meshnode.sessions.member import Member
from tests import world

WANTS = manifest.read({"characteristics": {"context_tokens": 2048}, "agent": {"max_tokens": 64}})
QUESTION = "Who drives while the drivers change seats? " * 3
STEP_S = 0.02
"""What the world's engine takes for a token."""
ROUND_TRIP_S = 0.006
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
        gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        assert max(gaps) <= 2 * STEP_S + 4 * ROUND_TRIP_S
        assert notes(place, "detected") == []
