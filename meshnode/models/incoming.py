"""A model that is being fetched: its folder DIGEST.new, and how it becomes one like the others.

    DIGEST.new/listing              checked against the digest before it is written
    DIGEST.new/weights.safetensors  at its full size from the first, with holes where chunks are missing
    DIGEST.new/config.json, tokenizer.json

The idea: the files themselves are the record of what is here. A fetch that goes on after a break, or after a crash of
the machine, hashes every chunk that is not a hole and keeps what is right; nothing that was written without a sync is
believed, and there is no second record to contradict the first. Hashing takes a second for each GB.

Then, once every chunk is here, the model is tried as any stranger's (vetting.py), synced, and named by one rename. A
model that is not one, though each chunk is what the digest says, is thrown away: another fetch would bring the same.

Rejected: a bitmap (it needs a sync of the data before each of its own); appending in order (one slow source would hold
up all others).
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from meshnode import errors, ids
from meshnode.chunks import listing
from meshnode.models import hashing, store, vetting

SPARE_BYTES = 64 << 20
"""Of the disk, to be left free beside the model."""


class Incoming:
    """A model on its way into the folder of models. Blocks: call it from a thread, one call at a time."""

    def __init__(self, models: store.Models, digest: ids.Digest) -> None:
        self.folder = models.folder / f"{digest.hex()}.new"
        self._models = models
        self._digest = digest
        self._listing: listing.Listing | None = None
        self._numbers: list[int] = []

    def prepare(self, whole: listing.Listing) -> frozenset[int]:
        """See freight.Store."""
        assert whole.digest == self._digest
        try:
            self._check_room(whole)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / hashing.LISTING).write_bytes(whole.encode())
            for name, size in zip(listing.FILES, whole.sizes, strict=True):
                self._numbers.append(os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644))
                os.ftruncate(self._numbers[-1], size)
            self._listing = whole
            return frozenset(index for index in range(whole.chunk_count) if self._has(whole, index))
        except OSError as error:
            raise errors.StoreError(f"{self.folder.name} cannot be written: {error.strerror}") from None

    def keep(self, index: int, data: bytes) -> None:
        """See freight.Store."""
        assert self._listing is not None
        chunk = self._listing.chunk(index)
        assert len(data) == chunk.size
        try:
            written = os.pwrite(self._numbers[chunk.file], data, chunk.start)
        except OSError as error:
            raise errors.StoreError(f"{self.folder.name} cannot be written: {error.strerror}") from None
        if written != len(data):
            raise errors.StoreError(f"{self.folder.name} cannot be written: the disk took {written} bytes of a chunk")

    def close(self) -> None:
        """What is here stays, for a fetch that goes on."""
        for number in self._numbers:
            os.close(number)
        self._numbers.clear()

    def install(self, name: str) -> store.Installed:
        """Try it, sync it, name it. Raises EngineError or StoreError for what is no model, ConfigError for a name that
        was taken meanwhile."""
        assert self._listing is not None
        self.close()
        try:
            vetting.check(self.folder)
        except (errors.EngineError, errors.StoreError):
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self._models.adopt(self.folder, name, self._listing)

    def _check_room(self, whole: listing.Listing) -> None:
        above = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        here_bytes = sum(path.stat().st_blocks * 512 for path in self.folder.glob("*"))
        needed_bytes = whole.total_bytes - here_bytes + SPARE_BYTES
        free_bytes = shutil.disk_usage(above).free
        if free_bytes < needed_bytes:
            sizes = f"{needed_bytes / 1e6:.0f} MB are needed and {free_bytes / 1e6:.0f} MB free"
            raise errors.StoreError(f"no room for a model of {whole.total_bytes / 1e6:.0f} MB at {above}: {sizes}")

    def _has(self, whole: listing.Listing, index: int) -> bool:
        chunk = whole.chunk(index)
        number = self._numbers[chunk.file]
        try:
            if os.lseek(number, chunk.start, os.SEEK_DATA) >= chunk.start + chunk.size:
                return False
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                return False
            raise
        return whole.holds(index, os.pread(number, chunk.size, chunk.start))


def left(models_folder: Path) -> list[str]:
    """Fetches that broke off, as the names of their folders: what `meshnode models list` shows beside the models."""
    return sorted(path.name for path in models_folder.glob(f"{'[0-9a-f]' * 64}.new"))
