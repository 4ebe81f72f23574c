"""How fast pages stream, and how long a control message takes meanwhile: two processes, loopback, real libp2p.

The claim: signalling stays within 10 ms beside a bulk transfer, because lanes share no connection. The child answers
every signalling frame with the same bytes, swallows bulk, and says so on the signalling lane when the last one came.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import trio

from meshnode.net import libp2p
from meshnode.ports import Frame, Lane, NetEvent
from meshnode.wire import keys

ROOT = Path(__file__).resolve().parent.parent
ANYWHERE = "/ip4/127.0.0.1/tcp/0"
PAGE_BYTES = 1 << 20
PING = bytes(64)
LAST = b"last"
WARM_UP_COUNT = 50


def run(quick: bool, runs: int) -> dict[str, float]:
    """Medians over `runs` of: MB/s of page frames, and milliseconds of a 64-byte round trip, idle and beside them."""
    found = [trio.run(_once, quick) for _ in range(runs)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


async def _once(quick: bool) -> dict[str, float]:
    node = libp2p.Libp2pTransport(keys.Identity(b"bench.parent".ljust(keys.SEED_BYTES)), [ANYWHERE])
    peer = _child_identity()
    command = [sys.executable, "-m", "bench.transport"]
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        child = await nursery.start(_child_process, command)
        assert child.stdout is not None
        address = (await child.stdout.receive_some(1000)).decode().strip()
        for lane in (Lane.SIGNAL, Lane.BULK):
            await node.dial(peer.peer, [address], lane)
            await node.events.receive()
        figures = await _measured(node, peer, pings=300 if quick else 2000, pages=100 if quick else 600)
        nursery.cancel_scope.cancel()
    return figures


async def _measured(node: libp2p.Libp2pTransport, peer: keys.Identity, pings: int, pages: int) -> dict[str, float]:
    await _round_trips(node, peer, WARM_UP_COUNT)
    idle = await _round_trips(node, peer, pings)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stream, node, peer, pages)
        await _until(node, LAST)
    stream_s = trio.current_time() - start
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stream, node, peer, 1 << 30)
        busy = await _round_trips(node, peer, pings)
        nursery.cancel_scope.cancel()
    return {
        "page_stream_mb_s": pages * PAGE_BYTES / 1e6 / stream_s,
        "control_rtt_p50_ms": _quantile(idle, 0.5),
        "control_rtt_p99_ms": _quantile(idle, 0.99),
        "control_rtt_beside_bulk_p50_ms": _quantile(busy, 0.5),
        "control_rtt_beside_bulk_p99_ms": _quantile(busy, 0.99),
    }


async def _stream(node: libp2p.Libp2pTransport, peer: keys.Identity, pages: int) -> None:
    page = os.urandom(PAGE_BYTES)
    for _ in range(pages):
        await node.send(peer.peer, Lane.BULK, page)
    await node.send(peer.peer, Lane.BULK, LAST)


async def _round_trips(node: libp2p.Libp2pTransport, peer: keys.Identity, count: int) -> list[float]:
    """Milliseconds each."""
    found: list[float] = []
    for _ in range(count):
        start = trio.current_time()
        await node.send(peer.peer, Lane.SIGNAL, PING)
        await _until(node, PING)
        found.append((trio.current_time() - start) * 1e3)
    return found


async def _until(node: libp2p.Libp2pTransport, data: bytes) -> None:
    event: NetEvent | None = None
    while not (isinstance(event, Frame) and event.data == data):
        event = await node.events.receive()


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


async def _child_process(command: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    process = await trio.lowlevel.open_process(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        task_status.started(process)
        await trio.sleep_forever()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _child_identity() -> keys.Identity:
    return keys.Identity(b"bench.child".ljust(keys.SEED_BYTES))


async def _child() -> None:
    node = libp2p.Libp2pTransport(_child_identity(), [ANYWHERE])
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(node.addresses[0], flush=True)
        async for event in node.events:
            if isinstance(event, Frame) and (event.lane == Lane.SIGNAL or event.data == LAST):
                await node.send(event.peer, Lane.SIGNAL, event.data)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(run(quick="--quick" in sys.argv, runs=3), indent=2))
    else:
        trio.run(_child)
