"""The session manifest: what an agent asks of the network, the SIP INVITE of agent sessions.

Six tables, every field with a default, so that the empty manifest is a plain chat. Bounds are said here, once, and in
words: `read` is for a person's YAML or JSON and raises ManifestError with every reason; `problems` is for a manifest
that came over the wire, whose form the schema has checked already.

What the mesh cannot honour yet is refused and never ignored: a manifest that asks for lossy snapshots today gets a
reason, since to keep silent would be to downgrade it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from meshnode import errors, forms, options
from meshnode.options import Biases, Grammar, Stops

CONTEXT_TOKENS_MAX = 1 << 20
REPLICAS_MAX = 6
TEXT_CHARS_MAX = 1 << 16
TEXT_BYTES_MAX = 192 << 10
"""The signed manifest takes 256 KiB at most."""


class Kind(enum.Enum):
    """Decides every timer of the session (see sessions/timers.py)."""

    SYNCHRONOUS = "synchronous"
    INTERACTIVE = "interactive"
    AUTONOMOUS = "autonomous"


class Fidelity(enum.Enum):
    """What a snapshot may do to the numbers."""

    EXACT = "exact"


class Confidentiality(enum.Enum):
    """Who may read the session. The hosting node always can."""

    HOSTS = "hosts"
    """Host and replicas: a replica may take over while nobody attends."""


class Sharing(enum.Enum):
    """Between whom the engine shares what was computed already. Never wider: who finds a page learns, by the time that
    it did not take, what somebody else asked."""

    SESSION = "session"
    """The session, its forks, and itself when it comes back."""
    TENANT = "tenant"
    """All sessions of the agent that signed the manifest: a long system text is computed once on each host."""


@dataclass(frozen=True, slots=True)
class Characteristics:
    """What kind of work this is."""

    kind: Kind = Kind.INTERACTIVE
    context_tokens: int = 4096
    """Tokens of context that the session will need at most; a host reserves KV for them."""
    duration_s: int = 3600
    """Typical length. A hint for placement, never a limit."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where it may run. Every field is checked against measured facts, not against claims alone where that can be."""

    model: str = ""
    """A model's name; empty takes what the mesh has most of."""
    model_digest: bytes = b""
    """32 bytes; with it, only these weights will do."""
    numeric_class: str = ""
    """`w8`, `i8`, `bf16` or `f32`, or one in full as adverts name it (`w8/2`); empty takes the host's default."""
    zones: tuple[str, ...] = ()
    """Sovereignty zones that host, replicas and witness must stand in; empty is anywhere."""
    memory_bytes_min: int = 0
    """Free KV memory a host must have beyond this session's own context."""
    latency_ms_max: int = 0
    """Ceiling of the round trip to the host, measured on the exchange of offer and bid; 0 is none."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What must survive, and at what price."""

    movable: bool = True
    loss_tokens_max: int = 0
    """Tokens a failover may lose after the client saw them. 0: nothing is shown before a majority has it."""
    replicas: int = 1
    """Nodes that receive pages. One replica also needs a witness, so that a majority survives one loss."""
    replicas_min: int = 0
    """With fewer the session is refused (488). 0: run even alone, and say so."""
    fidelity: Fidelity = Fidelity.EXACT
    confidentiality: Confidentiality = Confidentiality.HOSTS
    sharing: Sharing = Sharing.SESSION


@dataclass(frozen=True, slots=True)
class Scaling:
    """How demand for sessions like this one behaves."""

    demand: str = "steady"
    keep_cold_s: int = 600
    """How long an idle session stays restorable."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What is checked, how often."""

    audit_rate: float = 0.0
    """Share of turns that an auditor recomputes."""
    tokens_per_s_min: float = 0.0
    """Below this rate the session-minute is not billed."""


