"""What is opened was sealed by its sender, bit for bit, as this very kind of message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors
from meshnode.wire import cbor, envelope, keys, schema
from tests.wire import samples

ALICE = keys.Identity(b"\x01" * keys.SEED_BYTES)
BOB = keys.Identity(b"\x02" * keys.SEED_BYTES)
DOMAIN = b"meshnode envelope 1\0"  # written out: a change of it is a change of the wire


def signed(parts: object, identity: keys.Identity = ALICE, domain: bytes = DOMAIN) -> bytes:
    """An envelope around anything, with a signature that holds."""
    body = cbor.encode(parts)
    return identity.sign(domain + body) + body


@given(st.integers(0, schema.INTEGER_MAX), st.binary(min_size=32, max_size=32))
def test_what_was_sealed_opens_with_its_sender(count: int, seed: bytes) -> None:
    identity = keys.Identity(seed)
    opened = envelope.open_(envelope.seal(identity, samples.Small(count)))
    assert opened == envelope.Opened(identity.peer, samples.Small(count))


def test_the_bytes_are_those_that_the_format_says() -> None:
    sealed = envelope.seal(ALICE, samples.Small(7))
    assert sealed == signed([1, samples.SMALL, ALICE.peer, [7]])
    assert sealed[64:].hex() == "84011a00895442" + "5820" + ALICE.peer.hex() + "8107"


def test_every_flipped_bit_is_refused() -> None:
    sealed = envelope.seal(ALICE, samples.Small(7))
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.PeerError):
            envelope.open_(bytes(changed))


def test_every_shorter_and_longer_envelope_is_refused() -> None:
    sealed = envelope.seal(ALICE, samples.Small(7))
    for count in range(len(sealed)):
        with pytest.raises(errors.PeerError):
            envelope.open_(sealed[:count])
    with pytest.raises(errors.PeerError):
        envelope.open_(sealed + b"\0")


@given(st.binary(max_size=300))
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(errors.PeerError):
        envelope.open_(data)


def test_a_sender_cannot_be_put_in_front_of_anothers_signature() -> None:
    with pytest.raises(errors.PeerError, match="signature"):
        envelope.open_(signed([1, samples.SMALL, ALICE.peer, [7]], identity=BOB))


def test_a_signature_for_another_purpose_opens_nothing() -> None:
    for domain in (b"", b"meshnode envelope 2\0", b"meshnode receipt 1\0"):
        with pytest.raises(errors.PeerError, match="signature"):
            envelope.open_(signed([1, samples.SMALL, ALICE.peer, [7]], domain=domain))


@pytest.mark.parametrize("version", [0, 2, -1, 2**64 - 1])
def test_another_version_is_refused_by_name(version: int) -> None:
    with pytest.raises(errors.PeerError, match="version"):
        envelope.open_(signed([version, samples.SMALL, ALICE.peer, [7]]))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(errors.PeerError, match="kind 8999999 is not spoken here"):
        envelope.open_(signed([1, 8_999_999, ALICE.peer, [7]]))


@pytest.mark.parametrize(
    "parts",
    [
        None,
        {},
        [],
        [1, samples.SMALL, ALICE.peer],
        [1, samples.SMALL, ALICE.peer, [7], None],
        [True, samples.SMALL, ALICE.peer, [7]],
        [1.0, samples.SMALL, ALICE.peer, [7]],
        ["1" * 1000, samples.SMALL, ALICE.peer, [7]],
        [None, samples.SMALL, ALICE.peer, [7]],
        [1, "9000002", ALICE.peer, [7]],
        [1, True, ALICE.peer, [7]],
        [1, samples.SMALL, ALICE.peer[:31], [7]],
        [1, samples.SMALL, ALICE.peer.hex(), [7]],
        [1, samples.SMALL, ALICE.peer, 7],
        [1, samples.SMALL, ALICE.peer, ["7"]],
        [1, samples.SMALL, ALICE.peer, [7, 7]],
    ],
)
def test_a_good_signature_does_not_excuse_the_form(parts: object) -> None:
    with pytest.raises(errors.PeerError) as caught:
        envelope.open_(signed(parts))
    assert len(str(caught.value)) < 400


def test_an_expected_kind_is_given_and_another_refused() -> None:
    sealed = envelope.seal(ALICE, samples.Small(7))
    assert envelope.expect(sealed, samples.Small) == (ALICE.peer, samples.Small(7))
    with pytest.raises(errors.PeerError, match="expected Everything, got Small"):
        envelope.expect(sealed, samples.Everything)
