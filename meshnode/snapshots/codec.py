"""Page bytes to fewer bytes and back, exactly.

A page is bf16 words. Neighbouring words share their order of magnitude and nothing else: the eight exponent bits are
worth compressing, the sign and the seven mantissa bits are noise. So the words are regrouped into two planes of bytes;
the exponents go through zstd and the other plane stays as it is.

zstd is told what it cannot know: that chance matches are not worth having (a table of 64 entries, seven bytes at
least), and where the statistics change, by ending its block there. Each block then gets a Huffman table of its own,
and on real KV that is smaller *and* faster than level 1 as it comes (DESIGN.md has the figures). The result is a
plain zstd frame.

The decoder knows the size of the page before it starts. It compares it with the size that the zstd frame claims
*before* memory is taken (python-zstandard's `max_output_size` is ignored when the frame names a size, which makes it
no limit).

It refuses to be lossy: a lossy page would make an honest failover look like cheating. Pages that do not shrink, and
sizes that are not whole words, are stored raw.

Pure (numpy, zstandard). Rejected: a Huffman coder of our own (Python), and channel-major order (0.3 % smaller, but
then the codec must know the shape of a page).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from meshnode import errors

RAW = 0
PLANES = 1

_BLOCK_BYTES = 6144
"""Exponents under one Huffman table: one layer's keys, or its values, in a page of SmolLM2-135M. Other models lose
about 1 % by a cut that falls elsewhere. Smaller: tables outweigh what they save. Larger: they fit nothing well."""
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, target_length=0, min_match=7, hash_log=6
)
_LENGTH = struct.Struct(">I")
# A page is at most a bulk frame; zstd refuses frames that ask for a larger window.
_WINDOW_BYTES_MAX = 8 << 20


@dataclass(frozen=True, slots=True)
class Encoded:
    """A page's payload and the codec that made it, as `frames.PageFrame` carries them."""

    codec: int
    payload: bytes


def encode(raw: bytes) -> Encoded:
    """The shortest of what we have for these bytes. Never longer than `raw`."""
    if not raw or len(raw) % 2:
        return Encoded(RAW, raw)
    exponents, rest = _split(raw)
    packed = _pack(exponents)
    if _LENGTH.size + len(packed) + len(rest) >= len(raw):
        return Encoded(RAW, raw)
    return Encoded(PLANES, b"".join((_LENGTH.pack(len(packed)), packed, rest)))


def decode(codec: int, payload: bytes, raw_bytes: int) -> bytes:
    """The page, which has exactly `raw_bytes`. Raises PeerError for anything else."""
    if codec == RAW:
        if len(payload) != raw_bytes:
            raise errors.PeerError("a raw page of another size than it says")
        return payload
    if codec != PLANES:
        raise errors.PeerError(f"unknown page codec {codec}")
    return _join(*_planes(payload, raw_bytes))


def _pack(exponents: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(compression_params=_PARAMETERS).compressobj(size=len(exponents))
    pieces: list[bytes] = []
    for start in range(0, len(exponents), _BLOCK_BYTES):
        pieces.append(packer.compress(exponents[start : start + _BLOCK_BYTES]))
        pieces.append(packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    pieces.append(packer.flush())
    return b"".join(pieces)


def _planes(payload: bytes, raw_bytes: int) -> tuple[bytes, memoryview]:
    """Exponents and the rest, each half of the page."""
    plane_bytes = raw_bytes // 2
    packed_bytes = len(payload) - _LENGTH.size - plane_bytes
    if raw_bytes % 2 or packed_bytes < 0 or _LENGTH.unpack_from(payload)[0] != packed_bytes:
        raise errors.PeerError("page planes of another size than the page")
    packed = payload[_LENGTH.size : _LENGTH.size + packed_bytes]
    try:
        if zstandard.frame_content_size(packed) != plane_bytes:
            raise errors.PeerError("an exponent plane of another size than the page")
        exponents = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX).decompress(
            packed, max_output_size=plane_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as fault:
        raise errors.PeerError(f"an exponent plane that is not zstd: {fault}") from None
    if len(exponents) != plane_bytes:
        raise errors.PeerError("an exponent plane shorter than it says")
    return exponents, memoryview(payload)[_LENGTH.size + packed_bytes :]


def _split(raw: bytes) -> tuple[bytes, bytes]:
    """The plane of exponents, and the plane of sign (bit 7) and mantissa (bits 0 to 6)."""
    words: npt.NDArray[np.uint16] = np.frombuffer(raw, dtype="<u2")
    exponents = (words >> 7).astype(np.uint8)  # the cast drops the sign
    rest = words.astype(np.uint8)
    rest &= 0x7F
    rest |= (words >> 8).astype(np.uint8) & 0x80
    return exponents.tobytes(), rest.tobytes()


def _join(exponents: bytes, rest: memoryview) -> bytes:
    high = np.frombuffer(exponents, dtype=np.uint8)
    low = np.frombuffer(rest, dtype=np.uint8)
    octets = np.empty((len(high), 2), dtype=np.uint8)  # [word, little end first]
    octets[:, 0] = (high << 7) | (low & 0x7F)
    octets[:, 1] = (high >> 1) | (low & 0x80)
    return octets.tobytes()
