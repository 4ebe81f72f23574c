"""A node of the transport in a child process that answers what it hears, and the pings that are timed against it.

The child answers every signalling frame with the same bytes and swallows bulk, but for `LAST`, which it answers too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from meshnode.net import libp2p
from meshnode.ports import Frame, Lane, NetEvent
from meshnode.wire import keys

ROOT = Path(__file__).resolve().parent.parent
ANYWHERE = "/ip4/127.0.0.1/tcp/0"
LAST = b"last"


def child_identity() -> keys.Identity:
    return keys.Identity(b"bench.child".ljust(keys.SEED_BYTES))


@asynccontextmanager
async def linked(lanes: Sequence[Lane]) -> AsyncIterator[libp2p.Libp2pTransport]:
    """Our end of links with a child, which is killed at the end."""
    node = libp2p.Libp2pTransport(keys.Identity(b"bench.parent".ljust(keys.SEED_BYTES)), [ANYWHERE])
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        child = await nursery.start(_process, [sys.executable, "-m", "bench._echo"])
        address = (await child.stdout.receive_some(1000)).decode().strip()
        for lane in lanes:
            await node.dial(child_identity().peer, [address], lane)
            await node.events.receive()
        yield node
        nursery.cancel_scope.cancel()


async def heard(node: libp2p.Libp2pTransport, data: bytes) -> None:
    """Wait for this frame; others before it are forgotten."""
    event: NetEvent | None = None
    while not (isinstance(event, Frame) and event.data == data):
        event = await node.events.receive()


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


async def _process(command: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    process = await trio.lowlevel.open_process(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        task_status.started(process)
        await trio.sleep_forever()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _child() -> None:
    node = libp2p.Libp2pTransport(child_identity(), [ANYWHERE])
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(node.addresses[0], flush=True)
        async for event in node.events:
            if isinstance(event, Frame) and (event.lane == Lane.SIGNAL or event.data == LAST):
                await node.send(event.peer, Lane.SIGNAL, event.data)


if __name__ == "__main__":
    trio.run(_child)
