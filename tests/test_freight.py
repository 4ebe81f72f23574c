"""The hands that carry weights, and the queue of the driver before them."""

from __future__ import annotations

import trio
import trio.testing

from meshnode import driver, errors, freight, hands, ports
from meshnode.chunks import frames, listing
from meshnode.ids import Digest, PeerId
from meshnode.machine import (
    Carried,
    Carry,
    Finished,
    Kept,
    Listed,
    Prepare,
    Scanned,
    Spoilt,
    StoreFailed,
)
from meshnode.ports import Lane
from tests import test_driver as pumps
from tests.chunks.test_listing import SIZES, of
from tests.sessions.cases import A, B

WHOLE = of(SIZES)


class Disk:
    """A stock and a store of zeros; it fails when it is told to."""

    def __init__(self) -> None:
        self.failure: errors.MeshError | None = None
        self.kept: list[int] = []

    def _work(self) -> None:
        if self.failure is not None:
            raise self.failure

    def read(self, digest: Digest, index: int) -> bytes:
        self._work()
        return bytes(WHOLE.chunk(index).size) if index >= 0 else WHOLE.encode()

    def prepare(self, whole: listing.Listing) -> frozenset[int]:
        self._work()
        return frozenset({1})

    def keep(self, index: int, data: bytes) -> None:
        self._work()
        self.kept.append(index)


class Line:
    """A transport of which only `send` is used."""

    def __init__(self) -> None:
        self.sent: list[tuple[PeerId, Lane, bytes]] = []
        self.room = trio.Event()
        self.room.set()
        self.refusal: errors.PeerError | None = None

    async def send(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        await self.room.wait()
        if self.refusal is not None:
            raise self.refusal
        self.sent.append((peer, lane, frame))


async def done(hand: freight.Giver | freight.Taker, act: object, line: Line) -> list[object]:
    """What comes of an act."""
    told: list[object] = []
    async with trio.open_nursery() as nursery:
        hand.take(nursery, act, told.append, line)  # type: ignore[arg-type]
    return told


async def test_a_chunk_is_read_and_sent_on_the_bulk_lane() -> None:
    line = Line()
    told = await done(freight.Giver(Disk(), hands.at_once), Carry(A, WHOLE.digest, 3), line)
    assert told == [Carried(A, WHOLE.digest, 7)]
    assert line.sent == [(A, Lane.BULK, frames.pack(frames.ChunkFrame(WHOLE.digest, 3, bytes(7))))]


async def test_a_peer_that_left_and_a_disk_that_fails_are_told_apart() -> None:
    line, disk = Line(), Disk()
    line.refusal = errors.Unreachable("no link")
    giver = freight.Giver(disk, hands.at_once)
    assert await done(giver, Carry(A, WHOLE.digest, 3), line) == [Carried(A, WHOLE.digest, 0)]
    disk.failure = errors.PeerError("a chunk too far")
    assert await done(giver, Carry(A, WHOLE.digest, 3), line) == [Carried(A, WHOLE.digest, 0)]
    disk.failure = errors.StoreError("torn")
    assert await done(giver, Carry(A, WHOLE.digest, 3), line) == [Carried(A, WHOLE.digest, 0, readable=False)]
    assert line.sent == []


async def test_a_peer_that_makes_no_room_is_not_waited_for_without_end(autojump_clock: trio.testing.MockClock) -> None:
    line = Line()
    line.room = trio.Event()
    told = await done(freight.Giver(Disk(), hands.at_once), Carry(A, WHOLE.digest, 3), line)
    assert told == [Carried(A, WHOLE.digest, 0, stalled=True)]
    assert trio.current_time() == freight.SEND_S_MAX


class Fetch:
    """A taker to which everything was asked of A."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.seen: list[tuple[int, int]] = []
        self.taker = freight.Taker(
            self.disk, hands.at_once, lambda peer, *what: peer == A, lambda *at: self.seen.append(at)
        )

    async def hear(self, index: int, data: bytes, peer: PeerId = A) -> object:
        frame = frames.pack(frames.ChunkFrame(WHOLE.digest, index, data))
        return await self.taker.arrived(ports.Frame(peer, Lane.BULK, frame))


async def test_a_listing_is_compared_with_the_digest() -> None:
    fetch = Fetch()
    assert await fetch.hear(frames.LISTING, WHOLE.encode()) == Listed(A, WHOLE)
    assert await fetch.hear(frames.LISTING, of((7, 7, 7)).encode()) == Spoilt(A, frames.LISTING)
    assert await fetch.hear(frames.LISTING, b"junk") == Spoilt(A, frames.LISTING)


async def test_a_chunk_is_written_once_if_it_is_right_and_never_if_it_is_wrong() -> None:
    fetch = Fetch()
    assert await done(fetch.taker, Prepare(WHOLE), Line()) == [Scanned(frozenset({1}))]
    assert await fetch.hear(3, bytes(7)) == Kept(A, 3)
    assert await fetch.hear(3, bytes(7)) == Kept(A, 3)
    assert await fetch.hear(2, bytes(4) + b"\1") == Spoilt(A, 2)
    assert fetch.disk.kept == [3]
    assert fetch.seen[-1] == (listing.CHUNK_BYTES + 7, WHOLE.total_bytes)


async def test_what_was_not_asked_is_not_even_hashed() -> None:
    fetch = Fetch()
    await done(fetch.taker, Prepare(WHOLE), Line())
    for hear in (fetch.hear(3, bytes(7), B), freight.Giver(Disk(), hands.at_once).arrived(None)):  # type: ignore
        try:
            await hear
        except errors.PeerError:
            continue
        raise AssertionError("it was taken")
    assert fetch.disk.kept == []


async def test_a_disk_that_cannot_take_it_ends_the_fetch_with_its_own_words() -> None:
    fetch = Fetch()
    await done(fetch.taker, Prepare(WHOLE), Line())
    fetch.disk.failure = errors.StoreError("full")
    assert await fetch.hear(3, bytes(7)) == StoreFailed("full")
    await done(fetch.taker, Finished("full"), Line())
    assert fetch.taker.over.is_set()
    assert fetch.taker.failure is fetch.disk.failure


async def test_bulk_that_nobody_takes_in_is_dropped_at_the_door() -> None:
    async with pumps.running() as bench:
        for data in (frames.MAGIC + b"weights", b"MNPG and a page"):
            await bench.wire.arrive.send(ports.Frame(B, Lane.BULK, data))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.pump.counts == {
            "refused: a chunk, for which there is no hand here": 1,
            "refused: a page, for which there is no hand here": 1,
        }


async def test_weights_that_wait_for_the_disk_are_bounded_in_bytes() -> None:
    async with pumps.running() as bench:
        await trio.testing.wait_all_tasks_blocked()  # it runs already, so nobody empties the queue of this hand
        bench.pump.freight = freight.Giver(Disk(), hands.at_once)
        big = frames.MAGIC + bytes(ports.FRAME_BYTES_MAX[Lane.BULK] - 4)
        count = driver.CHUNKS_BYTES_MAX // len(big)
        for _ in range(count + 2):
            await bench.wire.arrive.send(ports.Frame(B, Lane.BULK, big))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.pump.counts == {"lost: chunk queue full": 2}
