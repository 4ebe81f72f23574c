"""Hundreds of orders of events that no test would think of: safety after each event, an answer at the end."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sessions import cases, model

SEEDS = {3: 160, 5: 60}
"""Seeds for each number of voters."""


def ran(seed: int, count: int) -> model.World:
    world = model.World(seed, count)
    try:
        world.run()
        for number in range(1, world.turns + 1):
            assert world.said.get(cases.request(number)) == world.expected(number)
        assert world.over
    except AssertionError as error:
        error.add_note(f"model.World(seed={seed}, count={count})")
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
