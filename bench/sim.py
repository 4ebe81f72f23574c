"""How much virtual time a core simulates, and how many hostile worlds a machine judges in a minute.

The claim: five nodes with one session that streams 20 tokens a second run 50 times faster than the clock on one core,
every message encoded and decoded on its way, every checker on; and a campaign of new seeds breaks nothing, walks every
rare path that is declared, and does a thousand seeds a minute on all cores.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import bench
from meshnode.sim import campaign, options

STREAM: dict[str, Any] = {"nodes": 5, "decode_ms": 50, "tokens": 120, "storm_s": 1.0}
"""Answers end by themselves after 64 tokens on average; a turn's end costs two tokens' time."""
SEEDS_QUICK, SEEDS = 1000, 5000


def run(quick: bool, runs: int) -> dict[str, float]:
    """Medians over `runs` for the stream; one campaign, from a first seed that no run before had."""
    figures = {
        "speedup_streaming": statistics.median(_speedup(seed, wire=True, quick=quick) for seed in range(runs)),
        "speedup_streaming_unencoded": statistics.median(
            _speedup(seed, wire=False, quick=quick) for seed in range(runs)
        ),
    }
    jobs = len(os.sched_getaffinity(0))
    count = SEEDS_QUICK if quick else SEEDS
    first = time.time_ns() // 1_000_000 % 10**9
    bench.say(f"seeds {first} to {first + count - 1}")
    began_s = time.monotonic()
    found = campaign.campaign(range(first, first + count), jobs)
    seconds = time.monotonic() - began_s
    for one in found.failures:
        bench.say("\n".join(one.lines()))
    return figures | {
        "violations": len(found.failures),
        "marks_missed": len(found.missed),
        "seeds": found.seed_count,
        "seeds_per_minute": 60 * found.seed_count / seconds,
        "virtual_hours": found.virtual_s / 3600,
        "steps_per_core_s": found.step_count / seconds / jobs,
    }


def _speedup(seed: int, *, wire: bool, quick: bool) -> float:
    """Virtual seconds in a second of this core."""
    world = options.Options(wire=wire, turns=5 if quick else 20, **STREAM)
    began_s = time.process_time()
    one = campaign.run(seed, world)
    assert not one.broken, one.lines()
    return one.virtual_s / (time.process_time() - began_s)
