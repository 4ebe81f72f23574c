"""Pages of many sessions on one disk, such that what was acknowledged is there after a crash.

A page is one file, `pages/<session>/<address>`, and its bytes are the frame as it came: the checksum that guarded it
on the lane guards it on the disk. A file is written under `temp/`, made durable, renamed, and the rename made
durable; only then is it acknowledged. So a name under `pages/` never stands for half a page, and `get` checks all the
same, because disks rot: a page that does not verify is removed, counted and reported as missing. It is only a cache
of the log.

The store has a budget of bytes. The session that was written to longest ago gives way, whole: half a chain is of no
use.

Sync code: the caller runs it in the store's one thread. A failed write costs that page alone; the temporary file is
never synced twice, because after a failed fsync a second one may report success for data that is gone.

Rejected: a database (a second journal below ours), and one file per session (rewriting it to drop a page).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshnode import errors, ids
from meshnode.snapshots import disk, frames

_FILE_BYTES_MIN = 4096
"""What a file costs at least, so that a budget of bytes bounds the number of files too."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A page that is durable now."""

    frame: frames.PageFrame
    evicted: tuple[ids.SessionId, ...]
    """Sessions that lost their pages for it, or for a put before it that failed: their hosts must be told."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    session_count: int
    page_count: int
    used_bytes: int
    """By the budget's count: no file is cheaper than a block."""
    corrupt_count: int
    evicted_count: int


class PageStore:
    """Opening it cleans up after the last process and finds what is there; nothing is read before it is asked for."""

    def __init__(
        self, files: disk.Disk, *, budget_bytes: int = 8 << 30, limits: frames.Limits = frames.DEFAULT_LIMITS
    ) -> None:
        assert budget_bytes > 0
        self._disk = files
        self._budget_bytes = budget_bytes
        self._limits = limits
        self._sessions: dict[ids.SessionId, dict[ids.Digest, int]] = {}  # oldest first; sizes of pages
        self._used_bytes = 0  # the sum of all sizes
        self._evicted: list[ids.SessionId] = []  # given up, and not told to anyone yet: a put may fail in between
        self._temp_count = 0
        self._corrupt_count = 0
        self._evicted_count = 0
        for path, size in files.files():
            if path.startswith("temp/"):
                files.remove(path)
            elif (name := _name(path)) is not None:
                self._note(*name, size)

    def put(self, data: bytes) -> Stored:
        """Make a page frame durable. Raises PeerError if it is not one, StoreError if there is no room for it."""
        frame = frames.unpack(data, self._limits)
        cost = max(len(data), _FILE_BYTES_MIN)
        self._make_room(frame.session, cost)
        temp = f"temp/{self._temp_count}"
        self._temp_count += 1
        try:
            self._disk.write(temp, data)
            self._disk.rename(temp, _path(frame.session, frame.address))
        except errors.StoreError:
            with contextlib.suppress(errors.StoreError):  # half a page on a full disk; else the next start finds it
                self._disk.remove(temp)
            raise
        self._note(frame.session, frame.address, cost)
        evicted, self._evicted = self._evicted, []
        return Stored(frame, tuple(evicted))

    def get(self, session: ids.SessionId, address: ids.Digest) -> frames.PageFrame | None:
        """The page, verified. None if it is not here, or was torn: then it is not here any more."""
        if address not in self._sessions.get(session, {}):
            return None
        data = self._disk.read(_path(session, address))
        frame = self._verified(data, session, address)
        if frame is None:
            self._corrupt_count += 1
            self._remove(session, address)
        return frame

    def have(self, session: ids.SessionId) -> set[ids.Digest]:
        """The addresses of a session's pages. `get` may still find one of them torn."""
        return set(self._sessions.get(session, ()))

    def sessions(self) -> tuple[ids.SessionId, ...]:
        """Everything that has pages here, the one written to longest ago first."""
        return tuple(self._sessions)

    def drop(self, session: ids.SessionId) -> None:
        """Remove a session's pages. Unknown sessions are fine; after a crash some may be back: drop them again."""
        for address in self.have(session):
            self._remove(session, address)

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            session_count=len(self._sessions),
            page_count=sum(map(len, self._sessions.values())),
            used_bytes=self._used_bytes,
            corrupt_count=self._corrupt_count,
            evicted_count=self._evicted_count,
        )

    def _make_room(self, session: ids.SessionId, cost: int) -> None:
        """Evict others until `cost` fits. A session never evicts itself: its watermark would be a lie at once."""
        while self._used_bytes + cost > self._budget_bytes:
            oldest = next((other for other in self._sessions if other != session), None)
            if oldest is None:
                raise errors.StoreError(f"the page store's budget of {self._budget_bytes} bytes is too small")
            self._evicted.append(oldest)
            self._evicted_count += 1
            self.drop(oldest)

    def _verified(self, data: bytes | None, session: ids.SessionId, address: ids.Digest) -> frames.PageFrame | None:
        if data is None:
            return None
        try:
            frame = frames.unpack(data, self._limits)
        except errors.PeerError:
            return None
        return frame if (frame.session, frame.address) == (session, address) else None

    def _note(self, session: ids.SessionId, address: ids.Digest, size: int) -> None:
        """This page is there, and its session is the youngest."""
        pages = self._sessions.pop(session, {})
        cost = max(size, _FILE_BYTES_MIN)
        self._used_bytes += cost - pages.get(address, 0)
        pages[address] = cost
        self._sessions[session] = pages

    def _remove(self, session: ids.SessionId, address: ids.Digest) -> None:
        self._disk.remove(_path(session, address))
        pages = self._sessions[session]
        self._used_bytes -= pages.pop(address)
        assert self._used_bytes >= 0
        if not pages:
            del self._sessions[session]


