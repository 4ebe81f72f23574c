"""The allocator: nothing is lost, nothing is free while somebody holds it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import stateful
from hypothesis import strategies as some

from meshnode import errors
from meshnode.engine import pages


def test_full_memory_takes_nothing() -> None:
    of = pages.Pages(4)
    of.take(3)
    with pytest.raises(errors.EngineError, match="2 pages wanted, 1 are free"):
        of.take(2)
    assert of.free_count == 1


def test_a_page_is_free_when_the_last_holder_gave_it_back() -> None:
    of = pages.Pages(1)
    [page] = of.take(1)
    of.hold(page)
    of.give([page])
    assert (of.free_count, of.holders(page)) == (0, 1)
    of.give([page])
    assert of.take(1) == [page]


def test_a_page_given_back_twice_is_our_fault() -> None:
    of = pages.Pages(4)
    taken = of.take(1)
    of.give(taken)
    with pytest.raises(AssertionError, match="twice"):
        of.give(taken)


def test_a_free_page_cannot_be_shared() -> None:
    with pytest.raises(AssertionError, match="free"):
        pages.Pages(4).hold(2)


@pytest.mark.parametrize(("tokens", "count"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_a_begun_page_counts(tokens: int, count: int) -> None:
    assert pages.pages_for(tokens) == count


class Holders(stateful.RuleBasedStateMachine):
    """Against a bag of (holder, page)."""

    COUNT = 13

    def __init__(self) -> None:
        super().__init__()
        self.pages = pages.Pages(self.COUNT)
        self.bag: Counter[int] = Counter()

    @stateful.rule(count=some.integers(0, 6))
    def take(self, count: int) -> None:
        if count > self.COUNT - len(self.bag):
            with pytest.raises(errors.EngineError):
                self.pages.take(count)
            return
        taken = self.pages.take(count)
        assert len(set(taken)) == count
        assert not set(taken) & set(self.bag)
        self.bag.update(taken)

    @stateful.precondition(lambda self: self.bag)
    @stateful.rule(pick=some.integers(0, 99))
    def hold(self, pick: int) -> None:
        page = list(self.bag)[pick % len(self.bag)]
        self.pages.hold(page)
        self.bag[page] += 1

    @stateful.precondition(lambda self: self.bag)
    @stateful.rule(pick=some.integers(0, 99))
    def give(self, pick: int) -> None:
        page = list(self.bag)[pick % len(self.bag)]
        self.pages.give([page])
        self.bag -= Counter([page])

    @stateful.invariant()
    def every_page_is_free_or_held_so_often(self) -> None:
        assert [self.pages.holders(page) for page in range(self.COUNT)] == [
            self.bag[page] for page in range(self.COUNT)
        ]
        assert self.pages.free_count == self.COUNT - len(self.bag)


TestHolders = Holders.TestCase
