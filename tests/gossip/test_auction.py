"""Who gets the session: odd voters, other operators, the host's recipe, and what is said when it comes out less."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from meshnode.gossip import auction
from meshnode.gossip.messages import Bid
from meshnode.ids import PeerId
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D, E


def bid(host: Iterable[str] = (), vote: Iterable[str] = (), *, sessions: int = 0, recipe: str = "r") -> Bid:
    return Bid(cases.AUCTION, tuple(host), tuple(vote), recipe, 1 << 30, sessions, 8)


def held(nominees: dict[PeerId, str], **tables: object) -> auction.Auction:
    wants = cases.wants(**tables)
    paper = cases.invitation(wants)
    return auction.Auction(cases.AUCTION, cases.SESSION, cases.AGENT.peer, paper, wants, nominees, 0.0, 0.5, 10.0)


def chosen(bids: dict[PeerId, Bid], operators: dict[PeerId, str] | None = None, **tables: object) -> object:
    of = held(operators or dict.fromkeys(bids, ""), **tables)
    for peer, one in bids.items():
        of.on_bid(0.01, peer, one)
    return of.choose(random.Random(1))


def roles(plan: object) -> list[str]:
    assert isinstance(plan, auction.Plan)
    return [role for _, role in plan.seats]


@pytest.mark.parametrize(
    ("count", "replicas", "expected"),
    [
        (1, 0, ["host"]),
        (1, 1, ["host"]),
        (2, 1, ["host"]),
        (3, 1, ["host", "replica", "witness"]),
        (3, 2, ["host", "replica", "replica"]),
        (4, 3, ["host", "replica", "replica"]),
        (5, 3, ["host", "replica", "replica", "replica", "witness"]),
        (5, 1, ["host", "replica", "witness"]),
    ],
)
def test_voters_are_odd_with_as_many_replicas_as_that_allows(count: int, replicas: int, expected: list[str]) -> None:
    plan = chosen({node.peer: bid() for node in cases.NODES[:count]}, migration={"replicas": replicas})
    assert roles(plan) == expected
    assert bool(plan.shortfall) == (expected.count("replica") < replicas)


def test_without_failover_the_agent_is_told() -> None:
    plan = chosen({A: bid(), B: bid()})
    assert plan.shortfall.startswith("no failover")


def test_fewer_replicas_than_the_least_are_a_refusal() -> None:
    refused = chosen({A: bid(), B: bid()}, migration={"replicas": 1, "replicas_min": 1})
    assert isinstance(refused, auction.Refusal)
    assert refused.status == 488
    assert refused.reasons[0].startswith("migration.replicas_min: no failover")


def test_replicas_come_from_other_operators_where_there_is_a_choice() -> None:
    operators = {A: "x", B: "x", C: "y", D: "x"}
    bids = {peer: bid(sessions=place) for place, peer in enumerate(operators)}
    plan = chosen(bids, operators)
    assert plan.host == A
    assert plan.replicas == (C,)


def test_a_replica_has_the_hosts_recipe() -> None:
    bids = {A: bid(recipe="one"), B: bid(recipe="two", sessions=1), C: bid(recipe="one", sessions=2)}
    plan = chosen(bids)
    assert (plan.host, plan.replicas, plan.witness) == (A, (C,), B)


def test_the_emptier_host_is_taken_and_then_the_nearer() -> None:
    assert chosen({A: bid(sessions=3), B: bid(sessions=1), C: bid(sessions=2)}).host == B
    of = held(dict.fromkeys((A, B, C), ""))
    of.on_bid(0.3, A, bid())
    of.on_bid(0.02, B, bid())
    of.on_bid(0.1, C, bid())
    assert of.choose(random.Random(1)).host == B


def test_a_slow_answer_is_beyond_the_latency_ceiling() -> None:
    of = held({A: "", B: ""}, placement={"latency_ms_max": 50})
    of.on_bid(0.06, A, bid())
    refused = of.choose(random.Random(1))
    assert "took 60 ms, 50 ms were asked (1 of 1 nodes)" in refused.reasons[0]
    of.on_bid(0.04, B, bid())
    assert of.choose(random.Random(1)).host == B


def test_a_refusal_counts_every_reason_also_those_against_voting() -> None:
    no = ["memory: none"]
    refused = chosen({A: bid(no), B: bid(no, ["zone"]), C: bid((), ["this node keeps no logs (vote = false)"])})
    assert refused.status == 488
    assert set(refused.reasons) == {
        "memory: none (2 of 3 nodes)",
        "zone (1 of 3 nodes)",
        "this node keeps no logs (vote = false) (1 of 3 nodes)",
    }


def test_no_bid_at_all_is_another_status() -> None:
    refused = chosen({})
    assert refused.status == 480
    assert refused.reasons


def test_a_stranger_neither_bids_nor_confirms() -> None:
    of = held({A: "", B: ""})
    assert of.on_bid(0.0, E, bid()) is False
    assert of.bids == {}
    of.on_bid(0.0, A, bid())
    assert of.on_bid(0.0, B, bid()) is True
    of.choose(random.Random(1))
    of.awarding(0.5, 0.8)
    assert of.on_confirm(E, 1, ("no",)) is None
    assert of._excluded == {}


def test_all_seats_must_confirm_this_attempt() -> None:
    of = held(dict.fromkeys((A, B, C), ""))
    for peer in (A, B, C):
        of.on_bid(0.0, peer, bid())
    of.choose(random.Random(1))
    of.awarding(0.5, 0.8)
    assert of.on_confirm(A, 0, ()) is None
    assert of.on_confirm(A, 1, ()) is None
    assert of.on_confirm(A, 1, ()) is None
    assert of.on_confirm(B, 1, ()) is None
    assert of.on_confirm(C, 1, ()) is True


def test_whoever_refuses_or_stays_silent_is_left_out_of_the_next_plan() -> None:
    of = held(dict.fromkeys((A, B, C, D), ""))
    for place, peer in enumerate((A, B, C, D)):
        of.on_bid(0.0, peer, bid(sessions=place))
    first = of.choose(random.Random(1))
    assert first.host == A
    of.awarding(0.5, 0.8)
    assert of.on_confirm(A, 1, ("full",)) is False
    second = of.choose(random.Random(1))
    assert A not in dict(second.seats)
    of.awarding(0.6, 0.8)
    of.on_confirm(C, 2, ())
    of.exclude_silent()
    third = of.choose(random.Random(1))
    assert dict(third.seats) == {C: "host"}
    assert third.shortfall


def test_a_late_bid_is_waited_for_only_if_something_is_missing_without_it() -> None:
    of = held(dict.fromkeys((A, B, C, D), ""))
    assert not of.on_bid(0.1, A, bid())
    assert of.waits(0.5, of.choose(random.Random(1))), "one voter is no failover, and three may still answer"
    assert of.due == of.patience_at == 2.0
    assert of.on_bid(0.6, B, bid()), "after the window every bid is a reason to look again"
    assert of.waits(0.6, of.choose(random.Random(1)))
    assert of.on_bid(0.7, C, bid())
    assert not of.waits(0.7, of.choose(random.Random(1))), "three voters are what was asked; the fourth is not needed"


def test_nobody_is_waited_for_beyond_patience() -> None:
    of = held(dict.fromkeys((A, B, C), ""))
    of.on_bid(0.1, A, bid())
    assert not of.waits(2.0, of.choose(random.Random(1)))
