"""transformers over the same weights in float32, its default on a CPU, as a child that obeys (`_orders`).

    python -m bench._reference MODEL_FOLDER THREADS

In a process of its own, since ours tells OpenMP to sleep while it waits, which is no default of theirs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from bench import _orders
from meshnode.engine import weights


def model(folder: Path) -> Any:
    """A LlamaForCausalLM with the weights of a converted model. Raises ImportError without transformers."""
    import transformers

    of = weights.shape(folder)
    config = transformers.LlamaConfig(
        vocab_size=of.vocabulary,
        hidden_size=of.hidden,
        intermediate_size=of.ffn,
        num_hidden_layers=of.layers,
        num_attention_heads=of.heads,
        num_key_value_heads=of.kv_heads,
        head_dim=of.head_dim,
        max_position_embeddings=of.context_tokens_max,
        rms_norm_eps=of.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": of.rope_theta},
        tie_word_embeddings=of.tied,
    )
    made = transformers.LlamaForCausalLM(config).eval()
    named = safetensors.torch.load_file(folder / "weights.safetensors")
    lacking = made.load_state_dict({name: part.float() for name, part in named.items()}, strict=False)
    assert not lacking.unexpected_keys, lacking.unexpected_keys
    assert set(lacking.missing_keys) <= {"lm_head.weight"}, lacking.missing_keys
    made.tie_weights()
    return made


class Reference:
    """The model and one cache, of as many rows as were filled."""

    def __init__(self, folder: Path) -> None:
        self._model = model(folder)
        self._cache: Any = None

    def fill(self, size: int, context: int) -> float:
        self._cache = None
        return self._step([_orders.words(context, seed) for seed in range(size)])

    def prefill(self, count: int, seed: int) -> float:
        self._cache = None
        return self._step([_orders.words(count, seed)])

    def decode(self, size: int, context: int, burst: int) -> float:
        """`burst` steps, after a cut back to `context`."""
        if beyond := self._cache.get_seq_length() - context:
            self._cache.crop(-beyond)
        return sum(self._step([[_orders.TOKEN]] * size) for _ in range(burst))

    def _step(self, tokens: list[list[int]]) -> float:
        started_s = time.perf_counter()
        found = self._model(torch.tensor(tokens), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = found.past_key_values
        found.logits.argmax(-1).tolist()
        return time.perf_counter() - started_s


def main() -> None:
    folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    peer = Reference(Path(folder))
    with torch.inference_mode():
        _orders.obey({"fill": peer.fill, "prefill": peer.prefill, "decode": peer.decode})


if __name__ == "__main__":
    main()
