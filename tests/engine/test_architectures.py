"""Every family over small random weights: the numbers of transformers in float32, "bf16" beside it, and the promise of
"w8"."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers

from meshnode import ids, ports
from meshnode.engine import engine, model, recipes, weights
from meshnode.models import architectures
from tests.engine import agreement, passing

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
VOCABULARY = 300
PROMPT = tuple((index * index * 7 + index * 31 + 5) % 290 for index in range(300))
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5}
CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
    "smollm2": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-each-head-its-own": (transformers.LlamaConfig, {"num_key_value_heads": 4}),
    "llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama3-tied": (transformers.LlamaConfig, {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": (transformers.LlamaConfig, {"rope_parameters": LINEAR}),
    "llama-yarn": (transformers.LlamaConfig, {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0}}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "mistral-tied-yarn": (transformers.MistralConfig, {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "mistral-window": (transformers.MistralConfig, {"sliding_window": 130, "head_dim": 12}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2.5": (transformers.Qwen2Config, {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}),
    "qwen2.5-one-kv-head": (transformers.Qwen2Config, {"num_key_value_heads": 1, "rope_parameters": LINEAR}),
    "qwen2-yarn": (transformers.Qwen2Config, {"rope_parameters": YARN}),
    "qwen2-window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0},
    ),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-untied-linear": (
        transformers.Qwen3Config,
        {"head_dim": 16, "tie_word_embeddings": False, "rope_parameters": LINEAR},
    ),
    "qwen3-window": (
        transformers.Qwen3Config,
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 0},
    ),
    "qwen3-yarn": (transformers.Qwen3Config, {"head_dim": 32, "rope_parameters": YARN | {"attention_factor": 1.3}}),
}


@functools.cache
def peer(name: str) -> Any:
    """A model of transformers with random weights, gains and biases included."""
    kind, settings = CASES[name]
    torch.manual_seed(7)
    found = transformers.AutoModelForCausalLM.from_config(kind(**SMALL | settings)).eval()
    for part in found.parameters():
        if part.ndim == 1:
            part.data += 0.2 * torch.randn_like(part)
    return found


@functools.cache
def loaded(name: str, numeric_class: str) -> tuple[weights.Shape, weights.Weights]:
    of = peer(name)
    config = architectures.from_hub(of.config.to_dict()) | {"eos": (VOCABULARY - 1,)}
    if not of.config.tie_word_embeddings:
        config["tied"] = False
    shape = weights.Shape(**config | {"rope_divisors": tuple(config.get("rope_divisors", ()))})
    named = {key: part for key, part in of.state_dict().items() if key in architectures.tensors(config)}
    assert set(named) == set(architectures.tensors(config))
    dtype = model.DTYPES.get(numeric_class)
    return shape, weights.assemble(shape, named, exact=dtype is not None, dtype=dtype or torch.float32)


def passes(name: str, numeric_class: str, *, fixed_steps: bool = False) -> passing.Passing:
    of, inside = loaded(name, numeric_class)
    return passing.made(numeric_class, of=of, loaded=inside, fixed_steps=fixed_steps)


class Speaker:
    """An engine that keeps the logits of each row that it was asked for."""

    def __init__(self, name: str, numeric_class: str = "w8") -> None:
        of, inside = loaded(name, numeric_class)
        recipe = recipes.assembled(of, inside, numeric_class, 1 << 22)
        self.engine = engine.TorchEngine(recipe, name=name, digest=ids.digest(name.encode()))
        self.logits: dict[ids.SessionId, torch.Tensor] = {}
        draw = self.engine._draw

        def seen(job: engine._Job, logits: Any) -> engine.Answer:
            self.logits[job.work.session] = torch.from_numpy(logits.copy())
            return draw(job, logits)

        self.engine._draw = seen  # type: ignore[method-assign]

    def step(self, *works: tuple[ids.SessionId, int, tuple[int, ...]]) -> torch.Tensor:
        """The logits behind the first of these works."""
        answers = self.engine.step([ports.Work(*work, ports.Sampling()) for work in works])
        assert all(isinstance(answer, int) for answer in answers)
        return self.logits[works[0][0]]


@pytest.fixture(params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("fixed_steps", [False, True])
def test_the_reference_class_has_the_logits_of_transformers(name: str, fixed_steps: bool) -> None:
    of = passes(name, "f32", fixed_steps=fixed_steps)
    with torch.inference_mode():
        expected = peer(name)(torch.tensor([PROMPT])).logits[0]
    assert expected.abs().amax() > 0.5  # else anything would be within the bound
    for start, stop in ((0, 1), (1, 40), (40, 140), (140, 298), (298, 299), (299, 300)):
        found = of.feed({"a": PROMPT[start:stop], "b": PROMPT[start:stop]})
        for row in found.values():
            assert (row - expected[stop - 1]).abs().amax() < 1e-4


def test_bf16_is_close_to_the_reference(name: str) -> None:
    reference, other = (passes(name, kind).llama for kind in ("f32", "bf16"))
    found = agreement.compare(reference, other, PROMPT)
    assert 0 < found.divergence_nats < 0.02 * found.place_count
    assert found.same_count > 0.85 * found.place_count


def test_the_exact_class_is_close_to_the_reference(name: str) -> None:
    exact, reference = (Speaker(name, kind).step((A, 0, PROMPT)).log_softmax(-1) for kind in ("w8", "f32"))
    assert (reference.exp() * (reference - exact)).sum() < 0.05


def test_the_exact_class_has_the_same_bits_alone_in_chunks_in_company_and_restored(name: str) -> None:
    speaker = Speaker(name)
    expected = speaker.step((A, 0, PROMPT))
    for start in range(0, 299, 23):
        speaker.step((B, start, PROMPT[start : min(start + 23, 299)]))
    assert torch.equal(speaker.step((B, 299, PROMPT[299:])), expected)
    speaker.step((C, 0, PROMPT + PROMPT[5:150]))
    assert torch.equal(speaker.step((B, 299, PROMPT[299:]), (C, 445, (7,)), (A, 0, PROMPT[:30])), expected)
    other = Speaker(name)
    assert other.engine.restore(A, PROMPT, [speaker.engine.export(B, index) for index in range(8)]) == 256
    for position in range(256, 299):
        other.step((A, position, PROMPT[position : position + 1]))
    assert torch.equal(other.step((A, 299, PROMPT[299:])), expected)


def test_a_window_hides_what_lies_before_it() -> None:
    for change, same in ((250, True), (295, False)):
        of = passes("qwen2-window", "f32")
        changed = (*PROMPT[:change], PROMPT[change] ^ 1, *PROMPT[change + 1 : 299])
        of.feed({"a": PROMPT[:299]})
        of.feed({"b": changed})
        rows = [of.feed({name: PROMPT[299:]})[name] for name in "ab"]
        assert torch.equal(rows[0], rows[1]) is same
