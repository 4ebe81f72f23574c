"""What the owner's terminal may order, and what it is told at once."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from meshnode import client, ids, manifest, orders
from meshnode.sessions import moves
from tests import world

WANTS = manifest.read({"characteristics": {"context_tokens": 1024}})


def told(place: world.World, name: str, **request: Any) -> tuple[dict[str, Any] | None, list[moves.Order]]:
    """The answer, and what the brain is asked to do, which is not done."""
    brain = place.machines[name].brain
    assert brain is not None
    submitted: list[moves.Order] = []
    return orders.carry_out(brain, submitted.append, request, trio.current_time()), submitted


async def three(place: world.World) -> None:
    await place.start("a")
    await place.start("b", join=["a"])
    await place.start("c", join=["a", "b"])
    await place.wait_meshed()


def names(place: world.World, session: client.Session) -> dict[str, str]:
    return {seat.role: place.name_of(seat.peer) for seat in session.seats}


async def test_what_is_no_order_is_left_to_others(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await place.start("a")
        assert told(place, "a", do="status") == (None, [])


@pytest.mark.parametrize("patience", [-1, 1e9, "soon", None])
async def test_a_drains_patience_is_a_number_of_seconds(
    patience: object, autojump_clock: trio.testing.MockClock
) -> None:
    async with world.world() as place:
        await place.start("a")
        answer, submitted = told(place, "a", do="drain", patience_s=patience)
        assert answer is not None
        assert "patience_s must be" in answer["error"]
        assert submitted == []


async def test_a_drain_is_ordered_and_says_what_still_runs_here(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await place.start("a")
        async with place.agent("a") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            assert told(place, "a", do="drain") == ({"ordered": True}, [moves.Drain(orders.PATIENCE_S)])
            brain = place.machines["a"].brain
            assert brain is not None
            shown = orders.drain(brain)
            assert [one["session"] for one in shown["left"]] == [session.id.hex()]
            assert not shown["draining"]
            assert told(place, "a", do="undrain")[1] == [moves.Undrain()]


async def test_a_session_is_named_by_how_its_id_begins_and_a_target_by_name_or_id(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            at = names(place, session)
            target = place.machines[at["replica"]].id
            for to in ("", at["replica"], ids.peer_text(target), ids.peer_text(target)[-6:]):
                answer, submitted = told(place, at["host"], do="migrate", session=session.id.hex()[:6], to=to)
                assert answer == {"session": session.id.hex(), "to": ids.peer_text(target), "epoch": 1}
                assert submitted == [moves.Migrate(session.id, target if to else None)]


async def test_a_move_that_cannot_be_is_refused_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with world.world() as place:
        await three(place)
        async with place.agent("a", "b", "c") as mesh, mesh.session(WANTS) as session:
            await session.wait_moved(1)
            at = names(place, session)
            here = ids.peer_text(place.machines[at["host"]].id)
            for name, session_id, to, words in (
                (at["host"], "", "", "name one of them"),
                (at["host"], "zz", "", "0 sessions here"),
                (at["host"], session.id.hex(), "nobody", "no node here is called"),
                (at["host"], session.id.hex(), at["witness"], "inside its group only"),
                (at["replica"], session.id.hex(), "", here),
            ):
                answer, submitted = told(place, name, do="migrate", session=session_id, to=to)
                assert answer is not None
                assert words in answer["error"]
                assert submitted == []
