"""Drawing is a function, and its function is the softmax."""

from __future__ import annotations

import numpy as np
import pytest

from meshnode import errors, ports
from meshnode.engine import sampler

KNOWN = ["0x1.64f3eceb45cdfp-1", "0x1.53afd2fdaa04fp-1", "0x1.738e761f9f81cp-3"]
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
