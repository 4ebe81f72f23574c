"""Clients that attend a session: every voter remembers them, whoever owns the session tells them."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.ids import PeerId

SUBSCRIBERS_MAX = 16
"""Of one session. One more makes the one leave that asked longest ago."""


@dataclass(slots=True)
class Subscriber:
    """A client that attends: how far it was sent, and when it last asked."""

    sent: int
    asked_at: float


def attend(subscribers: dict[PeerId, Subscriber], client: PeerId, sent: int, now: float) -> None:
    """Remember a client that has everything up to `sent`."""
    if client not in subscribers and len(subscribers) >= SUBSCRIBERS_MAX:
        del subscribers[min(subscribers, key=lambda one: subscribers[one].asked_at)]
    subscribers[client] = Subscriber(sent, now)
