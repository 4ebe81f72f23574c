"""Judges outside the nodes: they see everything, and the brains do not know them.

Each invariant is said in words; the first broken one ends the world. What a voter *claims* is noted when the claim
leaves its process, and compared with what its disk gives back after a crash: that is how an acknowledgement before the
sync, a vote given twice or a rolled-back disk shows, whatever the code looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshnode.ids import Digest, PeerId, SessionId
from meshnode.machine import Durable, Effect, Received, Send, Tick
from meshnode.sessions import hosting, messages, serving
from meshnode.sessions.log import Log
from meshnode.sessions.member import Member
from meshnode.sim.marks import Marks

if TYPE_CHECKING:
    from meshnode.sim.process import Process

AHEAD_MAX = 2 * hosting.AHEAD_MAX + 8
"""Entries beyond the released ones in an owner's log: tokens that were drawn ahead, and openings of epochs."""

SUBSCRIBERS_MAX = 16
"""Clients that a voter remembers of one session."""


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


@dataclass(slots=True)
class Claim:
    """What a voter has told others."""

    promised: int = 0
    epoch: int = 0
    matched: int = 0
    """In `epoch`."""


@dataclass(slots=True)
class Session:
    """What is true of one session."""

    seats: tuple[PeerId, ...] = ()
    owners: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Epoch: (place, life)."""
    released: list[Digest] = field(default_factory=list)
    """The log's hash after each released entry, from seq 0 on."""
    written: dict[tuple[int, int], Digest] = field(default_factory=dict)
    """(epoch of the owner, seq): hash of the log that a follower of that epoch had there."""
    claims: dict[int, Claim] = field(default_factory=dict)
    """By place."""
    seen: dict[int, tuple[int, object]] = field(default_factory=dict)
    """By place: released and serving, when last looked at."""
    released_by: int = 0
    """Epoch of the owner that released the last of them."""


