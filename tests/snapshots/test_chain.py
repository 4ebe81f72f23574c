from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from meshnode import ids
from meshnode.snapshots import chain

MODEL = ids.digest(b"model")
KEY = bytes(range(32))
TOKENS = list(range(20))


def test_only_full_pages_have_an_address() -> None:
    assert chain.addresses(MODEL, "w8", 8, TOKENS[:7]) == ()
    assert len(chain.addresses(MODEL, "w8", 8, TOKENS)) == 2


def test_the_chain_is_what_one_link_after_the_other_gives() -> None:
    parent = chain.genesis(MODEL, "w8", 4, key=KEY)
    links = []
    for start in range(0, 20, 4):
        parent = chain.address(parent, MODEL, "w8", 4, TOKENS[start : start + 4], key=KEY)
        links.append(parent)
    assert chain.addresses(MODEL, "w8", 4, TOKENS, key=KEY) == tuple(links)


def test_an_address_is_the_same_in_every_process_and_release() -> None:
    first = chain.addresses(MODEL, "w8", 4, TOKENS)[0]
    assert first.hex() == "65b7377fa1c0e374f226f8b4b46d30e9e38ffb4eeef0758c1ea4745247b86d49"


@hypothesis.given(tokens=st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12), at=st.integers(0, 11))
def test_a_page_commits_to_every_token_before_it(tokens: list[int], at: int) -> None:
    other = tokens.copy()
    other[at] ^= 1
    pairs = zip(
        chain.addresses(MODEL, "w8", 4, tokens),
        chain.addresses(MODEL, "w8", 4, other),
        strict=True,
    )
    assert [ours == theirs for ours, theirs in pairs] == [page_index < at // 4 for page_index in range(3)]


@pytest.mark.parametrize(
    "other",
    [
        chain.addresses(ids.digest(b"another model"), "w8", 4, TOKENS),
        chain.addresses(MODEL, "i8", 4, TOKENS),
        chain.addresses(MODEL, "w8", 5, TOKENS),
        chain.addresses(MODEL, "w8", 4, TOKENS, key=KEY),
        chain.addresses(MODEL, "w8", 4, TOKENS, key=KEY[::-1]),
    ],
)
def test_another_recipe_or_key_shares_no_address(other: tuple[ids.Digest, ...]) -> None:
    assert other
    assert not set(other) & set(chain.addresses(MODEL, "w8", 4, TOKENS))


def test_who_knows_a_page_but_not_the_key_cannot_confirm_a_guess_of_the_next() -> None:
    first, second, *_ = chain.addresses(MODEL, "w8", 4, TOKENS, key=KEY)
    assert chain.address(first, MODEL, "w8", 4, TOKENS[4:8], key=KEY) == second
    assert chain.address(first, MODEL, "w8", 4, TOKENS[4:8]) != second


@pytest.mark.parametrize("key", [b"short", bytes(33)])
def test_a_key_of_another_length_is_our_fault(key: bytes) -> None:
    with pytest.raises(AssertionError):
        chain.genesis(MODEL, "w8", 4, key=key)
