"""Drawing is a function, and its function is the softmax."""

from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
import torch
import transformers
from hypothesis import strategies as st

from meshnode import errors, options, ports
from meshnode.engine import sampler

KNOWN = ["0x1.64f3eceb45cdfp-1", "0x1.53afd2fdaa04fp-1", "0x1.738e761f9f81cp-3"]
BRANCH_ONE = 955978363379822224
LOGITS = np.array([1.0, 3.0, 3.0, 0.0, 2.0, -5.0], dtype=np.float32)


def drawn(count: int = 4000, **settings: float) -> np.ndarray:
    sampling = ports.Sampling(**{"temperature": 1.0, "seed": 3, **settings})  # type: ignore[arg-type]
    return np.bincount([sampler.draw(LOGITS, sampling, position) for position in range(count)], minlength=6) / count


def test_temperature_zero_takes_the_first_of_the_greatest() -> None:
    assert sampler.draw(LOGITS, ports.Sampling(seed=9), 5) == 1


def test_frequencies_are_those_of_the_softmax() -> None:
    chances = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert np.abs(drawn() - chances).max() < 0.03


def test_temperature_sharpens() -> None:
    chances = np.exp(LOGITS / 0.5) / np.exp(LOGITS / 0.5).sum()
    assert np.abs(drawn(temperature=0.5) - chances).max() < 0.03


def test_top_k_keeps_the_k_greatest_and_the_lower_of_equals() -> None:
    assert np.flatnonzero(drawn(top_k=1)).tolist() == [1]
    assert np.flatnonzero(drawn(top_k=3)).tolist() == [1, 2, 4]


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert np.flatnonzero(drawn(top_p=0.01)).tolist() == [1]
    assert np.flatnonzero(drawn(top_p=0.6)).tolist() == [1, 2]


def test_seed_and_position_both_matter() -> None:
    tokens = np.arange(50)
    numbers = [sampler.uniform(seed, position, tokens) for seed, position in ((1, 2), (2, 1), (1, 3), (1, 2))]
    assert np.array_equal(numbers[0], numbers[3])
    assert not np.intersect1d(numbers[0], numbers[1]).size
    assert not np.intersect1d(numbers[0], numbers[2]).size


def test_the_noise_is_known_to_the_last_bit() -> None:
    found = sampler.uniform(2**64 - 1, 8191, np.array([0, 1, 49151]))
    assert [number.hex() for number in found] == KNOWN
    assert (found > 0).all()
    assert (found < 1).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(poison: float) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(errors.EngineError, match="finite"):
            sampler.draw(np.array([0.0, poison, 1.0]), ports.Sampling(temperature=temperature), 0)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf])
    assert {sampler.draw(logits, ports.Sampling(temperature=9.0), position) for position in range(50)} == {1}


# ------------------------------------------------------------------------------------ against a reference without wits


def slow(logits: list[float], of: ports.Sampling, context: list[int], answer_from: int) -> tuple[list[float], set[int]]:
    """The definitions, word for word: adjusted logits, and the tokens that have a chance."""
    said = context[answer_from:] if answer_from else []
    found = []
    for token, logit in enumerate(logits):
        if token in context:
            logit = logit / of.repetition_penalty if logit > 0 else logit * of.repetition_penalty
        if token in said:
            logit -= of.presence_penalty + of.frequency_penalty * said.count(token)
        found.append(logit + sum(bias.amount for bias in of.logit_bias if bias.token == token))
    chances = np.exp((np.array(found) - max(found)) / of.temperature)
    line = sorted(range(len(found)), key=lambda token: (-chances[token], token))
    line = line[: of.top_k] if of.top_k else line
    kept, reached = [], 0.0
    for token in line:
        if of.top_p < 1 and kept and reached >= of.top_p * sum(chances[one] for one in line):
            break
        kept.append(token)
        reached += chances[token]
    return found, {token for token in kept if chances[token] >= of.min_p * chances[kept[0]]}


