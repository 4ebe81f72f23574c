"""What this node answers to an offer: everything that stands against it, or a reservation.

Every constraint is checked against what is so here (the card of the loaded model, measured free memory, reservations
of offers that are still open), never against one's own advert. All reasons are given, not the first, and each says
what would fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.config import Node
from meshnode.ids import RequestId, SessionId
from meshnode.manifest import Manifest, class_fits
from meshnode.ports import EngineCard

RESERVATIONS_MAX = 256
DRAINS = "this node drains: it is about to stop"


@dataclass(frozen=True, slots=True)
class _Hold:
    memory_bytes: int
    until: float


class Bidder:
    """Reservations and refusals of one node."""

    def __init__(self, config: Node, card: EngineCard | None) -> None:
        self.config = config
        self.card = card
        self.memory_bytes = 0
        """Free KV memory, as the engine last said."""
        self.hosted: dict[SessionId, int] = {}
        """Sessions that run here or may any time, with the memory that each may still take."""
        self.draining = False
        """The node is about to stop: it takes nothing new."""
        self._holds: dict[RequestId, _Hold] = {}

    @property
    def recipe(self) -> str:
        """What decides the bits of this node's tokens."""
        return f"{self.card.model_digest.hex()[:32]} {self.card.numeric_class}"[:128] if self.card is not None else ""

    def free_bytes(self, now: float, auction: RequestId | None = None, session: SessionId | None = None) -> int:
        """KV memory that nobody was promised, but for this auction or this session."""
        held = sum(hold.memory_bytes for key, hold in self._holds.items() if hold.until > now and key != auction)
        taken = sum(needed for key, needed in self.hosted.items() if key != session)
        return max(0, self.memory_bytes - held - taken)

    def host_refusals(
        self, now: float, manifest: Manifest, auction: RequestId | None = None, session: SessionId | None = None
    ) -> list[str]:
        """Why this session cannot run here. What is reserved for this auction already does not stand against it."""
        card = self.card
        if not self.config.host or card is None:
            return ["this node hosts no sessions (host = false)"]
        if self.draining:
            return [DRAINS]
        wants = manifest.placement
        reasons = self.zone_refusals(manifest)
        if wants.model and wants.model != card.model:
            reasons.append(f"placement.model: {wants.model!r} is not served here; {card.model!r} is")
        if wants.model_digest and wants.model_digest != card.model_digest:
            reasons.append(f"placement.model_digest: other weights; here they are {card.model_digest.hex()}")
        if not class_fits(wants.numeric_class, card.numeric_class):
            reasons.append(f"placement.numeric_class: {wants.numeric_class!r} asked, {card.numeric_class!r} served")
        if manifest.characteristics.context_tokens > card.context_tokens_max:
            reasons.append(f"characteristics.context_tokens: {card.context_tokens_max} at most with {card.model}")
        if len(self.hosted.keys() - {session}) >= self.config.sessions_max:
            reasons.append(f"all {self.config.sessions_max} places are taken; try again later")
        needed, free = self.needs_bytes(manifest) + wants.memory_bytes_min, self.free_bytes(now, auction, session)
        if needed > free:
            reasons.append(f"memory: {needed >> 20} MiB of KV needed, {free >> 20} MiB free")
        return reasons

    def vote_refusals(self, manifest: Manifest) -> list[str]:
        """Why this node cannot keep the session's log."""
        if not self.config.vote:
            return ["this node keeps no logs (vote = false)"]
        if self.draining:
            return [DRAINS]
        return self.zone_refusals(manifest)

    def zone_refusals(self, manifest: Manifest) -> list[str]:
        """The zone, if the manifest names some and this is none of them."""
        zones = manifest.placement.zones
        if not zones or self.config.zone in zones:
            return []
        return [f"placement.zones: {', '.join(zones)} asked, this node stands in {self.config.zone or 'none'}"]

    def needs_bytes(self, manifest: Manifest) -> int:
        """KV memory of the whole context that the manifest speaks of."""
        if self.card is None:
            return 0
        pages = -(-manifest.characteristics.context_tokens // self.card.page_tokens)
        return pages * self.card.page_bytes

    def hold(self, now: float, auction: RequestId, manifest: Manifest, until: float) -> None:
        """Reserve for a bid."""
        self._holds = {key: hold for key, hold in self._holds.items() if hold.until > now}
        if len(self._holds) < RESERVATIONS_MAX:
            self._holds[auction] = _Hold(self.needs_bytes(manifest), until)

    def release(self, auction: RequestId) -> None:
        """The bid lost, or became a session."""
        self._holds.pop(auction, None)
