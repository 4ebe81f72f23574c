"""Writing the weights' file: a tensor at a time, whatever the size of the model.

The bytes are those that safetensors' own writer gives for the same tensors (the test holds it to that), which wants
all of them in memory at once: the widest kind first, then by name, so that every tensor is aligned.

Refused: a number that is not finite, in whichever tensor. It would be found as a dropped session at the earliest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshnode import errors
from meshnode.models import headers

CHUNK_BYTES = 1 << 22
_INFINITE = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""The bits of the exponent: all set in what is not finite, and in nothing else."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor to be written."""

    kind: str
    shape: tuple[int, ...]
    read: Callable[[], Iterable[bytes]]
    """Its bytes in chunks of whole numbers, row by row."""


def write(path: Path, parts: Mapping[str, Part]) -> None:
    """Raises EngineError for numbers that are not finite, OSError as the disk does."""
    names = sorted(parts, key=lambda name: (-headers.SAFETENSORS_BYTES[parts[name].kind], name))
    header, at = {}, 0
    for name in names:
        one = parts[name]
        stop = at + headers.SAFETENSORS_BYTES[one.kind] * int(np.prod(one.shape, dtype=np.int64))
        header[name] = {"dtype": one.kind, "shape": list(one.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for chunk in parts[name].read():
                if not finite(chunk, parts[name].kind):
                    raise errors.EngineError(f"{name} holds numbers that are not finite")
                file.write(chunk)
        assert file.tell() == 8 + len(text) + at, "a part gave other bytes than it said"


def finite(chunk: bytes, kind: str) -> bool:
    number, mask = _INFINITE[kind]
    return not np.any((np.frombuffer(chunk, number) & mask) == mask)
