"""Sessions driven straight through a model's passes, over the pages of a shuffled pool."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch

from meshnode.engine import kv, model, pages, passes, weights
from tests.engine import tiny


def made(
    numeric_class: str,
    device: str = "cpu",
    *,
    of: weights.Shape = tiny.SHAPE,
    loaded: weights.Weights | None = None,
    fixed_steps: bool | None = None,
    recorder: passes.Recorder | None = None,
    memory_bytes: int = tiny.MEMORY_BYTES,
) -> Passing:
    dtype = model.DTYPES[numeric_class]
    pool = kv.Pool(of.layers, of.kv_heads, of.head_dim, dtype, memory_bytes, device)
    loaded = loaded or weights.assemble(of, tiny.named(of), exact=True, dtype=dtype)
    return Passing(model.Llama(of, loaded, pool, fixed_steps=fixed_steps, recorder=recorder), pool)


class Passing:
    """Names are the tests' own; a session begins when it is first fed."""

    def __init__(self, llama: model.Llama, pool: kv.Pool) -> None:
        self.llama, self.pool = llama, pool
        self.free = list(range(pool.page_count))
        random.Random(5).shuffle(self.free)
        self.held: dict[str, list[int]] = {}
        self.length: dict[str, int] = {}

    def room(self, name: str, token_count: int) -> list[int]:
        """The session's pages, so many as `token_count` need."""
        held = self.held.setdefault(name, [])
        while len(held) < pages.pages_for(token_count):
            held.append(self.free.pop())
        return held[: pages.pages_for(token_count)]

    def feed(self, feeds: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """One pass over what each session is fed; the logits after each one's last token."""
        segments, wanted = [], []
        for name, tokens in feeds.items():
            position = self.length.get(name, 0)
            self.length[name] = position + len(tokens)
            row = sum(len(one.tokens) for one in segments)
            segments.append(pages.Segment(row, tokens, position, tuple(self.room(name, self.length[name]))))
            wanted.append(row + len(tokens) - 1)
        return dict(zip(feeds, self.llama.forward(segments, wanted), strict=True))
