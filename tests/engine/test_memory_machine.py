"""Sessions, sharing, spilling and all against lists of tokens, in memory that is too small for all."""

from __future__ import annotations

from hypothesis import stateful
from hypothesis import strategies as some

from meshnode import errors, ids
from meshnode.engine import memory, spill
from meshnode.engine.pages import PAGE_TOKENS
from tests.engine.test_memory import BAD, Sessions


class Machine(stateful.RuleBasedStateMachine):
    """Against lists of tokens, in memory that is too small for all."""

    NAMES = tuple(ids.SessionId(bytes([number]) * ids.SESSION_BYTES) for number in range(5))

    @stateful.initialize(page_count=some.integers(4, 14), idle=some.integers(0, 14), spill_pages=some.integers(0, 12))
    def start(self, page_count: int, idle: int, spill_pages: int) -> None:
        self.of = Sessions(page_count, spill.MemorySpill(spill_pages * PAGE_TOKENS), idle)
        self.contexts: dict[ids.SessionId, list[int]] = {}
        self.domains: dict[ids.SessionId, bytes] = {}
        self.computed: set[tuple[bytes, tuple[int, ...]]] = set()
        """(domain, tokens up to the end of a page): what a session of the domain may find."""

    def domain(self, session: ids.SessionId) -> bytes:
        return (b"", b"t", b"t", b"t", b"u")[session[0]]

    @stateful.rule(
        pick=some.integers(0, 4), cut=some.integers(0, 200), kind=some.integers(0, 2), size=some.integers(1, 130)
    )
    def feed(self, pick: int, cut: int, kind: int, size: int) -> None:
        session = self.NAMES[pick]
        known = self.contexts.get(session, [])
        position = min(cut, len(known))
        tokens = [(kind * 50 + place) % 200 for place in range(position, position + size)]
        whole = known[:position] + tokens
        try:
            at_hand = self.of.feed(session, position, tokens, domain=self.domain(session))
        except memory.Full:
            held = self.of.memory.token_count(session)
            assert held >= position
            self.contexts[session] = whole[:held]
            return
        except errors.EngineError:
            assert len(whole) > self.of.pool.page_count * PAGE_TOKENS
            return
        if at_hand:
            end = position + at_hand
            assert (self.domain(session) or session, tuple(whole[:end])) in self.computed, "found in another domain"
        self.contexts[session] = whole
        self.note(session)

    def note(self, session: ids.SessionId) -> None:
        whole = self.contexts[session]
        for end in range(PAGE_TOKENS, len(whole) + 1, PAGE_TOKENS):
            self.computed.add((self.domain(session) or session, tuple(whole[:end])))

    @stateful.rule(pick=some.integers(0, 4))
    def drop(self, pick: int) -> None:
        self.of.memory.drop(self.NAMES[pick])
        self.contexts.pop(self.NAMES[pick], None)

    @stateful.precondition(lambda self: any(self.contexts.values()))
    @stateful.rule(pick=some.integers(0, 99))
    def poison(self, pick: int) -> None:
        session = list(self.contexts)[pick % len(self.contexts)]
        if self.of.memory.token_count(session) and self.of.memory.table(session, 1):
            self.of.memory.poisoned(session)
            del self.contexts[session]

    @stateful.rule(pick=some.integers(0, 4), source=some.integers(0, 4), bad=some.booleans())
    def restore(self, pick: int, source: int, bad: bool) -> None:
        session, whole = self.NAMES[pick], self.contexts.get(self.NAMES[source], [])
        pages = self.of.pages(self.NAMES[source]) if whole else []
        given = [*pages[:-1], bytes([BAD]) * PAGE_TOKENS] if bad and pages else pages
        try:
            count = self.of.memory.restore(session, whole, given, domain=self.domain(session), busy=())
        except memory.Full:
            self.contexts.pop(session, None)
            return
        except errors.EngineError:
            return
        assert count >= len(pages) * PAGE_TOKENS
        self.contexts[session] = whole[:count]
        self.note(session)

    @stateful.invariant()
    def each_session_reads_its_own_context(self) -> None:
        for session, tokens in getattr(self, "contexts", {}).items():
            if not tokens:
                continue
            assert list(self.of.memory.tokens(session)) == tokens
            held = min(len(tokens), PAGE_TOKENS * len(self.of.memory.table(session, len(tokens))))
            assert self.of.read(session)[:held] == tokens[:held]
            full = b"".join(self.of.pages(session))
            assert list(full) == tokens[: len(full)], "spilled pages are read from where they are"

    def teardown(self) -> None:
        """When all are gone, all memory is."""
        for session in self.NAMES:
            self.of.memory.drop(session)
        assert self.of.memory.room() == self.of.pool.page_count


TestMachine = Machine.TestCase
