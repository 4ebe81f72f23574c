"""The hands that carry weights: one gives chunks of what lies here, one takes in chunks of what is fetched.

Disk and hashing run in a thread of their own, a chunk at a time; sending waits for room on the bulk lane, which is a
connection of its own, so neither heartbeats nor a decode step wait for any of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import trio

from meshnode import errors, ports
from meshnode.chunks import frames
from meshnode.chunks.listing import Listing, decode
from meshnode.hands import Runner
from meshnode.ids import Digest, PeerId
from meshnode.machine import (
    Carried,
    Carry,
    Event,
    FetchEvent,
    Finished,
    Kept,
    Listed,
    Prepare,
    Scanned,
    Spoilt,
    StoreFailed,
)
from meshnode.ports import Lane

SEND_S_MAX = 30.0
"""A peer that does not make room for a chunk for so long does not get it."""


class Stock(Protocol):
    """Models that can be read from (models.stock, or a fake)."""

    def read(self, digest: Digest, index: int) -> bytes:
        """A chunk's bytes, or those of the listing. Raises StoreError, and PeerError for a number too high."""


class Store(Protocol):
    """A model that is being put together (models.incoming, or a fake)."""

    def prepare(self, whole: Listing) -> frozenset[int]:
        """Make room; the chunks that are here already. Raises StoreError."""

    def keep(self, index: int, data: bytes) -> None:
        """Write a chunk that was checked. Raises StoreError."""


class Giver:
    """A node's side: reads and sends."""

    def __init__(self, stock: Stock, runner: Runner) -> None:
        self._stock = stock
        self._runner = runner

    def take(
        self,
        nursery: trio.Nursery,
        act: Carry | Prepare | Finished,
        post: Callable[[Event | FetchEvent], None],
        transport: ports.Transport,
    ) -> None:
        """One chunk, in a task of its own; sharing.py bounds how many there are."""
        assert isinstance(act, Carry), "a node gives, and does not fetch"
        nursery.start_soon(self._carry, act, post, transport)

    async def _carry(self, act: Carry, post: Callable[[Event | FetchEvent], None], transport: ports.Transport) -> None:
        try:
            data = await self._runner(self._stock.read, act.digest, act.index)
        except errors.StoreError:
            post(Carried(act.to, act.digest, 0, readable=False))
            return
        except errors.PeerError:
            post(Carried(act.to, act.digest, 0))
            return
        sent_bytes = 0
        with trio.move_on_after(SEND_S_MAX) as patience:
            with contextlib.suppress(errors.PeerError):
                await transport.send(act.to, Lane.BULK, frames.pack(frames.ChunkFrame(act.digest, act.index, data)))
                sent_bytes = len(data)
        post(Carried(act.to, act.digest, sent_bytes, stalled=patience.cancelled_caught))

    async def arrived(self, frame: ports.Frame) -> FetchEvent:
        """Nothing is asked for by a node that runs; a fetch has a transport of its own."""
        await trio.lowlevel.checkpoint()
        raise errors.PeerError("nobody here asked for weights")


class Taker:
    """A fetch's side: checks and writes."""

    def __init__(
        self,
        store: Store,
        runner: Runner,
        expects: Callable[[PeerId, Digest, int], bool],
        progress: Callable[[int, int], None],
    ) -> None:
        """`expects`: whether this was asked of that peer. `progress`: bytes that are here, bytes in all."""
        self.over = trio.Event()
        self.reason = ""
        self.failure: errors.StoreError | None = None
        """Of our own disk, if that is the reason."""
        self.listing: Listing | None = None
        self._store = store
        self._runner = runner
        self._expects = expects
        self._progress = progress
        self._here: set[int] = set()
        self._here_bytes = 0

    def take(
        self,
        nursery: trio.Nursery,
        act: Carry | Prepare | Finished,
        post: Callable[[Event | FetchEvent], None],
        transport: ports.Transport,
    ) -> None:
        """Make the disk ready, or be done."""
        match act:
            case Prepare(whole):
                assert isinstance(whole, Listing)
                self.listing = whole
                nursery.start_soon(self._prepare, whole, post)
            case Finished(reason):
                self.reason = reason
                self.over.set()
            case Carry():
                raise AssertionError("a fetch does not give")

    async def _prepare(self, whole: Listing, post: Callable[[Event | FetchEvent], None]) -> None:
        try:
            here = await self._runner(self._store.prepare, whole)
        except errors.StoreError as error:
            post(self._failed(error))
            return
        for index in here:
            self._count(whole, index)
        post(Scanned(here))

    def _failed(self, error: errors.StoreError) -> StoreFailed:
        self.failure = error
        return StoreFailed(str(error))

    def _count(self, whole: Listing, index: int) -> None:
        if index not in self._here:
            self._here.add(index)
            self._here_bytes += whole.chunk(index).size
        self._progress(self._here_bytes, whole.total_bytes)

    async def arrived(self, frame: ports.Frame) -> FetchEvent:
        """A listing or a chunk. Raises PeerError for one that was not asked of that peer."""
        await trio.lowlevel.checkpoint()
        head = frames.unpack(frame.data)
        if not self._expects(frame.peer, head.digest, head.index):
            raise errors.PeerError("a chunk that was not asked of this peer")
        if head.index == frames.LISTING:
            return await self._runner(_listed, frame.peer, head)
        if self.listing is None or not await self._runner(self.listing.holds, head.index, head.payload):
            return Spoilt(frame.peer, head.index)
        if head.index not in self._here:
            try:
                await self._runner(self._store.keep, head.index, head.payload)
            except errors.StoreError as error:
                return self._failed(error)
        self._count(self.listing, head.index)
        return Kept(frame.peer, head.index)


def _listed(peer: PeerId, head: frames.ChunkFrame) -> FetchEvent:
    try:
        found = decode(head.payload)
    except errors.PeerError:
        return Spoilt(peer, head.index)
    return Listed(peer, found) if found.digest == head.digest else Spoilt(peer, head.index)
