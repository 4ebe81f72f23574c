"""Passes: streams in every one, prefill within bounds, and nobody left behind."""

from __future__ import annotations

from typing import Any

from hypothesis import stateful
from hypothesis import strategies as some

from meshnode.engine import batcher
from meshnode.engine.batcher import Share

LIMITS = batcher.Limits(rows_max=64, beside_rows=12, beside_rows_min=4)


def rows(of: batcher.Batcher[Any]) -> dict[int, int]:
    return {share.job: share.rows for share in of.next()}


def measured(of: batcher.Batcher[str], steps_us: list[int], row_us: int) -> int:
    """A stream's steps take so long, and each row of a prompt beside it so much more. The prompt's number, the last."""
    for number, step_us in enumerate(steps_us):
        of.add(number, "a", 1)
        of.next()
        of.measured(step_us)
    prompt = len(steps_us) + 1
    of.add(prompt - 1, "a", 1)
    of.add(prompt, "long", 10**6)
    shares = of.next()
    of.measured(of.step_us + row_us * (sum(share.rows for share in shares) - 1))
    return prompt


def test_a_lone_prefill_takes_whole_passes() -> None:
    of = batcher.Batcher[str](LIMITS)
    of.add(0, "a", 150)
    assert [rows(of) for _ in range(4)] == [{0: 64}, {0: 64}, {0: 22}, {}]


def test_streams_are_in_every_pass_and_prefill_beside_them_is_short() -> None:
    of = batcher.Batcher[str](LIMITS)
    of.add(0, "long", 1000)
    for turn in range(1, 9, 2):
        of.add(turn, "a", 1)
        of.add(turn + 1, "b", 1)
        assert rows(of) == {turn: 1, turn + 1: 1, 0: 12}


def test_a_stream_between_two_tokens_is_still_one() -> None:
    of = batcher.Batcher[str](LIMITS)
    of.add(0, "a", 1)
    of.add(1, "long", 1000)
    assert rows(of) == {0: 1, 1: 12}
    assert [rows(of)[1] for _ in range(batcher.STREAM_PASSES + 1)] == [12] * batcher.STREAM_PASSES + [64]


def test_an_answer_that_is_over_holds_no_prefill_back() -> None:
    for rest in (lambda of: of.rests("a"), lambda of: of.all_rest(), lambda of: of.add(2, "a", 5)):
        of = batcher.Batcher[str](LIMITS)
        of.add(0, "a", 1)
        of.next()
        of.add(1, "long", 1000)
        rest(of)
        assert rows(of)[1] > 12


def test_prompts_that_come_together_share_and_the_oldest_is_first() -> None:
    of = batcher.Batcher[str](LIMITS)
    for job in range(4):
        of.add(job, f"{job}", 64)
    ends: list[int] = []
    passes = 0
    left = dict.fromkeys(range(4), 64)
    while left:
        passes += 1
        for job, count in rows(of).items():
            left[job] -= count
            if not left[job]:
                del left[job]
                ends.append(job)
    assert ends == [0, 1, 2, 3]
    assert passes == 4


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    of = batcher.Batcher[str](LIMITS)
    of.add(0, "long", 5000)
    of.add(1, "short", 20)
    assert rows(of) == {0: 44, 1: 20}


def test_who_joined_late_because_memory_was_full_is_the_oldest_all_the_same() -> None:
    of = batcher.Batcher[str](LIMITS)
    of.add(5, "young", 1000)
    of.add(3, "old", 1000)
    of.add(4, "between", 1000)
    assert rows(of)[3] == 32


def test_what_a_pass_costs_decides_what_streams_bear() -> None:
    for step_us, expected in ((40_000, 20), (2_000, 4), (800_000, 63)):
        of = batcher.Batcher[str](LIMITS)
        prompt = measured(of, [step_us], 2_000)
        of.add(prompt + 1, "a", 1)
        assert rows(of) == {prompt + 1: 1, prompt: expected}


