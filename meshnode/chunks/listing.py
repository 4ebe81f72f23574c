"""What a model is, chunk by chunk, and the digest by which the mesh names it.

The idea: a model is three files, in this order. The listing is their sizes and a digest of each chunk; the model's
digest is the digest of the listing. Whoever holds the digest can therefore check a listing before anything is fetched
by it, and each chunk the moment it comes, from whomever it comes.

Rejected: a Merkle tree (a listing is 32 bytes a MiB and fits one frame up to 255 GiB of weights, so there is nothing to
prove in parts); a digest over the digests of whole files, which shows a lie after the last byte, and not whose it was.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from meshnode import errors, ids, ports
from meshnode.chunks import frames

FILES = ("weights.safetensors", "config.json", "tokenizer.json")
FILE_BYTES_MAX = (1 << 40, 4 << 20, 64 << 20)
"""A tokenizer of a quarter of a million tokens has 20 MB."""
CHUNK_BYTES = 1 << 20
"""Larger: fewer questions, but more is lost with a peer, and signalling waits longer beside it. Part of the digest."""
LISTING_BYTES_MAX = ports.FRAME_BYTES_MAX[ports.Lane.BULK] - frames.HEADER_BYTES
_DOMAIN = b"meshnode model 1"
_SIZES = struct.Struct(f">{len(FILES)}Q")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a chunk lies: bytes from `start` on of FILES[file]."""

    file: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Sizes of the files in bytes, and the chunks' digests, file after file, in one piece."""

    sizes: tuple[int, ...]
    digests: bytes

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(FILES)
        assert len(self.digests) == sum(map(chunks_in, self.sizes)) * ids.DIGEST_BYTES

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)

    @property
    def chunk_count(self) -> int:
        return len(self.digests) // ids.DIGEST_BYTES

    def chunk(self, index: int) -> Chunk:
        """Where the chunk of this number lies."""
        assert 0 <= index < self.chunk_count
        file = 0
        while index >= chunks_in(self.sizes[file]):
            index -= chunks_in(self.sizes[file])
            file += 1
        start = index * CHUNK_BYTES
        return Chunk(file, start, min(CHUNK_BYTES, self.sizes[file] - start))

    def holds(self, index: int, data: bytes) -> bool:
        """Whether these are the chunk's bytes."""
        found = hashlib.blake2b(data, digest_size=ids.DIGEST_BYTES).digest()
        return found == self.digests[index * ids.DIGEST_BYTES : (index + 1) * ids.DIGEST_BYTES]

    def encode(self) -> bytes:
        """The bytes that the model's digest covers."""
        return _SIZES.pack(*self.sizes) + self.digests

    @property
    def digest(self) -> ids.Digest:
        """The model's."""
        return ids.digest(_DOMAIN, self.encode())


def chunks_in(size: int) -> int:
    """How many chunks a file of so many bytes has."""
    return -(-size // CHUNK_BYTES)


def decode(data: bytes) -> Listing:
    """Raises PeerError for what is no listing. Only the digest shows whether it is the right one."""
    if not _SIZES.size <= len(data) <= LISTING_BYTES_MAX:
        raise errors.PeerError(f"a listing of {len(data)} bytes")
    sizes = _SIZES.unpack_from(data)
    for name, size, most in zip(FILES, sizes, FILE_BYTES_MAX, strict=True):
        if not 1 <= size <= most:
            raise errors.PeerError(f"{name} of {size} bytes, {most} at most")
    if len(data) - _SIZES.size != sum(map(chunks_in, sizes)) * ids.DIGEST_BYTES:
        raise errors.PeerError("a listing whose digests are not as many as its chunks")
    return Listing(sizes, data[_SIZES.size :])
