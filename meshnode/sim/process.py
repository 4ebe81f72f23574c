"""A process of the world: a brain as it runs in production, and what driver.py does for it, on the world's heap.

The driver's promises are kept here in the same words: one event at a time; effects in order per session, what follows
a Persist waits for the disk; a due Tick comes after events that wait; a frame that cannot be sent is lost. A crash is
the object dropped, so no cleanup runs that a dead process would not have run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshnode import driver, journal
from meshnode.gossip.messages import Relay, Relayed
from meshnode.ids import PeerId, SessionId
from meshnode.machine import (
    Deliver,
    Dial,
    Effect,
    Encode,
    Forget,
    HangUp,
    Note,
    Pass,
    Persist,
    Post,
    Received,
    Restore,
    Send,
    Ship,
    Step,
    Tick,
    Unload,
)
from meshnode.ports import Lane
from meshnode.sim import disks
from meshnode.sim.clocks import Clock
from meshnode.wire import envelope, keys

if TYPE_CHECKING:
    from meshnode.sim.acts import Acts
    from meshnode.sim.network import Link
    from meshnode.sim.world import World

NEVER_US = 1 << 62
TICKS_MAX = 50
"""Ticks at one instant; more are a deadline that stays in the past, which in production is a busy loop."""


class Process:
    """A node or an agent. `brain` is None while it is down."""

    def __init__(self, world: World, place: int, identity: keys.Identity, clock: Clock) -> None:
        self.world = world
        self.place = place
        self.identity = identity
        self.peer: PeerId = identity.peer
        self.clock = clock
        self.brain: Any = None
        self.disk: disks.Disk | None = None
        self.acts: Acts | None = None
        self.on_deliver: Callable[[Deliver], None] = lambda item: None
        self.life = 0
        """Number of this process on this machine; what was meant for an earlier one finds nobody."""
        self.paused = False
        self.links: dict[tuple[PeerId, Lane], Link] = {}
        self._paused_at_us = 0
        self.resumed_us = -NEVER_US
        self._stalled: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._ordered: dict[SessionId, deque[Effect]] = {}
        self._wake_us = NEVER_US
        self._ticked = (0, 0)

    @property
    def running(self) -> bool:
        return self.brain is not None

    @property
    def now_s(self) -> float:
        """By its own clock."""
        return self.clock.local_s(self.world.now_us)

    # ------------------------------------------------------------------------------------------------------- lifecycle

    def start(self, brain: Any, acts: Acts | None) -> None:
        """A new process on this machine."""
        assert self.brain is None
        self.life += 1
        self.brain, self.acts = brain, acts
        self._ordered, self._stalled = {}, []
        self.paused, self._wake_us = False, NEVER_US
        self.arm()

    def crash(self) -> None:
        """SIGKILL. The disk's own part is the disk's."""
        assert self.brain is not None
        self.brain = self.acts = None
        self.life += 1
        self.paused = False
        self.world.network.crashed(self)

    def pause(self) -> None:
        """SIGSTOP: sockets stay open, nothing is read, no clock is looked at."""
        self.paused, self._paused_at_us = True, self.world.now_us

    def resume(self, *, clock_stood: bool) -> None:
        """SIGCONT: first what waited, then the Tick that is overdue."""
        if clock_stood:
            self.clock.stood(self.world.now_us - self._paused_at_us)
        self.paused, self.resumed_us = False, self.world.now_us
        stalled, self._stalled = self._stalled, []
        for call, given in stalled:
            if self.brain is not None:
                call(*given)
        if self.brain is not None:
            self.rearm()

    # -------------------------------------------------------------------------------------------------------- stepping

    def hear(self, event: object) -> None:
        """An event from the network or the hands."""
        if self.brain is None:
            return
        if self.paused:
            if len(self._stalled) < driver.INBOX_MAX:
                self._stalled.append((self.hear, (event,)))
            return
        effects = self.world.stepped(self, event)
        self._carry(effects)
        self.arm()

    def page_arrived(self, sender: Process, act: Ship, raw: bytes) -> None:
        """A page for this machine's store."""
        if self.acts is not None:
            self.later(0, self.acts.page_arrived, (sender, act, raw))

    def submit(self, event: object) -> None:
        """An event of this process's own making: after what is being carried out now."""
        self.later(0, self.hear, (event,))

    def later(self, delay_us: int, call: Callable[..., None], given: tuple[Any, ...] = ()) -> None:
        """What this process does some time from now, if it lives and is not stopped then."""
        self.world.after(delay_us, self._later, (self.life, call, given))

    def _later(self, life: int, call: Callable[..., None], given: tuple[Any, ...]) -> None:
        if life != self.life:
            return
        if self.paused:
            self._stalled.append((call, given))
        else:
            call(*given)

    def arm(self) -> None:
        """See that there is a Tick when the brain wants one."""
        due_s = self.brain.deadline
        if due_s == float("inf"):
            return
        due_us = max(self.world.now_us, self.clock.true_us(due_s))
        if due_us < self._wake_us:
            self._wake_us = due_us
            self.world.at(due_us, self._wake, (self.life, due_us))

    def rearm(self) -> None:
        """The clock is not what it was."""
        self._wake_us = NEVER_US
        self.arm()

    def _wake(self, life: int, due_us: int) -> None:
        if life != self.life or due_us != self._wake_us:
            return
        self._wake_us = NEVER_US
        if self.paused:
            return
        if self.now_s < self.brain.deadline:
            self.arm()
            return
        count = self._ticked[1] + 1 if self._ticked[0] == due_us else 1
        self._ticked = (due_us, count)
        self.world.check(count <= TICKS_MAX, "busy loop", lambda: f"{count} ticks at one instant")
        self.hear(Tick())

    # -------------------------------------------------------------------------------------------------------- carrying

    def _carry(self, effects: list[Effect]) -> None:
        begun: list[SessionId] = []
        for effect in effects:
            session = getattr(effect, "session", None)
            if session is None or not self._held(session, effect):
                self._do(effect)
            elif session in self._ordered:
                self._ordered[session].append(effect)
            else:
                self._ordered[session] = deque((effect,))
                begun.append(session)
        for session in begun:
            self._drain(session)

    def _held(self, session: SessionId, effect: Effect) -> bool:
        """Whether an effect waits for the disk."""
        return session in self._ordered or isinstance(effect, Persist)

    def _drain(self, session: SessionId) -> None:
        """As Driver._drain: records that stand together are written together, then what they held back is done."""
        waiting = self._ordered[session]
        while waiting and not isinstance(waiting[0], Persist):
            self._do(waiting.popleft())
        if not waiting:
            del self._ordered[session]
            return
        made: list[bytes] = []
        while waiting and isinstance(waiting[0], Persist):
            effect = waiting.popleft()
            assert isinstance(effect, Persist)
            made.append(journal.record(session, effect.record))
        self.write(disks.Write(made, lambda: self._drain(session)))

    def write(self, write: disks.Write) -> None:
        """Queue for the disk."""
        assert self.disk is not None
        self.disk.waiting.append(write)
        self._sync()

    def _sync(self) -> None:
        assert self.disk is not None
        if self.disk.begin():
            self.later(self.world.sync_us(), self._synced)

    def _synced(self) -> None:
        assert self.disk is not None
        for done in self.disk.synced():
            done()
        self._sync()

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case Forget(session):
                assert self.acts is not None
                self.acts.take(effect)
                self.world.forgotten(self, session)
            case Step() | Encode() | Restore() | Ship() | Unload():
                assert self.acts is not None
                self.acts.take(effect)
            case Post(_, event):
                self.submit(event)
            case Note():
                self.world.noted(self, effect)
            case Deliver():
                self.on_deliver(effect)
            case Dial(peer, _, lane):
                self.world.network.dial(self, peer, lane)
            case HangUp(peer):
                self.world.network.hang_up(self, peer)
            case Pass(to, lane, frame):
                self.world.network.send(self, to, lane, Relayed(frame))
            case _:
                raise AssertionError(f"no hand for {effect!r}")

    def _send(self, effect: Send) -> None:
        if effect.to == self.peer:
            self.submit(Received(effect.to, effect.lane, effect.message))
            return
        self.world.sending(self, effect)
        if effect.via is None:
            self.world.network.send(self, effect.to, effect.lane, effect.message)
        else:
            frame = envelope.seal(self.identity, effect.message)
            self.world.network.send(self, effect.via, effect.lane, Relay(effect.to, frame))
