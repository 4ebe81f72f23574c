"""Good bytes into almost good bytes: what a plain random string never is.

Without coverage feedback (atheris, AFL) on purpose: our decoders are small and strict, and the seeds reach every branch
already. What it gives up in depth it gives back by running anywhere, from one number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

STEPS_MAX = 4
_HEADS = (
    0x00,
    0x17,
    0x18,
    0x1B,
    0x20,
    0x40,
    0x5F,
    0x60,
    0x7B,
    0x80,
    0x9B,
    0x9F,
    0xA0,
    0xBB,
    0xC2,
    0xF6,
    0xF9,
    0xFB,
    0xFF,
)
_COUNTS = (0, 1, 23, 24, 255, 256, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _head(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice(_HEADS)


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 9))


def _delete(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 9)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = bytes(data[at : at + rng.randrange(1, 33)])


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _claim(data: bytearray, rng: random.Random) -> None:
    """A count of any size in front of whatever follows."""
    at = rng.randrange(len(data))
    data[at : at + 1] = bytes([data[at] & 0xE0 | 27]) + rng.choice(_COUNTS).to_bytes(8, "big")


_STEPS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _head, _insert, _delete, _repeat, _truncate, _claim,
)  # fmt: skip


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the seeds after a few steps; now and then two of them spliced, or the seed itself."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.1:
        other = rng.choice(seeds)
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.randrange(STEPS_MAX + 1)):
        if data:
            rng.choice(_STEPS)(data, rng)
    return bytes(data)
