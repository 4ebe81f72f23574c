"""How a session gets its next owner: evidence, pre-vote, prepare, adopt.

A round starts only with evidence against the present host, and asks first whether others have it too (pre-vote), so
that a node that lost its own network cannot depose anyone by coming back with a high epoch. A voter that has no
evidence yet remembers the question and answers when it has. Candidates wait by rank, so the replica with the pages
usually runs alone; if two do run, dice part them.

Nothing here is durable: the promise is the voter's. A candidate that dies has changed nothing but a number.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field

from meshnode import errors
from meshnode.ids import PeerId
from meshnode.sessions import timers
from meshnode.sessions.messages import Entry, Promise


class Stage(enum.Enum):
    """IDLE -> WAITING (evidence, rank delay) -> ASKING (pre-vote) -> PREPARING -> (owner) or back to WAITING."""

    IDLE = "idle"
    WAITING = "waiting"
    ASKING = "asking"
    PREPARING = "preparing"


class Act(enum.Enum):
    """What the member has to do now."""

    PREVOTE = "prevote"
    PREPARE = "prepare"
    FETCH = "fetch"
    TAKE = "take"


@dataclass(slots=True)
class _Shown:
    """A voter's log behind the candidate's released position, as far as it was shown."""

    last_epoch: int
    last_seq: int
    entries: list[Entry] = field(default_factory=list)


class Candidate:
    """One voter's attempts to become owner. `needed` counts votes beside its own."""

    def __init__(self, me: PeerId, needed: int, rank: int | None, rng: random.Random) -> None:
        self.me = me
        self.needed = needed
        self.rank = rank
        """Place in the succession, 0 first; None for a voter that cannot host."""
        self.rng = rng
        self.stage = Stage.IDLE
        self.epoch = 0
        self.after = 0
        self.due = float("inf")
        """When something has to be tried again."""
        self._floor = 0
        self._votes: set[PeerId] = set()
        self._shown: dict[PeerId, _Shown] = {}
        self.best: PeerId | None = None

    def stand_down(self) -> None:
        """The host is alive, or another was elected."""
        self.stage, self.due = Stage.IDLE, float("inf")
        self._votes.clear()
        self._shown.clear()
        self.best = None

    def begin(self, now: float) -> None:
        """There is evidence. Wait for one's turn."""
        if self.stage is Stage.IDLE and self.rank is not None:
            self.stage = Stage.WAITING
            self.due = now + self.rank * timers.ELECTION_RANK_S

    def tick(self, now: float, promised: int) -> Act | None:
        """At `due`: ask for votes, again and again, each round with an epoch above all that were promised."""
        if now < self.due or self.stage is Stage.IDLE:
            return None
        self.stage = Stage.ASKING
        self.epoch = max(promised, self._floor) + 1
        self._votes.clear()
        self._shown.clear()
        self.best = None
        self.due = now + timers.ELECTION_RETRY_S * (1 + self.rng.random())
        return Act.PREPARE if self.needed == 0 else Act.PREVOTE

    def refer(self, promised: int) -> Act | None:
        """The owner itself gives the session away: there is nobody to ask whether it may be deposed."""
        if self.rank is None:
            return None
        self.stage = Stage.ASKING
        self.epoch = max(promised, self._floor) + 1
        return Act.PREPARE

    def outbid(self, epoch: int) -> None:
        """A voter has promised this epoch to another: the next round goes above it."""
        self._floor = max(self._floor, epoch)

    def on_prevoted(self, peer: PeerId, epoch: int) -> Act | None:
        """A voter shares the evidence."""
        if self.stage is not Stage.ASKING or epoch != self.epoch:
            return None
        self._votes.add(peer)
        return Act.PREPARE if len(self._votes) >= self.needed else None

    def preparing(self, now: float, after: int) -> None:
        """The member promised itself the epoch and is sending prepares."""
        self.stage = Stage.PREPARING
        self.after = after
        self._votes.clear()
        self._shown.clear()
        self.due = now + timers.ELECTION_RETRY_S * (1 + self.rng.random())

    def decide(self, last_epoch: int, last_seq: int) -> Act | None:
        """With a majority: take the session, or first fetch the rest of the best log."""
        if self.stage is not Stage.PREPARING or len(self._votes) < self.needed:
            return None
        best = max(self._shown, key=lambda peer: _key(self._shown[peer]), default=None)
        if best is None or _key(self._shown[best]) <= (last_epoch, last_seq):
            self.best = None
            return Act.TAKE
        self.best = best
        shown = self._shown[best]
        return Act.TAKE if self.after + len(shown.entries) >= shown.last_seq else Act.FETCH

    def on_promise(self, peer: PeerId, promise: Promise) -> bool:
        """Note a promise; False for one that says nothing new. `promise.after` may lie behind what is shown already."""
        if self.stage is not Stage.PREPARING or promise.epoch != self.epoch or not promise.granted:
            return False
        if max([promise.last_epoch, *(of.epoch for of in promise.entries)]) >= self.epoch:
            raise errors.PeerError("a promise that shows entries of an epoch that has not begun")
        shown = self._shown.setdefault(peer, _Shown(promise.last_epoch, promise.last_seq))
        offset = promise.after - self.after
        if offset < 0:  # this voter's log ends before ours is released: it has nothing that we lack
            shown.last_epoch, shown.last_seq = 0, 0
        elif offset <= len(shown.entries):
            shown.entries[offset:] = promise.entries
        self._votes.add(peer)
        return True

    def next_fetch(self, now: float) -> int:
        """From where the best voter's log is still needed. Each piece gets its own time: a long log is no silence."""
        assert self.best is not None
        self.due = now + timers.ELECTION_RETRY_S * (1 + self.rng.random())
        return self.after + len(self._shown[self.best].entries)

    def adopted(self) -> tuple[Entry, ...] | None:
        """Entries to adopt behind `after`; None if our own log is the best."""
        return None if self.best is None else tuple(self._shown[self.best].entries)


def _key(shown: _Shown) -> tuple[int, int]:
    return shown.last_epoch, shown.last_seq
