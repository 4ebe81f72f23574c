"""The node's promises, durable before anyone hears of them: one append-only file for all sessions.

Session promises and log entries are records, bytes that begin with their session's id (`record`, `split`). All
records of one `append` form one *batch*, written with one fsync and covered by one checksum, so that a batch is there
or it is not: within one unsynced write a disk may keep the end and lose the beginning, and record by record that
would look like rot.

    file    magic 8 | salt 16
    batch   marker 4 | length 4 | checksum 8 | length times: record length 4 | record

Marker and checksum are keyed with the file's random salt, so nothing that a stranger puts into a record can pass for a
batch. At opening, a bad batch with nothing valid behind it is a torn tail: nobody was told of it; it is cut off and
counted. A bad batch with a valid one behind it was once durable, so promises may be missing: that is refused.

After one failed write or fsync the journal is poisoned and only `close` works: the kernel may have dropped the pages
and report success the next time (the fsync lesson of 2018). The process ends. Its successor may still *read* a batch
that never reached the disk, because the cache has it, and will act on it; so opening copies what it read to a new,
durable file.

Rejected: SQLite (a second write-ahead log, and its own opinion on fsync), and one file per session (an fsync each).
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import trio

from meshnode import errors, ids
from meshnode.snapshots import store
from meshnode.snapshots import tape as tapes


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    record_count: int
    """Appended since opening."""
    batch_count: int
    torn_bytes: int
    """Cut off the tail at opening."""


def record(session: ids.SessionId, body: bytes) -> bytes:
    """A record of one session."""
    assert len(session) == ids.SESSION_BYTES
    return session + body


def split(entry: bytes) -> tuple[ids.SessionId, bytes]:
    """The inverse of `record`."""
    if len(entry) < ids.SESSION_BYTES:
        raise errors.StoreError(f"a journal record of {len(entry)} bytes names no session")
    return ids.SessionId(entry[: ids.SESSION_BYTES]), entry[ids.SESSION_BYTES :]


class Journal:
    """One open journal. Not for two threads at once; `JournalWriter` sees to that."""

    def __init__(self, tape: tapes.Tape, *, salt: bytes) -> None:
        """Check, leave a torn tail behind, create if there is none. `salt` is for a new file."""
        assert len(salt) == tapes.SALT_BYTES
        self.blocking = tape.blocking
        self._tape = tape
        self._poisoned = False
        self._record_count = self._batch_count = self._torn_bytes = 0
        data = tape.read()
        if data is None:
            data = tapes.MAGIC + salt
        if len(data) < tapes.HEADER_BYTES or not data.startswith(tapes.MAGIC):
            raise errors.StoreError(f"{tape.path} is not a journal of this version. {tapes.ADVICE}")
        self._salt = data[len(tapes.MAGIC) : tapes.HEADER_BYTES]
        self._size = tapes.sound_bytes(data, self._salt, tape.path)
        self._torn_bytes = len(data) - self._size
        tape.replace([data[: self._size]])

    @classmethod
    def open(cls, folder: Path | tapes.Tape) -> Self:
        """The journal of a data folder, which stays locked until `close`. Raises ConfigError if another has it."""
        if not isinstance(folder, Path):
            return cls(folder, salt=bytes(tapes.SALT_BYTES))
        tape = FolderTape(folder)
        try:
            return cls(tape, salt=os.urandom(tapes.SALT_BYTES))
        except errors.StoreError:
            tape.close()
            raise

    def append(self, records: Sequence[bytes]) -> None:
        """All of them, durable; or StoreError, and the journal is poisoned."""
        self._check()
        if not records:
            return
        batch = tapes.batch(self._salt, records)
        self._poisoned = True
        self._tape.append(batch)
        self._poisoned = False
        self._size += len(batch)
        self._batch_count += 1
        self._record_count += len(records)

    def replay(self) -> Iterator[bytes]:
        """Every record, in the order of appending."""
        self._check()
        data = self._tape.read() or b""
        at = tapes.HEADER_BYTES
        while at < self._size:
            body = tapes.body_at(data, at, self._salt)
            if body is None:
                raise errors.StoreError(f"{self._tape.path} changed while it was open, at byte {at}. {tapes.ADVICE}")
            yield from tapes.records_of(body)
            at += tapes.HEAD.size + len(body)

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Compact: these records instead of all. A crash leaves either the old journal or the new one."""
        self._check()
        pieces = [tapes.MAGIC + self._salt, *(tapes.batch(self._salt, some) for some in tapes.grouped(records))]
        self._poisoned = True
        self._tape.replace(pieces)
        self._poisoned = False
        self._size = sum(map(len, pieces))

    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(self._record_count, self._batch_count, self._torn_bytes)

    def close(self) -> None:
        """Give the data folder back. Closing twice is fine, writing afterwards is not."""
        self._poisoned = True
        self._tape.close()

    def _check(self) -> None:
        if self._poisoned:
            raise errors.StoreError(
                f"{self._tape.path} is closed, or a write to it failed: what it holds is unknown. Start the node again"
            )


# -------------------------------------------------------------------------------------------------------------- tapes


