"""The SDK for agents: open a session on the mesh, talk in it, and let the mesh worry about machines.

    async with meshnode.client.connect(["/ip4/.../tcp/4001/p2p/12D3..."]) as mesh:
        async with mesh.session({"agent": {"system": "You teach."}}) as session:
            async for token in session.say("Why is the sky blue?"):
                print(token, end="", flush=True)

Needs trio and no torch. A host that dies in the middle of an answer is a pause in this loop, nothing else; a session
that nobody answers for is `Refused`, within the INVITE time of its kind.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import trio

from meshnode import agent, driver, errors, ids, manifest, options, ports
from meshnode.agent import Answered
from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.machine import Deliver, Introduced
from meshnode.sessions import timers
from meshnode.sessions.attach import Ended, Item, Lost, Moved, Over, Refusal, Said
from meshnode.sessions.messages import Alternative
from meshnode.wire import keys
from meshnode.wire.award import Seat


@dataclass(frozen=True, slots=True)
class Token:
    """A released token. `str(token)` is the text that may be shown with it: empty inside a character, or while the text
    may begin a stop string."""

    text: str
    id: int
    seq: int
    """Position in the session's log: grows by one or more from token to token, over failovers too."""
    logprob: float | None = None
    """What the model itself gave it (natural logarithm), if the turn asked for `logprobs`."""
    top: tuple[Alternative, ...] = ()
    """The likeliest tokens in its place, best first."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Event:
    """Something that befell the session, with the time (trio's clock) at which the client learned of it."""

    at: float
    item: Item


class Session:
    """One session. Made by `Mesh.session`."""

    def __init__(self, mesh: Mesh, session: SessionId, wants: manifest.Manifest, answered: Answered) -> None:
        self.id = session
        self.manifest = wants
        self.seats: tuple[Seat, ...] = answered.seats
        self.notices = answered.reasons
        """What the mesh could not give of what was asked, such as `no failover`."""
        self.end_reason: str | None = None
        """Of the last answer: stop, stop string, length, interrupted, context full."""
        self.history: list[Event] = []
        """Owners that came and silences, the latest last."""
        self._mesh = mesh

    @property
    def host(self) -> PeerId | None:
        """The node that owns the session now, as far as this client heard."""
        moves = [event.item for event in self.history if isinstance(event.item, Moved)]
        return moves[-1].host if moves else None

    async def say(self, text: str, *, max_tokens: int = 0, **asked: Any) -> AsyncIterator[Token]:
        """One user turn; yields the answer as it is released. Leaving the loop early interrupts the answer.

        `max_tokens` 0 takes the manifest's, and so does whatever is not in `asked`: temperature, top_k, top_p, min_p,
        repetition_penalty, presence_penalty, frequency_penalty, logit_bias ({id: amount}), seed, logprobs (how many
        alternatives), stop (a string or up to four), and one of schema (JSON schema), regex, lark, tools.

        Raises Refused: 400 with every reason for options that are out of bounds or a grammar that no answer can follow,
        413 the turn does not fit, 503 nobody answers, 481 over.
        """
        wanted, wrong = options.read(asked)
        wrong += options.problems(options.over(self.manifest.agent, wanted))
        if wrong:
            raise errors.Refused(400, wrong)
        request = RequestId(os.urandom(ids.REQUEST_BYTES))
        receive = self._mesh.expect(self.id, request)
        whole = False
        try:
            self._mesh.submit(agent.Say(self.id, request, text, max_tokens, wanted))
            async for item in receive:
                match item:
                    case Said(_, seq, token):
                        known = (token.logprobs.logprob, token.logprobs.top) if token.logprobs else (None, ())
                        yield Token(token.piece, token.id, seq, *known)
                    case Ended(_, reason):
                        whole, self.end_reason = True, reason
                        if reason.startswith("error: "):
                            raise errors.Refused(500, [reason.removeprefix("error: ")])
                        return
                    case Refusal(_, status, reasons):
                        whole = True
                        raise errors.Refused(status, reasons)
                    case Lost(reason):
                        raise errors.Refused(503, [reason])
                    case Over(reason):
                        whole = True
                        raise errors.Refused(481, [reason])
        finally:
            self._mesh.forget(request)
            if not whole:
                self._mesh.submit(agent.Stop(self.id, request))

    async def wait_moved(self, epoch: int) -> Moved:
        """Until the session has an owner of this epoch or a later one."""
        while True:
            for event in self.history:
                if isinstance(event.item, Moved) and event.item.epoch >= epoch:
                    return event.item
            await self._mesh.wait_news()


class Mesh:
    """A connection to the mesh. Made by `connect`."""

    def __init__(self, brain: agent.Agent, pump: driver.Driver) -> None:
        self.brain = brain
        self.me = brain.me
        self._driver = pump
        pump.on_deliver = self._deliver
        self._waiting: dict[bytes, tuple[SessionId, trio.MemorySendChannel[Any]]] = {}
        self._calling: dict[SessionId, manifest.Manifest] = {}
        self._sessions: dict[SessionId, Session] = {}
        self._news = trio.Event()

    def submit(self, command: object) -> None:
        """Hand a command to the brain."""
        self._driver.submit(command)

    def expect(self, session: SessionId, key: bytes) -> trio.MemoryReceiveChannel[Any]:
        """A channel for what is delivered under this id. Unbounded: the brain must never wait for a reader."""
        send, receive = trio.open_memory_channel[Any](float("inf"))
        self._waiting[key] = session, send
        return receive

    def forget(self, key: bytes) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(key, None)

    async def wait_news(self) -> None:
        """Until something is delivered."""
        await self._news.wait()

    def _deliver(self, effect: Deliver) -> None:
        item = effect.item
        self._news.set()
        self._news = trio.Event()
        if isinstance(item, Answered):
            wants = self._calling.pop(effect.session, None)
            if wants is not None and item.status == 200:  # here, so that nothing that follows at once finds no session
                self._sessions[effect.session] = Session(self, effect.session, wants, item)
            self._pass(effect.session, item)
            return
        if isinstance(item, Said | Ended | Refusal):
            self._pass(item.request, item)
            return
        session = self._sessions.get(effect.session)
        if session is None:
            return
        session.history.append(Event(trio.current_time(), cast(Item, item)))
        if isinstance(item, Lost | Over):
            for of, send in self._waiting.values():
                if of == effect.session:
                    send.send_nowait(item)

    def _pass(self, key: bytes, item: object) -> None:
        if key in self._waiting:
            self._waiting[key][1].send_nowait(item)

    @asynccontextmanager
    async def session(self, wants: manifest.Manifest | Mapping[str, Any] | None = None) -> AsyncIterator[Session]:
        """INVITE on entry, BYE on exit. Raises ManifestError, Refused with every reason."""
        asked = wants if isinstance(wants, manifest.Manifest) else manifest.read(wants)
        name = SessionId(os.urandom(ids.SESSION_BYTES))
        receive = self.expect(name, name)
        self._calling[name] = asked
        try:
            self.submit(agent.Call(name, asked))
            answered = await receive.receive()
            if answered.status != 200:
                raise errors.Refused(answered.status, answered.reasons)
            yield self._sessions[name]
        finally:
            with trio.CancelScope(shield=True):
                await self._bye(name, receive, timers.TIMERS[asked.characteristics.kind].lost_after_s)

    async def _bye(self, name: SessionId, receive: trio.MemoryReceiveChannel[Any], patience_s: float) -> None:
        """Say BYE and wait a moment for it to be in the log; a mesh that does not answer forgets by itself.

        Before there is a session, this takes the INVITE back.
        """
        attachment = self.brain.attachments.get(name)
        if attachment is not None and not attachment.over:
            self.submit(agent.Leave(name, "completed"))
            with trio.move_on_after(patience_s):
                while not isinstance(await receive.receive(), Over):
                    pass
        for known in (self._calling, self._sessions):
            known.pop(name, None)
        self.forget(name)
        self.submit(agent.Detach(name))


@asynccontextmanager
async def connect(
    bootstrap: Sequence[str], *, identity: keys.Identity | None = None, transport: ports.Transport | None = None
) -> AsyncIterator[Mesh]:
    """Join a mesh through bootstrap multiaddrs (each ends in /p2p/ID). Raises ConfigError for one that does not.

    `identity` holds the sessions that are opened with it; without one, a new key that ends with this connection.
    """
    _check(bootstrap)
    who = identity or keys.Identity(os.urandom(keys.SEED_BYTES))
    link = transport if transport is not None else _libp2p(who)
    brain = agent.Agent(who, random.Random(os.urandom(16)))
    pump = driver.Driver(brain, who, link)
    mesh = Mesh(brain, pump)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: link.run(task_status=task_status))
            nursery.start_soon(pump.run)
            mesh.submit(Introduced(tuple(bootstrap)))
            try:
                yield mesh
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # what the caller raised, the caller gets: the nursery is our own affair
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


def _check(bootstrap: Iterable[str]) -> None:
    hint = "`meshnode up` prints the address to join by"
    if not bootstrap:
        raise errors.ConfigError("no bootstrap address was given", hint=hint)
    for address in bootstrap:
        try:
            ids.peer_from_text(address.rpartition("/p2p/")[2])
        except errors.PeerError as error:
            raise errors.ConfigError(f"{address!r} does not end in /p2p/ID", hint=hint) from error


def _libp2p(who: keys.Identity) -> ports.Transport:
    from meshnode.net import libp2p  # a second to import: only who really dials pays for it

    return libp2p.Libp2pTransport(who, listen=())
