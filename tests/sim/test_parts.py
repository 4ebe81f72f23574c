"""Clocks, disks, options and the campaign's own arithmetic."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from meshnode import errors, ids, journal
from meshnode.ids import SessionId
from meshnode.sim import campaign, clocks, disks, marks, options
from meshnode.sim.checkers import Violation

SESSION = SessionId(b"s" * ids.SESSION_BYTES)

# -------------------------------------------------------------------------------------------------------------- clocks


@given(some.integers(0, 10**10), some.integers(-20_000, 20_000), some.floats(0.0, 10_000.0))
def test_a_clock_is_asked_for_the_first_moment_that_shows_a_time(offset: int, drift: int, local_s: float) -> None:
    clock = clocks.Clock(offset, drift)
    at = clock.true_us(local_s)
    assert clock.local_s(at) >= local_s
    assert clock.local_s(at - 4) < local_s


def test_a_clock_that_stood_shows_the_same_and_goes_on() -> None:
    clock = clocks.Clock(5_000_000, 100)
    before = clock.local_s(2_000_000)
    clock.stood(3_000_000)
    assert abs(clock.local_s(5_000_000) - before) < 1e-5
    clock.jump(1_000_000)
    assert abs(clock.local_s(5_000_000) - before - 1.0) < 1e-5


# --------------------------------------------------------------------------------------------------------------- disks


def record(number: int) -> bytes:
    return journal.record(SESSION, b"record %d" % number)


def written(disk: disks.Disk, *numbers: int) -> None:
    """Queued, one by one."""
    for number in numbers:
        disk.waiting.append(disks.Write([record(number)], lambda: None))


def bodies(disk: disks.Disk) -> list[bytes]:
    return disk.opened()[0]


def test_what_waits_shares_the_next_sync_and_is_told_in_order() -> None:
    disk = disks.Disk()
    told: list[int] = []
    disk.waiting.append(disks.Write([record(1)], lambda: told.append(1)))
    assert disk.begin()
    disk.waiting.append(disks.Write([record(2)], lambda: told.append(2)))
    assert not disk.begin(), "one sync at a time"
    for done in disk.synced():
        done()
    assert told == [1]
    assert disk.begin()
    for done in disk.synced():
        done()
    assert told == [1, 2]
    assert bodies(disk) == [b"record 1", b"record 2"]


def test_a_crash_forgets_what_waited_and_what_was_synced_stays() -> None:
    disk = disks.Disk()
    written(disk, 1)
    disk.begin()
    disk.synced()
    written(disk, 2)
    assert disk.crash(random.Random(1), tear=False) == 1
    assert bodies(disk) == [b"record 1"]


def test_a_sync_that_a_crash_meets_is_whole_or_nothing_or_torn() -> None:
    found: Counter[tuple[int, bool]] = Counter()
    for seed in range(40):
        disk = disks.Disk()
        written(disk, 1, 2)
        disk.begin()
        disk.crash(random.Random(seed), tear=True)
        records, torn_bytes = disk.opened()
        found[len(records), torn_bytes > 0] += 1
    assert set(found) <= {(0, False), (0, True), (2, False)}, "a batch is there or it is not"
    assert found[0, True] > 0


def test_a_journal_written_anew_keeps_its_place_among_the_appends() -> None:
    disk = disks.Disk()
    written(disk, 1)
    disk.waiting.append(disks.Write([record(9)], lambda: None, anew=True))
    written(disk, 2)
    disk.begin()
    disk.synced()
    assert bodies(disk) == [b"record 9", b"record 2"]


# ------------------------------------------------------------------------------------------------------------- options


def test_a_world_in_words_is_that_world() -> None:
    for seed in range(50):
        drawn = options.drawn(seed)
        assert options.read(drawn.words()) == drawn
        assert options.drawn(seed) == drawn


@pytest.mark.parametrize("words", ["speed=3", "nodes=many", "nodes"])
def test_words_that_are_no_world_are_refused(words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words.partition("=")[0]):
        options.read(words)


def test_a_calmer_world_has_one_thing_less() -> None:
    wild = options.drawn(7)
    assert all(one != wild for one in options.calmer(wild))
    assert list(options.calmer(options.Options(nodes=1, turns=1, storm_s=1.0))) == []


# ------------------------------------------------------------------------------------------------------------ campaign


def failing(seed: int, of: options.Options) -> campaign.Outcome:
    """Breaks whenever there is loss and a second node."""
    broken = "split" if of.loss and of.nodes > 1 else ""
    return campaign.Outcome(seed, of, broken, f"{broken}: told", "", {}, 1.0, 1)


def test_shrinking_keeps_what_breaks_and_leaves_out_the_rest() -> None:
    wild = options.read("nodes=5 loss=0.3 duplicate=0.1 crash_every_s=1.0 storm_s=12.0 clients=2")
    small = campaign.shrunk(failing(3, wild), failing)
    assert small.options == options.Options(nodes=2, loss=0.3, storm_s=1.0, turns=1)
    assert small.broken == "split"


def test_a_failure_is_said_in_three_lines_that_can_be_typed() -> None:
    violated, world, replay = failing(3, options.read("nodes=5 loss=0.3")).lines()
    assert violated == "violated: split: told"
    assert world == "seed 3: nodes=5 loss=0.3"
    assert replay == "replay: meshnode sim --seed 3 --options 'nodes=5 loss=0.3' --trace"


def test_a_broken_invariant_and_a_bug_of_ours_both_fail_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise Violation("never", "it was")

    monkeypatch.setattr(campaign.World, "run", broken)
    assert campaign.run(1).broken == "never"

    def buggy(self: object) -> None:
        raise AssertionError("one fact")

    monkeypatch.setattr(campaign.World, "run", buggy)
    assert campaign.run(1).broken == "AssertionError in buggy"
    found = campaign.campaign(range(200))
    assert len(found.failures) >= campaign.FAILURES_MAX
    assert found.seed_count < 200, "the first few say it"
    assert not found.passed


def test_a_long_campaign_that_missed_a_mark_fails() -> None:
    found = campaign.Sum(seed_count=campaign.MARKS_SEEDS_MIN, reached=Counter(dict.fromkeys(marks.DECLARED, 1)))
    assert found.passed
    del found.reached[marks.DECLARED[0]]
    assert found.missed == [marks.DECLARED[0]]
    assert not found.passed
    assert campaign.Sum(seed_count=10).passed


def test_processes_sum_up_to_what_one_finds() -> None:
    alone, shared = campaign.campaign(range(1, 41)), campaign.campaign(range(1, 41), jobs=2)
    assert (alone.seed_count, alone.reached, alone.step_count) == (shared.seed_count, shared.reached, shared.step_count)
