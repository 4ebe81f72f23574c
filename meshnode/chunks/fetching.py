"""The taking side: which chunk to ask of whom next, until all are here.

The idea: every source has the whole model, so no chunk is rare, and the only question is how much to ask of whom. A
source has a window, as TCP has one: an answer in time widens it, a late one halves it, and while an answer is late
nothing more is asked of that source (what it owes is asked of others, and is welcome if it still comes). One wrong
chunk, and a source is never asked again: it cannot be an accident of the network, which is authenticated.

The listing is asked for first, in the same way, under the number LISTING.

Refused: sources that have a part of a model. Rejected: rarest first (see above); a fixed share for each source, which
waits for the slowest at the end: here the last chunks are asked of a second source as well.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from meshnode import ids
from meshnode.chunks import frames, listing, pacing
from meshnode.chunks.messages import AskChunk, AskListing
from meshnode.ids import Digest, PeerId
from meshnode.machine import Effect, Note, Prepare, Send
from meshnode.ports import Lane

SOURCES_MAX = 16
"""Peers asked at once. More: more connections for a line that is full already."""
WINDOW_FIRST = 2
WINDOW_MAX = 8
"""Chunks asked of one source. More: it holds more for us. Fewer: a distant source idles between question and answer."""
ASKED_MAX = 64
"""Of all sources together: what may arrive at once, and wait for our disk."""
CHUNK_S_MAX = 15.0
"""An answer is late then. Below: a source with a slow uplink (1 Mbit/s: 8 s a chunk) is always late."""
LATE_S_MAX = 45.0
"""From then on, until it is given up."""
STRIKES_MAX = 3
"""Chunks given up in a row; then the source is dropped."""
ASKERS_MAX = 2


@dataclass(slots=True)
class Source:
    """A peer that has the model, and what we await from it."""

    window: int = WINDOW_FIRST
    asked: dict[int, float] = field(default_factory=dict)
    """Chunk, and when its answer is late."""
    late: dict[int, float] = field(default_factory=dict)
    """Chunk, and when it is given up."""
    strikes: int = 0
    asked_count: int = 0
    """All that was ever asked of it: of two that are free, the one that was asked less is next."""

    @property
    def room(self) -> int:
        return 0 if self.late else self.window - len(self.asked)


class Fetching:
    """One model on its way here."""

    def __init__(self, digest: Digest, download_bytes_s: float) -> None:
        self.digest = digest
        self.listing: listing.Listing | None = None
        self.sources: dict[PeerId, Source] = {}
        self.dropped: dict[PeerId, str] = {}
        """Sources that are asked no more, and why."""
        self.given_bytes: dict[PeerId, int] = {}
        self.missing: set[int] = {frames.LISTING}
        self.scanned = False
        self._pool = [frames.LISTING]
        """A heap of what is missing and asked of nobody."""
        self._askers: dict[int, int] = {}
        """Missing chunks, and of how many sources each is asked in time."""
        self._pace = pacing.Pace(download_bytes_s)
        self._again_at = float("inf")
        """When the pace lets us ask for what could be asked for now."""

    # -------------------------------------------------------------------------------------------------------- sources

    def joined(self, now: float, peer: PeerId) -> list[Effect]:
        """A peer has the model and can be asked."""
        if peer in self.sources or peer in self.dropped or len(self.sources) >= SOURCES_MAX:
            return []
        self.sources[peer] = Source()
        return self.tick(now)

    def left(self, now: float, peer: PeerId) -> list[Effect]:
        """Its link is down, or it has the model no more. It may come back."""
        source = self.sources.pop(peer, None)
        if source is None:
            return []
        for index in source.asked:
            self._put_back(index)
        return self.tick(now)

    def _drop(self, now: float, peer: PeerId, why: str) -> list[Effect]:
        self.dropped[peer] = why
        return [Note("source dropped", None, f"{ids.peer_short(peer)} {why}"), *self.left(now, peer)]

    def expects(self, peer: PeerId, digest: Digest, index: int) -> bool:
        """Whether this was asked of that peer; nothing else is even hashed."""
        source = self.sources.get(peer)
        return source is not None and digest == self.digest and (index in source.asked or index in source.late)

    # -------------------------------------------------------------------------------------------------------- answers

    def listed(self, now: float, peer: PeerId, found: listing.Listing) -> list[Effect]:
        """The listing, its digest compared already."""
        assert found.digest == self.digest
        self._answered(peer, frames.LISTING)
        if self.listing is not None:
            return []
        self.listing = found
        self._here(frames.LISTING)
        return [Prepare(found)]

    def prepared(self, now: float, chunks: frozenset[int]) -> list[Effect]:
        """The disk is ready; what it has from an earlier fetch need not come again."""
        assert self.listing is not None
        assert not self.scanned
        self.scanned = True
        self.missing = set(range(self.listing.chunk_count)) - chunks
        self._pool = sorted(self.missing)
        return self.tick(now)

    def kept(self, now: float, peer: PeerId, index: int) -> list[Effect]:
        """A chunk is here, and right."""
        assert self.listing is not None
        self._answered(peer, index)
        if index in self.missing:
            self._here(index)
            self.given_bytes[peer] = self.given_bytes.get(peer, 0) + self.listing.chunk(index).size
        return self.tick(now)

    def spoilt(self, now: float, peer: PeerId, index: int) -> list[Effect]:
        """What came is not what the digest says."""
        what = "listing" if index == frames.LISTING else f"chunk {index}"
        return self._drop(now, peer, f"sent a wrong {what}")

    def _answered(self, peer: PeerId, index: int) -> None:
        source = self.sources.get(peer)
        if source is None:
            return
        if source.asked.pop(index, None) is not None:
            self._release(index)
            source.window = min(WINDOW_MAX, source.window + 1)
        source.late.pop(index, None)
        source.strikes = 0

    def _here(self, index: int) -> None:
        self.missing.discard(index)
        self._askers.pop(index, None)

    def _release(self, index: int) -> None:
        """One source less is asked for it."""
        if index in self._askers:
            self._askers[index] -= 1

    def _put_back(self, index: int) -> None:
        self._release(index)
        if index in self.missing and not self._askers.get(index):
            self._askers.pop(index, None)
            heapq.heappush(self._pool, index)

    # ------------------------------------------------------------------------------------------------------- questions

    def tick(self, now: float) -> list[Effect]:
        """Note who is late, and ask."""
        effects: list[Effect] = []
        for peer, source in list(self.sources.items()):
            self._look_at_the_clock(now, source)
            if source.strikes >= STRIKES_MAX:
                effects += self._drop(now, peer, "does not answer")
        return effects + self._ask(now)

    def _look_at_the_clock(self, now: float, source: Source) -> None:
        overdue = [index for index, until in source.asked.items() if until <= now]
        for index in overdue:
            del source.asked[index]
            source.late[index] = now + LATE_S_MAX
            self._put_back(index)
        if overdue:
            source.window = max(1, source.window // 2)
        given_up = [index for index, until in source.late.items() if until <= now]
        for index in given_up:
            del source.late[index]
        source.strikes += len(given_up) > 0

    def _ask(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._again_at = float("inf")
        under_way = sum(len(source.asked) + len(source.late) for source in self.sources.values())
        while self.missing and under_way < ASKED_MAX:
            if now < self._pace.free_at:
                self._again_at = self._pace.free_at
                break
            found = self._next()
            if found is None:
                break
            peer, index = found
            self.sources[peer].asked[index] = now + CHUNK_S_MAX
            self.sources[peer].asked_count += 1
            self._askers[index] = self._askers.get(index, 0) + 1
            under_way += 1
            if index == frames.LISTING:
                effects.append(Send(peer, Lane.SIGNAL, AskListing(self.digest)))
                continue
            assert self.listing is not None
            self._pace.spend(now, self.listing.chunk(index).size)
            effects.append(Send(peer, Lane.SIGNAL, AskChunk(self.digest, index)))
        return effects

    def _next(self) -> tuple[PeerId, int] | None:
        """Who is asked the least for its window, and the first chunk that nobody else is asked for."""
        able = sorted(
            (len(source.asked) / source.window, source.asked_count, peer)
            for peer, source in self.sources.items()
            if source.room > 0
        )
        while self._pool and self._pool[0] not in self.missing:  # it came late, after it was put back
            heapq.heappop(self._pool)
        if able and self._pool:
            return able[0][-1], heapq.heappop(self._pool)
        if frames.LISTING in self.missing:
            return None
        for *_, peer in able:  # nothing is left to ask for: the last ones of the slow are asked of the quick as well
            source = self.sources[peer]
            for index, count in self._askers.items():
                if count < ASKERS_MAX and index not in source.asked:
                    return peer, index
        return None

    @property
    def done(self) -> bool:
        """Every chunk is here."""
        return self.scanned and not self.missing

    @property
    def deadline(self) -> float:
        """When an answer is late, given up, or the pace lets us ask again."""
        times = [until for source in self.sources.values() for until in (*source.asked.values(), *source.late.values())]
        return min(self._again_at, *times) if times else self._again_at
