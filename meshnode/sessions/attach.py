"""The client's end of one session: pure, like the voters' end.

It keeps one number, the last seq it was given, and asks every voter for what comes after; whoever owns the session
answers. It refuses older epochs (the fence is at the receiver), takes entries only in order and only once, and sends
a turn again, under its own id, to whoever becomes the owner. So a killed host costs it a pause and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode import errors
from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.machine import Deliver, Effect, Send
from meshnode.ports import Lane
from meshnode.sessions import log, messages, seating
from meshnode.sessions.messages import Change, Closed, End, Message, Notify, Opened, Token, Turn
from meshnode.sessions.timers import Timers
from meshnode.wire.award import Seat

REFRESH_S = 10.0
"""An attending client says so again, to every voter."""
RETRY_S = 1.0
"""Between attempts while nobody answers."""
REPEAT_S = 2.0
"""Between repeats of what the log does not show yet. Shorter: more is sent in vain. Longer: a lost turn waits."""
STOPS_MAX = 5
"""Times that an Interrupt is repeated: the turn that it shall end may never have come to the log."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The session has an owner, or another one."""

    epoch: int
    host: PeerId


@dataclass(frozen=True, slots=True)
class Said:
    """A released token of an answer."""

    request: RequestId
    seq: int
    token: Token


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole: stop, length, interrupted, context full, or `error: ...`."""

    request: RequestId
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A turn was refused."""

    request: RequestId
    status: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody answered for the INVITE's time of the kind. The attachment goes on trying; this is said once a silence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Over:
    """The session has ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reseated:
    """The session has other voters: one was lost and replaced."""

    number: int
    seats: tuple[Seat, ...]


Item = Moved | Said | Ended | Refusal | Lost | Over | Reseated
Ask = messages.Message | messages.Interrupt | messages.Bye


@dataclass(slots=True)
class _Asked:
    """Something that was asked of the owner, until the log shows it."""

    message: Ask
    lane: Lane
    at: float
    left: float = float("inf")
    """Times that it may be repeated."""


class Attachment:
    """One session, as its client sees it."""

    def __init__(
        self, session: SessionId, voters: tuple[PeerId, ...], timers: Timers, now: float, *, auction: RequestId
    ) -> None:
        self.session = session
        self.auction = auction
        """Whose award was accepted: a call that was made again elsewhere may have led to a second one."""
        self.voters = voters
        self.timers = timers
        self.last = 0
        """Seq of the last entry that was delivered."""
        self.epoch = 0
        self.host: PeerId | None = None
        self.stale_count = 0
        """Messages of older epochs, refused."""
        self.over = False
        self._turn: RequestId | None = None
        self._asked: dict[tuple[type, bytes], _Asked] = {}
        """A full queue may lose any of these while the link and the owner stand; ids make a repeat harmless."""
        self._repeat_at = now
        self._heard_at = now
        self._asked_at = float("-inf")
        self._refreshed_at = now
        self._lost = False
        self._gone: set[PeerId] = set()
        self._known = set(voters)
        """Everybody who has or had a seat: whose signature a roster may bear."""
        self.roster = 0
        """Number of the configuration that `voters` is; 0 is the award."""

    def begin(self, now: float) -> list[Effect]:
        """ACK and SUBSCRIBE to every voter."""
        self._asked_at = self._refreshed_at = now
        effects: list[Effect] = []
        for voter in self.voters:
            effects.append(Send(voter, Lane.SIGNAL, messages.Ack(self.session, self.auction)))
            effects.append(Send(voter, Lane.SIGNAL, messages.Subscribe(self.session, self.last)))
        return effects

    def say(self, now: float, message: Message) -> list[Effect]:
        """A turn."""
        if self.over:
            return [Deliver(self.session, Refusal(message.request, 481, ("the session is over",)))]
        return self._ask(now, message.request, _Asked(message, Lane.MEDIA, now))

    def interrupt(self, now: float, request: RequestId) -> list[Effect]:
        """Stop an answer, or a turn that waits."""
        self._asked.pop((Message, request), None)
        return self._ask(now, request, _Asked(messages.Interrupt(self.session, request), Lane.SIGNAL, now, STOPS_MAX))

    def bye(self, now: float, reason: str) -> list[Effect]:
        """End the session."""
        return self._ask(now, b"", _Asked(messages.Bye(self.session, reason), Lane.SIGNAL, now))

    def _ask(self, now: float, request: bytes, asked: _Asked) -> list[Effect]:
        if self.over:
            return []
        if not self._asked:
            self._repeat_at = now + REPEAT_S
        self._asked[type(asked.message), request] = asked
        return [Send(self.host, asked.lane, asked.message)] if self.host is not None else []

    def _repeat(self, now: float) -> list[Effect]:
        """All that the log does not show yet, in the order in which it was asked."""
        self._repeat_at = now + REPEAT_S
        if self.host is None:
            return []
        sends: list[Effect] = [Send(self.host, one.lane, one.message) for one in self._asked.values()]
        for one in self._asked.values():
            one.left -= 1
        self._asked = {key: one for key, one in self._asked.items() if one.left > 0}
        return sends

    # -------------------------------------------------------------------------------------------------------- messages

    def on_notify(self, now: float, peer: PeerId, notify: Notify) -> list[Effect]:
        """What an owner released. Raises PeerError for what no owner sends."""
        if peer not in self._known:
            raise errors.PeerError("a notification from a peer that has no seat")
        if notify.epoch < self.epoch:
            self.stale_count += 1
            return []
        if notify.epoch == self.epoch and peer != self.host:
            raise errors.PeerError("two owners of one epoch")
        changes = [log.change(of) for of in notify.entries]
        effects = self._follow(now, peer, notify.epoch) if notify.epoch > self.epoch else []
        self._heard_at, self._lost = now, False
        self._gone.clear()
        for place, change in enumerate(changes):
            if notify.after + place == self.last:
                self.last += 1
                effects += self._deliver(change)
        if self.last < notify.released and not self.over and now - self._asked_at > self.timers.heartbeat_s:
            effects += self._subscribe(now, peer)
        return effects

    def on_route(self, now: float, route: messages.Route) -> list[Effect]:
        """Other voters. Older rosters change nothing. Raises PeerError for one that no voter signed."""
        news = seating.follow(self.session, self._known, self.roster, route)
        if not news:
            return []
        roster = news[-1][1]
        before, self.voters = set(self.voters), tuple(seat.peer for seat in roster.seats)
        self.roster = roster.number
        self._gone &= set(self.voters)
        effects: list[Effect] = [Deliver(self.session, Reseated(roster.number, roster.seats))]
        for voter in self.voters:
            if voter not in before and not self.over:
                effects += self._subscribe(now, voter)
        return effects

    def _follow(self, now: float, host: PeerId, epoch: int) -> list[Effect]:
        """A new owner: tell it where we are, and what it may not know yet."""
        self.epoch, self.host = epoch, host
        return [Deliver(self.session, Moved(epoch, host)), *self._subscribe(now, host), *self._repeat(now)]

    def _subscribe(self, now: float, peer: PeerId) -> list[Effect]:
        self._asked_at = now
        return [Send(peer, Lane.SIGNAL, messages.Subscribe(self.session, self.last))]

    def _deliver(self, change: Change) -> list[Effect]:
        item: Item | None = None
        match change:
            case Turn(request):
                self._turn = request
                self._asked.pop((Message, request), None)
            case Token() if self._turn is not None:
                item = Said(self._turn, self.last, change)
            case End(reason) if self._turn is not None:
                self._asked.pop((messages.Interrupt, self._turn), None)
                item, self._turn = Ended(self._turn, reason), None
            case Closed(reason):
                self.over = True
                self._asked.clear()
                item = Over(reason)
            case Opened() | _:
                pass
        return [Deliver(self.session, item)] if item is not None else []

    def on_denied(self, peer: PeerId, denied: messages.Denied) -> list[Effect]:
        """A turn was refused."""
        if peer != self.host or self._asked.pop((Message, denied.request), None) is None:
            return []
        reasons = denied.reasons or ("no reason was given",)
        return [Deliver(self.session, Refusal(denied.request, denied.status, reasons))]

    def on_gone(self, peer: PeerId) -> list[Effect]:
        """481 from a voter; from all of them, the session is over."""
        if peer in self.voters and not self.over:
            self._gone.add(peer)
            if len(self._gone) == len(self.voters):
                self.over = True
                return [Deliver(self.session, Over("no voter knows this session any more"))]
        return []

    def on_concluded(self, peer: PeerId) -> list[Effect]:
        """The end came while this client was away. Of the other voters some may be gone for good, and never say so."""
        if peer not in self.voters or self.over:
            return []
        self.over = True
        return [Deliver(self.session, Over("closed"))]

    # ------------------------------------------------------------------------------------------------------------ time

    def tick(self, now: float) -> list[Effect]:
        """Ask again where nobody answers; say so when that has lasted too long."""
        if self.over:
            return []
        effects = self._repeat(now) if self._asked and now >= self._repeat_at else []
        silent_s = now - self._heard_at
        if silent_s <= self.timers.lost_after_s:
            return effects + (self.begin(now) if now >= self._refreshed_at + REFRESH_S else [])
        if now >= self._asked_at + RETRY_S:
            effects += self.begin(now)
        if now >= self._lost_at and 2 * len(self._gone) > len(self.voters):
            # It was closed, or so many forgot it that no owner can come: the rest may be dead for good.
            self.over = True
            return [*effects, Deliver(self.session, Over("no voter that answers knows this session any more"))]
        if now >= self._lost_at and not self._lost:
            self._lost = True
            effects.append(Deliver(self.session, Lost(f"no quorum: no host answered for {silent_s:.0f} s")))
        return effects

    @property
    def _lost_at(self) -> float:
        """The INVITE's time: of silence while an answer runs, and after the turn while none does, since an owner that
        lost its majority is heard for a lease more. Never before a takeover on silence alone had its chance."""
        silent_at = self._heard_at + max(self.timers.invite_s, 1.3 * self.timers.lost_after_s)
        evident_at = self._heard_at + self.timers.lost_after_s
        said_at = min((one.at for one in self._asked.values() if isinstance(one.message, Message)), default=silent_at)
        return min(silent_at, max(said_at + self.timers.invite_s, evident_at))

    @property
    def deadline(self) -> float:
        """When `tick` has something to do."""
        if self.over:
            return float("inf")
        silent_at = max(self._heard_at + self.timers.lost_after_s, self._asked_at + RETRY_S)
        lost_at = float("inf") if self._lost else self._lost_at
        repeat_at = self._repeat_at if self._asked else float("inf")
        return min(silent_at, lost_at, repeat_at, self._refreshed_at + REFRESH_S) + 1e-3
