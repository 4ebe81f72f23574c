"""The giving side: who gets which chunk next, within what the owner allows.

The idea: questions wait here, a short queue a peer, and the peers take turns; a chunk is read and sent when the pace
allows and the chunk before it for the same peer is on its way. So a greedy peer has its own questions dropped and
nobody else's, and what is in memory is a chunk for each of a few peers.

Refused: a chunk that the model does not have (the peer's fault). A question too many is dropped without a word: whoever
asked asks again, or somebody else.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from meshnode import errors
from meshnode.chunks import frames, listing, pacing
from meshnode.chunks.messages import AskChunk, AskListing, AskShelf, Lack, Shelf, Shelved
from meshnode.ids import Digest, PeerId
from meshnode.machine import Carried, Carry, Effect, HangUp, Note, Send
from meshnode.ports import Lane

PEERS_MAX = 64
"""Peers whose questions wait. One more hears Lack at once, and goes elsewhere."""
QUESTIONS_MAX = 16
"""Of one peer. More: more of its questions are stale when their turn comes."""
AT_ONCE = 4
"""Chunks being read and sent. More: more memory, more of the uplink in one burst beside signalling."""
MODELS_MAX = 64

Question = AskShelf | AskListing | AskChunk


class Sharing:
    """What this node gives, and to whom."""

    def __init__(self, upload_bytes_s: float) -> None:
        self.given_bytes = 0
        self._models: dict[Digest, Shelved] = {}
        self._pace = pacing.Pace(upload_bytes_s)
        self._queues: OrderedDict[PeerId, deque[tuple[Digest, int]]] = OrderedDict()
        """By peer, whose turn is next first."""
        self._carrying: set[PeerId] = set()

    def stocked(self, models: Iterable[Shelved]) -> None:
        """What may be given from now on."""
        self._models = {one.digest: one for one in list(models)[:MODELS_MAX]}

    def asked(self, now: float, peer: PeerId, question: Question) -> list[Effect]:
        """Answer, or put it in its queue. Raises PeerError for a chunk that is none."""
        match question:
            case AskShelf():
                return [Send(peer, Lane.SIGNAL, Shelf(tuple(self._models.values())))]
            case AskListing(digest):
                return self._queue(now, peer, digest, frames.LISTING)
            case AskChunk(digest, index):
                return self._queue(now, peer, digest, index)

    def _queue(self, now: float, peer: PeerId, digest: Digest, index: int) -> list[Effect]:
        model = self._models.get(digest)
        if model is None or (peer not in self._queues and len(self._queues) >= PEERS_MAX):
            return [Send(peer, Lane.SIGNAL, Lack(digest))]
        # Every file but the last part of each fills its chunks, so there cannot be more of them than this.
        if index >= listing.chunks_in(model.disk_bytes) + len(listing.FILES):
            raise errors.PeerError(f"a chunk {index} of a model of {model.disk_bytes} bytes")
        queue = self._queues.setdefault(peer, deque())
        if len(queue) < QUESTIONS_MAX and (digest, index) not in queue:
            queue.append((digest, index))
        return self.tick(now)

    def carried(self, now: float, event: Carried) -> list[Effect]:
        """A chunk is on its way; or could not be read: the model is shared no more; or was not taken: the link
        is given up, with all that waits on it."""
        self._carrying.discard(event.to)
        self.given_bytes += event.sent_bytes
        effects: list[Effect] = []
        if not event.readable and self._models.pop(event.digest, None) is not None:
            effects = [Note("model not readable", None, event.digest.hex())]
        if event.stalled:  # what waits for it fills our memory, and is not wanted
            self.left(event.to)
            effects.append(HangUp(event.to))
        if not event.readable:
            effects.append(Send(event.to, Lane.SIGNAL, Lack(event.digest)))
        return effects + self.tick(now)

    def left(self, peer: PeerId) -> None:
        """Its link is down: nothing it asked for is wanted."""
        self._queues.pop(peer, None)

    def tick(self, now: float) -> list[Effect]:
        """What may go now."""
        effects: list[Effect] = []
        while now >= self._pace.free_at and (peer := self._next()) is not None:
            queue = self._queues.pop(peer)
            digest, index = queue.popleft()
            if queue:
                self._queues[peer] = queue  # behind all others
            self._carrying.add(peer)
            self._pace.spend(now, listing.CHUNK_BYTES)
            effects.append(Carry(peer, digest, index))
        assert len(self._carrying) <= AT_ONCE
        return effects

    def _next(self) -> PeerId | None:
        if len(self._carrying) >= AT_ONCE:
            return None
        return next((peer for peer in self._queues if peer not in self._carrying), None)

    @property
    def deadline(self) -> float:
        """When the pace lets the next one go; that a chunk is on its way comes as an event."""
        return self._pace.free_at if self._next() is not None else float("inf")
