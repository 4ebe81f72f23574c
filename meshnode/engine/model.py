"""The Llama family over paged KV: one forward pass for prefill rows and decode rows of any sessions together.

The idea: a pass is a list of rows. Everything but attention is row by row (see arithmetic.py); attention reduces block
by block of its own session, where the matrix kernels are bf16 (measured: the same bits for any number of rows) and
blocks are added in an order fixed by their numbers. So the bits of a row depend on its context alone: not on the chunk
it came in, not on its neighbours, not on whether its KV was computed here or restored.

Softmax takes the greatest score over all blocks first, which no order can change; then each block's part is a plain
sum and needs no rescaling.

A family of models is no branch in here: what it adds (biases, norms of Q and K) is one more step after the first
product, chosen when the model is loaded; a window is a mask, made once a pass; a kind of rope is a table of rotations.
A block that lies before a window adds zeros in its place of the fixed order: a window changes no order, and saves no
time.

"f32" runs the same code over float32: it is the reference for transformers, and promises nothing about bits.
Rejected: scaled_dot_product_attention (32 queries get other bits than one by one; a call a block costs 20 times more in
prefill); a fused running softmax in Python (a loop over blocks a layer).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from meshnode.engine import arithmetic, kv, pages, weights
from meshnode.engine.pages import Segment

_BLOCK = pages.PAGE_TOKENS
_CROWD_BLOCKS_MAX = 16
"""Lone rows with contexts up to this are attended together, over a copy of their KV. Longer ones: the copy costs more
than the calls that it saves."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """Where a segment's rows look, computed once for all layers."""

    segment: Segment
    views: list[torch.Tensor] | None
    """Two a layer, if the blocks are neighbours."""
    blocks: torch.Tensor  # [block]
    first: int
    """The block that the mask begins with: what lies before it is seen by all rows."""
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Crowd:
    """Lone rows of several sessions. A short one is filled up with a block of its own that the mask hides, so that
    nobody's numbers, not even masked ones, meet another's."""

    row_count: int
    block_count: int
    blocks: torch.Tensor  # [block * row]
    mask: torch.Tensor  # [block, row, 1, 1, slot]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a pass writes and reads, computed once for all layers."""

    turns: torch.Tensor  # [row, 1, head_dim / 2] complex
    block: torch.Tensor  # [row]
    slot: torch.Tensor  # [row]
    one: list[torch.Tensor] | None
    """The places of a lone row, two a layer: copying there is a quarter of the price of an indexed write."""
    crowd: _Crowd | None
    """The first rows of the pass, if there are several with short contexts."""
    readings: list[_Reading]
    """The segments of all other rows, in order."""


