"""Hundreds of orders of events that no test would think of: safety after each event, an answer at the end."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sessions import cases, drawing, model

SEEDS = {3: 160, 5: 60}
"""Seeds for each number of voters."""


def ran(seed: int, count: int, spares: int = 0) -> model.World:
    world = model.World(seed, count, spares=spares)
    try:
        world.run()
        for number in range(1, world.caller.turns + 1):
            assert world.caller.said.get(cases.request(number)) == drawing.expected(number)
        assert world.caller.over
    except AssertionError as error:
        error.add_note(f"model.World(seed={seed}, count={count}, spares={spares})")
        raise
    return world


RARE = {
    "crashed", "restarted", "lost", "elected", "adopted", "restored", "prepare refused", "first token",
    "moving", "arriving", "ready", "handed over", "referred", "move refused", "move called off",
    "detected: not taken", "detected: reset", "detected: silence", "detected: restarted",
}  # fmt: skip


@pytest.mark.parametrize("count", [3, 5])
def test_any_order_of_events_gives_one_answer(count: int) -> None:
    reached: Counter[str] = Counter()
    for seed in range(SEEDS[count]):
        reached += ran(seed, count).reached
    assert {what for what in RARE if not reached[what]} == set()


RARE_REPAIRS = RARE | {
    "newcomer",
    "newcomer given up",
    "configuration",
    "seats changed",
    "wiped",
    "Reseated",
}
REPAIR_SEEDS = {3: 160, 5: 50}


@pytest.mark.parametrize("count", [3, 5])
def test_any_order_of_events_gives_one_answer_while_voters_are_replaced(count: int) -> None:
    reached: Counter[str] = Counter()
    for seed in range(REPAIR_SEEDS[count]):
        reached += ran(seed, count, spares=2).reached
    assert {what for what in RARE_REPAIRS if not reached[what]} == set()
