"""The two signed papers that placement and sessions both read: manifest and award. Wire numbers 24 to 29.

They stand here because gossip (which makes an award) and sessions (which live by one) never import each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.manifest import Manifest
from meshnode.wire import schema
from meshnode.wire.schema import Max

MANIFEST_BYTES_MAX = 256 << 10
AWARD_BYTES_MAX = 320 << 10
SEATS_MAX = 9
ROSTER_BYTES_MAX = 32 << 10

Address = Annotated[str, Max(256)]
Addresses = Annotated[tuple[Address, ...], Max(8)]


@schema.message(26)
@dataclass(frozen=True, slots=True)
class Invitation:
    """A manifest for one session, signed by the agent: whoever holds that key holds the session. (24 was this with a
    manifest of fewer ways to draw a token.)"""

    session: SessionId
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Seat:
    """A voter of a session, and where to find it."""

    peer: PeerId
    role: Annotated[str, Max(8)]
    """host, replica or witness, as awarded; who hosts later is in the log."""
    addresses: Addresses


@schema.message(25)
@dataclass(frozen=True, slots=True)
class Award:
    """Names host, replicas and witness. Signed by the node that held the auction; it is also the client's route."""

    auction: RequestId
    session: SessionId
    attempt: Annotated[int, Max(64)]
    invitation: Annotated[bytes, Max(MANIFEST_BYTES_MAX)]
    """Envelope of Invitation."""
    seats: Annotated[tuple[Seat, ...], Max(SEATS_MAX)]


@schema.message(27)
@dataclass(frozen=True, slots=True)
class Roster:
    """The voters of a session from one configuration on, signed by the owner that proposed it: the client's route. The
    award is number 0."""

    session: SessionId
    number: Annotated[int, Max(1 << 20)]
    seats: Annotated[tuple[Seat, ...], Max(SEATS_MAX + 1)]
    """One more than an award names: a newcomer is seated before the lost one leaves."""
