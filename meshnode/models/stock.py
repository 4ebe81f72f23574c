"""What this node can give to others: chunks of installed models, by digest.

The models are looked up anew for each look at the shelf, so one that was added or removed meanwhile is given or not
from then on. A chunk is read from the file, hashed and compared: a disk that forgets is found here, and is not taken
for our lie by whoever asked.
"""

from __future__ import annotations

from meshnode import errors, ids
from meshnode.chunks import frames, listing
from meshnode.chunks.messages import Shelved
from meshnode.models import hashing, store


class Stock:
    """Models of one folder. Blocks: call it from a thread, one call at a time."""

    def __init__(self, models: store.Models) -> None:
        self._models = models
        self._known: dict[ids.Digest, tuple[store.Installed, listing.Listing]] = {}

    def look(self) -> tuple[Shelved, ...]:
        """What is there now and whole. Two names of one model are one of them."""
        found: dict[ids.Digest, Shelved] = {}
        for one in self._models.list():
            found.setdefault(one.digest, Shelved(one.name, one.digest, one.disk_bytes))
        self._known = {digest: known for digest, known in self._known.items() if digest in found}
        return tuple(found.values())

    def read(self, digest: ids.Digest, index: int) -> bytes:
        """See freight.Stock."""
        model, whole = self._known.get(digest) or self._open(digest)
        if index == frames.LISTING:
            return whole.encode()
        if not 0 <= index < whole.chunk_count:
            raise errors.PeerError(f"chunk {index} of {whole.chunk_count}")
        chunk = whole.chunk(index)
        try:
            with (model.folder / listing.FILES[chunk.file]).open("rb") as file:
                file.seek(chunk.start)
                data = file.read(chunk.size)
        except OSError as error:
            raise errors.StoreError(f"{model.name} cannot be read: {error}") from None
        if not whole.holds(index, data):
            raise errors.StoreError(f"the files of {model.name} are not those that were written; remove it")
        return data

    def _open(self, digest: ids.Digest) -> tuple[store.Installed, listing.Listing]:
        model = next((one for one in self._models.list() if one.digest == digest), None)
        if model is None:
            raise errors.StoreError("that model is not here any more")
        self._known[digest] = (model, hashing.kept(model.folder, digest))
        return self._known[digest]
