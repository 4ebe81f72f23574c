"""Weights of the exact classes: int8 in the order in which the kernels read them, and the file that keeps them so.

The idea: rounding and packing a model takes seconds and twice its memory, so it is done once, and the result is kept
beside the weights: a later start reads it into its place, matrix by matrix. The file is derived: it may be deleted, and
is made anew if its tag is not that of the weights. Arrays lie in huge pages where the kernel grants them.

Rejected: packing at conversion (`models` must not know what the engine computes with), and mapping the file (its pages
are the first that a machine under memory pressure takes away, and then a token waits for the disk).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from meshnode import errors
from meshnode.engine import weights
from meshnode.engine.native import library

_FILE = "packed-tiles.safetensors"
_FORMAT = "1"
_TILE, _DEEP = 32, 64
_IN_MAX = 65536
"""Inputs of one sum: more could overflow 32 bits (255 * 127 * inputs)."""
_HUGE_BYTES = 2 << 20

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Tiles:
    """A matrix as native/products.h has it; `in` is padded to 64, `out` to 32, with zeros."""

    data: Array  # int8 [out / 32][in / 4][32][4], flat
    scales: Array  # float32 [out]
    offsets: Array  # int32 [out], 128 * sum of a column's weights

    @property
    def in_padded(self) -> int:
        return int(self.data.size // self.scales.size)

    def struct(self) -> library.Matrix:
        """Points into the arrays: keep this object as long."""
        pointers = (one.ctypes.data for one in (self.data, self.scales, self.offsets))
        return library.Matrix(*pointers, self.in_padded, self.scales.size)


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Tiles
    out: Tiles
    gate_up: Tiles
    """Sixteen columns of gate, sixteen of up, and so on: what is multiplied lies in one tile."""
    down: Tiles
    bias: Array | None
    gain: Array | None


@dataclass(frozen=True, slots=True)
class Packed:
    layers: tuple[Layer, ...]
    norm: Array  # float32 [hidden], padded to 64
    embedding: Tiles
    head: Tiles


def load(folder: Path) -> Packed:
    """From a converted model's folder, packed now if it never was. Raises StoreError, ConfigError."""
    of, source, kept = weights.shape(folder), folder / "weights.safetensors", folder / _FILE
    tag = f"{_FORMAT}:{source.stat().st_size}:{source.stat().st_mtime_ns}"
    try:
        return _read(of, kept, tag)
    except (OSError, LookupError, ValueError, safetensors.SafetensorError):
        packed = pack(of, weights.load(folder, "int8"))
    _write(kept, packed, tag)
    return packed


def pack(of: weights.Shape, loaded: weights.Weights) -> Packed:
    """From int8 matrices with scales."""
    gated = _gated(of.ffn)
    layers = tuple(
        Layer(
            _packed(layer.qkv),
            _packed(layer.out),
            _packed(layer.gate_up, gated),
            _packed(layer.down),
            _numbers(layer.bias),
            _numbers(layer.gain),
        )
        for layer in loaded.layers
    )
    norm = np.zeros(_padded(of.hidden, _DEEP), np.float32)
    norm[: of.hidden] = loaded.norm.numpy()
    embedding = _packed(loaded.embedding)
    return Packed(layers, norm, embedding, embedding if of.tied else _packed(loaded.head))


def memory(byte_count: int) -> Array:
    """Zeros, touched when they are written; in huge pages where the kernel grants them."""
    held = mmap.mmap(-1, max(byte_count, 1))
    if byte_count >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        held.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(held, np.uint8)[:byte_count]


