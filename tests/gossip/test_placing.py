"""INVITE to Answer, values in and values out, between nodes that exist only here."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshnode import config, errors, ids, manifest
from meshnode.gossip import bidder, mesh, placing
from meshnode.gossip.messages import Answer, Awarded, Bid, Cancel, Confirm, Invite, Offer, Publish, Release, Trying
from meshnode.ports import Lane, LinkUp
from meshnode.wire import envelope
from meshnode.wire.award import Award, Seat
from tests.gossip.test_directory import sealed
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D

WINDOWS = {kind: placing.Windows(0.5, 10.0, 0.8, 2.5) for kind in manifest.Kind}
CONFIRM_S = 0.8
AGENT = cases.AGENT.peer
INVITE = Invite(cases.SESSION, cases.invitation())


def node(place: int = 0, peers: int = 3, **settings: object) -> placing.Placing:
    """A node that hears the first `peers` nodes."""
    of = mesh.Mesh(cases.NODES[place], config.Node(**settings), cases.CARD, 1, random.Random(1))
    for other in range(peers):
        if other != place:
            of.link_up(0.0, LinkUp(cases.NODES[other].peer, Lane.SIGNAL))
            of.on_publish(0.0, cases.NODES[other].peer, Publish((sealed(by=other),)))
    mine = bidder.Bidder(of.config, cases.CARD)
    mine.memory_bytes = 1 << 30
    return placing.Placing(of, mine, random.Random(1))


def invited(of: placing.Placing, now: float = 0.0) -> tuple[dict[bytes, Offer], list[object]]:
    sends = cases.sent(of.on_invite(now, AGENT, INVITE, WINDOWS))
    return {to: one for to, one in sends if isinstance(one, Offer)}, [one for to, one in sends if to == AGENT]


def bids(of: placing.Placing, offers: dict[bytes, Offer], now: float = 0.01) -> list[object]:
    effects: list[object] = []
    for to, offer in offers.items():
        effects += of.on_bid(now, to, Bid(offer.auction, (), (), "r", 1 << 30, 0, 8), CONFIRM_S)
    return effects


def test_an_invite_is_answered_with_trying_and_offers_to_the_living() -> None:
    offers, told = invited(node())
    assert set(offers) == {A, B, C}
    assert told == [Trying(cases.SESSION)]
    late, _ = invited(node(), now=60.0)
    assert set(late) == {A}, "who was not heard lately is nominated for nothing"


def test_who_drains_is_nominated_for_nothing_be_it_another_or_oneself() -> None:
    of = node()
    of.mesh.on_publish(0.0, B, Publish((sealed(by=1, version=9, draining=True),)))
    assert set(invited(of)[0]) == {A, C}
    of = node()
    of.bidder.draining = True
    assert set(invited(of)[0]) == {B, C}


def test_a_repeated_invite_holds_no_second_auction() -> None:
    of = node()
    invited(of)
    offers, told = invited(of)
    assert (offers, told) == ({}, [Trying(cases.SESSION)])
    assert len(of.auctions) == 1


def test_the_whole_way_gives_the_agent_an_award_that_all_seats_confirmed() -> None:
    of = node()
    offers, _ = invited(of)
    awards = cases.sent(bids(of, offers), Awarded)
    assert {to for to, _ in awards} == {A, B, C}
    signer, award = envelope.expect(awards[0][1].award, Award)
    assert signer == A
    assert sorted(seat.role for seat in award.seats) == ["host", "replica", "witness"]
    confirm = Confirm(award.auction, cases.SESSION, 1, ())
    assert of.on_confirm(0.1, A, confirm, CONFIRM_S) == []
    assert of.on_confirm(0.1, B, confirm, CONFIRM_S) == []
    effects = of.on_confirm(0.1, C, confirm, CONFIRM_S)
    ((to, answer),) = cases.sent(effects)
    assert to == AGENT
    assert (answer.status, answer.reasons) == (200, ())
    assert envelope.expect(answer.award, Award)[1].seats == award.seats
    assert of.auctions == {}
    assert of.deadline == float("inf")


def test_a_nominee_without_a_seat_is_released() -> None:
    of = node(peers=4)
    offers, _ = invited(of)
    awards = cases.sent(bids(of, offers), Awarded)
    auction = next(iter(of.auctions))
    effects: list[object] = []
    for to, _ in awards:
        effects += of.on_confirm(0.1, to, Confirm(auction, cases.SESSION, 1, ()), CONFIRM_S)
    released = {to for to, _ in cases.sent(effects, Release)}
    assert released == {A, B, C, D} - {to for to, _ in awards}
    assert len(released) == 1


def test_a_silent_seat_is_replaced_where_another_could_take_it() -> None:
    of = node(peers=5)
    offers, _ = invited(of)
    first = [to for to, _ in cases.sent(bids(of, offers, 0.1), Awarded)]
    confirm = Confirm(next(iter(of.auctions)), cases.SESSION, 1, ())
    for seat in first[1:]:
        of.on_confirm(0.2, seat, confirm, CONFIRM_S)
    second = {to for to, _ in cases.sent(of.tick(0.9, CONFIRM_S), Awarded)}
    assert len(second) == 3
    assert first[0] not in second


def test_a_silent_seat_that_nobody_could_take_is_waited_for_until_the_invites_time_is_near() -> None:
    of = node()
    offers, _ = invited(of)
    seats = [to for to, _ in cases.sent(bids(of, offers, 0.1), Awarded)]
    confirm = Confirm(next(iter(of.auctions)), cases.SESSION, 1, ())
    for seat in seats[1:]:
        of.on_confirm(0.2, seat, confirm, CONFIRM_S)
    assert cases.sent(of.tick(0.9, CONFIRM_S)) == []
    assert cases.sent(of.tick(1.7, CONFIRM_S)) == []
    ((_, answer),) = cases.sent(of.on_confirm(2.0, seats[0], confirm, CONFIRM_S), Answer)
    assert (answer.status, answer.reasons) == (200, ())


def test_seats_that_stay_silent_end_in_an_answer_within_the_invites_time() -> None:
    of = node(peers=5)
    offers, _ = invited(of)
    bids(of, offers, 0.1)
    end: list[object] = []
    while of.auctions:
        now = of.deadline
        assert now <= 9.5
        end += of.tick(now, CONFIRM_S)
    ((_, answer),) = cases.sent(end, Answer)
    assert answer.status in (408, 480, 488, 503)
    assert answer.reasons


def test_a_window_without_bids_closes_with_an_answer() -> None:
    of = node()
    invited(of)
    assert of.deadline == 0.5
    assert cases.sent(of.tick(0.5, CONFIRM_S), Answer) == [], "a late bid is waited for"
    assert of.deadline == 2.0
    ((_, answer),) = cases.sent(of.tick(2.0, CONFIRM_S), Answer)
    assert answer.status == 480
    assert answer.reasons


def test_a_canceled_invite_is_answered_and_its_nominees_released() -> None:
    of = node()
    invited(of)
    assert of.on_cancel(B, Cancel(cases.SESSION)) == [], "another's session"
    sends = cases.sent(of.on_cancel(AGENT, Cancel(cases.SESSION)))
    assert [one.status for _, one in sends if isinstance(one, Answer)] == [487]
    assert {to for to, one in sends if isinstance(one, Release)} == {A, B, C}


def test_the_number_of_auctions_has_a_bound() -> None:
    of = node(peers=1)
    for number in range(placing.AUCTIONS_MAX):
        session = ids.SessionId(number.to_bytes(16, "big"))
        of.on_invite(0.0, AGENT, Invite(session, cases.invitation(session=session)), WINDOWS)
    _, (answer,) = invited(of)
    assert answer.status == 503


def test_a_manifest_is_refused_with_all_that_is_wrong_in_it() -> None:
    broken = replace(cases.wants(), agent=replace(cases.wants().agent, top_p=7.0, seed=-0))
    paper = cases.invitation(broken, session=ids.SessionId(b"o" * 16))
    ((_, answer),) = cases.sent(node().on_invite(0.0, AGENT, Invite(cases.SESSION, paper), WINDOWS))
    assert answer.status == 400
    assert len(answer.reasons) == 2


def test_a_manifest_that_the_sender_did_not_sign_is_refused() -> None:
    with pytest.raises(errors.PeerError, match="did not sign"):
        node().on_invite(0.0, cases.STRANGER.peer, INVITE, WINDOWS)
    with pytest.raises(errors.PeerError):
        node().on_invite(0.0, AGENT, Invite(cases.SESSION, INVITE.invitation[:-1]), WINDOWS)


# ------------------------------------------------------------------------------------------------------------- nominee


def offered(of: placing.Placing, wants: manifest.Manifest | None = None, now: float = 0.0) -> Bid:
    effects = of.on_offer(now, A, Offer(cases.AUCTION, cases.SESSION, cases.invitation(wants)), WINDOWS)
    ((to, bid),) = cases.sent(effects, Bid)
    assert to == A
    return bid


def test_an_offer_is_answered_with_a_bid_that_holds_memory_for_a_while() -> None:
    of = node(1)
    before = of.bidder.free_bytes(0.0)
    bid = offered(of)
    assert (bid.host_refusals, bid.vote_refusals) == ((), ())
    assert of.bidder.free_bytes(0.0) < before
    assert of.bidder.free_bytes(2.5) == before


def test_an_offer_of_a_manifest_that_breaks_its_bounds_is_refused_in_words() -> None:
    broken = replace(cases.wants(), characteristics=replace(cases.wants().characteristics, context_tokens=0))
    of = node(1)
    bid = offered(of, broken)
    assert bid.host_refusals[0].startswith("characteristics.context_tokens")
    assert bid.vote_refusals
    assert of.bidder._holds == {}


def paper(*seats: tuple[bytes, str], by: int = 0) -> Awarded:
    award = Award(
        cases.AUCTION, cases.SESSION, 1, cases.invitation(), tuple(Seat(who, role, ()) for who, role in seats)
    )
    return Awarded(envelope.seal(cases.NODES[by], award))


@pytest.mark.parametrize(
    ("awarded", "words"),
    [
        (paper((A, "host"), (B, "replica"), (C, "witness"), by=2), "somebody else"),
        (paper((A, "host"), (B, "replica")), "even number"),
        (paper((A, "host"), (C, "replica"), (D, "witness")), "seats this node not once"),
        (paper((B, "host"), (B, "replica"), (C, "witness")), "seats this node not once"),
        (paper((A, "host"), (B, "host"), (C, "witness")), "not one host"),
        (paper((A, "host"), (B, "boss"), (C, "witness")), "nobody plays"),
        (Awarded(cases.invitation()), "expected Award"),
        (Awarded(b""), "CBOR"),
    ],
)
def test_an_award_that_is_not_what_it_says_is_refused(awarded: Awarded, words: str) -> None:
    with pytest.raises(errors.PeerError, match=words):
        node(1).on_awarded(0.0, A, awarded)


def test_an_award_of_a_lost_reservation_is_checked_anew_and_refused_in_words() -> None:
    of = node(1)
    offered(of)
    of.bidder.memory_bytes = 0
    effects, seated = of.on_awarded(9.0, A, paper((A, "host"), (B, "replica"), (C, "witness")))
    assert seated is None
    ((_, confirm),) = cases.sent(effects, Confirm)
    assert confirm.refusals[0].startswith("memory:")


def test_a_witness_needs_no_memory() -> None:
    of = node(1)
    of.bidder.memory_bytes = 0
    _, seated = of.on_awarded(9.0, A, paper((A, "host"), (C, "replica"), (B, "witness")))
    assert seated is not None
    assert (seated.role, seated.agent) == ("witness", AGENT)
