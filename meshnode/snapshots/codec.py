"""Page bytes to fewer bytes and back, exactly.

A page is bf16 words. Neighbouring words share their order of magnitude and nothing else: the eight exponent bits are
worth compressing, the sign and the seven mantissa bits are noise. So the words are regrouped into two planes of
bytes, the exponents go through zstd level 1 and the other plane as it is. On real KV this gives all of the gain that
compressing both planes gives, at twice the speed; level 3 is slower and no smaller.

The decoder knows the size of the page before it starts. It compares it with the size that the zstd frame claims
*before* memory is taken (python-zstandard's `max_output_size` is ignored when the frame names a size, which makes it
no limit).

It refuses to be lossy: a lossy page would make an honest failover look like cheating. Pages that do not shrink, and
sizes that are not whole words, are stored raw.

Pure (numpy, zstandard). Rejected: a Huffman coder of our own (Python), and channel-major order (no better, see
DESIGN.md).
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

_LEVEL = 1
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
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(exponents)
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
