"""An owner at work: turns in, tokens out, nothing shown before a majority has it.

Lives as long as this node owns the session in one epoch. Every change goes the same way: into the log, to the
followers, to the own disk, and when a majority has it, to the subscribers. Between the first and the last step the
engine may run ahead by a few tokens (hosting.AHEAD_MAX), which hides the round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from meshnode import options
from meshnode.ids import PeerId, RequestId
from meshnode.machine import Durable, Effect, Encode, Encoded, Faulted, Note, Persist, Post, Restored, Send, Stepped
from meshnode.manifest import Agent, Manifest
from meshnode.ports import Lane, Sampling
from meshnode.sessions import log, messages, owner, records
from meshnode.sessions.audience import Subscriber
from meshnode.sessions.hosting import Hosting
from meshnode.sessions.messages import Change, Closed, End, Message, Notify, Opened, PageAck, PageOffer, Replicated
from meshnode.sessions.repair import Repair
from meshnode.sessions.seating import Seating
from meshnode.sessions.timers import Timers
from meshnode.sessions.transcript import Transcript
from meshnode.sessions.voter import Voter
from meshnode.wire.award import Seat

QUEUE_MAX = 8
"""Turns that wait for the running one."""
FAREWELL_S = 5.0
"""How long, and for three heartbeats at least, an owner tells its followers that the session is over."""

PAGES_STALL_S = 5.0
"""Pages that nobody acknowledged for so long are sent again: a full queue may have lost one."""

PACE_S, PACE_SHARE = 0.05, 0.2
"""What a step is thought to take before one was seen, and how much the latest one counts."""


class Serving:
    """One owner, one epoch."""

    def __init__(
        self,
        me: PeerId,
        voter: Voter,
        epoch: int,
        seating: Seating,
        hosting: Hosting,
        manifest: Manifest,
        timers: Timers,
        subscribers: dict[PeerId, Subscriber],
        now: float,
    ) -> None:
        self.me = me
        self.session = voter.session
        self.voter = voter
        self.epoch = epoch
        self.hosting = hosting
        self.manifest = manifest
        self.timers = timers
        self.subscribers = subscribers
        others = tuple(sorted(seating.current.voters - {me}))
        self.owner = owner.Owner(voter.log, epoch, me, others, now)
        self.repair = Repair(seating, len(seating.contract.seats))
        self.transcript = Transcript(voter.log.changes)
        self.queue: list[tuple[PeerId, Message]] = []
        self.stopping = False
        """The session is about to be handed over: no step begins any more."""
        self.pace_s = PACE_S
        """Seconds between two tokens, lately."""
        self._drawn_at = now
        self._encoding: RequestId | None = None
        self._closed_at: float | None = None
        self._first_noted = False
        self._pages_moved_at = now
        self._attended_at = now

    # -------------------------------------------------------------------------------------------------------- opening

    def open(self, now: float, replicas: tuple[PeerId, ...]) -> list[Effect]:
        """Write the epoch's first entry, introduce oneself to clients and replicas."""
        self.hosting.own(self.epoch, replicas)
        self.hosting.align(self.transcript.context)
        effects = [*self.repair.greet(sorted(self.owner.voters - {self.me}), self.voter.log.last)]
        effects += self.repair.greet(list(self.subscribers), self.voter.released)
        effects += self.write(now, [Opened(self.me)])
        if not self.hosting.busy:
            self.hosting.seal()
        effects += self._offer_pages()
        effects += self.introduce()
        return effects + self.pump(now)

    def _offer_pages(self, to: PeerId | None = None) -> list[Effect]:
        """Ask every replica, or this one, what it has of this chain already."""
        chain = self.hosting.chain()
        if not chain:
            return []
        offer = PageOffer(self.session, self.epoch, chain)
        asked = self.hosting.replicas if to is None else (to,)
        return [Send(replica, Lane.SIGNAL, offer, self.session) for replica in asked]

    def introduce(self) -> list[Effect]:
        """Tell every client that remembers us as a voter who owns the session now."""
        notify = Notify(self.session, self.epoch, self.voter.released, (), self.voter.released)
        return [Send(client, Lane.MEDIA, notify) for client in self.subscribers]

    # ------------------------------------------------------------------------------------------------------------ log

    def write(self, now: float, changes: Sequence[Change]) -> list[Effect]:
        """Append, replicate, persist; what a majority has is released in `_release`."""
        if not changes:
            return []
        before = self.voter.log.last
        entries = [log.entry(self.epoch, change) for change in changes]
        for of in entries:
            self.transcript.add(self.voter.log.append(of))
        if any(isinstance(change, messages.Seated) for change in changes):
            self._reseat()
        effects = self._replicate(now)
        record = messages.Appended(self.session, before, tuple(entries), self.voter.released)
        effects.append(Persist(self.session, records.pack(record)))
        effects.append(Post(self.session, Durable(self.session, self.epoch, self.voter.log.last)))
        return effects

    def _replicate(self, now: float, *, heartbeat: bool = False) -> list[Effect]:
        # Not ordered behind our own disk: a follower may well be durable first, only the count needs both.
        outbound = self.owner.outbound(now, self.voter.released, heartbeat=heartbeat)
        return [Send(peer, Lane.MEDIA, message) for peer, message in outbound]

    def on_durable(self, now: float, seq: int) -> list[Effect]:
        """Our own disk has it."""
        self.owner.durable = max(self.owner.durable, min(seq, self.voter.log.last))
        return self._release(now)

    def on_replicated(self, now: float, peer: PeerId, reply: Replicated) -> list[Effect]:
        """A follower has it, or lacks something."""
        self.owner.on_replicated(peer, reply, now)
        self.repair.replicated(peer)
        effects = self._release(now) + self.repair.tick(now, self)
        more = not reply.ok or peer not in self.owner.voters
        return effects + (self._replicate(now) if more else []) + self.pump(now)

    def relinked(self, now: float, peer: PeerId) -> list[Effect]:
        """A link to a follower came up again."""
        self.owner.relinked(peer)
        self.repair.relinked(peer)
        if peer in self.hosting.replicas:
            self.hosting.pages.added(peer)
            self.hosting.pages.link_down(peer)
        return [*self.repair.greet([peer], self.voter.log.last), *self._replicate(now, heartbeat=True)]

    def _release(self, now: float) -> list[Effect]:
        released = self.owner.releasable()
        if released <= self.voter.released:
            return []
        before, self.voter.released = self.voter.released, released
        effects = self.repair.settled(before, self) + self.repair.tick(now, self)
        for client in self.subscribers:
            effects += self.push(client)
        if self.transcript.closed is not None and released == self.voter.log.last and self._closed_at is None:
            self._closed_at = now
            effects += self._replicate(now, heartbeat=True)
        return effects + self.pump(now)

    # ---------------------------------------------------------------------------------------------------------- seats

    def _reseat(self) -> None:
        """The log's latest configuration counts from here on."""
        current = self.repair.seating.current
        self.owner.reseat(current.voters)
        self.hosting.supply(tuple(seat.peer for seat in current.seats if _keeps_pages(seat, self.me)))

    def enrol(self, now: float, seat: Seat) -> list[Effect]:
        """Send a learner the log and the pages."""
        effects = self._replicate(now, heartbeat=True)
        if not _keeps_pages(seat, self.me):
            return effects
        self.hosting.supply((*self.hosting.replicas, seat.peer))
        return effects + self._offer_pages(seat.peer) + self.pump(now)

    def dismiss(self, peer: PeerId) -> None:
        """Send it nothing any more."""
        self.hosting.supply(tuple(one for one in self.hosting.replicas if one != peer))

    # -------------------------------------------------------------------------------------------------------- clients

    def push(self, client: PeerId) -> list[Effect]:
        """Released entries that this client has not been sent."""
        subscriber = self.subscribers[client]
        effects: list[Effect] = []
        while subscriber.sent < self.voter.released:
            count = self.voter.released - subscriber.sent
            entries = self.voter.log.after(subscriber.sent, min(count, messages.ENTRIES_MAX))
            notify = Notify(self.session, self.epoch, subscriber.sent, entries, self.voter.released)
            effects.append(Send(client, Lane.MEDIA, notify))
            subscriber.sent += len(entries)
        return effects

    def on_subscribe(self, now: float, client: PeerId) -> list[Effect]:
        """Send what is missing, and if nothing is, say at least who we are."""
        if pushed := self.push(client):
            return pushed
        if not self.leased(now):
            return []
        notify = Notify(self.session, self.epoch, self.voter.released, (), self.voter.released)
        return [Send(client, Lane.MEDIA, notify)]

    def on_message(self, now: float, client: PeerId, message: Message) -> list[Effect]:
        """A turn. A repeat of one that is known changes nothing: its record is in the log, which the client reads."""
        waiting = {queued.request for _, queued in self.queue}
        if message.request in self.transcript.requests or message.request in waiting:
            return []
        if self.transcript.closed is not None:
            return [self._denied(client, message.request, 481, "the session is over")]
        if len(self.queue) >= QUEUE_MAX:
            return [self._denied(client, message.request, 491, f"{QUEUE_MAX} turns are waiting already")]
        if reasons := self._problems(message):
            return [self._denied(client, message.request, 400, *reasons)]
        self.queue.append((client, message))
        return self.pump(now)

    def on_interrupt(self, now: float, request: RequestId) -> list[Effect]:
        """End the running turn, or take back one that waits."""
        self.queue = [(client, queued) for client, queued in self.queue if queued.request != request]
        turn = self.transcript.open_turn
        if turn is None or turn.request != request:
            return []
        return self.write(now, [End("interrupted")]) + self.pump(now)

    def on_bye(self, now: float, reason: str) -> list[Effect]:
        """End the session."""
        if self.transcript.closed is not None:
            return []
        ending: list[Change] = [End("interrupted")] if self.transcript.open_turn is not None else []
        return self.write(now, [*ending, Closed(reason)])

    def _denied(self, client: PeerId, request: RequestId, status: int, *reasons: str) -> Effect:
        denied = messages.Denied(self.session, request, status, tuple(reason[:512] for reason in reasons))
        return Send(client, Lane.MEDIA, denied)

    def _agent(self, message: Message) -> Agent:
        """The manifest's agent table with the turn's options over it."""
        return options.over(self.manifest.agent, message.options)

    def _problems(self, message: Message) -> list[str]:
        wanted = self._agent(message)
        vocabulary = self.hosting.card.vocabulary
        beyond = any(bias.token >= vocabulary for bias in wanted.logit_bias)
        found = [f"logit_bias: the vocabulary has {vocabulary} tokens"] if beyond else []
        return options.problems(wanted) + found

    # --------------------------------------------------------------------------------------------------------- engine

    def leased(self, now: float) -> bool:
        """Whether a majority answered lately. Without that an owner is silent: its client must not wait for it."""
        return now <= self.owner.lease_until(self.timers.lease_s)

    @property
    def prefilling(self) -> bool:
        """Whether the engine lacks much of the context: it fills pages faster than it will in decoding."""
        open_turn = self.transcript.open_turn is not None
        return open_turn and len(self.transcript.context) - len(self.hosting.loaded) > self.hosting.card.page_tokens

    def pump(self, now: float) -> list[Effect]:
        """Whatever can go on now: pages, the next step, the next turn. Without a lease, nothing."""
        if self.transcript.closed is not None or self.stopping or not self.leased(now):
            return []
        effects = self.hosting.ship()
        if self.transcript.open_turn is None:
            return effects + self._next_turn()
        return effects + self.hosting.next_step(self.transcript, self.voter.log.last - self.voter.released)

    def _next_turn(self) -> list[Effect]:
        if not self.queue or self._encoding is not None:
            return []
        message = self.queue[0][1]
        self._encoding = message.request
        first = self.transcript.turns == 0
        system = self.manifest.agent.system or None
        closed = self.transcript.eos_closed
        grammar = self._agent(message).grammar
        return [Encode(self.session, message.request, message.text, system, first, closed, grammar)]

    def on_encoded(self, now: float, event: Encoded) -> list[Effect]:
        """The turn's ids; it enters the log unless it does not fit."""
        if event.request != self._encoding:
            return []
        self._encoding = None
        if not self.queue or self.queue[0][1].request != event.request:
            return self.pump(now)
        client, message = self.queue.pop(0)
        if self.transcript.closed is not None:
            return [self._denied(client, message.request, 481, "the session is over")]
        if event.refusal:
            return [self._denied(client, message.request, 400, event.refusal), *self.pump(now)]
        if not event.ids:
            return [self._denied(client, message.request, 400, "the turn has no tokens"), *self.pump(now)]
        room = min(self.hosting.context_tokens_max - len(self.transcript.context) - 1, messages.TURN_TOKENS_MAX)
        if len(event.ids) > room:
            reason = f"the turn has {len(event.ids)} tokens and the context has room for {max(0, room)}"
            return [self._denied(client, message.request, 413, reason), *self.pump(now)]
        most = min(message.max_tokens or self.manifest.agent.max_tokens, room - len(event.ids) + 1)
        wanted = self._agent(message)
        sampling = Sampling(**{field.name: getattr(wanted, field.name) for field in fields(Sampling)})
        turn = messages.Turn(message.request, event.ids, max(1, most), sampling, wanted.stop)
        return self.write(now, [turn]) + self.pump(now)

    def on_stepped(self, now: float, event: Stepped) -> list[Effect]:
        """The engine moved: log what it drew, ship what it filled, go on."""
        changes = self.hosting.stepped(event, self.transcript)
        effects = self.write(now, changes)
        if changes and self.transcript.said > 1:
            self.pace_s += PACE_SHARE * (now - self._drawn_at - self.pace_s)
        self._drawn_at = now
        if changes and not self._first_noted:
            self._first_noted = True
            detail = f"epoch={self.epoch} restored={self.hosting.pages_restored} recomputed={self.hosting.recomputed}"
            effects.append(Note("first token", self.session, detail))
        return effects + self.pump(now)

    def on_restored(self, now: float, event: Restored) -> list[Effect]:
        """Pages are back."""
        self.hosting.restored(event.tokens)
        self.hosting.align(self.transcript.context)
        self.hosting.seal()
        return self._offer_pages() + self.pump(now)

    def on_faulted(self, now: float, event: Faulted) -> list[Effect]:
        """The engine cannot: the turn ends and says why, the session stays."""
        self.hosting.busy = False
        self.hosting.loaded.clear()
        effects: list[Effect] = [Note("engine refused", self.session, event.reason)]
        if self.transcript.open_turn is not None:
            effects += self.write(now, [End(f"error: {event.reason}"[:512])])
        return effects + self.pump(now)

    def on_page_ack(self, now: float, peer: PeerId, ack: PageAck) -> list[Effect]:
        """A replica stored pages."""
        if ack.watermark == 0 and ack.epoch == self.epoch:
            self.hosting.pages.has(peer, (), ack.epoch)
        elif self.hosting.pages.acked(peer, ack.watermark, ack.epoch, ack.tip):
            self._pages_moved_at = now
        return self.pump(now)

    def on_page_failed(self, replica: PeerId, reason: str) -> list[Effect]:
        """No way to this replica: ship nothing until its link is back."""
        if not self.hosting.pages.standing(replica):
            return []
        self.hosting.pages.removed(replica)
        return [Note("pages wait", self.session, reason)]

    # ----------------------------------------------------------------------------------------------------------- time

    def tick(self, now: float) -> list[Effect]:
        """Heartbeats to followers and clients."""
        if now < self.owner.heartbeat_at:
            return []
        self.owner.heartbeat_at = now + self.timers.heartbeat_s
        if now - self._pages_moved_at > PAGES_STALL_S:
            self._pages_moved_at = now
            for replica in self.hosting.replicas:
                self.hosting.pages.link_down(replica)
        alive = self.introduce() if self.leased(now) else []
        alive += self._expire(now) + self.repair.tick(now, self) + self.repair.remind(now, self)
        return self._replicate(now, heartbeat=True) + alive + self.pump(now)

    def _expire(self, now: float) -> list[Effect]:
        """End a session that nobody attended for as long as its manifest keeps it: clients die without a BYE."""
        self._attended_at = max([self._attended_at, *(one.asked_at for one in self.subscribers.values())])
        idle = self.transcript.open_turn is None and not self.queue and self.transcript.closed is None
        if not idle or now < self._attended_at + self.manifest.scaling.keep_cold_s:
            return []
        return self.write(now, [Closed("expired")])

    def over(self, now: float) -> bool:
        """Whether the session ended and everybody who matters knows, or had time to."""
        if self._closed_at is None:
            return False
        farewell_s = max(FAREWELL_S, 3 * self.timers.heartbeat_s)
        return now >= self._closed_at + farewell_s or not self.owner.majority > 1


def _keeps_pages(seat: Seat, owner_of_them: PeerId) -> bool:
    return seat.role != "witness" and seat.peer != owner_of_them
