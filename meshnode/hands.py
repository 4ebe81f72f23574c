"""What a node's brain has done for it: engine, tokenizer, pages. Every act ends in an event.

Acts of one session on the engine run one after another, in the order of the effects; shipping pages runs beside them,
one page at a time for each replica, so that a slow link never holds a decode step.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import trio

from meshnode import errors, ports
from meshnode.ids import Digest, PeerId, SessionId
from meshnode.machine import (
    Encode,
    Encoded,
    Event,
    Evicted,
    Faulted,
    Forget,
    PageFailed,
    PageStored,
    Restore,
    Restored,
    Ship,
    Step,
    Stepped,
    Unload,
)
from meshnode.ports import Lane
from meshnode.sessions import speech
from meshnode.snapshots import codec, frames, hot, store

T = TypeVar("T")
Act = Encode | Step | Restore | Ship | Unload | Forget
SHIPS_AT_ONCE = 8
"""Pages exported in one visit to the engine. More: the next decode step waits longer (half a millisecond a page)."""
SHIPS_MAX = 4096
"""Pages queued for one replica; the sender's window keeps far below."""


class Runner(Protocol):
    """Runs blocking work: in the store's thread for real, at once in a simulation."""

    async def __call__(self, work: Callable[..., T], *args: Any) -> T:
        """The result of `work(*args)`."""


async def at_once(work: Callable[..., T], *args: Any) -> T:
    """For stores that live in memory: no thread, so MockClock keeps the time."""
    await trio.lowlevel.checkpoint()
    return work(*args)


def in_thread() -> Runner:
    """One thread for disk and zstd together: a slow disk must not stall heartbeats, nor take the machine's cores."""
    limiter = trio.CapacityLimiter(1)

    async def run(work: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=limiter)

    return run


