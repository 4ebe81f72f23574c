"""The session log: the truth. Everything else (KV pages, transcript, bill) can be made from it again.

Entries are numbered from 1 and chained by hash, so that equal hashes at one seq mean equal logs up to there, and an
acknowledgement by position (epoch, seq) is all that a replica and a host need to compare themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode import errors, ids
from meshnode.ids import Digest, PeerId, SessionId
from meshnode.sessions import messages
from meshnode.sessions.messages import Change, Entry
from meshnode.wire import cbor, envelope, schema
from meshnode.wire.award import Roster


def entry(epoch: int, change: Change) -> Entry:
    """A change as an entry of this epoch."""
    return Entry(epoch, cbor.encode([schema.number_of(change), schema.pack(change)]))


def change(of: Entry) -> Change:
    """The change in an entry. Raises PeerError."""
    parts = cbor.decode(of.body)
    if type(parts) is not list or len(parts) != 2 or type(parts[0]) is not int:
        raise errors.PeerError("not a log entry")
    value = schema.unpack(parts[0], parts[1])
    if not isinstance(value, Change):
        raise errors.PeerError(f"{type(value).__name__} does not belong in a log")
    if isinstance(value, messages.Turn) and not value.ids:
        raise errors.PeerError("a turn without tokens")  # nothing to draw the next one from
    if isinstance(value, messages.Seated):
        roster(value.roster)
    return value


def roster(sealed: bytes) -> tuple[PeerId, Roster]:
    """Who signed a roster, and what it says. Raises PeerError."""
    signer, found = envelope.expect(sealed, Roster)
    if not found.seats or len({seat.peer for seat in found.seats}) != len(found.seats):
        raise errors.PeerError("a roster without seats, or that seats a peer twice")
    return signer, found


def genesis(session: SessionId) -> Digest:
    """The hash before the first entry."""
    return ids.digest(b"meshnode log 1", session)


def follow(previous: Digest, of: Entry) -> Digest:
    """The hash after this entry."""
    return ids.digest(previous, of.epoch.to_bytes(8, "big"), of.body)


class Log:
    """Entries 1 to `last`, in memory. `changes` are the same entries, decoded."""

    __slots__ = ("_hashes", "changes", "entries", "rosters", "session")

    def __init__(self, session: SessionId) -> None:
        self.session = session
        self.entries: list[Entry] = []
        self.changes: list[Change] = []
        self.rosters: list[tuple[int, Roster]] = []
        """Configurations behind the award's, each with the seq of its entry."""
        self._hashes = [genesis(session)]

    @property
    def last(self) -> int:
        """Seq of the last entry; 0 for none."""
        return len(self.entries)

    @property
    def last_epoch(self) -> int:
        """Epoch of the last entry; 0 for none."""
        return self.entries[-1].epoch if self.entries else 0

    def epoch_at(self, seq: int) -> int:
        """Epoch of the entry at `seq`; 0 before the first."""
        return self.entries[seq - 1].epoch if seq else 0

    def hash_at(self, seq: int) -> Digest:
        """The chain's hash after `seq` entries."""
        return self._hashes[seq]

    def append(self, of: Entry) -> Change:
        """Put an entry at the end. Raises PeerError for one that holds no change, or whose epoch runs backwards."""
        if of.epoch < self.last_epoch:
            raise errors.PeerError("a log's epochs do not run backwards")
        value = change(of)
        self.entries.append(of)
        self.changes.append(value)
        self._hashes.append(follow(self._hashes[-1], of))
        if isinstance(value, messages.Seated):
            self.rosters.append((self.last, roster(value.roster)[1]))
        return value

    def cut(self, seq: int) -> None:
        """Forget everything after `seq`."""
        assert 0 <= seq <= self.last
        del self.entries[seq:], self.changes[seq:], self._hashes[seq + 1 :]
        while self.rosters and self.rosters[-1][0] > seq:
            self.rosters.pop()

    def after(self, seq: int, count_max: int = messages.ENTRIES_MAX, bytes_max: int = 768 << 10) -> tuple[Entry, ...]:
        """Entries from `seq` + 1, as many as fit one message, at least one if there is any."""
        taken: list[Entry] = []
        size = 0
        for of in self.entries[seq : seq + count_max]:
            size += len(of.body) + 16
            if taken and size > bytes_max:
                break
            taken.append(of)
        return tuple(taken)

    def agrees(self, seq: int, at: Digest) -> bool:
        """Whether this log has `seq` entries at least, with this hash there."""
        return seq <= self.last and self._hashes[seq] == at

    def merge(self, prev_seq: int, entries: Sequence[Entry]) -> tuple[int, list[Entry]]:
        """Put entries after `prev_seq` (which must agree), keeping what is equal already.

        Returns where the log was cut and what was added behind it, for the journal. Raises PeerError.
        """
        at = prev_seq
        for place, of in enumerate(entries):
            if at < self.last and self.entries[at] == of:
                at += 1
                continue
            new = list(entries[place:])
            epochs = [self.epoch_at(at), *(one.epoch for one in new)]
            if epochs != sorted(epochs):
                raise errors.PeerError("a log's epochs do not run backwards")
            for one in new:
                change(one)
            self.cut(at)
            for one in new:
                self.append(one)
            return at, new
        return at, []
