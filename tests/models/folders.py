"""A folder as Hugging Face has it, with random weights and a tokenizer of a few hundred tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.models import small

MARKS = small.MARKS
ADDED = "<tool>"
TEXT = ["the lighthouse keeper counts the ships and the ships count the lighthouses, one two three 1 2 3 über"] * 3
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}


def words() -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    found.train_from_iterator(TEXT, trainer)
    found.add_tokens([tokenizers.AddedToken(ADDED, normalized=False)])
    return found


def write(
    folder: Path,
    config: Any = None,
    *,
    template: str = small.TEMPLATE,
    dtype: torch.dtype = torch.float32,
    shard: str = "1GB",
) -> Path:
    """What `save_pretrained` leaves."""
    torch.manual_seed(5)
    config = config or transformers.Qwen2Config(**SIZES)
    config.eos_token_id = 0
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    words().save(str(folder / "tokenizer.json"))
    settings = {"chat_template": template, "eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def change(path: Path, **keys: Any) -> None:
    """Other values in a JSON file; None takes a key away."""
    found = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
