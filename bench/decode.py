"""How fast tokens come: our exact class beside transformers, over the same weights, in one process.

The two take turns in short bursts, so that a neighbour on the machine slows both alike; a figure is the median of the
bursts, and a ratio the median of the ratios of neighbouring bursts. transformers runs float32, its default on a CPU.

Not measured: the port's thread (its cost is a fraction of a millisecond a step), tokenizing, sampling above zero.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from pathlib import Path
from typing import Any

import platformdirs

import bench
from meshnode import errors, ids, ports
from meshnode.models import store

MODEL = "smollm2-135m"
MEMORY_BYTES = 1 << 30
THREADS = 2
GREEDY = ports.Sampling()
RESTORED_TOKENS = 3000


def run(quick: bool, runs: int) -> dict[str, float]:
    """Tokens a second at batch 1, 8 and 32, at two lengths of context; prefill and restore."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as host.py does; it must be said before torch is imported
    import torch

    torch.set_num_threads(THREADS)
    data = Path(os.environ.get("MESHNODE_DATA") or platformdirs.user_data_dir("meshnode"))
    try:
        installed = store.Models(data / "models").pull(MODEL)
    except errors.MeshError as error:
        raise bench.CannotMeasure(f"no model: {error}") from error
    started_s = time.perf_counter()
    ours = Ours(installed)
    load_s = time.perf_counter() - started_s
    burst = 8 if quick else 32
    with torch.inference_mode():
        figures = _beside_transformers(ours, Peer(installed.folder), burst, runs)
    figures |= _alone(ours, burst, runs)
    return {**figures, "load_s": load_s}


def _beside_transformers(ours: Ours, peer: Peer, burst: int, runs: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for label, context in (("b1", 128), ("b1_at_2048", 2048)):
        ours.fill(1, context)
        peer.fill(context)
        pairs = [(burst / ours.decode(1, context, burst), burst / peer.decode(burst)) for _ in range(runs + 1)][1:]
        figures[f"{label}_tok_s"] = statistics.median(mine for mine, _ in pairs)
        figures[f"{label}_transformers_tok_s"] = statistics.median(theirs for _, theirs in pairs)
        figures[f"{label}_over_transformers"] = statistics.median(mine / theirs for mine, theirs in pairs)
    return figures


def _alone(ours: Ours, burst: int, runs: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for size in (8, 32):
        ours.fill(size, 128)
        seconds = [ours.decode(size, 128, burst) for _ in range(runs)]
        figures[f"b{size}_tok_s"] = size * burst / statistics.median(seconds)
    for count in (512, 2048):
        seconds = [ours.fill(1, count) for _ in range(runs)]
        figures[f"prefill_{count}_tok_s"] = count / statistics.median(seconds)
    ours.fill(1, RESTORED_TOKENS)
    pages = ours.export(RESTORED_TOKENS)
    figures["restore_3000_ms"] = statistics.median(ours.restore(pages) for _ in range(runs + 1)) * 1000
    return figures


def _words(count: int) -> tuple[int, ...]:
    """Token ids without meaning: arithmetic takes as long over nonsense."""
    return tuple(1000 + index * 7919 % 40000 for index in range(count))


class Ours:
    """The engine; methods return seconds."""

    def __init__(self, installed: store.Installed) -> None:
        from meshnode.engine import engine

        self._engine = engine.TorchEngine.load(
            installed.folder,
            name=installed.name,
            digest=installed.digest,
            numeric_class="w8",
            memory_bytes=MEMORY_BYTES,
        )
        self._domains = itertools.count()

    def _domain(self) -> bytes:
        """A new one, in which nothing was computed yet."""
        return next(self._domains).to_bytes(4, "big")

    def fill(self, size: int, context: int) -> float:
        """Prefill `size` sessions, one after another."""
        started_s = time.perf_counter()
        for index in range(size):
            self._step([ports.Work(_name(index), 0, _words(context), GREEDY, self._domain())])
        return time.perf_counter() - started_s

    def decode(self, size: int, context: int, burst: int) -> float:
        started_s = time.perf_counter()
        for offset in range(burst):
            self._step([ports.Work(_name(index), context + offset, (1000,), GREEDY) for index in range(size)])
        return time.perf_counter() - started_s

    def export(self, token_count: int) -> list[bytes]:
        return [self._engine.export(_name(0), page) for page in range(token_count // self._engine.card.page_tokens)]

    def restore(self, pages: list[bytes]) -> float:
        started_s = time.perf_counter()
        tokens = _words(len(pages) * self._engine.card.page_tokens)
        self._engine.restore(_name(1), tokens, pages, domain=self._domain())
        return time.perf_counter() - started_s

    def _step(self, batch: list[ports.Work]) -> None:
        for answer in self._engine.step(batch):
            if isinstance(answer, errors.EngineError):
                raise bench.CannotMeasure(str(answer)) from answer


class Peer:
    """transformers over the same weights, with its own cache."""

    def __init__(self, folder: Path) -> None:
        try:
            import transformers
        except ImportError as error:
            raise bench.CannotMeasure("transformers is not installed: pip install 'meshnode[bench]'") from error
        import safetensors.torch

        from meshnode.engine import weights

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
            tie_word_embeddings=True,
        )
        self._model = transformers.LlamaForCausalLM(config).eval()
        named = safetensors.torch.load_file(folder / "weights.safetensors")
        self._model.load_state_dict({name: part.float() for name, part in named.items()}, strict=False)
        self._model.tie_weights()
        self._cache: Any = None

    def fill(self, context: int) -> None:
        self._cache = None
        self._step(list(_words(context)))

    def decode(self, burst: int) -> float:
        """Its context grows from burst to burst, as ours would; ours is cut back, which favours neither."""
        started_s = time.perf_counter()
        for _ in range(burst):
            self._step([1000])
        return time.perf_counter() - started_s

    def _step(self, tokens: list[int]) -> None:
        import torch

        found = self._model(torch.tensor([tokens]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = found.past_key_values
        found.logits.argmax().item()


def _name(index: int) -> ids.SessionId:
    return ids.SessionId(index.to_bytes(ids.SESSION_BYTES, "big"))
