"""The promise of "w8" and "i8": a row's bits are a function of its context, whatever else the machine was doing."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

from meshnode import errors, ids, ports
from meshnode.engine import engine, pages
from tests.engine import tiny

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
PROMPT = tuple((index * index * 7 + index * 31 + 5) % 290 for index in range(400))
LAST = PROMPT[-1]


Row = np.ndarray[Any, Any]


class Seen:
    """Every row of logits that an engine's model computed for one session's last token."""

    def __init__(self, of: engine.TorchEngine) -> None:
        self.engine = of
        self.rows: list[Row] = []
        inner = of._llama

        class Watched:
            def forward(_, segments: list[pages.Segment], wanted: list[int]) -> Row:
                logits: Row = inner.forward(segments, wanted)
                self.rows += list(logits.copy())
                return logits

        of._llama = Watched()

    def feed(self, session: ids.SessionId, position: int, tokens: tuple[int, ...], *, draw: bool = False) -> None:
        [answer] = self.engine.step([ports.Work(session, position, tokens, ports.Sampling() if draw else None)])
        assert not isinstance(answer, errors.EngineError), answer

    def last(self, session: ids.SessionId) -> Row:
        """The logits after the last token, fed as a lone decode row."""
        self.feed(session, len(PROMPT) - 1, (LAST,), draw=True)
        return self.rows[-1]


def same(row: Row, other: Row) -> bool:
    return row.tobytes() == other.tobytes()


@pytest.fixture(params=[("w8", 1), ("w8", 2), ("w8", 3), ("i8", 2)], ids=lambda param: f"{param[0]}-{param[1]}")
def made(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Numeric class and threads."""
    of: tuple[str, int] = request.param
    return of


@pytest.fixture
def seen(made: tuple[str, int]) -> Seen:
    return Seen(tiny.make(made[0], threads=made[1]))


@functools.cache
def alone(numeric_class: str) -> Row:
    """One token after another, on one thread."""
    seen = Seen(tiny.make(numeric_class))
    for position, token in enumerate(PROMPT[:-1]):
        seen.feed(A, position, (token,))
    return seen.last(A)


@pytest.fixture
def expected(made: tuple[str, int]) -> Row:
    return alone(made[0])


@pytest.mark.parametrize("chunk", [1, 7, 64, 399])
def test_the_chunks_of_a_prefill_leave_no_trace(seen: Seen, expected: Row, chunk: int) -> None:
    for start in range(0, len(PROMPT) - 1, chunk):
        seen.feed(A, start, PROMPT[start : min(start + chunk, len(PROMPT) - 1)])
    assert same(seen.last(A), expected)


def test_a_last_row_of_a_prefill_equals_a_decode_row(seen: Seen, expected: Row) -> None:
    seen.feed(A, 0, PROMPT, draw=True)
    assert same(seen.rows[-1], expected)


def test_company_leaves_no_trace(seen: Seen, expected: Row) -> None:
    seen.feed(A, 0, PROMPT[:-1])
    seen.feed(B, 0, PROMPT[5:50])
    works = [
        ports.Work(B, 45, (1,), ports.Sampling()),
        ports.Work(A, len(PROMPT) - 1, (LAST,), ports.Sampling()),
        ports.Work(C, 0, PROMPT[:77], ports.Sampling()),
    ]
    seen.engine.step(works)
    assert len(seen.rows) == 3
    assert sum(same(row, expected) for row in seen.rows) == 1


@pytest.mark.parametrize("others", [(20,), (130, 399), (20, 300, 5, 127, 128)])
def test_a_crowd_of_lone_rows_leaves_no_trace(seen: Seen, expected: Row, others: tuple[int, ...]) -> None:
    seen.feed(A, 0, PROMPT[:-1])
    works = [ports.Work(A, len(PROMPT) - 1, (LAST,), ports.Sampling())]
    for number, length in enumerate(others):
        name = ids.SessionId(bytes([number]) * ids.SESSION_BYTES)
        seen.feed(name, 0, PROMPT[1 : 1 + length])
        works.append(ports.Work(name, min(length, len(PROMPT) - 1), (9,), ports.Sampling()))
    seen.engine.step(works)
    assert [row for row in seen.rows if same(row, expected)]
    alone = list(seen.rows)
    for work in works:
        seen.engine.step([work])
    assert all(any(same(row, one) for one in alone) for row in seen.rows[-len(works) :])


def test_scattered_pages_leave_no_trace(seen: Seen, expected: Row) -> None:
    for start in range(0, len(PROMPT) - 1, 33):
        seen.feed(A, start, PROMPT[start : min(start + 33, len(PROMPT) - 1)])
        seen.feed(B, start, PROMPT[1 + start : 34 + start])
    assert same(seen.last(A), expected)
    held = seen.engine._memory.table(A, 400)
    assert any(after - before != 1 for before, after in itertools.pairwise(held))


def test_a_restore_leaves_no_trace(seen: Seen, expected: Row, made: tuple[str, int]) -> None:
    seen.feed(A, 0, PROMPT[:300])
    exported = [seen.engine.export(A, index) for index in range(9)]
    other = Seen(tiny.make(made[0]))
    assert other.engine.restore(A, PROMPT, exported) == 288
    other.feed(A, 288, PROMPT[288:-1])
    assert same(other.last(A), expected)


def test_a_cut_and_a_repeat_leave_no_trace(seen: Seen, expected: Row) -> None:
    seen.feed(A, 0, tuple(reversed(PROMPT)))
    seen.feed(A, 0, PROMPT[:200])
    seen.feed(A, 130, PROMPT[130:-1])
    seen.last(A)
    assert same(seen.last(A), expected)


def test_used_memory_leaves_no_trace(expected: Row, made: tuple[str, int]) -> None:
    small = Seen(tiny.make(made[0], memory_bytes=1 << 19))
    small.feed(B, 0, tuple(reversed(PROMPT)))
    small.engine.drop(B)
    small.feed(A, 0, PROMPT[:-1])
    assert same(small.last(A), expected)