def _packed(of: weights.Matrix, order: Array | None = None) -> Tiles:
    """`order` names the column at each place, -1 for none."""
    assert of.scale is not None
    rows, scale = of.turned.t().contiguous().numpy(), of.scale.numpy()  # [out, in], [out]
    if rows.shape[1] > _IN_MAX:
        raise errors.ConfigError(f"{rows.shape[1]} inputs overflow a sum of the exact classes", hint="serve class f32")
    if order is not None:
        rows = np.where((order >= 0)[:, None], rows[order], np.int8(0))
        scale = np.where(order >= 0, scale[order], np.float32(0))
    count, width = rows.shape
    in_padded, out_padded = _padded(width, _DEEP), _padded(count, _TILE)
    data, rows = memory(in_padded * out_padded), np.ascontiguousarray(rows)
    library.load().meshnode_pack(rows.ctypes.data, count, width, data.ctypes.data, in_padded)
    scales, offsets = np.zeros(out_padded, np.float32), np.zeros(out_padded, np.int32)
    scales[:count], offsets[:count] = scale, 128 * rows.sum(1, dtype=np.int32)
    return Tiles(data, scales, offsets)


def _gated(ffn: int) -> Array:
    padded = _padded(ffn, 16)
    gate = np.where(np.arange(padded) < ffn, np.arange(padded), -1).reshape(-1, 16)
    return np.concatenate([gate, np.where(gate >= 0, gate + ffn, -1)], axis=1).ravel()


def _numbers(of: torch.Tensor | None) -> Array | None:
    return None if of is None else np.ascontiguousarray(of.float().numpy())


def _padded(number: int, to: int) -> int:
    return -(-number // to) * to


# -------------------------------------------------------------------------------------------------------------- file

_MATRICES = ("qkv", "out", "gate_up", "down")
_VECTORS = ("bias", "gain")


def _flat(packed: Packed) -> Iterator[tuple[str, Array]]:
    yield "norm", packed.norm
    yield from _parts("embedding", packed.embedding)
    if packed.head is not packed.embedding:
        yield from _parts("head", packed.head)
    for number, layer in enumerate(packed.layers):
        for name in _MATRICES:
            yield from _parts(f"{number}.{name}", getattr(layer, name))
        for name in _VECTORS:
            if getattr(layer, name) is not None:
                yield f"{number}.{name}", getattr(layer, name)


def _parts(name: str, of: Tiles) -> Iterator[tuple[str, Array]]:
    yield name, of.data
    yield f"{name}.scales", of.scales
    yield f"{name}.offsets", of.offsets


def _read(of: weights.Shape, path: Path, tag: str) -> Packed:
    """Each array into memory of its own; nothing of the file is held twice but the array under way."""
    with safetensors.safe_open(path, "np") as file:
        if (file.metadata() or {}).get("tag") != tag:
            raise LookupError("packed from other weights, or by another version")
        names = set(file.keys())

        def tiles(name: str) -> Tiles:
            found = file.get_tensor(name)
            data = memory(found.size)
            data[:] = found
            return Tiles(data, file.get_tensor(f"{name}.scales"), file.get_tensor(f"{name}.offsets"))

        def vector(name: str) -> Array | None:
            return file.get_tensor(name) if name in names else None

        def layer(number: int) -> Layer:
            qkv, out, gate_up, down = (tiles(f"{number}.{name}") for name in _MATRICES)
            bias, gain = (vector(f"{number}.{name}") for name in _VECTORS)
            return Layer(qkv, out, gate_up, down, bias, gain)

        layers = tuple(layer(number) for number in range(of.layers))
        embedding = tiles("embedding")
        return Packed(layers, file.get_tensor("norm"), embedding, embedding if of.tied else tiles("head"))


def _write(path: Path, packed: Packed, tag: str) -> None:
    """Written by the side and renamed. Containers share the folder, and are process 1 each: the name is random."""
    fresh = path.with_suffix(f".{os.urandom(4).hex()}.new")
    try:
        safetensors.numpy.save_file(dict(_flat(packed)), fresh, metadata={"tag": tag})
        fresh.rename(path)
    except (OSError, safetensors.SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise errors.StoreError(f"{path.name} could not be written: {error}") from None
