"""What hands.py does for a brain, on the world's heap: engine, tokenizer and pages, each act ending in an event.

The same order as there: acts of one session one after another, pages for one replica one after another and beside
them. Pages travel and lie uncompressed; codec and frames have tests of their own, and would be most of a run's time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING

from meshnode import errors, hands
from meshnode.ids import Digest, SessionId
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
    Unload,
)
from meshnode.ports import Lane
from meshnode.sim import disks, hashing

if TYPE_CHECKING:
    from meshnode.sim.process import Process

Act = Encode | Step | Restore | Ship | Unload | Forget
ENCODE_US = 1_000
RESTORE_US = 10_000
EXPORT_US = 500
PREFILL_US_PER_TOKEN = 300
WORDS = hashing.HashTokenizer()


class Acts:
    """Engine and pages of one process."""

    def __init__(self, process: Process, core: hashing.HashCore | None, decode_us: int) -> None:
        self.process = process
        self.core = core
        self._decode_us = decode_us
        self._queues: dict[Hashable, deque[Act]] = {}

    def take(self, act: Act) -> None:
        """Queue an act behind the others of its kind and session."""
        key: Hashable = (act.session, act.to) if isinstance(act, Ship) else act.session
        if key in self._queues:
            self._queues[key].append(act)
            return
        self._queues[key] = deque((act,))
        self._begin(key)

    def _begin(self, key: Hashable) -> None:
        self.process.later(self._cost_us(self._queues[key][0]), self._end, (key,))

    def _cost_us(self, act: Act) -> int:
        match act:
            case Step():
                assert self.core is not None
                return self._decode_us + PREFILL_US_PER_TOKEN * self.core.cost_tokens(act.work)
            case Restore():
                return RESTORE_US
            case Encode():
                return ENCODE_US
            case Ship():
                return EXPORT_US
            case _:
                return 0

    def _end(self, key: Hashable) -> None:
        queue = self._queues[key]
        event = self._do(queue.popleft())
        if queue:
            self._begin(key)
        else:
            del self._queues[key]
        if event is not None:
            self.process.hear(event)

    def _do(self, act: Act) -> Event | None:
        match act:
            case Step():
                return self._step(act)
            case Encode():
                ids = WORDS.turn(act.text, system=act.system if act.first else None, first=act.first, closed=act.closed)
                return Encoded(act.session, act.request, tuple(ids))
            case Restore():
                return Restored(act.session, act.load, self._restore(act))
            case Ship():
                return self._ship(act)
            case Unload(session):
                self._drop(session)
            case Forget(session):
                self._drop(session)
                self._pages.pop(session, None)
        return None

    @property
    def _pages(self) -> dict[SessionId, dict[Digest, disks.Page]]:
        assert self.process.disk is not None
        return self.process.disk.pages

    def _drop(self, session: SessionId) -> None:
        if self.core is not None:
            self.core.drop(session)

    def _step(self, act: Step) -> Event:
        assert self.core is not None
        try:
            answer = self.core.advance(act.work)
        except errors.EngineError as error:
            return Faulted(act.session, act.load, str(error))
        return hands.stepped(act, answer, WORDS.text)

    def _restore(self, act: Restore) -> int:
        assert self.core is not None
        stored = self._pages.get(act.session, {})
        raw: list[bytes] = []
        for address in act.addresses:
            if address not in stored:
                break
            raw.append(stored[address].raw)
        return self.core.restore(act.session, act.tokens, raw, act.domain)

    def _ship(self, act: Ship) -> Event | None:
        assert self.core is not None
        process = self.process
        if (act.to, Lane.BULK) not in process.links:
            return PageFailed(act.session, "no link", act.to)
        try:
            raw = self.core.export(act.session, act.page_index)
        except errors.EngineError as error:
            return PageFailed(act.session, str(error), act.to)
        process.world.network.send_page(process, act.to, (act, raw))
        return None

    # ------------------------------------------------------------------------------------------------------- a replica

    def page_arrived(self, sender: Process, act: Ship, raw: bytes) -> None:
        """Ask the brain whether it is welcome; store it."""
        try:
            self.process.brain.sessions.admits(sender.peer, act.session, act.page_index, act.epoch)
        except errors.PeerError:
            self.process.world.marks.hit("page refused")
            return
        self.process.later(self.process.world.sync_us(), self._stored, (sender, act, raw))

    def _stored(self, sender: Process, act: Ship, raw: bytes) -> None:
        kept = self._pages.setdefault(act.session, {})
        kept[act.address] = disks.Page(act.page_index, act.parent, raw)
        self.process.hear(PageStored(sender.peer, act.session, act.epoch, act.page_index, act.address, act.parent))

    def evict(self, session: SessionId) -> None:
        """The store needs the room."""
        if self._pages.pop(session, None) is not None:
            self.process.hear(Evicted(session))
