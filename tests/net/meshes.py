"""Two ways to put transports on a network, for the tests that both kinds must pass."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import trio

from meshnode import ports
from meshnode.net import libp2p, memory
from meshnode.wire import keys

PATIENCE_S = 10.0


class Mesh(Protocol):
    """A network of one kind; `start` brings a node up, `crash` takes it down as if by kill -9."""

    async def start(self, name: str) -> ports.Transport: ...

    async def crash(self, node: ports.Transport) -> None: ...


class MemoryMesh:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = memory.Network(random.Random(1), (0.0, 0.002))

    async def start(self, name: str) -> ports.Transport:
        node = self.network.transport(identity(name))
        await self.nursery.start(node.run)
        return node

    async def crash(self, node: ports.Transport) -> None:
        self.network.crash(node.me)


class Libp2pMesh:
    """Crash: every socket of the node closes at once. tests/real does the same to processes."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.ends: dict[bytes, trio.CancelScope] = {}

    async def start(self, name: str) -> ports.Transport:
        node = libp2p.Libp2pTransport(identity(name), ["/ip4/127.0.0.1/tcp/0"])
        self.ends[node.me] = await self.nursery.start(self._run, node)
        return node

    async def crash(self, node: ports.Transport) -> None:
        self.ends[node.me].cancel()

    async def _run(self, node: ports.Transport, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as end:
            async with trio.open_nursery() as inner:
                await inner.start(node.run)
                task_status.started(end)


def identity(name: str) -> keys.Identity:
    return keys.Identity(name.encode().ljust(keys.SEED_BYTES, b"."))


async def events(node: ports.Transport, count: int) -> list[ports.NetEvent]:
    with trio.fail_after(PATIENCE_S):
        return [await node.events.receive() for _ in range(count)]


async def frames(node: ports.Transport, count: int) -> list[bytes]:
    """The next events, all of which must be frames."""
    found: list[bytes] = []
    for event in await events(node, count):
        assert isinstance(event, ports.Frame), event
        found.append(event.data)
    return found


async def linked(a: ports.Transport, b: ports.Transport, lanes: Sequence[ports.Lane] = (ports.Lane.SIGNAL,)) -> None:
    """`a` dials `b`, and both have heard of it."""
    for lane in lanes:
        await a.dial(b.me, b.addresses, lane)
        assert await events(a, 1) == [ports.LinkUp(b.me, lane)]
        assert await events(b, 1) == [ports.LinkUp(a.me, lane)]


def flood_frame(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(60_000)


async def flooded(a: ports.Transport, b: ports.Transport) -> int:
    """Send until a send has waited in vain for a while; how many went through."""
    sent_count = 0
    while True:
        with trio.move_on_after(0.2) as patience:
            await a.send(b.me, ports.Lane.SIGNAL, flood_frame(sent_count))
            sent_count += 1
        if patience.cancelled_caught:
            return sent_count
