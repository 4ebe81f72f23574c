"""What is said about weights, on the signalling lane; the weights themselves are frames.py's. Wire numbers 80 to 89."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from meshnode.ids import Digest
from meshnode.wire import schema
from meshnode.wire.schema import Max

Name = Annotated[str, Max(128)]
Index = Annotated[int, Max((1 << 31) - 1)]


@dataclass(frozen=True, slots=True)
class Shelved:
    """A model that a node has. The name is the node's own; the digest tells."""

    name: Name
    digest: Digest
    disk_bytes: int


@schema.message(80)
@dataclass(frozen=True, slots=True)
class AskShelf:
    """Which models do you share?"""


@schema.message(81)
@dataclass(frozen=True, slots=True)
class Shelf:
    """All of them: whole, converted, ready to be read."""

    models: Annotated[tuple[Shelved, ...], Max(64)]


@schema.message(82)
@dataclass(frozen=True, slots=True)
class AskListing:
    """Send me the listing of this model."""

    digest: Digest


@schema.message(83)
@dataclass(frozen=True, slots=True)
class AskChunk:
    """Send me this chunk. Answered when the owner's limit allows, by a frame on the bulk lane or by Lack."""

    digest: Digest
    index: Index


@schema.message(84)
@dataclass(frozen=True, slots=True)
class Lack:
    """That model is not shared here, or not any more."""

    digest: Digest
