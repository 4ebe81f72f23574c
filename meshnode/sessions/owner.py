"""The owner's side of replication: who has what, what is released, and whether the lease still holds.

Optimistic: entries go out as they are written, many messages may be under way, and only a refusal makes the owner go
back (once for each refusal of something it sent since it last went back). An entry is released when a majority has it
durably *and* it belongs to this epoch (Raft, section 5.4.2: entries of earlier epochs are released by one of this).
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.ids import PeerId
from meshnode.sessions import log
from meshnode.sessions.messages import Entry, Replicate, Replicated


@dataclass(slots=True)
class _Follower:
    sent: int
    """Seq up to which entries are under way or acknowledged."""
    matched: int = 0
    answered_us: int = -1
    """Latest of our stamps that came back."""
    rewound_us: int = -1
    """Our stamp when we last went back: refusals of older messages are stale. Not those of what is sent with it."""


class Owner:
    """One epoch of one owner."""

    def __init__(self, of: log.Log, epoch: int, me: PeerId, others: tuple[PeerId, ...], now: float) -> None:
        self.log = of
        self.epoch = epoch
        self.me = me
        self.durable = 0
        """Our own log on our own disk."""
        self.released = 0
        self.heartbeat_at = now
        self._began_us = _us(now)
        self._followers = {peer: _Follower(sent=of.last) for peer in others}

    @property
    def majority(self) -> int:
        """Votes that are needed, our own among them."""
        return (len(self._followers) + 1) // 2 + 1

    def outbound(self, now: float, released: int, *, heartbeat: bool = False) -> list[tuple[PeerId, Replicate]]:
        """What each follower has not been sent yet; with `heartbeat` at least an empty message to each."""
        out: list[tuple[PeerId, Replicate]] = []
        for peer, follower in self._followers.items():
            nothing_yet = heartbeat
            while follower.sent < self.log.last or nothing_yet:
                nothing_yet = False
                entries = self.log.after(follower.sent)
                out.append((peer, self._message(follower.sent, entries, released, now)))
                follower.sent += len(entries)
        return out

    def _message(self, prev: int, entries: tuple[Entry, ...], released: int, now: float) -> Replicate:
        at = self.log.hash_at(prev)
        return Replicate(self.log.session, self.epoch, prev, at, entries, released, _us(now))

    def on_replicated(self, peer: PeerId, reply: Replicated, now: float) -> None:
        """Note what a follower has, or go back to what it lacks."""
        follower = self._followers.get(peer)
        if follower is None or reply.epoch != self.epoch or reply.matched > self.log.last:
            return
        follower.answered_us = max(follower.answered_us, min(reply.stamp_us, _us(now)))
        if reply.ok:
            follower.matched = max(follower.matched, reply.matched)
            follower.sent = max(follower.sent, follower.matched)
        elif reply.stamp_us >= follower.rewound_us:
            follower.sent = min(reply.matched, follower.sent)
            follower.rewound_us = _us(now)

    def relinked(self, peer: PeerId) -> None:
        """A link came up: what was under way on the old one may be lost."""
        if peer in self._followers:
            self._followers[peer].sent = self._followers[peer].matched or self._followers[peer].sent

    def releasable(self) -> int:
        """The highest seq that a majority has, if it is of this epoch; else what was released before."""
        have = sorted([self.durable, *(follower.matched for follower in self._followers.values())], reverse=True)
        seq = have[self.majority - 1]
        if seq > self.released and self.log.epoch_at(seq) == self.epoch:
            self.released = seq
        return self.released

    def lease_until(self, lease_s: float) -> float:
        """When the lease ends: counted from when we *sent* what a majority answered last."""
        if not self._followers:
            return float("inf")
        stamps = sorted(
            (max(follower.answered_us, self._began_us) for follower in self._followers.values()), reverse=True
        )
        return stamps[self.majority - 2] / 1e6 + lease_s

    def matched(self, peer: PeerId) -> int:
        """How far this follower is known to have the log."""
        return self._followers[peer].matched


def _us(now: float) -> int:
    return max(0, int(now * 1e6))
