"""How fast a prompt of 2,048 tokens is taken in: ours beside llama.cpp and transformers, over the same weights.

All take turns, a prompt each, two threads each; a ratio is the median of the ratios within a round. Every prompt has
words of its own: ours would not compute again what it has paged.
"""

from __future__ import annotations

import itertools

from bench import _engine, _peers, _rounds
from meshnode.models import registry

TRIAL_TOKENS = 512
COUNTS = (512, 2048)


def run(quick: bool, runs: int) -> dict[str, float]:
    """Prompt tokens a second of each, and ours over the faster peer. `quick` leaves the shorter prompt out."""
    model = _engine.installed()
    with (
        _peers.llamacpp(registry.KNOWN[model.name], lambda peer: peer.prefill(TRIAL_TOKENS, 0)) as (llamacpp, extra),
        _peers.transformers(model.folder) as transformers,
    ):
        ours = _engine.Ours(_engine.load(model))
        acting: dict[str, _rounds.Decoder] = {"ours": ours, "llamacpp": llamacpp, "transformers": transformers}
        seeds = itertools.count(1)
        figures: dict[str, float] = {}
        for count in COUNTS[quick:]:
            label = f"p{count}"
            found = _rounds.run(label, count, runs, acting, lambda one, count=count: one.prefill(count, next(seeds)))  # type: ignore[misc]
            figures |= _rounds.paired(label, found) | {f"{label}_over_best_peer": _rounds.over_best(found)}
    return {**figures, "llamacpp_extra_buffers": float(extra)}
