"""The exact classes, `w8` and `i8`: a Llama whose forward pass is one call into the kernels of `native/`.

The idea: weights are int8, each row of activations is rounded to 16 bits (w8) or 8 (i8), and products are sums of
integers, which have no order. What is not an integer (norms, rope, softmax, silu) is written once, in operations that
IEEE 754 fixes, each with one order of summation. So the bits of a row are a function of its context: not of its
neighbours, its chunk, the thread, the number of threads, nor of the instruction set. A numeric class is a recipe and a
version, `w8/2`, and two machines of different makes are in the same one.

The pool is laid out for the kernels (native/attention.h); `export` and `restore` speak the wire's order. The call runs
without the interpreter's lock, so the event loop lives while all cores compute.

Rejected: the same in torch operations (a step of sixty
calls a layer cost more in calls than in products, and bf16 products are in another class on each instruction set).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from meshnode import errors
from meshnode.engine import pages, rope, tiles, weights
from meshnode.engine.native import library

VERSION = 2
"""Of the arithmetic: whatever changes a bit of a logit raises it. tests/engine/test_native.py pins the bits."""
PLANES = {"w8": 2, "i8": 1}

Array = np.ndarray[Any, Any]


class Pool:
    """KV pages as the kernels want them. A page is 32 tokens of one session, in all layers."""

    def __init__(self, of: weights.Shape, memory_bytes: int) -> None:
        self._wire_shape = (of.layers, 2, pages.PAGE_TOKENS, of.kv_heads, of.head_dim)
        self.page_bytes = 2 * int(np.prod(self._wire_shape))
        numbers = of.layers * of.kv_heads * pages.PAGE_TOKENS * (of.head_dim + _padded(of.head_dim, 32))
        self.page_count = memory_bytes // (2 * numbers)
        if self.page_count < 1:
            raise errors.ConfigError(
                f"{memory_bytes} bytes of KV memory are too few", hint=f"at least {2 * numbers} are needed"
            )
        self.data = tiles.memory(2 * numbers * self.page_count).view(np.uint16).reshape(self.page_count, numbers)
        self._library = library.load()

    def export(self, page: int) -> bytes:
        """[layer][k|v][slot][head][dim], bfloat16."""
        wire = np.empty(self.page_bytes, np.uint8)
        self._move(page, wire, inwards=False)
        return wire.tobytes()

    def parse(self, data: bytes) -> Array:
        """A page's numbers. Raises EngineError for a wrong size, or numbers that are not finite."""
        if len(data) != self.page_bytes:
            raise errors.EngineError(f"a page has {self.page_bytes} bytes, not {len(data)}")
        found = np.frombuffer(data, np.uint16)
        if ((found & 0x7F80) == 0x7F80).any():
            raise errors.EngineError("a page holds numbers that are not finite")
        return found

    def restore(self, page: int, parsed: Array) -> None:
        wire = np.ascontiguousarray(parsed)
        self._move(page, wire, inwards=True)

    def clear(self, taken: Sequence[int]) -> None:
        """Nothing to do: the kernels read no slot that was not written by the session."""

    def copy(self, source: int, target: int) -> None:
        self.data[target] = self.data[source]

    def _move(self, page: int, wire: Array, *, inwards: bool) -> None:
        layers, _, _, heads, dim = self._wire_shape
        self._library.meshnode_page(layers, heads, dim, self.data[page].ctypes.data, wire.ctypes.data, inwards)


class Llama:
    """Packed weights, a pool, and the threads that run them. Call it from one thread at a time."""

    def __init__(
        self,
        of: weights.Shape,
        packed: tiles.Packed,
        memory_bytes: int,
        *,
        planes: int,
        threads: int,
        rows_max: int,
        variant: str = "",
    ) -> None:
        self.rows_max = rows_max
        self.pool = Pool(of, memory_bytes)
        self._of = of
        self._library = library.load(variant)
        self._model = self._described(of, packed, planes)
        self._engine = self._library.meshnode_open(ctypes.byref(self._model), threads, rows_max, 1)
        if not self._engine:
            raise errors.EngineError(f"no memory or no threads for passes of {rows_max} rows")

    def close(self) -> None:
        """End the threads. Nothing may be called after it."""
        engine, self._engine = self._engine, None
        self._library.meshnode_close(engine)

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self.close()

    def forward(self, segments: Sequence[pages.Segment], wanted: Sequence[int]) -> Array:
        """Write the KV of all rows; float32 logits [wanted row, vocabulary]."""
        rows = sum(len(one.tokens) for one in segments)
        assert 0 < rows <= self.rows_max
        assert all(one.row == row for one, row in zip(segments, _starts(segments), strict=True))
        tokens = np.fromiter((token for one in segments for token in one.tokens), np.int32, rows)
        positions = np.concatenate([np.arange(one.position, one.position + len(one.tokens)) for one in segments])
        positions = positions.astype(np.int32)
        first_row = np.array([*_starts(segments), rows], np.int32)
        first_page = np.cumsum([0, *(len(one.pages) for one in segments)], dtype=np.int32)
        table = np.array([page for one in segments for page in one.pages], np.int32)
        assert positions[-1] < self._of.context_tokens_max
        assert table.max() < self.pool.page_count
        chosen = np.array(wanted, np.int32)
        logits = np.empty((len(wanted), self._of.vocabulary), np.float32)
        arrays = (tokens, positions, first_row, first_page, table, chosen, logits)
        work = library.Pass(rows, len(segments), len(wanted), *(one.ctypes.data for one in arrays))
        if self._library.meshnode_forward(self._engine, ctypes.byref(work)):
            raise errors.EngineError(f"no memory for a pass of {rows} rows")
        return logits

    def _described(self, of: weights.Shape, packed: tiles.Packed, planes: int) -> library.Model:
        layers = (library.Layer * of.layers)()
        for slot, layer in zip(layers, packed.layers, strict=True):
            slot.qkv, slot.out = layer.qkv.struct(), layer.out.struct()
            slot.gate_up, slot.down = layer.gate_up.struct(), layer.down.struct()
            slot.bias = None if layer.bias is None else layer.bias.ctypes.data
            slot.gain = None if layer.gain is None else layer.gain.ctypes.data
        turns = rope.turns(of.head_dim, of.rope_theta, of.rope_divisors, of.rope_amplitude, of.context_tokens_max)
        self._kept = (packed, layers, turns)
        return library.Model(
            of.layers,
            of.hidden,
            of.heads,
            of.kv_heads,
            of.head_dim,
            of.vocabulary,
            of.window_tokens or 0,
            planes,
            of.rms_eps,
            layers,
            packed.embedding.struct(),
            packed.head.struct(),
            packed.norm.ctypes.data,
            turns.ctypes.data,
            self.pool.data.ctypes.data,
        )


def _starts(segments: Sequence[pages.Segment]) -> list[int]:
    starts, row = [], 0
    for one in segments:
        starts.append(row)
        row += len(one.tokens)
    return starts


def _padded(number: int, to: int) -> int:
    return -(-number // to) * to
