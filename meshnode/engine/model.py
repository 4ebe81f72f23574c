"""The Llama family in torch's own numbers, "f32" and "bf16", on a CPU or a GPU: one forward pass over rows of sessions.

The idea: a pass is a list of rows. Everything but attention is done for all rows at once. For attention rows stand in
groups (`passes.py`), each one gather of pages and one call of scaled_dot_product_attention: the gathered copy costs
less than a call a session.

`_run` is a function of tensors alone: it asks the device for nothing and decides by shapes. So the very same function
runs a prefill, a decode step on a CPU, and is what a CUDA graph records.

A family of models is no branch in here, but for biases and norms of Q and K: a window is a mask and a shorter table of
pages, a kind of rope is a table of rotations.

"f32" is the reference for transformers; neither class promises anything about bits. In "bf16" matrices and KV are
bfloat16; the sum over layers, norms, rope and logits are float32.
Rejected: torch.compile (a compiler on every host, and a wait at each new shape); FlexAttention (it wants that
compiler); kernels that read through a page table themselves (torch has none that both a CPU and a GPU run).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from meshnode.engine import kv, pages, passes, rope, weights

_PAGE = pages.PAGE_TOKENS
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
"""Of matrices and KV, by numeric class."""
_GATHERED_PAGES_MAX = {"cpu": 256, "cuda": 4096}
"""In one group. More: larger copies, for which a CPU asks the system anew from 32 MB on. Fewer: more calls."""
_STEP_ROWS_MAX = 64
"""In a decode step of a fixed size. More: more graphs. Fewer: large crowds are decoded plainly."""
_STEP_PAGES_MIN = 4
"""The shortest table of a fixed size; the others are twice, four times ... as long. Less: more graphs."""


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """As numeric classes say it: `cpu`, `cuda-sm90`."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda-sm{major}{minor}"


@dataclass(frozen=True, slots=True)
class _Layer:
    """As weights.Layer, on the device, and matrices as torch wants them: [out, in]."""

    qkv: torch.Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]
    out: torch.Tensor  # [hidden, heads * head_dim]
    gate_up: torch.Tensor  # [2 * ffn, hidden]
    down: torch.Tensor  # [hidden, ffn]
    bias: torch.Tensor | None  # [(heads + 2 * kv_heads) * head_dim]
    gain: torch.Tensor | None  # [heads + kv_heads, head_dim]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a group's attention reads, made once for all layers."""

    pieces: torch.Tensor  # [k|v * segment * page], of layer 0; each layer's lie two further
    mask: torch.Tensor  # [segment, 1, row, slot], added to scores


