"""The contract of ports.Transport, kept by both transports: what passes here in memory passes over libp2p."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from meshnode import errors
from meshnode.net import outbox
from meshnode.ports import FRAME_BYTES_MAX, Frame, Lane, LinkDown, LinkUp
from tests.net import meshes

SIGNAL = Lane.SIGNAL


@pytest.fixture(params=[meshes.MemoryMesh, meshes.Libp2pMesh], ids=["memory", "libp2p"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[meshes.Mesh]:
    async with trio.open_nursery() as nursery:
        yield request.param(nursery)
        nursery.cancel_scope.cancel()


async def test_a_link_comes_up_once_on_both_sides(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await a.dial(b.me, b.addresses, SIGNAL)
    await a.dial(b.me, b.addresses, SIGNAL)
    await b.dial(a.me, a.addresses, SIGNAL)
    a.send_nowait(b.me, SIGNAL, b"there")
    b.send_nowait(a.me, SIGNAL, b"back")
    assert await meshes.events(a, 2) == [LinkUp(b.me, SIGNAL), Frame(b.me, SIGNAL, b"back")]
    assert await meshes.events(b, 2) == [LinkUp(a.me, SIGNAL), Frame(a.me, SIGNAL, b"there")]


@pytest.mark.parametrize("lane", Lane)
async def test_frames_arrive_whole_and_in_order(mesh: meshes.Mesh, lane: Lane) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b, [lane])
    rng = random.Random(7)
    longest = FRAME_BYTES_MAX[lane]
    sizes = [0, 1, 3, 4, 65507, 65508, longest, 0, longest, *(rng.randrange(70000) for _ in range(100))]
    sent = [rng.randbytes(size) for size in sizes]

    async def send() -> None:
        for frame in sent:
            await a.send(b.me, lane, frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await meshes.frames(b, len(sent)) == sent


async def test_frames_pass_both_ways_at_once(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b)
    for count in range(200):
        a.send_nowait(b.me, SIGNAL, b"a%d" % count)
        b.send_nowait(a.me, SIGNAL, b"b%d" % count)
    assert await meshes.frames(a, 200) == [b"b%d" % count for count in range(200)]
    assert await meshes.frames(b, 200) == [b"a%d" % count for count in range(200)]


async def test_lanes_have_links_of_their_own(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b, [Lane.BULK])
    with pytest.raises(errors.Unreachable):
        a.send_nowait(b.me, SIGNAL, b"no such link")
    await meshes.linked(b, a, [Lane.MEDIA, SIGNAL])
    for lane in Lane:
        a.send_nowait(b.me, lane, lane.name.encode())
    assert sorted(event.lane for event in await meshes.events(b, 3) if isinstance(event, Frame)) == list(Lane)


@pytest.mark.parametrize("lane", Lane)
async def test_a_frame_that_is_too_long_is_refused_where_it_is_sent(mesh: meshes.Mesh, lane: Lane) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b, [lane])
    too_long = bytes(FRAME_BYTES_MAX[lane] + 1)
    with pytest.raises(errors.PeerError):
        a.send_nowait(b.me, lane, too_long)
    with pytest.raises(errors.PeerError):
        await a.send(b.me, lane, too_long)
    a.send_nowait(b.me, lane, b"still there")
    assert await meshes.frames(b, 1) == [b"still there"]


async def test_a_full_queue_blocks_and_loses_nothing(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b)
    sent = [b"%d" % number for number in range(outbox.FRAMES_MAX)]
    for frame in sent:
        a.send_nowait(b.me, SIGNAL, frame)
    with pytest.raises(trio.WouldBlock):
        a.send_nowait(b.me, SIGNAL, b"one too many")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, b.me, SIGNAL, b"waits")
        assert await meshes.frames(b, len(sent) + 1) == [*sent, b"waits"]


async def test_a_reader_that_stops_stops_its_peer_and_nothing_is_lost(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b)
    sent_count = await meshes.flooded(a, b)
    assert 0 < sent_count < 1000
    assert await meshes.frames(b, sent_count) == [meshes.flood_frame(number) for number in range(sent_count)]


async def test_without_a_link_nothing_can_be_sent(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    with pytest.raises(errors.Unreachable):
        a.send_nowait(b.me, SIGNAL, b"x")
    with pytest.raises(errors.Unreachable):
        await a.send(b.me, SIGNAL, b"x")
    await a.hang_up(b.me)


async def test_an_address_of_somebody_else_is_not_that_peer(mesh: meshes.Mesh) -> None:
    a, b, c = await mesh.start("a"), await mesh.start("b"), await mesh.start("c")
    with pytest.raises(errors.Unreachable):
        await a.dial(b.me, c.addresses, SIGNAL)
    with pytest.raises(errors.Unreachable):
        await a.dial(a.me, a.addresses, SIGNAL)
    with pytest.raises(errors.Unreachable):
        await a.dial(b.me, (), SIGNAL)
    await a.dial(b.me, (*c.addresses, "nonsense", *b.addresses), SIGNAL)
    assert await meshes.events(b, 1) == [LinkUp(a.me, SIGNAL)]


async def test_hanging_up_ends_every_lane_on_both_sides(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b, list(Lane))
    await a.hang_up(b.me)
    with pytest.raises(errors.Unreachable):
        a.send_nowait(b.me, SIGNAL, b"x")
    assert set(await meshes.events(a, 3)) == {LinkDown(b.me, lane) for lane in Lane}
    assert set(await meshes.events(b, 3)) == {LinkDown(a.me, lane) for lane in Lane}
    with pytest.raises(errors.Unreachable):
        b.send_nowait(a.me, SIGNAL, b"x")


async def test_a_sender_that_waits_hears_of_the_end(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b)
    await meshes.flooded(a, b)

    async def wait_for_room() -> None:
        with pytest.raises(errors.Unreachable):
            await a.send(b.me, SIGNAL, meshes.flood_frame(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_room)
        await trio.testing.wait_all_tasks_blocked()
        await a.hang_up(b.me)
    assert await meshes.events(a, 1) == [LinkDown(b.me, SIGNAL)]


async def test_a_hang_up_and_a_new_dial_are_told_in_that_order(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b)
    await a.hang_up(b.me)
    await a.dial(b.me, b.addresses, SIGNAL)
    assert await meshes.events(a, 2) == [LinkDown(b.me, SIGNAL), LinkUp(b.me, SIGNAL)]
    assert await meshes.events(b, 2) == [LinkDown(a.me, SIGNAL), LinkUp(a.me, SIGNAL)]
    a.send_nowait(b.me, SIGNAL, b"again")
    assert await meshes.frames(b, 1) == [b"again"]


async def test_a_crash_ends_the_links_of_the_others(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b, [SIGNAL, Lane.BULK])
    await mesh.crash(b)
    assert set(await meshes.events(a, 2)) == {LinkDown(b.me, SIGNAL), LinkDown(b.me, Lane.BULK)}
    with trio.fail_after(meshes.PATIENCE_S):
        assert [event async for event in b.events] == []
    with pytest.raises(errors.Unreachable):
        await a.dial(b.me, b.addresses, SIGNAL)


async def test_a_restarted_peer_is_the_same_peer(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    await meshes.linked(a, b)
    await mesh.crash(b)
    assert await meshes.events(a, 1) == [LinkDown(b.me, SIGNAL)]
    again = await mesh.start("b")
    assert again.me == b.me
    await meshes.linked(a, again)
    again.send_nowait(a.me, SIGNAL, b"me again")
    assert await meshes.frames(a, 1) == [b"me again"]


async def test_dials_that_cross_make_one_link_in_the_brains_eyes(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    for number in range(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.dial, b.me, b.addresses, SIGNAL)
            nursery.start_soon(b.dial, a.me, a.addresses, SIGNAL)
        for count in range(50):
            await a.send(b.me, SIGNAL, b"a%d" % count)
            await b.send(a.me, SIGNAL, b"b%d" % count)
        assert await meshes.events(a, 1) == [LinkUp(b.me, SIGNAL)], number
        assert await meshes.events(b, 1) == [LinkUp(a.me, SIGNAL)], number
        assert await meshes.frames(a, 50) == [b"b%d" % count for count in range(50)]
        assert await meshes.frames(b, 50) == [b"a%d" % count for count in range(50)]
        await a.hang_up(b.me)
        assert await meshes.events(a, 1) == [LinkDown(b.me, SIGNAL)]
        assert await meshes.events(b, 1) == [LinkDown(a.me, SIGNAL)]


async def test_two_dials_of_one_node_make_one_link(mesh: meshes.Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(a.dial, b.me, b.addresses, SIGNAL)
    a.send_nowait(b.me, SIGNAL, b"one")
    assert await meshes.events(b, 2) == [LinkUp(a.me, SIGNAL), Frame(a.me, SIGNAL, b"one")]
    await b.hang_up(a.me)
    assert await meshes.events(a, 2) == [LinkUp(b.me, SIGNAL), LinkDown(b.me, SIGNAL)]


async def test_a_mesh_of_five_talks_all_to_all(mesh: meshes.Mesh) -> None:
    nodes = [await mesh.start(name) for name in "abcde"]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            for other in nodes:
                if node.me < other.me:
                    nursery.start_soon(node.dial, other.me, other.addresses, SIGNAL)
    for node in nodes:
        ups = set(await meshes.events(node, 4))
        assert ups == {LinkUp(other.me, SIGNAL) for other in nodes if other is not node}
    for node in nodes:
        for other in nodes:
            if node is not other:
                node.send_nowait(other.me, SIGNAL, node.me + other.me)
    for node in nodes:
        heard = await meshes.events(node, 4)
        assert set(heard) == {Frame(other.me, SIGNAL, other.me + node.me) for other in nodes if other is not node}
