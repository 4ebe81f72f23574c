"""What voters say to each other in a planned move. Wire numbers 54 to 56."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from meshnode.ids import SessionId
from meshnode.sessions.messages import Epoch, Seq
from meshnode.wire import schema
from meshnode.wire.schema import Max


@schema.message(54)
@dataclass(frozen=True, slots=True)
class HandoverRequest:
    """The owner asks a replica to load the session and to keep up with its log. Repeated while the owner wants it."""

    session: SessionId
    epoch: Epoch


@schema.message(55)
@dataclass(frozen=True, slots=True)
class HandoverReady:
    """How far the replica is: its engine lacks `behind` tokens of what its log says up to `seq`."""

    session: SessionId
    epoch: Epoch
    seq: Seq
    behind: Annotated[int, Max(1 << 24)]
    refusal: Annotated[str, Max(256)]
    """Why it will not; empty if it will."""


@schema.message(56)
@dataclass(frozen=True, slots=True)
class Refer:
    """The owner of `epoch` has stopped, and its log ends at `seq`: take the next epoch (SIP REFER with Replaces)."""

    session: SessionId
    epoch: Epoch
    seq: Seq


FromVoter = HandoverRequest | HandoverReady | Refer
