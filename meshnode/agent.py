"""The brain of an agent's process: pure, and driven by the same driver as a node's.

An agent is a guest: it joins through bootstrap peers, publishes nothing, keeps a link to its gateway, to the voters of
its sessions where it can reach them, and to a spare or two. What it cannot reach goes through a gateway, sealed.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from meshnode import config, errors
from meshnode.gossip import messages as talk
from meshnode.gossip.mesh import Mesh
from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.machine import Deliver, DialFailed, Effect, Introduced, Received, Send, Tick
from meshnode.manifest import Manifest
from meshnode.options import AS_THE_MANIFEST, Options
from meshnode.ports import Lane, LinkDown, LinkUp
from meshnode.sessions import messages, timers
from meshnode.sessions.attach import Attachment, Refusal, Reseated
from meshnode.wire import envelope, keys
from meshnode.wire.award import Award, Invitation, Seat

# ------------------------------------------------------------------------------------------------------------ commands


@dataclass(frozen=True, slots=True)
class Call:
    """INVITE: open a session under this manifest; answered by Answered."""

    session: SessionId
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Say:
    """A user turn."""

    session: SessionId
    request: RequestId
    text: str
    max_tokens: int
    options: Options = AS_THE_MANIFEST


@dataclass(frozen=True, slots=True)
class Stop:
    """Interrupt an answer."""

    session: SessionId
    request: RequestId


@dataclass(frozen=True, slots=True)
class Leave:
    """BYE."""

    session: SessionId
    reason: str


@dataclass(frozen=True, slots=True)
class Detach:
    """Forget a session on this side."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Answered:
    """The final answer to a Call: 200 with the seats, or why not."""

    status: int
    reasons: tuple[str, ...]
    seats: tuple[Seat, ...] = ()


@dataclass(slots=True)
class _Calling:
    manifest: Manifest
    invite: talk.Invite
    until: float
    gateway: PeerId | None = None


