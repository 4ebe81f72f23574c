"""Which of this node's sessions move, and where: what its owner asks for, and the draining of the whole node.

A drain looks at all sessions again and again: it starts what policy.py lets move, the best first and few at once, and
grows urgent when its patience is over. It knows of the mesh only who is able to take something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshnode.ids import PeerId, SessionId
from meshnode.machine import Effect, Note
from meshnode.sessions import policy
from meshnode.sessions.member import Member
from meshnode.sessions.policy import Phase, Standing, Urgency, Verdict

AT_ONCE = 2
"""Moves of one drain. More: each of them is slower, and the link is shared by more. Fewer: a drain takes longer."""
LOOK_S = 0.25
"""Between looks. Longer: the pause between two turns may be missed. Shorter: more is computed in vain."""
AGAIN_S = 2.0
"""After a move that was called off, before the same session is tried again."""
DRAINS = "this node drains: it is about to stop"


@dataclass(frozen=True, slots=True)
class Drain:
    """An owner's order: hand everything over and take nothing new, until told otherwise. After `patience_s` all that
    can move must."""

    patience_s: float


@dataclass(frozen=True, slots=True)
class Undrain:
    """An owner's order: be a node like any other again."""


@dataclass(frozen=True, slots=True)
class Migrate:
    """An owner's order: move this session, to the replica that is named or to the best one."""

    session: SessionId
    to: PeerId | None = None
    stop_first: bool = False
    """Without make before break, to measure what that is worth."""


Order = Drain | Undrain | Migrate


@dataclass(frozen=True, slots=True)
class Left:
    """One session that still runs here, and what it waits for."""

    session: SessionId
    moving: bool
    able: bool
    """Whether it can move at all; one that cannot stays until the node stops, and is then taken over."""
    why: str


class Moves:
    """The moves of one node."""

    def __init__(self) -> None:
        self.able: frozenset[PeerId] = frozenset()
        """Nodes that are alive, linked, host sessions and do not drain themselves."""
        self._must_at: float | None = None
        self._look_at = float("inf")
        self._not_before: dict[SessionId, float] = {}

    @property
    def draining(self) -> bool:
        """Whether this node hands everything over."""
        return self._must_at is not None

    def drain(self, now: float, patience_s: float) -> list[Effect]:
        """Begin, or change the patience."""
        began = not self.draining
        self._must_at, self._look_at = now + patience_s, now
        return [Note("draining", None, f"patience_s={patience_s:g}")] if began else []

    def undrain(self) -> list[Effect]:
        """End it; moves that are under way go on."""
        began = self.draining
        self._must_at, self._look_at = None, float("inf")
        self._not_before.clear()
        return [Note("not draining any more")] if began else []

    @property
    def deadline(self) -> float:
        """When the next look is due."""
        return self._look_at

    def ordered(self, now: float, order: Order, members: Mapping[SessionId, Member]) -> list[Effect]:
        """The node's owner speaks."""
        match order:
            case Drain(patience_s):
                return self.drain(now, patience_s) + self.tick(now, members.values())
            case Undrain():
                return self.undrain()
            case Migrate(session, to, stop_first):
                member = members.get(session)
                return self.migrate(now, member, to, stop_first=stop_first) if member is not None else []

    def migrate(self, now: float, member: Member, to: PeerId | None, *, stop_first: bool = False) -> list[Effect]:
        """One session, because somebody says so. What stands against it is noted."""
        target = to if to is not None else self.target(member)
        if refusal := self.refusal(member, to):
            return [Note("move refused", member.session, refusal)]
        assert target is not None
        return member.handover.start(now, target, stop_first=stop_first)

    def refusal(self, member: Member, to: PeerId | None) -> str:
        """Why this session cannot move (there) now; empty if it can."""
        target = to if to is not None else self.target(member)
        if refusal := member.handover.refusal(target):
            return refusal
        if target is None:
            return "no replica of it is alive and able to take it"
        return "" if target in self.able else "that node is not heard, does not host, or drains itself"

    def target(self, member: Member) -> PeerId | None:
        """The able replica that has the most pages; of equals the first in the award."""
        if member.serving is None:
            return None
        hosting = member.serving.hosting
        able = [one for one in hosting.replicas if one in self.able]
        return max(able, key=hosting.pages.watermark, default=None)

    def tick(self, now: float, members: Iterable[Member]) -> list[Effect]:
        """While the node drains: start what may start."""
        if self._must_at is None or now < self._look_at:
            return []
        self._look_at = now + LOOK_S
        urgency = Urgency.MUST if now >= self._must_at else Urgency.DRAIN
        owned = [one for one in members if one.serving is not None]
        under_way = sum(one.handover.leaving is not None for one in owned)
        effects: list[Effect] = []
        for member in self._ready(now, owned, urgency)[: max(0, AT_ONCE - under_way)]:
            self._not_before[member.session] = now + AGAIN_S
            effects += self.migrate(now, member, None)
        return effects

    def _ready(self, now: float, owned: list[Member], urgency: Urgency) -> list[Member]:
        """Those that move now, the best first."""
        found: list[tuple[float, Member]] = []
        for member in owned:
            if now < self._not_before.get(member.session, now) or self.refusal(member, None):
                continue
            decision = policy.decide(self._standing(member), urgency)
            if decision.verdict is Verdict.MOVE:
                found.append((decision.surplus, member))
        return [member for _, member in sorted(found, key=lambda one: -one[0])]

    def _standing(self, member: Member) -> Standing:
        serving = member.serving
        assert serving is not None
        pages, target = serving.hosting.pages, self.target(member)
        copied = pages.watermark(target) if target is not None else 0
        bytes_left = (pages.page_count - copied) * serving.hosting.card.page_bytes
        wants = member.contract.manifest
        tokens = len(serving.transcript.context)
        stop_s, worth = 2 * serving.pace_s, policy.worth(wants.value, tokens)
        return Standing(wants.characteristics.kind, phase_of(member), bytes_left, stop_s, worth)

    def left(self, members: Iterable[Member]) -> list[Left]:
        """What still runs here, for people."""
        found: list[Left] = []
        for member in members:
            if member.serving is None or member.serving.transcript.closed is not None:
                continue
            move = member.handover.leaving
            refusal = self.refusal(member, None) if move is None else ""
            waits = member.handover.last_refusal or f"waits for its turn ({phase_of(member).value})"
            why = refusal or (move.stage.value if move is not None else waits)
            found.append(Left(member.session, move is not None, not refusal, why))
        return found


def phase_of(member: Member) -> Phase:
    """Where the turn of a session that runs here stands."""
    serving = member.serving
    assert serving is not None
    if serving.transcript.open_turn is None:
        return Phase.PREFILL if serving.queue else Phase.IDLE
    return Phase.DECODE if serving.transcript.said else Phase.PREFILL
