"""The sessions of one engine and the pages they hold: admission, sharing, copies before writing, preemption.

The idea: a session is its token ids and a page for each 32 of them. Since the ids are known here, a full page has an
address the moment it is full (prefix.py), and a feed that goes where another went takes those pages instead of being
computed. A page with an address is read-only; a session that was cut into one, and goes on, gets a copy to write to.

When pages are wanted, idle ones go first: they cost only time. Then sessions that have nothing to do are spilled, the
least recently used first and from their last page on, as many pages as are wanted: a whole session at once would hold
up everybody for a tenth of a second. They come back with the same bits when they are asked for, a few pages at a time
(`Coming`). Only what has work under way is safe. If that is not enough, `Full` says what was wanted and what there was.

Pages from outside (`restore`) are believed by the session that asked for them, as they always were, and by its forks.
In the domain of a tenant they would be believed by all its sessions; so there a session that took some leaves the
domain: what it fills from then on is found by nobody else.

Rejected: preempting single pages (a session needs all of its pages for its next token); recomputing instead of
spilling (six times slower, DESIGN.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from meshnode import errors, ids
from meshnode.engine import prefix
from meshnode.engine.pages import PAGE_TOKENS, Pages, pages_for

RETURN_PAGES = 2
"""Pages that come back in one visit, between two passes. More: streams wait longer. Fewer: a session that was spilled
comes back later. Four milliseconds each for the 135M model if others must go for it, and a step takes five."""
_LEFT = b"meshnode left its domain: "


class Pool(Protocol):
    """What the pages' memory must do."""

    page_count: int
    page_bytes: int

    def clear(self, taken: Sequence[int]) -> None:
        """Make pages ready to be written: what was in them must have no effect."""

    def copy(self, source: int, target: int) -> None:
        """All of a page."""

    def export(self, page: int) -> bytes:
        """`page_bytes` in the wire's order, whatever was written so far."""

    def parse(self, page: bytes) -> Any:
        """What `restore` takes. Raises EngineError for a wrong size and for numbers that are not finite."""

    def restore(self, page: int, parsed: Any) -> None:
        """The inverse of `export`: the same bits."""


class Spill(Protocol):
    """Where preempted sessions wait (spill.py)."""

    def keep(self, session: ids.SessionId, page_index: int, page: bytes) -> bool:
        """A page; False if there is no room for it."""

    def read(self, session: ids.SessionId, page_index: int) -> bytes:
        """A page that is kept. Raises EngineError if it was lost."""

    def forget(self, session: ids.SessionId, page_index: int) -> None:
        """A page that is not needed any more. Unknown ones are fine."""

    def drop(self, session: ids.SessionId) -> None:
        """Forget a session. Unknown ones are fine."""


class Coming(errors.EngineError):
    """A spilled session is on its way back: ask again after the next pass."""


class Full(errors.EngineError):
    """Not enough pages, whoever gives way: another time there may be."""


