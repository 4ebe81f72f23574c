"""What nodes say to find each other and to place a session. Wire numbers 1 to 29."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from meshnode.ids import Digest, PeerId, RequestId, SessionId
from meshnode.wire import schema
from meshnode.wire.award import AWARD_BYTES_MAX, MANIFEST_BYTES_MAX, Addresses
from meshnode.wire.schema import Max

REASONS_MAX = 64
REASON_CHARS_MAX = 512

Reason = Annotated[str, Max(REASON_CHARS_MAX)]
Reasons = Annotated[tuple[Reason, ...], Max(REASONS_MAX)]
Name = Annotated[str, Max(128)]


@dataclass(frozen=True, slots=True)
class EngineOffer:
    """A model that a node serves."""

    model: Name
    model_digest: Digest
    numeric_class: Name
    page_tokens: Annotated[int, Max(1 << 12)]
    page_bytes: Annotated[int, Max(1 << 30)]
    context_tokens_max: Annotated[int, Max(1 << 24)]


@schema.message(8)
@dataclass(frozen=True, slots=True)
class Advert:
    """PUBLISH: what a node has, signed by it. A higher version replaces a lower; only the signer extends it. (1 was
    this without the last field.)"""

    version: int
    """Start time in the upper bits, a counter in the lower 20: grows over restarts."""
    ttl_s: Annotated[int, Max(3600)]
    name: Name
    zone: Name
    operator: Name
    addresses: Addresses
    host: bool
    vote: bool
    engines: Annotated[tuple[EngineOffer, ...], Max(4)]
    memory_bytes: int
    sessions: Annotated[int, Max(1 << 16)]
    sessions_max: Annotated[int, Max(1 << 16)]
    draining: bool = False
    """It is about to stop, and takes nothing new."""


@schema.message(2)
@dataclass(frozen=True, slots=True)
class Publish:
    """Adverts, each in its signer's envelope."""

    adverts: Annotated[tuple[Annotated[bytes, Max(8192)], ...], Max(256)]


@schema.message(3)
@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    stamp_us: int


@schema.message(4)
@dataclass(frozen=True, slots=True)
class Pong:
    """Yes."""

    stamp_us: int


@schema.message(5)
@dataclass(frozen=True, slots=True)
class Relay:
    """Pass this sealed frame to a peer of yours: for agents that cannot dial everybody."""

    to: PeerId
    frame: Annotated[bytes, Max(1 << 20)]


@schema.message(6)
@dataclass(frozen=True, slots=True)
class Relayed:
    """A frame that was passed on. Its own signature says whose it is; the envelope around it says where to answer."""

    frame: Annotated[bytes, Max(1 << 20)]


@schema.message(7)
@dataclass(frozen=True, slots=True)
class NoPath:
    """A Relay that could not be passed on: no link to that peer."""

    to: PeerId


@schema.message(10)
@dataclass(frozen=True, slots=True)
class Invite:
    """An agent offers a session to the mesh, through the node it is attached to."""

    session: SessionId
    invitation: Annotated[bytes, Max(MANIFEST_BYTES_MAX)]
    """Envelope of Invitation."""


@schema.message(11)
@dataclass(frozen=True, slots=True)
class Trying:
    """100: the INVITE has come, nominees are being asked."""

    session: SessionId


@schema.message(12)
@dataclass(frozen=True, slots=True)
class Offer:
    """A nominee is asked for its bid."""

    auction: RequestId
    session: SessionId
    invitation: Annotated[bytes, Max(MANIFEST_BYTES_MAX)]


@schema.message(13)
@dataclass(frozen=True, slots=True)
class Bid:
    """What the nominee would do. Reasons are empty where the answer is yes. A yes holds memory for a while."""

    auction: RequestId
    host_refusals: Reasons
    vote_refusals: Reasons
    recipe: Name
    """Model digest and numeric class: a replica of another recipe could go on, but not with the same tokens."""
    memory_bytes: int
    sessions: Annotated[int, Max(1 << 16)]
    sessions_max: Annotated[int, Max(1 << 16)]


@schema.message(14)
@dataclass(frozen=True, slots=True)
class Release:
    """The bid was not taken, or the award is withdrawn."""

    auction: RequestId
    session: SessionId


@schema.message(16)
@dataclass(frozen=True, slots=True)
class Awarded:
    """An award on its way to a seat, in the envelope of its signer."""

    award: Annotated[bytes, Max(AWARD_BYTES_MAX)]


@schema.message(17)
@dataclass(frozen=True, slots=True)
class Confirm:
    """The seat is taken, durably; or it is not, and why."""

    auction: RequestId
    session: SessionId
    attempt: Annotated[int, Max(64)]
    refusals: Reasons


@schema.message(20)
@dataclass(frozen=True, slots=True)
class Join:
    """A session's owner asks a bidder in, for a voter that was lost; answered by Confirm. Log and pages follow."""

    auction: RequestId
    session: SessionId
    award: Annotated[bytes, Max(AWARD_BYTES_MAX)]
    role: Annotated[str, Max(8)]
    since: Annotated[int, Max(1 << 40)]
    """The newcomer answers no candidate before its log reaches this seq."""


@schema.message(18)
@dataclass(frozen=True, slots=True)
class Answer:
    """The final answer to an INVITE. 200 carries the award; anything else says why, all of it."""

    session: SessionId
    status: Annotated[int, Max(699)]
    reasons: Reasons
    award: Annotated[bytes, Max(AWARD_BYTES_MAX)]


@schema.message(19)
@dataclass(frozen=True, slots=True)
class Cancel:
    """The agent takes its INVITE back."""

    session: SessionId
