"""The pump: order per session, one disk that makes nobody else wait, and frames that come to nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from meshnode import driver, errors, journal, ports
from meshnode.gossip import messages as talk
from meshnode.ids import PeerId, SessionId
from meshnode.machine import Effect, Note, Pass, Persist, Post, Received, Send, Tick
from meshnode.ports import Lane
from meshnode.wire import envelope
from tests.sessions import cases
from tests.sessions.cases import A, B, C

OTHER = SessionId(b"o" * 16)


class Script:
    """A brain that answers each event with the next list of effects, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.answers: dict[object, list[Effect]] = {}
        self.deadline = float("inf")

    def step(self, now: float, event: object) -> list[Effect]:
        self.heard.append(event)
        if isinstance(event, Tick):
            self.deadline = float("inf")
        return self.answers.pop(event, [])


class Wire:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.me, self.addresses = A, ()
        self.arrive, self.events = trio.open_memory_channel[ports.NetEvent](100)
        self.sent: list[tuple[PeerId, Lane, bytes]] = []
        self.refusal: Exception | None = None

    def send_nowait(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.sent.append((peer, lane, frame))

    async def dial(self, peer: PeerId, addresses: object, lane: Lane) -> None:
        await trio.lowlevel.checkpoint()
        raise errors.Unreachable("nobody there")


class SlowDisk:
    """A journal's writer whose fsync lasts until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.gate = trio.Event()

    async def append(self, records: list[bytes]) -> None:
        self.batches.append(list(records))
        await self.gate.wait()


class Bench:
    def __init__(self, brain: Script, wire: Wire, disk: SlowDisk, pump: driver.Driver, notes: list[str]) -> None:
        self.brain, self.wire, self.disk, self.pump, self.notes = brain, wire, disk, pump, notes


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    brain, wire, disk, notes = Script(), Wire(), SlowDisk(), []
    pump = driver.Driver(
        brain, cases.NODES[0], wire, writer=disk, on_note=lambda now, note: notes.append(note.what)
    )  # the stand-ins have the ports' methods
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        yield Bench(brain, wire, disk, pump, notes)
        nursery.cancel_scope.cancel()


async def does(bench: Bench, *effects: Effect) -> None:
    """Let the brain answer an event with these effects."""
    event = object()
    bench.brain.answers[event] = list(effects)
    bench.pump.submit(event)
    await trio.testing.wait_all_tasks_blocked()


def note(what: str, session: SessionId | None = cases.SESSION) -> Note:
    return Note(what, session)


async def test_what_follows_a_persist_waits_for_the_disk_while_other_sessions_go_on() -> None:
    async with running() as bench:
        await does(
            bench, note("before"), Persist(cases.SESSION, b"r"), note("after"), note("other", OTHER), note("none", None)
        )
        assert bench.notes == ["before", "other", "none"]
        await does(bench, note("later"))
        assert bench.notes == ["before", "other", "none"], "later effects of the session stand behind it too"
        bench.disk.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.notes[3:] == ["after", "later"]
        await does(bench, note("at once"))
        assert bench.notes[-1] == "at once"
        assert bench.pump._ordered == {}


async def test_records_that_follow_each_other_share_an_fsync_up_to_a_size() -> None:
    async with running() as bench:
        big = bytes(driver.BATCH_BYTES)
        await does(bench, *(Persist(cases.SESSION, record) for record in (b"1", b"2", big, b"3")), note("done"))
        assert len(bench.disk.batches) == 1
        bench.disk.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [len(batch) for batch in bench.disk.batches] == [3, 1]
        assert bench.disk.batches[0][0] == journal.record(cases.SESSION, b"1")
        assert bench.notes == ["done"]


async def test_a_posted_event_comes_back_after_all_before_it_is_done() -> None:
    async with running() as bench:
        event = object()
        await does(bench, Persist(cases.SESSION, b"r"), Post(cases.SESSION, event))
        assert event not in bench.brain.heard
        bench.disk.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.brain.heard[-1] is event


async def test_a_message_to_oneself_needs_no_wire() -> None:
    async with running() as bench:
        await does(bench, Send(A, Lane.SIGNAL, talk.Ping(1), cases.SESSION))
        assert bench.brain.heard[-1] == Received(A, Lane.SIGNAL, talk.Ping(1))
        assert bench.wire.sent == []


async def test_a_message_goes_sealed_and_through_a_gateway_in_a_relay() -> None:
    async with running() as bench:
        await does(bench, Send(B, Lane.MEDIA, talk.Ping(1)), Send(B, Lane.SIGNAL, talk.Ping(2), via=C))
        (to, lane, frame), (gateway, _, wrapped) = bench.wire.sent
        assert (to, lane, envelope.open_(frame)) == (B, Lane.MEDIA, envelope.Opened(A, talk.Ping(1)))
        _, relay = envelope.expect(wrapped, talk.Relay)
        assert (gateway, relay.to, envelope.open_(relay.frame).message) == (C, B, talk.Ping(2))


async def test_a_frame_that_is_passed_on_stays_sealed_by_its_sender() -> None:
    async with running() as bench:
        inner = envelope.seal(cases.AGENT, talk.Ping(3))
        await does(bench, Pass(B, Lane.MEDIA, inner))
        ((_, _, frame),) = bench.wire.sent
        assert envelope.open_(frame) == envelope.Opened(A, talk.Relayed(inner))


async def test_a_frame_that_cannot_go_is_counted_and_nothing_else() -> None:
    async with running() as bench:
        for refusal in (errors.Unreachable("no"), trio.WouldBlock(), errors.PeerError("too long")):
            bench.wire.refusal = refusal
            await does(bench, Send(B, Lane.SIGNAL, talk.Ping(1)))
        assert bench.pump.counts == {"lost: no link": 1, "lost: queue full": 1, "lost: too long": 1}


async def test_bytes_that_are_no_envelope_or_another_s_are_refused_and_counted() -> None:
    async with running() as bench:
        good = envelope.seal(cases.NODES[1], talk.Ping(1))
        for data, peer in ((b"junk", B), (good, C), (good, B)):
            await bench.wire.arrive.send(ports.Frame(peer, Lane.SIGNAL, data))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.brain.heard == [Received(B, Lane.SIGNAL, talk.Ping(1))]
        refused = {what: count for what, count in bench.pump.counts.items() if what.startswith("refused")}
        assert sum(refused.values()) == 2
        assert bench.pump.counts["received"] == 1


async def test_a_flood_does_not_keep_a_due_tick_waiting() -> None:
    async with running() as bench:
        bench.brain.deadline = trio.current_time()
        for number in range(3 * driver.EVENTS_MAX):
            bench.pump.submit(number)
        await trio.testing.wait_all_tasks_blocked()
        ticks = [place for place, event in enumerate(bench.brain.heard) if isinstance(event, Tick)]
        assert ticks == [driver.EVENTS_MAX]


async def test_events_that_wait_go_before_a_tick(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as bench:
        bench.brain.deadline = trio.current_time() + 5.0
        await trio.sleep(4.9)
        assert bench.brain.heard == []
        await trio.sleep(0.2)
        assert bench.brain.heard == [Tick()]
