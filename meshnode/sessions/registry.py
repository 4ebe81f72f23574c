"""All sessions of one node: who may say what to which of them, and how they come back after a crash."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from meshnode import errors
from meshnode.ids import Digest, PeerId, RequestId, SessionId
from meshnode.machine import (
    Durable,
    Effect,
    Encoded,
    Evicted,
    Faulted,
    Note,
    PageFailed,
    PageStored,
    Persist,
    Restored,
    Send,
    Stepped,
)
from meshnode.manifest import class_fits
from meshnode.ports import EngineCard, Lane
from meshnode.sessions import contract as contracts
from meshnode.sessions import engaged, log, messages, moves, records, refer
from meshnode.sessions.contract import Contract
from meshnode.sessions.lifecycle import State
from meshnode.sessions.member import Member
from meshnode.sessions.repair import Search
from meshnode.sessions.voter import Voter
from meshnode.wire import keys
from meshnode.wire.award import Seat

SESSIONS_MAX = 1024
TOMBSTONES_MAX = 4096
EPOCH_LEAP_MAX = 1 << 20
"""Epochs grow by one a round. One voter that names the last epoch there is would leave none for a takeover."""

FromVoter = (
    messages.Replicate
    | messages.Replicated
    | messages.PreVote
    | messages.PreVoted
    | messages.Prepare
    | messages.Promise
    | messages.PageOffer
    | messages.PageAck
    | refer.FromVoter
    | messages.Gone
    | messages.Route
    | messages.Out
    | messages.Unknown
)
FromAgent = messages.Ack | messages.Subscribe | messages.Message | messages.Interrupt | messages.Bye
FromHands = Durable | Encoded | Stepped | Restored | Faulted | PageStored | PageFailed | Evicted


class Registry:
    """The sessions in which this node has a seat."""

    def __init__(
        self, me: PeerId, card: EngineCard | None, rng: random.Random, identity: keys.Identity | None = None
    ) -> None:
        self.me = me
        self.identity = identity
        """Signs configurations; without it lost voters are not replaced."""
        self.card = card
        self.rng = rng
        self.moves = moves.Moves()
        self.members: dict[SessionId, Member] = {}
        self.stored: dict[SessionId, set[Digest]] = {}
        """Pages in this node's store."""
        self._over: OrderedDict[SessionId, bool] = OrderedDict()
        """Sessions that ended here; whether they were closed for all."""

    # ------------------------------------------------------------------------------------------------- birth and replay

    def born(self, now: float, contract: Contract, sealed: bytes) -> tuple[list[Effect], str]:
        """Take a seat: entry 1 is the award. The refusal, if any, is in words."""
        session = contract.award.session
        known = self.members.get(session)
        if session in self._over:
            return [], "this session is over here"
        if known is not None and known.contract == contract:
            return [], ""  # the same paper twice; a member made anew would forget what it promised
        if known is not None and not _replaceable(known, contract):
            return [], "a session of this name lives here already"
        if known is None and len(self.members) >= SESSIONS_MAX:
            return [], f"this node has a part in {SESSIONS_MAX} sessions already"
        voter = Voter(session)
        host = next(seat.peer for seat in contract.seats if seat.role == "host")
        made = voter.born(log.entry(1, messages.Birth(sealed)), host)
        self.members[session] = self._member(now, contract, voter)
        return [Persist(session, records.pack(record)) for record in made], ""

    def _member(self, now: float, contract: Contract, voter: Voter) -> Member:
        wants, card = contract.manifest.placement, self.card
        fits = card is not None and wants.model in ("", card.model) and wants.model_digest in (b"", card.model_digest)
        fits = fits and card is not None and class_fits(wants.numeric_class, card.numeric_class)
        return Member(self.me, contract, voter, card if fits else None, self.rng, now, self.identity)

    def replay(self, now: float, journal: Iterable[bytes], pages: Mapping[SessionId, set[Digest]]) -> None:
        """Find everything again after a start. Raises StoreError."""
        voters: dict[SessionId, Voter] = {}
        for data in journal:
            record = records.unpack(data)
            if isinstance(record, messages.Dropped):
                voters.pop(record.session, None)
                self._bury(record.session, closed=record.closed)
                continue
            if isinstance(record, messages.Appended):
                if record.prev_seq == 0:
                    self._over.pop(record.session, None)
                    voters[record.session] = _again(voters.get(record.session), record.session)
                elif record.session in self._over:
                    continue  # was on its way to the disk when the journal was written anew without the session
            voter = voters.setdefault(record.session, Voter(record.session))
            try:
                voter.replay(record)
            except errors.PeerError as error:
                raise errors.StoreError(f"the journal does not fit together: {error}") from error
        for session, voter in voters.items():
            if voter.log.last:
                try:
                    self._revive(now, session, voter)
                except errors.PeerError as error:
                    raise errors.StoreError(f"the journal holds an award that cannot be read: {error}") from error
        self.stored = {session: set(known) for session, known in pages.items() if session in self.members}

    def _revive(self, now: float, session: SessionId, voter: Voter) -> None:
        birth = voter.log.changes[0]
        if not isinstance(birth, messages.Birth):
            raise errors.PeerError("the first entry is no award")
        contract = contracts.read(birth.award)
        hosts = [change.host for change in voter.log.changes if isinstance(change, messages.Opened)]
        first = next(seat.peer for seat in contract.seats if seat.role == "host")
        voter.host = hosts[-1] if hosts else first
        self.members[session] = self._member(now, contract, voter)
        self.members[session].revived = True

    def snapshot(self) -> list[tuple[SessionId, bytes]]:
        """The records that say all that is still needed: what a compacted journal holds."""
        found: list[records.Record] = [messages.Dropped(session, closed) for session, closed in self._over.items()]
        for session, member in self.members.items():
            voter = member.voter
            found += [voter.joined] if voter.joined is not None else []
            found += voter.appended(0)
            if voter.candidate is not None:
                found.append(messages.Promised(session, voter.promised, voter.candidate))
        return [(record.session, records.pack(record)) for record in found]

    def _bury(self, session: SessionId, *, closed: bool) -> None:
        self._over[session] = closed
        while len(self._over) > TOMBSTONES_MAX:
            self._over.popitem(last=False)

    # ----------------------------------------------------------------------------------------------------------- events

    def from_voter(self, now: float, peer: PeerId, message: FromVoter) -> list[Effect]:
        """Another voter speaks. Raises PeerError if it has no seat."""
        member = self.members.get(message.session)
        if member is None:
            return self._no_member(peer, message)
        if isinstance(message, messages.Route):
            member.seating.learn(message)  # its signatures speak for it, whoever brought it
            return []
        if not member.hears(peer):
            raise errors.PeerError("a voter's message from a peer that has no seat")
        if getattr(message, "epoch", 0) > member.voter.promised + EPOCH_LEAP_MAX:
            raise errors.PeerError("an epoch that no number of rounds has led to")
        match message:
            case messages.Replicate():
                return member.on_replicate(now, peer, message)
            case messages.Replicated():
                return self._replicated(now, member, peer, message)
            case messages.PreVote():
                return member.on_prevote(peer, message)
            case messages.PreVoted():
                return member.on_prevoted(now, peer, message)
            case messages.Prepare():
                return member.on_prepare(now, peer, message)
            case messages.Promise():
                return member.on_promise(now, peer, message)
            case messages.PageOffer():
                return member.replica.on_offer(peer, message, frozenset(self.stored.get(message.session, ())))
            case messages.PageAck():
                acked = member.serving.on_page_ack(now, peer, message) if member.serving is not None else []
                return acked + member.handover.go_on(now)
            case refer.HandoverRequest() | refer.HandoverReady() | refer.Refer():
                return member.handover.on_message(now, peer, message, moves.DRAINS if self.moves.draining else "")
            case messages.Gone():
                return self._missed_the_end(member)
            case messages.Out():
                out = member.seating.ousts(peer, message)
                return self._remove(member, member.drop(closed=False), closed=False) if out else []
            case messages.Unknown():
                serving = member.serving
                return serving.repair.unknown(now, serving, peer) if serving is not None else []

    def _no_member(self, peer: PeerId, message: FromVoter) -> list[Effect]:
        if self._over.get(message.session, False) and not isinstance(message, messages.Gone):
            return [Send(peer, Lane.SIGNAL, messages.Gone(message.session))]
        asked = isinstance(message, messages.Replicate)
        return [Send(peer, Lane.SIGNAL, messages.Unknown(message.session))] if asked else []

    def _missed_the_end(self, member: Member) -> list[Effect]:
        """It was closed while this voter was away. Believed only by one that looks for an owner, and finds none."""
        if member.serving is not None or not member.noted_evidence:
            return []
        return self._remove(member, member.drop(closed=True), closed=True)

    def _remove(self, member: Member, effects: list[Effect], *, closed: bool) -> list[Effect]:
        del self.members[member.session]
        self.stored.pop(member.session, None)
        self._bury(member.session, closed=closed)
        return effects

    def _replicated(self, now: float, member: Member, peer: PeerId, reply: messages.Replicated) -> list[Effect]:
        if member.serving is None:
            return []
        if reply.epoch > member.serving.epoch:
            member.candidate.outbid(reply.epoch)
            return member.depose(now)
        return member.serving.on_replicated(now, peer, reply)

    def from_agent(self, now: float, client: PeerId, message: FromAgent) -> list[Effect]:
        """A client speaks. Raises PeerError if the session is another's."""
        member = self.members.get(message.session)
        if member is None:
            closed = self._over.get(message.session, False)
            gone = messages.Concluded(message.session) if closed else messages.Gone(message.session)
            return [Send(client, Lane.SIGNAL, gone)]
        if client != member.contract.agent:
            raise errors.PeerError("a message for a session that another agent signed for")
        serving = member.serving
        match message:
            case messages.Ack(_, auction):
                return member.on_ack(now) if auction == member.contract.award.auction else []
            case messages.Subscribe():
                return member.on_subscribe(now, client, message)
            case messages.Message():
                return serving.on_message(now, client, message) if serving is not None else []
            case messages.Interrupt():
                return serving.on_interrupt(now, message.request) if serving is not None else []
            case messages.Bye():
                return serving.on_bye(now, message.reason) if serving is not None else []

    def from_hands(self, now: float, event: FromHands) -> list[Effect]:
        """Something that a hand was asked for is done."""
        member = self.members.get(event.session)
        if member is None:
            return []
        match event:
            case PageStored(peer, session, epoch, index, address, parent):
                self.stored.setdefault(session, set()).add(address)
                return member.page_stored(peer, index, address, parent, epoch)
            case PageFailed(_, reason, to):
                if member.serving is not None and to is not None:
                    return member.serving.on_page_failed(to, reason)
                return [Note("page failed", event.session, reason)]
            case Evicted(session):
                self.stored.pop(session, None)
                return member.replica.on_evicted()
            case Restored() | Stepped() | Faulted():
                return engaged.worked(now, member, event)
        serving = member.serving
        if serving is None:
            return []
        match event:
            case Durable(_, epoch, seq):
                return serving.on_durable(now, seq) if epoch == serving.epoch else []
            case Encoded():
                return serving.on_encoded(now, event)

    def admits(self, peer: PeerId, session: SessionId, page_index: int, epoch: int) -> None:
        """Raises PeerError for a page that must not be stored."""
        member = self.members.get(session)
        if member is None or not member.hears(peer):
            raise errors.PeerError("a page for a session that does not expect one")
        member.admit_page(peer, page_index, epoch)

    def severed_from(self, now: float, peer: PeerId) -> list[Effect]:
        """The mesh has evidence that a peer is gone."""
        return [effect for member in self.members.values() for effect in member.severed_from(now, peer)]

    def relinked(self, now: float, peer: PeerId) -> list[Effect]:
        """A link to a peer came up."""
        serving = [one.serving for one in self.members.values() if one.serving is not None and one.hears(peer)]
        return [effect for one in serving for effect in one.relinked(now, peer)]

    def release(self, peer: PeerId, auction: RequestId, session: SessionId) -> list[Effect]:
        """The auctioneer takes its award back. Raises PeerError for anybody else."""
        member = self.members.get(session)
        if member is None or member.state is not State.PROCEEDING or member.contract.award.auction != auction:
            return []
        if peer != member.contract.auctioneer:
            raise errors.PeerError("a release from somebody who did not award this session")
        return self._remove(member, member.drop(closed=False), closed=False)

    def ordered(self, now: float, order: moves.Order) -> list[Effect]:
        """The node's owner speaks."""
        return self.moves.ordered(now, order, self.members)

    # ----------------------------------------------------------------------------------------------------------- repair

    def searches(self, now: float) -> list[tuple[Member, Search]]:
        """Seats to find somebody for; each is said once, and answered by `found` or `not_found`."""
        serving = [(one, one.serving.repair.search(now, one.serving)) for one in self.members.values() if one.serving]
        return [(member, search) for member, search in serving if search is not None]

    def found(self, now: float, session: SessionId, seat: Seat) -> list[Effect]:
        """A node is in and waits for the log."""
        member = self.members.get(session)
        if member is None or member.serving is None:
            return []  # it hears nothing and forgets the session by itself
        return member.serving.repair.found(now, member.serving, seat)

    def not_found(self, now: float, session: SessionId, reason: str) -> None:
        """Nobody could take the seat."""
        member = self.members.get(session)
        if member is not None and member.serving is not None:
            member.serving.repair.not_found(now, reason)

    def joined(
        self, now: float, contract: Contract, sealed: bytes, joined: messages.Joined
    ) -> tuple[list[Effect], str]:
        """Come in as a learner: log and pages follow. The refusal, if any, is in words."""
        known = self.members.get(joined.session)
        if known is not None:
            before = known.voter.joined
            if before is None or known.seating.seated:
                return [], "this node has a part in that session"
            # Asked in before, and never seated as far as it knows: it keeps what it has and promised.
            anew = known.voter.join(replace(joined, since=max(joined.since, before.since)))
            return [Persist(joined.session, records.pack(record)) for record in anew], ""
        if self._over.get(joined.session, False):
            return [], "this session is over here"
        if len(self.members) >= SESSIONS_MAX:
            return [], f"this node has a part in {SESSIONS_MAX} sessions already"
        self._over.pop(joined.session, None)
        voter = Voter(joined.session)
        host = next(seat.peer for seat in contract.seats if seat.role == "host")
        made = [*voter.join(joined), *voter.born(log.entry(1, messages.Birth(sealed)), host)]
        self.members[joined.session] = member = self._member(now, contract, voter)
        member.state = State.ACTIVE
        return [Persist(joined.session, records.pack(record)) for record in made], ""

    # ------------------------------------------------------------------------------------------------------------- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever time makes due, and farewell to what is over."""
        effects = self.moves.tick(now, self.members.values())
        for member in list(self.members.values()):
            effects += member.tick(now)
            last = member.finished(now)
            if last is not None:
                effects += self._remove(member, last, closed=member.voter.closed)
        return effects

    @property
    def deadline(self) -> float:
        """The soonest of all sessions."""
        return min([self.moves.deadline, *(member.deadline for member in self.members.values())])


def _replaceable(known: Member, contract: Contract) -> bool:
    """Whether another award of the same agent may take the place of one that nobody has acted upon. Of one auction, a
    later one: what was overtaken on its way is withdrawn."""
    untouched = known.state is State.PROCEEDING and known.voter.promised == 1
    old, new = known.contract.award, contract.award
    overtaken = old.auction == new.auction and new.attempt < old.attempt
    return untouched and known.contract.agent == contract.agent and not overtaken


def _again(known: Voter | None, session: SessionId) -> Voter:
    """A log that begins anew (a second award of one session) keeps what was promised."""
    fresh = Voter(session)
    if known is not None:
        fresh.promised, fresh.candidate, fresh.joined = known.promised, known.candidate, known.joined
    return fresh
