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
from collections.abc import Callable
from dataclasses import dataclass, field

from meshnode import errors
from meshnode.ids import PeerId, SessionId
from meshnode.machine import Effect, Send
from meshnode.ports import Lane
from meshnode.sessions import timers
from meshnode.sessions.messages import Entry, PreVoted, Promise, Route

VotersOf = Callable[[tuple[Entry, ...] | None], frozenset[PeerId]]


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
    WIDEN = "widen"
    TAKE = "take"


@dataclass(slots=True)
class _Shown:
    """A voter's log behind the candidate's released position, as far as it was shown."""

    last_epoch: int
    last_seq: int
    entries: list[Entry] = field(default_factory=list)


class Questions:
    """Pre-votes that were asked for before there was evidence here: answered when it comes."""

    def __init__(self) -> None:
        self._asked: dict[PeerId, int] = {}

    def note(self, peer: PeerId, epoch: int) -> None:
        """The last one of each peer."""
        self._asked[peer] = epoch

    def clear(self) -> None:
        """The owner was heard."""
        self._asked.clear()

    def answers(self, session: SessionId, promised: int, route: Route | None, to: PeerId | None = None) -> list[Effect]:
        """To this one, else to that with the highest epoch, and of those to the first; with the voters as of this log,
        since a candidate that missed a change counts the wrong ones.

        Two that were answered at once would prepare at once, refuse each other and wait for this evidence again, in
        step for ever. Whoever gets no answer asks again, after dice.
        """
        asked, self._asked = self._asked, {}
        peer = to if to is not None else max(asked, key=lambda one: asked[one], default=None)
        if peer is None or asked[peer] <= promised:
            return []
        greeting: list[Effect] = [Send(peer, Lane.SIGNAL, route)] if route is not None else []
        return [*greeting, Send(peer, Lane.SIGNAL, PreVoted(session, asked[peer]))]


class Candidate:
    """One voter's attempts to become owner."""

    def __init__(self, me: PeerId, voters: frozenset[PeerId], rank: int | None, rng: random.Random) -> None:
        self.me = me
        self.voters = voters
        """Whose votes count: the newest configuration that this node heard of; once there are promises, that of the
        best log among them."""
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
        self._asked: frozenset[PeerId] = frozenset()
        """Who was sent a prepare in this round."""
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
        return Act.PREPARE if self._carried(self.voters) else Act.PREVOTE

    def _carried(self, voters: frozenset[PeerId]) -> bool:
        """Whether a majority of these voters is for us. We count only where we have a seat."""
        return 2 * len((self._votes | {self.me}) & voters) > len(voters)

    def refer(self, promised: int) -> Act:
        """The owner itself gives the session away: there is nobody to ask whether it may be deposed."""
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
        return Act.PREPARE if self._carried(self.voters) else None

    def preparing(self, now: float, after: int, to: frozenset[PeerId] | None = None) -> None:
        """The member promised itself the epoch and is sending prepares: to all that vote, or to these."""
        self._asked = self.voters - {self.me} if to is None else to
        self.stage = Stage.PREPARING
        self.after = after
        self._votes.clear()
        self._shown.clear()
        self.due = now + timers.ELECTION_RETRY_S * (1 + self.rng.random())

    def decide(self, last_epoch: int, last_seq: int, voters_of: VotersOf | None = None) -> Act | None:
        """Take the session with a majority of the configuration in the best log that was shown; before that, fetch the
        rest of that log, or ask whom it seats. `voters_of`: the configuration in our own log (None), or as it would be
        with these entries behind `after`."""
        if self.stage is not Stage.PREPARING:
            return None
        best = max(self._shown, key=lambda peer: _key(self._shown[peer]), default=None)
        if best is None or _key(self._shown[best]) <= (last_epoch, last_seq):
            best = None
        self.best = best
        entries = tuple(self._shown[best].entries) if best is not None else None
        if best is not None and entries is not None and self.after + len(entries) < self._shown[best].last_seq:
            return Act.FETCH
        if voters_of is not None:
            self.voters = voters_of(entries)
        if self.me not in self.voters:
            return None  # that log takes our seat away: whoever has one stands
        if self._carried(self.voters):
            return Act.TAKE
        return Act.WIDEN if self.voters - self._asked - {self.me} else None

    def widen(self) -> tuple[PeerId, ...]:
        """Voters that were not asked yet."""
        more = self.voters - self._asked - {self.me}
        self._asked |= more
        return tuple(sorted(more))

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
