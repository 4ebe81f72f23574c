"""The faults of the network in memory, under a clock that jumps: each knob does what it says, and can be seen to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from meshnode import errors, ports
from meshnode.net import memory
from meshnode.ports import Frame, Lane, LinkDown, LinkUp
from tests.net import meshes

SIGNAL = Lane.SIGNAL


class Pair:
    """Two nodes with a link, a tenth of a second apart."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = memory.Network(random.Random(3), (0.05, 0.15))

    async def start(self, name: str) -> memory.MemoryTransport:
        node = self.network.transport(meshes.identity(name))
        await self.nursery.start(node.run)
        return node

    async def link(self) -> None:
        self.a, self.b = await self.start("a"), await self.start("b")
        await meshes.linked(self.a, self.b)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        await pair.link()
        yield pair
        nursery.cancel_scope.cancel()


async def quiet(node: ports.Transport) -> bool:
    """Whether nothing more happens for a virtual hour."""
    with trio.move_on_after(3600) as hour:
        await node.events.receive()
    return hour.cancelled_caught


async def test_frames_take_their_time_and_do_not_overtake(pair: Pair, autojump_clock: MockClock) -> None:
    sent = [b"%d" % number for number in range(500)]
    start = trio.current_time()
    for frame in sent:
        pair.a.send_nowait(pair.b.me, SIGNAL, frame)
    assert await meshes.frames(pair.b, 500) == sent
    assert 0.05 <= trio.current_time() - start <= 0.15
    assert (pair.network.delivered_count, pair.network.dropped_count) == (500, 0)


async def test_a_cut_cable_eats_frames_and_tells_nobody(pair: Pair, autojump_clock: MockClock) -> None:
    pair.a.send_nowait(pair.b.me, SIGNAL, b"under way when the cable is cut")
    pair.network.partition(pair.a.me, pair.b.me)
    pair.a.send_nowait(pair.b.me, SIGNAL, b"into the void")
    await pair.b.send(pair.a.me, SIGNAL, b"into the void, too")
    assert await quiet(pair.a)
    assert await quiet(pair.b)
    assert pair.network.dropped_count == 3
    pair.network.heal(pair.b.me, pair.a.me)
    pair.a.send_nowait(pair.b.me, SIGNAL, b"mended")
    assert await meshes.frames(pair.b, 1) == [b"mended"]


async def test_the_end_of_a_link_is_heard_when_the_cable_is_mended(pair: Pair, autojump_clock: MockClock) -> None:
    pair.network.partition(pair.a.me, pair.b.me)
    await pair.a.hang_up(pair.b.me)
    assert await meshes.events(pair.a, 1) == [LinkDown(pair.b.me, SIGNAL)]
    assert await quiet(pair.b)
    pair.network.heal()
    assert await meshes.events(pair.b, 1) == [LinkDown(pair.a.me, SIGNAL)]


async def test_a_restart_behind_a_cut_cable_replaces_the_dead_link(pair: Pair, autojump_clock: MockClock) -> None:
    pair.network.partition(pair.a.me, pair.b.me)
    pair.network.crash(pair.b.me)
    again = await pair.start("b")
    with pytest.raises(errors.Unreachable):
        await again.dial(pair.a.me, pair.a.addresses, SIGNAL)
    assert await quiet(pair.a)
    pair.network.heal()
    await again.dial(pair.a.me, pair.a.addresses, SIGNAL)
    assert await meshes.events(pair.a, 2) == [LinkDown(again.me, SIGNAL), LinkUp(again.me, SIGNAL)]
    pair.a.send_nowait(again.me, SIGNAL, b"welcome")
    assert await meshes.events(again, 2) == [LinkUp(pair.a.me, SIGNAL), Frame(pair.a.me, SIGNAL, b"welcome")]


async def test_a_dial_into_a_cut_gives_up_after_its_patience(pair: Pair, autojump_clock: MockClock) -> None:
    c = await pair.start("c")
    pair.network.partition(pair.a.me, c.me)
    start = trio.current_time()
    with pytest.raises(errors.Unreachable):
        await pair.a.dial(c.me, c.addresses, SIGNAL)
    assert trio.current_time() - start == memory.DIAL_S_MAX


async def test_a_frozen_node_is_silent_and_loses_nothing(pair: Pair, autojump_clock: MockClock) -> None:
    pair.network.freeze(pair.b.me)
    pair.a.send_nowait(pair.b.me, SIGNAL, b"knock")
    pair.b.send_nowait(pair.a.me, SIGNAL, b"from its tasks, which do run")
    assert await quiet(pair.a)
    assert await quiet(pair.b)
    pair.network.thaw(pair.b.me)
    assert await meshes.frames(pair.b, 1) == [b"knock"]
    assert await meshes.frames(pair.a, 1) == [b"from its tasks, which do run"]
    assert pair.network.dropped_count == 0


async def test_a_frozen_node_that_dies_is_heard_of(pair: Pair, autojump_clock: MockClock) -> None:
    pair.network.freeze(pair.b.me)
    assert await quiet(pair.a)
    pair.network.crash(pair.b.me)
    assert await meshes.events(pair.a, 1) == [LinkDown(pair.b.me, SIGNAL)]


async def test_a_crash_loses_what_is_under_way_and_ends_run(pair: Pair, autojump_clock: MockClock) -> None:
    pair.b.send_nowait(pair.a.me, SIGNAL, b"under way")
    pair.network.crash(pair.b.me)
    assert await meshes.events(pair.a, 1) == [LinkDown(pair.b.me, SIGNAL)]
    assert pair.network.dropped_count == 1
    assert [event async for event in pair.b.events] == []
    with pytest.raises(errors.Unreachable):
        pair.b.send_nowait(pair.a.me, SIGNAL, b"from the grave")


async def test_others_do_not_notice_a_cut_between_two(pair: Pair, autojump_clock: MockClock) -> None:
    c = await pair.start("c")
    await meshes.linked(c, pair.a)
    await meshes.linked(c, pair.b)
    pair.network.partition(pair.a.me, pair.b.me)
    c.send_nowait(pair.a.me, SIGNAL, b"to a")
    c.send_nowait(pair.b.me, SIGNAL, b"to b")
    assert await meshes.frames(pair.a, 1) == [b"to a"]
    assert await meshes.frames(pair.b, 1) == [b"to b"]
