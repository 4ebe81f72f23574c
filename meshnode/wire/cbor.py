"""Deterministic CBOR (RFC 8949, section 4.2), read strictly.

cbor2 reads more than it writes: duplicate map keys, non-minimal integers, indefinite lengths, tags and trailing bytes
all pass. Two encodings of one value would let a signed thing have two digests, so what was decoded is encoded again and
must give the same bytes. Twice the work, on messages of a few hundred bytes.
"""

from __future__ import annotations

import io
from typing import Any

import cbor2

from meshnode import errors

DEPTH_MAX = 12
"""Arrays within arrays. Ours need five; deeper is an attack on the stack."""

_PLAIN = (int, float, str, bytes, bool, type(None))
_HEAD_BYTES = {24: 1, 25: 2, 26: 4, 27: 8}


def encode(value: Any) -> bytes:
    """Deterministic bytes of None, bool, int, float, str, bytes, and lists, tuples and dicts of them."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes) -> Any:
    """The value, if `data` is exactly its deterministic encoding. Raises PeerError."""
    _scan(data)
    try:
        value = cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise errors.PeerError(f"not CBOR: {error}") from error
    if not _plain(value) or encode(value) != data:
        raise errors.PeerError("not deterministic CBOR")
    return value


def _scan(data: bytes) -> None:
    """Walk the heads alone, so that no length is believed before the bytes for it are there."""
    stream = io.BytesIO(data)
    remaining = [1]
    while remaining:
        if remaining[-1] == 0:
            remaining.pop()
            continue
        remaining[-1] -= 1
        major, count = _head(stream)
        left = len(data) - stream.tell()
        if major in (2, 3):
            if count > left:
                raise errors.PeerError("CBOR string runs past the end")
            stream.seek(count, io.SEEK_CUR)
        elif major in (4, 5):
            items = count * (major - 3)
            if items > left or len(remaining) > DEPTH_MAX:
                raise errors.PeerError("CBOR container runs past the end or is nested too deeply")
            remaining.append(items)
        elif major == 6:
            raise errors.PeerError("CBOR tags are not spoken here")
    if stream.tell() != len(data):
        raise errors.PeerError("bytes after the CBOR value")


def _head(stream: io.BytesIO) -> tuple[int, int]:
    first = stream.read(1)
    if not first:
        raise errors.PeerError("CBOR ends early")
    major, low = first[0] >> 5, first[0] & 31
    if low < 24:
        return major, low
    if low not in _HEAD_BYTES:
        raise errors.PeerError("indefinite or reserved CBOR length")
    extra = stream.read(_HEAD_BYTES[low])
    if len(extra) != _HEAD_BYTES[low]:
        raise errors.PeerError("CBOR ends early")
    return major, int.from_bytes(extra, "big")


def _plain(value: Any) -> bool:
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return False
