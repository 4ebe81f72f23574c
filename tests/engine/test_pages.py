"""The allocator: nothing is lost, nothing is given twice, and neighbours stay together while there is room."""

from __future__ import annotations

import pytest
from hypothesis import stateful
from hypothesis import strategies as some

from meshnode import errors
from meshnode.engine import pages


def test_a_session_grows_into_the_next_page() -> None:
    owned = pages.Pages(100)
    first = owned.take(3, None)
    second = owned.take(2, None)
    for session in (first, second, first, second, first):
        session += owned.take(1, session[-1])
    assert first == list(range(first[0], first[0] + 6))
    assert second == list(range(second[0], second[0] + 4))


def test_full_memory_takes_nothing() -> None:
    owned = pages.Pages(4)
    owned.take(3, None)
    with pytest.raises(errors.EngineError, match="1 are free"):
        owned.take(2, None)
    assert owned.free_count == 1


def test_a_page_given_back_twice_is_our_fault() -> None:
    owned = pages.Pages(4)
    taken = owned.take(1, None)
    owned.give(taken)
    with pytest.raises(AssertionError, match="twice"):
        owned.give(taken)


@pytest.mark.parametrize(("tokens", "count"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_a_begun_page_counts(tokens: int, count: int) -> None:
    assert pages.pages_for(tokens) == count


class Sessions(stateful.RuleBasedStateMachine):
    COUNT = 13

    def __init__(self) -> None:
        super().__init__()
        self.owned = pages.Pages(self.COUNT)
        self.held: list[list[int]] = []

    @stateful.rule(count=some.integers(1, 6))
    def start(self, count: int) -> None:
        if count <= self.owned.free_count:
            self.held.append(self.owned.take(count, None))

    @stateful.precondition(lambda self: self.held and self.owned.free_count)
    @stateful.rule(pick=some.integers(0, 99))
    def grow(self, pick: int) -> None:
        session = self.held[pick % len(self.held)]
        session += self.owned.take(1, session[-1])

    @stateful.precondition(lambda self: self.held)
    @stateful.rule(pick=some.integers(0, 99))
    def end(self, pick: int) -> None:
        self.owned.give(self.held.pop(pick % len(self.held)))

    @stateful.invariant()
    def every_page_is_free_or_somebodys(self) -> None:
        taken = [page for session in self.held for page in session]
        assert len(set(taken)) == len(taken)
        assert len(taken) + self.owned.free_count == self.COUNT


TestSessions = Sessions.TestCase
