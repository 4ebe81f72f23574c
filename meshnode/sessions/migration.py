"""A planned move, seen from the owner that leaves: copy ahead, have the target load, stop, hand over.

The owner goes on decoding through all of it but the last instant (pre-copy, as live migration of machines has it: Clark
et al., NSDI 2005). A round brings over the pages that were full when it began; what filled meanwhile is the next
round's. When little is left, or the rounds run out, the target loads and follows the log, and only when it is a few
tokens behind does the owner stop. So the pause does not grow with the context.

Pages are a cache of the log: a target that got none computes them itself, before the stop, and the move only takes
longer. That is why nothing here can fail for want of a page.

Nothing here is durable, and nothing is a safety rule: the target becomes owner by the ordinary prepare, or not at all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from meshnode.ids import PeerId

ROUNDS_MAX = 4
"""Of pre-copy. More: less is left for the target to compute. Fewer: a move comes sooner to its end."""
LEFT_BYTES_MAX = 2 << 20
"""What may be left to copy when the target loads. More: it computes more itself. One page may always be left."""
LAG_TOKENS_MAX = 1
"""How far behind the log a target that is ready may be. It computes them with its first token, in one pass, which takes
as long as a step for 2 tokens and half as long again for 3 to 8 (SmolLM2-135M, w8). More: a longer pause. 0: a target
is never ready, since the owner is drawing."""
NEAR_TOKENS_MAX = 64
"""A target that is slower than the owner never gets so near. After a stall this is near enough: it moves, with a longer
pause. More: a longer pause. Fewer: nothing moves to slower machines."""
LAG_ENTRIES_MAX = 8
"""Entries that the owner may have written since the target said that it is ready, and for which the target waits with
an idle engine: a pass that it began now would be under way when the owner stops."""
STALL_S = 10.0
"""A copy or a load that did not get on for so long has stalled: loading starts, or the move is called off."""
REQUEST_S = 0.5
"""Between requests to a target that loads; it forgets the move if it hears none for KEEP_S."""
KEEP_S = 5.0
"""Must exceed 2 * REQUEST_S: one lost request must not unload what was loaded."""


class Stage(enum.Enum):
    """COPYING -> LOADING -> STOPPING -> (handed over, or called off)."""

    COPYING = "copying"
    LOADING = "loading"
    STOPPING = "stopping"


class Act(enum.Enum):
    """What the owner has to do now."""

    REQUEST = "request"
    STOP = "stop"
    REFER = "refer"
    CALL_OFF = "call off"


@dataclass(frozen=True, slots=True)
class Progress:
    """What the owner knows of itself and of its target."""

    sealed: int
    """Pages that are full."""
    acked: int
    """Of these, stored at the target."""
    page_bytes: int
    prefilling: bool
    """The owner computes a context itself, and fills pages faster than it will in decoding."""
    busy: bool
    """A step is under way."""
    leased: bool
    """A majority answered lately. Without one there is nothing to hand over with."""
    last: int
    """Seq of the last entry."""

    @property
    def bytes_left(self) -> int:
        """Of pages, still to be copied."""
        return (self.sealed - self.acked) * self.page_bytes


class Leaving:
    """One move of one session. `refusal` says why it was called off."""

    def __init__(self, target: PeerId, now: float, *, stop_first: bool = False) -> None:
        self.target = target
        self.stop_first = stop_first
        """Stop before the target loads: what a move would cost without make before break (bench/migrate.py)."""
        self.stage = Stage.COPYING
        self.rounds = 0
        self.refusal = ""
        self.began_at = now
        self._goal = -1
        """Pages that this round brings over."""
        self._acked = 0
        self._behind = self._nearest = 1 << 60
        """Tokens that the target lacked when it last said so, and at best."""
        self._ready_at = -1
        """Up to which seq the target has loaded; -1 before it is ready."""
        self._stalled_at = now + STALL_S
        self._request_at = float("inf")

    @property
    def deadline(self) -> float:
        """When time alone makes something due."""
        return min(self._stalled_at, self._request_at)

    def on_ready(self, now: float, seq: int, behind: int, refusal: str) -> None:
        """The target says how far it is, or why it will not."""
        if refusal:
            self.refusal = refusal
        self._behind = behind
        if behind < self._nearest:
            self._nearest, self._stalled_at = behind, now + STALL_S
        self._ready_at = seq if behind <= LAG_TOKENS_MAX else -1

    def go_on(self, now: float, progress: Progress) -> Act | None:
        """The next thing to do, if there is one."""
        if self.refusal:
            return Act.CALL_OFF
        match self.stage:
            case Stage.COPYING:
                return self._copy(now, progress)
            case Stage.LOADING:
                return self._load(now, progress)
            case Stage.STOPPING:
                return self._stop(now, progress)

    def _copy(self, now: float, progress: Progress) -> Act | None:
        if progress.acked > self._acked or progress.prefilling:
            self._acked, self._stalled_at = progress.acked, now + STALL_S
        if progress.acked >= self._goal:
            self.rounds += self._goal >= 0
            self._goal = progress.sealed
        little = progress.bytes_left <= max(LEFT_BYTES_MAX, progress.page_bytes) and not progress.prefilling
        if not little and self.rounds < ROUNDS_MAX and now < self._stalled_at:
            return None
        self.stage = Stage.LOADING
        self._stalled_at, self._request_at = now + STALL_S, now + REQUEST_S
        if self.stop_first:
            self._request_at = now
            return Act.STOP
        return Act.REQUEST

    def _load(self, now: float, progress: Progress) -> Act | None:
        near = self._ready_at >= 0 and progress.last - self._ready_at <= LAG_ENTRIES_MAX
        near = near or (now >= self._stalled_at and self._behind <= NEAR_TOKENS_MAX)
        if near and progress.leased:
            self.stage, self._request_at = Stage.STOPPING, float("inf")
            self._stalled_at = now + STALL_S
            return Act.STOP
        if now >= self._stalled_at:
            self.refusal = "the target did not get ready"
            return Act.CALL_OFF
        if now < self._request_at:
            return None
        self._request_at = now + REQUEST_S
        return Act.REQUEST

    def _stop(self, now: float, progress: Progress) -> Act | None:
        if not progress.busy and progress.leased:
            return Act.REFER
        if progress.leased and now < self._stalled_at:
            return None
        self.refusal = "the engine did not stop" if progress.leased else "the majority is gone"
        return Act.CALL_OFF
