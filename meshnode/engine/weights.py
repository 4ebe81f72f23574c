"""A model's weights as fused matrices, from the folder that `models` wrote.

The idea: "f32" takes the float16 file as it is; "int8" rounds each row of each matrix once (scale: the row's greatest
magnitude / 127), which `tiles` then packs for the kernels and keeps.

Folded in here, so that no step pays for it: the norms' gains (into columns), 1/sqrt(head_dim) (into Q, or into the gain
of Q's own norm), and the order of rope (rows of Q and K are interleaved, and a rotation becomes one multiplication of
complex numbers). Families of models (Llama, SmolLM2, Mistral, Qwen2, Qwen3) differ in what a `Shape` says, and in
nothing else; which family it was is known to `models` alone.

Weights are read into memory of our own, not mapped: a mapped file's pages are the first that a busy machine takes away,
and then a token waits for the disk.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from meshnode import errors


@dataclass(frozen=True, slots=True)
class Shape:
    """The architecture: a Llama, and what its relatives add. What has a default may be absent in config.json."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context_tokens_max: int
    rope_theta: float
    rms_eps: float
    eos: tuple[int, ...]
    tied: bool = True
    """The embedding is also the head."""
    qkv_bias: bool = False
    """Qwen2: a number is added to each of Q, K and V."""
    qk_norm: bool = False
    """Qwen3: each head of Q and K has its root mean square divided out, and a gain put on."""
    window_tokens: int | None = None
    """Mistral: a token sees this many, itself included. None: all."""
    rope_divisors: tuple[float, ...] = ()
    """Each pair of dimensions turns so many times slower than `rope_theta` says; all variants of rope come to that."""
    rope_amplitude: float = 1.0
    """What yarn multiplies queries and keys by."""

    def __post_init__(self) -> None:
        assert self.heads % self.kv_heads == 0
        assert self.head_dim % 2 == 0
        assert not self.rope_divisors or len(self.rope_divisors) == self.head_dim // 2
        assert self.window_tokens is None or self.window_tokens > 0


@dataclass(frozen=True, slots=True)
class Matrix:
    """One linear map. `scale` turns integers back into numbers; float matrices have none."""

    turned: torch.Tensor  # [in, out], a view of rows that lie [out, in]
    scale: torch.Tensor | None  # [out]


@dataclass(frozen=True, slots=True)
class Layer:
    """The gains of the two norms are in the columns of `qkv` and `gate_up`."""

    qkv: Matrix  # [hidden, (heads + 2 * kv_heads) * head_dim]
    out: Matrix  # [heads * head_dim, hidden]
    gate_up: Matrix  # [hidden, 2 * ffn]
    down: Matrix  # [ffn, hidden]
    bias: torch.Tensor | None = None  # [(heads + 2 * kv_heads) * head_dim]
    gain: torch.Tensor | None = None  # [heads + kv_heads, head_dim]


@dataclass(frozen=True, slots=True)
class Weights:
    layers: tuple[Layer, ...]
    norm: torch.Tensor  # [hidden]
    embedding: Matrix  # [hidden, vocabulary]
    """Often also the head: its columns cannot hold the last norm's gain, which is applied on its own."""
    head: Matrix  # [hidden, vocabulary]


_NEEDED = {field.name for field in dataclasses.fields(Shape) if field.default is dataclasses.MISSING}


def shape(folder: Path) -> Shape:
    try:
        config = json.loads((folder / "config.json").read_text())
        names = [name for name in Shape.__dataclass_fields__ if name in config or name in _NEEDED]
        fields = {name: config[name] for name in names}
        fields |= {name: tuple(fields[name]) for name in ("eos", "rope_divisors") if name in fields}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise errors.StoreError(f"the model's config.json cannot be read: {error}") from None
    return Shape(**fields)


def load(folder: Path, kind: str) -> Weights:
    """Matrices as "f32", "bf16" or "int8". Raises StoreError for files that do not fit the architecture."""
    of, named = shape(folder), _read(folder / "weights.safetensors")
    match kind:
        case "f32":
            return assemble(of, named, exact=True)
        case "bf16":
            return assemble(of, named, exact=True, dtype=torch.bfloat16)
        case "int8":
            return assemble(of, named, exact=False)
    raise AssertionError(f"no matrices of kind {kind}")


