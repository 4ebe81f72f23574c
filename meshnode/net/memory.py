"""Frames between nodes of one process: the same port as libp2p, with faults that can be ordered.

A `Network` is the cable. It delays every frame under trio's clock (so MockClock with autojump runs an hour in a
second), keeps each direction of each link in order, and can be cut, and its nodes crashed or frozen, from a test.
A direction is one bounded queue that stands for everything between two brains: our send queue, the cable and the
kernel's buffers; only the reader's task at the far end takes from it.

It refuses to be more reliable than a network: what is in flight when a link ends is lost. It is not deterministic to
the last step, because trio itself shuffles its tasks; the heap-driven simulator in meshnode/sim is.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from meshnode import errors, ids
from meshnode.ids import PeerId
from meshnode.net import framing, links, outbox
from meshnode.ports import Frame, Lane, NetEvent
from meshnode.wire import keys

EVENTS_MAX = 256
"""Events that wait for the brain. More: more memory. Fewer: a busy moment of the brain stalls its peers."""

DIAL_S_MAX = 3.0
"""Seconds for one address that does not answer, as over libp2p."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A frame on the cable."""

    due: float
    data: bytes


class _Link:
    """One side's end of a link: an outbox towards the peer, and the peer's outbox, which our reader empties."""

    def __init__(self, peer: PeerId, lane: Lane, out: outbox.Outbox[_Flight], inn: outbox.Outbox[_Flight]) -> None:
        self.peer = peer
        self.lane = lane
        self.out = out
        self.inn = inn
        self.greeting = links.Greeting(b"", 0)
        self.ended = False
        self.lost_count = 0
        self.due = 0.0  # of the last frame sent: later ones may not overtake it

    def end(self) -> None:
        """Frames in flight, both ways, are gone; the far end learns of it when the cable lets it."""
        self.ended = True
        self.lost_count += self.out.end() + self.inn.end()


class Network:
    """The cable, and the knobs of its faults. `delay_s` is (least, most) for one frame's way."""

    def __init__(self, rng: random.Random, delay_s: tuple[float, float] = (0.0, 0.0)) -> None:
        assert 0.0 <= delay_s[0] <= delay_s[1]
        self._rng = rng
        self._delay_s = delay_s
        self._running: dict[PeerId, MemoryTransport] = {}
        self._cuts: set[frozenset[PeerId]] = set()
        self._frozen: set[PeerId] = set()
        self._changed = trio.Event()
        self._run_count = 0
        self.delivered_count = 0
        self.dropped_count = 0
        """Frames that a cut, a crash or the end of a link has eaten."""

    def transport(self, peer: PeerId | keys.Identity, addresses: Sequence[str] = ()) -> MemoryTransport:
        """A transport on this network; after a crash, a new one for the same peer is its restart."""
        me = peer.peer if isinstance(peer, keys.Identity) else peer
        self._run_count += 1
        return MemoryTransport(self, me, tuple(addresses) or (address(me),), self._run_count.to_bytes(8, "big"))

    def partition(self, a: PeerId, b: PeerId) -> None:
        """Cut the cable: frames vanish, links stay up, nobody is told."""
        self._cuts.add(frozenset((a, b)))
        self._change()

    def heal(self, a: PeerId | None = None, b: PeerId | None = None) -> None:
        """Mend one cable, or every cable. Ends of links that happened meanwhile are heard now."""
        if a is None or b is None:
            assert a is b
            self._cuts.clear()
        else:
            self._cuts.discard(frozenset((a, b)))
        self._change()

    def crash(self, peer: PeerId) -> None:
        """kill -9: its `run` returns, its events end, and everybody else sees LinkDown as the cable lets them."""
        self._frozen.discard(peer)
        self._change()
        self._running.pop(peer).stop()  # at once: a restart need not wait for the dead one's tasks

    def freeze(self, peer: PeerId) -> None:
        """SIGSTOP, as the others see it: nothing in or out, links stay up. (Its tasks here do go on.)"""
        self._frozen.add(peer)
        self._change()

    def thaw(self, peer: PeerId) -> None:
        """SIGCONT: what waited is delivered."""
        self._frozen.discard(peer)
        self._change()

    def due(self) -> float:
        """When a frame that is sent now arrives."""
        now: float = trio.current_time()
        return now + self._rng.uniform(*self._delay_s)

    def cut(self, a: PeerId, b: PeerId) -> bool:
        """Whether frames between the two vanish."""
        return frozenset((a, b)) in self._cuts

    def stopped(self, a: PeerId, b: PeerId) -> bool:
        """Whether one of the two is frozen."""
        return a in self._frozen or b in self._frozen

    async def passable(self, a: PeerId, b: PeerId) -> None:
        """Wait until the cable is whole and neither is frozen."""
        await self._wait_until(lambda: not self.cut(a, b) and not self.stopped(a, b))

    async def moving(self, a: PeerId, b: PeerId) -> None:
        """Wait until neither is frozen."""
        await self._wait_until(lambda: not self.stopped(a, b))

    def at(self, place: str) -> MemoryTransport | None:
        """Who listens on this address now."""
        return next((one for one in self._running.values() if place in one.addresses), None)

    @asynccontextmanager
    async def running(self, transport: MemoryTransport) -> AsyncIterator[None]:
        """For the time that a transport runs."""
        assert transport.me not in self._running, "this peer runs already"
        self._running[transport.me] = transport
        try:
            yield
        finally:
            if self._running.get(transport.me) is transport:
                del self._running[transport.me]

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def address(peer: PeerId) -> str:
    """Where a memory transport listens unless it was told otherwise."""
    return f"/memory/{ids.short(peer)}/p2p/{ids.peer_text(peer)}"


