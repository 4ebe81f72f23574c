"""One page as it travels on the bulk lane and as it lies on disk: the same bytes, checked the same way.

A fixed header, the payload, and BLAKE2b-256 over both. The checksum finds accidents (a torn file, a flipped bit); it
proves nothing about who made the page, which is the link's business today and the seal's tomorrow. Header and
checksum are checked before anything is decoded, and no length in it is believed before it is compared with a limit.

Everything that is off is a PeerError. A reader who holds a file instead of a peer's frame treats it the same way:
drop it.

Rejected: CBOR around the payload (copies a page twice, and a fixed header is simpler to refuse), and a CRC (cheap, but
the same file is later served to others as "what the host sealed").
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from meshnode import errors, ids, ports

MAGIC = b"MNPG"
VERSION = 1

# magic, version, codec, zero, page index, epoch, session, address, parent, raw bytes, payload bytes
_HEADER = struct.Struct(">4sBBHIQ16s32s32sII")
HEADER_BYTES = _HEADER.size
CHECKSUM_BYTES = 32
OVERHEAD_BYTES = HEADER_BYTES + CHECKSUM_BYTES
CODECS_MAX = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What a page may take. Known before any frame arrives: the engine's card fixes the size of a page."""

    raw_bytes_max: int = 8 << 20
    """Bytes of a decoded page. Raise it for models with larger pages; each worker holds one such buffer."""
    payload_bytes_max: int = ports.FRAME_BYTES_MAX[ports.Lane.BULK] - OVERHEAD_BYTES
    """Bytes as shipped. A frame above the bulk lane's limit could not be sent at all."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class PageFrame:
    """A page of a session, encoded by `codec`, under the epoch in which it was sealed."""

    session: ids.SessionId
    epoch: int
    page_index: int
    address: ids.Digest
    parent: ids.Digest
    """The address of the page before it; of page 0, the genesis. A replica checks the chain without the key."""
    codec: int
    raw_bytes: int
    """Size once decoded: what the decoder allocates, and not a byte more."""
    payload: bytes


def pack(frame: PageFrame) -> bytes:
    """Bytes for the lane or the disk. A field out of range is our own fault."""
    assert len(frame.session) == ids.SESSION_BYTES
    assert len(frame.address) == len(frame.parent) == ids.DIGEST_BYTES
    assert 0 <= frame.codec < CODECS_MAX
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        frame.codec,
        0,
        frame.page_index,
        frame.epoch,
        frame.session,
        frame.address,
        frame.parent,
        frame.raw_bytes,
        len(frame.payload),
    )
    return b"".join((head, frame.payload, _checksum(head, frame.payload)))


def unpack(data: bytes, limits: Limits = DEFAULT_LIMITS) -> PageFrame:
    """The frame in `data`, all of it. Raises PeerError for anything else."""
    if not OVERHEAD_BYTES <= len(data) <= OVERHEAD_BYTES + limits.payload_bytes_max:
        raise errors.PeerError(f"a page frame of {len(data)} bytes")
    magic, version, codec, zero, index, epoch, session, address, parent, raw_bytes, payload_bytes = _HEADER.unpack_from(
        data
    )
    if magic != MAGIC or version != VERSION or zero:
        raise errors.PeerError(f"not a page frame of version {VERSION}")
    if raw_bytes > limits.raw_bytes_max:
        raise errors.PeerError(f"a page of {raw_bytes} bytes, above {limits.raw_bytes_max}")
    if payload_bytes != len(data) - OVERHEAD_BYTES:
        raise errors.PeerError("a page frame of another length than it says")
    view = memoryview(data)
    payload = view[HEADER_BYTES:-CHECKSUM_BYTES]
    if _checksum(view[:HEADER_BYTES], payload) != view[-CHECKSUM_BYTES:]:
        raise errors.PeerError("a page frame with a wrong checksum")
    return PageFrame(
        session=ids.SessionId(session),
        epoch=epoch,
        page_index=index,
        address=ids.Digest(address),
        parent=ids.Digest(parent),
        codec=codec,
        raw_bytes=raw_bytes,
        payload=bytes(payload),
    )


def _checksum(head: bytes | memoryview, payload: bytes | memoryview) -> bytes:
    state = hashlib.blake2b(head, digest_size=CHECKSUM_BYTES)
    state.update(payload)
    return state.digest()
