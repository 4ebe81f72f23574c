"""The brain: one node's whole protocol behavior, pure.

`step(now, event)` is the only way in, its effects the only way out, and `deadline` says when it wants a Tick. This is
the one place where gossip and sessions meet; every reaction is a line of one `match`, and everything with an `if`
about a protocol belongs a floor lower.

A stranger's fault (PeerError) changes nothing but a counter. Our own (AssertionError) ends the process.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from meshnode import errors
from meshnode.chunks import messages as weights
from meshnode.chunks import pacing, sharing
from meshnode.config import Node
from meshnode.gossip import bidder, mesh, placing, seeking
from meshnode.gossip import messages as talk
from meshnode.ids import Digest, PeerId, SessionId
from meshnode.machine import (
    Capacity,
    Carried,
    DialFailed,
    Effect,
    Event,
    Introduced,
    Note,
    Pass,
    Received,
    Send,
    Stocked,
    Tick,
)
from meshnode.ports import EngineCard, Lane, LinkDown, LinkUp
from meshnode.sessions import moves, registry, timers
from meshnode.sessions.contract import Contract
from meshnode.sessions.messages import Joined
from meshnode.wire import envelope, keys

ROUTES_MAX = 4096
"""Agents that answer through a gateway; the one heard longest ago makes room."""

_WINDOWS = {
    kind: placing.Windows(of.bid_window_s, of.invite_s, timers.CONFIRM_S, of.bid_window_s + timers.RESERVATION_EXTRA_S)
    for kind, of in timers.TIMERS.items()
}


class Peer:
    """Everything that a node knows and decides."""

    def __init__(
        self, identity: keys.Identity, config: Node, card: EngineCard | None, incarnation: int, rng: random.Random
    ) -> None:
        self.me = identity.peer
        self.mesh = mesh.Mesh(identity, config, card, incarnation, rng)
        self.bidder = bidder.Bidder(config, card)
        self.placing = placing.Placing(self.mesh, self.bidder, rng)
        self.seeking = seeking.Seeking(self.placing, rng)
        self.sessions = registry.Registry(identity.peer, card, rng, identity)
        self.sharing = sharing.Sharing(pacing.bytes_per_s(config.upload_mbit_s_max))
        self.faults: Counter[str] = Counter()
        """What strangers did wrong, in words."""
        self._routes: OrderedDict[PeerId, PeerId] = OrderedDict()
        self._loopback: list[Received] = []

    def replay(self, now: float, journal: Iterable[bytes], pages: Mapping[SessionId, set[Digest]]) -> None:
        """Before the first step: what the disk remembers. Raises StoreError."""
        self.sessions.replay(now, journal, pages)

    # -------------------------------------------------------------------------------------------------------- stepping

    def step(self, now: float, event: Event | moves.Order) -> list[Effect]:
        """React to one event. What a node says to itself is heard in the same step."""
        effects = self._guarded(now, event)
        out = self._routed(effects)
        while self._loopback:
            out += self._routed(self._guarded(now, self._loopback.pop(0)))
        return out

    def _guarded(self, now: float, event: Event | moves.Order) -> list[Effect]:
        try:
            return self._react(now, event)
        except errors.PeerError as error:
            self.faults[str(error)[:120]] += 1
            return []

    def _react(self, now: float, event: Event | moves.Order) -> list[Effect]:
        match event:
            case Received(peer, lane, message, via):
                return self._received(now, peer, lane, message, via)
            case LinkUp(peer, _):
                return [*self.mesh.link_up(now, event), *self.sessions.relinked(now, peer)]
            case LinkDown(peer, _):
                self.sharing.left(peer)
                return self.mesh.link_down(now, event)
            case DialFailed(peer, _):
                severed = self.mesh.dial_failed(now, event)
                return [*self.sessions.severed_from(now, peer), *self._repair(now)] if severed else []
            case Introduced(addresses):
                return self.mesh.introduced(now, addresses)
            case Capacity(memory_bytes):
                self.bidder.memory_bytes = memory_bytes
                return self._tick(now)
            case Stocked(models):
                self.sharing.stocked(one for one in models if isinstance(one, weights.Shelved))
                return []
            case Carried():
                return self.sharing.carried(now, event)
            case Tick():
                return self._tick(now)
            case moves.Drain() | moves.Undrain() | moves.Migrate():
                return self._ordered(now, event)
            case _:
                return self.sessions.from_hands(now, event)

    def _ordered(self, now: float, order: moves.Order) -> list[Effect]:
        self.sessions.moves.able = self.able(now)
        effects = self.sessions.ordered(now, order)
        self.bidder.draining = self.sessions.moves.draining
        self._account(now)
        return effects + self.mesh.tick(now)

    def able(self, now: float) -> frozenset[PeerId]:
        """Who could take a session over."""
        adverts = {one: self.mesh.directory.members[one].advert for one in self.mesh.directory.alive(now)}
        fit = {one for one, advert in adverts.items() if advert.host and not advert.draining}
        return frozenset(fit & self.mesh.links_of(Lane.SIGNAL))

    def _tick(self, now: float) -> list[Effect]:
        if self.sessions.moves.draining:
            self.sessions.moves.able = self.able(now)
        effects = [*self.sessions.tick(now), *self.placing.tick(now, timers.CONFIRM_S)]
        self._account(now)
        return effects + self._repair(now) + self.sharing.tick(now) + self.mesh.tick(now)

    def _account(self, now: float) -> None:
        """What is hosted here or may have to be, and what is left: the truth behind bids and adverts."""
        self.bidder.hosted = {
            session: self.bidder.needs_bytes(member.contract.manifest)
            for session, member in self.sessions.members.items()
            if member.seating.role != "witness"
        }
        free = self.bidder.free_bytes(now)
        self.mesh.load = mesh.Load(free - free % (32 << 20), len(self.bidder.hosted), self.bidder.draining)

    # -------------------------------------------------------------------------------------------------------- messages

    def _received(self, now: float, peer: PeerId, lane: Lane, message: object, via: PeerId | None) -> list[Effect]:
        if via is None:
            self.mesh.heard(now, peer)
            self._routes.pop(peer, None)
        elif peer != self.me:
            self._routes[peer] = via
            self._routes.move_to_end(peer)
            while len(self._routes) > ROUTES_MAX:
                self._routes.popitem(last=False)
        match message:
            case talk.Ping():
                return self.mesh.on_ping(peer, message)
            case talk.Pong():
                return self.mesh.on_pong(now, peer, message)
            case talk.Publish():
                return self.mesh.on_publish(now, peer, message)
            case talk.Relay(to, frame):
                return self._relay(now, peer, lane, to, frame)
            case talk.Relayed(frame):
                return self._passed_on(now, peer, lane, frame, via)
            case talk.NoPath(to):
                if self._routes.get(to) == peer:
                    del self._routes[to]
                return []
            case talk.Invite():
                return self.placing.on_invite(now, peer, message, _WINDOWS)
            case talk.Cancel():
                return self.placing.on_cancel(peer, message)
            case talk.Offer():
                return self.placing.on_offer(now, peer, message, _WINDOWS)
            case talk.Bid():
                placed = self.placing.on_bid(now, peer, message, timers.CONFIRM_S)
                return placed + self._sought(now, self.seeking.on_bid(now, peer, message))
            case talk.Awarded():
                return self._awarded(now, peer, message)
            case talk.Confirm():
                placed = self.placing.on_confirm(now, peer, message, timers.CONFIRM_S)
                return placed + self._sought(now, self.seeking.on_confirm(now, peer, message))
            case talk.Join():
                return self._join(now, peer, message)
            case talk.Release(auction, session):
                return [*self.placing.on_release(message), *self.sessions.release(peer, auction, session)]
            case weights.AskShelf() | weights.AskListing() | weights.AskChunk() if via is None:  # weights want a link
                return self.sharing.asked(now, peer, message)
            case _ if isinstance(message, registry.FromVoter):
                return self.sessions.from_voter(now, peer, message)
            case _ if isinstance(message, registry.FromAgent):
                return self.sessions.from_agent(now, peer, message)
            case _:
                raise errors.PeerError(f"{type(message).__name__} is not for a node")

    def _awarded(self, now: float, peer: PeerId, message: talk.Awarded) -> list[Effect]:
        effects, seated = self.placing.on_awarded(now, peer, message)
        if seated is None:
            return effects
        award = seated.award
        born, refusal = self.sessions.born(now, Contract(award, seated.agent, seated.manifest, peer), seated.sealed)
        self.bidder.release(award.auction)
        self._account(now)
        refusals = (refusal,) if refusal else ()
        confirm = talk.Confirm(award.auction, award.session, award.attempt, refusals)
        note = [] if refusal else [Note("seated", award.session, seated.role)]
        return [*effects, *born, *note, Send(peer, Lane.SIGNAL, confirm, award.session)]

    # ---------------------------------------------------------------------------------------------------------- repair

    def _repair(self, now: float) -> list[Effect]:
        """Look for whom the owners on this node want, and give them whom was found."""
        effects = self._sought(now, self.seeking.tick(now))
        for member, search in self.sessions.searches(now):
            stay = tuple(seat.peer for seat in search.seats)
            award, birth = member.contract.award, member.seating.birth
            want = seeking.Want(member.session, award, birth, search.role, stay, search.lost, search.since)
            times = _WINDOWS[member.contract.manifest.characteristics.kind]
            effects += self._sought(now, self.seeking.begin(now, want, member.contract.manifest, times))
        return effects

    def _sought(self, now: float, came: tuple[list[Effect], list[seeking.Outcome]]) -> list[Effect]:
        effects, outcomes = came
        for outcome in outcomes:
            if outcome.seat is not None:
                effects = effects + self.sessions.found(now, outcome.session, outcome.seat)
            else:
                self.sessions.not_found(now, outcome.session, outcome.reason)
        return effects

    def _join(self, now: float, peer: PeerId, join: talk.Join) -> list[Effect]:
        effects, seated = self.placing.on_join(now, peer, join)
        if seated is None:
            return effects
        contract = Contract(seated.award, seated.agent, seated.manifest, peer)
        joined = Joined(join.session, peer, join.role, join.since)
        made, refusal = self.sessions.joined(now, contract, join.award, joined)
        self.bidder.release(join.auction)
        self._account(now)
        confirm = talk.Confirm(join.auction, join.session, 1, (refusal,) if refusal else ())
        note = [] if refusal else [Note("joined", join.session, join.role)]
        return [*effects, *made, *note, Send(peer, Lane.SIGNAL, confirm, join.session)]

    # ---------------------------------------------------------------------------------------------------------- routes

    def _relay(self, now: float, peer: PeerId, lane: Lane, to: PeerId, frame: bytes) -> list[Effect]:
        if to == self.me:
            return self._passed_on(now, peer, lane, frame, None)
        usable = self._lane(to, lane)
        if usable is None:
            return [Send(peer, Lane.SIGNAL, talk.NoPath(to))]
        return [Pass(to, usable, frame)]

    def _passed_on(self, now: float, peer: PeerId, lane: Lane, frame: bytes, via: PeerId | None) -> list[Effect]:
        """A frame inside of another's: one way through a gateway, and never a frame inside of that (nor a stack of a
        thousand)."""
        opened = envelope.open_(frame)
        if via is not None or isinstance(opened.message, talk.Relay | talk.Relayed):
            raise errors.PeerError("a frame that was passed on twice")
        if opened.sender == self.me:
            raise errors.PeerError("a message of our own, handed back")
        return self._received(now, opened.sender, lane, opened.message, peer)

    def _lane(self, to: PeerId, lane: Lane) -> Lane | None:
        """The lane itself, or signalling while its own link is not up yet; None without any."""
        if self.mesh.linked(to, lane):
            return lane
        return Lane.SIGNAL if self.mesh.linked(to, Lane.SIGNAL) else None

    def _routed(self, effects: list[Effect]) -> list[Effect]:
        """Sends to oneself come back in; sends to who has no link here go through the gateway it last spoke through."""
        out: list[Effect] = []
        for effect in effects:
            if not isinstance(effect, Send):
                out.append(effect)
            elif effect.to == self.me and effect.session is None:
                self._loopback.append(Received(self.me, effect.lane, effect.message))
            else:
                out.append(self._send(effect))
        return out

    def _send(self, effect: Send) -> Send:
        usable = self._lane(effect.to, effect.lane)
        if usable is not None or effect.to == self.me:
            return replace(effect, lane=usable or effect.lane)
        via = self._routes.get(effect.to)
        if via is None:
            return effect
        return replace(effect, via=via, lane=self._lane(via, effect.lane) or Lane.SIGNAL)

    # ------------------------------------------------------------------------------------------------------------ time

    @property
    def deadline(self) -> float:
        """When a Tick is wanted, at the latest."""
        return min(
            self.mesh.deadline,
            self.placing.deadline,
            self.seeking.deadline,
            self.sessions.deadline,
            self.sharing.deadline,
        )