class Lost(errors.EngineError):
    """A spilled session came back shorter than it went: the disk lost pages. `tokens` are the ids to compute again."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(f"{len(tokens)} tokens of a spilled session were lost")
        self.tokens = tuple(tokens)


@dataclass(slots=True)
class _Session:
    domain: bytes
    """Where its pages are found: the one that was asked for, until it took pages from outside."""
    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    """In the pool. Fewer than `tokens` need: the others are spilled."""
    chain: list[ids.Digest] = field(default_factory=list)
    """The addresses of its full pages."""
    used: int = 0
    """Greater than that of a session used longer ago."""

    def missing(self) -> range:
        """The indices of pages that are spilled."""
        return range(len(self.pages), pages_for(len(self.tokens)))


class Memory:
    """Sessions over one pool. Integers and digests, but for what it has the pool and the spill do."""

    def __init__(
        self, pool: Pool, names: prefix.Names, *, spill: Spill | None = None, idle_pages_max: int | None = None
    ) -> None:
        self._pool = pool
        self._names = names
        self._spill = spill
        self._tree = prefix.Tree(Pages(pool.page_count), idle_pages_max=idle_pages_max)
        self._sessions: dict[ids.SessionId, _Session] = {}
        self._clock = 0
        self.spill_count = 0
        """Sessions preempted so far."""

    def room(self) -> int:
        """Pages that could be taken without harm to any session."""
        return self._tree.room

    def idle_count(self) -> int:
        """Pages kept for whoever may want them."""
        return self._tree.idle_count

    def token_count(self, session: ids.SessionId) -> int:
        return len(self._sessions[session].tokens) if session in self._sessions else 0

    def tokens(self, session: ids.SessionId) -> Sequence[int]:
        """All ids of a session, first to last. Not to be changed."""
        return self._sessions[session].tokens

    def table(self, session: ids.SessionId, token_count: int) -> tuple[int, ...]:
        """The pages of the first tokens."""
        return tuple(self._sessions[session].pages[: pages_for(token_count)])

    # ----------------------------------------------------------------------------------------------------------- work

    def grows(self, session: ids.SessionId, token_count: int) -> bool:
        """Whether so many tokens need a page that the session does not hold."""
        known = self._sessions.get(session)
        return known is None or pages_for(token_count) > len(known.pages)

    def admit(
        self,
        session: ids.SessionId,
        position: int,
        feed: Sequence[int],
        *,
        draws: bool,
        domain: bytes,
        busy: Collection[ids.SessionId],
    ) -> int:
        """Cut a session to `position` and make room for `feed`; returns how much of it is there already.

        If a token is drawn, the last one of `feed` is left to be computed. `busy` sessions keep their pages. Raises
        EngineError if the position is beyond what is held, Full, Coming and Lost; after that the session is cut.
        """
        known = self._sessions.get(session) or _Session(domain or session)
        if not 0 <= position <= len(known.tokens):
            raise errors.EngineError(f"position {position} is beyond the {len(known.tokens)} tokens held")
        if pages_for(position + len(feed)) > self._pool.page_count:
            wanted = pages_for(position + len(feed))
            raise errors.EngineError(f"KV memory is too small: {wanted} pages wanted, {self._pool.page_count} are all")
        if position == 0:
            known.domain = domain or session
        self._sessions[session] = known
        known.used = self._clock = self._clock + 1
        self._cut(session, known, position)
        busy = {session, *busy}
        self._return(session, known, busy)
        self._share(known, feed, len(feed) - draws)
        if len(known.tokens) < position + len(feed):
            self._extend(known, position + len(feed), busy)
        return len(known.tokens) - position

    def fed(self, session: ids.SessionId, tokens: Sequence[int]) -> None:
        """These were computed into the session's pages. What is full by that is sealed."""
        known = self._sessions[session]
        known.tokens += tokens
        assert pages_for(len(known.tokens)) <= len(known.pages), "tokens without a page"
        for index in range(len(known.chain), len(known.tokens) // PAGE_TOKENS):
            self._seal(known, index)

    # ----------------------------------------------------------------------------------------------- pages of a session

    def export(self, session: ids.SessionId, page_index: int) -> bytes:
        """A full page. Raises EngineError if it is not."""
        known = self._sessions.get(session)
        count = len(known.tokens) if known else 0
        if known is None or not 0 <= page_index < count // PAGE_TOKENS:
            raise errors.EngineError(f"page {page_index} is not full: {count} tokens are here")
        if page_index in known.missing():
            assert self._spill is not None
            return self._spill.read(session, page_index)
        return self._pool.export(known.pages[page_index])

    def restore(
        self,
        session: ids.SessionId,
        tokens: Sequence[int],
        pages: Sequence[bytes],
        *,
        domain: bytes,
        busy: Collection[ids.SessionId],
    ) -> int:
        """Replace a session by as much of `tokens` as there are full pages for: those that its domain has, then those
        given, which begin at position 0. Returns the tokens held now. A bad page leaves the session as it was."""
        fresh = _Session(domain or session)
        self._share(fresh, tokens, len(tokens))
        first = len(fresh.pages)
        try:
            parsed = [self._pool.parse(page) for page in pages[first:]]
        except errors.EngineError:
            self._tree.give(fresh.pages)
            raise
        self.drop(session)
        taken = self._take_or_give_back(fresh, len(parsed), busy)
        if parsed and fresh.domain != session:
            fresh.domain = _LEFT + session
        for page, content in zip(taken, parsed, strict=True):
            self._pool.restore(page, content)
        self._sessions[session] = fresh
        fresh.pages += taken
        fresh.used = self._clock = self._clock + 1
        self.fed(session, tokens[first * PAGE_TOKENS : len(fresh.pages) * PAGE_TOKENS])
        return len(fresh.tokens)

    def drop(self, session: ids.SessionId) -> None:
        """Forget a session; its sealed pages stay for whoever may want them. Unknown ones are fine."""
        if known := self._sessions.pop(session, None):
            self._tree.give(known.pages)
            if self._spill:
                self._spill.drop(session)

    def poisoned(self, session: ids.SessionId) -> None:
        """Drop a session whose numbers are not finite: nobody shall find its pages, nor any that follow on them."""
        for page in self._sessions[session].pages:
            self._tree.forget(page)
        self.drop(session)

    # --------------------------------------------------------------------------------------------------------- inside

    def _cut(self, session: ids.SessionId, known: _Session, position: int) -> None:
        for index in known.missing():
            if index >= pages_for(position):
                self._spill_port.forget(session, index)
        del known.tokens[position:]
        del known.chain[position // PAGE_TOKENS :]
        self._tree.give(known.pages[pages_for(position) :])
        del known.pages[pages_for(position) :]

    def _share(self, known: _Session, feed: Sequence[int], usable: int) -> None:
        """Take what the domain has of the session's tokens and the first `usable` of `feed` behind them."""
        first = len(known.chain)
        if first == (len(known.tokens) + usable) // PAGE_TOKENS:
            return
        tokens = [*known.tokens, *feed[:usable]]
        found: list[int] = []
        before = known.pages[first - 1] if first else None
        for index in range(first, len(tokens) // PAGE_TOKENS):
            address = self._address(known, tokens, index)
            page = self._tree.find(address, before)
            if page is None:
                break
            self._tree.hold(page)
            known.chain.append(address)
            found.append(before := page)
        if found:
            self._tree.give(known.pages[first:])
            known.pages[first:] = found
            known.tokens[:] = tokens[: len(known.chain) * PAGE_TOKENS]

    def _extend(self, known: _Session, token_count: int, busy: Collection[ids.SessionId]) -> None:
        """Pages up to `token_count`, and the one that is written next for this session alone."""
        copies = len(known.tokens) % PAGE_TOKENS > 0 and not self._tree.writable(known.pages[-1])
        taken = self._take(pages_for(token_count) - len(known.pages) + copies, busy)
        if copies:
            source, known.pages[-1] = known.pages[-1], taken.pop()
            self._pool.copy(source, known.pages[-1])
            self._tree.give((source,))
        self._pool.clear(taken)
        known.pages += taken

    def _return(self, session: ids.SessionId, known: _Session, busy: Collection[ids.SessionId]) -> None:
        """Bring spilled pages back, some at a time; those that somebody kept in the tree need not be read."""
        for index in known.missing():
            before = known.pages[-1] if known.pages else None
            page = self._tree.find(known.chain[index], before) if index < len(known.chain) else None
            if page is None:
                break
            self._tree.hold(page)
            known.pages.append(page)
            self._spill_port.forget(session, index)
        missing = known.missing()[:RETURN_PAGES]
        taken = self._take(len(missing), busy)
        for index, page in zip(missing, taken, strict=True):
            try:
                self._pool.restore(page, self._pool.parse(self._spill_port.read(session, index)))
            except errors.EngineError:
                self._tree.give(taken[taken.index(page) :])
                lost = known.tokens[index * PAGE_TOKENS :]
                self._cut(session, known, index * PAGE_TOKENS)
                raise Lost(lost) from None
            known.pages.append(page)
            self._spill_port.forget(session, index)
            if index < len(known.chain):
                self._seal(known, index)
        if known.missing():
            raise Coming("a spilled session is on its way back")

    def _seal(self, known: _Session, index: int) -> None:
        if index == len(known.chain):
            known.chain.append(self._address(known, known.tokens, index))
        before = known.pages[index - 1] if index else None
        known.pages[index] = self._tree.seal(known.chain[index], before, known.pages[index])

    def _address(self, known: _Session, tokens: Sequence[int], index: int) -> ids.Digest:
        parent = known.chain[index - 1] if index else self._names.root(known.domain)
        return self._names.address(parent, tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS], known.domain)

    def _take_or_give_back(self, known: _Session, count: int, busy: Collection[ids.SessionId]) -> list[int]:
        try:
            return self._take(count, busy)
        except Full:
            self._tree.give(known.pages)
            known.pages.clear()
            raise

    def _take(self, count: int, busy: Collection[ids.SessionId]) -> list[int]:
        while count > self._tree.room:
            if not self._preempt(busy):
                raise Full(f"KV memory is full: {count} pages wanted, {self._tree.room} are free")
        return self._tree.take(count)

    def _preempt(self, busy: Collection[ids.SessionId]) -> bool:
        """Spill the last page of the session used longest ago that has nothing to do; rather one that frees a page by
        that than one whose pages others hold, which may be a fork that has nothing to do either."""

        def order(one: tuple[ids.SessionId, _Session]) -> tuple[bool, int]:
            return not any(map(self._tree.lone, one[1].pages)), one[1].used

        if self._spill is None:
            return False
        idle = [one for one in self._sessions.items() if one[0] not in busy and one[1].pages]
        for session, known in sorted(idle, key=order):
            first = not known.missing()
            index = len(known.pages) - 1
            # Pages behind the last token were reserved for work that was given up: nothing is in them.
            if index < pages_for(len(known.tokens)):
                if not self._spill.keep(session, index, self._pool.export(known.pages[index])):
                    continue
                self.spill_count += first
            self._tree.give((known.pages.pop(),))
            return True
        return False

    @property
    def _spill_port(self) -> Spill:
        assert self._spill is not None, "pages are missing, and there is no place where they could be"
        return self._spill
