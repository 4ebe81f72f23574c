"""One voter's part in one session: composes voter, candidate and, while this node owns the session, serving.

Everything a member says goes through here, in one order of questions: is the sender a voter (or the agent), is the
epoch not older than what was promised, and only then what to do. A host is judged by what *this session* hears from
it: a node that pings but has lost the session is as dead as one that does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from meshnode import errors
from meshnode.ids import Digest, PeerId, SessionId
from meshnode.machine import Effect, Forget, Note, Persist, Send, Unload
from meshnode.manifest import Sharing
from meshnode.ports import EngineCard, Lane
from meshnode.sessions import audience, failover, lifecycle, messages, records, timers
from meshnode.sessions.audience import Subscriber
from meshnode.sessions.contract import Contract
from meshnode.sessions.failover import Act
from meshnode.sessions.handover import Handover
from meshnode.sessions.hosting import Hosting
from meshnode.sessions.lifecycle import State
from meshnode.sessions.replica import Replica
from meshnode.sessions.seating import Seating
from meshnode.sessions.serving import Serving
from meshnode.sessions.transcript import Transcript
from meshnode.sessions.voter import Record, Voter
from meshnode.wire import keys

PROBES_MAX = {False: 6, True: 400}
"""Of a newcomer that nobody writes to, before it forgets the session: one that lacks what it was asked in for has no
seat yet; one that has it may have been seated without hearing of it, and then others wait for it."""


class Member:
    """One session at one voter."""

    def __init__(
        self,
        me: PeerId,
        contract: Contract,
        voter: Voter,
        card: EngineCard | None,
        rng: random.Random,
        now: float,
        identity: keys.Identity | None = None,
    ) -> None:
        self.me = me
        self.session: SessionId = voter.session
        self.contract = contract
        self.voter = voter
        self.timers = timers.TIMERS[contract.manifest.characteristics.kind]
        self.state = State.PROCEEDING if voter.log.last <= 1 else State.ACTIVE
        self.born_at = now
        self.heard_at = now
        """When the present owner was last heard in this session."""
        self.severed = False
        """The link to it was reset and a redial failed."""
        self.subscribers: dict[PeerId, Subscriber] = {}
        self.serving: Serving | None = None
        self.hosting: Hosting | None = None
        self._card = card
        self._loads = 0
        self._asked = failover.Questions()
        self.seating = Seating(me, contract, voter, identity)
        self.candidate = failover.Candidate(
            me, self.seating.electorate, self.seating.rank if card is not None else None, rng
        )
        self.replica = Replica(voter, card)
        self.handover = Handover(self)
        self.noted_evidence = False
        self._probe_at = now
        self._probes = 0
        """Since an owner was heard. Counted, and not timed: a machine that was suspended hears first what it missed."""
        self.revived = False
        """Whether this member comes from the journal, and not from an award of this process's life."""

    @property
    def others(self) -> tuple[PeerId, ...]:
        """The other voters, as far as this one heard."""
        return self.seating.others

    def hears(self, peer: PeerId) -> bool:
        """Whether this peer's frames are read: it has or had a seat, or is about to get one from us."""
        return peer in self.seating.known or self._asked_in(peer)

    def _asked_in(self, peer: PeerId) -> bool:
        """Whether it is on its way to a seat: what it asks meanwhile, it asks in a seat that it had before."""
        learner = self.serving.repair.learner if self.serving is not None else None
        return learner is not None and learner.peer == peer

    # ------------------------------------------------------------------------------------------------------ ownership

    @property
    def host(self) -> PeerId | None:
        """Who owns the session, as far as this voter heard."""
        return self.voter.host

    def on_ack(self, now: float) -> list[Effect]:
        """The agent accepts: the award's host begins; the others know that the session lives."""
        if self.state is not State.PROCEEDING:
            return []
        self.state = lifecycle.move(self.state, State.ACTIVE)
        self.heard_at = now
        # Epoch 1 is begun once. Whoever promised a later one since, or came back from a crash in which entries of its
        # first life may have been lost here and not elsewhere, would write an epoch's entries a second time.
        if self.voter.host != self.me or self.voter.promised != 1 or self.revived or self._card is None:
            return []
        self.load()
        return self._serve(now, 1)

    def load(self) -> Hosting:
        """Give the session a place in the engine, still empty."""
        assert self._card is not None
        self._loads += 1
        context_tokens = self.contract.manifest.characteristics.context_tokens
        shared = self.contract.manifest.migration.sharing is Sharing.TENANT
        domain = self.contract.agent if shared else b""
        self.hosting = Hosting(self.session, self._loads, self._card, context_tokens, domain)
        return self.hosting

    def _serve(self, now: float, epoch: int) -> list[Effect]:
        assert self.hosting is not None
        assert self.serving is None
        self.candidate.stand_down()
        self.voter.epoch, self.voter.host = epoch, self.me
        self.severed = self.noted_evidence = False
        self.handover.reset()
        self.serving = Serving(
            self.me,
            self.voter,
            epoch,
            self.seating,
            self.hosting,
            self.contract.manifest,
            self.timers,
            self.subscribers,
            now,
        )
        seats = self.seating.current.seats
        replicas = tuple(seat.peer for seat in seats if seat.role != "witness" and seat.peer != self.me)
        effects = self.serving.open(now, replicas)
        over = self.serving.transcript.closed is not None
        self.state = lifecycle.move(self.state, State.TERMINATING if over else State.ACTIVE)
        return effects

    def depose(self, now: float) -> list[Effect]:
        """Another has a higher epoch: serve no more, unload."""
        self.heard_at = now
        effects: list[Effect] = [Unload(self.session)] if self.hosting is not None else []
        if self.serving is not None:
            effects.append(Note("deposed", self.session, f"epoch={self.serving.epoch}"))
        if self.voter.host == self.me:
            self.voter.host = None  # somebody has the higher epoch, and gets the time that any owner gets
        self.serving = self.hosting = None
        self.handover.reset()
        return effects

    def _persist(self, made: Sequence[Record]) -> list[Effect]:
        return [Persist(self.session, records.pack(record)) for record in made]

    # --------------------------------------------------------------------------------------------------- being a voter

    def on_replicate(self, now: float, peer: PeerId, ask: messages.Replicate) -> list[Effect]:
        """An owner's entries or heartbeat."""
        if ask.epoch == self.voter.epoch and self.serving is not None:
            raise errors.PeerError("entries of an epoch that this node owns")
        made, reply = self.voter.on_replicate(peer, ask)
        effects = self._persist(made)
        if reply.epoch == ask.epoch:
            effects += self._heard(now, ask.epoch)
        effects.append(Send(peer, Lane.MEDIA, reply, self.session))
        return effects

    def _heard(self, now: float, epoch: int) -> list[Effect]:
        kept = self.handover.keeps(epoch)
        deposed = self.serving is not None or (self.hosting is not None and not kept)
        effects = self.depose(now) if deposed else []
        self.heard_at = now
        self.severed = self.noted_evidence = False
        self._asked.clear()
        self._probes = 0
        self.seating.owner_heard()
        self.candidate.stand_down()
        if self.state in (State.PROCEEDING, State.MIGRATING, State.RECOVERING):
            self.state = lifecycle.move(self.state, State.ACTIVE)
        return effects + self.handover.follow()

    def on_prevote(self, peer: PeerId, ask: messages.PreVote) -> list[Effect]:
        """Remember the question; the answer comes with the evidence."""
        if self.seating.ousted(peer) and not self._asked_in(peer):
            return [Send(peer, Lane.SIGNAL, messages.Out(self.session, self.seating.settled.number))]
        if self.serving is not None or not self.voter.votes:
            return []
        route = self.seating.route(self.voter.log.last)
        if route is not None and peer not in self.seating.current.voters:
            # Its seat is gone in this log, which a majority may not have yet: it must not hold up those who have one.
            return [Send(peer, Lane.SIGNAL, route)]
        if ask.epoch <= self.voter.promised:
            # Without this a voter that missed a promise would ask for that epoch for ever.
            known = messages.Promise(self.session, self.voter.promised, False, 0, 0, 0, ())
            return [Send(peer, Lane.SIGNAL, known, self.session)]
        self._asked.note(peer, ask.epoch)
        # Who owned it and asks for votes does not own it any more, and to whom it was given one may give it.
        released = peer == self.voter.host or self.handover.gave_to(peer)
        return self._answer_prevotes(peer) if self.noted_evidence or released else []

    def _answer_prevotes(self, to: PeerId | None = None) -> list[Effect]:
        route = self.seating.route(self.voter.log.last)
        return self._asked.answers(self.session, self.voter.promised, route, to)

    def on_prepare(self, now: float, peer: PeerId, ask: messages.Prepare) -> list[Effect]:
        """Promise, durably, and show the log."""
        if self.seating.ousted(peer) and not self._asked_in(peer):
            return [Send(peer, Lane.SIGNAL, messages.Out(self.session, self.seating.settled.number))]
        if not self.voter.votes:
            return []
        made, reply = self.voter.on_prepare(peer, ask)
        effects = self._persist(made)
        if made:
            effects += self.depose(now) if self.serving is not None else []
            self.handover.reset()
            self.candidate.stand_down()
            self.heard_at = now  # the candidate gets its time before anybody else stands
            self.noted_evidence = False
        return [*effects, Send(peer, Lane.SIGNAL, reply, self.session)]

    # ------------------------------------------------------------------------------------------------ being a candidate

    def severed_from(self, now: float, peer: PeerId) -> list[Effect]:
        """The link to a peer was reset and could not be made again."""
        if self.serving is not None:
            self.serving.repair.severed(peer)
            return self.serving.repair.tick(now, self.serving) + self.handover.severed_from(now, peer)
        if peer != self.voter.host and not self.handover.gave_to(peer):
            return []
        self.severed = True
        return self.tick(now)

    def _evidence(self, now: float) -> str:
        if self.voter.host == self.me:
            return "restarted"
        if self.severed:
            return "reset"
        if found := self.handover.evidence(now):
            return found
        return "silence" if now >= self.heard_at + self.timers.lost_after_s else ""

    def _watch(self, now: float) -> list[Effect]:
        evidence = self._evidence(now)
        if not evidence:
            return []
        effects: list[Effect] = []
        if not self.noted_evidence:
            self.noted_evidence = True
            effects.append(Note("detected", self.session, evidence))
            effects += self._answer_prevotes()
            self.state = lifecycle.move(self.state, State.RECOVERING)
        if not self.stands:
            return effects + self._probe(now)
        self.candidate.rank = self.seating.rank
        self.candidate.begin(now)
        if self.candidate.due <= now:
            self.candidate.voters = self.seating.electorate
        act = self.candidate.tick(now, self.voter.promised)
        return effects + (self.act(now, act) if act is not None else [])

    @property
    def stands(self) -> bool:
        """Whether this voter may become the owner: it can host, it has a seat, and its log shows where its vote
        counts."""
        return self._card is not None and self.me in self.seating.electorate and self.voter.votes

    def _probe(self, now: float) -> list[Effect]:
        """Who cannot stand asks all the same, for an epoch that costs nobody a vote: it may have missed the end."""
        if now < self._probe_at:
            return []
        self._probe_at = now + self.timers.lost_after_s
        self._probes += 1
        ask = messages.PreVote(self.session, self.voter.promised)
        return [Send(peer, Lane.SIGNAL, ask) for peer in self.others]

    def act(self, now: float, act: Act) -> list[Effect]:
        """What the candidate decided."""
        match act:
            case Act.PREVOTE:
                # Restoring costs nobody a vote, so it starts while the votes are on their way.
                effects = [] if self.hosting is not None else self.load().restore(self.context())
                ask = messages.PreVote(self.session, self.candidate.epoch)
                return effects + [Send(peer, Lane.SIGNAL, ask) for peer in self.others]
            case Act.PREPARE:
                made = self.voter.promise(self.candidate.epoch, self.me)
                self.candidate.preparing(now, self.voter.released, frozenset(self.others))
                effects = [*self._persist(made), *self._prepare(self.others, self.voter.released)]
                return effects + self._decide(now)
            case Act.WIDEN:
                return self._prepare(self.candidate.widen(), self.candidate.after)
            case Act.FETCH:
                assert self.candidate.best is not None
                return self._prepare((self.candidate.best,), self.candidate.next_fetch(now))
            case Act.TAKE:
                return self._take(now)

    def _prepare(self, to: tuple[PeerId, ...], after: int) -> list[Effect]:
        ask = messages.Prepare(self.session, self.candidate.epoch, after)
        return [Send(peer, Lane.SIGNAL, ask, self.session) for peer in to]

    def context(self) -> list[int]:
        """Token ids, as far as the log goes here."""
        return Transcript(self.voter.log.changes).context

    def on_prevoted(self, now: float, peer: PeerId, reply: messages.PreVoted) -> list[Effect]:
        """A vote."""
        act = self.candidate.on_prevoted(peer, reply.epoch)
        return self.act(now, act) if act is not None else []

    def on_promise(self, now: float, peer: PeerId, promise: messages.Promise) -> list[Effect]:
        """A promise, or a higher one that was given to another."""
        if not promise.granted:
            self.candidate.outbid(promise.epoch)
            return []
        return self._decide(now) if self.candidate.on_promise(peer, promise) else []

    def _decide(self, now: float) -> list[Effect]:
        last = self.voter.log.last
        after = self.candidate.after
        act = self.candidate.decide(
            self.voter.log.last_epoch, last, lambda entries: self.seating.behind(after, entries)
        )
        return self.act(now, act) if act is not None else []

    def _take(self, now: float) -> list[Effect]:
        epoch = self.candidate.epoch
        effects: list[Effect] = []
        adopted = self.candidate.adopted()
        if adopted is not None:
            effects += self._persist(self.voter.adopt(self.candidate.after, adopted))
        if self.hosting is None:
            effects += self.load().restore(self.context())
        effects.append(Note("elected", self.session, f"epoch={epoch} adopted={len(adopted or ())}"))
        return effects + self._serve(now, epoch)

    # ----------------------------------------------------------------------------------------------------------- pages

    def admit_page(self, peer: PeerId, page_index: int, epoch: int) -> None:
        """Raises PeerError for a page that must not be stored."""
        if self.serving is not None:
            raise errors.PeerError("a page for a session that does not expect one")
        self.replica.admit(peer, page_index, epoch)

    def page_stored(self, peer: PeerId, index: int, address: Digest, parent: Digest, epoch: int) -> list[Effect]:
        """A page of this session came to rest in the store."""
        return self.replica.stored(peer, index, address, parent, epoch) if self.serving is None else []

    # --------------------------------------------------------------------------------------------------------- clients

    def on_subscribe(self, now: float, client: PeerId, ask: messages.Subscribe) -> list[Effect]:
        """A client attends. Every voter remembers it, the owner answers."""
        audience.attend(self.subscribers, client, min(ask.after, self.voter.log.last), now)
        route = self.seating.route(self.voter.released)
        told: list[Effect] = [Send(client, Lane.SIGNAL, route)] if route is not None else []
        return told + (self.serving.on_subscribe(now, client) if self.serving is not None else [])

    # ------------------------------------------------------------------------------------------------------------ time

    def tick(self, now: float) -> list[Effect]:
        """Whatever time makes due."""
        if self.state in (State.PROCEEDING, State.TERMINATED):
            return []
        effects = self.serving.tick(now) if self.serving is not None else self._watch(now)
        return effects + self.handover.tick(now)

    @property
    def deadline(self) -> float:
        """When `tick` has something to do."""
        if self.state is State.PROCEEDING:
            return self.born_at + 2 * self.timers.invite_s
        if self.serving is not None:
            return min(self.serving.owner.heartbeat_at, self.handover.deadline)
        if not self.noted_evidence:
            return min(self.heard_at + self.timers.lost_after_s, self.handover.deadline)
        return self.candidate.due if self.stands else self._probe_at

    def finished(self, now: float) -> list[Effect] | None:
        """None while the session lives here; otherwise the last effects."""
        stillborn = self.state is State.PROCEEDING and now >= self.deadline
        over = self.serving.over(now) if self.serving is not None else self.voter.closed
        # A newcomer that nobody seated and nobody writes to: its sponsor died, or chose another.
        abandoned = not self.seating.seated and self._probes > PROBES_MAX[self.voter.votes]
        if not stillborn and not over and not abandoned:
            return None
        return self.drop(closed=over)

    def drop(self, *, closed: bool) -> list[Effect]:
        """The last effects."""
        self.state = lifecycle.move(self.state, State.TERMINATED)
        dropped = records.pack(messages.Dropped(self.session, closed))
        return [Persist(self.session, dropped), Forget(self.session)]
