"""The thirteen traps of py-libp2p 0.8.1, and that our transport is in none of them.

Each was reproduced with the library alone before; meshnode/net/DESIGN.md says how each is avoided.
"""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from libp2p.crypto import ed25519
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from meshnode import errors, ids
from meshnode.net import framing, libp2p
from meshnode.ports import FRAME_BYTES_MAX, Frame, Lane, LinkDown, LinkUp
from tests.net import meshes
from tests.real import nodes

SIGNAL = Lane.SIGNAL
DEAD = "/ip4/127.0.0.1/tcp/1"


async def stream_to(stranger: libp2p.Libp2pTransport, node: libp2p.Libp2pTransport, protocol: str | None) -> tuple:
    """A connection and a stream as somebody opens it who does not speak our greeting."""
    name = ID.from_base58(ids.peer_text(node.me))
    connection = await stranger._swarm.dial_addr(Multiaddr(node.addresses[0]), name)
    stream = await connection.new_stream()
    if protocol is not None:
        await MultiselectClient().select_one_of([TProtocol(protocol)], MultiselectCommunicator(stream))
    return connection, stream


async def refused(node: libp2p.Libp2pTransport, count: int) -> None:
    with trio.fail_after(meshes.PATIENCE_S):
        while node.refused_count < count:  # noqa: ASYNC110 - the transport tells nobody; it counts
            await trio.sleep(0.01)


async def well(a: libp2p.Libp2pTransport, b: libp2p.Libp2pTransport) -> None:
    """Both still run, and a new link between them carries a frame."""
    await meshes.linked(a, b)
    a.send_nowait(b.me, SIGNAL, b"well?")
    assert await meshes.frames(b, 1) == [b"well?"]


async def test_t1_a_strangers_stream_does_not_end_the_node() -> None:
    rng = random.Random(5)
    async with nodes.here("a") as a, nodes.here("b") as b, nodes.here("stranger") as stranger:
        host, port = b.addresses[0].split("/")[2:5:2]
        for _ in range(20):
            noise = await trio.open_tcp_stream(host, int(port))
            await noise.send_all(rng.randbytes(rng.randrange(1, 2000)))
            await noise.aclose()
        speeches = [
            (None, rng.randbytes(500)),
            (None, b"\x02\xff\n"),  # not UTF-8 where a protocol name should be
            ("/meshnode/1/signal", b""),
            ("/meshnode/1/signal", b"\xff" * 100),  # a frame of 4 GiB
            ("/meshnode/1/signal", framing.header(SIGNAL, 3) + b"abc"),  # not a greeting
            ("/meshnode/1/bulk", rng.randbytes(500)),
        ]
        for count, (protocol, speech) in enumerate(speeches, 1):
            connection, stream = await stream_to(stranger, b, protocol)
            await stream.write(speech)
            await stream.close()
            await refused(b, count)
            await connection.close()
        await well(a, b)


async def test_t1_a_frame_over_the_limit_ends_that_link_alone() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b, nodes.here("rogue") as rogue:
        await meshes.linked(a, b)
        await meshes.linked(rogue, b)
        link = rogue._links.required(b.me, SIGNAL)
        await link.stream.write((FRAME_BYTES_MAX[SIGNAL] + 1).to_bytes(framing.HEADER_BYTES, "big") + bytes(100))
        assert await meshes.events(b, 1) == [LinkDown(rogue.me, SIGNAL)]
        assert b.refused_count == 1
        a.send_nowait(b.me, SIGNAL, b"well?")
        assert await meshes.frames(b, 1) == [b"well?"]


async def test_t1_a_fault_of_ours_does_end_the_node() -> None:
    class Broken(libp2p.Libp2pTransport):
        async def _adopted(self, link: libp2p._Link) -> libp2p._Link:
            raise AssertionError("our own fault")

    async with nodes.here("a") as a:
        with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="our own fault"), flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                broken = Broken(meshes.identity("b"), [nodes.ANYWHERE])
                await nursery.start(broken.run)
                with pytest.raises(errors.Unreachable):
                    await a.dial(broken.me, broken.addresses, SIGNAL)


