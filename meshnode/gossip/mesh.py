"""Being part of the mesh: links to everybody, adverts, heartbeats.

Bootstrap peers are dialled for ever, with a growing pause; whoever they tell of is dialled too. A link that breaks is
dialled again at once and exactly then: that dial's failure is the evidence that a takeover wants, and it comes in
milliseconds where silence takes seconds.

Nothing here knows sessions. Refused: a peer-sampling service and partial views; under some hundred nodes a full mesh
is simpler and sees failures sooner. Cells come with the issue that needs them.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

from meshnode import errors, ids
from meshnode.config import Node
from meshnode.gossip.directory import Directory
from meshnode.gossip.messages import Advert, EngineOffer, Ping, Pong, Publish
from meshnode.ids import PeerId
from meshnode.machine import Dial, DialFailed, Effect, HangUp, Note, Send
from meshnode.ports import EngineCard, Lane, LinkDown, LinkUp
from meshnode.wire import envelope, keys

PING_S = 0.5
ADVERT_TTL_S = 180
ADVERT_REFRESH_S = 60.0
ADVERT_SPACING_S = 0.25
REDIAL_S = (0.5, 10.0)
"""First and longest pause between dials of one peer."""
DIAL_S_MAX = 15.0
"""A dial that was not answered at all by then is taken for failed."""
HUNG_AFTER_S = 15.0
"""A link that was silent so long is hung up: its peer is stopped, not dead; a new link will show when it is back."""
SPARE_GATEWAYS = 2
"""Members that an agent keeps a link to beside those it needs, in case its gateway goes."""
PUBLISH_MAX = 64
"""Adverts in one message. Strangers' adverts take up to 8 KiB each, and a frame of this lane 1 MiB."""
LANES = (Lane.SIGNAL, Lane.MEDIA, Lane.BULK)


@dataclass(slots=True)
class _Try:
    at: float
    pause_s: float = REDIAL_S[0]


@dataclass(slots=True)
class Load:
    """What the advert says of this moment."""

    memory_bytes: int = 0
    sessions: int = 0
    draining: bool = False


