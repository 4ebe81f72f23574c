"""Where the pages of a preempted session wait: one file each in a folder of this process, or memory.

The idea: a node's owner said how much memory KV may take, so what does not fit goes to disk. Pages are packed as they
are for the mesh (snapshots/codec.py: exactly, a third smaller), because less to write is faster to write. The index is
in memory and the folder is emptied at opening: nothing here outlives the process, since after a restart the log and
the replicas know better. A digest of each page is in the index as well: a disk that rots costs a session the time to
compute its pages again, and no token is ever drawn from what it made of them.

A full disk is no fault: the session stays in memory, and somebody else is told that memory is full.
Rejected: swap (the kernel picks pages of everybody, weights first); memory alone, which would be KV memory by another
name. `MemorySpill` is for engines without a folder, and bounded like the other.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode import errors, ids
from meshnode.snapshots import codec


@dataclass(frozen=True, slots=True)
class _Place:
    """A page in its session's file."""

    start: int
    size: int
    codec: int
    raw_bytes: int
    digest: ids.Digest


class _Index:
    """What is where, and how much of the budget is left."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._places: dict[ids.SessionId, list[_Place]] = {}

    def add(self, session: ids.SessionId, packed: Sequence[codec.Encoded], raw: Sequence[bytes]) -> bool:
        """False, and nothing is changed, if the budget does not allow it."""
        assert session not in self._places, "a session was spilled twice"
        size = sum(len(one.payload) for one in packed)
        if self._bytes + size > self._bytes_max:
            return False
        start, places = 0, []
        for one, page in zip(packed, raw, strict=True):
            places.append(_Place(start, len(one.payload), one.codec, len(page), ids.digest(page)))
            start += len(one.payload)
        self._places[session] = places
        self._bytes += size
        return True

    def remove(self, session: ids.SessionId) -> bool:
        places = self._places.pop(session, None)
        self._bytes -= sum(place.size for place in places or ())
        return places is not None

    @property
    def room(self) -> int:
        return self._bytes_max - self._bytes

    def place(self, session: ids.SessionId, page_index: int) -> _Place:
        return self._places[session][page_index]


def _unpacked(place: _Place, payload: bytes) -> bytes:
    try:
        page = codec.decode(place.codec, payload, place.raw_bytes)
    except errors.PeerError as error:
        raise errors.EngineError(f"a spilled page is damaged: {error}") from None
    if ids.digest(page) != place.digest:
        raise errors.EngineError("a spilled page is damaged")
    return page


class FolderSpill:
    """One file a session. The folder belongs to this process: what is in it at opening is removed."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Raises ConfigError if the folder cannot be made."""
        self._folder = folder
        self._index = _Index(bytes_max)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise errors.ConfigError(f"the spill folder {folder} cannot be made: {error}") from None

    def keep(self, session: ids.SessionId, pages: Sequence[bytes]) -> bool:
        """All of a session's pages; False if there is no room for them."""
        packed = [codec.encode(page) for page in pages]
        if not self._index.add(session, packed, pages):
            return False
        try:
            self._path(session).write_bytes(b"".join(one.payload for one in packed))
        except OSError:
            self.drop(session)
            return False
        return True

    def read(self, session: ids.SessionId, page_index: int) -> bytes:
        """One page of a session that is kept. Raises EngineError if the disk lost it."""
        place = self._index.place(session, page_index)
        try:
            with self._path(session).open("rb") as file:
                file.seek(place.start)
                return _unpacked(place, file.read(place.size))
        except OSError as error:
            raise errors.EngineError(f"a spilled page cannot be read: {error}") from None

    def drop(self, session: ids.SessionId) -> None:
        """Forget a session. Unknown ones are fine."""
        if self._index.remove(session):
            with contextlib.suppress(OSError):
                self._path(session).unlink(missing_ok=True)

    def room(self) -> int:
        """Bytes of pages that are kept for sure."""
        return self._index.room

    def _path(self, session: ids.SessionId) -> Path:
        return self._folder / session.hex()


class MemorySpill:
    """The same in memory that is not the pool's."""

    def __init__(self, bytes_max: int) -> None:
        self._index = _Index(bytes_max)
        self._payloads: dict[ids.SessionId, bytes] = {}

    def keep(self, session: ids.SessionId, pages: Sequence[bytes]) -> bool:
        """See FolderSpill."""
        packed = [codec.encode(page) for page in pages]
        if not self._index.add(session, packed, pages):
            return False
        self._payloads[session] = b"".join(one.payload for one in packed)
        return True

    def read(self, session: ids.SessionId, page_index: int) -> bytes:
        """See FolderSpill."""
        place = self._index.place(session, page_index)
        return _unpacked(place, self._payloads[session][place.start : place.start + place.size])

    def drop(self, session: ids.SessionId) -> None:
        """See FolderSpill."""
        if self._index.remove(session):
            del self._payloads[session]

    def room(self) -> int:
        """See FolderSpill."""
        return self._index.room
