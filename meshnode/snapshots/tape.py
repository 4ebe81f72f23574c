"""What is on a journal's tape, and a tape in memory: the pure half of `meshnode.journal`, which argues for the format.

The checksum is keyed with the file's salt, and so is the marker that a search for later batches looks for: content that
passes for a batch could otherwise make a torn tail look like rot, and an agent writes content.

Rejected: searching for valid records instead of batches (see there), and trusting a length before its checksum.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from meshnode import errors

MAGIC = b"MNJRNL\x00\x01"
SALT_BYTES = 16
HEADER_BYTES = len(MAGIC) + SALT_BYTES
BATCH_BYTES_MAX = 64 << 20
"""What one batch may hold: a checkpoint of a very long context is a few MiB. A larger length in a file is rot."""
GROUP_BYTES = 8 << 20
"""The writer stops gathering here. Larger: fewer fsyncs under load. Smaller: the first of a group waits less."""

_MARKER_BYTES = 4
_CHECKSUM_BYTES = 8
_LENGTH = struct.Struct(">I")
HEAD = struct.Struct(">4sI8s")

ADVICE = "Move the data folder away and start with an empty one: this node then joins its sessions as a new voter"
"""The whole folder, with the node's identity: one that forgot its promises must not vote under its old name."""


def _marker(salt: bytes) -> bytes:
    return hashlib.blake2b(b"marker", key=salt, digest_size=_MARKER_BYTES).digest()


def _checksum(salt: bytes, body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, key=salt, digest_size=_CHECKSUM_BYTES).digest()


def batch(salt: bytes, records: Sequence[bytes]) -> bytes:
    body = b"".join(part for entry in records for part in (_LENGTH.pack(len(entry)), entry))
    assert 0 < len(body) <= BATCH_BYTES_MAX
    return HEAD.pack(_marker(salt), len(body), _checksum(salt, body)) + body


def body_at(data: bytes, at: int, salt: bytes) -> memoryview | None:
    """The body of a valid batch at `at`, or None."""
    if len(data) - at < HEAD.size:
        return None
    marker, length, checksum = HEAD.unpack_from(data, at)
    body = memoryview(data)[at + HEAD.size : at + HEAD.size + length]
    if marker != _marker(salt) or not 0 < length <= BATCH_BYTES_MAX or len(body) != length:
        return None
    return body if _checksum(salt, body) == checksum else None


def body_bytes(records: Iterable[bytes]) -> int:
    """What they take in a batch, without its head."""
    return sum(_LENGTH.size + len(entry) for entry in records)


def records_of(body: memoryview) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        end = at + _LENGTH.size + _LENGTH.unpack_from(body, at)[0]
        yield bytes(body[at + _LENGTH.size : end])
        at = end


def sound_bytes(data: bytes, salt: bytes, path: str) -> int:
    """Where the valid batches end. Raises StoreError if there are others after that: those were durable once."""
    at = HEADER_BYTES
    while (body := body_at(data, at, salt)) is not None:
        at += HEAD.size + len(body)
    later = at
    while (later := data.find(_marker(salt), later + 1)) >= 0:
        if body_at(data, later, salt) is not None:
            raise errors.StoreError(f"{path} is damaged at byte {at}, before records that are sound. {ADVICE}")
    return at


def grouped(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Batches of about GROUP_BYTES."""
    group: list[bytes] = []
    group_bytes = 0
    for entry in records:
        group.append(entry)
        group_bytes += _LENGTH.size + len(entry)
        if group_bytes >= GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
    if group:
        yield group


class Tape(Protocol):
    """What a journal asks of its file. Everything raises StoreError."""

    path: str
    blocking: bool
    """Whether these calls wait for a disk and belong into a thread."""

    def read(self) -> bytes | None:
        """All of it; None if there is none yet."""

    def append(self, data: bytes) -> None:
        """At the end, and durable on return."""

    def replace(self, data: Iterable[bytes]) -> None:
        """New content, durable on return; a crash before that leaves the old one."""

    def close(self) -> None: ...


class MemoryTape:
    """A tape that fails at its `fail_at`-th step, and forgets in `crash` what was not synced."""

    blocking = False
    path = "journal in memory"

    def __init__(self) -> None:
        self.fail_at = 0
        """Counted from 1; 0 for none. A write and its sync are two steps."""
        self.step_count = 0
        self._pieces: list[bytes] | None = None  # what a reader sees; None: no such file
        self._durable: list[bytes] | None = None  # what a crash keeps

    def read(self) -> bytes | None:
        return None if self._pieces is None else b"".join(self._pieces)

    def append(self, data: bytes) -> None:
        assert self._pieces is not None
        assert self._durable is not None
        self._step()
        self._pieces.append(data)
        self._step()
        self._durable.append(data)

    def replace(self, data: Iterable[bytes]) -> None:
        pieces = list(data)
        self._step()
        self._pieces = pieces
        self._step()
        self._durable = pieces.copy()

    def close(self) -> None:
        pass

    def crash(self, rng: random.Random | None = None) -> None:
        """The power fails. Without dice nothing survives that was not synced; with dice any part of it may."""
        self.fail_at = 0
        new = self.read()
        old = None if self._durable is None else b"".join(self._durable)
        if rng is not None and new is not None and new != old:
            appended = old is not None and new.startswith(old)
            old = new[: rng.randint(len(old or b""), len(new))] if appended else rng.choice((old, new))
        self._pieces = None if old is None else [old]
        self._durable = None if old is None else [old]

    def _step(self) -> None:
        self.step_count += 1
        if self.step_count == self.fail_at:
            raise errors.StoreError(f"cannot write {self.path}: injected fault")
