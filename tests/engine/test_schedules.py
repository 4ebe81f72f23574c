"""Twenty prompts, three families, an engine too small for them, and dice: chunks of any size, company, forks,
preemption, moves to another engine by pages. Each row of logits has the bits that it has alone.

`python -m tests.engine.test_schedules 334` says it of 20,040 tokens; the test itself of fewer.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import pytest

from meshnode import ids, ports
from meshnode.engine import batcher, engine, recipes, spill
from tests.engine import test_architectures as families

FAMILIES = ("smollm2", "qwen2", "qwen3")
PROMPTS = 20
TOKENS = 16
MEMORY_PAGES = 36
"""Half of what twenty sessions want from the start."""
LIMITS = batcher.Limits(64, 24, 8)
Row = tuple[int, ids.Digest]
"""The token that was drawn, and a digest of the logits that it was drawn from."""


def named(number: int) -> ids.SessionId:
    return ids.SessionId(number.to_bytes(ids.SESSION_BYTES, "big"))


def prompt(number: int) -> tuple[int, ...]:
    dice = random.Random(number)
    return tuple(dice.randrange(299) for _ in range(dice.randrange(5, 150)))


class Seen:
    """An engine that remembers what each session was drawn from."""

    def __init__(self, family: str, page_count: int = 1000) -> None:
        of, inside = families.loaded(family, "w8")
        memory_bytes = page_count * of.layers * 2 * 32 * of.kv_heads * of.head_dim * 2
        self.engine = engine.TorchEngine(
            recipes.assembled(of, inside, "w8", memory_bytes, rows_max=LIMITS.rows_max),
            name=family,
            digest=ids.digest(family.encode()),
            spill=spill.MemorySpill(1 << 26),
            limits=LIMITS,
        )
        self.logits: dict[ids.SessionId, ids.Digest] = {}
        draw = self.engine._draw

        def seen(job: engine._Job, logits: Any) -> engine.Answer:
            self.logits[job.work.session] = ids.digest(logits.tobytes())
            return draw(job, logits)

        self.engine._draw = seen  # type: ignore[method-assign]


class Talk:
    """One session's way through its answer."""

    def __init__(self, seen: Seen, session: ids.SessionId, context: tuple[int, ...], domain: bytes = b"") -> None:
        self.seen, self.session, self.domain = seen, session, domain
        self.context = list(context)
        self.held = 0
        self.rows: list[Row] = []
        self.sampling = ports.Sampling(seed=session[-1], temperature=0.7)
        self.number = self.chunk = 0

    def post(self, dice: random.Random) -> None:
        """The next piece of what is in the context and not in the engine; the last one draws."""
        left = len(self.context) - self.held
        self.chunk = min(left, dice.choice((1, 7, 32, 64, 200)))
        feed = tuple(self.context[self.held : self.held + self.chunk])
        work = ports.Work(self.session, self.held, feed, self.sampling if self.chunk == left else None, self.domain)
        self.number = self.seen.engine.post(work)

    def answered(self, answer: engine.Answer) -> None:
        assert not isinstance(answer, Exception), answer
        self.held, self.number = self.held + self.chunk, 0
        if answer is not None:
            self.rows.append((answer, self.seen.logits[self.session]))
            self.context.append(answer)

    def move(self, to: Seen) -> None:
        """To another engine, by pages."""
        pages = [self.seen.engine.export(self.session, index) for index in range(self.held // 32)]
        self.seen.engine.drop(self.session)
        self.held = to.engine.restore(self.session, self.context[: len(pages) * 32], pages, domain=self.domain)
        self.seen = to


def alone(family: str, session: ids.SessionId, context: tuple[int, ...], count: int) -> list[Row]:
    """In an engine of its own, the prompt at once."""
    talk, dice = Talk(Seen(family), session, context), random.Random(0)
    while len(talk.rows) < count:
        while not talk.number:
            talk.post(dice)
        for answer in talk.seen.engine.advance().values():
            talk.answered(answer)
    return talk.rows


def crowded(family: str, count: int, dice: random.Random) -> tuple[list[tuple[Talk, tuple[int, ...]]], Counter[str]]:
    """Every session with the context that it began with, and what happened on the way."""
    first, second = Seen(family, MEMORY_PAGES), Seen(family, MEMORY_PAGES)
    talks = [(Talk(first, named(number), prompt(number)), prompt(number)) for number in range(PROMPTS)]
    seen: Counter[str] = Counter()
    while any(len(talk.rows) < count for talk, _ in talks):
        for talk, _ in list(talks):
            if talk.number or len(talk.rows) >= count or dice.random() < 0.4:
                continue
            if talk.seen is first and talk.held > 64 and dice.random() < 0.02:
                talk.move(second)
                seen["moved"] += 1
            elif len(talks) < PROMPTS + 4 and len(talk.rows) == 3:
                context = tuple(talk.context)
                fork = Talk(talk.seen, named(100 + len(talks)), context, talk.domain or talk.session)
                talks.append((fork, context))
                seen["forked"] += 1
            talk.post(dice)
        for place in (first, second):
            ended = place.engine.advance()
            for talk, _ in talks:
                if talk.seen is place and talk.number in ended:
                    talk.answered(ended[talk.number])
    for place in (first, second):
        statistics = place.engine.statistics()
        seen += Counter(preempted=statistics.spill_count, found=statistics.reused_tokens)
    return talks, seen


def check(family: str, count: int, seed: int) -> tuple[int, Counter[str]]:
    """Tokens compared, and what happened to the sessions meanwhile."""
    talks, seen = crowded(family, count, random.Random(seed))
    for talk, began in talks:
        assert talk.rows[:count] == alone(family, talk.session, began, count), f"{family} {talk.session.hex()}"
    return len(talks) * count, seen


@pytest.mark.parametrize("family", FAMILIES)
def test_no_schedule_leaves_a_trace_in_the_logits(family: str) -> None:
    _, seen = check(family, TOKENS, 1)
    assert min(seen[what] for what in ("moved", "forked", "preempted", "found")) > 0, seen


if __name__ == "__main__":
    for family in FAMILIES:
        print(family, *check(family, int(sys.argv[1]), 2))
