"""The brain of a fetch: a guest of the mesh that looks for a model, decides which one it is, and takes it in.

    looking ──a shelf has it──> settling ──one digest──> fetching ──every chunk is here──> over
       │                           │                         │
       └──nobody has it────────────┴──a name of two models───┴──no source left, disk full──> over, with the reason

A digest is the model. A name is only what the peers call it: it is taken when all who have that name mean the same
digest, and what it came to is said aloud. Driven by the driver of nodes and agents; a node that lacks its model does
this before it hosts, with a key of its own, so that what it fetches never queues on the links of its sessions.
"""

from __future__ import annotations

import random
from collections import Counter

from meshnode import config, errors, ids
from meshnode.chunks import fetching, listing
from meshnode.chunks import messages as weights
from meshnode.gossip import messages as talk
from meshnode.gossip.mesh import Mesh
from meshnode.ids import Digest, PeerId
from meshnode.machine import (
    DialFailed,
    Effect,
    Finished,
    Introduced,
    Kept,
    Listed,
    Note,
    Received,
    Scanned,
    Send,
    Spoilt,
    StoreFailed,
    Tick,
)
from meshnode.ports import Lane, LinkDown, LinkUp
from meshnode.wire import keys

PEERS_MAX = 32
"""Members that are asked what they have. More: more connections for the same line."""
ASK_S = 5.0
"""Between questions for a peer's shelf: it may have fetched the model itself by now."""
SETTLE_S = 2.0
"""After the first that has a model of the name, for others to say what they mean by it."""
PATIENCE_S = 60.0
"""Without a source, until the fetch is given up."""


