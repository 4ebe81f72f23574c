"""Whether a session moves now, later or not at all, and which one goes first. A pure function of what is known.

Two things are weighed in one unit, the session's own worth (the manifest's value curve) times seconds of somebody's
patience. A pause is paid by whoever attends, so it costs the worth times its length, and more in the middle of a
sentence than between two. Bytes are paid by everybody on the link, so they cost the same whoever's they are. On the
other side stands what staying puts at risk: a share of the worth, by urgency. That gives the three rules that people
expect: a call in mid-sentence stays, an idle tutoring session goes first, and gigabytes go only when they must.

Refused here: knowledge of the mesh (who could take it is the caller's) and of time (urgency rises outside).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from meshnode.manifest import Kind, Value


class Urgency(enum.Enum):
    """How much staying puts at risk."""

    BETTER = "better"
    """Another place would suit it better."""
    DRAIN = "drain"
    """This node wants to stop, and has time."""
    MUST = "must"
    """This node stops now, or a person said so."""


class Phase(enum.Enum):
    """Where the turn stands."""

    IDLE = "idle"
    PREFILL = "prefill"
    DECODE = "decode"


class Verdict(enum.Enum):
    """What comes of it."""

    MOVE = "move"
    WAIT = "wait"
    """It would move if the turn were over: ask again then."""
    STAY = "stay"


STAKE_S = {Urgency.BETTER: 0.1, Urgency.DRAIN: 1.0}
"""Seconds of pause that the move is worth. Higher: more sessions move in mid-answer. Lower: a drain takes longer. A
session that must move is not weighed at all."""
PAUSE_WEIGHT = {
    (Kind.SYNCHRONOUS, Phase.IDLE): 1.0,
    (Kind.SYNCHRONOUS, Phase.PREFILL): 20.0,
    (Kind.SYNCHRONOUS, Phase.DECODE): 50.0,
    (Kind.INTERACTIVE, Phase.IDLE): 0.0,
    (Kind.INTERACTIVE, Phase.PREFILL): 1.0,
    (Kind.INTERACTIVE, Phase.DECODE): 2.0,
    (Kind.AUTONOMOUS, Phase.IDLE): 0.0,
    (Kind.AUTONOMOUS, Phase.PREFILL): 0.1,
    (Kind.AUTONOMOUS, Phase.DECODE): 0.1,
}
"""What a second of pause is to whoever attends: a word that breaks off, a cursor that stops, nothing."""
COST_PER_GIB = 0.1
"""Of bytes that are still to be moved. Higher: large states stay longer. Lower: a drain fills the link."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Standing:
    """One session at its owner."""

    kind: Kind
    phase: Phase
    bytes_left: int
    """Of KV pages that its target does not have yet."""
    stop_s: float
    """Seconds without a token that the move will cost."""
    worth: float
    """`worth` of its value curve at its present length."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, and both sides of the scale: `surplus` orders the moves, the highest first."""

    verdict: Verdict
    cost: float
    gain: float

    @property
    def surplus(self) -> float:
        """What the move is worth beyond its cost."""
        return self.gain - self.cost


def worth(curve: Value, tokens: int) -> float:
    """What the state is worth after so many tokens, in the agent's unit; never below 0."""
    return max(0.0, curve.start + curve.per_token * tokens)


def decide(of: Standing, urgency: Urgency) -> Decision:
    """Weigh one session."""
    assert of.bytes_left >= 0
    assert of.stop_s >= 0
    cost, gain = _cost(of, of.phase), of.worth * STAKE_S.get(urgency, STAKE_S[Urgency.DRAIN])
    if urgency is Urgency.MUST or cost <= gain:
        return Decision(Verdict.MOVE, cost, gain)
    later = of.phase is not Phase.IDLE and _cost(of, Phase.IDLE) <= gain
    return Decision(Verdict.WAIT if later else Verdict.STAY, cost, gain)


def _cost(of: Standing, phase: Phase) -> float:
    return of.worth * of.stop_s * PAUSE_WEIGHT[of.kind, phase] + COST_PER_GIB * of.bytes_left / GIB
