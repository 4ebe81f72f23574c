"""How fast tokens come: our exact class beside llama.cpp and transformers, over the same weights, two threads each.

All take turns in short bursts, so that a neighbour on the machine slows each alike; a speed is the median of the
bursts, and a ratio the median of the ratios of neighbouring bursts. Every burst begins at the same context.

llama.cpp runs the GGUF file (Q4_1) from which our weights were converted, transformers float32, its default on a CPU.
Ours draws the greedy token in its figure, llama.cpp does not. Not measured: the port's thread (a fraction of a
millisecond a step), tokenizing, sampling above zero.
"""

from __future__ import annotations

import operator
import time

from bench import _engine, _peers, _rounds
from meshnode.models import registry

BEDS = (("b1", 1, 128), ("b8", 8, 128), ("b32", 32, 128), ("b1_at_2048", 1, 2048))
"""(figure, sessions, context), growing: llama.cpp keeps the sequences of the bed before."""
BURST = 32
BURST_QUICK = 8


def run(quick: bool, runs: int) -> dict[str, float]:
    """Tokens a second in all at batch 1, 8 and 32, at two lengths of context."""
    burst = BURST_QUICK if quick else BURST
    model = _engine.installed()
    figures: dict[str, float] = {}
    with (
        _peers.llamacpp(registry.KNOWN[model.name], _trial) as (llamacpp, extra_buffers),
        _peers.transformers(model.folder) as transformers,
    ):
        started_s = time.perf_counter()
        ours = _engine.Ours(_engine.load(model))
        load_s = time.perf_counter() - started_s
        for label, size, context in BEDS:
            acting: dict[str, _rounds.Decoder] = {"ours": ours, "llamacpp": llamacpp}
            if size == 1:
                acting["transformers"] = transformers
            for one in acting.values():
                one.fill(size, context)
            act = operator.methodcaller("decode", size, context, burst)
            figures |= _rounds.paired(label, _rounds.run(label, size * burst, runs, acting, act))
    return {**figures, "llamacpp_extra_buffers": float(extra_buffers), "load_s": load_s}


def _trial(peer: _peers.Peer) -> float:
    """What both of its ways are compared by; the prefill is there because that is where one may crash."""
    peer.prefill(512, 1)
    peer.fill(1, BEDS[0][2])
    return min(peer.decode(1, BEDS[0][2], BURST) for _ in range(3))
