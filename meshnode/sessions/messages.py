"""What voters, hosts and clients of one session say to each other. Wire numbers 30 to 59; log entries 60 to 79."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from meshnode.ids import Digest, PeerId, RequestId, SessionId
from meshnode.options import AS_THE_MANIFEST, TOP_LOGPROBS_MAX, Options, Stops
from meshnode.ports import GREEDY, Sampling
from meshnode.wire import schema
from meshnode.wire.award import ROSTER_BYTES_MAX
from meshnode.wire.schema import Max

TURN_CHARS_MAX = 1 << 17
TURN_TOKENS_MAX = 1 << 16
ENTRY_BYTES_MAX = 384 << 10
ENTRIES_MAX = 256
PAGES_MAX = 1 << 13
TOKEN_CHARS_MAX = 256
"""Of the text of a token that was not drawn; longer ones are cut."""
ROSTERS_MAX = 24
"""Of one route. Who was away for more changes than these finds a voter by another way, or none."""

Reasons = Annotated[tuple[Annotated[str, Max(512)], ...], Max(64)]
Epoch = Annotated[int, Max(1 << 40)]
Seq = Annotated[int, Max(1 << 40)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A log entry: the epoch of the owner that wrote it, and one change as deterministic CBOR."""

    epoch: Epoch
    body: Annotated[bytes, Max(ENTRY_BYTES_MAX)]


Entries = Annotated[tuple[Entry, ...], Max(ENTRIES_MAX)]


# ------------------------------------------------------------------------------------------- between client and voters


@schema.message(59)
@dataclass(frozen=True, slots=True)
class Ack:
    """The agent has the answer: the session begins, under the award of this auction and no other. (31 named none.)"""

    session: SessionId
    auction: RequestId


@schema.message(32)
@dataclass(frozen=True, slots=True)
class Subscribe:
    """Send me everything after `after`. Sent to every voter; whoever owns the session answers."""

    session: SessionId
    after: Seq


@schema.message(33)
@dataclass(frozen=True, slots=True)
class Notify:
    """Released entries, in order. Without entries: a sign of life, or an owner that introduces itself."""

    session: SessionId
    epoch: Epoch
    after: Seq
    entries: Entries
    released: Seq


@schema.message(39)
@dataclass(frozen=True, slots=True)
class Message:
    """A user turn. The id is the client's: a repeat gets the recorded answer. (34 was this without options.)"""

    session: SessionId
    request: RequestId
    text: Annotated[str, Max(TURN_CHARS_MAX)]
    max_tokens: Annotated[int, Max(1 << 20)]
    """0 is the manifest's."""
    options: Options = AS_THE_MANIFEST


@schema.message(35)
@dataclass(frozen=True, slots=True)
class Denied:
    """This request was refused; the session goes on."""

    session: SessionId
    request: RequestId
    status: Annotated[int, Max(699)]
    reasons: Reasons


@schema.message(36)
@dataclass(frozen=True, slots=True)
class Interrupt:
    """End the running turn; what was said stays said."""

    session: SessionId
    request: RequestId


@schema.message(37)
@dataclass(frozen=True, slots=True)
class Bye:
    """End the session."""

    session: SessionId
    reason: Annotated[str, Max(128)]


@schema.message(38)
@dataclass(frozen=True, slots=True)
class Gone:
    """481: this node knows no such session. To a voter: it was closed, by an entry that a majority has."""

    session: SessionId


@schema.message(58)
@dataclass(frozen=True, slots=True)
class Concluded:
    """To a client: the session was closed, by an entry that a majority has. One voter's word is enough."""

    session: SessionId


# ---------------------------------------------------------------------------------------------------- between voters


@schema.message(40)
@dataclass(frozen=True, slots=True)
class Replicate:
    """Entries after (prev_seq, prev_hash) and how far all is released. Empty: a heartbeat that renews the lease."""

    session: SessionId
    epoch: Epoch
    prev_seq: Seq
    prev_hash: Digest
    entries: Entries
    released: Seq
    stamp_us: int
    """The owner's clock when it sent this; comes back, so that a lease counts from sending."""


@schema.message(41)
@dataclass(frozen=True, slots=True)
class Replicated:
    """Durable up to `matched` if `ok`; otherwise send again from `matched`. A higher epoch says: you are deposed."""

    session: SessionId
    epoch: Epoch
    matched: Seq
    ok: bool
    stamp_us: int


@schema.message(42)
@dataclass(frozen=True, slots=True)
class PreVote:
    """Would you promise this epoch? Changes nothing (Raft, section 9.6 of the dissertation)."""

    session: SessionId
    epoch: Epoch


@schema.message(43)
@dataclass(frozen=True, slots=True)
class PreVoted:
    """I have evidence against the present host too."""

    session: SessionId
    epoch: Epoch


@schema.message(44)
@dataclass(frozen=True, slots=True)
class Prepare:
    """Promise this epoch, and show what you have after a position that is known to be released."""

    session: SessionId
    epoch: Epoch
    after: Seq


