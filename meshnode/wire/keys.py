"""Ed25519 through PyNaCl: one key is the node's identity for libp2p and for every signature it gives."""

from __future__ import annotations

import nacl.exceptions
import nacl.signing

from meshnode.ids import PEER_BYTES, PeerId

SEED_BYTES = 32
SIGNATURE_BYTES = 64


class Identity:
    """A key pair. The seed is the secret; keep it in a file that only its owner reads."""

    __slots__ = ("_key", "peer", "seed")

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES
        self.seed = seed
        self._key = nacl.signing.SigningKey(seed)
        self.peer = PeerId(bytes(self._key.verify_key))

    def sign(self, message: bytes) -> bytes:
        """64 bytes, deterministic (RFC 8032)."""
        return self._key.sign(message).signature

    def __repr__(self) -> str:
        return f"Identity({self.peer.hex()[:8]})"


def verified(peer: PeerId, message: bytes, signature: bytes) -> bool:
    """Whether `peer` signed `message`. Never raises on a stranger's bytes."""
    if len(peer) != PEER_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        nacl.signing.VerifyKey(peer).verify(message, signature)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError):
        return False
    return True
