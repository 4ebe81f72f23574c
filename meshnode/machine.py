"""What goes into the brain and what comes out of it: two closed lists of frozen values.

The brain is `step(now, event) -> [effects]` and one number, `deadline`: the time at which it wants a Tick if nothing
else happens before. The hands (driver.py) carry effects out **in order, per session**: what follows a Persist of a
session runs after that record is on disk. Nothing else is promised, and nothing else is needed.

Messages are wire dataclasses; the driver seals them. They are `object` here because this file stands below them.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.ids import Digest, PeerId, RequestId, SessionId
from meshnode.options import Grammar
from meshnode.ports import Lane, LinkDown, LinkUp, Work

# -------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Received:
    """A verified message. `via` is the gateway that passed it on, if it did not come over the sender's own link."""

    peer: PeerId
    lane: Lane
    message: object
    via: PeerId | None = None


@dataclass(frozen=True, slots=True)
class DialFailed:
    """Every address of the peer refused or stayed silent."""

    peer: PeerId
    lane: Lane


@dataclass(frozen=True, slots=True)
class Introduced:
    """Bootstrap peers as multiaddrs that end in /p2p/ID, from the configuration or a join file."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Durable:
    """The host's own log is on disk up to and including `seq`, as of `epoch`."""

    session: SessionId
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A turn's text as token ids, or why it cannot be one: the chat template's or the grammar's fault."""

    session: SessionId
    request: RequestId
    ids: tuple[int, ...]
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Stepped:
    """The engine ran one Work. What is said with `token`, as in sessions/speech.py: `piece` now, `rest` if the answer
    ends here. `top`: (token, text, logprob) of the likeliest, if the sampling asked for them."""

    session: SessionId
    load: int
    position: int
    """Tokens in the engine after the step."""
    token: int | None
    piece: str
    rest: str = ""
    whole: bool = True
    stopped: bool = False
    logprob: float | None = None
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """Pages are back in the engine: so many tokens from position 0, 0 if none could be used."""

    session: SessionId
    load: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PageStored:
    """A page that a host sent is in this node's store."""

    peer: PeerId
    session: SessionId
    epoch: int
    page_index: int
    address: Digest
    parent: Digest


@dataclass(frozen=True, slots=True)
class PageFailed:
    """A page could not be exported, sent or stored; it will be missing, nothing else."""

    session: SessionId
    reason: str
    to: PeerId | None = None
    """The replica that it was for."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """The store gave up this session's pages to make room."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Faulted:
    """The engine refused this session's work."""

    session: SessionId
    load: int
    reason: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the hands can measure and the brain cannot: KV bytes that could be taken now."""

    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Stocked:
    """The models that lie here whole and are shared (chunks.messages.Shelved)."""

    models: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Carried:
    """A Carry is done. `sent_bytes` 0: the peer left. Not `readable`: the disk does not give the model any more."""

    to: PeerId
    digest: Digest
    sent_bytes: int
    readable: bool = True
    stalled: bool = False
    """The peer did not make room for it in time."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The listing that was asked for (chunks.listing.Listing), its digest compared."""

    peer: PeerId
    listing: object


@dataclass(frozen=True, slots=True)
class Scanned:
    """Where the model is being put together: chunks that are there already and right."""

    chunks: frozenset[int]


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk came, was right, and is written."""

    peer: PeerId
    index: int


@dataclass(frozen=True, slots=True)
class Spoilt:
    """A chunk or a listing came that was asked for, and is not what the digest says."""

    peer: PeerId
    index: int


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The disk cannot take the model."""

    reason: str


Event = (
    LinkUp
    | LinkDown
    | Received
    | DialFailed
    | Introduced
    | Tick
    | Durable
    | Encoded
    | Stepped
    | Restored
    | PageStored
    | PageFailed
    | Evicted
    | Faulted
    | Capacity
    | Stocked
    | Carried
)
FetchEvent = Listed | Scanned | Kept | Spoilt | StoreFailed
"""What a fetch's hand tells its brain, and no node's."""

# ------------------------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Seal and queue a message. A full queue or a missing link loses it: whoever needs it, repeats it."""

    to: PeerId
    lane: Lane
    message: object
    session: SessionId | None = None
    """Orders it behind this session's Persists; None goes at once."""
    via: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """Queue a frame that somebody else sealed, wrapped as Relayed."""

    to: PeerId
    lane: Lane
    frame: bytes


@dataclass(frozen=True, slots=True)
class Dial:
    """Make a link; answered by LinkUp or DialFailed."""

    peer: PeerId
    addresses: tuple[str, ...]
    lane: Lane


@dataclass(frozen=True, slots=True)
class HangUp:
    """End every link with this peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Persist:
    """Write a record to the journal."""

    session: SessionId
    record: bytes


@dataclass(frozen=True, slots=True)
class Post:
    """Hand this event back to the brain once all earlier effects of the session are done."""

    session: SessionId
    event: Event


@dataclass(frozen=True, slots=True)
class Encode:
    """Turn text into ids, and see whether the grammar can be followed; answered by Encoded."""

    session: SessionId
    request: RequestId
    text: str
    system: str | None
    first: bool
    closed: bool
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step; answered by Stepped or Faulted, with the same `load`: which time this node loads the session, so
    that an answer from before a deposition is not taken for a new one. `pending`, `told`: as in the transcript."""

    session: SessionId
    load: int
    work: Work
    pending: tuple[int, ...]
    told: int = 0
    stops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Restore:
    """Put the longest run of these pages that is at hand into the engine; answered by Restored. The engine may have
    them still, in the session's domain; the store has them by address."""

    session: SessionId
    load: int
    addresses: tuple[Digest, ...]
    tokens: tuple[int, ...]
    """Exactly those of the pages."""
    domain: bytes


@dataclass(frozen=True, slots=True)
class Ship:
    """Export a full page, encode it and send it to a replica on the bulk lane."""

    session: SessionId
    epoch: int
    page_index: int
    address: Digest
    parent: Digest
    to: PeerId


@dataclass(frozen=True, slots=True)
class Unload:
    """Take the session out of the engine; its pages stay in the store."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Forget:
    """The session ended: out of the engine, out of the store."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Note:
    """A milestone for people: kept in a short list with its time, shown by `meshnode status`."""

    what: str
    session: SessionId | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Client side only: something for the agent's own code."""

    session: SessionId
    item: object


@dataclass(frozen=True, slots=True)
class Carry:
    """Read a chunk of a model, or its listing, and send it on the bulk lane; answered by Carried."""

    to: PeerId
    digest: Digest
    index: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make room on the disk for the model of this listing; answered by Scanned or StoreFailed."""

    listing: object


@dataclass(frozen=True, slots=True)
class Finished:
    """A fetch is over: every chunk is here, or `reason` says why not."""

    reason: str = ""


Effect = (
    Send
    | Pass
    | Dial
    | HangUp
    | Persist
    | Post
    | Encode
    | Step
    | Restore
    | Ship
    | Unload
    | Forget
    | Note
    | Deliver
    | Carry
    | Prepare
    | Finished
)