@dataclass(frozen=True, slots=True)
class Value:
    """What this session's state is worth as it runs: `start + per_token * tokens`, in the agent's own unit."""

    start: float = 1.0
    per_token: float = 0.0


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent's own part: how its turns are to be run."""

    system: Annotated[str, TEXT_CHARS_MAX] = ""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Only the k best tokens; 0 is all."""
    top_p: float = 1.0
    """Only the fewest best tokens that have this probability together."""
    min_p: float = 0.0
    """Only tokens with this share of the best one's probability."""
    repetition_penalty: float = 1.0
    """Divides the odds of every token that stands in the context; 1 is none."""
    presence_penalty: float = 0.0
    """Taken once from every token that the answer has said."""
    frequency_penalty: float = 0.0
    """Taken from a token for each time that the answer has said it."""
    logit_bias: Biases = ()
    seed: int = 0
    logprobs: int | None = None
    """How many alternatives to tell of beside each token's log probability; None tells neither."""
    stop: Stops = ()
    """An answer ends before the first of these."""
    grammar: Grammar | None = None
    """What every answer must look like."""
    max_tokens: int = 512
    """Tokens of one answer, unless a turn says less."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contract. Deterministic CBOR, signed by the agent."""

    characteristics: Characteristics = Characteristics()
    placement: Placement = Placement()
    migration: Migration = Migration()
    scaling: Scaling = Scaling()
    verification: Verification = Verification()
    value: Value = Value()
    agent: Agent = Agent()


def read(raw: Any) -> Manifest:
    """A manifest from a mapping. Raises ManifestError with every reason."""
    manifest, reasons = forms.read(Manifest, {} if raw is None else raw)
    if manifest is not None:
        reasons = problems(manifest)
    if manifest is None or reasons:
        raise errors.ManifestError(reasons)
    return manifest


def class_fits(wanted: str, served: str) -> bool:
    """Whether a numeric class is the one that was asked for: in full, or by the recipe's name that it begins with."""
    return wanted in ("", served) or served.startswith(f"{wanted}/")


def problems(manifest: Manifest) -> list[str]:
    """Every bound that this manifest breaks, in words."""
    found = [words for holds, words in _RULES if not holds(manifest)]
    return found + [f"agent.{words}" for words in options.problems(manifest.agent)]


_RULES: tuple[tuple[Callable[[Manifest], bool], str], ...] = (
    (
        lambda m: 64 <= m.characteristics.context_tokens <= CONTEXT_TOKENS_MAX,
        f"characteristics.context_tokens: must be 64 to {CONTEXT_TOKENS_MAX}",
    ),
    (lambda m: m.characteristics.duration_s >= 1, "characteristics.duration_s: must be 1 or more"),
    (
        lambda m: len(m.placement.model_digest) in (0, 32),
        "placement.model_digest: must be 64 hexadecimal digits (`meshnode models list` prints them)",
    ),
    (lambda m: len(m.placement.model) <= 128, "placement.model: at most 128 characters"),
    (
        lambda m: m.placement.numeric_class.split("/")[0] in ("", "w8", "i8", "bf16", "f32"),
        "placement.numeric_class: must be w8, i8, bf16 or f32",
    ),
    (lambda m: len(m.placement.zones) <= 16, "placement.zones: at most 16"),
    (lambda m: all(len(zone) <= 32 for zone in m.placement.zones), "placement.zones: at most 32 characters each"),
    (lambda m: m.placement.memory_bytes_min >= 0, "placement.memory_bytes_min: must be 0 or more"),
    (lambda m: m.placement.latency_ms_max >= 0, "placement.latency_ms_max: must be 0 or more"),
    (lambda m: m.migration.loss_tokens_max >= 0, "migration.loss_tokens_max: must be 0 or more"),
    (
        lambda m: 0 <= m.migration.replicas <= REPLICAS_MAX,
        f"migration.replicas: must be 0 to {REPLICAS_MAX}",
    ),
    (
        lambda m: 0 <= m.migration.replicas_min <= m.migration.replicas,
        "migration.replicas_min: must be 0 to migration.replicas",
    ),
    (lambda m: len(m.scaling.demand) <= 64, "scaling.demand: at most 64 characters"),
    (lambda m: m.scaling.keep_cold_s >= 0, "scaling.keep_cold_s: must be 0 or more"),
    (lambda m: 0.0 <= m.verification.audit_rate <= 1.0, "verification.audit_rate: must be 0 to 1"),
    (lambda m: m.verification.tokens_per_s_min >= 0.0, "verification.tokens_per_s_min: must be 0 or more"),
    (
        lambda m: 1 <= m.agent.max_tokens <= m.characteristics.context_tokens,
        "agent.max_tokens: must be 1 to characteristics.context_tokens",
    ),
    (lambda m: len(m.agent.system) <= TEXT_CHARS_MAX, f"agent.system: at most {TEXT_CHARS_MAX} characters"),
    (
        lambda m: len(m.agent.system.encode(errors="replace")) <= TEXT_BYTES_MAX,
        f"agent.system: at most {TEXT_BYTES_MAX} bytes in UTF-8",
    ),
)
