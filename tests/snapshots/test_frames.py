from __future__ import annotations

import hashlib

import hypothesis
import pytest
from hypothesis import strategies as st

from meshnode import errors, ids
from meshnode.snapshots import frames

FRAME = frames.PageFrame(
    session=ids.SessionId(bytes(range(16))),
    epoch=3,
    page_index=7,
    address=ids.digest(b"address"),
    parent=ids.digest(b"parent"),
    codec=1,
    raw_bytes=64,
    payload=b"forty bytes of payload, more or less....",
)
PACKED = frames.pack(FRAME)

some_frames = st.builds(
    frames.PageFrame,
    session=st.binary(min_size=16, max_size=16).map(ids.SessionId),
    epoch=st.integers(0, 2**64 - 1),
    page_index=st.integers(0, 2**32 - 1),
    address=st.binary(min_size=32, max_size=32).map(ids.Digest),
    parent=st.binary(min_size=32, max_size=32).map(ids.Digest),
    codec=st.integers(0, 255),
    raw_bytes=st.integers(0, 8 << 20),
    payload=st.binary(max_size=100),
)


def sealed_again(body: bytes) -> bytes:
    """A frame whose checksum is right, whatever else is wrong."""
    return body + hashlib.blake2b(body, digest_size=32).digest()


@hypothesis.given(frame=some_frames)
def test_a_frame_comes_back(frame: frames.PageFrame) -> None:
    assert frames.unpack(frames.pack(frame)) == frame


def test_every_truncation_is_refused() -> None:
    for length in range(len(PACKED)):
        with pytest.raises(errors.PeerError):
            frames.unpack(PACKED[:length])


def test_every_flipped_bit_is_refused() -> None:
    for bit in range(len(PACKED) * 8):
        flipped = bytearray(PACKED)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.PeerError):
            frames.unpack(bytes(flipped))


@hypothesis.given(garbage=st.one_of(st.binary(), st.binary(min_size=150, max_size=300).map(sealed_again)))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(errors.PeerError):
        frames.unpack(garbage)


@hypothesis.given(tail=st.binary(min_size=1, max_size=40))
def test_what_follows_a_frame_is_refused(tail: bytes) -> None:
    with pytest.raises(errors.PeerError):
        frames.unpack(PACKED + tail)


@pytest.mark.parametrize("at", [0, 4, 6])
def test_another_magic_version_or_flag_is_refused_even_with_a_right_checksum(at: int) -> None:
    body = bytearray(PACKED[:-32])
    body[at] ^= 2
    with pytest.raises(errors.PeerError, match="version"):
        frames.unpack(sealed_again(bytes(body)))


def test_a_payload_length_that_is_a_lie_is_refused_even_with_a_right_checksum() -> None:
    body = bytearray(PACKED[:-32])
    body[frames.HEADER_BYTES - 1] += 1
    with pytest.raises(errors.PeerError, match="length"):
        frames.unpack(sealed_again(bytes(body)))


def test_limits_hold() -> None:
    exact = frames.Limits(raw_bytes_max=64, payload_bytes_max=len(FRAME.payload))
    assert frames.unpack(PACKED, exact) == FRAME
    with pytest.raises(errors.PeerError, match="above 63"):
        frames.unpack(PACKED, frames.Limits(raw_bytes_max=63))
    with pytest.raises(errors.PeerError, match="bytes"):
        frames.unpack(PACKED, frames.Limits(payload_bytes_max=len(FRAME.payload) - 1))


def test_the_largest_payload_fits_the_bulk_lane() -> None:
    assert frames.DEFAULT_LIMITS.payload_bytes_max + frames.OVERHEAD_BYTES == 8 << 20
