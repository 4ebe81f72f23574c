"""Where pages wait whose session had to make room: files in a folder of this process, or memory.

The idea: a node's owner said how much memory KV may take, so what does not fit goes to disk. Pages are packed as they
are for the mesh (snapshots/codec.py: exactly, a third smaller), because less to write is faster to write. The index is
in memory and the folder is emptied at opening: nothing here outlives the process, since after a restart the log and
the replicas know better. A digest of each page is in the index as well: a disk that rots costs a session the time to
compute its pages again, and no token is ever drawn from what it made of them.

A full disk is no fault: the page stays in memory, and somebody else is told that memory is full.
Rejected: swap (the kernel picks pages of everybody, weights first); memory alone, which would be KV memory by another
name; a file a session (pages come and go one by one, and its holes would be nobody's). `MemorySpill` is for engines
without a folder, and bounded like the other.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from meshnode import errors, ids
from meshnode.snapshots import codec


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is known of a page without reading it."""

    size: int
    codec: int
    raw_bytes: int
    digest: ids.Digest


class _Index:
    """What is kept, and how much of the budget is left."""

    def __init__(self, bytes_max: int) -> None:
        self.room = bytes_max
        self._kept: dict[ids.SessionId, dict[int, _Kept]] = {}

    def add(self, session: ids.SessionId, page_index: int, packed: codec.Encoded, page: bytes) -> bool:
        """False, and nothing is changed, if the budget does not allow it."""
        assert page_index not in self._kept.get(session, {}), "a page was spilled twice"
        size = len(packed.payload)
        if size > self.room:
            return False
        kept = _Kept(size, packed.codec, len(page), ids.digest(page))
        self._kept.setdefault(session, {})[page_index] = kept
        self.room -= size
        return True

    def remove(self, session: ids.SessionId, page_index: int) -> bool:
        """Whether it was there."""
        kept = self._kept.get(session, {}).pop(page_index, None)
        if not self._kept.get(session):
            self._kept.pop(session, None)
        self.room += kept.size if kept else 0
        return kept is not None

    def pages(self, session: ids.SessionId) -> list[int]:
        return list(self._kept.get(session, {}))

    def unpacked(self, session: ids.SessionId, page_index: int, payload: bytes) -> bytes:
        kept = self._kept[session][page_index]
        try:
            page = codec.decode(kept.codec, payload, kept.raw_bytes)
        except errors.PeerError as error:
            raise errors.EngineError(f"a spilled page is damaged: {error}") from None
        if ids.digest(page) != kept.digest:
            raise errors.EngineError("a spilled page is damaged")
        return page


class FolderSpill:
    """One file a page. The folder belongs to this process: what is in it at opening is removed."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Raises ConfigError if the folder cannot be made."""
        self._folder = folder
        self._index = _Index(bytes_max)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise errors.ConfigError(f"the spill folder {folder} cannot be made: {error}") from None

    def keep(self, session: ids.SessionId, page_index: int, page: bytes) -> bool:
        """A page; False if there is no room for it."""
        packed = codec.encode(page)
        if not self._index.add(session, page_index, packed, page):
            return False
        try:
            self._path(session, page_index).write_bytes(packed.payload)
        except OSError:
            self.forget(session, page_index)
            return False
        return True

    def read(self, session: ids.SessionId, page_index: int) -> bytes:
        """A page that is kept. Raises EngineError if the disk lost it."""
        try:
            payload = self._path(session, page_index).read_bytes()
        except OSError as error:
            raise errors.EngineError(f"a spilled page cannot be read: {error}") from None
        return self._index.unpacked(session, page_index, payload)

    def forget(self, session: ids.SessionId, page_index: int) -> None:
        """A page that is not needed any more. Unknown ones are fine."""
        if self._index.remove(session, page_index):
            with contextlib.suppress(OSError):
                self._path(session, page_index).unlink(missing_ok=True)

    def drop(self, session: ids.SessionId) -> None:
        """All pages of a session. Unknown ones are fine."""
        for page_index in self._index.pages(session):
            self.forget(session, page_index)

    def room(self) -> int:
        """Bytes of the budget that are left."""
        return self._index.room

    def _path(self, session: ids.SessionId, page_index: int) -> Path:
        return self._folder / f"{session.hex()}-{page_index}"


class MemorySpill:
    """The same in memory that is not the pool's."""

    def __init__(self, bytes_max: int) -> None:
        self._index = _Index(bytes_max)
        self._payloads: dict[tuple[ids.SessionId, int], bytes] = {}

    def keep(self, session: ids.SessionId, page_index: int, page: bytes) -> bool:
        """See FolderSpill."""
        packed = codec.encode(page)
        if not self._index.add(session, page_index, packed, page):
            return False
        self._payloads[session, page_index] = packed.payload
        return True

    def read(self, session: ids.SessionId, page_index: int) -> bytes:
        """See FolderSpill."""
        return self._index.unpacked(session, page_index, self._payloads[session, page_index])

    def forget(self, session: ids.SessionId, page_index: int) -> None:
        """See FolderSpill."""
        if self._index.remove(session, page_index):
            del self._payloads[session, page_index]

    def drop(self, session: ids.SessionId) -> None:
        """See FolderSpill."""
        for page_index in self._index.pages(session):
            self.forget(session, page_index)

    def room(self) -> int:
        """See FolderSpill."""
        return self._index.room
