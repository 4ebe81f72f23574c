"""Journal records: what a voter must find again after a crash, as deterministic CBOR `[kind, fields]`.

Unsigned: the folder belongs to this node alone, and the journal checks its own bytes.
"""

from __future__ import annotations

from meshnode import errors
from meshnode.sessions.messages import Appended, Dropped, Joined, Promised
from meshnode.wire import cbor, schema

Record = Promised | Appended | Dropped | Joined


_ADVICE = "Start the version that wrote it, or move the journal away: its sessions live on at their other voters"


def pack(record: Record) -> bytes:
    """A record's bytes."""
    return cbor.encode([schema.number_of(record), schema.pack(record)])


def unpack(data: bytes) -> Record:
    """The record. Raises StoreError: a journal that passed its checksum and holds something else is foreign."""
    try:
        number, fields = cbor.decode(data)
        record = schema.unpack(number, fields)
    except (errors.PeerError, TypeError, ValueError) as error:
        raise errors.StoreError(
            f"the journal holds a record that this version cannot read ({error}). {_ADVICE}"
        ) from error
    if not isinstance(record, Record):
        raise errors.StoreError(f"the journal holds a {type(record).__name__}")
    return record
