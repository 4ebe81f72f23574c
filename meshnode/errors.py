"""Whose fault is it?

    MeshError
     +- PeerError      a stranger's bytes or behaviour: count it, drop it, go on
     |   +- Unreachable    no link to that peer now
     +- StoreError     the disk's: a file that is torn, foreign or full
     +- EngineError    the model's: unknown architecture, context overflow, NaN
     +- ConfigError    the operator's: carries a hint that says what to type
     +- ManifestError  the agent's: every reason at once, never the first only
     +- Refused        an answer with a SIP-like status: what the caller sees

Our own fault is AssertionError: it is not in this tree, nobody catches it, the process ends.
"""

from __future__ import annotations

from collections.abc import Sequence


class MeshError(Exception):
    """Anything that is not our own bug."""


class PeerError(MeshError):
    """A peer sent something that it must not send. It changes nothing here but a counter."""


class Unreachable(PeerError):
    """No link to the peer, and none could be made now."""


class StoreError(MeshError):
    """The disk refused, or holds what it must not hold."""


class EngineError(MeshError):
    """The model cannot do what was asked. Says which limit, and what would fit."""


class ConfigError(MeshError):
    """The operator's mistake, in one sentence, with what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}. {hint}" if hint else message)
        self.message = message
        self.hint = hint


class ManifestError(MeshError):
    """An invalid manifest: all reasons, each naming its field."""

    def __init__(self, reasons: Sequence[str]) -> None:
        assert reasons
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


class Refused(MeshError):
    """A request that was answered with no. `status` follows SIP (RFC 3261, section 21)."""

    def __init__(self, status: int, reasons: Sequence[str]) -> None:
        assert reasons
        super().__init__(f"{status}: " + "; ".join(reasons))
        self.status = status
        self.reasons = tuple(reasons)
