"""Every family over small random weights: the numbers of transformers in float32, and the promise of "w8"."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers

from meshnode import ids, ports
from meshnode.engine import engine, weights
from meshnode.models import architectures

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
    "llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama-linear": (transformers.LlamaConfig, {"rope_parameters": LINEAR}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "mistral-window": (transformers.MistralConfig, {"sliding_window": 130, "head_dim": 12}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-yarn": (transformers.Qwen2Config, {"rope_parameters": YARN}),
    "qwen2-window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0},
    ),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
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
    return shape, weights.assemble(shape, named, exact=numeric_class == "f32")


class Speaker:
    """An engine that keeps the logits of each row that it was asked for."""

    def __init__(self, name: str, numeric_class: str = "w8") -> None:
        of, inside = loaded(name, numeric_class)
        self.engine = engine.TorchEngine(
            of, inside, name=name, digest=ids.digest(name.encode()), numeric_class=numeric_class, memory_bytes=1 << 22
        )
        self.rows: list[torch.Tensor] = []
        inner = self.engine._llama.forward

        def forward(*arguments: Any) -> torch.Tensor:
            logits = inner(*arguments)
            self.rows += list(logits.clone())
            return logits

        self.engine._llama.forward = forward  # type: ignore[method-assign]

    def step(self, *works: tuple[ids.SessionId, int, tuple[int, ...]]) -> torch.Tensor:
        """The last row of the first of these that the engine takes: of the shortest feed, then the lowest position."""
        before = len(self.rows)
        answers = self.engine.step([ports.Work(*work, ports.Sampling()) for work in works])
        assert all(isinstance(answer, int) for answer in answers)
        return self.rows[before]


@pytest.fixture(params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_reference_class_has_the_logits_of_transformers(name: str) -> None:
    speaker = Speaker(name, "f32")
    with torch.inference_mode():
        expected = peer(name)(torch.tensor([PROMPT])).logits[0]
    assert expected.abs().amax() > 0.5  # else anything would be within the bound
    for start, stop in ((0, 1), (1, 40), (40, 140), (140, 299), (299, 300)):
        row = speaker.step((A, start, PROMPT[start:stop]))
        assert (row - expected[stop - 1]).abs().amax() < 1e-4


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
    assert torch.equal(speaker.step((C, 445, (7,)), (B, 299, PROMPT[299:]), (A, 0, PROMPT[:30])), expected)
    other = Speaker(name)
    assert other.engine.restore(A, PROMPT, [speaker.engine.export(B, index) for index in range(8)]) == 256
    for position in range(256, 299):
        other.step((A, position, PROMPT[position : position + 1]))
    assert torch.equal(other.step((A, 299, PROMPT[299:])), expected)


def test_a_window_hides_what_lies_before_it() -> None:
    speaker = Speaker("qwen2-window", "f32")
    with torch.inference_mode():
        for _, position, change in ((0, 299, 250), (1, 299, 295)):
            speaker.step((A, 0, PROMPT[:position]))
            rows = [speaker.step((A, position, PROMPT[position:]))]
            changed = (*PROMPT[:change], PROMPT[change] ^ 1, *PROMPT[change + 1 : position])
            speaker.step((B, 0, changed))
            rows.append(speaker.step((B, position, PROMPT[position:])))
            assert torch.equal(rows[0], rows[1]) is (change == 250)