class Llama:
    """Weights and the pool they write to. Not thread-safe; call it in inference mode."""

    def __init__(self, of: weights.Shape, loaded: weights.Weights, pool: kv.Pool) -> None:
        self._of = of
        self._weights = loaded
        self._pool = pool
        self._q_rows = of.heads * of.head_dim
        self._kv_rows = of.kv_heads * of.head_dim
        self._turns = _turns(of)
        adjusted = of.qkv_bias or of.qk_norm
        self._layer = self._adjusted_layer if adjusted else self._plain_layer

    def forward(self, segments: Sequence[Segment], wanted: Sequence[int]) -> torch.Tensor:  # [wanted row, vocabulary]
        """Write the KV of all rows, and return the logits of some."""
        rows = self._embed([token for segment in segments for token in segment.tokens])
        places = self._places(segments)
        for number, layer in enumerate(self._weights.layers):
            rows = self._layer(number, layer, rows, places)
        if not wanted:
            return rows[:0]
        chosen = rows if len(wanted) == rows.shape[0] else rows[torch.tensor(wanted)]
        normed = chosen * arithmetic.inverse_rms(chosen, self._of.rms_eps) * self._weights.norm
        return arithmetic.linear(normed, self._weights.head)

    def _embed(self, tokens: list[int]) -> torch.Tensor:
        embedding, index = self._weights.embedding, torch.tensor(tokens)
        rows = embedding.turned.t()[index].float()
        return rows if embedding.scale is None else rows.mul_(embedding.scale[index][:, None])

    def _places(self, segments: Sequence[Segment]) -> _Places:
        at = [(one, one.position + offset) for one in segments for offset in range(len(one.tokens))]
        block = [one.pages[position // _BLOCK] for one, position in at]
        position = torch.tensor([position for _, position in at])
        window = self._of.window_tokens or self._of.context_tokens_max
        crowd = _crowd(segments)
        if crowd and self._of.window_tokens:
            crowd = _narrowed(crowd, segments, window)
        return _Places(
            turns=self._turns[position],
            block=torch.tensor(block),
            slot=position % _BLOCK,
            one=self._pool.slots(block[0], at[0][1] % _BLOCK) if len(at) == 1 else None,
            crowd=crowd,
            readings=[
                _Reading(
                    segment,
                    self._pool.select(segment.pages) if kv.neighbours(segment.pages) else None,
                    torch.tensor(segment.pages),
                    *_mask(segment, window),
                )
                for segment in segments[crowd.row_count if crowd else 0 :]
            ],
        )

    def _plain_layer(self, number: int, layer: weights.Layer, rows: torch.Tensor, places: _Places) -> torch.Tensor:
        return self._after(number, layer, rows, arithmetic.linear(rows, layer.qkv, self._of.rms_eps), places)

    def _adjusted_layer(self, number: int, layer: weights.Layer, rows: torch.Tensor, places: _Places) -> torch.Tensor:
        joined = arithmetic.linear(rows, layer.qkv, self._of.rms_eps)
        if layer.bias is not None:
            joined += layer.bias
        if layer.gain is not None:
            turning = joined[:, : self._q_rows + self._kv_rows]
            by_head = turning.reshape(-1, self._of.head_dim)  # [row * (heads + kv_heads), head_dim]
            normed = (by_head * arithmetic.inverse_rms(by_head, self._of.rms_eps)).view(-1, *layer.gain.shape)
            turning.copy_((normed * layer.gain).flatten(1))
        return self._after(number, layer, rows, joined, places)

    def _after(
        self,
        number: int,
        layer: weights.Layer,
        rows: torch.Tensor,  # [row, hidden]
        joined: torch.Tensor,  # [row, (heads + 2 * kv_heads) * head_dim]: queries, keys, values
        places: _Places,
    ) -> torch.Tensor:  # [row, hidden]
        of = self._of
        pairs = joined[:, : self._q_rows + self._kv_rows].unflatten(1, (-1, of.head_dim // 2, 2))
        turned = torch.view_as_real(torch.view_as_complex(pairs) * places.turns).flatten(2).to(self._pool.data.dtype)
        values = joined[:, self._q_rows + self._kv_rows :].unflatten(1, (of.kv_heads, of.head_dim))
        if places.one:
            places.one[2 * number].copy_(turned[0, of.heads :])
            places.one[2 * number + 1].copy_(values[0])
        else:
            self._pool.write(number, places.block, places.slot, turned[:, of.heads :], values)
        queries = turned[:, : of.heads]
        mixed = [self._attend_crowd(number, queries, places.crowd)] if places.crowd else []
        mixed += [
            self._attend(number, queries[one.segment.row : one.segment.row + len(one.segment.tokens)], one)
            for one in places.readings
        ]
        rows = rows + arithmetic.linear(mixed[0] if len(mixed) == 1 else torch.cat(mixed), layer.out)
        gate, up = arithmetic.linear(rows, layer.gate_up, of.rms_eps).split(of.ffn, 1)
        return rows + arithmetic.linear(functional.silu(gate).mul_(up), layer.down)

    def _attend(
        self,
        layer: int,
        queries: torch.Tensor,  # [row, head, dim], scaled
        reading: _Reading,
    ) -> torch.Tensor:  # [row, head * dim]
        of, row_count, count = self._of, queries.shape[0], len(reading.segment.pages)
        group = of.heads // of.kv_heads
        if reading.views:
            keys, values = reading.views[2 * layer : 2 * layer + 2]
        else:
            keys, values = self._pool.gather(layer, reading.blocks)
        by_head = queries.view(row_count, of.kv_heads, group, of.head_dim).transpose(0, 1)
        asked = by_head.reshape(of.kv_heads, row_count * group, of.head_dim).expand(count, -1, -1, -1).flatten(0, 1)
        scores = torch.bmm(asked, keys.transpose(1, 2)).float().view(count, of.kv_heads, row_count, group, _BLOCK)
        if reading.mask is None:
            scores[-1, ..., reading.segment.position % _BLOCK + 1 :] = float("-inf")
        else:
            scores[reading.first :].masked_fill_(reading.mask, float("-inf"))
        mixed = _mixed(scores, values, of.head_dim)
        return mixed.transpose(0, 1).reshape(row_count, -1)

    def _attend_crowd(self, layer: int, queries: torch.Tensor, crowd: _Crowd) -> torch.Tensor:  # [row, head * dim]
        of, count = self._of, crowd.block_count
        keys, values = self._pool.gather(layer, crowd.blocks)
        asked = queries[: crowd.row_count].reshape(crowd.row_count * of.kv_heads, -1, of.head_dim)
        scores = torch.bmm(asked.expand(count, -1, -1, -1).flatten(0, 1), keys.transpose(1, 2)).float()
        scores = scores.view(count, crowd.row_count, of.kv_heads, -1, _BLOCK).masked_fill_(crowd.mask, float("-inf"))
        return _mixed(scores, values, of.head_dim).reshape(crowd.row_count, -1)


def _mixed(scores: torch.Tensor, values: torch.Tensor, head_dim: int) -> torch.Tensor:  # [..., slot] -> [..., dim]
    """Softmax over blocks and slots, and the mean of the values by it. Destroys `scores` [block, ..., slot]."""
    chances = scores.sub_(scores.amax(-1, keepdim=True).amax(0)).exp_()
    mixed = torch.bmm(chances.to(values.dtype).view(values.shape[0], -1, _BLOCK), values).float()
    return arithmetic.fold(mixed.view(*scores.shape[:-1], head_dim)) / arithmetic.fold(chances.sum(-1, keepdim=True))


def _crowd(segments: Sequence[Segment]) -> _Crowd | None:
    """The leading segments of one row and few blocks; the engine puts them first."""
    lone = list(itertools.takewhile(lambda one: len(one.tokens) == 1 and len(one.pages) <= _CROWD_BLOCKS_MAX, segments))
    if len(lone) < 2:
        return None
    count = max(len(one.pages) for one in lone)
    blocks = [one.pages[min(number, len(one.pages) - 1)] for number in range(count) for one in lone]
    slots = torch.arange(count * _BLOCK).view(count, 1, 1, 1, _BLOCK)
    positions = torch.tensor([one.position for one in lone]).view(1, -1, 1, 1, 1)
    return _Crowd(len(lone), count, torch.tensor(blocks), slots > positions)


def _narrowed(crowd: _Crowd, segments: Sequence[Segment], window: int) -> _Crowd:
    """The same crowd, and what lies before each row's window is hidden as well."""
    slots = torch.arange(crowd.block_count * _BLOCK).view(-1, 1, 1, 1, _BLOCK)
    positions = torch.tensor([one.position for one in segments[: crowd.row_count]]).view(1, -1, 1, 1, 1)
    return dataclasses.replace(crowd, mask=crowd.mask | (slots <= positions - window))


def _mask(segment: Segment, window: int) -> tuple[int, torch.Tensor | None]:
    """The first block that has something to hide, and [block, 1, row, 1, slot]: True where a slot is in the future, or
    before the row's window. One row within its window needs no more than a slice."""
    last = segment.position + len(segment.tokens) - 1
    if len(segment.tokens) == 1 and last < window:
        return 0, None
    first = segment.position // _BLOCK if last < window else 0
    slots = torch.arange(first * _BLOCK, len(segment.pages) * _BLOCK).view(-1, 1, 1, 1, _BLOCK)
    rows = torch.arange(segment.position, last + 1).view(1, 1, -1, 1, 1)
    return first, (slots > rows if last < window else (slots > rows) | (slots <= rows - window))


def _turns(of: weights.Shape) -> torch.Tensor:  # [position, 1, head_dim / 2] complex
    """The rotations of rope, in float64 until the end: at position 8000 float32 angles have lost three digits."""
    steps = of.rope_theta ** (-torch.arange(0, of.head_dim, 2, dtype=torch.float64) / of.head_dim)
    if of.rope_divisors:
        steps /= torch.tensor(of.rope_divisors, dtype=torch.float64)
    angles = torch.arange(of.context_tokens_max, dtype=torch.float64)[:, None] * steps
    return torch.polar(torch.full_like(angles, of.rope_amplitude), angles).to(torch.complex64)[:, None]
