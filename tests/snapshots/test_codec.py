from __future__ import annotations

import contextlib

import hypothesis
import numpy as np
import pytest
import zstandard
from hypothesis import strategies as st

from meshnode import errors
from meshnode.snapshots import codec


def gaussian(word_count: int) -> bytes:
    """bf16 words as a KV cache has them: many small numbers around zero."""
    values = np.random.default_rng(7).standard_normal(word_count).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def test_every_bit_pattern_comes_back() -> None:
    raw = np.arange(1 << 16, dtype="<u2").tobytes() + bytes(1 << 16)  # zeros, so that it shrinks
    encoded = codec.encode(raw)
    assert encoded.codec == codec.PLANES
    assert codec.decode(encoded.codec, encoded.payload, len(raw)) == raw


@hypothesis.given(
    raw=st.one_of(st.binary(max_size=300), st.builds(lambda b, n: b * n, st.binary(), st.integers(0, 99)))
)
def test_any_bytes_come_back_and_never_grow(raw: bytes) -> None:
    encoded = codec.encode(raw)
    assert len(encoded.payload) <= len(raw)
    assert codec.decode(encoded.codec, encoded.payload, len(raw)) == raw


@pytest.mark.parametrize("raw", [b"", b"x", bytes(999), np.random.default_rng(1).bytes(4096)])
def test_odd_sizes_and_noise_are_stored_raw(raw: bytes) -> None:
    assert codec.encode(raw) == codec.Encoded(codec.RAW, raw)


def test_planes_beat_plain_zstd_on_what_looks_like_a_page() -> None:
    raw = gaussian(1 << 17)
    ours = len(codec.encode(raw).payload)
    assert len(raw) / ours > 1.35
    assert len(zstandard.ZstdCompressor(level=1).compress(raw)) / ours > 1.1


def bomb(claimed_bytes: int | None) -> bytes:
    """A payload of a 2 KiB page, whose exponents unpack to 64 MiB; the frame claims a size, or none."""
    zeros = bytes(64 << 20)
    if claimed_bytes is None:
        packed = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(zeros)
    else:
        packed = zstandard.ZstdCompressor(level=1).compress(zeros)
        assert zstandard.frame_content_size(packed) == claimed_bytes
    return len(packed).to_bytes(4, "big") + packed + bytes(1024)


@pytest.mark.parametrize("claimed_bytes", [None, 64 << 20])
def test_a_bomb_is_refused_before_memory_is_taken(claimed_bytes: int | None) -> None:
    with pytest.raises(errors.PeerError, match="another size than the page"):
        codec.decode(codec.PLANES, bomb(claimed_bytes), 2048)


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    packed = bytearray(zstandard.ZstdCompressor(level=1).compress(bytes(2000)))
    at = packed.index((2000 - 256).to_bytes(2, "little"))
    packed[at : at + 2] = (1024 - 256).to_bytes(2, "little")
    assert zstandard.frame_content_size(bytes(packed)) == 1024
    with pytest.raises(errors.PeerError, match="not zstd"):
        codec.decode(codec.PLANES, len(packed).to_bytes(4, "big") + bytes(packed) + bytes(1024), 2048)


@hypothesis.given(payload=st.binary(max_size=200), codec_id=st.integers(0, 255), raw_bytes=st.integers(0, 400))
def test_garbage_is_the_peers_fault(payload: bytes, codec_id: int, raw_bytes: int) -> None:
    try:
        raw = codec.decode(codec_id, payload, raw_bytes)
    except errors.PeerError:
        return
    assert len(raw) == raw_bytes


@hypothesis.given(st.data())
def test_a_damaged_payload_is_refused_or_of_the_right_size(data: st.DataObject) -> None:
    raw = gaussian(512)
    payload = bytearray(codec.encode(raw).payload)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    with contextlib.suppress(errors.PeerError):
        assert len(codec.decode(codec.PLANES, damaged, len(raw))) == len(raw)
