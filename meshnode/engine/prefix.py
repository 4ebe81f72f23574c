"""Prefixes that were computed already: sealed pages by their address, and which of them nobody uses.

The idea: a full page is a function of recipe and tokens, and `snapshots/chain.py` gives that function's input a name.
The names of one context form a path, the names of all contexts a tree; a session that begins where another one went
takes the pages of the common path. Names are keyed by a *sharing domain* (opaque bytes: a session, a tenant), so equal
tokens of two domains have nothing in common: neither pages nor, what a guesser could measure, time.

A page that no session holds any more is *idle*: it stays, for whoever comes next, until memory is wanted. Idle pages
go in the order in which they became idle. Whoever holds a page holds all before it, and gives the last one back first;
so behind an idle page all is idle and stands earlier in that order, and what goes next is always a leaf.

It refuses to hold a page whose parent it does not know, and to name part of a page.
Rejected: a tree of token lists (a radix tree), which compares tokens where one digest does; and a time of last use on
each page, which needs a search for the oldest leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meshnode import errors, ids
from meshnode.engine import pages
from meshnode.snapshots import chain

_DOMAIN = b"meshnode sharing domain 1"


class Names:
    """Addresses of pages inside one engine's recipe."""

    def __init__(self, model_digest: ids.Digest, numeric_class: str) -> None:
        self._recipe = (model_digest, numeric_class, pages.PAGE_TOKENS)

    def root(self, domain: bytes) -> ids.Digest:
        """The parent of every first page of a domain."""
        return chain.genesis(*self._recipe, key=_key(domain))

    def address(self, parent: ids.Digest, tokens: Sequence[int], domain: bytes) -> ids.Digest:
        """Of the page that holds exactly these tokens, behind `parent`."""
        return chain.address(parent, *self._recipe, tokens, key=_key(domain))


def _key(domain: bytes) -> bytes:
    return ids.digest(_DOMAIN, domain)


@dataclass(slots=True)
class _Node:
    address: ids.Digest
    page: int
    parent: _Node | None
    """None: a first page."""
    children: dict[ids.Digest, _Node] = field(default_factory=dict)


class Tree:
    """Sealed pages by address. It holds each of its pages once, beside the sessions; they take and give through it."""

    def __init__(self, allocator: pages.Pages, *, idle_pages_max: int | None = None) -> None:
        """`idle_pages_max` bounds what is kept for nobody in particular; None keeps it until memory is wanted."""
        self._pages = allocator
        self._idle_max = allocator.count if idle_pages_max is None else idle_pages_max
        self._by_address: dict[ids.Digest, _Node] = {}
        self._by_page: dict[int, _Node] = {}
        self._idle: dict[int, None] = {}
        """Pages that the tree alone holds, the first to go first."""

    @property
    def room(self) -> int:
        """Pages that `take` could give now."""
        return self._pages.free_count + len(self._idle)

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    def sealed(self, page: int) -> bool:
        """Whether the page has an address here."""
        return page in self._by_page

    def writable(self, page: int) -> bool:
        """Whether a session that holds the page is the only one that could see a change of it."""
        return self._pages.holders(page) == 1

    def lone(self, page: int) -> bool:
        """Whether one session holds the page, so that it would be free or idle without it."""
        return self._pages.holders(page) - self.sealed(page) == 1

    def find(self, address: ids.Digest, before: int | None) -> int | None:
        """The page of this address, for a session that holds `before`, the page before it."""
        node = self._by_address.get(address)
        if node is None or (node.parent.page if node.parent else None) != before:
            return None
        return node.page

    def take(self, count: int) -> list[int]:
        """Pages for one session; idle ones are given up for it. All or none: EngineError says what is there."""
        if count > self.room:
            raise errors.EngineError(f"KV memory is full: {count} pages wanted, {self.room} are free")
        self._evict(count - self._pages.free_count)
        return self._pages.take(count)

    def hold(self, page: int) -> None:
        """A session uses a sealed page. It must hold all pages before it already."""
        node = self._by_page[page]
        assert node.parent is None or node.parent.page not in self._idle, "a session holds a page and not its parent"
        self._pages.hold(page)
        self._idle.pop(page, None)

    def give(self, held: Sequence[int]) -> None:
        """A session's pages, or the last ones of them, in the order of its context."""
        for page in reversed(held):
            self._pages.give((page,))
            if page in self._by_page and self._pages.holders(page) == 1:
                self._idle[page] = None
        self._evict(len(self._idle) - self._idle_max)

    def seal(self, address: ids.Digest, before: int | None, page: int) -> int:
        """A session filled a page: the page that it holds from now on, which is another's if that one came first.

        `before` is the session's page before it, None for a first page.
        """
        assert not self.sealed(page), f"page {page} is sealed already"
        if before is not None and not self.sealed(before):
            return page  # what is before it was forgotten or never known: nobody could come here
        above = self._by_page[before] if before is not None else None
        if known := self._by_address.get(address):
            assert known.parent is above, "one address behind two pages"
            self.hold(known.page)
            self._pages.give((page,))
            return known.page
        node = _Node(address, page, above)
        if above:
            above.children[address] = node
        self._by_address[address] = node
        self._by_page[page] = node
        self._pages.hold(page)
        return page

    def forget(self, page: int) -> None:
        """Neither this page nor any behind it shall be found again; who holds them keeps them. Unknown is fine."""
        if page not in self._by_page:
            return
        below = [self._by_page[page]]
        for node in below:  # grows while it is read: a context of a million tokens is too deep for recursion
            below += node.children.values()
        for node in reversed(below):
            self._remove(node)

    def _evict(self, count: int) -> None:
        for _ in range(count):
            node = self._by_page[next(iter(self._idle))]
            assert not node.children, "an idle page went before those behind it"
            self._remove(node)

    def _remove(self, node: _Node) -> None:
        if node.parent:
            del node.parent.children[node.address]
        del self._by_address[node.address], self._by_page[node.page]
        self._idle.pop(node.page, None)
        self._pages.give((node.page,))
