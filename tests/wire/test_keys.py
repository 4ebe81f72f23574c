"""Ed25519, against a published vector; and a stranger's bytes, which must never raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.ids import PeerId
from meshnode.wire import keys

ALICE = keys.Identity(b"\x01" * keys.SEED_BYTES)
BOB = keys.Identity(b"\x02" * keys.SEED_BYTES)


def test_the_key_and_signature_are_those_of_rfc_8032() -> None:
    # Section 7.1, test 2.
    identity = keys.Identity(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert identity.peer.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert identity.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


@given(st.binary(max_size=300))
def test_a_signature_is_good_for_its_signer_and_message_alone(message: bytes) -> None:
    signature = ALICE.sign(message)
    assert keys.verified(ALICE.peer, message, signature)
    assert not keys.verified(BOB.peer, message, signature)
    assert not keys.verified(ALICE.peer, message + b"\0", signature)


@given(st.binary(max_size=80), st.integers(0, keys.SIGNATURE_BYTES * 8 - 1))
def test_a_flipped_bit_breaks_a_signature(message: bytes, bit: int) -> None:
    signature = bytearray(ALICE.sign(message))
    signature[bit // 8] ^= 1 << bit % 8
    assert not keys.verified(ALICE.peer, message, bytes(signature))


@given(
    st.binary(max_size=40) | st.binary(min_size=32, max_size=32),
    st.binary(max_size=80) | st.binary(min_size=64, max_size=64),
)
def test_junk_is_not_a_signature_and_does_not_raise(peer: bytes, signature: bytes) -> None:
    assert not keys.verified(PeerId(peer), b"message", signature)


@pytest.mark.parametrize("first_byte", [0, 1])
def test_a_key_of_small_order_signs_nothing(first_byte: int) -> None:
    # With such a key, one signature is good for every message.
    weak = PeerId(bytes([first_byte]) + b"\0" * 31)
    signature = bytes([first_byte]) + b"\0" * 63
    assert not keys.verified(weak, b"message", signature)


def test_an_identity_does_not_print_its_secret() -> None:
    assert ALICE.seed.hex() not in repr(ALICE)
    assert ALICE.peer.hex()[:8] in repr(ALICE)