async def test_t2_cancelled_senders_leave_whole_frames_and_a_live_link() -> None:
    rng = random.Random(2)
    async with nodes.here("a") as a, nodes.here("b") as b:
        await meshes.linked(a, b, [Lane.BULK])
        sent: list[bytes] = []
        cancelled_count = 0
        for number in range(200):
            frame = number.to_bytes(4, "big") + rng.randbytes(rng.randrange(900_000))
            with trio.move_on_after(rng.choice([0.0, 0.0005, 0.002, 5.0])) as patience:
                await a.send(b.me, Lane.BULK, frame)
                sent.append(frame)
            cancelled_count += patience.cancelled_caught
        await a.send(b.me, Lane.BULK, b"last")
        assert cancelled_count > 5
        assert await meshes.frames(b, len(sent) + 1) == [*sent, b"last"]


async def test_t3_many_connections_in_a_lifetime_leave_nothing_behind() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b:
        tasks_before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(300):
            await a.dial(b.me, b.addresses, SIGNAL)
            await a.hang_up(b.me)
            for node, other in ((a, b), (b, a)):
                assert await meshes.events(node, 2) == [LinkUp(other.me, SIGNAL), LinkDown(other.me, SIGNAL)]
        with trio.fail_after(meshes.PATIENCE_S):
            while trio.lowlevel.current_statistics().tasks_living > tasks_before:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert b._swarm._inbound_limiter.borrowed_tokens == 0
        assert (a._swarm.connections, b._swarm.connections) == ({}, {})


async def test_t4_a_dial_does_not_wait_for_a_failure() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b:
        took: list[float] = []
        for _ in range(9):
            start = trio.current_time()
            await a.dial(b.me, b.addresses, SIGNAL)
            took.append(trio.current_time() - start)
            await a.hang_up(b.me)
            await meshes.events(b, 2)
        assert sorted(took)[4] < 0.2  # the library's own way takes 0.25 s at the least


async def test_t5_a_live_address_is_found_behind_dead_ones() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b:
        dead = [f"{DEAD}/p2p/{ids.peer_text(b.me)}", f"/dns4/no-such-host.invalid/tcp/1/p2p/{ids.peer_text(b.me)}"]
        with trio.fail_after(meshes.PATIENCE_S):
            await a.dial(b.me, [*dead, *b.addresses], SIGNAL)
        assert await meshes.events(b, 1) == [LinkUp(a.me, SIGNAL)]


async def test_t6_a_peer_that_could_not_be_reached_is_dialled_again_at_once() -> None:
    async with nodes.here("a") as a:
        async with nodes.here("b") as b:
            place = b.addresses[0].split("/p2p/")[0]
            address = b.addresses
        start = trio.current_time()
        for _ in range(3):
            with pytest.raises(errors.Unreachable):
                await a.dial(b.me, address, SIGNAL)
        assert trio.current_time() - start < 0.6  # nor does the library try again behind our back: 0.7 s each
        async with nodes.here("b", listen=place) as again:
            assert again.addresses == address
            await well(a, again)


async def test_t7_nobody_is_dialled_but_by_us() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b:
        a._swarm.peerstore.add_addrs(ID.from_base58(ids.peer_text(b.me)), [Multiaddr(b.addresses[0])], 3600)
        a._swarm.auto_connector._last_connect_attempt = 0.0
        await a._swarm.auto_connector.maybe_connect()
        await trio.testing.wait_all_tasks_blocked()
        assert not a._swarm.auto_connector._started
        assert a._swarm.connections == {}


