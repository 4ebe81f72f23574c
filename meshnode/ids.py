"""Names for things.

A peer *is* its Ed25519 public key: 32 bytes, the same key for libp2p and for signatures, so nothing has to map one
name to another. Outside the process it is written the way libp2p writes it (base58 of the identity multihash), which
this file computes itself because the layers above must not import libp2p to print a name.
"""

from __future__ import annotations

import hashlib
from typing import NewType

from meshnode import errors

PeerId = NewType("PeerId", bytes)
"""32 bytes: the raw Ed25519 public key."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes, chosen by the requester. Not a secret: a capability opens a session, its name does not."""

RequestId = NewType("RequestId", bytes)
"""16 random bytes, minted by the client; a repeat of it gets the recorded answer."""

Digest = NewType("Digest", bytes)
"""32 bytes of BLAKE2b."""

PEER_BYTES = 32
SESSION_BYTES = 16
REQUEST_BYTES = 16
DIGEST_BYTES = 32

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# Identity multihash (0x00, 36 bytes) of libp2p's protobuf of an Ed25519 public key (libp2p specs, peer-ids).
_PEER_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_PEER_TEXT_MAX = 64


def digest(*parts: bytes) -> Digest:
    """BLAKE2b-256 over length-prefixed parts, so that no two lists of parts share a digest by concatenation."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return Digest(state.digest())


def peer_text(peer: PeerId) -> str:
    """The libp2p form of a peer id (`12D3KooW...`)."""
    number = int.from_bytes(_PEER_PREFIX + peer, "big")
    text = ""
    while number:
        number, rest = divmod(number, 58)
        text = _BASE58[rest] + text
    return "1" + text  # the leading zero byte of the multihash


def peer_from_text(text: str) -> PeerId:
    """The inverse of `peer_text`. Raises PeerError for anything that is not an Ed25519 peer id."""
    # A second leading "1" would be a second zero byte, which the number below does not show: two texts of one peer.
    if not 0 < len(text) <= _PEER_TEXT_MAX or not text.startswith("1") or text.startswith("11"):
        raise errors.PeerError(f"not an Ed25519 peer id: {text[:_PEER_TEXT_MAX]!r}")
    number = 0
    for letter in text:
        place = _BASE58.find(letter)
        if place < 0:
            raise errors.PeerError(f"not an Ed25519 peer id: {text!r}")
        number = number * 58 + place
    raw = number.to_bytes(64, "big").lstrip(b"\0")
    if len(raw) != len(_PEER_PREFIX) - 1 + PEER_BYTES or not raw.startswith(_PEER_PREFIX[1:]):
        raise errors.PeerError(f"not an Ed25519 peer id: {text!r}")
    return PeerId(raw[len(_PEER_PREFIX) - 1 :])


def short(name: bytes) -> str:
    """Eight hex digits, enough to tell things apart in one log."""
    return name.hex()[:8]


def peer_short(peer: PeerId) -> str:
    """The last six characters of the libp2p form: the beginning is the same for every Ed25519 peer."""
    return peer_text(peer)[-6:]
