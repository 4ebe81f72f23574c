"""A folder or a file of one's own becomes a model here, with the same numbers, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from meshnode import errors, ids, ports
from meshnode.engine import engine
from meshnode.models import gguf, hub, store, tokenizer
from tests.models import folders, small

A = ids.SessionId(b"a" * ids.SESSION_BYTES)
SMALL = folders.SIZES
FAMILIES = {
    "llama": transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=40, head_dim=16),
    "qwen2": transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=32),
}


@pytest.fixture
def models(tmp_path: Path) -> store.Models:
    return store.Models(tmp_path / "models")


def loaded(installed: store.Installed, numeric_class: str) -> engine.TorchEngine:
    return engine.TorchEngine.load(
        installed.folder,
        name=installed.name,
        digest=installed.digest,
        numeric_class=numeric_class,
        memory_bytes=1 << 22,
    )


def logits(of: engine.TorchEngine, prompt: list[int]) -> torch.Tensor:
    found: list[torch.Tensor] = []
    inner = of._llama.forward
    of._llama.forward = lambda *given: found.append(inner(*given)) or found[-1]  # type: ignore[method-assign, func-returns-value]
    of.step([ports.Work(A, 0, tuple(prompt), ports.Sampling())])
    return torch.from_numpy(found[-1][0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_folder_becomes_a_model_with_the_numbers_of_transformers(
    models: store.Models, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    folder = folders.write(tmp_path / "hub", FAMILIES[family], dtype=dtype)
    installed = models.add("mine", folder)
    assert models.list() == [installed]
    prompt = tokenizer.ChatTokenizer(installed.folder).turn("the ships", system="count", first=True, closed=False)
    prompt = (prompt * 20)[:90]
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = peer(torch.tensor([prompt])).logits[0, -1]
    assert (logits(loaded(installed, "f32"), prompt) - expected).abs().amax() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_is_the_model_that_was_packed(models: store.Models, tmp_path: Path, family: str) -> None:
    installed = models.add("mine", folders.write(tmp_path / "hub", FAMILIES[family]))
    first = logits(loaded(installed, "w8"), [*range(60)])
    assert (installed.folder / "packed-tiles.safetensors").is_file()
    assert torch.equal(logits(loaded(installed, "w8"), [*range(60)]), first)


def test_several_files_are_one_model(models: store.Models, tmp_path: Path) -> None:
    whole = models.add("whole", folders.write(tmp_path / "a"))
    folder = folders.write(tmp_path / "b", shard="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert (models.add("parts", folder).folder / gguf.WEIGHTS).read_bytes() == (
        whole.folder / gguf.WEIGHTS
    ).read_bytes()


def test_the_weights_are_written_as_safetensors_itself_writes_them(models: store.Models, tmp_path: Path) -> None:
    written = models.add("mine", folders.write(tmp_path / "hub")).folder / gguf.WEIGHTS
    assert safetensors.torch.save(safetensors.torch.load_file(written)) == written.read_bytes()


def test_words_are_those_of_the_authors_tokenizer_and_marks_stay_text(models: store.Models, tmp_path: Path) -> None:
    installed = models.add("mine", folders.write(tmp_path / "hub"))
    words, theirs = tokenizer.ChatTokenizer(installed.folder), folders.words()
    first = words.turn("the ships <tool> 12 über", system=None, first=True, closed=False)
    whole = "<|im_start|>user\nthe ships <tool> 12 über<|im_end|>\n<|im_start|>assistant\n"
    assert first == theirs.encode(whole, add_special_tokens=False).ids
    assert words.text(first) == "user\nthe ships <tool> 12 über\nassistant\n"
    marked = words.turn("<|im_end|>", system=None, first=True, closed=False)
    assert marked.count(theirs.token_to_id("<|im_end|>")) == 1
    assert json.loads((installed.folder / gguf.CONFIG).read_text())["eos"] == [0, 2]


def test_a_template_may_name_the_models_tokens_and_know_no_system(models: store.Models, tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}"
        "{% elif message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
    )
    words = tokenizer.ChatTokenizer(models.add("mine", folders.write(tmp_path / "hub", template=template)).folder)
    assert words.turn("a", system=None, first=True, closed=False)[0] == 1
    assert words.turn("a", system=None, first=False, closed=False)[0] == 2
    with pytest.raises(errors.EngineError, match="system"):
        words.turn("a", system="b", first=True, closed=False)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model_type": "gemma2"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": -48}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "share 3 heads"),
        ({"head_dim": 7}, "odd"),
        ({"rms_norm_eps": "no"}, "rms_norm_eps"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, "max_window_layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type"),
        ({"rope_parameters": {"rope_type": ["x"]}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": float("nan")}}, "factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "type"),
        ({"intermediate_size": 96}, "shape"),
        ({"tie_word_embeddings": False, "vocab_size": 320}, "lm_head.weight"),
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"eos_token_id": 999}, "vocabulary"),
    ],
    ids=str,
)
def test_what_is_not_computed_here_is_refused_by_its_name(
    models: store.Models, tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    folder = folders.write(tmp_path / "hub", transformers.Qwen2Config(**SMALL, tie_word_embeddings=True))
    folders.change(folder / "config.json", **changed)
    with pytest.raises(errors.EngineError, match=reason):
        models.add("mine", folder)
    assert models.list() == []
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _foreign_tokenizer(folder: Path) -> None:
    folders.change(folder / "tokenizer.json", model={"type": "Stranger"})


def _no_template(folder: Path) -> None:
    folders.change(folder / "tokenizer_config.json", chat_template=None)


def _deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def _twice(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "model_type": "qwen2"}')


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])


def _elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')


def _infinite(folder: Path) -> None:
    named = safetensors.torch.load_file(folder / "model.safetensors")
    named["model.layers.1.self_attn.k_proj.bias"][3] = float("-inf")
    safetensors.torch.save_file(named, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_no_tokenizer, "tokenizer.json"),
        (_foreign_tokenizer, "tokenizers library"),
        (_no_template, "chat template"),
        (_deep, "not JSON"),
        (_twice, "twice"),
        (_pickled, "model.safetensors"),
        (_truncated, "end"),
        (_elsewhere, "not beside it"),
        (_infinite, "finite"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_harmed_folder_is_refused_with_the_reason(
    models: store.Models, tmp_path: Path, harm: Any, reason: str
) -> None:
    folder = folders.write(tmp_path / "hub")
    harm(folder)
    with pytest.raises((errors.EngineError, errors.StoreError), match=reason):
        models.add("mine", folder)
    assert models.list() == []


def test_a_gguf_file_of_ones_own_is_added(models: store.Models, tmp_path: Path) -> None:
    installed = models.add("mine", small.write(tmp_path / "a.gguf"))
    assert tokenizer.ChatTokenizer(installed.folder).turn("a", system=None, first=True, closed=False)
    assert np.isfinite(logits(loaded(installed, "w8"), [1, 2, 3]).numpy()).all()


@pytest.mark.parametrize("name", ["", "A", "../a", "a.new", "smollm2-135m", "a" * 65, ".a"])
def test_a_name_that_is_none_is_the_operators_mistake(models: store.Models, tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.ConfigError, match="no name"):
        models.add(name, small.write(tmp_path / "a.gguf"))


def test_a_name_is_given_once_and_a_source_must_be_one(models: store.Models, tmp_path: Path) -> None:
    source = small.write(tmp_path / "a.gguf")
    models.add("mine", source)
    with pytest.raises(errors.ConfigError, match="already"):
        models.add("mine", source)
    with pytest.raises(errors.ConfigError, match="neither"):
        models.add("other", tmp_path / "b.gguf")


def test_the_tokenizer_is_tried_where_its_failure_harms_nobody() -> None:
    with pytest.raises(errors.EngineError, match="tokenizers library"):
        hub._try('{"version": "1.0"}')
