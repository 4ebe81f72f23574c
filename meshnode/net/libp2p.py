"""Frames between nodes over py-libp2p: TCP, Noise and Yamux, and nothing else of it. The only file that imports it.

A link (peer, lane) is one stream, the first and only one of a connection of its own: signalling does not queue behind
bulk, and what kills a connection kills one link. One task writes what has gathered in the link's outbox, one reads
all the time, one closes the socket; they live and die together, so no caller's cancellation ever reaches a stream.
The traps of the library that this steers around are named T1 to T13 in DESIGN.md, each with its test.

Refused: the library's host, with its identify, bootstrap, auto-connector and resource manager (they dial, ban and
limit by rules of their own); QUIC; more than one stream a connection. It does not retry and has no heartbeat: a stopped
peer is the brain's to suspect.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetStream, IRawConnection
from libp2p.crypto import ed25519, x25519
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network import swarm as libp2p_swarm
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import raw_connection, swarm_connection
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise import transport as noise_transport
from libp2p.stream_muxer.yamux import yamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils.address_validation import get_available_interfaces
from multiaddr import Multiaddr

from meshnode import errors, ids
from meshnode.ids import PeerId
from meshnode.net import framing, links, outbox, places, sockets
from meshnode.ports import Frame, Lane, NetEvent
from meshnode.wire import keys

PROTOCOLS = {lane: TProtocol(f"/meshnode/1/{lane.name.lower()}") for lane in Lane}

EVENTS_MAX = 256
"""Events that wait for the brain. More: more memory. Fewer: a busy moment of the brain stalls its peers."""

DIAL_S_MAX = 3.0
"""Seconds for one address: TCP, Noise, Yamux and the greeting, 15 ms on a quiet LAN."""

CLOSE_S_MAX = 1.0
"""Seconds that the end of `run` waits for the library to tidy up behind closed sockets."""

CONNECTIONS_MAX = 4096
"""Both ways, all lanes: three a peer. Beyond that it would be strangers, and each costs memory and tasks."""

WINDOW_BYTES = {Lane.SIGNAL: 2 << 20, Lane.MEDIA: 2 << 20, Lane.BULK: 16 << 20}
"""What a peer may have under way on a link. More: more memory a link. Less: bulk waits for round trips."""

READ_BYTES_MAX = 1 << 20
BATCH_BYTES_MAX = 1 << 20
"""For one read, and of frames joined into one write. Smaller: more locks and task switches a byte."""

WINDOW_POLL_S = 0.005
"""How often a writer looks whether the peer has opened its window again: the library has no event for it."""

_RUN_BYTES = 8
_GREETING_BYTES = _RUN_BYTES + 8
_NOISE_BYTES_MAX = 65519  # plaintext of one Noise message

# What a broken or hostile connection raises; not our own AssertionError, which ends the node (T1). ValueError: the
# library decodes a stranger's bytes as UTF-8 without a net.
_BROKEN = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_UNINTELLIGIBLE = (*_BROKEN, ValueError)

# The library warns of every peer that leaves; one of its files to the root logger, which sets up stderr for everybody.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)
swarm_connection.logging = logging.getLogger("libp2p.network.connection")

# A yamux frame of 64 KiB needs two Noise messages, the second nearly empty. Four full ones: less locking a byte.
yamux.MAX_MESSAGE_SIZE = 4 * _NOISE_BYTES_MAX


class _BufferedTcp(TrioTCPStream):
    """A Noise message is two reads, one of two bytes: take from the kernel what is there."""

    def __init__(self, inner: TrioTCPStream) -> None:
        super().__init__(inner.stream)
        self._held = memoryview(b"")

    async def read(self, n: int | None = None) -> bytes:
        if not self._held:
            self._held = memoryview(await super().read(1 << 18))
            if not self._held:  # the library would ask a closed socket a hundred times over
                raise ConnectionClosedError("end of stream", transport="tcp")
        taken, self._held = self._held[:n], self._held[len(self._held) if n is None else n :]
        return bytes(taken)


class _Tcp(TCP):
    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        raw = await super().dial(maddr)
        raw.stream = _BufferedTcp(raw.stream)
        return raw


class _Swarm(libp2p_swarm.Swarm):
    async def _do_handle_inbound_connection(self, read_write_closer: Any, maddr: Multiaddr, failure_event: Any) -> None:
        """T3: the library's own waits for the end of the swarm here, and holds a place in a limiter meanwhile."""
        raw = raw_connection.RawConnection(_BufferedTcp(read_write_closer), False)
        try:
            muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
            await muxed.event_closed.wait()
        finally:
            with trio.CancelScope(shield=True):
                await raw.close()


