"""The five things that a page store asks of a file system, and a disk in memory that does no more than that.

The contract is about what survives: content is durable when `write` returns, a name when `rename` returns, and nothing
else is promised. `MemoryDisk` takes every liberty that a real disk may take: a crash tears what was not synced, keeps
or forgets names whose folder was not synced, and may bring removed files back. A store that passes on it passes for the
right reason. The real one, `store.FolderDisk`, passes the same contract test.

Pure: the dice of a crash come in.

Rejected: a mock that records calls (it proves that fsync was called, not that it was called in time).
"""

from __future__ import annotations

import random
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
