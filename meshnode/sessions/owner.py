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

LEARNER_AHEAD = 1024
"""Entries under way to a learner."""


@dataclass(slots=True)
class _Follower:
    sent: int
    """Seq up to which entries are under way or acknowledged."""
    matched: int = 0
    answered_us: int = -1
    """Latest of our stamps that came back."""
    rewound_us: int = -1
    """Our stamp when we last went back: refusals of older messages are stale. Not those of what is sent with it."""
    matched_us: int = -1
    """When we heard of `matched`."""


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
        self.voters = frozenset((me, *others))
        """Who counts: the latest configuration in the log."""
        self.rolled_back: set[PeerId] = set()
        """Followers that lack what they acknowledged."""
        self._followers = {peer: _Follower(sent=of.last) for peer in others}

    @property
    def majority(self) -> int:
        """Votes that are needed, our own among them."""
        return len(self.voters) // 2 + 1

    def reseat(self, voters: frozenset[PeerId]) -> None:
        """Another configuration stands in the log. Who is new in it was followed before."""
        assert self.me in voters
        for peer in self.voters - voters:
            del self._followers[peer]
        self.voters = voters
        for peer in voters - {self.me} - self._followers.keys():
            self._followers[peer] = _Follower(sent=self.log.last)
        self.rolled_back &= voters

    def follow(self, peer: PeerId, now: float) -> None:
        """Send the log to a learner: it has the first entry, and counts for nothing."""
        assert peer not in self.voters
        self._followers[peer] = _Follower(sent=1, answered_us=_us(now))

    def unfollow(self, peer: PeerId) -> None:
        """Send nothing any more."""
        assert peer not in self.voters
        self._followers.pop(peer, None)

    def answered_at(self, peer: PeerId) -> float:
        """When what a follower answered last was sent; at the latest when this epoch began."""
        return max(self._followers[peer].answered_us, self._began_us) / 1e6

    def outbound(self, now: float, released: int, *, heartbeat: bool = False) -> list[tuple[PeerId, Replicate]]:
        """What each follower has not been sent yet; with `heartbeat` at least an empty message to each."""
        out: list[tuple[PeerId, Replicate]] = []
        for peer, follower in self._followers.items():
            nothing_yet = heartbeat
            while follower.sent < self.log.last or nothing_yet:
                if peer not in self.voters and follower.sent - follower.matched >= LEARNER_AHEAD and not nothing_yet:
                    break  # a long log in one go would fill the lane of those who count
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
            if reply.matched > follower.matched:
                follower.matched, follower.matched_us = reply.matched, _us(now)
            follower.sent = max(follower.sent, follower.matched)
        elif self._rolled_back(follower, reply):
            self.rolled_back.add(peer)
        elif reply.stamp_us >= follower.rewound_us:
            follower.sent = min(reply.matched, follower.sent)
            follower.rewound_us = _us(now)

    def _rolled_back(self, follower: _Follower, reply: Replicated) -> bool:
        """Whether a refusal means that the disk lost what it had. A log with an entry of this epoch is a prefix of
        ours, so its voter refuses nothing below it; and this one was asked after its acknowledgement had come."""
        ours = self.log.epoch_at(follower.matched) == self.epoch
        return ours and reply.matched < follower.matched and reply.stamp_us > follower.matched_us

    def relinked(self, peer: PeerId) -> None:
        """A link came up: what was under way on the old one may be lost."""
        if peer in self._followers:
            self._followers[peer].sent = self._followers[peer].matched or self._followers[peer].sent

    def releasable(self) -> int:
        """The highest seq that a majority has, if it is of this epoch; else what was released before."""
        others = self.voters - {self.me}
        have = sorted([self.durable, *(self._followers[peer].matched for peer in others)], reverse=True)
        seq = have[self.majority - 1]
        if seq > self.released and self.log.epoch_at(seq) == self.epoch:
            self.released = seq
        return self.released

    def lease_until(self, lease_s: float) -> float:
        """When the lease ends: counted from when we *sent* what a majority answered last."""
        others = [self._followers[peer] for peer in self.voters - {self.me}]
        if not others:
            return float("inf")
        stamps = sorted((max(follower.answered_us, self._began_us) for follower in others), reverse=True)
        return stamps[self.majority - 2] / 1e6 + lease_s

    def matched(self, peer: PeerId) -> int:
        """How far this follower is known to have the log."""
        return self._followers[peer].matched


def _us(now: float) -> int:
    return max(0, int(now * 1e6))
