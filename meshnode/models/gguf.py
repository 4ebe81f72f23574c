"""From a GGUF file to ours: one safetensors file of float16 weights, a JSON of the architecture, a tokenizer file.

The idea: convert once, then load by memory map. Weights are de-quantised to float16: that rounding (2^-11) is far
below what four bits lost before, and it defines *the* weights of the model here, for every numeric class and for the
reference it is compared with. llama.cpp stores the rows of Q and K permuted, so that rope turns neighbours (2i, 2i+1);
the rows are put back, so that the file means what every other program means by these names: rope turns (i, i + half).

Refused: another architecture, another tokenizer, a tensor of unexpected shape. Rejected: reading GGUF at every start
(2 s of de-quantising), and pickle in any form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from meshnode import errors

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"

_CONTROL_TOKEN = 3
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path) -> None:
    """Write the three files into `folder`. Raises EngineError for a model that this engine does not know."""
    reader = gguf.GGUFReader(source)
    config = _config(reader)
    weights = dict(_weights(reader, config))
    expected = 2 + len(_NAMES) * config["layers"]
    if len(weights) != expected:
        raise errors.EngineError(f"the file holds {len(weights)} weights where a tied Llama has {expected}")
    safetensors.numpy.save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
    (folder / TOKENIZER).write_text(_tokenizer(reader).to_str())


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise errors.EngineError(f"the GGUF file lacks {name}")
    return field.contents()


def _config(reader: gguf.GGUFReader) -> dict[str, Any]:
    if _field(reader, "general.architecture") != "llama":
        raise errors.EngineError("only the Llama architecture is known here")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    special = {
        token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == _CONTROL_TOKEN
    }
    eos = {_field(reader, "tokenizer.ggml.eos_token_id")} | {
        i for token, i in special.items() if token == "<|endoftext|>"
    }
    heads = _field(reader, "llama.attention.head_count")
    return {
        "layers": _field(reader, "llama.block_count"),
        "hidden": _field(reader, "llama.embedding_length"),
        "heads": heads,
        "kv_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": _field(reader, "llama.rope.dimension_count"),
        "ffn": _field(reader, "llama.feed_forward_length"),
        "vocabulary": len(tokens),
        "context_tokens_max": _field(reader, "llama.context_length"),
        "rope_theta": float(_field(reader, "llama.rope.freq_base")),
        "rms_eps": float(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        "eos": sorted(eos),
        "special": special,
        "chat_template": _field(reader, "tokenizer.chat_template"),
    }


def _weights(reader: gguf.GGUFReader, config: dict[str, Any]) -> list[tuple[str, np.ndarray[Any, Any]]]:
    found = []
    for tensor in reader.tensors:
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if not np.isfinite(dense).all():
            raise errors.EngineError(f"{tensor.name} holds numbers that are not finite")
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            dense = _halves(dense, config["head_dim"])
        found.append((_name(tensor.name), dense.astype(np.float16)))
    return found


def _name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    try:
        _, layer, part, kind = name.split(".")
        if kind != "weight":  # a bias would take its weight's place
            raise LookupError(kind)
        return f"model.layers.{int(layer)}.{_NAMES[part]}.weight"
    except (ValueError, LookupError):
        raise errors.EngineError(f"the tensor {name} is not of a Llama with tied embeddings") from None


def _halves(rows: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Rows (2i, 2i+1) of each head become rows (i, i + head_dim / 2)."""
    heads = rows.shape[0] // head_dim
    return rows.reshape(heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(reader: gguf.GGUFReader) -> tokenizers.Tokenizer:
    """BPE over bytes, digits one by one. No special token is registered: in a user's text they are only text."""
    if (kind := _field(reader, "tokenizer.ggml.model")) != "gpt2":
        raise errors.EngineError(f"the tokenizer {kind!r} is not known here, only byte-level BPE")
    if (splitter := _field(reader, "tokenizer.ggml.pre")) != "smollm":
        raise errors.EngineError(f"the pre-tokenizer {splitter!r} is not known here, only smollm")
    vocabulary = {token: index for index, token in enumerate(_field(reader, "tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
