"""Which pages of KV memory are held, and by how many: integers only, no tensors.

The idea: one unit. A *page* (32 tokens) is what is allocated, shared, exported, sealed and replicated, and attention
goes by a table of pages, so neighbours have no advantage and any free page is as good as another. A page may be held
by several: sessions that share a prefix, and the tree that remembers it (prefix.py). It is free when nobody holds it.
A page that more than one holds is read-only; who would write into it takes a copy first (memory.py).

Rejected: larger blocks (a session of ten tokens would hold 128, and a prefix could be shared in steps of 128 only);
runs of neighbouring pages, which scatter as soon as two sessions share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshnode import errors

PAGE_TOKENS = 32


def pages_for(token_count: int) -> int:
    return -(-token_count // PAGE_TOKENS)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one session in a pass."""

    row: int
    """Of the first token, counted over the pass; segments follow one another without a gap."""
    tokens: tuple[int, ...]
    position: int
    """Of the first token."""
    pages: tuple[int, ...]
    """All pages up to the one that holds the last token."""


class Pages:
    """The holders of each page of one pool."""

    def __init__(self, count: int) -> None:
        assert count > 0
        self._holders = [0] * count
        self._free = list(range(count - 1, -1, -1))
        """Exactly the pages without a holder; the last one is taken next."""

    @property
    def count(self) -> int:
        return len(self._holders)

    @property
    def free_count(self) -> int:
        return len(self._free)

    def holders(self, page: int) -> int:
        return self._holders[page]

    def take(self, count: int) -> list[int]:
        """Free pages, held once from now on. All or none: raises EngineError if there are fewer."""
        if count > len(self._free):
            raise errors.EngineError(f"KV memory is full: {count} pages wanted, {len(self._free)} are free")
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            assert self._holders[page] == 0, f"page {page} was free and held"
            self._holders[page] = 1
        return taken

    def hold(self, page: int) -> None:
        """One more holder of a page that is held already."""
        assert self._holders[page] > 0, f"page {page} is free: there is nothing in it to share"
        self._holders[page] += 1

    def give(self, pages: Sequence[int]) -> None:
        """One holder less of each."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} was given back twice"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)
