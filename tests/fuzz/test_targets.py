"""A short, fixed stretch of each fuzz target in every test run; `python -m tests.fuzz` goes on from there."""

from __future__ import annotations

import random

import pytest

from meshnode import errors
from tests.fuzz import mutate, targets

INPUTS = 2000


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.name)
def test_almost_good_bytes_are_taken_or_the_peers_fault(target: targets.Target) -> None:
    rng = random.Random(1)
    taken = refused = 0
    for _ in range(INPUTS):
        try:
            target.decode(mutate.mutated(target.seeds, rng))
            taken += 1
        except errors.PeerError:
            refused += 1
    assert taken > INPUTS // 20  # the seeds are good, so the mutations start inside the door
    assert refused > INPUTS // 4


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.name)
def test_the_seeds_themselves_are_taken(target: targets.Target) -> None:
    for seed in target.seeds:
        target.decode(seed)
