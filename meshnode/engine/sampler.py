"""Draw a token: a pure function of (logits, seed, position), so that a move to another host changes nothing.

The idea: Gumbel-max with counter-based noise. Each token id gets its own uniform number, hashed from (seed, position,
token id); the greatest of logit / temperature + gumbel(noise) is a sample of the softmax. There is no generator state
to save, to ship or to lose, and a fork needs only another seed.

top-k and top-p cut the candidates first; ties go to the lower token id, so the cut is a function too.
Refused: logits that are not finite. Rejected: torch's generator (state; and its stream differs between versions), and
inverse sampling from cumulative sums (one float sum over 49152 values, whose order would have to be fixed as well).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from meshnode import errors, ports

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_WIDTH_MAX = 60.0
"""Candidates whose probability is below e^-60 of the best are left out before sorting: no float can tell."""

Floats = np.ndarray[Any, Any]


def draw(logits: Floats, sampling: ports.Sampling, position: int) -> int:
    """The token after `position` tokens of context."""
    best = int(np.argmax(logits))  # the first NaN, if there is one
    if not np.isfinite(logits[best]):
        raise errors.EngineError("the logits are not finite")
    if sampling.temperature <= 0:
        return best
    scaled = logits.astype(np.float64) / sampling.temperature
    tokens = np.flatnonzero(scaled >= scaled[best] - _WIDTH_MAX)
    if sampling.top_k or sampling.top_p < 1:
        tokens = _kept(scaled, tokens, sampling)
    noise = uniform(sampling.seed, position, tokens)
    return int(tokens[np.argmax(scaled[tokens] - np.log(-np.log(noise)))])


def uniform(seed: int, position: int, tokens: Floats) -> Floats:
    """Numbers in (0, 1), one for each token id: splitmix64 over a stream that seed and position start."""
    start = _mix_one(_mix_one(seed & _MASK) ^ (position & _MASK))
    state = np.uint64(start) + (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _kept(scaled: Floats, tokens: Floats, sampling: ports.Sampling) -> Floats:
    order = tokens[np.argsort(-scaled[tokens], kind="stable")]
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        weights = np.exp(scaled[order] - scaled[order[0]])
        before = np.cumsum(weights) - weights
        order = order[: max(1, int(np.count_nonzero(before < sampling.top_p * weights.sum())))]
    return order


def _mix_one(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
