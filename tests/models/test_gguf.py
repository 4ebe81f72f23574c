"""A GGUF file and a Hugging Face folder of one model become one model here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, trainers

from meshnode import errors
from meshnode.models import gguf, hub, vocabulary
from tests.models import folders, small

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
FAMILIES = {
    "llama": transformers.LlamaConfig(**folders.SIZES, tie_word_embeddings=False),
    "llama3": transformers.LlamaConfig(**folders.SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "mistral": transformers.MistralConfig(**folders.SIZES, sliding_window=64, head_dim=16),
    "qwen2": transformers.Qwen2Config(**folders.SIZES, rope_parameters=YARN),
    "qwen3": transformers.Qwen3Config(**folders.SIZES, head_dim=32, tie_word_embeddings=True),
}
_PARTS = {theirs: ours for ours, theirs in gguf._NAMES.items()}
_WHOLE = {theirs: ours for ours, theirs in gguf._WHOLE_NAMES.items()}


def tokens() -> list[str]:
    known = folders.words().get_vocab()
    return sorted(known, key=known.__getitem__) + [
        f"<pad {n}>" for n in range(folders.SIZES["vocab_size"] - len(known))
    ]


def permuted(rows: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """As llama.cpp stores Q and K of a Llama: rows (i, i + half) of each head are neighbours."""
    order = [row for pair in range(head_dim // 2) for row in (pair, pair + head_dim // 2)]
    return rows.reshape(-1, head_dim, rows.shape[1])[:, order].reshape(rows.shape)


def described(writer: library.GGUFWriter, config: Any, head_dim: int) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if config.rope_parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_type(library.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(YARN["factor"])
        writer.add_rope_scaling_orig_ctx_len(YARN["original_max_position_embeddings"])


def spoken(writer: library.GGUFWriter, splitter: str = "qwen2") -> None:
    names = tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(names)
    kinds = dict.fromkeys(small.MARKS, 3) | {folders.ADDED: 4}
    writer.add_token_types([kinds.get(name, 1) for name in names])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(folders.words().to_str())["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_chat_template(small.TEMPLATE)


def write(path: Path, config: Any, source: Path, divisors: list[float], splitter: str = "qwen2") -> Path:
    """The GGUF file of the model that `folders.write` wrote into `source`."""
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = library.GGUFWriter(path, architecture)
    described(writer, config, head_dim)
    spoken(writer, splitter)
    for name, part in safetensors.numpy.load_file(source / "model.safetensors").items():
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            part = permuted(part, head_dim)
        if name in _WHOLE:
            writer.add_tensor(_WHOLE[name], part)
        else:
            _, _, layer, inner = name.split(".", 3)
            module, kind = inner.rsplit(".", 1)
            writer.add_tensor(f"blk.{layer}.{_PARTS[module]}.{kind}", part)
    if divisors:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_lead_to_one_model(tmp_path: Path, family: str) -> None:
    config = FAMILIES[family]
    source = folders.write(tmp_path / "hub", config, dtype=torch.float16)
    for way in ("a", "b"):
        (tmp_path / way).mkdir()
    hub.convert(source, tmp_path / "a")
    ours = json.loads((tmp_path / "a" / gguf.CONFIG).read_text())
    divisors = ours.get("rope_divisors", []) if family == "llama3" else []
    gguf.convert(write(tmp_path / "a.gguf", config, source, divisors), tmp_path / "b")
    assert (tmp_path / "a" / gguf.WEIGHTS).read_bytes() == (tmp_path / "b" / gguf.WEIGHTS).read_bytes()
    theirs = json.loads((tmp_path / "b" / gguf.CONFIG).read_text())
    assert theirs.pop("rope_divisors", []) == pytest.approx(ours.pop("rope_divisors", []), rel=1e-6)
    assert theirs.pop("rms_eps") == pytest.approx(ours.pop("rms_eps"))
    assert theirs | {"eos": [0, 2]} == ours


@pytest.mark.parametrize("splitter", ["qwen2", "llama-bpe"])
def test_words_are_cut_as_the_named_splitter_cuts_them(splitter: str) -> None:
    names = tokens()
    pairs = [" ".join(pair) for pair in json.loads(folders.words().to_str())["model"]["merges"]]
    kinds = [4 if name == folders.ADDED else 1 for name in names]
    fields = {"model": "gpt2", "pre": splitter, "tokens": names, "token_type": kinds, "merges": pairs}
    found = vocabulary.from_gguf({f"tokenizer.ggml.{name}": value for name, value in fields.items()})
    assert found.pre_tokenizer is not None
    cut = [piece for piece, _ in found.pre_tokenizer.pre_tokenize_str("it's 12345 ships,\n\n so")]
    numbers = ["1", "2", "3", "4", "5"] if splitter == "qwen2" else ["123", "45"]
    assert cut == ["it", "'s", "Ġ", *numbers, "Ġships", ",ĊĊ", "Ġso"]
    text = "the ships <tool>, über 12\n"
    assert found.decode(found.encode(text).ids) == text
    assert folders.words().token_to_id(folders.ADDED) in found.encode(text).ids


def test_pieces_without_merges_are_joined_as_their_scores_say() -> None:
    """Against the tokenizer they were taken from, whose merges the scores are the ranks of."""
    theirs = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    theirs.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    marks = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    theirs.train_from_iterator(
        " ".join(folders.TEXT).split(),
        trainers.BpeTrainer(vocab_size=330, special_tokens=marks, show_progress=False),
    )
    whole = json.loads(theirs.to_str())
    whole["added_tokens"] = []
    theirs = tokenizers.Tokenizer.from_str(json.dumps(whole))
    known = theirs.get_vocab()
    names = sorted(known, key=known.__getitem__)
    ranks = {left + right: -float(rank) for rank, (left, right) in enumerate(whole["model"]["merges"])}
    fields = {
        "model": "llama",
        "tokens": names,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * (len(names) - 259),
        "scores": [ranks.get(name, -1e6) for name in names],
    }
    found = vocabulary.from_gguf({f"tokenizer.ggml.{name}": value for name, value in fields.items()})
    for text in ("the ships count", "one  lighthouse keeper\n", "日本 <s> the </s>", " ship"):
        assert found.encode(text).ids == theirs.encode(text).ids
        assert found.decode(found.encode(text).ids) == text
        assert not {1, 2} & set(found.encode(text).ids)


def faulty(tmp_path: Path, **fields: Any) -> Path:
    """A sound file but for some metadata; None takes a key away."""
    reader = library.GGUFReader(small.write(tmp_path / "sound.gguf"))
    writer = library.GGUFWriter(tmp_path / "a.gguf", "llama")
    for name, one in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", *fields):
            continue
        inner = one.types[1] if len(one.types) > 1 else None
        writer.add_key_value(name, one.contents(), one.types[0], inner)
    for name, value in fields.items():
        if value is not None:
            writer.add_key_value(name, value, library.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "a.gguf"


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.expert_count": 8},
        {"llama.rope.scaling.type": "longrope"},
        {"llama.rope.dimension_count": 6, "llama.attention.key_length": 8},
        {"llama.block_count": 10**9},
        {"llama.attention.head_count": -1},
        {"llama.attention.layer_norm_rms_epsilon": float("nan")},
        {"llama.context_length": None},
        {"tokenizer.ggml.model": "t5"},
        {"tokenizer.ggml.model": "llama", "scores": None},
        {"tokenizer.ggml.pre": "tekken"},
        {"tokenizer.ggml.merges": ["a b c"]},
        {"tokenizer.ggml.merges": ["u zz"]},
        {"tokenizer.ggml.tokens": ["a", "b"]},
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.chat_template": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_metadata_that_does_not_fit_is_refused_by_its_name(tmp_path: Path, fields: dict[str, Any]) -> None:
    gguf.convert(faulty(tmp_path), tmp_path)
    last = next(iter(fields)).split(".")[-1]
    with pytest.raises(errors.EngineError, match=f"{last}|scores|merge|tokens|vocabulary|key_length"):
        gguf.convert(faulty(tmp_path, **fields), tmp_path)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = small.write(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(errors.StoreError, match="the file at"):
        gguf.convert(path, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(errors.StoreError, match="empty"):
        gguf.convert(path, tmp_path)
