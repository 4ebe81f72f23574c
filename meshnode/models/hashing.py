"""The listing of a model that lies here: made once by reading the three files, then kept beside them.

The file `listing` is derived: it is believed only if its digest is the one that the model's card names, and made anew
if it is not there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from meshnode import errors, ids
from meshnode.chunks import listing

LISTING = "listing"


def read(folder: Path) -> listing.Listing:
    """By reading every byte. Raises OSError as the disk does, StoreError for sizes that no model has."""
    sizes, digests = [], []
    for name in listing.FILES:
        size = 0
        with (folder / name).open("rb") as file:
            while chunk := file.read(listing.CHUNK_BYTES):
                size += len(chunk)
                digests.append(hashlib.blake2b(chunk, digest_size=ids.DIGEST_BYTES).digest())
        sizes.append(size)
    try:
        return listing.decode(listing.Listing(tuple(sizes), b"".join(digests)).encode())
    except errors.PeerError as error:  # in our own words about our own file
        raise errors.StoreError(f"{folder.name}: {error}") from None


def kept(folder: Path, digest: ids.Digest) -> listing.Listing:
    """The listing beside the files, if it is that of the digest; else by reading. Raises StoreError."""
    try:
        found = listing.decode((folder / LISTING).read_bytes())
        if found.digest == digest:
            return found
    except (OSError, errors.PeerError):
        pass
    try:
        found = read(folder)
    except OSError as error:
        raise errors.StoreError(f"{folder.name} cannot be read: {error}") from None
    if found.digest != digest:
        raise errors.StoreError(f"the files of {folder.name} are not those that were written; remove it")
    return found