def _new_swarm(identity: keys.Identity) -> _Swarm:
    key_pair = ed25519.create_new_key_pair(identity.seed)
    me = ID.from_pubkey(key_pair.public_key)
    assert me.to_base58() == ids.peer_text(identity.peer), "libp2p writes peer ids in another way"
    noise = noise_transport.Transport(key_pair, noise_privkey=x25519.create_new_key_pair().private_key)
    config = ConnectionConfig(
        max_connections=CONNECTIONS_MAX,
        min_connections=0,
        low_watermark=0,
        high_watermark=CONNECTIONS_MAX,
        max_connections_per_peer=len(Lane) * (links.LINKS_MAX + 1),
        inbound_upgrade_timeout=DIAL_S_MAX,
        outbound_upgrade_timeout=DIAL_S_MAX,
    )
    return _Swarm(
        me,
        PeerStore(),
        TransportUpgrader({noise_transport.PROTOCOL_ID: noise}, {TProtocol(yamux.PROTOCOL_ID): yamux.Yamux}),
        transports=[_Tcp()],
        retry_config=RetryConfig(max_retries=0),  # whether to try again is the brain's to decide
        connection_config=config,
    )


class _Link:
    """One stream on its own connection, and what waits to be written to it."""

    def __init__(self, peer: PeerId, lane: Lane, stream: yamux.YamuxStream) -> None:
        self.peer = peer
        self.lane = lane
        self.stream = stream
        self.greeting = links.Greeting(b"", 0)
        self.out: outbox.Outbox[bytes] = outbox.Outbox(lane)
        self.early: list[bytes] = []  # frames that came in one read with the greeting
        self.decoder = framing.Decoder(lane)
        self.ended = False
        self.over = trio.Event()

    def end(self) -> None:
        self.ended = True
        self.out.end()
        self.over.set()

    async def read(self) -> list[bytes]:
        """Frames that the next chunk completes, perhaps none. Gives the peer credit for what it has sent."""
        chunk = await self.stream.conn.read_stream(self.stream.stream_id, READ_BYTES_MAX)
        # Not stream.read(): that answers every message, however small, with a message of its own.
        await self.widen(WINDOW_BYTES[self.lane] // 2)
        return self.decoder.feed(chunk)

    async def widen(self, least_bytes: int) -> None:
        """Open the window to its full width, if it has shrunk by at least so much."""
        unread = self.stream.conn.stream_buffers.get(self.stream.stream_id, b"")
        shrunk_bytes = WINDOW_BYTES[self.lane] - self.stream.recv_window - len(unread)
        if shrunk_bytes >= least_bytes:
            self.stream.recv_window += shrunk_bytes
            await self.stream.send_window_update(shrunk_bytes)

    async def write(self, frames: list[bytes]) -> None:
        """T8: the library gives a stream up when its window stays shut for 5 s, so we wait before we call it."""
        rest = memoryview(b"".join(part for frame in frames for part in (framing.header(self.lane, len(frame)), frame)))
        while rest:
            room_bytes = self.stream.send_window
            if room_bytes <= 0:
                await trio.sleep(WINDOW_POLL_S)
                continue
            piece, rest = rest[:room_bytes], rest[room_bytes:]
            await self.stream.write(piece)

    async def greet(self, ours: links.Greeting) -> None:
        """Both sides speak first. Raises PeerError for anything but a greeting."""
        await self.widen(1)
        await self.write([ours.run + ours.losses.to_bytes(8, "big")])
        while not self.early:
            self.early = await self.read()
        theirs = self.early.pop(0)
        if len(theirs) != _GREETING_BYTES:
            raise errors.PeerError(f"a greeting of {len(theirs)} bytes")
        self.greeting = links.Greeting(theirs[:_RUN_BYTES], int.from_bytes(theirs[_RUN_BYTES:]))


class Libp2pTransport:
    """ports.Transport over py-libp2p. `announce` replaces the addresses that are found out by listening."""

    def __init__(self, identity: keys.Identity, listen: Sequence[str], announce: Sequence[str] = ()) -> None:
        self.me = identity.peer
        self.addresses: tuple[str, ...] = ()
        self.refused_count = 0
        """Connections that were no links: strangers' protocols, broken greetings, frames over the limit."""
        self._listen = places.to_listen(listen, self.me)
        self._announce = places.to_announce(announce, self.me)
        self._swarm = _new_swarm(identity)
        self._run = secrets.token_bytes(_RUN_BYTES)
        self._links: links.Links[_Link] = links.Links()
        self._news: trio.MemorySendChannel[NetEvent]
        self.events: trio.MemoryReceiveChannel[NetEvent]
        self._news, self.events = trio.open_memory_channel(EVENTS_MAX)
        # Links that wait for `run` to serve them. Unbounded, but each is a connection, and those are bounded.
        self._born, self._births = trio.open_memory_channel[tuple[_Link, links.News]](float("inf"))
        self._dialling: dict[tuple[PeerId, Lane], trio.Event] = {}
        self._multiselect = Multiselect(dict.fromkeys(PROTOCOLS.values()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Raises ConfigError if an address cannot be listened on."""
        for place in self._listen:
            await sockets.probe(place)
        self._swarm.set_stream_handler(self._accept)
        try:
            async with _swarming(self._swarm, [Multiaddr(place.text) for place in self._listen]):
                self.addresses = self._announce or tuple(_reachable(self._swarm, self.me))
                async with trio.open_nursery() as hands:
                    task_status.started()
                    async for link, news in self._births:
                        hands.start_soon(self._serve, link, news)
        finally:
            self._news.close()
            for link in self._links.of():
                link.end()

    async def dial(self, peer: PeerId, addresses: Sequence[str], lane: Lane) -> None:
        """T5: each address in turn. One that names somebody else, or nobody, is not knocked at."""
        await trio.lowlevel.checkpoint()
        while (going := self._dialling.get((peer, lane))) is not None:
            await going.wait()
        self._dialling[peer, lane] = trio.Event()
        try:
            reasons = [await self._knock(peer, text, lane) for text in addresses]
        finally:
            self._dialling.pop((peer, lane)).set()
        if self._links.sending(peer, lane) is None:
            raise errors.Unreachable(f"{ids.peer_short(peer)}: " + ("; ".join(reasons) or "no address"))

    def send_nowait(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        framing.check(lane, len(frame))
        self._links.required(peer, lane).out.put_nowait(frame, len(frame))

    async def send(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        framing.check(lane, len(frame))
        await trio.lowlevel.checkpoint()
        await self._links.required(peer, lane).out.put(frame, len(frame))

    async def hang_up(self, peer: PeerId) -> None:
        for link in self._links.of(peer):
            link.end()
        await trio.lowlevel.checkpoint()

    async def _knock(self, peer: PeerId, text: str, lane: Lane) -> str:
        """Try one address unless the link stands; the answer says why it was in vain."""
        try:
            if self._links.sending(peer, lane) is not None:
                return ""
            place = places.parse(text)
            if place.peer != peer or peer == self.me:
                return f"{text} names another peer, or ourselves"
            with trio.move_on_after(DIAL_S_MAX) as patience:
                await self._reach(peer, place, lane)
        except (errors.PeerError, *_UNINTELLIGIBLE) as error:
            return f"{text}: {error}"
        return f"{text}: no answer in {DIAL_S_MAX:g} s" if patience.cancelled_caught else ""

    async def _reach(self, peer: PeerId, place: places.Place, lane: Lane) -> None:
        # T4, T6: dial_addr, not dial_peer, which waits for a second transport and keeps a list of the damned.
        name = ID.from_base58(ids.peer_text(peer))
        connection = await self._swarm.dial_addr(Multiaddr(await sockets.resolved(place)), name)
        link = None
        try:
            stream = await connection.new_stream()
            await MultiselectClient().select_one_of([PROTOCOLS[lane]], MultiselectCommunicator(stream))
            link = await self._adopted(_Link(peer, lane, stream.muxed_stream))
        finally:
            if link is None:
                await _close(connection.muxed_conn)

    async def _accept(self, stream: INetStream) -> None:
        """A task of the library's: what is raised here ends the whole node, so only our own faults may be (T1)."""
        link: _Link | None = None
        try:
            with trio.fail_after(DIAL_S_MAX):
                link = await self._accepted(stream)
            await link.over.wait()
        except (errors.PeerError, trio.TooSlowError, *_UNINTELLIGIBLE):
            self.refused_count += 1
        finally:
            if link is None:
                await _close(stream.muxed_conn)

    async def _accepted(self, stream: INetStream) -> _Link:
        if stream.muxed_stream.stream_id != 1:  # T9: streams do not add up, so there is but a first
            raise errors.PeerError("a second stream on one connection")
        protocol, _ = await self._multiselect.negotiate(MultiselectCommunicator(stream), int(DIAL_S_MAX))
        lane = next(lane for lane, name in PROTOCOLS.items() if name == protocol)
        return await self._adopted(
            _Link(ids.peer_from_text(stream.muxed_conn.peer_id.to_base58()), lane, stream.muxed_stream)
        )

    async def _adopted(self, link: _Link) -> _Link:
        await link.greet(links.Greeting(self._run, self._links.losses(link.peer, link.lane)))
        self._born.send_nowait((link, self._links.add(link.peer, link.lane, link)))
        return link

    async def _serve(self, link: _Link, news: links.News) -> None:
        """The only task that reports about this link, so its reports are in order."""
        for event in news:
            await self._news.send(event)
        async with trio.open_nursery() as hands:
            hands.start_soon(self._bury, link, hands.cancel_scope)
            hands.start_soon(self._write, link)
            await self._read(link)
            link.end()
        for event in self._links.remove(link.peer, link.lane, link):
            await self._news.send(event)

    async def _read(self, link: _Link) -> None:
        frames = link.early
        try:
            while True:
                for frame in frames:
                    await self._news.send(Frame(link.peer, link.lane, frame))
                frames = await link.read()
        except errors.PeerError:
            self.refused_count += 1
        except _BROKEN:
            return

    async def _write(self, link: _Link) -> None:
        try:
            while frames := await link.out.take(BATCH_BYTES_MAX):
                await link.write(frames)
        except _BROKEN:
            with trio.move_on_after(CLOSE_S_MAX):  # the reader may still find what the peer sent before it left
                await link.over.wait()
            link.end()

    async def _bury(self, link: _Link, hands: trio.CancelScope) -> None:
        """Close the socket, at once and without a word: a goodbye would wait behind what a stopped peer blocks."""
        try:
            await link.over.wait()
        finally:
            await _close(link.stream.conn)
        hands.cancel()


async def _close(connection: IMuxedConn) -> None:
    with trio.CancelScope(shield=True):
        await connection.secured_conn.close()


@asynccontextmanager
async def _swarming(swarm: _Swarm, listen: list[Multiaddr]) -> AsyncIterator[None]:
    async with background_trio_service(swarm):
        try:
            if listen and not await swarm.listen(*listen):
                raise errors.ConfigError("cannot listen", hint="is another node running on this port?")
            await swarm.auto_connector.stop()  # T7
            yield
        finally:
            # The library closes one connection after another, 0.2 s each; with their sockets shut, all at once.
            with trio.move_on_after(CLOSE_S_MAX, shield=True):
                for connection in [one for some in swarm.connections.values() for one in some]:
                    await _close(connection.muxed_conn)
                await swarm.close()


def _reachable(swarm: _Swarm, me: PeerId) -> list[str]:
    """Real ports for 0, every interface for the wildcard address."""
    found: list[str] = []
    for listener in swarm.listeners.values():
        for place in (places.parse(str(address)) for address in listener.get_addrs()):
            if place.host in ("0.0.0.0", "::"):
                every = (places.parse(str(address)) for address in get_available_interfaces(place.port))
                found += [one.text for one in every if one.kind == place.kind]
            else:
                found.append(place.text)
    return [places.with_peer(text, me) for text in dict.fromkeys(found)]
