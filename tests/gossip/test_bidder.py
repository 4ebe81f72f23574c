"""What stands against an offer: every reason, in words, and memory that is promised once."""

from __future__ import annotations

import pytest

from meshnode import config, manifest
from meshnode.gossip import bidder
from meshnode.ids import SessionId
from tests.sessions import cases

NEEDED = 64 * cases.CARD.page_bytes  # 256 tokens of context


def fresh(card: object = cases.CARD, **settings: object) -> bidder.Bidder:
    of = bidder.Bidder(config.Node(**settings), card)
    of.memory_bytes = 10 * NEEDED
    return of


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ({"placement": {"model": "other"}}, "placement.model:"),
        ({"placement": {"model_digest": "00" * 32}}, "placement.model_digest:"),
        ({"placement": {"numeric_class": "f32"}}, "placement.numeric_class:"),
        ({"placement": {"zones": ["moon", "eu"]}}, "placement.zones: moon, eu asked"),
        ({"placement": {"memory_bytes_min": 10 * NEEDED}}, "memory:"),
        ({"characteristics": {"context_tokens": 257}}, "characteristics.context_tokens: 256 at most"),
    ],
)
def test_each_unmet_constraint_is_named(tables: dict[str, object], word: str) -> None:
    (reason,) = fresh().host_refusals(0.0, cases.wants(**tables))
    assert word in reason


def test_all_reasons_are_given_at_once() -> None:
    wants = cases.wants(placement={"model": "x", "zones": ["moon"], "numeric_class": "f32"})
    assert len(fresh().host_refusals(0.0, wants)) == 3


def test_a_manifest_that_fits_is_refused_by_nobody() -> None:
    wants = cases.wants(placement={"model": "tiny", "zones": ["eu"], "model_digest": cases.CARD.model_digest.hex()})
    of = fresh(zone="eu")
    assert of.host_refusals(0.0, wants) == []
    assert of.vote_refusals(wants) == []


def test_a_node_that_drains_takes_neither_session_nor_log() -> None:
    of = fresh()
    of.draining = True
    assert of.host_refusals(0.0, cases.wants()) == of.vote_refusals(cases.wants()) == [bidder.DRAINS]


def test_a_node_that_does_not_host_or_vote_says_so() -> None:
    wants = cases.wants()
    assert "host = false" in fresh(host=False).host_refusals(0.0, wants)[0]
    assert "host = false" in fresh(None).host_refusals(0.0, wants)[0]
    assert "vote = false" in fresh(vote=False).vote_refusals(wants)[0]
    assert fresh(None).needs_bytes(wants) == 0


def test_reservations_add_up_run_out_and_do_not_stand_against_their_own_auction() -> None:
    of = fresh()
    of.memory_bytes = NEEDED
    wants: manifest.Manifest = cases.wants()
    of.hold(0.0, cases.AUCTION, wants, 2.0)
    assert of.free_bytes(0.0) == 0
    assert "memory" in of.host_refusals(0.0, wants)[0]
    assert of.host_refusals(0.0, wants, cases.AUCTION) == []
    assert of.host_refusals(2.0, wants) == []
    of.hold(2.0, cases.AUCTION, wants, 4.0)
    of.release(cases.AUCTION)
    assert of.free_bytes(2.0) == NEEDED


def test_hosted_sessions_take_memory_and_places() -> None:
    of = fresh(sessions_max=1)
    of.hosted = {cases.SESSION: 3 * NEEDED}
    assert of.free_bytes(0.0) == 7 * NEEDED
    assert "places are taken" in of.host_refusals(0.0, cases.wants())[0]
    assert of.host_refusals(0.0, cases.wants(), None, cases.SESSION) == []
    of.hosted = {SessionId(b"x" * 16): 99 * NEEDED}
    assert of.free_bytes(0.0) == 0


def test_the_number_of_reservations_has_a_bound() -> None:
    of = fresh()
    for number in range(bidder.RESERVATIONS_MAX + 50):
        of.hold(0.0, cases.request(number), cases.wants(), 5.0)
    assert len(of._holds) == bidder.RESERVATIONS_MAX


def test_memory_is_counted_in_whole_pages() -> None:
    wants = cases.wants(characteristics={"context_tokens": 65})
    assert fresh().needs_bytes(wants) == 17 * cases.CARD.page_bytes
