"""A peer is its key, and its text is the one that libp2p prints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.id import ID

from meshnode import errors, ids
from meshnode.ids import PeerId
from meshnode.wire import keys

PEERS = st.binary(min_size=32, max_size=32).map(PeerId)
SEEDS = st.binary(min_size=32, max_size=32)


@given(SEEDS)
def test_the_text_is_the_one_that_libp2p_prints(seed: bytes) -> None:
    peer = keys.Identity(seed).peer
    assert ids.peer_text(peer) == str(ID.from_pubkey(Ed25519PublicKey.from_bytes(peer)))


@given(PEERS)
def test_text_and_back_is_the_same_peer(peer: PeerId) -> None:
    assert ids.peer_from_text(ids.peer_text(peer)) == peer


@given(st.text(max_size=80) | st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", max_size=120))
def test_other_text_is_refused_or_is_the_one_text_of_a_peer(text: str) -> None:
    try:
        peer = ids.peer_from_text(text)
    except errors.PeerError:
        return
    assert ids.peer_text(peer) == text


@given(PEERS, st.data())
def test_a_changed_letter_never_names_the_same_peer(peer: PeerId, data: st.DataObject) -> None:
    letters = list(ids.peer_text(peer))
    place = data.draw(st.integers(0, len(letters) - 1))
    letters[place] = data.draw(st.characters().filter(lambda letter: letter != letters[place]))
    try:
        assert ids.peer_from_text("".join(letters)) != peer
    except errors.PeerError:
        return


@given(PEERS)
def test_a_peer_has_no_second_text(peer: PeerId) -> None:
    text = ids.peer_text(peer)
    for other in ("1" + text, text[1:], text + " ", " " + text, text + "1", text.lower()):
        with pytest.raises(errors.PeerError):
            ids.peer_from_text(other)


def test_a_peer_with_another_kind_of_key_is_refused() -> None:
    other = str(ID.from_pubkey(create_new_key_pair().public_key))
    with pytest.raises(errors.PeerError):
        ids.peer_from_text(other)


@pytest.mark.parametrize("text", ["", "1", "l", "12D3KooW", "é" * 10, "1" * 1_000_000])
def test_junk_is_refused_at_once(text: str) -> None:
    with pytest.raises(errors.PeerError) as caught:
        ids.peer_from_text(text)
    assert len(str(caught.value)) < 400


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_different_parts_have_different_digests(some: list[bytes], others: list[bytes]) -> None:
    assert (ids.digest(*some) == ids.digest(*others)) == (some == others)


def test_parts_do_not_run_into_one_another() -> None:
    assert ids.digest(b"ab", b"c") != ids.digest(b"a", b"bc")
    assert len(ids.digest()) == ids.DIGEST_BYTES


@given(PEERS)
def test_short_names_are_short(peer: PeerId) -> None:
    assert ids.peer_text(peer).endswith(ids.peer_short(peer))
    assert len(ids.short(peer)) == 8