def test_a_slow_moment_does_not_turn_everything_over() -> None:
    of = batcher.Batcher[str](LIMITS)
    prompt = measured(of, [20_000, 20_000, 60_000], 2_000)
    of.add(prompt + 1, "a", 1)
    assert rows(of)[prompt] == (3 * 20_000 + 60_000) // 4 // 2_000


def test_who_was_in_the_last_pass_and_is_not_back_is_expected() -> None:
    of = batcher.Batcher[str](LIMITS)
    for number, name in enumerate("abc"):
        of.add(number, name, 1)
    of.add(3, "long", 100)
    of.next()
    assert of.expected() == {"a", "b", "c"}
    of.add(4, "a", 1)
    of.rests("b")
    assert of.expected() == {"c"}
    of.next()
    assert of.expected() == {"a"}


class Crowd(stateful.RuleBasedStateMachine):
    """Against a bag of rows: jobs of random size come, go and are given up."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = batcher.Batcher[int](LIMITS)
        self.left: dict[int, int] = {}
        self.streams: set[int] = set()
        self.waits: dict[int, int] = {}
        """Passes without a row since the last one, or since it came."""
        self.ahead: dict[int, int] = {}
        """Jobs of the same kind that were here then: so many passes it may wait."""
        self.number = 0

    def add(self, size: int) -> None:
        self.batcher.add(self.number, self.number, size)
        self.left[self.number], self.waits[self.number] = size, 0
        if size == 1:
            self.streams.add(self.number)
        self.ahead[self.number] = len(self.like(self.number))
        self.number += 1

    def like(self, job: int) -> set[int]:
        return {one for one in self.left if (one in self.streams) == (job in self.streams)}

    @stateful.rule(count=some.integers(1, 30))
    def streams_come(self, count: int) -> None:
        for _ in range(count):
            self.add(1)

    @stateful.rule(size=some.integers(2, 300))
    def a_prompt_comes(self, size: int) -> None:
        self.add(size)

    @stateful.precondition(lambda self: self.left)
    @stateful.rule(pick=some.integers(0, 99))
    def one_is_given_up(self, pick: int) -> None:
        job = list(self.left)[pick % len(self.left)]
        self.batcher.remove(job)
        self.over(job)

    @stateful.rule(micros=some.integers(1, 10**7))
    def a_pass_is_measured(self, micros: int) -> None:
        self.batcher.measured(micros)

    @stateful.rule()
    def a_pass_runs(self) -> None:
        plan = self.batcher.next()
        assert bool(plan) == bool(self.left)
        self.check(plan)
        for share in plan:
            self.left[share.job] -= share.rows
            self.waits[share.job], self.ahead[share.job] = -1, len(self.like(share.job))
        for job in list(self.left):
            self.waits[job] += 1
            if not self.left[job]:
                self.over(job)

    def check(self, plan: list[Share]) -> None:
        jobs = [share.job for share in plan]
        assert len(set(jobs)) == len(jobs)
        assert sum(share.rows for share in plan) <= LIMITS.rows_max
        assert all(0 < share.rows <= self.left[share.job] for share in plan)
        prompts = [job for job in self.left if job not in self.streams]
        if len(self.streams) <= LIMITS.rows_max * 7 // 8:
            assert self.streams <= set(jobs), "a stream waits"
        if self.streams:
            first = min(self.streams)
            assert first in jobs, "streams are out of order"
        if prompts:
            assert min(prompts) in jobs, "the oldest prompt gets nothing"

    def over(self, job: int) -> None:
        del self.left[job], self.waits[job], self.ahead[job]
        self.streams.discard(job)

    @stateful.invariant()
    def nobody_is_forgotten(self) -> None:
        assert len(self.batcher) == len(self.left)

    @stateful.invariant()
    def nobody_starves(self) -> None:
        assert all(self.waits[job] <= self.ahead[job] for job in self.left)

    def teardown(self) -> None:
        """Whatever waits is done in the end."""
        while self.left:
            self.a_pass_runs()
            self.nobody_starves()


TestCrowd = Crowd.TestCase
