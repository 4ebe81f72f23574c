"""A Llama of three small layers with random weights: what most engine tests run on, in milliseconds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from meshnode import ids
from meshnode.engine import batcher, engine, grammar, memory, model, recipes, weights

SHAPE = weights.Shape(
    layers=3,
    hidden=64,
    heads=6,
    kv_heads=2,
    head_dim=32,
    ffn=96,
    vocabulary=300,
    context_tokens_max=1024,
    rope_theta=10000.0,
    rms_eps=1e-5,
    eos=(299,),
)
MEMORY_BYTES = 1 << 23
SPECIAL = {"<|start|>": 298, "<|end|>": 299}
PAGE_BYTES = SHAPE.layers * 2 * 32 * SHAPE.kv_heads * SHAPE.head_dim * 2
"""Of the exact class: bf16."""


def named(of: weights.Shape = SHAPE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the usual names, large enough that attention prefers some tokens."""
    dice = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=dice) * 1.5 / size[-1] ** 0.5

    found = {"model.embed_tokens.weight": random(of.vocabulary, of.hidden), "model.norm.weight": torch.ones(of.hidden)}
    q_rows, kv_rows = of.heads * of.head_dim, of.kv_heads * of.head_dim
    for number in range(of.layers):
        at = f"model.layers.{number}."
        found |= {
            f"{at}input_layernorm.weight": torch.ones(of.hidden) + 0.1 * random(of.hidden),
            f"{at}post_attention_layernorm.weight": torch.ones(of.hidden) + 0.1 * random(of.hidden),
            f"{at}self_attn.q_proj.weight": random(q_rows, of.hidden) * 2,
            f"{at}self_attn.k_proj.weight": random(kv_rows, of.hidden) * 2,
            f"{at}self_attn.v_proj.weight": random(kv_rows, of.hidden),
            f"{at}self_attn.o_proj.weight": random(of.hidden, q_rows),
            f"{at}mlp.gate_proj.weight": random(of.ffn, of.hidden),
            f"{at}mlp.up_proj.weight": random(of.ffn, of.hidden),
            f"{at}mlp.down_proj.weight": random(of.hidden, of.ffn),
        }
    return found


@functools.cache
def assembled(numeric_class: str) -> weights.Weights:
    dtype = model.DTYPES.get(numeric_class)
    return weights.assemble(SHAPE, named(), exact=dtype is not None, dtype=dtype or torch.float32)


def poison(of: engine.TorchEngine, token: int, scale: float = float("nan")) -> float:
    """Whoever reads this token has numbers that are not finite from there on; returns the scale that it had."""
    scales = of._llama._kept[0].embedding.scales  # type: ignore[attr-defined]
    before, scales[token] = float(scales[token]), scale
    return before


@functools.cache
def grammars() -> grammar.Grammars:
    """A vocabulary of bytes, some pairs of them, and two special tokens at its end, for words to the tokenizer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [('"', ":"), ("{", '"'), ("}", "]"), *(("Q", letter) for letter in letters[:39])]
    tokens = [*letters, *("".join(pair) for pair in pairs), *SPECIAL]
    known = {token: index for index, token in enumerate(tokens)}
    assert len(known) == SHAPE.vocabulary
    words = tokenizers.Tokenizer(models.BPE(vocab=known, merges=pairs))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    return grammar.Grammars(words.to_str(), SPECIAL, SHAPE.vocabulary, SHAPE.eos)


def encode(text: str) -> list[int]:
    """Ids of these bytes, no pairs."""
    words = tokenizers.Tokenizer.from_str(grammars()._tokenizer)
    return [words.token_to_id(letter) for byte in text.encode() for letter in (_letter(byte),)]


def decode(tokens: Sequence[int]) -> str:
    """The text of ids; special ones are left out."""
    words = tokenizers.Tokenizer.from_str(grammars()._tokenizer)
    return str(words.decode([token for token in tokens if token not in SPECIAL.values()]))


@functools.cache
def _letter(byte: int) -> str:
    """How a byte-level vocabulary writes a byte: itself where it can be seen, and the rest from 256 on (GPT-2)."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in seen else chr(256 + [one for one in range(256) if one not in seen].index(byte))


def make(
    numeric_class: str = "w8",
    memory_bytes: int = MEMORY_BYTES,
    loaded: weights.Weights | None = None,
    follows: grammar.Grammars | None = None,
    spill: memory.Spill | None = None,
    limits: batcher.Limits | None = None,
    *,
    tied: bool = True,
    threads: int = 1,
) -> engine.TorchEngine:
    of = dataclasses.replace(SHAPE, tied=tied)
    rows_max = (limits or batcher.Limits()).rows_max
    recipe = recipes.assembled(
        of, loaded or assembled(numeric_class), numeric_class, memory_bytes, threads=threads, rows_max=rows_max
    )
    return engine.TorchEngine(
        recipe, name="tiny", digest=ids.digest(b"tiny"), grammars=follows, spill=spill, limits=limits
    )
