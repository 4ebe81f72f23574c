from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from meshnode.ids import Digest, SessionId
from meshnode.snapshots import hot

A, B = SessionId(b"a" * 16), SessionId(b"b" * 16)


def address(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def test_the_oldest_page_makes_room() -> None:
    pages = hot.HotPages(budget_bytes=30)
    for number in range(4):
        pages.put(A, address(number), bytes(10))
    assert [pages.get(A, address(number)) is not None for number in range(4)] == [False, True, True, True]


def test_a_page_above_the_budget_is_not_kept_and_costs_no_other() -> None:
    pages = hot.HotPages(budget_bytes=30)
    pages.put(A, address(1), bytes(10))
    pages.put(A, address(2), bytes(31))
    assert pages.get(A, address(2)) is None
    assert pages.get(A, address(1)) is not None


def test_dropping_a_session_leaves_the_others() -> None:
    pages = hot.HotPages(budget_bytes=100)
    pages.put(A, address(1), b"x")
    pages.put(B, address(1), b"y")
    pages.drop(A)
    assert pages.get(A, address(1)) is None
    assert pages.get(B, address(1)) == b"y"
    assert pages.used_bytes == 1


@hypothesis.given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 9), st.integers(0, 40)), max_size=60))
def test_the_budget_holds_whatever_comes(puts: list[tuple[SessionId, int, int]]) -> None:
    pages = hot.HotPages(budget_bytes=64)
    for session, number, size in puts:
        pages.put(session, address(number), bytes(size))
        assert pages.used_bytes == sum(map(len, pages._pages.values())) <= 64