@schema.message(45)
@dataclass(frozen=True, slots=True)
class Promise:
    """`granted`: durable, with this voter's log after `after`. Refused: `epoch` is what was promised already."""

    session: SessionId
    epoch: Epoch
    granted: bool
    last_epoch: Epoch
    last_seq: Seq
    after: Seq
    entries: Entries
    """As many as fit; a candidate that needs the rest prepares again from where these end."""


@schema.message(46)
@dataclass(frozen=True, slots=True)
class PageOffer:
    """A new owner asks a replica how much of this chain of pages it holds already."""

    session: SessionId
    epoch: Epoch
    addresses: Annotated[tuple[Digest, ...], Max(PAGES_MAX)]


@schema.message(47)
@dataclass(frozen=True, slots=True)
class PageAck:
    """The first `watermark` pages of the chain are stored here, without a gap."""

    session: SessionId
    epoch: Epoch
    watermark: Annotated[int, Max(PAGES_MAX)]
    tip: Digest
    """Address of the last of them: an acknowledgement of another chain's pages counts for nothing."""


@schema.message(48)
@dataclass(frozen=True, slots=True)
class Route:
    """Who votes by now, to clients and to voters that missed it: each roster signed by a voter of the one before."""

    session: SessionId
    rosters: Annotated[tuple[Annotated[bytes, Max(ROSTER_BYTES_MAX)], ...], Max(ROSTERS_MAX)]
    """Envelopes of Roster, in order."""


@schema.message(49)
@dataclass(frozen=True, slots=True)
class Out:
    """To a node that lost its seat: a majority has the configuration of this number, and you are not in it. It may
    forget the session, and must not say to others that the session is over (Gone does)."""

    session: SessionId
    number: Annotated[int, Max(1 << 20)]


@schema.message(50)
@dataclass(frozen=True, slots=True)
class Unknown:
    """The answer to Replicate of a node that keeps no such session: it lost its disk, or was told that it is out."""

    session: SessionId


# ------------------------------------------------------------------------------------------------------- log entries


@schema.message(60)
@dataclass(frozen=True, slots=True)
class Birth:
    """Entry 1: the signed award, with manifest and members. The same bytes at every voter."""

    award: Annotated[bytes, Max(320 << 10)]


@schema.message(61)
@dataclass(frozen=True, slots=True)
class Opened:
    """An owner begins its epoch."""

    host: PeerId


@schema.message(66)
@dataclass(frozen=True, slots=True)
class Turn:
    """A user turn as token ids, chat template included, and how its answer is drawn: a later host must draw as this one
    does. (62 was this without the last two.)"""

    request: RequestId
    ids: Annotated[tuple[Annotated[int, Max(1 << 24)], ...], Max(TURN_TOKENS_MAX)]
    max_tokens: Annotated[int, Max(1 << 20)]
    sampling: Sampling = GREEDY
    stop: Stops = ()


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been drawn."""

    id: Annotated[int, Max(1 << 24)]
    text: Annotated[str, Max(TOKEN_CHARS_MAX)]
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprobs:
    """What the model gave the drawn token, and the likeliest, best first."""

    logprob: float
    top: Annotated[tuple[Alternative, ...], Max(TOP_LOGPROBS_MAX)]


@schema.message(67)
@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, and the text that may be said with it. (63 was this without the last two.)"""

    id: Annotated[int, Max(1 << 24)]
    piece: Annotated[str, Max(1024)]
    held: bool = False
    """Some of the text so far is still to come: the inside of a character, or what may begin a stop string."""
    logprobs: Logprobs | None = None


@schema.message(64)
@dataclass(frozen=True, slots=True)
class End:
    """The turn is over: stop (the model ended it), stop string, length, interrupted, context full, or the engine's
    words."""

    reason: Annotated[str, Max(512)]


@schema.message(65)
@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over."""

    reason: Annotated[str, Max(128)]


@schema.message(68)
@dataclass(frozen=True, slots=True)
class Seated:
    """The voters from here on: counts as soon as it stands in a log, released or not."""

    roster: Annotated[bytes, Max(ROSTER_BYTES_MAX)]
    """Envelope of Roster."""


Change = Birth | Opened | Turn | Token | End | Closed | Seated


# ---------------------------------------------------------------------------------------------------- journal records


@schema.message(70)
@dataclass(frozen=True, slots=True)
class Promised:
    """This voter will follow no epoch below this one, and in it only this candidate."""

    session: SessionId
    epoch: Epoch
    candidate: PeerId


@schema.message(71)
@dataclass(frozen=True, slots=True)
class Appended:
    """Entries put after `prev_seq`; what stood there before is gone."""

    session: SessionId
    prev_seq: Seq
    entries: Entries
    released: Seq


@schema.message(72)
@dataclass(frozen=True, slots=True)
class Dropped:
    """The session is over here; only its name is kept."""

    session: SessionId
    closed: bool
    """A released entry ended it, for all voters: one that missed the end may be told so."""


@schema.message(73)
@dataclass(frozen=True, slots=True)
class Joined:
    """This node was asked in after the birth. Written before anything else of the session, so that no crash leaves a
    voter that does not know from where its vote counts."""

    session: SessionId
    sponsor: PeerId
    role: Annotated[str, Max(8)]
    since: Seq
    """It answers no candidate before its log reaches this seq: what it may have been before is over by then."""