class Truth:
    """All sessions of a world."""

    def __init__(self, marks: Marks, nodes: list[Process]) -> None:
        self.marks = marks
        self.nodes = nodes
        self.sessions: dict[SessionId, Session] = {}

    def of(self, session: SessionId) -> Session:
        return self.sessions.setdefault(session, Session())

    # ---------------------------------------------------------------------------------------------------- around steps

    def step(self, process: Process, event: object, step: Callable[[], list[Effect]]) -> list[Effect]:
        """Let a node's brain take one step, and look at what it did."""
        message = event.message if type(event) is Received else None
        if type(message) is messages.Replicate:
            effects = self._replicate(process, message, step)
        else:
            if type(message) is messages.Ack:
                self._acknowledged(process, message)
            effects = step()
        if type(event) is Durable:
            self._durable(process, event)
        elif type(event) is Tick:
            self._ticked(process)
        for session, member in process.brain.sessions.members.items():
            known = self.of(session)
            now = (member.voter.released, member.serving)
            if known.seen.get(process.place) != now:
                self._changed(process, known, member)
                known.seen[process.place] = now
        return effects

    def _acknowledged(self, process: Process, ack: messages.Ack) -> None:
        member = process.brain.sessions.members.get(ack.session)
        if member is not None and member.contract.award.auction != ack.auction:
            self.marks.hit("two awards of one session")

    def _ticked(self, process: Process) -> None:
        for member in process.brain.sessions.members.values():
            if member.serving is not None and not member.serving.leased(process.now_s):
                self.marks.hit("owner without a lease")

    def _replicate(self, process: Process, ask: messages.Replicate, step: Callable[[], list[Effect]]) -> list[Effect]:
        """A receiver fences: nothing of an epoch older than it has claimed to follow changes its log."""
        member = process.brain.sessions.members.get(ask.session)
        known = self.of(ask.session)
        claim = known.claims.get(process.place)
        if member is None or claim is None or ask.epoch >= claim.promised:
            effects = step()
            self._followed(process, known, ask, effects)
            return effects
        log: Log = member.voter.log
        before = log.last, log.hash_at(log.last), member.voter.released
        effects = step()
        check(before == (log.last, log.hash_at(log.last), member.voter.released), "receivers fence", "stale entries")
        self.marks.hit("stale entries refused")
        return effects

    def _followed(self, process: Process, known: Session, ask: messages.Replicate, effects: list[Effect]) -> None:
        """Two logs that an owner's followers acknowledged at one position are the same log."""
        member = process.brain.sessions.members.get(ask.session)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, messages.Replicated) and effect.message.ok:
                assert member is not None
                self._wrote(known, effect.message.epoch, effect.message.matched, member.voter.log)

    def _wrote(self, known: Session, epoch: int, seq: int, log: Log) -> None:
        check(seq <= log.last, "acknowledged is there", f"seq {seq} of {log.last}")
        at = log.hash_at(seq)
        check(known.written.setdefault((epoch, seq), at) == at, "one log an epoch", f"epoch {epoch} seq {seq}")

    def _durable(self, process: Process, event: Durable) -> None:
        member = process.brain.sessions.members.get(event.session)
        if member is None or member.serving is None or member.serving.epoch != event.epoch:
            return
        known = self.of(event.session)
        self._wrote(known, event.epoch, event.seq, member.voter.log)
        self._claims(known, process, event.epoch, event.epoch, event.seq)

    def _changed(self, process: Process, known: Session, member: Member) -> None:
        voter, of = member.voter, member.serving
        if of is not None and known.seen.get(process.place, (0, None))[1] is not of:
            self._opened(process, known, member, of)
        check(voter.released <= voter.log.last, "released is there", f"{voter.released} of {voter.log.last}")
        if voter.released <= 1:  # the award itself: until the client has acted upon one, another may replace it
            return
        if voter.released >= len(known.released) and of is not None:
            known.released_by = max(known.released_by, of.epoch)
        for seq in range(len(known.released), voter.released + 1):
            known.released.append(voter.log.hash_at(seq))
        at = voter.log.hash_at(voter.released)
        check(known.released[voter.released] == at, "one released log", f"seq {voter.released} at {process.place}")
        if of is not None:
            check(len(of.queue) <= serving.QUEUE_MAX, "bounds", "turns that wait")
            check(voter.log.last - voter.released <= AHEAD_MAX + 4 * of.epoch, "bounds", "drawn ahead")
        check(len(member.subscribers) <= SUBSCRIBERS_MAX, "bounds", "subscribers")

    def _opened(self, process: Process, known: Session, member: Member, of: Any) -> None:
        """A node begins to own."""
        # Alone, a node owns before its promise is on disk; what a crash then takes with it was told to nobody.
        me = (process.place, process.life if member.others else 0)
        check(known.owners.setdefault(of.epoch, me) == me, "one owner an epoch", f"epoch {of.epoch}")
        if any(place == process.place and life not in (0, process.life) for place, life in known.owners.values()):
            self.marks.hit("restarted owner went on")
        claim = known.claims.get(process.place)
        check(claim is None or claim.promised <= of.epoch, "epochs rise", f"owns {of.epoch}, promised more")
        log: Log = of.voter.log
        last = len(known.released) - 1
        # A host that hears the ACK late opens an epoch that is past: it can release nothing, and need hold nothing.
        if last >= 0 and of.epoch >= known.released_by:
            held = log.last >= last and log.hash_at(last) == known.released[last]
            check(held, "the released prefix is in every later owner's log", f"epoch {of.epoch}, seq {last}")
        if of.epoch > 1:
            self.marks.hit("taken over")
        if sum(owns(node, of.session) for node in self.nodes) > 1:
            self.marks.hit("two believed that they own a session")

    # ------------------------------------------------------------------------------------------------------ what leaves

    def sending(self, process: Process, to: PeerId, message: object) -> None:
        """A node's word leaves it: from now on it is held to it."""
        match message:
            case messages.Promise(session, epoch, True):
                self._claims(self.of(session), process, epoch)
            case messages.Promise():
                self.marks.hit("epoch promised to another")
            case messages.Prepare(session, epoch):
                self._claims(self.of(session), process, epoch)
            case messages.Replicated(session, epoch, matched, True):
                self._claims(self.of(session), process, epoch, epoch, matched)
            case messages.Replicated(session, epoch):
                self._claims(self.of(session), process, epoch)
            case messages.Gone() if any(node.peer == to for node in self.nodes):
                self.marks.hit("end heard from another voter")
            case messages.PageAck():
                self._page_ack(process, message)

    def _claims(self, known: Session, process: Process, promised: int, epoch: int = 0, matched: int = 0) -> None:
        claim = known.claims.setdefault(process.place, Claim())
        claim.promised = max(claim.promised, promised)
        if (epoch, matched) > (claim.epoch, claim.matched):
            claim.epoch, claim.matched = epoch, matched

    def _page_ack(self, process: Process, ack: messages.PageAck) -> None:
        """Pages that are acknowledged can be read back, from the last one to the first."""
        assert process.disk is not None
        stored, tip = process.disk.pages.get(ack.session, {}), ack.tip
        for index in range(ack.watermark - 1, -1, -1):
            page = stored.get(tip)
            check(page is not None and page.index == index, "acknowledged pages are there", f"page {index}")
            assert page is not None
            tip = page.parent

    # ---------------------------------------------------------------------------------------------------- after a crash

    def forgotten(self, process: Process, session: SessionId) -> None:
        """The session is over here; nothing more is owed."""
        self.of(session).claims.pop(process.place, None)

    def restarted(self, process: Process, dropped: set[SessionId]) -> None:
        """What the disk gives back holds every claim."""
        for session, known in self.sessions.items():
            claim = known.claims.get(process.place)
            member = process.brain.sessions.members.get(session)
            if session in dropped:
                known.claims.pop(process.place, None)
            elif claim is not None:
                check(member is not None, "promises survive", f"session unknown after a crash at {process.place}")
                self._kept(process, known, claim, member)

    def _kept(self, process: Process, known: Session, claim: Claim, member: Member) -> None:
        voter = member.voter
        words = f"at {process.place}: promised {voter.promised}, log {voter.log.last}, claimed {claim}"
        check(voter.promised >= claim.promised, "promises survive", words)
        # Behind a later epoch's promise the tail may have been replaced, and rightly so.
        if claim.epoch in (voter.promised, voter.log.last_epoch):
            at = known.written[claim.epoch, claim.matched]
            held = voter.log.last >= claim.matched and voter.log.hash_at(claim.matched) == at
            check(held, "acknowledged entries survive", words)


def owns(node: Process, session: SessionId) -> bool:
    """Whether a node believes that it owns the session."""
    member = node.brain.sessions.members.get(session) if node.brain is not None else None
    return member is not None and member.serving is not None


def check(holds: bool, invariant: str, detail: str) -> None:
    """Raises Violation."""
    if not holds:
        raise Violation(invariant, detail)
