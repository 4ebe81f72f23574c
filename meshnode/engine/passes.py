"""How segments become tensors: the rows of a pass in the order that attention wants, and decode steps of fixed sizes.

The idea: attention is one call a *group*. Lone rows of several sessions are one group if their tables are about equally
long, since short ones are padded; a segment of many rows is a group by itself. All other work does not see groups, so
rows simply stand in their order, and `arrange` knows where a caller's row went.

A `FixedStep` is a decode step whose tensors never move: the numbers of a step are copied into one tensor, of which the
`Batch` is views. A GPU is told once what to do with that batch (a CUDA graph, recorded after the second use, so that
sizes that come once are not), and then it takes one call instead of some twenty a layer. Rows that only fill up the
size are of token 0, read the pool's scratch page, and write there. Everywhere else the step is the same function, run
plainly.

Rejected: one graph for the widest table (each step would read the longest context for every session).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from meshnode.engine import pages

_NUMBERS = 4
"""Of a row in a FixedStep, before its table: token, position, place, seen."""
_RECORDED_AT = 2
"""The use of a size after which it is recorded. More: slower until then. 1: sizes that come once cost a recording."""


Recorder = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""From a function without effects of its own on the host: what runs it again, and where its result will lie then.
Raises RuntimeError where that cannot be."""


@dataclass(frozen=True, slots=True)
class Group:
    """Segments that are attended together: many of one row each, or one of many rows."""

    table: torch.Tensor  # [segment, page]
    seen: torch.Tensor  # [segment, row]: the row's own slot, counted from the first of its table


@dataclass(frozen=True, slots=True)
class Batch:
    """A pass, as the device needs it. The rows of the groups, in order, are the rows of the pass."""

    token: torch.Tensor  # [row]
    position: torch.Tensor  # [row]
    place: torch.Tensor  # [row]: page * PAGE_TOKENS + slot
    groups: tuple[Group, ...]
    wanted: torch.Tensor | None  # [wanted]; None: all


@dataclass(frozen=True, slots=True)
class Table:
    """The pages that a segment's rows see: those before a window are left out."""

    pages: tuple[int, ...]
    skipped_tokens: int


def table(segment: pages.Segment, window_tokens: int | None) -> Table:
    first = max(0, segment.position + 1 - window_tokens) // pages.PAGE_TOKENS if window_tokens else 0
    count = pages.pages_for(segment.position + len(segment.tokens))
    assert len(segment.pages) >= count
    return Table(segment.pages[first:count], first * pages.PAGE_TOKENS)


def arrange(
    segments: Sequence[pages.Segment],
    wanted: Sequence[int],
    *,
    window_tokens: int | None,
    gathered_pages_max: int,
    device: torch.device,
) -> Batch:
    """`wanted` are rows of the caller's pass; their logits come in the caller's order."""
    lone = [(one, table(one, window_tokens)) for one in segments if len(one.tokens) == 1]
    crowds = _crowds(sorted(lone, key=lambda pair: len(pair[1].pages)), gathered_pages_max)
    parts = crowds + [[(one, table(one, window_tokens))] for one in segments if len(one.tokens) > 1]
    rows = [(one, offset) for part in parts for one, _ in part for offset in range(len(one.tokens))]
    order = {one.row + offset: number for number, (one, offset) in enumerate(rows)}

    def there(numbers: Sequence[object]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=device)

    return Batch(
        token=there([one.tokens[offset] for one, offset in rows]),
        position=there([one.position + offset for one, offset in rows]),
        place=there([_place(one, one.position + offset) for one, offset in rows]),
        groups=tuple(Group(*map(there, _grouped(part))) for part in parts),
        wanted=there([order[row] for row in wanted]),
    )


Part = list[tuple[pages.Segment, Table]]


def _crowds(lone: Part, gathered_pages_max: int) -> list[Part]:
    """Cut a list that is sorted by length: no table is padded to more than twice itself."""
    parts: list[Part] = []
    for pair in lone:
        width = len(pair[1].pages)
        last = parts[-1] if parts else []
        if last and width <= 2 * len(last[0][1].pages) and width * (len(last) + 1) <= gathered_pages_max:
            last.append(pair)
        else:
            parts.append([pair])
    return parts


def _grouped(part: Part) -> tuple[list[list[int]], list[list[int]]]:
    """Tables are padded with a page of their own, so that nobody's numbers, not even masked ones, meet another's."""
    width = max(len(held.pages) for _, held in part)
    tables = [[*held.pages, *held.pages[:1] * (width - len(held.pages))] for _, held in part]
    seen = [[one.position - held.skipped_tokens + offset for offset in range(len(one.tokens))] for one, held in part]
    return tables, seen


def _place(segment: pages.Segment, position: int) -> int:
    page, slot = divmod(position, pages.PAGE_TOKENS)
    return segment.pages[page] * pages.PAGE_TOKENS + slot


class FixedStep:
    """One decode step of `row_count` lone rows with tables of `page_count` pages."""

    def __init__(
        self,
        run: Callable[[Batch], torch.Tensor],
        row_count: int,
        page_count: int,
        *,
        scratch: int,
        device: torch.device,
        recorder: Recorder | None,
    ) -> None:
        self._run = run
        filler = [0, 0, scratch * pages.PAGE_TOKENS, 0, *[scratch] * page_count]
        self._filler = torch.tensor([filler] * row_count)  # [row, number]
        self._host = self._filler.clone()
        if device.type == "cuda":
            self._host = self._host.pin_memory()
        self._there = self._host.to(device, copy=True)
        token, position, place, seen = self._there[:, :_NUMBERS].unbind(1)
        self._batch = Batch(token, position, place, (Group(self._there[:, _NUMBERS:], seen[:, None]),), None)
        self._recorder = recorder
        self._recorded: tuple[Callable[[], None], torch.Tensor] | None = None
        self._use_count = 0

    def __call__(self, segments: Sequence[pages.Segment], window_tokens: int | None) -> torch.Tensor:
        """Logits [row_count, vocabulary] on the device, in the order of the segments; the next call overwrites them."""
        self._host.copy_(self._filler)
        numbers = self._host.numpy()
        for row, one in enumerate(segments):
            held = table(one, window_tokens)
            seen = one.position - held.skipped_tokens
            numbers[row, :_NUMBERS] = (one.tokens[0], one.position, _place(one, one.position), seen)
            numbers[row, _NUMBERS : _NUMBERS + len(held.pages)] = held.pages
            numbers[row, _NUMBERS + len(held.pages) :] = held.pages[0]
        self._there.copy_(self._host)
        if self._recorded is not None:
            replay, logits = self._recorded
            replay()
            return logits
        logits = self._run(self._batch)
        self._use_count += 1
        # Right behind a plain run in the same thread, which has set up what libraries set up at their first call.
        if self._use_count == _RECORDED_AT and self._recorder is not None:
            # What has no memory for it, or does what a driver cannot record, is run plainly: as right, and slower.
            with contextlib.suppress(RuntimeError):
                self._recorded = self._recorder(lambda: self._run(self._batch))
        return logits

    @property
    def recorded(self) -> bool:
        return self._recorded is not None


def cuda_recorder() -> Recorder:
    """CUDA graphs that share memory, since no two of a model run at once."""
    memory = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            result = run()
        return graph.replay, result

    return record