class FolderTape:
    """The file `journal` in a data folder, which this process alone has."""

    blocking = True

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "journal")
        self._folder = folder
        self._file = self._lock = -1
        try:
            self._take()
        except errors.MeshError:
            self.close()
            raise

    def _take(self) -> None:
        folder = self._folder
        with store.store_errors("open", folder):
            folder.mkdir(parents=True, exist_ok=True)
            store.sync_folder(folder.parent)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise errors.ConfigError(
                    f"another meshnode uses this data folder ({folder})",
                    hint="stop it, or give this one a data folder of its own",
                ) from None
            (folder / "journal.new").unlink(missing_ok=True)
            if Path(self.path).exists():
                self._reopen()

    def read(self) -> bytes | None:
        with store.store_errors("read", self._folder):
            return None if self._file < 0 else Path(self.path).read_bytes()

    def append(self, data: bytes) -> None:
        with store.store_errors("write", self._folder / "journal"):
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)

    def replace(self, data: Iterable[bytes]) -> None:
        fresh = self._folder / "journal.new"
        with store.store_errors("write", fresh):
            with fresh.open("wb") as file:
                file.writelines(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self.path)
            store.sync_folder(self._folder)
            self._reopen()

    def close(self) -> None:
        for handle in (self._file, self._lock):
            if handle >= 0:
                os.close(handle)
        self._file = self._lock = -1

    def _reopen(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)


class MemoryJournal:
    """A journal without a disk, in the same format, for simulations and tests. Never blocks, so it needs no thread."""

    blocking = False

    def __init__(self) -> None:
        self.tape = tapes.MemoryTape()
        self._journal = Journal.open(self.tape)

    def append(self, records: Sequence[bytes]) -> None:
        self._journal.append(records)

    def replay(self) -> Iterator[bytes]:
        return self._journal.replay()

    def rewrite(self, records: Iterable[bytes]) -> None:
        self._journal.rewrite(records)

    def size(self) -> int:
        return self._journal.size()

    def statistics(self) -> JournalStatistics:
        return self._journal.statistics()

    def close(self) -> None:
        self._journal.close()

    def crash(self, rng: random.Random | None = None) -> None:
        """The process ends and starts again: what was not durable is gone, and a poisoned or closed journal is open."""
        self.tape.crash(rng)
        self._journal = Journal.open(self.tape)


# ------------------------------------------------------------------------------------------------------------- writer


class Recorder(Protocol):
    """What a writer writes to: a Journal or a MemoryJournal."""

    blocking: bool

    def append(self, records: Sequence[bytes]) -> None: ...

    def rewrite(self, records: Iterable[bytes]) -> None: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    records: Sequence[bytes]
    rewriting: bool
    done: trio.Event = field(default_factory=trio.Event)
    fault: errors.StoreError | None = None


class JournalWriter:
    """Many tasks append, one thread writes: whoever comes while an fsync runs shares the next one."""

    def __init__(self, journal: Recorder, *, queue_max: int = 256) -> None:
        """`queue_max` appends may wait; the next waits for room. Higher costs memory, lower makes smaller groups."""
        self._journal = journal
        self._queue, self._incoming = trio.open_memory_channel[_Waiting](queue_max)
        self._thread = trio.CapacityLimiter(1)
        self._fault: errors.StoreError | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled. The first StoreError goes to everyone who waits, and ends this."""
        task_status.started()
        group: list[_Waiting] = []
        try:
            while True:
                await self._gather(group)
                await self._write(group)
                for waiting in group:
                    waiting.done.set()
                group.clear()
        except errors.StoreError as fault:
            self._fault = fault
            raise
        finally:
            self._stop(group)

    async def append(self, records: Sequence[bytes]) -> None:
        """Returns once they are durable. If it is cancelled they may become so all the same."""
        assert tapes.body_bytes(records) <= tapes.BATCH_BYTES_MAX - tapes.GROUP_BYTES
        await self._done(_Waiting(tuple(records), rewriting=False))

    async def rewrite(self, records: Sequence[bytes]) -> None:
        """Compact, in turn: after the appends that came before this and before those that come after."""
        await self._done(_Waiting(tuple(records), rewriting=True))

    async def _done(self, waiting: _Waiting) -> None:
        try:
            await self._queue.send(waiting)
        except trio.BrokenResourceError:
            waiting.fault = self._fault
        else:
            await waiting.done.wait()
        if waiting.fault is not None:
            raise errors.StoreError(str(waiting.fault)) from waiting.fault

    async def _gather(self, group: list[_Waiting]) -> None:
        """The first that waits, and all that came with it, up to GROUP_BYTES."""
        assert not group
        group.append(await self._incoming.receive())
        await trio.lowlevel.checkpoint()  # whoever is ready in the same turn comes along
        group_bytes = tapes.body_bytes(group[0].records)
        while group_bytes < tapes.GROUP_BYTES:
            try:
                group.append(self._incoming.receive_nowait())
            except trio.WouldBlock:
                break
            group_bytes += tapes.body_bytes(group[-1].records)

    async def _write(self, group: list[_Waiting]) -> None:
        if self._journal.blocking:
            await trio.to_thread.run_sync(self._write_sync, group, limiter=self._thread)
        else:
            self._write_sync(group)

    def _write_sync(self, group: list[_Waiting]) -> None:
        for rewriting, some in itertools.groupby(group, key=lambda waiting: waiting.rewriting):
            if rewriting:
                for waiting in some:
                    self._journal.rewrite(waiting.records)
            else:
                self._journal.append([entry for waiting in some for entry in waiting.records])

    def _stop(self, group: list[_Waiting]) -> None:
        """Nobody waits for a writer that is gone: neither those written for last, nor those in the queue."""
        self._fault = self._fault or errors.StoreError("the journal is closing")
        while True:
            try:
                group.append(self._incoming.receive_nowait())
            except trio.WouldBlock:
                break
        self._incoming.close()
        for waiting in group:
            waiting.fault = self._fault
            waiting.done.set()