class Llama:
    """Weights and the pool they write to, on the pool's device. Not thread-safe."""

    def __init__(
        self,
        of: weights.Shape,
        loaded: weights.Weights,
        pool: kv.Pool,
        *,
        fixed_steps: bool | None = None,
        recorder: passes.Recorder | None = None,
    ) -> None:
        """`fixed_steps`: decode in steps of fixed sizes. By default that is what a GPU does, and records as graphs."""
        self._of, self._pool, self._device = of, pool, pool.data.device
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.set_float32_matmul_precision("highest")  # TF32 keeps ten bits: no reference
        self._layers = [_moved(layer, self._device) for layer in loaded.layers]
        self._norm = loaded.norm.to(self._device)
        # A GPU multiplies bfloat16 to float32 logits. A CPU would round them, so its head is float32.
        head = _rows(loaded.head, self._device)
        self._head = head if on_gpu else head.float()
        self._embedding = self._head if of.tied else _rows(loaded.embedding, self._device)
        self._turns = _turns(of).to(self._device)
        self._fixed_steps = on_gpu if fixed_steps is None else fixed_steps
        self._recorder = passes.cuda_recorder() if on_gpu and recorder is None else recorder
        self._steps: dict[tuple[int, int], passes.FixedStep] = {}

    @torch.inference_mode()
    def forward(self, segments: Sequence[pages.Segment], wanted: Sequence[int]) -> torch.Tensor:
        """Write the KV of all rows, and return the logits of some: float32 [wanted, vocabulary], on the CPU.

        Waits for the device.
        """
        window, most = self._of.window_tokens, _GATHERED_PAGES_MAX[self._device.type]
        self._pool.clear(kv.begun(segments))
        if step := self._fitting_step(segments, most):
            order = {one.row: number for number, one in enumerate(segments)}
            logits = step(segments, window)[[order[row] for row in wanted]]
        else:
            batch = passes.arrange(segments, wanted, window_tokens=window, gathered_pages_max=most, device=self._device)
            logits = self._run(batch)
        if self._device.type == "cpu":
            return logits
        fetched = torch.empty(logits.shape, pin_memory=True).copy_(logits)
        torch.cuda.synchronize(self._device)  # also where nothing was wanted: who plans passes measures them
        return fetched

    def _fitting_step(self, segments: Sequence[pages.Segment], gathered_pages_max: int) -> passes.FixedStep | None:
        if not self._fixed_steps or len(segments) > _STEP_ROWS_MAX or any(len(one.tokens) > 1 for one in segments):
            return None
        width = max(len(passes.table(one, self._of.window_tokens).pages) for one in segments)
        size = (_power_of_two(len(segments)), max(_STEP_PAGES_MIN, _power_of_two(width)))
        if size[0] * size[1] > gathered_pages_max:
            return None
        if size not in self._steps:
            self._steps[size] = passes.FixedStep(
                self._run, *size, scratch=self._pool.scratch, device=self._device, recorder=self._recorder
            )
        return self._steps[size]

    def _run(self, batch: passes.Batch) -> torch.Tensor:  # float32 [wanted, vocabulary]
        of = self._of
        rows = self._embedding.index_select(0, batch.token).float()  # [row, hidden]: the sum over layers
        turns = self._turns.index_select(0, batch.position)  # [row, 1, head_dim / 2] complex
        readings = [self._reading(group) for group in batch.groups]
        counts = [group.seen.numel() for group in batch.groups]
        keys_at = batch.place // _PAGE * (of.layers * 2 * _PAGE) + batch.place % _PAGE  # [row], of layer 0
        written_at = torch.stack([keys_at, keys_at + _PAGE], 1).flatten()  # [row * k|v]
        for number, layer in enumerate(self._layers):
            queries, written = self._projected(layer, rows, turns)
            self._pool.slots.index_copy_(0, written_at + number * 2 * _PAGE, written)
            parts = zip(queries.split(counts), readings, strict=True)
            mixed = torch.cat([self._attended(number, *part) for part in parts])  # [row, heads * head_dim]
            rows += functional.linear(mixed, layer.out)
            gate, up = functional.linear(self._normed(rows), layer.gate_up).split(of.ffn, 1)  # [row, ffn] each
            rows += functional.linear(functional.silu(gate) * up, layer.down)
        return self._logits(rows if batch.wanted is None else rows.index_select(0, batch.wanted))

    def _reading(self, group: passes.Group) -> _Reading:
        slots = torch.arange(group.table.shape[1] * _PAGE, device=self._device)
        seen = group.seen[:, None, :, None]  # [segment, 1, row, 1]
        hidden = slots > seen
        if self._of.window_tokens:
            hidden |= slots <= seen - self._of.window_tokens
        mask = torch.zeros(hidden.shape, dtype=self._pool.data.dtype, device=self._device)
        keys = group.table.flatten() * (self._of.layers * 2)
        return _Reading(torch.cat([keys, keys + 1]), mask.masked_fill_(hidden, float("-inf")))

    def _projected(self, layer: _Layer, rows: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [row, heads * head_dim], scaled and turned; keys and values [row * k|v, kv_heads * head_dim]."""
        of, q_width, kv_width = self._of, self._of.heads * self._of.head_dim, self._of.kv_heads * self._of.head_dim
        joined = functional.linear(self._normed(rows), layer.qkv).float()  # [row, q_width + 2 * kv_width]
        if layer.bias is not None:
            joined += layer.bias
        heads = joined[:, : q_width + kv_width].unflatten(1, (-1, of.head_dim))  # [row, heads + kv_heads, head_dim]
        if layer.gain is not None:
            heads.copy_(functional.rms_norm(heads, heads.shape[2:], eps=of.rms_eps) * layer.gain)
        torch.view_as_complex(heads.unflatten(2, (-1, 2))).mul_(turns)
        joined = joined.to(self._pool.data.dtype)
        return joined[:, :q_width], joined[:, q_width:].reshape(-1, kv_width)

    def _attended(self, layer: int, queries: torch.Tensor, reading: _Reading) -> torch.Tensor:
        """[row, heads * head_dim] to the same. The heads of one KV head are rows of one row, or a batch of views."""
        of, (segments, _, row_count, slots) = self._of, reading.mask.shape
        found = self._pool.pieces.index_select(0, reading.pieces + 2 * layer)  # [k|v * segment * page, ...]
        both = found.view(2, segments, slots, of.kv_heads, of.head_dim).transpose(2, 3)
        grouped = queries.unflatten(1, (of.kv_heads, -1, of.head_dim))  # [segment * row, kv_head, head, dim]
        if row_count > 1:
            grouped = grouped.transpose(0, 2)  # [head, kv_head, row, dim]
            both = both.expand(-1, grouped.shape[0], -1, -1, -1)
        mixed = functional.scaled_dot_product_attention(grouped, both[0], both[1], attn_mask=reading.mask, scale=1.0)
        return (mixed.transpose(0, 2) if row_count > 1 else mixed).flatten(1)

    def _normed(self, rows: torch.Tensor) -> torch.Tensor:
        """Divided by their root mean square; the gain is in the next matrix."""
        return functional.rms_norm(rows, rows.shape[1:], eps=self._of.rms_eps).to(self._pool.data.dtype)

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:  # [row, hidden] -> float32 [row, vocabulary]
        normed = functional.rms_norm(rows, rows.shape[1:], self._norm, self._of.rms_eps)
        if self._head.dtype == torch.float32 or not rows.shape[0]:
            return functional.linear(normed.to(self._head.dtype), self._head).float()
        return torch.mm(normed.to(self._head.dtype), self._head.t(), out_dtype=torch.float32)


def _moved(layer: weights.Layer, device: torch.device) -> _Layer:
    matrices = (_rows(matrix, device) for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down))
    vectors = (None if found is None else found.to(device) for found in (layer.bias, layer.gain))
    return _Layer(*matrices, *vectors)


def _rows(matrix: weights.Matrix, device: torch.device) -> torch.Tensor:  # [out, in]
    assert matrix.scale is None
    return matrix.turned.t().to(device)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _turns(of: weights.Shape) -> torch.Tensor:  # [position, 1, head_dim / 2] complex
    table = rope.turns(of.head_dim, of.rope_theta, of.rope_divisors, of.rope_amplitude, of.context_tokens_max)
    return torch.view_as_complex(torch.from_numpy(table))[:, None]
