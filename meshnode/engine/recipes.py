"""Numeric classes: which model class computes a recipe, on what, and how the class is called.

| class | weights | activations | KV | runs on |
|---|---|---|---|---|
| `w8` | int8, a scale a row | 16 bits, a scale a row | bfloat16 | any CPU (exact.py): the same bits on all of them |
| `i8` | int8, a scale a row | 8 bits, a scale a row | bfloat16 | the same |
| `f32` | float32 | float32 | float32 | CPU or GPU (model.py): the reference, no promise about bits |
| `bf16` | bfloat16 | bfloat16, sums float32 | bfloat16 | the same |

A class's full name says what its bits depend on: `w8/2` is a version of our arithmetic, `bf16/2.13.0/cuda-sm90` a
version of torch and a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from meshnode import errors
from meshnode.engine import exact, known, kv, memory, model, pages, tiles, weights

NAMES = (*exact.PLANES, *model.DTYPES)
DEFAULT = "w8"


class Forward(Protocol):
    """Rows in, logits out."""

    def forward(self, segments: Sequence[pages.Segment], wanted: Sequence[int]) -> Any:
        """Write the KV of all rows of a pass; float32 logits [wanted row, vocabulary], in the host's memory."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model in memory, of one numeric class."""

    shape: weights.Shape
    numeric_class: str
    """In full."""
    model: Forward
    pool: memory.Pool


def load(folder: Path, numeric_class: str, memory_bytes: int, *, threads: int, rows_max: int) -> Recipe:
    """From a converted model's folder; an exact class first proves that this machine computes it.

    `memory_bytes` is for KV, `rows_max` the longest pass. Raises ConfigError, StoreError, EngineError.
    """
    if numeric_class not in NAMES:
        raise errors.ConfigError(f"no numeric class {numeric_class!r}", hint=f"known: {', '.join(NAMES)}")
    of = weights.shape(folder)
    if numeric_class in exact.PLANES:
        known.check(numeric_class)
        return of_tiles(of, tiles.load(folder), numeric_class, memory_bytes, threads=threads, rows_max=rows_max)
    return _torch(of, weights.load(folder, numeric_class), numeric_class, memory_bytes, threads=threads)


def assembled(
    of: weights.Shape,
    loaded: weights.Weights,
    numeric_class: str,
    memory_bytes: int,
    *,
    threads: int = 1,
    rows_max: int = 256,
) -> Recipe:
    """The same from matrices in memory: int8 ones for an exact class."""
    if numeric_class in exact.PLANES:
        packed = tiles.pack(of, loaded)
        return of_tiles(of, packed, numeric_class, memory_bytes, threads=threads, rows_max=rows_max)
    return _torch(of, loaded, numeric_class, memory_bytes, threads=threads)


def of_tiles(
    of: weights.Shape,
    packed: tiles.Packed,
    name: str,
    memory_bytes: int,
    *,
    threads: int,
    rows_max: int,
    variant: str = "",
) -> Recipe:
    """An exact class over weights that are packed already; several may share them. `variant` names the kernels."""
    llama = exact.Llama(
        of,
        packed,
        memory_bytes,
        planes=exact.PLANES[name],
        threads=threads,
        rows_max=rows_max,
        variant=variant,
    )
    return Recipe(of, f"{name}/{exact.VERSION}", llama, llama.pool)


def _torch(of: weights.Shape, loaded: weights.Weights, name: str, memory_bytes: int, *, threads: int) -> Recipe:
    torch.set_num_threads(threads)
    device = model.best_device()
    pool = kv.Pool(of.layers, of.kv_heads, of.head_dim, model.DTYPES[name], memory_bytes, device)
    version = torch.__version__.split("+")[0]
    return Recipe(of, f"{name}/{version}/{model.device_name(device)}", _Arrays(model.Llama(of, loaded, pool)), pool)


class _Arrays:
    """Torch's logits as an array: the sampler is of numpy."""

    def __init__(self, inner: model.Llama) -> None:
        self.inner = inner

    def forward(self, segments: Sequence[pages.Segment], wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = self.inner.forward(segments, wanted).numpy()
        return logits