class Hands:
    """Engine and store of one node. `engine` None: a node that keeps logs but hosts nothing."""

    def __init__(
        self,
        engine: ports.Engine | None,
        tokenizer: ports.Tokenizer | None,
        pages: store.PageStore,
        runner: Runner,
        gate: Callable[[PeerId, SessionId, int, int], None],
        *,
        grammars: ports.Grammars | None = None,
        hot_bytes: int = 0,
    ) -> None:
        self.engine = engine
        self.grammars = grammars
        self.tokenizer = tokenizer
        self.pages = pages
        self._runner = runner
        self._gate = gate
        self._hot = hot.HotPages(hot_bytes if engine is not None else 0)
        self._queues: dict[Hashable, deque[Act]] = {}

    def memory_bytes(self) -> int:
        """KV memory for sessions."""
        return self.engine.memory_free() if self.engine is not None else 0

    def take(self, nursery: trio.Nursery, act: Act, post: Callable[[Event], None], transport: ports.Transport) -> None:
        """Queue an act behind the others of its kind and session."""
        key: Hashable = (act.session, act.to) if isinstance(act, Ship) else act.session
        if key in self._queues:
            if len(self._queues[key]) < SHIPS_MAX:
                self._queues[key].append(act)
            return
        self._queues[key] = deque((act,))
        nursery.start_soon(self._work, key, post, transport)

    async def _work(self, key: Hashable, post: Callable[[Event], None], transport: ports.Transport) -> None:
        queue = self._queues[key]
        while queue:
            ships = [act for act in itertools.islice(queue, SHIPS_AT_ONCE) if isinstance(act, Ship)]
            events = await self._ship(ships, transport) if ships else [await self._act(queue[0])]
            for event in events:
                queue.popleft()
                if event is not None:
                    post(event)
        del self._queues[key]

    async def _act(self, act: Act) -> Event | None:
        match act:
            case Encode():
                return await self._encode(act)
            case Step():
                return await self._step(act)
            case Restore():
                return Restored(act.session, act.load, await self._restore(act))
            case Unload(session):
                await self._drop(session)
            case Forget(session):
                await self._drop(session)
                self._hot.drop(session)
                await self._runner(self.pages.drop, session)
        return None

    async def _drop(self, session: SessionId) -> None:
        if self.engine is not None:
            await self.engine.drop(session)

    async def _encode(self, act: Encode) -> Event:
        assert self.tokenizer is not None
        turn = self.tokenizer.turn
        try:
            if act.grammar is not None:
                if self.grammars is None:
                    raise errors.EngineError("grammar: this node's engine cannot be held to one")
                await self.grammars.check(act.grammar)
            found = await self._runner(
                lambda: turn(act.text, system=act.system if act.first else None, first=act.first, closed=act.closed)
            )
        except errors.EngineError as error:
            return Encoded(act.session, act.request, (), str(error))
        return Encoded(act.session, act.request, tuple(found))

    async def _step(self, act: Step) -> Event:
        assert self.engine is not None
        assert self.tokenizer is not None
        try:
            (answer,) = await self.engine.step([act.work])
        except errors.EngineError as error:
            return Faulted(act.session, act.load, str(error))
        return stepped(act, answer, self.tokenizer.text)

    async def _restore(self, act: Restore) -> int:
        """Tokens restored: the longest run of pages from the first one on that the engine has still, or the store has
        whole."""
        assert self.engine is not None
        raw = await self._runner(self._load, act)
        try:
            return await self.engine.restore(act.session, act.tokens, raw, domain=act.domain)
        except errors.EngineError:
            await self.engine.drop(act.session)
            return 0

    def _load(self, act: Restore) -> list[bytes]:
        raw: list[bytes] = []
        for address in act.addresses:
            page = self._hot.get(act.session, address)
            if page is None:
                page = self._read(act.session, address)
            if page is None:
                break
            raw.append(page)
        return raw

    def _read(self, session: SessionId, address: Digest) -> bytes | None:
        frame = self.pages.get(session, address)
        if frame is None:
            return None
        try:
            return codec.decode(frame.codec, frame.payload, frame.raw_bytes)
        except errors.PeerError:
            return None

    def _keep(self, data: bytes) -> store.Stored:
        """Unpack a page for the takeover that may come, which also shows whether it can be; then store it."""
        frame = frames.unpack(data)
        raw = codec.decode(frame.codec, frame.payload, frame.raw_bytes)
        kept = self.pages.put(data)
        for session in kept.evicted:
            self._hot.drop(session)
        self._hot.put(frame.session, frame.address, raw)
        return kept

    async def _ship(self, ships: list[Ship], transport: ports.Transport) -> list[Event | None]:
        """Pages of one session for one replica. Exported together: each visit to the engine waits for a step, and a
        prefill step fills more pages than one."""
        raw: dict[int, bytes | errors.EngineError] = {}

        async def export(act: Ship) -> None:
            assert self.engine is not None
            try:
                raw[act.page_index] = await self.engine.export(act.session, act.page_index)
            except errors.EngineError as error:
                raw[act.page_index] = error

        async with trio.open_nursery() as visit:
            for act in ships:
                visit.start_soon(export, act)
        return [await self._send_page(act, raw[act.page_index], transport) for act in ships]

    async def _send_page(self, act: Ship, raw: bytes | errors.EngineError, transport: ports.Transport) -> Event | None:
        failed: errors.MeshError
        if isinstance(raw, errors.EngineError):
            failed = raw
        else:
            data = await self._runner(_pack, act, raw)
            try:
                await transport.send(act.to, Lane.BULK, data)
            except errors.PeerError as error:
                failed = error
            else:
                return None
        return PageFailed(act.session, f"page {act.page_index}: {failed}", act.to)

    async def store_page(self, frame: ports.Frame) -> list[Event]:
        """Check a page that a host sent, store it. Raises PeerError for one that is not welcome or not whole."""
        head = frames.unpack(frame.data)
        self._gate(frame.peer, head.session, head.page_index, head.epoch)
        try:
            kept = await self._runner(self._keep, frame.data)
        except errors.StoreError as error:
            return [PageFailed(head.session, str(error))]
        stored = PageStored(frame.peer, head.session, head.epoch, head.page_index, head.address, head.parent)
        return [stored, *(Evicted(session) for session in kept.evicted)]


def stepped(act: Step, answer: ports.Answer, text: Callable[[Sequence[int]], str]) -> Stepped:
    """What the engine's answer says, as in sessions/speech.py."""
    position = act.work.position + len(act.work.feed)
    if answer is None:
        return Stepped(act.session, act.load, position, None, "")
    token = answer if isinstance(answer, int) else answer.token
    said = speech.spoken(text([*act.pending, token]), act.told, act.stops)
    event = Stepped(act.session, act.load, position, token, said.piece, said.rest, said.whole, said.stopped)
    if isinstance(answer, int):
        return event
    top = tuple((one, text([one]), chance) for one, chance in answer.top)
    return dataclasses.replace(event, logprob=answer.logprob, top=top)


def _pack(act: Ship, raw: bytes) -> bytes:
    packed = codec.encode(raw)
    return frames.pack(
        frames.PageFrame(
            act.session, act.epoch, act.page_index, act.address, act.parent, packed.codec, len(raw), packed.payload
        )
    )
