"""A listing or a chunk as it travels on the bulk lane: a fixed header and the bytes.

Neither signed nor summed up: the link says who sent it, and the model's digest whether it is right. Beside pages on the
same lane it is told apart by its first four bytes.

Rejected: an envelope, which would decode, encode and sign a megabyte on the event loop, for nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from meshnode import errors, ids

MAGIC = b"MNCH"
VERSION = 1
LISTING = -1
"""Instead of a chunk's number: the listing itself."""

# magic, version, zeros, chunk, digest
_HEADER = struct.Struct(">4sB3xi32s")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """Bytes of the model that has this digest."""

    digest: ids.Digest
    index: int
    """A chunk's number, or LISTING."""
    payload: bytes


def pack(frame: ChunkFrame) -> bytes:
    """Bytes for the lane."""
    assert frame.index >= LISTING
    return _HEADER.pack(MAGIC, VERSION, frame.index, frame.digest) + frame.payload


def unpack(data: bytes) -> ChunkFrame:
    """Raises PeerError for what is no such frame."""
    if len(data) < HEADER_BYTES:
        raise errors.PeerError("a frame of weights that ends in its header")
    magic, version, index, digest = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or data[5:8] != bytes(3):
        raise errors.PeerError("not a frame of weights that is spoken here")
    if index < LISTING:
        raise errors.PeerError(f"a chunk of the number {index}")
    return ChunkFrame(ids.Digest(digest), index, data[HEADER_BYTES:])
