"""What the brain's hands look like from inside: Protocols of at most five methods, and the values that pass them.

Only ids, token arrays and page bytes cross the Engine port, so that a child process or a GPU could stand there; only
frames of bytes cross the Transport port, so that libp2p's types never leave its one file. Beside every real
implementation stands a fake that passes the same contract test.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from meshnode.ids import Digest, PeerId, SessionId
from meshnode.options import Biases, Grammar

if TYPE_CHECKING:  # the port speaks of trio's channels; the pure layers never run them
    import trio


# --------------------------------------------------------------------------------------------------------- transport


class Lane(enum.IntEnum):
    """Three connections per pair of peers: signalling, media and bulk never queue behind one another (SS7)."""

    SIGNAL = 0
    MEDIA = 1
    BULK = 2


FRAME_BYTES_MAX = {Lane.SIGNAL: 1 << 20, Lane.MEDIA: 1 << 20, Lane.BULK: 8 << 20}
"""A longer frame is a PeerError before any memory is taken for it."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The first link of this lane with this peer stands; whoever dialled, both sides may use it."""

    peer: PeerId
    lane: Lane


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The last link of this lane with this peer ended (end of stream, reset, or our own close)."""

    peer: PeerId
    lane: Lane


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame, from an authenticated peer. Frames of one lane arrive in the order they were sent."""

    peer: PeerId
    lane: Lane
    data: bytes


NetEvent = LinkUp | LinkDown | Frame


class Transport(Protocol):
    """Frames between authenticated peers. Nothing here retries, heals or understands: that is the brain's work."""

    me: PeerId
    addresses: tuple[str, ...]
    """Multiaddrs that end in /p2p/ID; complete once `run` has started."""
    events: trio.MemoryReceiveChannel[NetEvent]
    """Everything that happens, in order. Bounded: a reader that stops reading stops the peers, not the memory."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen and serve until cancelled; `task_status.started()` once the addresses are known."""

    async def dial(self, peer: PeerId, addresses: Sequence[str], lane: Lane) -> None:
        """Make a link of this lane unless one stands; each address in turn. Raises Unreachable."""

    def send_nowait(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        """Queue a frame. Raises Unreachable without a link, trio.WouldBlock if the lane's queue is full."""

    async def send(self, peer: PeerId, lane: Lane, frame: bytes) -> None:
        """Queue a frame, waiting for room. Raises Unreachable without a link, or when the link ends meanwhile."""

    async def hang_up(self, peer: PeerId) -> None:
        """End every link with this peer."""


# ------------------------------------------------------------------------------------------------------------ engine


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn: a pure function of (logits, seed, position, context), so it is the same on every host.

    In this order: `repetition_penalty`, `presence_penalty` and `frequency_penalty`, `logit_bias`, `grammar`,
    `temperature`, `top_k`, `top_p`, `min_p`, and the draw. What a field does is said in engine/sampler.py.
    """

    seed: int = 0
    """63 bits; a fork or one of n has its own (options.branch_seed)."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Biases = ()
    logprobs: int | None = None
    """Alternatives to tell of beside the token's own log probability; None tells neither."""
    grammar: Grammar | None = None


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token whose sampling asked for log probabilities: natural, of the model itself (before penalties, biases,
    grammar and temperature), rounded to six decimals, since the last bits of exp() are the machine's."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token, logprob) of the likeliest, best first."""


Answer = int | Drawn | None
"""A drawn token, with its log probabilities if those were asked for; None if nothing was drawn."""


@dataclass(frozen=True, slots=True)
class Work:
    """One session's part of an engine step: append `feed` at `position`, then draw a token if `sampling` says how."""

    session: SessionId
    position: int
    """Tokens of this session in the engine before this step. Anything beyond it is dropped first."""
    feed: tuple[int, ...]
    sampling: Sampling | None
    domain: bytes = b""
    """Who may find this session's pages, and whose pages it may find: sessions of one domain share what they have in
    common. Empty: the session's own id, which its forks name. Taken at position 0 and kept from then on."""
    answer_from: int = 0
    """Where in the context the answer begins: the tokens from there on were drawn for it, and are what a grammar has
    seen and what the presence and frequency penalties count. 0: none of it is said yet."""


@dataclass(frozen=True, slots=True)
class EngineCard:
    """What an engine is, as adverts, manifests and snapshots name it."""

    model: str
    model_digest: Digest
    numeric_class: str
    page_tokens: int
    page_bytes: int
    context_tokens_max: int
    vocabulary: int
    eos: tuple[int, ...]
    """Token ids that end a turn."""


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What an engine did since its start."""

    pass_count: int
    computed_tokens: int
    reused_tokens: int
    """Fed by somebody, and found in pages of the same domain instead of being computed."""
    idle_pages: int
    """Kept for whoever may want them; free for everybody else."""
    spill_count: int
    """Times that a session had to make room for another."""


class Engine(Protocol):
    """A model with a paged KV cache. One call at a time a session; different sessions are batched. What one session
    of a domain has computed is not computed again for another."""

    card: EngineCard

    async def step(self, batch: Sequence[Work]) -> list[Answer]:
        """Run the batch once; one drawn token (or None) each. Raises EngineError, leaving other sessions alone."""

    async def export(self, session: SessionId, page_index: int) -> bytes:
        """The raw bytes of a full page (`card.page_bytes`, fixed layout). Raises EngineError if it is not full."""

    async def restore(
        self, session: SessionId, tokens: Sequence[int], pages: Sequence[bytes], *, domain: bytes = b""
    ) -> int:
        """Replace the session's KV by the longest prefix of `tokens` that is at hand, in full pages: what its domain
        has, and `pages`, which hold the first tokens (there may be none). Returns the tokens now in the engine. Raises
        EngineError for a bad page."""

    async def drop(self, session: SessionId) -> None:
        """Forget a session's KV. Its full pages stay for its domain until memory is wanted. Unknown ones are fine."""

    def memory_free(self) -> int:
        """Bytes of KV that could be taken now without harm to any session."""


class Grammars(Protocol):
    """Who judges a grammar before its turn enters the log; the engine that will be held to it, as a rule."""

    async def check(self, grammar: Grammar) -> None:
        """Raises EngineError with the reason if no answer could satisfy it, or if it takes too much to follow."""


class Tokenizer(Protocol):
    """Text to ids and back, from the model's own files. Special tokens inside user text stay text."""

    def turn(self, text: str, *, system: str | None, first: bool, closed: bool) -> list[int]:
        """Ids that append one user turn and open the assistant's: `first` adds what the chat template puts before
        the first turn (with `system` if given), `closed` says that the context already ends in an end-of-turn id."""

    def text(self, ids: Sequence[int]) -> str:
        """Decode, special tokens left out; a broken UTF-8 tail becomes U+FFFD."""