async def test_t8_a_reader_that_pauses_longer_than_the_library_waits_loses_nothing() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b:
        await meshes.linked(a, b)
        sent_count = 0
        with trio.move_on_after(6.0):  # the library resets the stream after 5 s without a window
            while True:
                await a.send(b.me, SIGNAL, sent_count.to_bytes(4, "big") + bytes(100_000))
                sent_count += 1
        assert a._links.required(b.me, SIGNAL).stream.send_window == 0
        found = await meshes.frames(b, sent_count)
        assert [int.from_bytes(frame[:4], "big") for frame in found] == list(range(sent_count))


async def test_t8_a_reader_that_dawdles_holds_no_more_than_the_window() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b:
        await meshes.linked(a, b)
        stream = b._links.required(a.me, SIGNAL).stream
        held_bytes: list[int] = []
        for _ in range(6):
            await meshes.flooded(a, b)
            held_bytes.append(len(stream.conn.stream_buffers[stream.stream_id]))
            await meshes.frames(b, 30)
        assert libp2p.WINDOW_BYTES[SIGNAL] // 4 < max(held_bytes) <= libp2p.WINDOW_BYTES[SIGNAL]


async def test_t9_a_connection_has_one_stream() -> None:
    async with nodes.here("a") as a, nodes.here("b") as b:
        await meshes.linked(a, b, list(Lane))
        for node, other in ((a, b), (b, a)):
            connections = node._swarm.connections[ID.from_base58(ids.peer_text(other.me))]
            assert [len(one.muxed_conn.streams) for one in connections] == [1, 1, 1]
        stream = await connections[0].new_stream()  # b opens a second one on a connection that stands
        with pytest.raises(libp2p._BROKEN):
            await MultiselectClient().select_one_of([libp2p.PROTOCOLS[SIGNAL]], MultiselectCommunicator(stream))
        assert a.refused_count == 1


async def test_t10_t11_quic_is_neither_listened_on_nor_dialled() -> None:
    with pytest.raises(errors.ConfigError):
        libp2p.Libp2pTransport(meshes.identity("a"), ["/ip4/127.0.0.1/udp/0/quic-v1"])
    async with nodes.here("a") as a, nodes.here("b") as b:
        with pytest.raises(errors.Unreachable, match="not a TCP address"):
            await a.dial(b.me, [f"/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{ids.peer_text(b.me)}"], SIGNAL)
        kinds = [type(one).__name__ for one in a._swarm.transport_manager.get_transports()]
        assert kinds == ["_Tcp"]


async def test_t12_a_seed_that_was_down_is_found_however_often_it_was_tried() -> None:
    async with nodes.here("a") as a:
        async with nodes.here("seed") as seed:
            address = seed.addresses
        for _ in range(10):  # the library strikes a bootstrap peer off its list after three
            with pytest.raises(errors.Unreachable):
                await a.dial(seed.me, address, SIGNAL)
        async with nodes.here("seed", listen=address[0].split("/p2p/")[0]) as again:
            await well(a, again)


async def test_t13_round_trips_at_once_on_one_link_do_not_trip_each_other() -> None:
    async with nodes.here("a") as a, nodes.child("b") as b:
        await a.dial(b.me, b.addresses, SIGNAL)
        assert await meshes.events(a, 1) == [LinkUp(b.me, SIGNAL)]
        for number in range(20):
            a.send_nowait(b.me, SIGNAL, b"ping%d" % number)
        assert await meshes.frames(a, 20) == [b"ping%d" % number for number in range(20)]


async def test_a_killed_process_is_heard_of_within_a_second() -> None:
    async with nodes.here("a") as a, nodes.child("b") as b:
        await a.dial(b.me, b.addresses, SIGNAL)
        await a.dial(b.me, b.addresses, Lane.BULK)
        await meshes.events(a, 2)
        await b.kill()
        with trio.fail_after(1.0):
            assert {await a.events.receive(), await a.events.receive()} == {
                LinkDown(b.me, SIGNAL),
                LinkDown(b.me, Lane.BULK),
            }


