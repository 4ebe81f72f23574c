"""How alive the event loop is while the engine's thread decodes eight sessions: round trips of control messages.

Two nodes of the transport on loopback, real libp2p; the one whose loop is measured hosts eight sessions behind
`host.ThreadEngine`, each of whose callers asks for its next token as soon as it has one, as `hands` does. The other is
a process that answers.

Pings leave by a timetable, not when the last one came back, and count from when they were due: a loop that stood still
for a second would else be one late ping out of thousands.
"""

from __future__ import annotations

import statistics

import trio

import bench
from bench import _echo, _engine, _orders, _peers
from meshnode import host, ports
from meshnode.net import libp2p
from meshnode.ports import Frame, Lane

SESSIONS = 8
CONTEXT_TOKENS = 128
GROWN_TOKENS = 1024
"""A session that grew so long is cut back, so that all of a measurement is at like contexts."""
INTERVAL_S = 0.01
"""Between pings. Shorter: the pings are the load. Longer: p99 is said by a handful."""
PING_BYTES = 64
MEASURED_S = 20.0
MEASURED_QUICK_S = 6.0
WARM_UP_S = 1.0


def run(quick: bool, runs: int) -> dict[str, float]:
    """Medians over `runs` of: milliseconds of a round trip beside decoding and without, tokens a second beside it."""
    found = trio.run(_measure, MEASURED_QUICK_S if quick else MEASURED_S, runs)
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


async def _measure(seconds: float, runs: int) -> list[dict[str, float]]:
    model = await trio.to_thread.run_sync(_engine.installed)
    async with (
        host.opened(
            model.folder,
            name=model.name,
            digest=model.digest,
            numeric_class=_engine.NUMERIC_CLASS,
            memory_bytes=_engine.MEMORY_BYTES,
            threads=_peers.THREADS,
        ) as engine,
        _echo.linked((Lane.SIGNAL,)) as node,
    ):
        await _pings(node, WARM_UP_S)
        return [await _once(engine, node, seconds) for _ in range(runs)]


async def _once(engine: host.ThreadEngine, node: libp2p.Libp2pTransport, seconds: float) -> dict[str, float]:
    idle = await _pings(node, seconds / 2)
    crowd = [_Session(index) for index in range(SESSIONS)]
    async with trio.open_nursery() as nursery:
        for one in crowd:
            await nursery.start(one.decode, engine)
        await _pings(node, WARM_UP_S)
        drawn_before, started_s = sum(one.drawn for one in crowd), trio.current_time()
        busy = await _pings(node, seconds)
        tokens_s = (sum(one.drawn for one in crowd) - drawn_before) / (trio.current_time() - started_s)
        nursery.cancel_scope.cancel()
    figures = {
        "control_rtt_p99_ms": _echo.quantile(busy, 0.99),
        "control_rtt_p50_ms": _echo.quantile(busy, 0.5),
        "control_rtt_max_ms": max(busy),
        "idle_control_rtt_p99_ms": _echo.quantile(idle, 0.99),
        "idle_control_rtt_p50_ms": _echo.quantile(idle, 0.5),
        "decoding_tok_s": tokens_s,
    }
    bench.say(", ".join(f"{name} {figure:.2f}" for name, figure in figures.items()))
    return figures


class _Session:
    """One caller of the engine, as `hands` is for each session: it asks again as soon as it has its answer."""

    def __init__(self, index: int) -> None:
        self._index = index
        self.drawn = 0

    async def decode(self, engine: host.ThreadEngine, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; started once the prompt is in."""
        name = _engine.session(self._index)
        feed, position = _orders.words(CONTEXT_TOKENS, self._index), 0
        while True:
            [token] = await engine.step([ports.Work(name, position, tuple(feed), _engine.GREEDY)])
            if not self.drawn:
                task_status.started()
            assert isinstance(token, int)
            position = position + len(feed) if position < GROWN_TOKENS else CONTEXT_TOKENS
            feed = [token]
            self.drawn += 1


async def _pings(node: libp2p.Libp2pTransport, seconds: float) -> list[float]:
    """Milliseconds of each, from when it was due until its answer was read."""
    count = int(seconds / INTERVAL_S)
    started_s = trio.current_time()
    due_s = [started_s + number * INTERVAL_S for number in range(count)]

    async def send() -> None:
        for number, at_s in enumerate(due_s):
            await trio.sleep_until(at_s)
            await node.send(_echo.child_identity().peer, Lane.SIGNAL, number.to_bytes(PING_BYTES, "big"))

    found: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while len(found) < count:
            event = await node.events.receive()
            if isinstance(event, Frame):
                found.append((trio.current_time() - due_s[int.from_bytes(event.data, "big")]) * 1e3)
    return found