def _path(session: ids.SessionId, address: ids.Digest) -> str:
    return f"pages/{session.hex()}/{address.hex()}"


def _name(path: str) -> tuple[ids.SessionId, ids.Digest] | None:
    """The inverse of `_path`; None for files that are not ours, which are left alone."""
    parts = path.split("/")
    if len(parts) != 3 or parts[0] != "pages":
        return None
    try:
        session, address = bytes.fromhex(parts[1]), bytes.fromhex(parts[2])
    except ValueError:
        return None
    if len(session) != ids.SESSION_BYTES or len(address) != ids.DIGEST_BYTES:
        return None
    return ids.SessionId(session), ids.Digest(address)


# ----------------------------------------------------------------------------------------------------------- real disk


@contextlib.contextmanager
def store_errors(act: str, path: Path) -> Iterator[None]:
    """The operating system's refusals as StoreError."""
    try:
        yield
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.StoreError(
                f"the disk is full: cannot {act} {path}; free some space and start again"
            ) from fault
        raise errors.StoreError(f"cannot {act} {path}: {fault.strerror or fault}") from fault


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderDisk:
    """A folder of a real file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._durable: set[Path] = set()  # folders whose own names this process has made durable
        with store_errors("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)

    def write(self, path: str, data: bytes) -> None:
        full = self._folder / path
        with store_errors("write", full):
            full.parent.mkdir(parents=True, exist_ok=True)
            with full.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def rename(self, old: str, new: str) -> None:
        full = self._folder / new
        with store_errors("write", full):
            full.parent.mkdir(parents=True, exist_ok=True)
            (self._folder / old).rename(full)
            sync_folder(full.parent)
            self._sync_above(full.parent)

    def read(self, path: str) -> bytes | None:
        full = self._folder / path
        with store_errors("read", full):
            try:
                return full.read_bytes()
            except FileNotFoundError:
                return None

    def files(self) -> list[tuple[str, int]]:
        with store_errors("list", self._folder):
            found = [(path, path.stat()) for path in self._folder.rglob("*") if path.is_file()]
        found.sort(key=lambda entry: (entry[1].st_mtime_ns, entry[0]))
        return [(path.relative_to(self._folder).as_posix(), status.st_size) for path, status in found]

    def remove(self, path: str) -> None:
        full = self._folder / path
        with store_errors("remove", full):
            full.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or gone: both are fine
                full.parent.rmdir()
                self._durable.discard(full.parent)

    def _sync_above(self, folder: Path) -> None:
        """A folder is itself a name. One that stands may be an earlier failure's, so standing proves nothing."""
        while folder != self._folder and folder not in self._durable:
            sync_folder(folder.parent)
            self._durable.add(folder)
            folder = folder.parent
