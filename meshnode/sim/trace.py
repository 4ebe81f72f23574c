"""What happened, as a digest that any difference changes, and as lines for people.

The digest takes a few bytes of each step (time, process, kind of event, kinds of effects) and everything that a client
was told: a difference in what is not hashed soon shows in what is, and hashing every field would cost more than the
brains themselves. `exact` hashes every field all the same, for the tests of determinism.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Callable
from typing import Any

from meshnode import machine
from meshnode.machine import Deliver, Note, Received, Send, Tick
from meshnode.wire import schema

_FIELD_CHARS_MAX = 40
_CODES: dict[type, int] = {
    kind: place
    for place, kind in enumerate(
        one for _, one in sorted(vars(machine).items()) if isinstance(one, type) and dataclasses.is_dataclass(one)
    )
}


class Trace:
    """One world's history."""

    def __init__(self, write: Callable[[str], None] | None = None, *, exact: bool = False) -> None:
        self._hash = hashlib.sha256()
        self._write = write
        self._exact = exact
        self.step_count = 0

    def step(self, now_us: int, place: int, event: object, effects: list[Any]) -> None:
        """One step of one brain."""
        self.step_count += 1
        kind = 256 + schema.number_of(event.message) if type(event) is Received else _CODES.get(type(event), 255)
        self._hash.update(b"%d %d %d " % (now_us, place, kind) + bytes([_CODES[type(one)] for one in effects]))
        if self._exact:
            self._hash.update(repr((event, effects)).encode())
        if self._write is not None and not (type(event) is Tick and not effects):
            said = "".join(f"\n            -> {words(one)}" for one in effects)
            self._write(f"{now_us / 1e6:10.6f} {place} {words(event)}{said}")

    def told(self, now_us: int, place: int, item: Deliver) -> None:
        """What a client was told."""
        self._hash.update(repr((now_us, place, item)).encode())

    def say(self, now_us: int, what: str) -> None:
        """Something that the world did."""
        self._hash.update(b"%d " % now_us + what.encode())
        if self._write is not None:
            self._write(f"{now_us / 1e6:10.6f} * {what}")

    def note(self, now_us: int, place: int, note: Note) -> None:
        """A milestone."""
        if self._write is not None:
            self._write(f"{now_us / 1e6:10.6f} {place} note: {note.what} {note.detail}")

    @property
    def digest(self) -> str:
        """Of all so far."""
        return self._hash.hexdigest()[:32]


def words(value: Any) -> str:
    """A value in a line: names and numbers, long fields cut."""
    if type(value) is Received:
        return f"< {short(value.peer)} {words(value.message)}"
    if type(value) is Send:
        return f"> {short(value.to)} {words(value.message)}"
    if not dataclasses.is_dataclass(value):
        return short(value)
    parts = (f"{field.name}={short(getattr(value, field.name))}" for field in dataclasses.fields(value))
    return f"{type(value).__name__}({' '.join(parts)})"


def short(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()[:6] + (f"+{len(value)}" if len(value) > 32 else "")
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return f"[{len(value)}]"
    return (words(value) if dataclasses.is_dataclass(value) else str(value))[:_FIELD_CHARS_MAX]