def assemble(of: Shape, named: dict[str, torch.Tensor], *, exact: bool, dtype: torch.dtype = torch.float32) -> Weights:
    """From the usual names to fused matrices: as numbers of `dtype` (`exact`) or as int8 with scales."""

    def take(name: str, *size: int) -> torch.Tensor:
        found = named.get(name)
        if found is None or tuple(found.shape) != size:
            raise errors.StoreError(f"the weights lack {name} of shape {size}")
        return found.float()

    def matrix(*parts: torch.Tensor, gain: torch.Tensor | None = None) -> Matrix:
        whole = torch.cat(parts) if gain is None else torch.cat(parts) * gain
        return Matrix(whole.to(dtype).t(), None) if exact else quantised(whole)

    q_rows, kv_rows = of.heads * of.head_dim, of.kv_heads * of.head_dim
    shrink = 1.0 if of.qk_norm else of.head_dim**-0.5  # a norm would take it out again: then it is in the norm's gain
    layers = []
    for number in range(of.layers):
        at = f"model.layers.{number}."
        q = _interleaved(take(f"{at}self_attn.q_proj.weight", q_rows, of.hidden), of.head_dim) * shrink
        k = _interleaved(take(f"{at}self_attn.k_proj.weight", kv_rows, of.hidden), of.head_dim)
        v = take(f"{at}self_attn.v_proj.weight", kv_rows, of.hidden)
        gate, up = (take(f"{at}mlp.{name}_proj.weight", of.ffn, of.hidden) for name in ("gate", "up"))
        layers.append(
            Layer(
                qkv=matrix(q, k, v, gain=take(f"{at}input_layernorm.weight", of.hidden)),
                out=matrix(take(f"{at}self_attn.o_proj.weight", of.hidden, q_rows)),
                gate_up=matrix(gate, up, gain=take(f"{at}post_attention_layernorm.weight", of.hidden)),
                down=matrix(take(f"{at}mlp.down_proj.weight", of.hidden, of.ffn)),
                bias=_bias(of, take, f"{at}self_attn.") if of.qkv_bias else None,
                gain=_gain(of, take, f"{at}self_attn.") if of.qk_norm else None,
            )
        )
    embedding = matrix(take("model.embed_tokens.weight", of.vocabulary, of.hidden))
    head = embedding if of.tied else matrix(take("lm_head.weight", of.vocabulary, of.hidden))
    return Weights(tuple(layers), take("model.norm.weight", of.hidden), embedding, head)


def _bias(of: Shape, take: Callable[..., torch.Tensor], at: str) -> torch.Tensor:
    q, k, v = (
        take(f"{at}{name}_proj.bias", heads * of.head_dim)
        for name, heads in (("q", of.heads), ("k", of.kv_heads), ("v", of.kv_heads))
    )
    shrink = 1.0 if of.qk_norm else of.head_dim**-0.5
    turned = [_interleaved(part[:, None], of.head_dim)[:, 0] for part in (q * shrink, k)]
    return torch.cat([*turned, v])


def _gain(of: Shape, take: Callable[..., torch.Tensor], at: str) -> torch.Tensor:
    q, k = (
        _interleaved(take(f"{at}{name}_norm.weight", of.head_dim)[:, None], of.head_dim)[:, 0] for name in ("q", "k")
    )
    return torch.cat([(q * of.head_dim**-0.5).expand(of.heads, -1), k.expand(of.kv_heads, -1)])


def quantised(whole: torch.Tensor) -> Matrix:
    scale = whole.abs().amax(1).clamp_min(1e-30) / 127
    return Matrix((whole / scale[:, None]).round_().to(torch.int8).t(), scale)


def _interleaved(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows (i, i + half) of each head become neighbours (2i, 2i + 1)."""
    return rows.view(-1, 2, head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise errors.StoreError(f"{path.name} cannot be read: {error}") from None
