"""The durable half of a session's member: what it promised, and the log it accepted.

This is the acceptor of Paxos and the follower of Raft in one: an epoch is promised to one candidate, entries are
accepted from that epoch's owner only, what is released is never cut. Every method that changes what was promised or
accepted returns the journal records that must be on disk before the reply leaves; `replay` reads them back.
"""

from __future__ import annotations

from meshnode import errors
from meshnode.ids import PeerId, SessionId
from meshnode.sessions import log
from meshnode.sessions.messages import (
    Appended,
    Closed,
    Entry,
    Joined,
    Opened,
    Prepare,
    Promise,
    Promised,
    Replicate,
    Replicated,
)

Record = Promised | Appended | Joined


class Voter:
    """State of one voter for one session."""

    __slots__ = ("candidate", "epoch", "host", "joined", "log", "promised", "released", "session")

    def __init__(self, session: SessionId) -> None:
        self.session = session
        self.log = log.Log(session)
        self.promised = 0
        self.candidate: PeerId | None = None
        """To whom `promised` was given. Never changes within one epoch."""
        self.epoch = 0
        self.host: PeerId | None = None
        """Owner of the highest epoch that was heard from; `epoch` is that epoch. At most `promised`."""
        self.released = 0
        """Entries up to here are at a majority. Known late, never wrong, never cut."""
        self.joined: Joined | None = None
        """How this node came in, if it was not by the award."""

    def born(self, birth: Entry, host: PeerId) -> list[Record]:
        """Entry 1 and epoch 1, the same at every voter."""
        assert self.log.last == 0
        self.log.append(birth)
        self.promised, self.candidate, self.epoch, self.host, self.released = 1, host, 1, host, 1
        return [Promised(self.session, 1, host), Appended(self.session, 0, (birth,), 1)]

    def join(self, joined: Joined) -> list[Record]:
        """Come in after the birth. To be written before what `born` returns."""
        self.joined = joined
        return [joined]

    @property
    def votes(self) -> bool:
        """Whether candidates get an answer. A newcomer may have had a seat here before and forgotten what it promised
        then: it shows no log that ends before that seat was taken away."""
        return self.joined is None or self.log.last >= self.joined.since

    @property
    def closed(self) -> bool:
        """Whether a released entry ended the session. Owners that came after it left nothing but their openings."""
        changes = self.log.changes
        last = next(seq for seq in range(len(changes), 0, -1) if not isinstance(changes[seq - 1], Opened))
        return isinstance(changes[last - 1], Closed) and self.released >= last

    def promise(self, epoch: int, candidate: PeerId) -> list[Record]:
        """Give this epoch to this candidate (or to oneself)."""
        assert epoch > self.promised
        self.promised, self.candidate = epoch, candidate
        return [Promised(self.session, epoch, candidate)]

    def on_prepare(self, candidate: PeerId, ask: Prepare) -> tuple[list[Record], Promise]:
        """Promise, or say what was promised already."""
        repeat = ask.epoch == self.promised and candidate == self.candidate
        if ask.epoch <= self.promised and not repeat:
            return [], Promise(self.session, self.promised, False, 0, 0, 0, ())
        records = [] if repeat else self.promise(ask.epoch, candidate)
        after = min(ask.after, self.log.last)
        entries = self.log.after(after)
        return records, Promise(self.session, ask.epoch, True, self.log.last_epoch, self.log.last, after, entries)

    def on_replicate(self, owner: PeerId, ask: Replicate) -> tuple[list[Record], Replicated]:
        """Accept entries, or say from where to send again. Raises PeerError for what no correct owner sends."""
        if ask.epoch < self.promised:
            return [], Replicated(self.session, self.promised, 0, False, ask.stamp_us)
        # The epoch may have been promised to another, who then found no majority: its owner is whoever writes in it.
        if ask.epoch == self.epoch and owner != self.host:
            raise errors.PeerError("two owners of one epoch")
        if any(of.epoch > ask.epoch for of in ask.entries):
            raise errors.PeerError("entries of an epoch that has not begun")
        agrees = self.log.agrees(ask.prev_seq, ask.prev_hash)
        if not agrees and ask.prev_seq <= self.released:
            raise errors.PeerError("an owner's log lacks what was released")
        # A PeerError leaves no trace: a promise in memory alone would later be repeated as if it were durable.
        accepted = self._accept(ask.prev_seq, ask.entries) if agrees else []
        records = self.promise(ask.epoch, owner) if ask.epoch > self.promised else []
        self.epoch, self.host = ask.epoch, owner
        if not agrees:
            hint = self.log.last if ask.prev_seq > self.log.last else self.released
            return records, Replicated(self.session, ask.epoch, hint, False, ask.stamp_us)
        records += accepted
        matched = ask.prev_seq + len(ask.entries)
        self.released = max(self.released, min(ask.released, matched))
        return records, Replicated(self.session, ask.epoch, matched, True, ask.stamp_us)

    def _accept(self, prev_seq: int, entries: tuple[Entry, ...]) -> list[Record]:
        kept = 0
        for kept, of in enumerate(entries):
            at = prev_seq + kept
            if at >= self.log.last or self.log.entries[at] != of:
                break
        else:
            return []
        if prev_seq + kept < self.released:
            raise errors.PeerError("an owner's log differs from what was released")
        at, new = self.log.merge(prev_seq, entries)
        return [Appended(self.session, at, tuple(new), self.released)] if new else []

    def adopt(self, after: int, entries: tuple[Entry, ...]) -> list[Record]:
        """Take over the log of a majority's best voter behind a released position."""
        assert after >= self.released
        at, new = self.log.merge(after, entries)
        if not new:
            self.log.cut(after + len(entries))
            return [Appended(self.session, self.log.last, (), self.released)]
        return self.appended(at)

    def appended(self, seq: int) -> list[Record]:
        """Everything after `seq` as records, none of them larger than one may be read back."""
        records: list[Record] = []
        while seq < self.log.last:
            entries = self.log.after(seq)
            records.append(Appended(self.session, seq, entries, self.released))
            seq += len(entries)
        return records

    def replay(self, record: Record) -> None:
        """Do again what the journal says was done. Raises PeerError for a record that cannot follow the last one.

        A journal that was written anew may run ahead of the records behind it, which were on their way then: those say
        again what it says already, and whatever it was ahead by had been acknowledged to nobody.
        """
        if isinstance(record, Promised):
            if record.epoch >= self.promised:
                self.promised, self.candidate = record.epoch, record.candidate
            return
        if isinstance(record, Joined):
            self.joined = record
            return
        if record.prev_seq > self.log.last:
            raise errors.PeerError("the journal lacks entries of this session")
        self.log.cut(record.prev_seq)
        for of in record.entries:
            self.log.append(of)
        self.released = min(max(self.released, record.released), self.log.last)
        self.epoch = max(self.epoch, self.log.last_epoch)
