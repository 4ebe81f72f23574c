"""Which pages of KV memory belong to whom: integers only, no tensors.

The idea: a *page* (32 tokens) is what is allocated, attended, exported, sealed and replicated. A session wants
neighbouring pages where it can have them: it grows into the page after its last; a new session starts in the middle of
the widest gap, where it and the one before it may both grow.

Rejected: a free list (LIFO), which scatters two interleaved sessions perfectly; and one reserved range a session,
which holds memory for the longest context that might come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshnode import errors

PAGE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one session in a forward pass."""

    row: int
    """Of the first token, in the pass."""
    tokens: tuple[int, ...]
    position: int
    """Of the first token, in the session."""
    pages: tuple[int, ...]
    """All pages up to the one that holds the last token."""


def pages_for(token_count: int) -> int:
    return -(-token_count // PAGE_TOKENS)


class Pages:
    """The free pages of one pool."""

    def __init__(self, count: int) -> None:
        assert count > 0
        self._free = bytearray(b"\1" * count)
        self.free_count = count
        """Equals the number of ones in `_free`."""

    def take(self, count: int, after: int | None) -> list[int]:
        """Pages for one session whose last page is `after`. All or none: raises EngineError if memory is full."""
        if count > self.free_count:
            raise errors.EngineError(f"KV memory is full: {count} pages wanted, {self.free_count} are free")
        taken: list[int] = []
        for _ in range(count):
            after = self._next(after, count - len(taken))
            self._free[after] = 0
            taken.append(after)
        self.free_count -= count
        return taken

    def give(self, pages: Iterable[int]) -> None:
        for page in pages:
            assert not self._free[page], f"page {page} was given back twice"
            self._free[page] = 1
            self.free_count += 1

    def _next(self, after: int | None, wanted: int) -> int:
        if after is not None and after + 1 < len(self._free) and self._free[after + 1]:
            return after + 1
        start, end = max(self._gaps(), key=lambda gap: gap[1] - gap[0])
        # The page before a gap is somebody's last, unless it is the edge: leave them half of the room.
        return start if start == 0 else start + max(0, min((end - start) // 2, end - start - wanted))

    def _gaps(self) -> list[tuple[int, int]]:
        """Runs of free pages, as (start, end)."""
        found = []
        at = self._free.find(1)
        while at >= 0:
            end = self._free.find(0, at)
            end = len(self._free) if end < 0 else end
            found.append((at, end))
            at = self._free.find(1, end)
        assert found, "take() has counted a free page"
        return found
