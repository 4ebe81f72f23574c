"""From a GGUF file to ours: one safetensors file of float16 weights, a JSON of the architecture, a tokenizer file.

The idea: convert once, then load by memory map. Weights are de-quantised to float16: that rounding (2^-11) is far
below what four bits lost before, and it defines *the* weights of the model here, for every numeric class and for the
reference it is compared with. For a Llama, llama.cpp stores the rows of Q and K permuted, so that rope turns neighbours
(2i, 2i+1); the rows are put back, so that the file means what every other program means by these names: rope turns
(i, i + half). For Qwen it does not.

The file is a stranger's: `headers` checks it before anything is read, and its tensors are exactly those that its own
metadata asks for. Memory is that of one tensor.

Refused: another architecture, another tokenizer, a tensor of unexpected shape. Rejected: reading GGUF at every start
(2 s of de-quantising), and pickle in any form.
"""

from __future__ import annotations

import functools
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from meshnode import errors
from meshnode.models import architectures, headers, vocabulary, writing

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_DIVISORS = "rope_freqs.weight"


def convert(source: Path, folder: Path) -> None:
    """Write the three files into `folder`. Raises EngineError for a model that this engine does not know, StoreError
    for a file that is none."""
    with source.open("rb") as file:
        if not source.stat().st_size:
            raise errors.StoreError(f"{source.name} is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header = headers.gguf(data)
    named: dict[str, headers.Tensor] = {}
    for tensor in header.tensors:
        if named.setdefault(_name(tensor.name), tensor) is not tensor:
            raise errors.EngineError(f"the tensor {tensor.name} stands there twice")
    config = _config(header, data, named)
    named.pop(_DIVISORS, None)
    architectures.check_tensors(architectures.tensors(config), {name: one.shape for name, one in named.items()})
    permuted = header.fields["general.architecture"] == "llama"
    parts = {
        name: writing.Part("F16", one.shape, functools.partial(_read, data, one, config["head_dim"], permuted))
        for name, one in named.items()
    }
    words = vocabulary.from_gguf(header.fields).to_str()
    writing.write(folder / WEIGHTS, parts)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
    (folder / TOKENIZER).write_text(words)


def _config(header: headers.Gguf, data: headers.Data, named: dict[str, headers.Tensor]) -> architectures.Config:
    said = vocabulary.said_by_gguf(header.fields)
    config = architectures.from_gguf(header.fields, said.pop("count")) | said
    if "lm_head.weight" not in named:
        return config | _divisors(data, named, config)
    return config | {"tied": False} | _divisors(data, named, config)


def _divisors(
    data: headers.Data, named: dict[str, headers.Tensor], config: architectures.Config
) -> architectures.Config:
    """What Llama 3 does to rope is no metadata but a tensor."""
    if (found := named.get(_DIVISORS)) is None:
        return {}
    if found.kind != "F32" or found.shape != (config["head_dim"] // 2,) or "rope_divisors" in config:
        raise errors.EngineError(f"{_DIVISORS} does not hold one number for each pair of dimensions")
    divisors = np.frombuffer(data, "<f4", found.shape[0], found.start)
    if not ((divisors >= 1e-3) & (divisors <= 1e6)).all():
        raise errors.EngineError(f"{_DIVISORS} holds absurd numbers")
    return {"rope_divisors": divisors.tolist()}


def _read(data: headers.Data, tensor: headers.Tensor, head_dim: int, permuted: bool) -> Iterator[bytes]:
    packed = np.frombuffer(data, np.uint8, tensor.stop - tensor.start, tensor.start)
    kind = gguf.GGMLQuantizationType[tensor.kind]
    try:
        dense = gguf.quants.dequantize(packed.reshape(*tensor.shape[:-1], -1), kind).astype(np.float32)
    except NotImplementedError:
        raise errors.EngineError(f"{tensor.name} is quantised as {tensor.kind}, which is not read here") from None
    if permuted and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        dense = _halves(dense, head_dim)
    with np.errstate(over="ignore"):  # what becomes infinite is refused by the writer
        yield dense.astype("<f2").tobytes()


def _name(name: str) -> str:
    if found := _WHOLE_NAMES.get(name):
        return found
    if name == _DIVISORS:
        return name
    try:
        _, layer, part, kind = name.split(".")
        if kind not in ("weight", "bias") or str(int(layer)) != layer:
            raise LookupError(kind)
        return f"model.layers.{layer}.{_NAMES[part]}.{kind}"
    except (ValueError, LookupError):
        raise errors.EngineError(f"the tensor {name} is not of a Llama or one of its relatives") from None


def _halves(rows: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Rows (2i, 2i+1) of each head become rows (i, i + head_dim / 2)."""
    heads = rows.shape[0] // head_dim
    return rows.reshape(heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