class Agent:
    """Everything that an agent's process knows about the mesh."""

    def __init__(self, identity: keys.Identity, rng: random.Random) -> None:
        self.identity = identity
        self.me = identity.peer
        self.mesh = Mesh(identity, config.Node(host=False, vote=False), None, 0, rng, agent=True)
        self.attachments: dict[SessionId, Attachment] = {}
        self.faults: Counter[str] = Counter()
        self._calling: dict[SessionId, _Calling] = {}
        self._gateways: dict[PeerId, PeerId] = {}
        """Through whom a voter without a link of ours was last reached."""
        self._refused: dict[PeerId, set[PeerId]] = {}
        """Gateways that said NoPath for a voter."""

    def step(self, now: float, event: object) -> list[Effect]:
        """React to one event or command."""
        try:
            effects = self._react(now, event)
        except errors.PeerError as error:
            self.faults[str(error)[:120]] += 1
            return []
        return [self._routed(effect) if isinstance(effect, Send) else effect for effect in effects]

    def _react(self, now: float, event: object) -> list[Effect]:
        match event:
            case Received(peer, lane, message, _):
                self.mesh.heard(now, peer)
                return self._received(now, peer, lane, message)
            case LinkUp(peer, _):
                self._refused.pop(peer, None)
                return [*self.mesh.link_up(now, event), *self._invite(now)]
            case LinkDown(peer, _):
                return [*self.mesh.link_down(now, event), *self._reroute(now, peer)]
            case DialFailed():
                self.mesh.dial_failed(now, event)
                return []
            case Introduced(addresses):
                return self.mesh.introduced(now, addresses)
            case Call(session, manifest):
                sealed = envelope.seal(self.identity, Invitation(session, manifest))
                until = now + timers.TIMERS[manifest.characteristics.kind].invite_s
                self._calling[session] = _Calling(manifest, talk.Invite(session, sealed), until)
                return self._invite(now)
            case Say(session, request, text, max_tokens, options):
                message = messages.Message(session, request, text, max_tokens, options)
                attachment = self.attachments.get(session)
                if attachment is None:
                    return [Deliver(session, Refusal(request, 481, ("this session is not open here",)))]
                return attachment.say(now, message)
            case Stop(
                session, request
            ):  # may come late: a generator that nobody closed stops its turn when it is freed
                attachment = self.attachments.get(session)
                return attachment.interrupt(now, request) if attachment is not None else []
            case Leave(session, reason):
                attachment = self.attachments.get(session)
                return attachment.bye(now, reason) if attachment is not None else []
            case Detach(session):
                self.attachments.pop(session, None)
                return self._cancel(session)
            case Tick():
                return self._tick(now)
        raise AssertionError(f"an agent does not know {event!r}")

    def _received(self, now: float, peer: PeerId, lane: Lane, message: object) -> list[Effect]:
        match message:
            case talk.Ping():
                return self.mesh.on_ping(peer, message)
            case talk.Pong():
                return self.mesh.on_pong(now, peer, message)
            case talk.Publish():
                return self.mesh.on_publish(now, peer, message)
            case talk.Relayed(frame):
                opened = envelope.open_(frame)
                if isinstance(opened.message, talk.Relayed):
                    raise errors.PeerError("a frame that was passed on twice")
                wanted = opened.sender in self.mesh.interests
                if wanted and opened.sender not in self.mesh.links_of(Lane.SIGNAL):
                    self._gateways[opened.sender] = peer
                return self._received(now, opened.sender, lane, opened.message)
            case talk.NoPath(to):
                if to in self.mesh.interests:  # of whom nobody asked, nothing is remembered
                    self._refused.setdefault(to, set()).add(peer)
                    self._gateways.pop(to, None)
                return []
            case talk.Trying():
                return []
            case talk.Answer():
                return self._answered(now, peer, message)
            case messages.Notify(session):
                attachment = self.attachments.get(session)
                return attachment.on_notify(now, peer, message) if attachment is not None else []
            case messages.Route(session):
                return self._rerouted(now, session, message)
            case messages.Denied(session):
                attachment = self.attachments.get(session)
                return attachment.on_denied(peer, message) if attachment is not None else []
            case messages.Concluded(session):
                attachment = self.attachments.get(session)
                return attachment.on_concluded(peer) if attachment is not None else []
            case messages.Gone(session):
                attachment = self.attachments.get(session)
                return attachment.on_gone(peer) if attachment is not None else []
            case _:
                raise errors.PeerError(f"{type(message).__name__} is not for an agent")

    # ---------------------------------------------------------------------------------------------------------- calls

    def _invite(self, now: float) -> list[Effect]:
        """Ask the nearest gateway, for every call that has none yet."""
        linked = self.mesh.links_of(Lane.SIGNAL)
        gateway = next((peer for peer in self.mesh.bootstrap if peer in linked), min(linked, default=None))
        if gateway is None:
            return []
        effects: list[Effect] = []
        for calling in self._calling.values():
            if calling.gateway is None:
                calling.gateway = gateway
                effects.append(Send(gateway, Lane.SIGNAL, calling.invite))
        return effects

    def _cancel(self, session: SessionId) -> list[Effect]:
        """Nobody waits for this call any more."""
        calling = self._calling.pop(session, None)
        if calling is None or calling.gateway is None:
            return []
        return [Send(calling.gateway, Lane.SIGNAL, talk.Cancel(session))]

    def _answered(self, now: float, peer: PeerId, answer: talk.Answer) -> list[Effect]:
        calling = self._calling.get(answer.session)
        if calling is None or calling.gateway != peer:
            return []
        if answer.status != 200:
            del self._calling[answer.session]
            return [Deliver(answer.session, Answered(answer.status, answer.reasons or ("no reason was given",)))]
        signer, award = envelope.expect(answer.award, Award)
        if signer != peer or award.session != answer.session or award.invitation != calling.invite.invitation:
            raise errors.PeerError("an award that is not the answer to our INVITE")
        if not award.seats:
            raise errors.PeerError("an award without seats")
        del self._calling[answer.session]
        voters = tuple(seat.peer for seat in award.seats)
        kind = timers.TIMERS[calling.manifest.characteristics.kind]
        attachment = self.attachments[answer.session] = Attachment(
            answer.session, voters, kind, now, auction=award.auction
        )
        for seat in award.seats:
            self.mesh.interests[seat.peer] = seat.addresses
            self._gateways.setdefault(seat.peer, peer)
        told = Deliver(answer.session, Answered(200, answer.reasons, award.seats))
        return [told, *attachment.begin(now), *self.mesh.tick(now)]

    def _rerouted(self, now: float, session: SessionId, route: messages.Route) -> list[Effect]:
        """Other voters: links to those that came, none needed to those that left."""
        attachment = self.attachments.get(session)
        if attachment is None:
            return []
        effects = attachment.on_route(now, route)
        for effect in effects:
            if isinstance(effect, Deliver) and isinstance(effect.item, Reseated):
                for seat in effect.item.seats:
                    self.mesh.interests.setdefault(seat.peer, seat.addresses)
        wanted = {voter for one in self.attachments.values() for voter in one.voters}
        for peer in self.mesh.interests.keys() - wanted:
            del self.mesh.interests[peer]
        return [*effects, *self.mesh.tick(now)] if effects else []

    def _reroute(self, now: float, peer: PeerId) -> list[Effect]:
        """A link broke: calls that went through it are made again, voters behind it sought elsewhere."""
        if peer in self.mesh.links_of(Lane.SIGNAL):
            return []
        self._gateways = {to: gateway for to, gateway in self._gateways.items() if gateway != peer}
        for calling in self._calling.values():
            if calling.gateway == peer:
                calling.gateway = None
        return self._invite(now)

    # ---------------------------------------------------------------------------------------------------------- routes

    def _routed(self, effect: Send) -> Send:
        """Directly where there is a link, else through a gateway that has not refused."""
        if self.mesh.linked(effect.to, effect.lane):
            return effect
        linked = self.mesh.links_of(Lane.SIGNAL)
        if effect.to in linked:
            return replace(effect, lane=Lane.SIGNAL)
        refused = self._refused.get(effect.to, set())
        if linked and linked <= refused:
            refused.clear()  # all said no: by now one may have a path
        gateway = self._gateways.get(effect.to)
        if gateway not in linked or gateway in refused:
            gateway = min(linked - refused, default=None)
        if gateway is None:
            return effect
        if effect.to in self.mesh.interests:
            self._gateways[effect.to] = gateway
        lane = effect.lane if self.mesh.linked(gateway, effect.lane) else Lane.SIGNAL
        return replace(effect, via=gateway, lane=lane)

    # ------------------------------------------------------------------------------------------------------------ time

    def _tick(self, now: float) -> list[Effect]:
        effects = self.mesh.tick(now)
        for session, calling in list(self._calling.items()):
            if now >= calling.until:
                del self._calling[session]
                effects.append(Deliver(session, Answered(408, (self._silence(),))))
        for attachment in self.attachments.values():
            effects += attachment.tick(now)
        return effects

    def _silence(self) -> str:
        if not self.mesh.links_of(Lane.SIGNAL):
            return "no bootstrap peer could be reached; is a node up (`meshnode up`), is the join address right?"
        return "the mesh gave no answer within the INVITE's time"

    @property
    def deadline(self) -> float:
        """When a Tick is wanted, at the latest."""
        calls = (calling.until for calling in self._calling.values())
        attached = (attachment.deadline for attachment in self.attachments.values())
        return min(self.mesh.deadline, *calls, *attached, float("inf"))
