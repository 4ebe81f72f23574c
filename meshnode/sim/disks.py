"""A machine's disk: a journal in the format of the real one, and pages. A crash forgets what was not synced.

Writes queue as they do for journal.JournalWriter: whoever comes while a sync runs shares the next one. What a crash
interrupts is nothing, all, or with `tear` any part of the bytes, which the journal's own opening has to sort out.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from meshnode import errors, journal
from meshnode.ids import Digest, SessionId
from meshnode.snapshots import tape as tapes


@dataclass(frozen=True, slots=True)
class Page:
    """A stored page."""

    index: int
    parent: Digest
    raw: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """Records to append, or with `anew` a whole journal to replace the old one by."""

    records: list[bytes]
    done: Callable[[], None]
    anew: bool = False


class Disk:
    """What a crash leaves."""

    def __init__(self) -> None:
        self.tape = tapes.MemoryTape()
        self.journal = journal.Journal.open(self.tape)
        self.pages: dict[SessionId, dict[Digest, Page]] = {}
        self.waiting: list[Write] = []
        self.syncing: list[Write] = []

    def begin(self) -> bool:
        """Start on what waits, unless a sync runs. Whether one was started."""
        if self.syncing or not self.waiting:
            return False
        self.syncing, self.waiting = self.waiting, []
        return True

    def synced(self) -> list[Callable[[], None]]:
        """The sync is over: who was waiting for it."""
        done, self.syncing = self.syncing, []
        for anew, some in itertools.groupby(done, key=lambda write: write.anew):
            if anew:
                for write in some:
                    self.journal.rewrite(write.records)
            else:
                self.journal.append([entry for write in some for entry in write.records])
        return [write.done for write in done]

    def crash(self, rng: random.Random, *, tear: bool) -> int:
        """The process ends; the number of records that are gone."""
        lost = [entry for write in [*self.syncing, *self.waiting] if not write.anew for entry in write.records]
        interrupted = [entry for write in self.syncing if not write.anew for entry in write.records]
        rewriting = any(write.anew for write in self.syncing)
        self.waiting, self.syncing = [], []
        if interrupted and not rewriting and rng.random() < 0.5:
            if tear:
                self._tear(interrupted, rng)
            else:
                self.journal.append(interrupted)
                del lost[: len(interrupted)]
        return len(lost)

    def _tear(self, interrupted: list[bytes], rng: random.Random) -> None:
        self.tape.fail_at = self.tape.step_count + 2  # written, not synced
        try:
            self.journal.append(interrupted)
        except errors.StoreError:
            self.tape.crash(rng)

    def opened(self) -> tuple[list[bytes], int]:
        """Start again: the journal's records, and how many bytes of a torn tail were cut off."""
        self.journal = journal.Journal.open(self.tape)
        records = [journal.split(entry)[1] for entry in self.journal.replay()]
        return records, self.journal.statistics().torn_bytes

    def addresses(self) -> dict[SessionId, set[Digest]]:
        """Pages that are here."""
        return {session: set(found) for session, found in self.pages.items()}
