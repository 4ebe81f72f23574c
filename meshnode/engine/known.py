"""A known answer: what the exact classes compute on fixed numbers, on every machine of the class.

The idea: whoever says `w8/2` in an advert has just computed it. When an engine is opened, a small model with fixed
weights runs through the very library that will serve, in every path that a pass can take, and the digest of its logits
must be the one written here. A compiler that contracts or reorders, a processor with a fault, or a change of the
arithmetic without a new version is found before the first session is.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from meshnode import errors
from meshnode.engine import exact, pages, tiles, weights

ANSWERS = {"w8": "d668455caa1236c6", "i8": "aceb6fcec572a1d4"}
"""Of exact.VERSION. tests/engine/test_native.py computes them with every variant that the machine can run."""

_SHAPE = weights.Shape(
    layers=2,
    hidden=48,
    heads=4,
    kv_heads=2,
    head_dim=24,
    ffn=40,
    vocabulary=70,
    context_tokens_max=640,
    rope_theta=10000.0,
    rms_eps=1e-5,
    eos=(0,),
    tied=False,
    qkv_bias=True,
    qk_norm=True,
    window_tokens=290,
)


def check(numeric_class: str, variant: str = "") -> None:
    """Raises EngineError if this machine gives other bits than the class has."""
    found = answer(numeric_class, variant)
    if found != ANSWERS[numeric_class]:
        raise errors.EngineError(
            f"this machine's {numeric_class} differs from that of other machines ({found}): use numeric class f32"
        )


def answer(numeric_class: str, variant: str = "", threads: int = 1) -> str:
    """Sixteen hex digits of the logits of prefills, of lone rows and of both together."""
    model = exact.Llama(
        _SHAPE,
        tiles.pack(_SHAPE, _weights()),
        1 << 21,
        planes=exact.PLANES[numeric_class],
        threads=threads,
        rows_max=320,
        variant=variant,
    )
    long, short = tuple(range(20)), tuple(range(30, 32))
    first = pages.Segment(0, _tokens(300), 0, long)
    then = [
        pages.Segment(0, _tokens(1), 300, long),
        pages.Segment(1, _tokens(37), 0, short),
        pages.Segment(38, _tokens(3), 301, long),
    ]
    state = hashlib.blake2b(digest_size=8)
    for segments, wanted in (([first], [0, 299]), (then, range(41))):
        state.update(np.ascontiguousarray(model.forward(segments, list(wanted)), "<f4").tobytes())
    model.close()
    return state.hexdigest()


def _tokens(count: int) -> tuple[int, ...]:
    return tuple(index * 31 % _SHAPE.vocabulary for index in range(count))


def _weights() -> weights.Weights:
    """Numbers from products of integers: no generator whose stream a new version could change."""
    of, seed = _SHAPE, iter(range(1000))
    q_rows, kv_rows = of.heads * of.head_dim, of.kv_heads * of.head_dim

    def numbers(count: int) -> torch.Tensor:
        mixed = (np.arange(count, dtype=np.int64) * 2654435761 + next(seed) * 40503) % 65521
        return torch.from_numpy((mixed / 32768 - 1).astype(np.float32))

    def matrix(rows: int, columns: int) -> weights.Matrix:
        level = (numbers(rows * columns) * 127).round().to(torch.int8).view(rows, columns)
        return weights.Matrix(level.t(), (numbers(rows) + 2) * (1 / 128 / columns**0.5))

    layers = tuple(
        weights.Layer(
            qkv=matrix(q_rows + 2 * kv_rows, of.hidden),
            out=matrix(of.hidden, q_rows),
            gate_up=matrix(2 * of.ffn, of.hidden),
            down=matrix(of.hidden, of.ffn),
            bias=numbers(q_rows + 2 * kv_rows),
            gain=numbers((of.heads + of.kv_heads) * of.head_dim).view(-1, of.head_dim),
        )
        for _ in range(of.layers)
    )
    return weights.Weights(
        layers, numbers(of.hidden), matrix(of.vocabulary, of.hidden), matrix(of.vocabulary, of.hidden)
    )