async def test_a_stopped_process_blocks_its_own_lane_and_nobody_elses() -> None:
    async with nodes.here("a") as a, nodes.child("b") as b, nodes.child("c") as c:
        for peer in (b, c):
            for lane in (SIGNAL, Lane.BULK):
                await a.dial(peer.me, peer.addresses, lane)
        await meshes.events(a, 4)
        b.stop()
        full = False
        while not full:
            with trio.move_on_after(0.5) as patience:
                await a.send(b.me, Lane.BULK, bytes(1 << 20))
            full = patience.cancelled_caught
        start = trio.current_time()
        for number in range(20):
            await a.send(c.me, SIGNAL, b"%d" % number)
            assert await meshes.events(a, 1) == [Frame(c.me, SIGNAL, b"%d" % number)]
        assert trio.current_time() - start < 1.0
        await a.hang_up(b.me)  # does not wait for the socket that is full
        assert set(await meshes.events(a, 2)) == {LinkDown(b.me, SIGNAL), LinkDown(b.me, Lane.BULK)}
        assert trio.current_time() - start < 1.5


async def test_a_stopped_process_that_goes_on_has_lost_nothing() -> None:
    async with nodes.here("a") as a, nodes.child("b") as b:
        await a.dial(b.me, b.addresses, Lane.MEDIA)
        await meshes.events(a, 1)
        b.stop()
        sent = [number.to_bytes(4, "big") + bytes(20_000) for number in range(100)]
        for frame in sent:
            await a.send(b.me, Lane.MEDIA, frame)
        b.go_on()
        assert await meshes.frames(a, 100) == sent


async def test_the_end_of_run_does_not_wait_for_a_stopped_peer() -> None:
    async with nodes.child("b") as b:
        async with nodes.here("a") as a:
            await a.dial(b.me, b.addresses, Lane.BULK)
            b.stop()
            with trio.move_on_after(0.5):
                while True:
                    await a.send(b.me, Lane.BULK, bytes(1 << 20))
            start = trio.current_time()
        assert trio.current_time() - start < libp2p.CLOSE_S_MAX + 0.5
        with pytest.raises(errors.Unreachable):
            a.send_nowait(b.me, Lane.BULK, b"x")


async def test_a_port_in_use_is_the_operators_mistake() -> None:
    async with nodes.here("a") as a:
        other = libp2p.Libp2pTransport(meshes.identity("b"), [a.addresses[0].split("/p2p/")[0]])
        with pytest.raises(errors.ConfigError, match="another port"), trio.fail_after(meshes.PATIENCE_S):
            await other.run()


async def test_announced_addresses_replace_those_that_were_found() -> None:
    announced = libp2p.Libp2pTransport(meshes.identity("a"), ["/ip4/0.0.0.0/tcp/0"], ["/dns4/localhost/tcp/4001"])
    found = libp2p.Libp2pTransport(meshes.identity("b"), ["/ip4/0.0.0.0/tcp/0"])
    async with trio.open_nursery() as nursery:
        await nursery.start(announced.run)
        await nursery.start(found.run)
        assert announced.addresses == (f"/dns4/localhost/tcp/4001/p2p/{ids.peer_text(announced.me)}",)
        assert any(text.startswith("/ip4/127.0.0.1/tcp/") for text in found.addresses)
        assert all(text.endswith(f"/p2p/{ids.peer_text(found.me)}") for text in found.addresses)
        assert not any("/tcp/0/" in text or "0.0.0.0" in text for text in found.addresses)
        port = found.addresses[0].split("/")[4]
        await announced.dial(found.me, [f"/dns4/localhost/tcp/{port}/p2p/{ids.peer_text(found.me)}"], SIGNAL)
        assert await meshes.events(found, 1) == [LinkUp(announced.me, SIGNAL)]
        nursery.cancel_scope.cancel()


def test_libp2p_writes_a_peer_id_as_we_do() -> None:
    identity = meshes.identity("a")
    name = ID.from_pubkey(ed25519.create_new_key_pair(identity.seed).public_key)
    assert name.to_base58() == ids.peer_text(identity.peer)