class Fetcher:
    """Everything that a fetch knows and decides. `what` is a name or, as 32 bytes, a digest."""

    def __init__(
        self,
        identity: keys.Identity,
        what: str | Digest,
        download_bytes_s: float,
        rng: random.Random,
        patience_s: float,
    ) -> None:
        self.identity = identity
        self.me = identity.peer
        self.mesh = Mesh(identity, config.Node(host=False, vote=False), None, 0, rng, agent=True)
        self.mesh.lanes = (Lane.SIGNAL, Lane.BULK)
        self.name = what if isinstance(what, str) else ""
        self.fetching = None if isinstance(what, str) else fetching.Fetching(what, download_bytes_s)
        self.shelves: dict[PeerId, tuple[weights.Shelved, ...]] = {}
        self.faults: Counter[str] = Counter()
        self.over = False
        self._download_bytes_s = download_bytes_s
        self._patience_s = patience_s
        self._give_up_at: float | None = None
        self._settle_at = float("inf")
        self._ask_at = 0.0

    # -------------------------------------------------------------------------------------------------------- stepping

    def step(self, now: float, event: object) -> list[Effect]:
        """React to one event."""
        if self._give_up_at is None:
            self._give_up_at = now + self._patience_s
        if self.over:
            return []
        try:
            effects = self._react(now, event)
        except errors.PeerError as error:
            self.faults[str(error)[:120]] += 1
            return []
        if self.fetching is not None and self.fetching.done:
            effects += self._finish("")
        return effects

    def _react(self, now: float, event: object) -> list[Effect]:
        match event:
            case Received(peer, _, message, None):
                self.mesh.heard(now, peer)
                return self._received(now, peer, message)
            case LinkUp(peer, lane):
                asked = [Send(peer, Lane.SIGNAL, weights.AskShelf())] if lane is Lane.SIGNAL else []
                return [*self.mesh.link_up(now, event), *asked, *self._sources(now)]
            case LinkDown():
                return [*self.mesh.link_down(now, event), *self._sources(now)]
            case DialFailed():
                self.mesh.dial_failed(now, event)
                return []
            case Introduced(addresses):
                return self.mesh.introduced(now, addresses)
            case StoreFailed(reason):
                return self._finish(reason)
            case Tick():
                return self._tick(now)
            case Listed() | Scanned() | Kept() | Spoilt():
                return self._from_disk(now, event)
        raise errors.PeerError(f"{type(event).__name__} is not for a fetch")

    def _received(self, now: float, peer: PeerId, message: object) -> list[Effect]:
        match message:
            case talk.Ping():
                return self.mesh.on_ping(peer, message)
            case talk.Pong():
                return self.mesh.on_pong(now, peer, message)
            case talk.Publish():
                learned = self.mesh.on_publish(now, peer, message)
                return learned + self._interest(now)
            case weights.Shelf(models):
                if self.mesh.linked(peer, Lane.SIGNAL):
                    self.shelves[peer] = models
                return self._settle(now) + self._sources(now)
            case weights.Lack(digest):
                self.shelves[peer] = tuple(one for one in self.shelves.get(peer, ()) if one.digest != digest)
                return self._sources(now)
            case _:
                raise errors.PeerError(f"{type(message).__name__} is not for a fetch")

    def _interest(self, now: float) -> list[Effect]:
        """Links to whoever may have it, up to a number."""
        for peer, member in sorted(self.mesh.directory.members.items()):
            if len(self.mesh.interests) >= PEERS_MAX:
                break
            self.mesh.interests.setdefault(peer, member.advert.addresses)
        return self.mesh.tick(now)

    def _from_disk(self, now: float, event: Listed | Scanned | Kept | Spoilt) -> list[Effect]:
        assert self.fetching is not None
        if not isinstance(event, Spoilt):
            self._give_up_at = now + self._patience_s
        match event:
            case Listed(peer, found):
                assert isinstance(found, listing.Listing)
                return self.fetching.listed(now, peer, found)
            case Scanned(chunks):
                return self.fetching.prepared(now, chunks)
            case Kept(peer, index):
                return self.fetching.kept(now, peer, index)
            case Spoilt(peer, index):
                return self.fetching.spoilt(now, peer, index)

    def expects(self, peer: PeerId, digest: Digest, index: int) -> bool:
        """Whether this frame was asked of that peer."""
        return not self.over and self.fetching is not None and self.fetching.expects(peer, digest, index)

    # -------------------------------------------------------------------------------------------------------- deciding

    def meant(self) -> dict[Digest, set[PeerId]]:
        """What the peers mean by the name."""
        found: dict[Digest, set[PeerId]] = {}
        for peer, models in self.shelves.items():
            for one in models:
                if one.name == self.name:
                    found.setdefault(one.digest, set()).add(peer)
        return found

    def _settle(self, now: float) -> list[Effect]:
        """Which model a name is, once all had the time to say."""
        if self.fetching is not None:
            return []
        meant = self.meant()
        if not meant:
            self._settle_at = float("inf")
            return []
        self._settle_at = min(self._settle_at, now + SETTLE_S)
        if now < self._settle_at:
            return []
        self._settle_at = float("inf")
        if len(meant) > 1:
            said = "; ".join(f"{digest.hex()} at {_peers(len(peers))}" for digest, peers in sorted(meant.items()))
            return self._finish(
                f"{self.name!r} is not one model in this mesh: {said}. Fetch the one you mean by digest"
            )
        ((digest, peers),) = meant.items()
        self.fetching = fetching.Fetching(digest, self._download_bytes_s)
        return [Note("pinned", None, f"{self.name} is {digest.hex()}, at {_peers(len(peers))}"), *self._sources(now)]

    def _sources(self, now: float) -> list[Effect]:
        """Who has the model and both links is asked for it; who has not, is not."""
        if self.fetching is None:
            return []
        effects: list[Effect] = []
        for peer, models in list(self.shelves.items()):
            if not self.mesh.linked(peer, Lane.SIGNAL):
                del self.shelves[peer]
                models = ()
            has = any(one.digest == self.fetching.digest for one in models)
            if has and self.mesh.linked(peer, Lane.BULK):
                effects += self.fetching.joined(now, peer)
            else:
                effects += self.fetching.left(now, peer)
        return effects

    def _tick(self, now: float) -> list[Effect]:
        effects = self.mesh.tick(now) + self._settle(now) + self._sources(now)
        if self.fetching is not None:
            effects += self.fetching.tick(now)
        if now >= self._ask_at:
            self._ask_at = now + ASK_S
            asked = sorted(self.mesh.links_of(Lane.SIGNAL))
            effects += [Send(peer, Lane.SIGNAL, weights.AskShelf()) for peer in asked]
        assert self._give_up_at is not None
        preparing = self.fetching is not None and self.fetching.listing is not None and not self.fetching.scanned
        if preparing or (self.fetching is not None and self.fetching.sources):
            # Our own disk is at work, or somebody may answer yet: who never does is dropped, and is no source then.
            self._give_up_at = now + self._patience_s
        if now >= self._give_up_at and not self.over:
            return effects + self._finish(self._silence())
        return effects

    def _finish(self, reason: str) -> list[Effect]:
        assert not self.over
        self.over = True
        return [Finished(reason)]

    def _silence(self) -> str:
        """Why nothing comes any more."""
        if not self.mesh.links_of(Lane.SIGNAL):
            return "no peer could be reached; is a node up (`meshnode up`), is the join address right?"
        if self.fetching is not None and self.fetching.dropped:
            why = ", ".join(f"{ids.peer_short(peer)} {why}" for peer, why in sorted(self.fetching.dropped.items()))
            return f"no peer is left that has it: {why}"
        wanted = self.name if self.fetching is None else self.fetching.digest.hex()
        shared = sorted({f"{one.name} ({one.digest.hex()})" for models in self.shelves.values() for one in models})
        return f"no peer of {len(self.shelves)} has {wanted}; shared are: {', '.join(shared) or 'none'}"

    @property
    def deadline(self) -> float:
        """When a Tick is wanted, at the latest."""
        if self.over:
            return float("inf")
        fetched = self.fetching.deadline if self.fetching is not None else float("inf")
        given_up = self._give_up_at if self._give_up_at is not None else float("-inf")
        return min(self.mesh.deadline, self._settle_at, self._ask_at, fetched, given_up)


def _peers(count: int) -> str:
    return "1 peer" if count == 1 else f"{count} peers"