def halves(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers whose sums are exact, so that no tie depends on the last bit."""
    return st.integers(int(low * 8), int(high * 8)).map(lambda number: number / 8)


SAMPLINGS = st.builds(
    ports.Sampling,
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([0.11, 0.37, 0.71, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.21, 0.57]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
    presence_penalty=halves(-2, 2),
    frequency_penalty=halves(-2, 2),
    logit_bias=st.lists(st.builds(options.Bias, st.integers(0, 7), halves(-9, 9)), max_size=3).map(tuple),
)


@hypothesis.given(
    st.lists(halves(-6, 6), min_size=8, max_size=8), SAMPLINGS, st.lists(st.integers(0, 7), max_size=12), st.data()
)
def test_what_is_drawn_is_among_what_the_definitions_leave(
    logits: list[float], sampling: ports.Sampling, context: list[int], data: st.DataObject
) -> None:
    answer_from = data.draw(st.integers(0, len(context)))
    adjusted, kept = slow(logits, sampling, context, answer_from)
    raw = np.array(logits, dtype=np.float32)
    found = sampler._adjusted(raw, sampling, context, answer_from)
    assert found.tolist() == adjusted
    scaled = found.astype(np.float64) / sampling.temperature
    assert set(sampler._kept(scaled, np.arange(8), sampling).tolist()) == kept
    drawn = [
        sampler.draw(raw, sampling, position, context=context, answer_from=answer_from)
        for position in (len(context), len(context) + 1)
    ]
    assert set(drawn) <= kept
    greedy = dataclasses.replace(sampling, temperature=0.0)
    assert sampler.draw(raw, greedy, 0, context=context, answer_from=answer_from) == int(np.argmax(adjusted))


@hypothesis.given(st.lists(st.floats(-20, 20), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_it(logits: list[float], top_p: float) -> None:
    scaled = np.array(logits)
    kept = sampler._kept(scaled, np.arange(len(logits)), ports.Sampling(temperature=1.0, top_p=top_p))
    chances = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    assert chances[kept].sum() >= top_p - 1e-9, "it reaches p"
    assert chances[kept[:-1]].sum() < top_p + 1e-9, "and would not without its least"
    assert min(chances[kept]) >= max(np.delete(chances, kept), default=0.0), "and nothing better is left out"


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits = np.random.default_rng(1).normal(size=64).astype(np.float32) * 5
    context = [3, 9, 9, 40, 63]
    peer = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    theirs = peer(torch.tensor([context]), torch.tensor(logits[None].copy()))[0].numpy()
    ours = sampler._adjusted(logits, ports.Sampling(repetition_penalty=1.3), context, 3)
    assert np.abs(ours - theirs).max() < 1e-5


def test_presence_and_frequency_count_the_answer_and_not_the_prompt() -> None:
    zeros = np.zeros(6, dtype=np.float32)
    sampling = ports.Sampling(presence_penalty=1.0, frequency_penalty=0.25)
    found = sampler._adjusted(zeros, sampling, [1, 1, 2, 3, 3, 3], 3)
    assert found.tolist() == [0.0, 0.0, 0.0, -1.75, 0.0, 0.0]
    assert sampler._adjusted(zeros, sampling, [1, 1, 2], 0) is zeros, "nothing of the answer is said yet"


def test_a_bias_bans_and_forces() -> None:
    def with_bias(token: int, amount: float) -> int:
        return sampler.draw(LOGITS, ports.Sampling(logit_bias=(options.Bias(token, amount),)), 0)

    assert with_bias(1, -100.0) == 2
    assert with_bias(5, 100.0) == 5
    with pytest.raises(errors.EngineError, match="vocabulary of 6"):
        with_bias(6, 1.0)


def test_what_a_grammar_does_not_allow_is_not_drawn() -> None:
    allowed = np.array([True, False, False, True, False, False])
    assert sampler.draw(LOGITS, ports.Sampling(), 0, allowed=allowed) == 0
    hot = ports.Sampling(temperature=9.0)
    assert {sampler.draw(LOGITS, hot, position, allowed=allowed) for position in range(60)} == {0, 3}
    with pytest.raises(errors.EngineError, match="grammar"):
        sampler.draw(LOGITS, ports.Sampling(), 0, allowed=np.zeros(6, dtype=bool))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_mask_hides_no_logits_that_are_not_finite(poison: float) -> None:
    logits = np.array([0.0, poison, 1.0])
    for options_ in (ports.Sampling(), ports.Sampling(temperature=1.0, repetition_penalty=2.0, logprobs=2)):
        with pytest.raises(errors.EngineError, match="finite"):
            sampler.draw(logits, options_, 0, context=[0, 1], allowed=np.array([True, False, True]))


def test_log_probabilities_are_the_models_own() -> None:
    logs = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    hot = ports.Sampling(temperature=3.0, seed=5, logprobs=3, logit_bias=(options.Bias(5, 100.0),))
    found = sampler.draw(LOGITS, hot, 0)
    assert isinstance(found, ports.Drawn)
    assert (found.token, found.logprob) == (5, round(float(logs[5]), 6))
    assert [token for token, _ in found.top] == [1, 2, 4], "of equals the lower id first"
    assert found.top[2][1] == pytest.approx(logs[4], abs=1e-6)
    plain = sampler.draw(LOGITS, ports.Sampling(logprobs=0), 0)
    assert plain == ports.Drawn(1, round(float(logs[1]), 6), ())
    impossible = sampler.draw(np.array([0.0, -np.inf]), ports.Sampling(logprobs=2), 0)
    assert impossible == ports.Drawn(0, 0.0, ((0, 0.0), (1, -9999.0)))


def test_branches_differ_and_come_again() -> None:
    seeds = [options.branch_seed(7, branch) for branch in range(100)]
    assert seeds[0] == 7, "the first of n is the only one of one"
    assert len(set(seeds)) == 100
    assert seeds == [options.branch_seed(7, branch) for branch in range(100)]
    assert all(0 <= seed <= options.SEED_MAX for seed in seeds)
    assert not set(seeds) & {options.branch_seed(8, branch) for branch in range(100)}
    assert options.branch_seed(7, 1) == BRANCH_ONE, "on every host and in every version"


@pytest.mark.parametrize("width", [0.01, 1.0, 3.0, 9.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.9999])
def test_a_large_vocabulary_is_cut_where_a_whole_sort_would_cut_it(width: float, top_p: float) -> None:
    scaled = np.round(np.random.default_rng(3).normal(size=20_000) * width, 2)  # with many ties
    order = np.argsort(-scaled, kind="stable")
    chances = np.exp(scaled - scaled.max())
    before = np.cumsum(chances[order]) - chances[order]
    expected = order[before < top_p * chances.sum()]
    found = sampler._kept(scaled, np.arange(20_000), ports.Sampling(temperature=1.0, top_p=top_p))
    assert found.tolist() == expected.tolist()
    fewer = sampler._kept(scaled, np.arange(20_000), ports.Sampling(temperature=1.0, top_k=777))
    assert fewer.tolist() == order[:777].tolist()