class MemoryTransport:
    """ports.Transport over a Network."""

    def __init__(self, network: Network, me: PeerId, addresses: tuple[str, ...], run: bytes) -> None:
        self.me = me
        self.addresses = addresses
        self._run = run
        self._network = network
        self._links: links.Links[_Link] = links.Links()
        self._news: trio.MemorySendChannel[NetEvent]
        self.events: trio.MemoryReceiveChannel[NetEvent]
        self._news, self.events = trio.open_memory_channel(EVENTS_MAX)
        # Links that wait for `run` to read them. Unbounded, but each entry is a link, and those are bounded.
        self._born, self._births = trio.open_memory_channel[tuple[_Link, links.News]](float("inf"))
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read every link until cancelled or crashed; then all links end at once, without a word."""
        try:
            with self._scope, self._news:
                async with self._network.running(self), trio.open_nursery() as readers:
                    task_status.started()
                    async for link, news in self._births:
                        readers.start_soon(self._read, link, news)
        finally:
            for link in self._links.of():
                self._end(link)

    def stop(self) -> None:
        """What `Network.crash` does to us: at once, not at the next checkpoint."""
        self._scope.cancel()
        for link in self._links.of():
            self._end(link)

    async def dial(self, peer: PeerId, addresses: Sequence[str], lane: Lane) -> None:
        """An address that names somebody else is not even knocked at."""
        await trio.lowlevel.checkpoint()
        for place in addresses:
            if self._links.sending(peer, lane) is not None:
                return
            with trio.move_on_after(DIAL_S_MAX):
                if place.endswith(f"/p2p/{ids.peer_text(peer)}") and peer != self.me:
                    await self._knock(peer, place, lane)
        if self._links.sending(peer, lane) is None:
            raise errors.Unreachable(f"no address of {ids.peer_short(peer)} answers")

    def send_nowait(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        framing.check(lane, len(frame))
        link = self._links.required(peer, lane)
        if self._network.cut(self.me, peer):
            self._network.dropped_count += 1
            return
        link.out.put_nowait(self._flight(link, frame), len(frame))

    async def send(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        framing.check(lane, len(frame))
        await trio.lowlevel.checkpoint()
        link = self._links.required(peer, lane)
        if self._network.cut(self.me, peer):
            self._network.dropped_count += 1
            return
        await link.out.put(self._flight(link, frame), len(frame))

    async def hang_up(self, peer: PeerId) -> None:
        for link in self._links.of(peer):
            self._end(link)
        await trio.lowlevel.checkpoint()

    def adopt(self, link: _Link, greeting: links.Greeting) -> None:
        """A new link stands; its reader reports that before anything else."""
        link.greeting = greeting
        self._born.send_nowait((link, self._links.add(link.peer, link.lane, link)))

    def greeting(self, peer: PeerId, lane: Lane) -> links.Greeting:
        """What we say first."""
        return links.Greeting(self._run, self._links.losses(peer, lane))

    async def _knock(self, peer: PeerId, place: str, lane: Lane) -> None:
        await self._network.passable(self.me, peer)
        await trio.sleep_until(self._network.due())
        await self._network.passable(self.me, peer)
        host = self._network.at(place)
        # A dial of the other side may have arrived while ours travelled: one link is enough.
        if host is None or host.me != peer or self._links.sending(peer, lane) is not None:
            return
        there: outbox.Outbox[_Flight] = outbox.Outbox(lane)
        back: outbox.Outbox[_Flight] = outbox.Outbox(lane)
        our_greeting = self.greeting(peer, lane)
        self.adopt(_Link(peer, lane, there, back), host.greeting(self.me, lane))
        host.adopt(_Link(self.me, lane, back, there), our_greeting)

    async def _read(self, link: _Link, news: links.News) -> None:
        """The only task that reports about this link, so its reports are in order."""
        for event in news:
            await self._news.send(event)
        while flights := await link.inn.take(0):
            for flight in flights:
                await self._deliver(link, flight)
        if not link.ended:  # then the far end ended it, and that has to travel, too
            await self._network.passable(self.me, link.peer)
        self._end(link)
        for event in self._links.remove(link.peer, link.lane, link):
            await self._news.send(event)

    async def _deliver(self, link: _Link, flight: _Flight) -> None:
        await trio.sleep_until(flight.due)
        await self._network.moving(self.me, link.peer)
        if link.ended or link.inn.ended or self._network.cut(self.me, link.peer):
            self._network.dropped_count += 1
            return
        self._network.delivered_count += 1  # before the reader can run and look
        await self._news.send(Frame(link.peer, link.lane, flight.data))

    def _flight(self, link: _Link, frame: bytes) -> _Flight:
        link.due = max(link.due, self._network.due())
        return _Flight(link.due, frame)

    def _end(self, link: _Link) -> None:
        link.end()
        self._network.dropped_count += link.lost_count
        link.lost_count = 0
