"""Messages that only tests speak: one field of each type that the wire knows."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

from meshnode.ids import Digest, PeerId, RequestId, SessionId
from meshnode.wire import schema
from meshnode.wire.schema import Max

EVERYTHING = 9_000_001
SMALL = 9_000_002


class Colour(enum.IntEnum):
    RED = 1
    BLUE = 2


class Shape(enum.Enum):
    ROUND = "round"
    FLAT = "flat"


@dataclass(frozen=True, slots=True)
class Inner:
    count: Annotated[int, Max(10)]
    label: Annotated[str, Max(4)]

    def __post_init__(self) -> None:
        if self.label == "bad":
            raise ValueError("a label that its own class refuses")


@schema.message(SMALL)
@dataclass(frozen=True, slots=True)
class Small:
    count: int


@schema.message(EVERYTHING)
@dataclass(frozen=True, slots=True)
class Everything:
    peer: PeerId
    session: SessionId
    request: RequestId
    digest: Digest
    count: int
    ratio: float
    yes: bool
    text: str
    blob: bytes
    colour: Colour
    shape: Shape
    inner: Inner
    few: Annotated[tuple[Annotated[bytes, Max(2)], ...], Max(3)]
    many: tuple[Inner, ...]
    perhaps: Annotated[int, Max(5)] | None
