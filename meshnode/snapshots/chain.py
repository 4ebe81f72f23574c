"""What a page is called: a hash chain over everything that its bytes depend on.

A KV page is a function of the model, the numeric class, the page size and *all* tokens up to its end, so its address
commits to exactly these: equal addresses mean equal bytes, on any node, and a page of another context can never be
installed by mistake. The chain starts at `genesis`, the digest of the recipe, which a replica compares before it takes
the first page.

With a key, no address confirms a guessed prompt. The key enters *every* link, not only the first one: a replica sees
the parent of each page in its frame, and could otherwise test guesses of one page at a time from there.

It refuses to name part of a page: the open page has no address, its tokens are in the log.

Rejected: Python's `hash` or a seeded one (differs between processes, so nothing ever hits), and hashing page bytes
(the new host could not know what to ask for before it had computed it).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from meshnode import ids

KEY_BYTES = 32
_GENESIS = b"meshnode page genesis 1"
_LINK = b"meshnode page address 1"


def genesis(model_digest: ids.Digest, numeric_class: str, page_tokens: int, *, key: bytes = b"") -> ids.Digest:
    """The parent of the first page: the recipe, and the session's key if it has one."""
    assert len(key) in (0, KEY_BYTES)
    assert page_tokens > 0
    return ids.digest(_GENESIS, key, model_digest, numeric_class.encode(), page_tokens.to_bytes(4, "big"))


def address(
    parent: ids.Digest,
    model_digest: ids.Digest,
    numeric_class: str,
    page_tokens: int,
    tokens: Sequence[int],
    *,
    key: bytes = b"",
) -> ids.Digest:
    """The address of the page that holds `tokens` and follows `parent`. Exactly one full page."""
    assert len(tokens) == page_tokens
    assert len(parent) == ids.DIGEST_BYTES
    assert len(key) in (0, KEY_BYTES)
    recipe = (model_digest, numeric_class.encode(), page_tokens.to_bytes(4, "big"))
    return ids.digest(_LINK, key, parent, *recipe, struct.pack(f">{page_tokens}I", *tokens))


def addresses(
    model_digest: ids.Digest,
    numeric_class: str,
    page_tokens: int,
    tokens: Sequence[int],
    *,
    key: bytes = b"",
) -> tuple[ids.Digest, ...]:
    """The addresses of all full pages of `tokens`; a part of a page at the end has none."""
    parent = genesis(model_digest, numeric_class, page_tokens, key=key)
    chain: list[ids.Digest] = []
    for start in range(0, len(tokens) - page_tokens + 1, page_tokens):
        parent = address(parent, model_digest, numeric_class, page_tokens, tokens[start : start + page_tokens], key=key)
        chain.append(parent)
    return tuple(chain)
