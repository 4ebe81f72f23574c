"""llama.cpp through its C interface, as a child that obeys (`_orders`); run by the interpreter of its own environment.

    python -m bench._llamacpp MODEL.gguf THREADS EXTRA_BUFFERS

The clock runs while C code does, and at no other time: a batch is filled in before it starts, and the greedy token,
which ours draws, is not drawn here. What Python costs is not llama.cpp's fault.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import _orders

SEQUENCES_MAX = 32
CONTEXT_TOKENS = 8192
"""In all: 32 sequences of 128 tokens and their bursts, or one of 2,048."""
BATCH_TOKENS_MAX = 2048
MICRO_BATCH_TOKENS = 512


class LlamaCpp:
    """A model, and sequences in one cache."""

    def __init__(self, path: Path, threads: int, extra_buffers: bool) -> None:
        # By name: the other environments, in which this file is checked, do not have it.
        self._c: Any = importlib.import_module("llama_cpp")
        self._silent = self._c.llama_log_callback(lambda *_: None)  # kept: C calls it as long as the library lives
        self._c.llama_log_set(self._silent, ctypes.c_void_p(0))
        self._c.llama_backend_init()
        self._context = self._opened(path, threads, extra_buffers)
        self._memory = self._c.llama_get_memory(self._context)
        self._batch = self._c.llama_batch_init(BATCH_TOKENS_MAX, 0, 1)
        self._size, self._length = 0, 0

    def _opened(self, path: Path, threads: int, extra_buffers: bool) -> Any:
        wanted = self._c.llama_model_default_params()
        wanted.n_gpu_layers = 0
        wanted.use_extra_bufts = extra_buffers
        model = self._c.llama_model_load_from_file(str(path).encode(), wanted)
        assert model, "llama.cpp does not load the model"
        settings = self._c.llama_context_default_params()
        settings.n_ctx = CONTEXT_TOKENS
        settings.n_batch, settings.n_ubatch = BATCH_TOKENS_MAX, MICRO_BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_seq_max = SEQUENCES_MAX
        settings.kv_unified = True
        context = self._c.llama_init_from_model(model, settings)
        assert context, "llama.cpp makes no context"
        return context

    def fill(self, size: int, context: int) -> float:
        """Make `size` sequences of `context` tokens; those that stand from a smaller crowd are kept."""
        if context != self._length or size < self._size:
            self._c.llama_memory_clear(self._memory, True)
            self._size = 0
        seconds = sum(self._prefill(number, context, seed=number) for number in range(self._size, size))
        self._size, self._length = size, context
        return seconds

    def prefill(self, count: int, seed: int) -> float:
        """One sequence from nothing."""
        self._c.llama_memory_clear(self._memory, True)
        self._size = 0
        return self._prefill(0, count, seed)

    def decode(self, size: int, context: int, burst: int) -> float:
        """`burst` steps of all sequences, which are cut back to `context` first."""
        assert (size, context) == (self._size, self._length)
        for number in range(size):
            self._c.llama_memory_seq_rm(self._memory, number, context, -1)
        numbers = range(size)
        return sum(
            self._decode(numbers, [context + offset] * size, [_orders.TOKEN] * size, numbers) for offset in range(burst)
        )

    def _prefill(self, number: int, count: int, seed: int) -> float:
        return self._decode([number] * count, range(count), _orders.words(count, seed), [count - 1])

    def _decode(
        self, numbers: Sequence[int], positions: Sequence[int], tokens: Sequence[int], wanted: Sequence[int]
    ) -> float:
        """One call over rows of (sequence, position, token); the logits of `wanted` rows are waited for."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, (number, position, token) in enumerate(zip(numbers, positions, tokens, strict=True)):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, number
            batch.logits[row] = 0
        for row in wanted:
            batch.logits[row] = 1
        started_s = time.perf_counter()
        code = self._c.llama_decode(self._context, batch)
        found = self._c.llama_get_logits_ith(self._context, wanted[-1])
        seconds = time.perf_counter() - started_s
        assert code == 0, f"llama_decode answers {code}"
        assert found, "llama.cpp has no logits"
        return seconds


def main() -> None:
    path, threads, extra_buffers = sys.argv[1:]
    peer = LlamaCpp(Path(path), int(threads), extra_buffers == "1")
    _orders.obey({"fill": peer.fill, "prefill": peer.prefill, "decode": peer.decode})


if __name__ == "__main__":
    main()
