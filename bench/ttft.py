"""How long until the first token when the system prompt is already paged, and when it is not.

Two sessions take turns, each with a turn of 32 tokens behind the same system prompt: one whose prompt nobody had
before, and one whose prompt another session has. The prompts end within a page, as people's do: what lies behind the
last full page is computed for both. The speedup is the median of the ratios within a round, at the shorter prompt: the
longer one flatters.

The engine's thread and the network are not in it; both sides would pay for them alike.
"""

from __future__ import annotations

import itertools
import statistics

import bench
from bench import _engine, _orders

SYSTEM_TOKENS = (1040, 2040)
TURN_TOKENS = 32
_COLD, _SHARED = 0, 1
_TENANT = b"bench"
"""A sharing domain: what one session of it has computed, the other finds."""


def run(quick: bool, runs: int) -> dict[str, float]:
    """Milliseconds to the first token, cold and shared, and their ratio, for two lengths of system prompt."""
    ours = _engine.Ours(_engine.load(_engine.installed()))
    seeds = itertools.count(1)
    figures: dict[str, float] = {}
    for count in SYSTEM_TOKENS:
        found = [_round(ours, count, next(seeds), next(seeds)) for _ in range(runs + 1)][1:]
        for number, (cold_s, shared_s) in enumerate(found):
            bench.say(f"{count} tokens, round {number}: cold {cold_s * 1e3:.1f} ms, shared {shared_s * 1e3:.1f} ms")
        figures[f"cold_{count}_ms"] = statistics.median(cold_s for cold_s, _ in found) * 1e3
        figures[f"shared_{count}_ms"] = statistics.median(shared_s for _, shared_s in found) * 1e3
        figures[f"speedup_{count}"] = statistics.median(cold_s / shared_s for cold_s, shared_s in found)
    return {"shared_prefix_speedup": figures[f"speedup_{SYSTEM_TOKENS[0]}"], **figures}


def _round(ours: _engine.Ours, count: int, seed: int, turn_seed: int) -> tuple[float, float]:
    """Seconds to the first token behind a system prompt that is new, and behind the same one again."""
    system, turn = _orders.words(count, seed), _orders.words(TURN_TOKENS, turn_seed)
    cold_s = ours.feed(_COLD, 0, system + turn, _TENANT)
    shared_s = ours.feed(_SHARED, 0, system + _orders.words(TURN_TOKENS, turn_seed + 1000), _TENANT)
    ours.drop(_COLD)
    ours.drop(_SHARED)
    return cold_s, shared_s
