"""Ours, for the benches: the engine with its default class, and acts that return their seconds.

The idea: what the engine is made of changes with every issue, its steps do not. `logits` is the one function that
reaches behind them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import bench
from bench import _orders, _peers
from meshnode import errors, ids, node, ports
from meshnode.models import store

if TYPE_CHECKING:
    import torch

    from meshnode.engine import engine, pages

MODEL = "smollm2-135m"
NUMERIC_CLASS = "w8"
"""What a node hosts with unless its owner says otherwise."""
MEMORY_BYTES = 1 << 30
GREEDY = ports.Sampling()


def installed() -> store.Installed:
    """The model, pulled if need be. Raises CannotMeasure."""
    try:
        return store.Models(node.models_folder()).pull(MODEL)
    except errors.MeshError as error:
        raise bench.CannotMeasure(f"no model: {error}") from error


def load(found: store.Installed, numeric_class: str = NUMERIC_CLASS) -> engine.TorchEngine:
    """Raises ConfigError for a class that is not known."""
    # As host.py does, and for its reason; it must be said before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from meshnode.engine import engine

    return engine.TorchEngine.load(
        found.folder,
        name=found.name,
        digest=found.digest,
        numeric_class=numeric_class,
        memory_bytes=MEMORY_BYTES,
        threads=_peers.THREADS,
    )


def session(index: int) -> ids.SessionId:
    return ids.SessionId(index.to_bytes(ids.SESSION_BYTES, "big"))


class Ours:
    """The same acts as a peer's (`_peers.Peer`), in this process."""

    def __init__(self, inner: engine.TorchEngine) -> None:
        self._inner = inner
        self.pid = os.getpid()

    def fill(self, size: int, context: int) -> float:
        """Prefill `size` sessions, one after another, each with words of its own."""
        return sum(self.feed(index, 0, _orders.words(context, index)) for index in range(size))

    def prefill(self, count: int, seed: int) -> float:
        """One session from nothing. Give each call a seed of its own: what was once paged is not computed again."""
        self.drop(0)
        return self.feed(0, 0, _orders.words(count, seed))

    def decode(self, size: int, context: int, burst: int) -> float:
        """`burst` steps of all sessions, which the first cuts back to `context`."""
        started_s = time.perf_counter()
        for offset in range(burst):
            position = context + offset
            self._step([ports.Work(session(index), position, (_orders.TOKEN,), GREEDY) for index in range(size)])
        return time.perf_counter() - started_s

    def feed(self, index: int, position: int, tokens: Sequence[int], domain: bytes = b"") -> float:
        """Seconds until the token after these."""
        work = ports.Work(session(index), position, tuple(tokens), GREEDY, domain)
        started_s = time.perf_counter()
        self._step([work])
        return time.perf_counter() - started_s

    def drop(self, index: int) -> None:
        self._inner.drop(session(index))

    def _step(self, batch: list[ports.Work]) -> None:
        for answer in self._inner.step(batch):
            if isinstance(answer, errors.EngineError):
                raise bench.CannotMeasure(str(answer)) from answer


def logits(inner: engine.TorchEngine, index: int, tokens: Sequence[int]) -> torch.Tensor:  # [token, vocabulary]
    """The logits after each of `tokens`, as float32. Give each call an index of its own: what a session's pages hold is
    not computed again, and then has no logits."""
    import torch

    llama, seen = inner._llama, []
    computed = llama.forward

    def forward(segments: Sequence[pages.Segment], wanted: Sequence[int]) -> Any:
        every = computed(segments, list(range(sum(len(one.tokens) for one in segments))))
        seen.append(torch.from_numpy(every.copy()))
        return every[list(wanted)]

    llama.forward = forward  # type: ignore[method-assign]
    try:
        [answer] = inner.step([ports.Work(session(index), 0, tuple(tokens), None)])
    finally:
        llama.forward = computed  # type: ignore[method-assign]
        inner.drop(session(index))
    if isinstance(answer, errors.EngineError):
        raise bench.CannotMeasure(str(answer)) from answer
    assert sum(len(rows) for rows in seen) == len(tokens), "rows were computed of something else"
    return torch.cat(seen)
