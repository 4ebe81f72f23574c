"""The tree of sealed pages: names, sharing domains, and what goes first when memory is wanted."""

from __future__ import annotations

import pytest

from meshnode import errors, ids
from meshnode.engine import pages, prefix

NAMES = prefix.Names(ids.digest(b"model"), "w8")
TOKENS = list(range(8 * pages.PAGE_TOKENS))


def names(count: int, first: int = 0, domain: bytes = b"d") -> list[ids.Digest]:
    """The addresses of `count` pages whose first token is `first`."""
    found: list[ids.Digest] = []
    for index in range(count):
        parent = found[-1] if found else NAMES.root(domain)
        at = index * pages.PAGE_TOKENS
        tokens = [first, *TOKENS[at + 1 : at + pages.PAGE_TOKENS]] if index == 0 else TOKENS[at : at + 32]
        found.append(NAMES.address(parent, tokens, domain))
    return found


def tree(count: int = 10, idle_pages_max: int | None = None) -> prefix.Tree:
    return prefix.Tree(pages.Pages(count), idle_pages_max=idle_pages_max)


def filled(of: prefix.Tree, addresses: list[ids.Digest]) -> list[int]:
    """A session that computed these pages."""
    held = of.take(len(addresses))
    for index, address in enumerate(addresses):
        held[index] = of.seal(address, held[index - 1] if index else None, held[index])
    return held


def walked(of: prefix.Tree, addresses: list[ids.Digest]) -> list[int]:
    """What a session that comes now finds, and holds."""
    held: list[int] = []
    for address in addresses:
        page = of.find(address, held[-1] if held else None)
        if page is None:
            break
        of.hold(page)
        held.append(page)
    return held


def test_equal_tokens_of_two_domains_or_models_have_no_name_in_common() -> None:
    other = prefix.Names(ids.digest(b"other"), "w8"), prefix.Names(ids.digest(b"model"), "f32")
    roots = [NAMES.root(b"d"), NAMES.root(b""), NAMES.root(b"e"), *(one.root(b"d") for one in other)]
    addresses = [NAMES.address(roots[0], TOKENS[:32], domain) for domain in (b"d", b"e", b"")]
    assert len(set(roots + addresses)) == 8


def test_what_one_session_computed_another_one_finds_until_they_part() -> None:
    of = tree()
    first = filled(of, names(3))
    assert walked(of, [*names(2), *names(3, first=9)[2:]]) == first[:2]
    assert walked(of, names(3, first=9)) == []
    assert walked(of, names(3, domain=b"e")) == []


def test_an_ended_session_leaves_its_pages_until_they_are_wanted() -> None:
    of = tree(4)
    held = filled(of, names(3))
    of.give(held)
    assert (of.room, of.idle_count) == (4, 3)
    again = walked(of, names(3))
    assert (again, of.room, of.idle_count) == (held, 1, 0)
    with pytest.raises(errors.EngineError, match="2 pages wanted, 1 are free"):
        of.take(2)


def test_memory_is_taken_from_leaves_of_whoever_left_first() -> None:
    of = tree(6)
    first, second = filled(of, names(3)), filled(of, names(3, first=9))
    of.give(second)
    of.give(first)
    of.take(2)
    assert walked(of, names(3)) == first
    assert walked(of, names(3, first=9)) == second[:1]


def test_a_page_in_use_is_never_taken() -> None:
    of = tree(4)
    of.give(filled(of, names(4)))
    user = walked(of, names(2))
    of.take(2)
    assert walked(of, names(4)) == user
    with pytest.raises(errors.EngineError):
        of.take(1)


def test_two_that_compute_the_same_hold_one_page_in_the_end() -> None:
    of = tree(6)
    first = filled(of, names(3))
    assert filled(of, names(3)) == first
    assert of.room == 3


def test_a_page_that_several_see_is_not_written() -> None:
    of = tree()
    [sealed, private] = of.take(2)
    of.seal(names(1)[0], None, sealed)
    assert of.writable(private)
    assert not of.writable(sealed)
    other = walked(of, names(1))
    assert not of.lone(sealed)
    of.forget(sealed)
    assert not of.writable(sealed), "two sessions hold it still"
    of.give(other)
    assert of.writable(sealed)


def test_what_is_forgotten_is_not_found_nor_what_follows_on_it() -> None:
    of = tree()
    held = filled(of, names(4))
    of.forget(held[1])
    assert walked(of, names(4)) == held[:1]
    fresh = of.take(1)[0]
    held.append(of.seal(names(5)[4], held[3], fresh))
    assert held[4] == fresh
    assert not of.sealed(fresh), "behind a page that nobody finds"
    of.give(held)
    assert of.room == 9, "page 0 is held by the walk"


def test_idle_pages_keep_to_their_budget() -> None:
    of = tree(10, idle_pages_max=2)
    first = filled(of, names(4))
    of.give(first)
    assert (of.idle_count, of.room) == (2, 10)
    assert walked(of, names(4)) == first[:2]
    assert tree(10, idle_pages_max=0).idle_count == 0


def test_a_context_of_any_length_is_forgotten() -> None:
    of = tree(3000)
    held = of.take(3000)
    for index, page in enumerate(held):
        of.seal(ids.digest(index.to_bytes(4, "big")), held[index - 1] if index else None, page)
    of.forget(held[0])
    of.give(held)
    assert (of.room, of.idle_count) == (3000, 0)