class Mesh:
    """Membership of one node."""

    def __init__(
        self,
        identity: keys.Identity,
        config: Node,
        card: EngineCard | None,
        incarnation: int,
        rng: random.Random,
        *,
        agent: bool = False,
    ) -> None:
        self.agent = agent
        """An agent reads adverts and publishes none: it is a guest, and links to whom it needs, not to everybody."""
        self.lanes = (Lane.SIGNAL, Lane.MEDIA) if agent else LANES
        """Lanes that this one dials."""
        self.interests: dict[PeerId, tuple[str, ...]] = {}
        """Peers that an agent needs, with their addresses."""
        self.identity = identity
        self.me = identity.peer
        self.config = config
        self.card = card
        self.rng = rng
        self.directory = Directory(identity.peer)
        self.addresses: tuple[str, ...] = ()
        self.links: set[tuple[PeerId, Lane]] = set()
        self.load = Load()
        self._bootstrap: dict[PeerId, tuple[str, ...]] = {}
        self._tries: dict[tuple[PeerId, Lane], _Try] = {}
        self._heard: dict[PeerId, float] = {}
        self._severed: set[PeerId] = set()
        """Peers whose link broke and has not been made again."""
        self._version = incarnation << 20
        self._advertised: tuple[Load, tuple[str, ...]] | None = None
        self._advert_at = 0.0
        self._ping_at = 0.0
        self._dial_at = float("inf")
        """When the next dial is due."""

    # ---------------------------------------------------------------------------------------------------------- links

    def introduced(self, now: float, addresses: tuple[str, ...]) -> list[Effect]:
        """Bootstrap peers. An address without a peer id (a join file may hold anything) is noted, the others count."""
        notes: list[Effect] = []
        for address in addresses:
            try:
                peer = ids.peer_from_text(address.rpartition("/p2p/")[2])
            except errors.PeerError as error:
                notes.append(Note("no bootstrap address", None, f"{address[:80]}: {error}"))
                continue
            if peer != self.me and address not in self._bootstrap.get(peer, ()):
                self._bootstrap[peer] = (*self._bootstrap.get(peer, ()), address)
        return [*notes, *self._dials(now)]

    def link_up(self, now: float, event: LinkUp) -> list[Effect]:
        """A lane to a peer stands."""
        self.links.add((event.peer, event.lane))
        self._tries.pop((event.peer, event.lane), None)
        self._severed.discard(event.peer)
        self.heard(now, event.peer)
        if event.lane is not Lane.SIGNAL:
            return []
        told = [] if self.agent else [self._advert(now), *(one.sealed for one in self.directory.members.values())]
        batches = [tuple(told[at : at + PUBLISH_MAX]) for at in range(0, len(told), PUBLISH_MAX)]
        return [*(Send(event.peer, Lane.SIGNAL, Publish(batch)) for batch in batches), *self._dials(now)]

    def link_down(self, now: float, event: LinkDown) -> list[Effect]:
        """A lane broke: dial again at once, for the evidence if not for the link."""
        self.links.discard((event.peer, event.lane))
        if not self._any_link(event.peer):
            self._heard.pop(event.peer, None)
        if not self._wanted(event.peer):
            return []
        self._severed.add(event.peer)
        self._tries[event.peer, event.lane] = _Try(now)
        return self._dials(now)

    def dial_failed(self, now: float, event: DialFailed) -> bool:
        """Try again later. True if a link was reset and this was its redial: evidence that the peer is gone."""
        attempt = self._tries.setdefault((event.peer, event.lane), _Try(now))
        attempt.at = now + attempt.pause_s * (0.5 + self.rng.random())
        attempt.pause_s = min(REDIAL_S[1], attempt.pause_s * 2)
        return event.peer in self._severed and (event.peer, Lane.SIGNAL) not in self.links

    def _any_link(self, peer: PeerId) -> bool:
        return any((peer, lane) in self.links for lane in LANES)

    def linked(self, peer: PeerId, lane: Lane) -> bool:
        """Whether a frame of this lane can go to the peer directly."""
        return (peer, lane) in self.links

    def links_of(self, lane: Lane) -> set[PeerId]:
        """Who has a link of this lane."""
        return {peer for peer, one in self.links if one is lane}

    @property
    def bootstrap(self) -> tuple[PeerId, ...]:
        """Bootstrap peers in the order they were given."""
        return tuple(self._bootstrap)

    def _wanted(self, peer: PeerId) -> bool:
        return peer in self._targets()

    def _targets(self) -> set[PeerId]:
        """Whom this node wants links with."""
        if not self.agent:
            return {*self._bootstrap, *self.directory.members}
        spare = sorted(self.directory.members)[:SPARE_GATEWAYS]
        return {*self._bootstrap, *self.interests, *spare}

    def _addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        member = self.directory.members.get(peer)
        known = member.advert.addresses if member is not None else ()
        return tuple(dict.fromkeys((*known, *self._bootstrap.get(peer, ()), *self.interests.get(peer, ()))))

    def _dials(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._dial_at = float("inf")
        for peer in sorted(self._targets()):
            for lane in self.lanes:
                effects += self._dial(now, peer, lane)
        return effects

    def _dial(self, now: float, peer: PeerId, lane: Lane) -> list[Effect]:
        if self.linked(peer, lane) or (lane is not Lane.SIGNAL and not self.linked(peer, Lane.SIGNAL)):
            return []
        # Both would dial at the same moment otherwise; the second one still may, if the first cannot reach it.
        eager = self.agent or self.me < peer or peer in self._bootstrap or peer in self._severed
        patience = 0.0 if eager else 1.0
        attempt = self._tries.setdefault((peer, lane), _Try(now + patience))
        if attempt.at > now:
            self._dial_at = min(self._dial_at, attempt.at)
            return []
        attempt.at = now + DIAL_S_MAX
        self._dial_at = min(self._dial_at, attempt.at)
        addresses = self._addresses_of(peer)
        return [Dial(peer, addresses, lane)] if addresses else []

    # -------------------------------------------------------------------------------------------------------- adverts

    def _advert(self, now: float) -> bytes:
        """Our own advert, made anew if it says something else by now or grows old."""
        says = (dataclasses.replace(self.load), self.addresses)
        if self._advertised is None or says != self._advertised or now >= self._advert_at + ADVERT_REFRESH_S:
            self._version += 1
            self._advertised, self._advert_at = says, now
            self._sealed = envelope.seal(self.identity, self._compose())
        return self._sealed

    def _compose(self) -> Advert:
        card, config = self.card, self.config
        engines: tuple[EngineOffer, ...] = ()
        if card is not None and config.host:
            offer = EngineOffer(
                card.model,
                card.model_digest,
                card.numeric_class,
                card.page_tokens,
                card.page_bytes,
                card.context_tokens_max,
            )
            engines = (offer,)
        return Advert(
            self._version,
            ADVERT_TTL_S,
            config.name,
            config.zone,
            config.operator,
            self.addresses[:8],
            config.host,
            config.vote,
            engines,
            self.load.memory_bytes,
            self.load.sessions,
            config.sessions_max,
            self.load.draining,
        )

    def on_publish(self, now: float, peer: PeerId, publish: Publish) -> list[Effect]:
        """Learn, and pass on what was news. Raises PeerError if nothing was and an advert does not hold: one that does
        not takes no other with it."""
        before = set(self.directory.members)
        strange = peer not in before
        news: list[tuple[PeerId, bytes]] = []
        faults: list[errors.PeerError] = []
        for sealed in publish.adverts:
            try:
                who = self.directory.learn(now, sealed)
            except errors.PeerError as fault:
                faults.append(fault)
                continue
            if who is not None:
                news.append((who, sealed))
        if not news and faults:
            raise faults[0]
        if not news:
            return []
        self.heard(now, peer)
        known = strange and peer in self.directory.members
        effects: list[Effect] = [Note("member", None, ids.peer_short(peer))] if known else []
        fresh = Publish(tuple(sealed for _, sealed in news))
        linked = [] if self.agent else self._linked_members()
        others = [other for other in linked if other != peer and other not in {who for who, _ in news}]
        effects += [Send(other, Lane.SIGNAL, fresh) for other in others]
        met = Publish(tuple(sealed for who, sealed in news if who not in before))
        if met.adverts and not self.agent:
            guests = self.links_of(Lane.SIGNAL) - self.directory.members.keys() - {peer}
            effects += [Send(guest, Lane.SIGNAL, met) for guest in sorted(guests)]
        return effects + self._dials(now)

    def _linked_members(self) -> list[PeerId]:
        return sorted(peer for peer in self.directory.members if self.linked(peer, Lane.SIGNAL))

    # ------------------------------------------------------------------------------------------------------ heartbeats

    def heard(self, now: float, peer: PeerId) -> None:
        """Any frame is a sign of life. Of peers without a link nothing is kept: their number has no bound."""
        if self._any_link(peer):
            self._heard[peer] = now
        self.directory.heard(now, peer)

    def on_ping(self, peer: PeerId, ping: Ping) -> list[Effect]:
        """Answer."""
        return [Send(peer, Lane.SIGNAL, Pong(ping.stamp_us))]

    def on_pong(self, now: float, peer: PeerId, pong: Pong) -> list[Effect]:
        """Measure."""
        rtt_s = now - pong.stamp_us / 1e6
        if 0 <= rtt_s < 60:
            self.directory.heard(now, peer, rtt_s)
        return []

    def tick(self, now: float) -> list[Effect]:
        """Dial, ping, refresh, expire."""
        effects = self._dials(now)
        if now >= self._ping_at:
            self._ping_at = now + PING_S
            ping = Ping(max(0, int(now * 1e6)))
            effects += [Send(peer, Lane.SIGNAL, ping) for peer in self._linked_members()]
            effects += self._hung(now)
        return effects + self._expire(now) + self._republish(now)

    def _expire(self, now: float) -> list[Effect]:
        gone = self.directory.expire(now)
        for peer in set(gone) - self._targets():
            self._severed.discard(peer)
            for lane in LANES:
                self._tries.pop((peer, lane), None)
        return [Note("advert expired", None, ids.peer_short(peer)) for peer in gone]

    def _hung(self, now: float) -> list[Effect]:
        hung = [peer for peer in self._linked_members() if now - self._heard.get(peer, now) > HUNG_AFTER_S]
        return [HangUp(peer) for peer in hung]

    def _republish(self, now: float) -> list[Effect]:
        if self.agent or now < self._advert_at + ADVERT_SPACING_S:
            return []
        before = self._version
        sealed = self._advert(now)
        if self._version == before:
            return []
        return [Send(peer, Lane.SIGNAL, Publish((sealed,))) for peer in self._linked_members()]

    @property
    def deadline(self) -> float:
        """The next heartbeat, dial or expiry."""
        return min(self._ping_at, self.directory.deadline, self._dial_at)
