"""The promise of "w8": a row's bits are a function of its context, whatever else the machine was doing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from meshnode import errors, ids, ports
from meshnode.engine import arithmetic, engine, model, pages, weights
from tests.engine import tiny

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
PROMPT = tuple((index * index * 7 + index * 31 + 5) % 290 for index in range(400))
LAST = PROMPT[-1]


@pytest.fixture(autouse=True, params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


class Seen:
    """Every row of logits that an engine's model computed for one session's last token."""

    def __init__(self, of: engine.TorchEngine) -> None:
        self.engine = of
        self.rows: list[torch.Tensor] = []
        inner = of._llama.forward

        def forward(segments: list[pages.Segment], wanted: list[int]) -> torch.Tensor:
            logits = inner(segments, wanted)
            self.rows += list(logits.clone())
            return logits

        of._llama.forward = forward  # type: ignore[method-assign, assignment]

    def feed(self, session: ids.SessionId, position: int, tokens: tuple[int, ...], *, draw: bool = False) -> None:
        [answer] = self.engine.step([ports.Work(session, position, tokens, ports.Sampling() if draw else None)])
        assert not isinstance(answer, errors.EngineError), answer

    def last(self, session: ids.SessionId) -> torch.Tensor:
        """The logits after the last token, fed as a lone decode row."""
        self.feed(session, len(PROMPT) - 1, (LAST,), draw=True)
        return self.rows[-1]


@pytest.fixture
def seen() -> Seen:
    return Seen(tiny.make())


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """One token after another, on one thread."""
    torch.set_num_threads(1)
    seen = Seen(tiny.make())
    for position, token in enumerate(PROMPT[:-1]):
        seen.feed(A, position, (token,))
    return seen.last(A)


@pytest.mark.parametrize("chunk", [1, 7, 64, 399])
def test_the_chunks_of_a_prefill_leave_no_trace(seen: Seen, expected: torch.Tensor, chunk: int) -> None:
    for start in range(0, len(PROMPT) - 1, chunk):
        seen.feed(A, start, PROMPT[start : min(start + chunk, len(PROMPT) - 1)])
    assert torch.equal(seen.last(A), expected)


def test_a_last_row_of_a_prefill_equals_a_decode_row(seen: Seen, expected: torch.Tensor) -> None:
    seen.feed(A, 0, PROMPT, draw=True)
    assert torch.equal(seen.rows[-1], expected)


def test_company_leaves_no_trace(seen: Seen, expected: torch.Tensor) -> None:
    seen.feed(A, 0, PROMPT[:-1])
    seen.feed(B, 0, PROMPT[5:50])
    works = [
        ports.Work(B, 45, (1,), ports.Sampling()),
        ports.Work(A, len(PROMPT) - 1, (LAST,), ports.Sampling()),
        ports.Work(C, 0, PROMPT[:77], ports.Sampling()),
    ]
    seen.engine.step(works)
    assert len(seen.rows) == 3
    assert sum(torch.equal(row, expected) for row in seen.rows) == 1


@pytest.mark.parametrize("others", [(20,), (130, 399), (20, 300, 5, 127, 128)])
def test_a_crowd_of_lone_rows_leaves_no_trace(seen: Seen, expected: torch.Tensor, others: tuple[int, ...]) -> None:
    seen.feed(A, 0, PROMPT[:-1])
    works = [ports.Work(A, len(PROMPT) - 1, (LAST,), ports.Sampling())]
    for number, length in enumerate(others):
        name = ids.SessionId(bytes([number]) * ids.SESSION_BYTES)
        seen.feed(name, 0, PROMPT[1 : 1 + length])
        works.append(ports.Work(name, min(length, len(PROMPT) - 1), (9,), ports.Sampling()))
    crowds: list[object] = []
    inner = model._crowd

    def crowd(segments: list[pages.Segment]) -> object:
        crowds.append(found := inner(segments))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_crowd", crowd)
        seen.engine.step(works)
    assert [row for row in seen.rows if torch.equal(row, expected)]
    assert crowds[-1] is not None
    alone = list(seen.rows)
    for work in works:
        seen.engine.step([work])
    assert all(any(torch.equal(row, one) for one in alone) for row in seen.rows[-len(works) :])


def test_scattered_pages_leave_no_trace(seen: Seen, expected: torch.Tensor) -> None:
    for start in range(0, len(PROMPT) - 1, 33):
        seen.feed(A, start, PROMPT[start : min(start + 33, len(PROMPT) - 1)])
        seen.feed(B, start, PROMPT[1 + start : 34 + start])
    assert torch.equal(seen.last(A), expected)
    held = seen.engine._memory.table(A, 400)
    assert any(after - before != 1 for before, after in itertools.pairwise(held))


def test_a_restore_leaves_no_trace(seen: Seen, expected: torch.Tensor) -> None:
    seen.feed(A, 0, PROMPT[:300])
    exported = [seen.engine.export(A, index) for index in range(9)]
    other = Seen(tiny.make())
    assert other.engine.restore(A, PROMPT, exported) == 288
    other.feed(A, 288, PROMPT[288:-1])
    assert torch.equal(other.last(A), expected)


def test_a_cut_and_a_repeat_leave_no_trace(seen: Seen, expected: torch.Tensor) -> None:
    seen.feed(A, 0, tuple(reversed(PROMPT)))
    seen.feed(A, 0, PROMPT[:200])
    seen.feed(A, 130, PROMPT[130:-1])
    seen.last(A)
    assert torch.equal(seen.last(A), expected)


def test_used_memory_leaves_no_trace(expected: torch.Tensor) -> None:
    small = Seen(tiny.make(memory_bytes=16 * tiny.make()._pool.page_bytes))
    small.feed(B, 0, tuple(reversed(PROMPT)))
    small.engine.drop(B)
    small.feed(A, 0, PROMPT[:-1])
    assert torch.equal(small.last(A), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64])
def test_a_fold_does_not_see_missing_blocks(count: int) -> None:
    parts = torch.randn(count, 5, 64, generator=torch.Generator().manual_seed(count))
    padded = torch.cat([parts, torch.zeros(91, 5, 64)])
    assert torch.equal(arithmetic.fold(parts.clone()), arithmetic.fold(padded))


def test_the_fingerprint_is_the_same_again() -> None:
    assert arithmetic.fingerprint() == arithmetic.fingerprint()


def test_a_product_of_planes_is_that_of_15_bit_rows() -> None:
    dice = torch.Generator().manual_seed(3)
    rows, matrix = torch.randn(9, 64, generator=dice), weights.quantised(torch.randn(40, 64, generator=dice))
    assert matrix.scale is not None
    exact = rows.double() @ (matrix.turned.double() * matrix.scale.double())
    error = (arithmetic.linear(rows, matrix).double() - exact).abs().amax()
    assert error < 3e-4 * exact.abs().amax()
