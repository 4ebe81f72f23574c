"""The Llama family over paged KV: one forward pass for prefill rows and decode rows of any sessions together.

The idea: a pass is a list of rows. Everything but attention is row by row (see arithmetic.py); attention reduces block
by block of its own session, where the matrix kernels are bf16 (measured: the same bits for any number of rows) and
blocks are added in an order fixed by their numbers. So the bits of a row depend on its context alone: not on the chunk
it came in, not on its neighbours, not on whether its KV was computed here or restored.

Softmax takes the greatest score over all blocks first, which no order can change; then each block's part is a plain
sum and needs no rescaling.

"f32" runs the same code over float32: it is the reference for transformers, and promises nothing about bits.
Rejected: scaled_dot_product_attention (32 queries get other bits than one by one; a call a block costs 20 times more in
prefill); a fused running softmax in Python (a loop over blocks a layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from meshnode.engine import arithmetic, kv, pages, weights

_BLOCK = pages.BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one session in a pass."""

    row: int
    tokens: tuple[int, ...]
    position: int
    """Of the first token."""
    blocks: tuple[int, ...]
    """All blocks up to the one that holds the last token."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a pass reads and writes, computed once for all layers."""

    turns: torch.Tensor  # [row, 1, head_dim / 2] complex
    block: torch.Tensor  # [row]
    slot: torch.Tensor  # [row]
    blocks: tuple[Sequence[int] | torch.Tensor, ...]
    masks: tuple[torch.Tensor | None, ...]


class Llama:
    """Weights and the pool they write to. Not thread-safe; call it in inference mode."""

    def __init__(self, of: weights.Shape, loaded: weights.Weights, pool: kv.Pool) -> None:
        self._of = of
        self._weights = loaded
        self._pool = pool
        self._q_rows = of.heads * of.head_dim
        self._kv_rows = of.kv_heads * of.head_dim
        self._turns = _turns(of)

    def forward(self, segments: Sequence[Segment], wanted: Sequence[int]) -> torch.Tensor:  # [wanted row, vocabulary]
        """Write the KV of all rows, and return the logits of some."""
        rows = self._embed([token for segment in segments for token in segment.tokens])
        places = self._places(segments)
        for number, layer in enumerate(self._weights.layers):
            rows = self._layer(number, layer, rows, segments, places)
        if not wanted:
            return rows[:0]
        chosen = rows if len(wanted) == rows.shape[0] else rows[torch.tensor(wanted)]
        return arithmetic.linear(self._norm(chosen, self._weights.norm), self._weights.embedding)

    def _embed(self, tokens: list[int]) -> torch.Tensor:
        embedding, index = self._weights.embedding, torch.tensor(tokens)
        rows = embedding.weight[index].float()
        return rows if embedding.scale is None else rows.mul_(embedding.scale[index][:, None])

    def _norm(self, rows: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(rows, (self._of.hidden,), gain, self._of.rms_eps)

    def _places(self, segments: Sequence[Segment]) -> _Places:
        positions = [at for one in segments for at in range(one.position, one.position + len(one.tokens))]
        block = [
            one.blocks[at // _BLOCK] for one in segments for at in range(one.position, one.position + len(one.tokens))
        ]
        position = torch.tensor(positions)
        return _Places(
            turns=self._turns[position],
            block=torch.tensor(block),
            slot=position % _BLOCK,
            blocks=tuple(one.blocks if kv.neighbours(one.blocks) else torch.tensor(one.blocks) for one in segments),
            masks=tuple(_mask(one) for one in segments),
        )

    def _layer(
        self, number: int, layer: weights.Layer, rows: torch.Tensor, segments: Sequence[Segment], places: _Places
    ) -> torch.Tensor:
        of = self._of
        joined = arithmetic.linear(self._norm(rows, layer.norm_in), layer.qkv)
        pairs = joined[:, : self._q_rows + self._kv_rows].unflatten(1, (-1, of.head_dim // 2, 2))
        turned = torch.view_as_real(torch.view_as_complex(pairs) * places.turns).flatten(2).to(self._pool.data.dtype)
        values = joined[:, self._q_rows + self._kv_rows :].to(self._pool.data.dtype).unflatten(1, (of.kv_heads, -1))
        self._pool.write(number, places.block, places.slot, turned[:, of.heads :], values)
        mixed = [
            self._attend(number, turned[one.row : one.row + len(one.tokens), : of.heads], one, blocks, mask)
            for one, blocks, mask in zip(segments, places.blocks, places.masks, strict=True)
        ]
        rows = rows + arithmetic.linear(mixed[0] if len(mixed) == 1 else torch.cat(mixed), layer.out)
        gate_up = arithmetic.linear(self._norm(rows, layer.norm_ffn), layer.gate_up)
        return rows + arithmetic.linear(functional.silu(gate_up[:, : of.ffn]) * gate_up[:, of.ffn :], layer.down)

    def _attend(
        self,
        layer: int,
        queries: torch.Tensor,  # [row, head, dim], scaled
        segment: Segment,
        blocks: Sequence[int] | torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:  # [row, head * dim]
        of, row_count, count = self._of, len(segment.tokens), len(segment.blocks)
        group = of.heads // of.kv_heads
        keys, values = self._pool.select(layer, blocks)  # [block, kv_head, slot, dim]
        by_head = queries.view(row_count, of.kv_heads, group, of.head_dim).transpose(0, 1)
        asked = by_head.reshape(of.kv_heads, row_count * group, of.head_dim).expand(count, -1, -1, -1).flatten(0, 1)
        scores = torch.bmm(asked, keys.flatten(0, 1).transpose(1, 2)).float()
        scores = scores.view(count, of.kv_heads, row_count, group, _BLOCK)
        if mask is None:
            scores[-1, ..., segment.position % _BLOCK + 1 :] = float("-inf")
        else:
            scores[segment.position // _BLOCK :].masked_fill_(mask, float("-inf"))
        chances = scores.sub_(scores.amax(-1, keepdim=True).amax(0)).exp_()
        mixed = torch.bmm(chances.to(values.dtype).view(-1, row_count * group, _BLOCK), values.flatten(0, 1))
        mixed = arithmetic.fold(mixed.float().view(count, of.kv_heads, row_count, group, of.head_dim))
        mixed = mixed / arithmetic.fold(chances.sum(-1, keepdim=True))
        return mixed.transpose(0, 1).reshape(row_count, -1)


def _mask(segment: Segment) -> torch.Tensor | None:  # [block, 1, row, 1, slot]: True where a slot is in the future
    """Only for blocks from the first position on: before it everything is past. One row needs no more than a slice."""
    if len(segment.tokens) == 1:
        return None
    first = segment.position // _BLOCK
    slots = torch.arange(first * _BLOCK, len(segment.blocks) * _BLOCK).view(-1, 1, 1, 1, _BLOCK)
    rows = torch.arange(segment.position, segment.position + len(segment.tokens)).view(1, 1, -1, 1, 1)
    return slots > rows


def _turns(of: weights.Shape) -> torch.Tensor:  # [position, 1, head_dim / 2] complex
    """The rotations of rope, in float64 until the end: at position 8000 float32 angles have lost three digits."""
    steps = of.rope_theta ** (-torch.arange(0, of.head_dim, 2, dtype=torch.float64) / of.head_dim)
    angles = torch.arange(of.context_tokens_max, dtype=torch.float64)[:, None] * steps
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]
