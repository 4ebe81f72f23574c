"""The model's client: asks its turns one after the other, and says when a token came twice or out of order."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from meshnode import errors
from meshnode.ids import PeerId
from meshnode.machine import Deliver, Effect, Send
from meshnode.sessions import attach, messages, timers
from tests.sessions import cases, drawing


class World(Protocol):
    now: float
    reached: Counter[str]

    def at(self, delay_s: float, event: object) -> None: ...

    def post(self, sender: PeerId, to: PeerId, message: object) -> None: ...


class Caller:
    """One attachment."""

    def __init__(self, world: World, voters: tuple[PeerId, ...], turns: int) -> None:
        self.world = world
        self.turns = turns
        self.client = attach.Attachment(
            cases.SESSION,
            voters,
            timers.TIMERS[cases.wants().characteristics.kind],
            0.0,
            auction=cases.AUCTION,
        )
        self.said: dict[bytes, list[int]] = {}
        self.ended: dict[bytes, str] = {}
        self.over = ""
        self._last_seq = 0
        self._tick_at = float("inf")
        self._said_turns = 0

    def begin(self) -> None:
        """ACK, and the first turn."""
        self._carry(self.client.begin(self.world.now))
        self.say()

    def tick(self, at: float) -> None:
        """The attachment's deadline, if it is still this one."""
        if at == self._tick_at:
            self._tick_at = float("inf")
            self._carry(self.client.tick(self.world.now))

    def say(self) -> None:
        self._said_turns += 1
        text = drawing.question(self._said_turns)
        message = messages.Message(cases.SESSION, cases.request(self._said_turns), text, drawing.ANSWER_TOKENS_MAX)
        self.said[message.request] = []
        self._carry(self.client.say(self.world.now, message))

    def hears(self, peer: PeerId, message: object) -> None:
        try:
            match message:
                case messages.Notify():
                    effects = self.client.on_notify(self.world.now, peer, message)
                case messages.Denied():
                    raise AssertionError(f"denied: {message}")
                case messages.Gone():
                    effects = self.client.on_gone(peer)
                case messages.Concluded():
                    effects = self.client.on_concluded(peer)
                case messages.Route():
                    effects = self.client.on_route(self.world.now, message)
        except errors.PeerError as error:
            self.world.reached[f"client: {error}"] += 1
            effects = []
        self._carry(effects)

    def _carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.world.post(cases.AGENT.peer, effect.to, effect.message)
            else:
                assert isinstance(effect, Deliver)
                self._delivered(effect.item)
        due = self.client.deadline
        assert due > self.world.now, "the client's deadline stays in the past"
        if due != self._tick_at and due < float("inf"):
            self._tick_at = due
            self.world.at(due - self.world.now, ("client tick", due))

    def _delivered(self, item: object) -> None:
        match item:
            case attach.Said(request, seq, token):
                assert seq > self._last_seq, "a token twice, or out of order"
                assert request not in self.ended
                self._last_seq = seq
                self.said[request].append(token.id)
            case attach.Ended(request, reason):
                assert request not in self.ended
                self.ended[request] = reason
                if self._said_turns < self.turns:
                    self.say()
                else:
                    self._carry(self.client.bye(self.world.now, "completed"))
            case attach.Over(reason):
                self.over = reason
            case _:
                self.world.reached[type(item).__name__] += 1
