"""One seat of a living session: who is asked, who is preferred, and what happens to those that say no."""

from __future__ import annotations

import random

import pytest

from meshnode import errors
from meshnode.gossip import placing, seeking
from meshnode.gossip.messages import Bid, Confirm, Join, Offer, Publish, Release
from meshnode.ports import Lane, LinkUp
from meshnode.sessions import contract
from meshnode.wire import envelope
from meshnode.wire.award import Award, Seat
from tests.gossip.test_directory import sealed
from tests.gossip.test_placing import WINDOWS, node
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D, E

BIRTH = cases.award()
PAPERS = contract.read(BIRTH)
TIMES = WINDOWS[PAPERS.manifest.characteristics.kind]


def want(role: str = "replica") -> seeking.Want:
    return seeking.Want(cases.SESSION, PAPERS.award, BIRTH, role, (A, C), (B,), 7)


def begun(peers: int = 5, role: str = "replica", **settings: object) -> tuple[seeking.Seeking, dict[bytes, Offer]]:
    of = seeking.Seeking(node(0, peers, **settings), random.Random(1))
    effects, outcomes = of.begin(0.0, want(role), PAPERS.manifest, TIMES)
    assert outcomes == []
    return of, dict(cases.sent(effects, Offer))


def bid(of: seeking.Seeking, offer: Offer, host: tuple[str, ...] = (), recipe: str = "", sessions: int = 0) -> Bid:
    return Bid(offer.auction, host, (), recipe or of.placing.bidder.recipe, 1 << 30, sessions, 8)


def confirm(join: Join, *refusals: str) -> Confirm:
    return Confirm(join.auction, join.session, 1, refusals)


def test_everybody_is_asked_but_those_who_have_or_lost_a_seat() -> None:
    _, offers = begun()
    assert set(offers) == {D, E}
    alone = seeking.Seeking(node(0, 3), random.Random(1))
    effects, outcomes = alone.begin(0.0, want(), PAPERS.manifest, TIMES)
    assert (effects, outcomes) == ([], [seeking.Outcome(cases.SESSION, None, "no spare node")])


def test_the_emptier_one_is_asked_in_with_the_papers_and_when_it_confirms_the_others_are_released() -> None:
    of, offers = begun()
    assert of.on_bid(0.01, D, bid(of, offers[D], sessions=3)) == ([], [])
    effects, _ = of.on_bid(0.02, E, bid(of, offers[E]))
    ((to, join),) = cases.sent(effects)
    assert (to, join.award, join.role, join.since) == (E, BIRTH, "replica", 7)
    assert of.on_confirm(0.03, D, confirm(join)) == ([], []), "not the one that was asked"
    effects, (outcome,) = of.on_confirm(0.03, E, confirm(join))
    assert outcome.seat is not None
    assert (outcome.seat.peer, outcome.seat.role) == (E, "replica")
    assert cases.sent(effects) == [(D, Release(join.auction, cases.SESSION))]
    assert of.deadline == float("inf")


def test_other_operators_than_those_with_a_seat_are_preferred() -> None:
    of = seeking.Seeking(node(0, 3, operator="ann"), random.Random(1))
    for place, operator in ((3, "ann"), (4, "bob")):
        of.placing.mesh.link_up(0.0, LinkUp(cases.NODES[place].peer, Lane.SIGNAL))
        of.placing.mesh.on_publish(0.0, cases.NODES[place].peer, Publish((sealed(by=place, operator=operator),)))
    effects, _ = of.begin(0.0, want(), PAPERS.manifest, TIMES)
    offers = dict(cases.sent(effects, Offer))
    of.on_bid(0.01, D, bid(of, offers[D]))
    effects, _ = of.on_bid(0.01, E, bid(of, offers[E], sessions=5))
    assert [to for to, _ in cases.sent(effects, Join)] == [E]


def test_a_replica_is_of_the_same_recipe_and_a_witness_needs_none() -> None:
    for role, found in (("replica", False), ("witness", True)):
        of, offers = begun(4, role)
        effects, outcomes = of.on_bid(0.01, D, bid(of, offers[D], recipe="other"))
        assert bool(cases.sent(effects, Join)) == found
        assert [outcome.seat for outcome in outcomes] == ([] if found else [None])


def test_who_refuses_or_is_silent_is_followed_by_the_next_and_in_the_end_by_no_spare_node_and_why() -> None:
    of, offers = begun()
    of.on_bid(0.01, D, bid(of, offers[D]))
    effects, _ = of.on_bid(0.01, E, bid(of, offers[E], sessions=5))
    ((to, join),) = cases.sent(effects, Join)
    assert to == D
    effects, _ = of.on_confirm(0.02, D, confirm(join, "memory is gone"))
    assert [to for to, _ in cases.sent(effects, Join)] == [E]
    assert of.tick(0.5) == ([], [])
    effects, (outcome,) = of.tick(of.deadline)
    assert (outcome.seat, outcome.reason) == (None, "no spare node")
    assert {to for to, _ in cases.sent(effects, Release)} == {D, E}
    full, offers = begun(4)
    _, (outcome,) = full.on_bid(0.01, D, bid(full, offers[D], host=("all 8 places are taken",)))
    assert outcome.reason == "no spare node; all 8 places are taken"


def test_the_window_closes_without_those_who_are_silent() -> None:
    of, offers = begun()
    of.on_bid(0.01, D, bid(of, offers[D]))
    assert of.deadline == TIMES.bid_s
    effects, _ = of.tick(of.deadline)
    assert [to for to, _ in cases.sent(effects, Join)] == [D]


# ----------------------------------------------------------------------------------------------------- who is asked in


def join(of: placing.Placing, **settings: object) -> tuple[list[object], placing.Seated | None]:
    given = {"auction": cases.AUCTION, "session": cases.SESSION, "award": BIRTH, "role": "replica", "since": 7}
    return of.on_join(0.0, A, Join(**{**given, **settings}))


def test_a_request_to_join_is_checked_as_a_seat_of_an_award() -> None:
    effects, found = join(node(3))
    assert effects == []
    assert found is not None
    assert (found.role, found.agent) == ("replica", cases.AGENT.peer)
    full = node(3)
    full.bidder.memory_bytes = 0
    effects, found = join(full)
    assert found is None
    ((_, told),) = cases.sent(effects, Confirm)
    assert "memory" in told.refusals[0]
    assert join(full, role="witness")[1] is not None, "a witness keeps no pages"


@pytest.mark.parametrize("settings", [{"role": "host"}, {"role": "king"}, {"session": b"o" * 16}, {"award": b"paper"}])
def test_a_request_to_join_with_papers_that_do_not_fit_is_the_senders_fault(settings: dict[str, object]) -> None:
    with pytest.raises(errors.PeerError):
        join(node(3), **settings)
    hostless = Award(cases.AUCTION, cases.SESSION, 1, cases.invitation(), (Seat(A, "witness", ()),))
    with pytest.raises(errors.PeerError):
        join(node(3), award=envelope.seal(cases.NODES[0], hostless))
