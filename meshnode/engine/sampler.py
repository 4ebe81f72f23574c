"""Draw a token: a pure function of (logits, seed, position, context), so that a move to another host changes nothing.

The idea: Gumbel-max with counter-based noise. Each token id gets its own uniform number, hashed from (seed, position,
token id); the greatest of logit / temperature + gumbel(noise) is a sample of the softmax. There is no generator state
to save, to ship or to lose, and a fork needs only another seed. Penalties keep no counts either: they look at the
tokens of the context, which are the log's.

In this order, which is that of transformers and vLLM:

1. `repetition_penalty` p, for every token of the context, prompt and answer: logit / p where it is above 0, logit * p
   below (Keskar et al. 2019, CTRL, section 4.1; the sign is the usual mending of it).
2. `presence_penalty` a and `frequency_penalty` f, for tokens of the answer alone: logit - a - f * count. This is
   OpenAI's definition, whose count is "how often a token was sampled": a long prompt must not silence its own words.
3. `logit_bias`, added. 4. The grammar: what it does not allow has no chance. 5. `temperature`.
6. `top_k`: the k best. 7. `top_p`: of these the fewest whose probabilities reach p (Holtzman et al. 2020).
8. `min_p`: of these all with that share of the best one's probability (Nguyen et al. 2024).

Ties go to the lower token id, so that each cut is a function too. Log probabilities are of the raw logits: what the
model thinks, not what the options made of it.

Refused: logits that are not finite. Rejected: torch's generator (state; and its stream differs between versions), and
inverse sampling from cumulative sums (one float sum over 49152 values, whose order would have to be fixed as well).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from meshnode import errors, ports

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_WIDTH_MAX = 60.0
"""Candidates whose probability is below e^-60 of the best are left out before sorting: no float can tell."""
_LOGPROB_DECIMALS = 6
_LOOKS = (64, 1024, 8192)
"""Best candidates that are sorted before all of them are, until top-p has enough."""

Floats = np.ndarray[Any, Any]
Mask = np.ndarray[Any, Any]


class NotFinite(errors.EngineError):
    """The logits hold NaN or infinity: what they were computed from cannot be trusted any more."""


def check(logits: Floats) -> None:
    """Raises NotFinite. A logit of -inf is a token without a chance, unless all are."""
    if not np.isfinite(logits[int(np.argmax(logits))]):  # the first NaN, if there is one
        raise NotFinite("the logits are not finite")


def draw(
    logits: Floats,
    sampling: ports.Sampling,
    position: int,
    *,
    context: Sequence[int] = (),
    answer_from: int = 0,
    allowed: Mask | None = None,
) -> int | ports.Drawn:
    """The token after `position` tokens of context, as `Drawn` if the sampling asks for log probabilities.

    `logits` is float32 [vocabulary]. `context` is read by penalties only; `answer_from` as in ports.Work. `allowed` is
    bool [vocabulary], a grammar's word. Raises NotFinite, and EngineError if nothing is allowed.
    """
    check(logits)
    wanted = _adjusted(logits, sampling, context, answer_from)
    if allowed is not None:
        wanted = np.where(allowed, wanted, -np.inf)
    token = _drawn(wanted, sampling, position)
    return token if sampling.logprobs is None else _told(logits, token, sampling.logprobs)


def _drawn(logits: Floats, sampling: ports.Sampling, position: int) -> int:
    best = int(np.argmax(logits))
    if logits[best] == -np.inf:
        raise errors.EngineError("no token has a chance: the grammar allows none of those that the model can say")
    if sampling.temperature <= 0:
        return best
    scaled = logits.astype(np.float64) / sampling.temperature
    tokens = np.flatnonzero(scaled >= scaled[best] - _WIDTH_MAX)
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
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


def _adjusted(logits: Floats, sampling: ports.Sampling, context: Sequence[int], answer_from: int) -> Floats:
    """The logits after penalties and biases, float64 if there are any. [vocabulary]"""
    said = context[answer_from:] if answer_from else ()
    repeats = sampling.repetition_penalty != 1 and len(context) > 0
    counts = bool(sampling.presence_penalty or sampling.frequency_penalty) and len(said) > 0
    if not (repeats or counts or sampling.logit_bias):
        return logits
    wanted = logits.astype(np.float64)
    if repeats:
        seen = np.unique(np.asarray(context, dtype=np.int64))
        penalty = sampling.repetition_penalty
        wanted[seen] = np.where(wanted[seen] > 0, wanted[seen] / penalty, wanted[seen] * penalty)
    if counts:
        seen, times = np.unique(np.asarray(said, dtype=np.int64), return_counts=True)
        wanted[seen] -= sampling.presence_penalty + sampling.frequency_penalty * times
    for bias in sampling.logit_bias:
        if bias.token >= len(wanted):
            raise errors.EngineError(f"logit_bias: token {bias.token} is outside the vocabulary of {len(wanted)}")
        wanted[bias.token] += bias.amount
    return wanted


def _kept(scaled: Floats, tokens: Floats, sampling: ports.Sampling) -> Floats:
    """The candidates that top-k, top-p and min-p leave. No more of them are sorted than are looked at: to sort all of a
    vocabulary takes longer than to compute its logits."""
    values = scaled[tokens]
    if sampling.top_k > 0:
        best = _best(values, sampling.top_k)
        tokens, values = tokens[best], values[best]
    if sampling.top_p == 1 and sampling.min_p == 0:
        return tokens
    weights = np.exp(values - values.max())
    order = np.arange(len(values))
    if sampling.top_p < 1:
        mass = sampling.top_p * weights.sum()
        for count in (*_LOOKS, len(values)):
            order = _best(values, count)
            reached = np.cumsum(weights[order])
            kept = int(np.count_nonzero(reached - weights[order] < mass))
            if kept < len(order):
                break
        order = order[: max(1, kept)]
    return tokens[order[weights[order] >= sampling.min_p]]


def _best(values: Floats, count: int) -> Floats:
    """Where the `count` greatest stand, the greatest first, of equals the first."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    some = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return some[np.argsort(-values[some], kind="stable")][:count]


def _told(logits: Floats, token: int, count: int) -> ports.Drawn:
    """The token with its log probability, and the `count` likeliest."""
    raw = logits.astype(np.float64)
    raw -= raw.max()
    logs = np.maximum(raw - np.log(np.exp(raw).sum()), -9999.0)  # -inf is no number that could be written down
    top = _best(raw, count).tolist() if count else []
    rounded = [(one, round(float(logs[one]), _LOGPROB_DECIMALS)) for one in (token, *top)]
    return ports.Drawn(token, rounded[0][1], tuple(rounded[1:]))


def _mix_one(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
