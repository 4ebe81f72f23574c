"""The listing and the digest over it, and the frames in which it and the chunks travel."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors, ids
from meshnode.chunks import frames, listing
from meshnode.models import hashing

DIGEST = ids.digest(b"a model")


def of(sizes: tuple[int, ...]) -> listing.Listing:
    """A listing of files that are nothing but zeros."""
    digests = []
    for size in sizes:
        for start in range(0, size, listing.CHUNK_BYTES):
            data = bytes(min(listing.CHUNK_BYTES, size - start))
            digests.append(hashlib.blake2b(data, digest_size=32).digest())
    return listing.Listing(sizes, b"".join(digests))


SIZES = (2 * listing.CHUNK_BYTES + 5, 7, listing.CHUNK_BYTES)


def test_chunks_follow_each_other_file_after_file() -> None:
    whole = of(SIZES)
    chunks = [whole.chunk(index) for index in range(whole.chunk_count)]
    mib = listing.CHUNK_BYTES
    assert chunks == [
        listing.Chunk(0, 0, mib), listing.Chunk(0, mib, mib), listing.Chunk(0, 2 * mib, 5),
        listing.Chunk(1, 0, 7), listing.Chunk(2, 0, mib),
    ]  # fmt: skip
    assert sum(chunk.size for chunk in chunks) == whole.total_bytes


def test_a_chunk_is_told_from_another_of_its_size() -> None:
    whole = of(SIZES)
    assert whole.holds(3, bytes(7))
    assert not whole.holds(3, bytes(6) + b"\1")
    assert not whole.holds(2, bytes(7))


def test_the_digest_covers_sizes_and_every_chunk() -> None:
    digests = {of(SIZES).digest, of((SIZES[0] - 1, 7, SIZES[2])).digest, of((7, 7, 7)).digest}
    body = of(SIZES).encode()
    digests |= {listing.decode(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]).digest for at in (24, len(body) - 1)}
    assert len(digests) == 5


def test_a_folder_is_listed_as_its_bytes_say(tmp_path: Path) -> None:
    for name, size in zip(listing.FILES, SIZES, strict=True):
        (tmp_path / name).write_bytes(bytes(size))
    assert hashing.read(tmp_path) == of(SIZES)


def test_a_listing_that_was_changed_on_disk_is_made_anew(tmp_path: Path) -> None:
    for name, size in zip(listing.FILES, SIZES, strict=True):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / hashing.LISTING).write_bytes(of((1, 1, 1)).encode())
    assert hashing.kept(tmp_path, of(SIZES).digest) == of(SIZES)
    with pytest.raises(errors.StoreError, match="not those that were written"):
        hashing.kept(tmp_path, DIGEST)


@given(st.tuples(*[st.integers(1, 5 * listing.CHUNK_BYTES)] * 2, st.integers(1, 5 * listing.CHUNK_BYTES)))
def test_a_listing_is_written_and_read_back(sizes: tuple[int, ...]) -> None:
    sizes = (sizes[0], min(sizes[1], listing.FILE_BYTES_MAX[1]), sizes[2])
    count = sum(map(listing.chunks_in, sizes))
    whole = listing.Listing(sizes, bytes(count * ids.DIGEST_BYTES))
    assert listing.decode(whole.encode()) == whole


@given(st.binary(max_size=400))
def test_no_bytes_are_a_listing_by_chance(data: bytes) -> None:
    with pytest.raises(errors.PeerError):
        listing.decode(data)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), ((1 << 40) + 1, 1, 1), (1, 1 << 30, 1), (1, 1, 1 << 30)])
def test_sizes_that_no_model_has_are_refused_before_anything_is_made_for_them(sizes: tuple[int, ...]) -> None:
    claimed = b"".join(size.to_bytes(8, "big") for size in sizes)
    with pytest.raises(errors.PeerError):
        listing.decode(claimed + bytes(96))


@given(st.binary(max_size=64), st.integers(-1, (1 << 31) - 1))
def test_a_frame_is_packed_and_unpacked(payload: bytes, index: int) -> None:
    frame = frames.ChunkFrame(DIGEST, index, payload)
    assert frames.unpack(frames.pack(frame)) == frame


@given(st.binary(max_size=80))
def test_no_bytes_are_a_frame_by_chance(data: bytes) -> None:
    with pytest.raises(errors.PeerError):
        frames.unpack(data)


def test_the_longest_listing_fits_its_lane() -> None:
    count = (listing.LISTING_BYTES_MAX - 24) // ids.DIGEST_BYTES
    whole = listing.Listing(((count - 2) * listing.CHUNK_BYTES, 1, 1), bytes(count * ids.DIGEST_BYTES))
    assert listing.decode(whole.encode()) == whole
    assert whole.total_bytes > 250 << 30
