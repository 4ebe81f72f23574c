"""The pump between a brain and its hands.

One task feeds the brain, one event at a time; what comes out is carried out in order per session, and what follows a
Persist waits for the disk while other sessions go on. Everything slow (disk, engine, pages, dials) is a task that ends
in an event. The same driver runs a node's brain over libp2p, over the in-memory network under MockClock, and an
agent's brain, which has neither disk nor engine.

A frame that cannot be sent is dropped and counted: whoever needs it repeats it, and the brain knows when.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import trio

from meshnode import errors, journal, ports
from meshnode.chunks import frames as chunk_frames
from meshnode.gossip.messages import Relay, Relayed
from meshnode.ids import PeerId, SessionId
from meshnode.machine import (
    Capacity,
    Carry,
    Deliver,
    Dial,
    DialFailed,
    Effect,
    Encode,
    Event,
    FetchEvent,
    Finished,
    Forget,
    HangUp,
    Note,
    Pass,
    Persist,
    Post,
    Prepare,
    Received,
    Restore,
    Send,
    Ship,
    Step,
    Tick,
    Unload,
)
from meshnode.ports import Lane
from meshnode.wire import envelope, keys

if TYPE_CHECKING:  # an agent's driver has no hands, and its process needs none of what they import
    from meshnode.hands import Hands

INBOX_MAX = 1024
"""Events that wait for the brain. More: more memory. Fewer: the network waits sooner."""
EVENTS_MAX = 256
"""Events that go before a Tick that is due. More: frames that were queued in a pause still count as heard in it. Fewer:
a peer that floods this node delays its heartbeats less."""
BATCH_BYTES = 4 << 20
"""Records of one session that go to the journal at once; a long log that is adopted takes several turns."""
PAGES_MAX = 128
"""Page frames that wait for the disk. One more is dropped, and shipped again by its host."""
CHUNKS_MAX = 64
"""Frames of weights that wait for the disk: as many as a fetch has asked for at once. One more is dropped."""
CHUNKS_BYTES_MAX = 96 << 20
"""The same in bytes: 64 chunks and a listing or two, whatever a peer sends."""


class Brain(Protocol):
    """What a driver drives."""

    @property
    def deadline(self) -> float:
        """When a Tick is wanted, at the latest."""

    def step(self, now: float, event: Any) -> list[Effect]:
        """React."""


class Freight(Protocol):
    """Who carries weights for a brain: a node's gives them, a fetch's takes them in (freight.py)."""

    def take(
        self,
        nursery: trio.Nursery,
        act: Carry | Prepare | Finished,
        post: Callable[[Event | FetchEvent], None],
        transport: ports.Transport,
    ) -> None:
        """Begin an act; it ends in an event."""

    async def arrived(self, frame: ports.Frame) -> FetchEvent:
        """Take a frame of weights in. Raises PeerError for one that nobody asked for."""


class Driver:
    """Runs one brain. Without `hands` and `writer`, effects that need them are our own bug."""

    def __init__(
        self,
        brain: Brain,
        identity: keys.Identity,
        transport: ports.Transport,
        *,
        hands: Hands | None = None,
        writer: journal.JournalWriter | None = None,
        freight: Freight | None = None,
        on_note: Callable[[float, Note], None] = lambda now, note: None,
        on_deliver: Callable[[Deliver], None] = lambda item: None,
    ) -> None:
        self.brain = brain
        self.identity = identity
        self.transport = transport
        self.hands = hands
        self.writer = writer
        self.freight = freight
        self.on_note = on_note
        self.on_deliver = on_deliver
        self.counts: Counter[str] = Counter()
        """Frames sent, received, refused and lost, by kind."""
        self._post, self._inbox = trio.open_memory_channel[object](INBOX_MAX)
        self._own: deque[object] = deque()
        """Events that the hands or the brain itself made: never refused, bounded by the work under way."""
        self._wake = trio.Event()
        self._late = 0
        """Events that went before a Tick that is due."""
        self._ordered: dict[SessionId, deque[Effect]] = {}
        self._pages, self._pages_in = trio.open_memory_channel[ports.Frame](PAGES_MAX)
        self._chunks_bytes = 0
        self._chunks, self._chunks_in = trio.open_memory_channel[ports.Frame](CHUNKS_MAX)

    # ---------------------------------------------------------------------------------------------------------- running

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            if self.hands is not None:
                self.submit(Capacity(self.hands.memory_bytes()))
                nursery.start_soon(self._store_pages)
            if self.freight is not None:
                nursery.start_soon(self._store_chunks)
            await self._think(nursery)

    def submit(self, event: object) -> None:
        """An event from this process. Never blocks, never refused."""
        self._own.append(event)
        self._wake.set()

    async def _think(self, nursery: trio.Nursery) -> None:
        while True:
            event = await self._next()
            now = trio.current_time()
            self._carry(nursery, self.brain.step(now, event))

    async def _next(self) -> object:
        """Our own events first, then the network's; a due Tick waits for the end of them, or for EVENTS_MAX."""
        while True:
            due = trio.current_time() >= self.brain.deadline
            self._late = self._late + 1 if due else 0
            if self._late > EVENTS_MAX:
                self._late = 0
                await trio.lowlevel.checkpoint()
                return Tick()
            if self._own:
                await trio.lowlevel.checkpoint()
                return self._own.popleft()
            try:
                return self._inbox.receive_nowait()
            except trio.WouldBlock:
                pass
            if due:
                self._late = 0
                await trio.lowlevel.checkpoint()
                return Tick()
            self._wake = trio.Event()
            with trio.move_on_at(self.brain.deadline):
                await self._wake.wait()

    async def _listen(self) -> None:
        async for event in self.transport.events:
            if not isinstance(event, ports.Frame):
                self.submit(event)
            elif event.lane is Lane.BULK:
                self._bulk_arrived(event)
            else:
                await self._frame_arrived(event)

    async def _frame_arrived(self, frame: ports.Frame) -> None:
        try:
            opened = envelope.open_(frame.data)
        except errors.PeerError as error:
            self.counts[f"refused: {error}"[:80]] += 1
            return
        if opened.sender != frame.peer:
            self.counts["refused: another's envelope outside of a relay"] += 1
            return
        self.counts["received"] += 1
        await self._post.send(Received(frame.peer, frame.lane, opened.message))
        self._wake.set()

    # --------------------------------------------------------------------------------------------------------- carrying

    def _carry(self, nursery: trio.Nursery, effects: list[Effect]) -> None:
        for effect in effects:
            session = getattr(effect, "session", None)
            if session is None or (session not in self._ordered and not isinstance(effect, Persist)):
                self._do(nursery, effect)
            elif session in self._ordered:
                self._ordered[session].append(effect)
            else:
                self._ordered[session] = deque((effect,))
                nursery.start_soon(self._drain, nursery, session)

    async def _drain(self, nursery: trio.Nursery, session: SessionId) -> None:
        """Effects of one session from its first Persist on, until none waits."""
        assert self.writer is not None
        waiting = self._ordered[session]
        while waiting:
            made: list[bytes] = []
            while waiting and isinstance(waiting[0], Persist) and sum(map(len, made)) < BATCH_BYTES:
                effect = waiting.popleft()
                assert isinstance(effect, Persist)
                made.append(journal.record(session, effect.record))
            if made:
                await self.writer.append(made)
            while waiting and not isinstance(waiting[0], Persist):
                self._do(nursery, waiting.popleft())
        del self._ordered[session]

    def _do(self, nursery: trio.Nursery, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case Pass(to, lane, frame):
                self._queue(to, lane, envelope.seal(self.identity, Relayed(frame)))
            case Dial():
                nursery.start_soon(self._dial, effect)
            case HangUp(peer):
                nursery.start_soon(self.transport.hang_up, peer)
            case Post(_, event):
                self.submit(event)
            case Note():
                self.on_note(trio.current_time(), effect)
            case Deliver():
                self.on_deliver(effect)
            case Encode() | Step() | Restore() | Ship() | Unload() | Forget():
                assert self.hands is not None
                self.hands.take(nursery, effect, self.submit, self.transport)
            case Carry() | Prepare() | Finished():
                assert self.freight is not None
                self.freight.take(nursery, effect, self.submit, self.transport)
            case _:
                raise AssertionError(f"no hand for {effect!r}")

    def _send(self, effect: Send) -> None:
        if effect.to == self.identity.peer:
            self.submit(Received(effect.to, effect.lane, effect.message))
            return
        frame = envelope.seal(self.identity, effect.message)
        if effect.via is None:
            self._queue(effect.to, effect.lane, frame)
        else:
            self._queue(effect.via, effect.lane, envelope.seal(self.identity, Relay(effect.to, frame)))

    def _queue(self, to: PeerId, lane: Lane, frame: bytes) -> None:
        try:
            self.transport.send_nowait(to, lane, frame)
            self.counts["sent"] += 1
        except errors.Unreachable:
            self.counts["lost: no link"] += 1
        except errors.PeerError as error:  # longer than the lane carries
            self.counts[f"lost: {error}"[:80]] += 1
        except trio.WouldBlock:
            self.counts["lost: queue full"] += 1

    async def _dial(self, effect: Dial) -> None:
        try:
            await self.transport.dial(effect.peer, effect.addresses, effect.lane)
        except errors.PeerError:
            self.submit(DialFailed(effect.peer, effect.lane))

    # ------------------------------------------------------------------------------------------------------------- bulk

    def _bulk_arrived(self, frame: ports.Frame) -> None:
        """Pages and weights wait apart, so that neither fills the other's queue; for who takes neither in, nothing."""
        weights = frame.data.startswith(chunk_frames.MAGIC)
        kind = "chunk" if weights else "page"
        if (self.freight if weights else self.hands) is None:
            self.counts[f"refused: a {kind}, for which there is no hand here"] += 1
            return
        if weights and self._chunks_bytes + len(frame.data) > CHUNKS_BYTES_MAX:
            self.counts["lost: chunk queue full"] += 1
            return
        try:
            (self._chunks if weights else self._pages).send_nowait(frame)
        except trio.WouldBlock:
            self.counts[f"lost: {kind} queue full"] += 1
            return
        self._chunks_bytes += len(frame.data) if weights else 0

    async def _store_pages(self) -> None:
        assert self.hands is not None
        async for frame in self._pages_in:
            try:
                for event in await self.hands.store_page(frame):
                    self.submit(event)
            except errors.PeerError as error:
                self.counts[f"refused page: {error}"[:80]] += 1

    async def _store_chunks(self) -> None:
        assert self.freight is not None
        async for frame in self._chunks_in:
            self._chunks_bytes -= len(frame.data)
            try:
                self.submit(await self.freight.arrived(frame))
            except errors.PeerError as error:
                self.counts[f"refused weights: {error}"[:80]] += 1
