"""The five things that a page store asks of a file system, for real and in memory.

The contract is about what survives: content is durable when `write` returns, a name when `rename` returns, and nothing
else is promised. `MemoryDisk` takes every liberty that a real disk may take: a crash tears what was not synced, keeps
or forgets names whose folder was not synced, and may bring removed files back. A store that passes on it passes for the
right reason. Both refuse with StoreError, in one sentence that says what to do about a full disk.

Rejected: a mock that records calls (it proves that fsync was called, not that it was called in time).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from meshnode import errors


class Disk(Protocol):
    """Paths are relative, with `/`. Everything raises StoreError."""

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file; its *content* is durable on return, its name need not be."""

    def rename(self, old: str, new: str) -> None:
        """Give a file its name; durable on return. Before that, a crash leaves the old or the new state."""

    def read(self, path: str) -> bytes | None:
        """None if there is no such file."""

    def files(self) -> list[tuple[str, int]]:
        """Path and size of every file, the one written longest ago first."""

    def remove(self, path: str) -> None:
        """A missing file is fine. After a crash, a removed file may be back."""


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


class MemoryDisk:
    """A disk that fails at the `fail_at`-th step and loses in `crash` whatever a real one may lose."""

    def __init__(self) -> None:
        self.fail_at = 0
        """The step that fails, counted from 1; 0 for none. A write and its sync are two steps, so is a rename."""
        self.step_count = 0
        self._files: dict[str, bytes] = {}
        self._unsynced: set[str] = set()  # content that a crash may tear
        self._durable: dict[str, bytes] = {}  # names, with their content, that a crash keeps

    def write(self, path: str, data: bytes) -> None:
        self._files[path] = data
        self._unsynced.add(path)
        self._step("write", path)
        self._step("sync", path)
        self._unsynced.discard(path)

    def rename(self, old: str, new: str) -> None:
        self._step("rename", old)
        if old not in self._files:
            raise errors.StoreError(f"cannot rename {old}: no such file")
        self._files.pop(new, None)
        self._files[new] = self._files.pop(old)
        self._unsynced.discard(new)
        if old in self._unsynced:
            self._unsynced.remove(old)
            self._unsynced.add(new)
        self._step("sync the folder of", new)
        self._durable.pop(old, None)
        self._durable[new] = self._files[new]

    def read(self, path: str) -> bytes | None:
        self._step("read", path)
        return self._files.get(path)

    def files(self) -> list[tuple[str, int]]:
        self._step("list", ".")
        return [(path, len(data)) for path, data in self._files.items()]

    def remove(self, path: str) -> None:
        self._step("remove", path)
        self._files.pop(path, None)
        self._unsynced.discard(path)

    def crash(self, rng: random.Random) -> None:
        """The power fails: for each file, one of the states that a real disk may be in afterwards."""
        self.fail_at = 0
        after: dict[str, bytes] = {}
        for path in sorted(self._files.keys() | self._durable.keys()):
            data = rng.choice((self._files.get(path), self._durable.get(path)))
            if data is not None and path in self._unsynced:
                data = data[: rng.randrange(len(data) + 1)]
            if data is not None:
                after[path] = data
        self._files, self._durable = after, dict(after)
        self._unsynced.clear()

    def rot(self, path: str, data: bytes) -> None:
        """Replace a file's bytes behind the store's back."""
        assert path in self._files
        self._files[path] = self._durable[path] = data

    def _step(self, act: str, path: str) -> None:
        self.step_count += 1
        if self.step_count == self.fail_at:
            raise errors.StoreError(f"cannot {act} {path}: injected fault")
