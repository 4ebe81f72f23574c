"""How fast pages stream, and how long a control message takes meanwhile: two processes, loopback, real libp2p.

The claim: signalling stays within 10 ms beside a bulk transfer, because lanes share no connection. The child says on
the signalling lane when the last page came.
"""

from __future__ import annotations

import os
import statistics

import trio

from bench import _echo
from meshnode.net import libp2p
from meshnode.ports import Lane

PAGE_BYTES = 1 << 20
PING = bytes(64)
WARM_UP_COUNT = 50


def run(quick: bool, runs: int) -> dict[str, float]:
    """Medians over `runs` of: MB/s of page frames, and milliseconds of a 64-byte round trip, idle and beside them."""
    found = [trio.run(_once, quick) for _ in range(runs)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


async def _once(quick: bool) -> dict[str, float]:
    async with _echo.linked((Lane.SIGNAL, Lane.BULK)) as node:
        figures = await _measured(node, pings=300 if quick else 2000, pages=100 if quick else 600)
    return figures


async def _measured(node: libp2p.Libp2pTransport, pings: int, pages: int) -> dict[str, float]:
    await _round_trips(node, WARM_UP_COUNT)
    idle = await _round_trips(node, pings)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stream, node, pages)
        await _echo.heard(node, _echo.LAST)
    stream_s = trio.current_time() - start
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stream, node, 1 << 30)
        busy = await _round_trips(node, pings)
        nursery.cancel_scope.cancel()
    return {
        "page_stream_mb_s": pages * PAGE_BYTES / 1e6 / stream_s,
        "control_rtt_p50_ms": _echo.quantile(idle, 0.5),
        "control_rtt_p99_ms": _echo.quantile(idle, 0.99),
        "control_rtt_beside_bulk_p50_ms": _echo.quantile(busy, 0.5),
        "control_rtt_beside_bulk_p99_ms": _echo.quantile(busy, 0.99),
    }


async def _stream(node: libp2p.Libp2pTransport, pages: int) -> None:
    peer = _echo.child_identity().peer
    page = os.urandom(PAGE_BYTES)
    for _ in range(pages):
        await node.send(peer, Lane.BULK, page)
    await node.send(peer, Lane.BULK, _echo.LAST)


async def _round_trips(node: libp2p.Libp2pTransport, count: int) -> list[float]:
    """Milliseconds each."""
    peer = _echo.child_identity().peer
    found: list[float] = []
    for _ in range(count):
        start = trio.current_time()
        await node.send(peer, Lane.SIGNAL, PING)
        await _echo.heard(node, PING)
        found.append((trio.current_time() - start) * 1e3)
    return found
