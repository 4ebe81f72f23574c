"""A client of the world: the agent's own brain, and somebody who talks, waits, interrupts, goes away and comes back.

It judges what it is told: each token must be the next one of the only right continuation, which a hash engine of its
own computes from what was said so far. A token lost, doubled or drawn over a broken context shows at the next one.
"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

from meshnode import agent, ids, manifest, ports
from meshnode.agent import Answered
from meshnode.ids import RequestId, SessionId
from meshnode.machine import Deliver, Introduced
from meshnode.sessions import messages
from meshnode.sessions.attach import Ended, Lost, Moved, Over, Refusal, Said
from meshnode.sim import acts, hashing
from meshnode.sim.checkers import check

if TYPE_CHECKING:
    from meshnode.sim.process import Process
    from meshnode.sim.world import World

AGAIN_US = 500_000
"""Between a refused INVITE and the next one."""
KEEP_COLD_S = 20
"""Where clients leave without a word, or the end of every session is awaited; else the manifest's ten minutes."""


class Client:
    """One agent, one session at a time until one of them has answered every turn."""

    def __init__(self, world: World, process: Process, bootstrap: tuple[str, ...]) -> None:
        self.world = world
        self.process = process
        self.rng = random.Random(f"{world.seed}/client{process.place}")
        self.done = False
        self.session: SessionId | None = None
        self.said: list[int] = []
        """Tokens of the answer under way."""
        self.turn = 0
        self._bootstrap = bootstrap
        self._sessions = 0
        self._core = hashing.HashCore()
        self._context: list[int] = []
        self._closed = False
        self._request = RequestId(b"")
        self._last_seq = 0
        self._interrupt_at = 0
        self._interrupted = False
        self._epoch = 0
        self._leaving = False

    def begin(self) -> None:
        """Join the mesh and open a session."""
        self.process.start(agent.Agent(self.process.identity, random.Random(self.rng.random())), None)
        self.process.on_deliver = self._told
        self.process.hear(Introduced(self._bootstrap))
        self._call()

    @property
    def waits(self) -> str:
        """For what, in words."""
        name = ids.short(self.session) if self.session is not None else "none"
        return f"client {self.process.place}: session {name}, turn {self.turn}, {len(self.said)} tokens of it"

    # ---------------------------------------------------------------------------------------------------------- acting

    def _call(self) -> None:
        options = self.world.options
        self._sessions += 1
        self.session = SessionId(self.rng.randbytes(ids.SESSION_BYTES))
        self.turn, self.said, self._context, self._closed = 0, [], [], False
        self._last_seq = self._epoch = 0
        self._leaving = False
        tables: dict[str, Any] = {
            "characteristics": {"kind": options.kind, "context_tokens": max(1024, 2 * options.turns * options.tokens)},
            "agent": {"max_tokens": options.tokens, "temperature": self.rng.choice((0.0, 0.7)), "seed": 7},
            "migration": {"replicas": options.replicas},
        }
        if self._may_expire:
            tables["scaling"] = {"keep_cold_s": KEEP_COLD_S}
        self._wants = manifest.read(tables)
        drawn = {field.name: getattr(self._wants.agent, field.name) for field in dataclasses.fields(ports.Sampling)}
        self._sampling = ports.Sampling(**drawn)
        self.process.submit(agent.Call(self.session, self._wants))

    def _say(self) -> None:
        assert self.session is not None
        self.turn += 1
        text = self.rng.choice(("why?", "and then?", "tell me of the sea")) + str(self.turn)
        turn = acts.WORDS.turn(text, system=None, first=self.turn == 1, closed=self._closed)
        self._context += turn
        self.said = []
        self._request = RequestId(self.rng.randbytes(ids.REQUEST_BYTES))
        stops = self.rng.random() < self.world.options.interrupt
        self._interrupt_at = self.rng.randint(1, 5) if stops else -1
        self._interrupted = False
        self.process.submit(agent.Say(self.session, self._request, text, 0))
        self._maybe_interrupt()

    def _maybe_interrupt(self) -> None:
        if len(self.said) == self._interrupt_at and not self._interrupted:
            assert self.session is not None
            self._interrupted = True
            self.process.submit(agent.Stop(self.session, self._request))

    def _next(self) -> None:
        """After a whole answer."""
        assert self.session is not None
        if self.turn < self.world.options.turns:
            self._say()
            return
        self.world.marks.hit("every turn answered")
        if self.rng.random() < self.world.options.vanish:
            self.world.marks.hit("client left without a word")
            self.done = True
            self.process.later(0, self.process.crash)
            return
        self._leaving = True
        self.process.submit(agent.Leave(self.session, "completed"))

    def _another(self) -> None:
        """This session came to nothing; open the next one."""
        assert self.session is not None
        self.process.submit(agent.Detach(self.session))
        self.session = None
        self.process.later(AGAIN_US, self._call)

    # ---------------------------------------------------------------------------------------------------------- hearing

    def _told(self, deliver: Deliver) -> None:
        self.world.trace.told(self.world.now_us, self.process.place, deliver)
        if deliver.session != self.session:
            return
        match deliver.item:
            case Answered(200, _, seats):
                self.world.truth.of(deliver.session).seats = tuple(seat.peer for seat in seats)
                self.world.marks.hit("session born")
                if len(seats) >= 5:
                    self.world.marks.hit("five voters")
                self._say()
            case Answered():
                self._another()
            case Moved(epoch):
                check(epoch > self._epoch, "receivers fence", f"client moved from epoch {self._epoch} to {epoch}")
                self._epoch = epoch
            case Said(request, seq, token):
                self._hear_token(request, seq, token)
            case Ended(request, reason):
                self._hear_end(request, reason)
            case Refusal(request, status, reasons):
                check(status == 481 and self._may_end, "turns are answered", f"{status} {reasons}")
            case Lost(reason):
                self._hear_silence()
            case Over(reason):
                self._hear_over(reason)

    def _hear_token(self, request: RequestId, seq: int, token: messages.Token) -> None:
        check(seq > self._last_seq, "each token once, in order", f"seq {seq} after {self._last_seq}")
        self._last_seq = seq
        check(request == self._request, "answers follow their turn", self.waits)
        right = self._core.draw(self._context, self._sampling, len(self._context) - len(self.said) if self.said else 0)
        check(token.id == right, "the only right continuation", f"token {token.id}, not {right}; {self.waits}")
        self._context.append(token.id)
        self.said.append(token.id)
        self._maybe_interrupt()

    def _hear_end(self, request: RequestId, reason: str) -> None:
        check(request == self._request, "answers follow their turn", self.waits)
        stopped = bool(self.said) and self.said[-1] in self._core.card.eos
        full = len(self.said) == self.world.options.tokens
        right = {"stop": stopped, "length": full and not stopped, "interrupted": self._interrupted}
        check(right.get(reason, False), "answers end where they should", f"{reason!r}; {self.waits}")
        if reason == "interrupted":
            self.world.marks.hit("answer interrupted")
        self._closed = reason == "stop"
        self._next()

    def _hear_silence(self) -> None:
        """Nobody answers. A session of which nothing was ever heard is given up, as the SDK's caller does."""
        self.world.marks.hit("no quorum said")
        assert self.session is not None
        if self._last_seq == 0 and self.turn <= 1 and len(self.world.truth.of(self.session).released) <= 2:
            self.process.submit(agent.Leave(self.session, "given up"))
            self._another()

    def _hear_over(self, reason: str) -> None:
        assert self.session is not None
        if reason == "completed" or (self._leaving and reason != "expired"):
            self.done = True
            return
        check(self._may_end, "no session ends by itself", f"{reason!r}; {self.waits}")
        if reason == "expired":
            self.world.marks.hit("expired")
        self._another()

    @property
    def _may_end(self) -> bool:
        """Whether this session may be over though its client did not end it: nothing was released, or it expires."""
        assert self.session is not None
        stillborn = len(self.world.truth.of(self.session).released) <= 2
        return stillborn or self._may_expire

    @property
    def _may_expire(self) -> bool:
        """Whether sessions that nobody attends must end within the world's time."""
        return self.world.options.vanish > 0 or self.world.options.linger
