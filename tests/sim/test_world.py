"""The world itself: the same twice, under any hash seed; seeds that found bugs; a slice of a campaign."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from meshnode.sim import campaign, marks, options, trace, world

HERE = Path(__file__).resolve().parent
KNOWN = [line.partition(" ")[0] for line in (HERE / "seeds.txt").read_text().splitlines() if not line.startswith("#")]
SEEDS = 300
"""About half a minute."""

_DIGESTS = """
from meshnode.sim import campaign, options, trace
for seed in (1, 4, 27):
    print(campaign.run(seed, options.drawn(seed), trace.Trace(exact=True)).digest)
"""


def exact(seed: int) -> str:
    return campaign.run(seed, options.drawn(seed), trace.Trace(exact=True)).digest


def fresh_process(hash_seed: str) -> list[str]:
    """Digests from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _DIGESTS],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_same_seed_is_the_same_world_twice_and_another_is_another() -> None:
    assert exact(4) == exact(4)
    assert exact(4) != exact(5)


def test_a_world_depends_on_no_hash_seed() -> None:
    found = fresh_process("0")
    assert found == fresh_process("4242") == [exact(seed) for seed in (1, 4, 27)]


def test_what_a_trace_shows_changes_nothing() -> None:
    lines: list[str] = []
    assert campaign.run(4, trace=trace.Trace(lines.append)).digest == campaign.run(4).digest
    assert any("* crash" in line or "* cut" in line or "* reset" in line for line in lines)
    assert any("Notify" in line for line in lines)


@pytest.mark.parametrize("seed", KNOWN)
def test_a_seed_that_found_a_bug_finds_none(seed: str) -> None:
    one = campaign.run(int(seed))
    assert not one.broken, one.lines()


def test_three_hundred_seeds_break_nothing() -> None:
    """A slice of a campaign, the same each time: a commit is not judged by worlds that nobody has seen yet."""
    found = campaign.some(range(SEEDS))
    assert [line for one in found.failures for line in campaign.shrunk(one).lines()] == []
    assert len(found.missed) < len(marks.DECLARED) // 3, found.missed


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"loss": 0.3}, "frames lost"),
    ({"duplicate": 0.3}, "frames doubled"),
    ({"reorder": True, "delay_ms": 50}, "frames overtaken"),
    ({"cut_every_s": 1.0, "held": True}, "frames held"),
    ({"cut_every_s": 1.0, "one_way": True}, "cut in one direction"),
    ({"cut_every_s": 1.0, "cut_halves": True}, "halves cut"),
    ({"reset_every_s": 0.5}, "link reset"),
    ({"crash_every_s": 0.5, "sync_ms": 100}, "records lost that were not synced"),
    ({"crash_every_s": 0.5, "sync_ms": 100, "tear": True}, "journal's tail torn"),
    ({"crash_every_s": 0.5, "wipe": 1.0, "nodes": 5}, "machine gone for good"),
    ({"pause_every_s": 0.5, "clock_stops": True}, "clock stood"),
    ({"jump_every_s": 0.5}, "clock jumped"),
    ({"away_every_s": 0.5}, "client came back"),
    ({"compact_every_s": 0.5}, "journal written anew"),
    ({"evict_every_s": 0.2}, "pages evicted"),
    ({"vanish": 1.0}, "client left without a word"),
    ({"interrupt": 1.0}, "answer interrupted"),
]


def quiet(**given: Any) -> options.Options:
    """A world without faults but those that are given."""
    return options.Options(**given)


def test_a_world_without_faults_has_none() -> None:
    one = world.World(1, quiet(linger=True))
    one.run()
    reached = {name for name, count in one.hits.items() if count}
    assert {"session born", "every turn answered", "dropped by every voter"} <= reached
    assert reached & {mark for _, mark in FAULTS} == set()
    assert reached & {"taken over", "no quorum said", "turn asked again"} == set()


@pytest.mark.parametrize(("fault", "mark"), FAULTS, ids=[mark for _, mark in FAULTS])
def test_a_fault_that_is_on_befalls_somebody(fault: dict[str, Any], mark: str) -> None:
    hits: Counter[str] = Counter()
    for seed in range(5):
        one = campaign.run(seed, quiet(**{"tokens": 40, "turns": 3} | fault))
        assert not one.broken, one.lines()
        hits.update(one.hits)
    assert hits[mark] > 0
