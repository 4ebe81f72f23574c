"""The owner's part of a repair, rule by rule: when a voter counts as lost, what may be proposed, and who counts."""

from __future__ import annotations

import random

import pytest

from meshnode.machine import Durable, Effect
from meshnode.sessions import contract, log, messages, registry, timers
from meshnode.sessions.messages import Out, Replicate, Replicated, Route, Unknown
from meshnode.sessions.serving import Serving
from meshnode.wire.award import Seat
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D, E

TIMERS = timers.TIMERS[cases.wants().characteristics.kind]
NEWCOMER = Seat(D, "replica", ("/ip4/10.0.0.4/tcp/4001",))


class Owner:
    """A owns the session; the disk is at once, and followers answer when a test says so."""

    def __init__(self, count: int = 3) -> None:
        sealed = cases.award(count)
        self.brain = registry.Registry(A, cases.CARD, random.Random(1), cases.NODES[0])
        self.brain.born(0.0, contract.read(sealed), sealed)
        self.now = 0.0
        self.brain.from_agent(0.0, cases.AGENT.peer, messages.Ack(cases.SESSION, cases.AUCTION))
        self.durable()

    @property
    def serving(self) -> Serving:
        found = self.brain.members[cases.SESSION].serving
        assert found is not None
        return found

    @property
    def released(self) -> int:
        return self.serving.voter.released

    @property
    def number(self) -> int:
        return self.serving.repair.seating.current.number

    @property
    def voters(self) -> frozenset[bytes]:
        return self.serving.owner.voters

    def durable(self) -> list[Effect]:
        return self.brain.from_hands(self.now, Durable(cases.SESSION, 1, self.serving.voter.log.last))

    def acks(self, *peers: bytes) -> list[Effect]:
        effects: list[Effect] = []
        for peer in peers:
            last = self.serving.voter.log.last
            reply = Replicated(cases.SESSION, 1, last, True, int(self.now * 1e6))
            effects += self.brain.from_voter(self.now, peer, reply)
        return effects

    def severed(self, peer: bytes) -> list[Effect]:
        return self.brain.severed_from(self.now, peer)

    def searches(self) -> list[object]:
        return [search for _, search in self.brain.searches(self.now)]

    def repairing(self, lost: bytes = B) -> list[Effect]:
        """Until D is a learner that has nothing yet."""
        self.acks(B, C)
        self.severed(lost)
        assert len(self.searches()) == 1
        return self.brain.found(self.now, cases.SESSION, NEWCOMER)

    def write(self) -> list[Effect]:
        return self.serving.write(self.now, [messages.Turn(cases.request(9), (3, 4), 8)])


def seats_of(search: object) -> set[bytes]:
    return {seat.peer for seat in search.seats}


def test_a_voter_whose_process_is_dead_is_lost_at_once_and_others_after_the_bound_of_the_kind() -> None:
    of = Owner()
    of.acks(B, C)
    assert of.searches() == []
    of.severed(B)
    (search,) = of.searches()
    assert (search.role, seats_of(search), search.lost, search.since) == ("replica", {A, C}, (B,), 2)
    assert of.searches() == [], "one search at a time"
    mute = Owner()
    mute.acks(B, C)
    mute.now = TIMERS.replace_after_s
    mute.acks(C)
    assert mute.searches() == []
    mute.now += 0.01
    mute.acks(C)
    assert [search.lost for search in mute.searches()] == [(B,)]


def test_nothing_is_proposed_before_an_entry_of_this_epoch_is_released() -> None:
    of = Owner()
    of.severed(B)
    assert of.released == 1
    assert of.searches() == []
    of.acks(C)
    assert of.released == 2
    assert len(of.searches()) == 1


def test_an_owner_without_its_majority_looks_for_nobody() -> None:
    of = Owner()
    of.acks(B, C)
    of.now = TIMERS.lease_s + TIMERS.replace_after_s
    of.severed(B)
    assert of.searches() == []


def test_a_learner_counts_for_nothing_however_much_it_has() -> None:
    of = Owner()
    of.repairing()
    of.brain.members[cases.SESSION].serving.hosting.pages.removed(D)
    of.write()
    of.durable()
    reply = Replicated(cases.SESSION, 1, of.serving.voter.log.last - 1, True, 0)
    of.brain.from_voter(of.now, D, reply)
    assert of.serving.owner.matched(D) == 2
    assert (of.released, of.number) == (2, 1)
    assert of.voters == {A, B, C, D}, "seated by an entry, which is not released yet"


def test_a_newcomer_is_seated_when_it_has_the_log_and_not_before() -> None:
    of = Owner()
    effects = of.repairing()
    assert (D, 1) in [(to, sent.prev_seq) for to, sent in cases.sent(effects, Replicate)]
    for number in range(20):
        of.write()
        of.acks(C)
        assert of.number == 0, number
    of.acks(D)
    assert of.number == 1


def test_four_need_three_and_the_lost_one_leaves_when_the_newcomer_is_released() -> None:
    of = Owner()
    of.repairing()
    of.acks(D)
    assert of.voters == {A, B, C, D}
    seated = of.serving.voter.log.last
    of.durable()
    of.acks(D)
    assert of.released < seated, "two of four"
    of.acks(C)
    assert of.released >= seated
    assert (of.voters, of.number) == ({A, C, D}, 2), "one change after the other"
    of.durable()
    effects = of.acks(D)
    assert of.released == of.serving.voter.log.last
    assert (B, Out(cases.SESSION, 2)) in cases.sent(effects)
    assert {to for to, _ in cases.sent(effects, Route)} >= {C, D}


def test_a_change_in_flight_blocks_the_next() -> None:
    of = Owner(5)
    of.acks(B, C, D, E)
    of.severed(B)
    of.severed(E)
    assert len(of.searches()) == 1
    taker = Seat(cases.NODES[5].peer, "replica", ())
    of.brain.found(of.now, cases.SESSION, taker)
    of.acks(taker.peer)
    assert of.number == 1
    of.acks(C)
    assert of.searches() == []
    assert of.number == 1


def test_a_voter_that_comes_back_keeps_its_seat_and_the_newcomer_is_sent_away() -> None:
    of = Owner()
    of.repairing()
    of.write()
    effects = of.acks(B)
    assert cases.sent(effects, Out) == [(D, Out(cases.SESSION, 0))]
    assert (of.number, of.voters) == (0, {A, B, C})
    assert D not in of.serving.hosting.replicas
    assert of.serving.repair.word == ""


def test_a_newcomer_that_comes_no_further_is_given_up_and_another_looked_for() -> None:
    of = Owner()
    of.repairing()
    for number in range(20):
        of.write()
        of.now += 1.0
        of.acks(C)
        of.serving.repair.tick(of.now, of.serving)
        assert number < 10 or of.serving.repair.learner is None
    assert len(of.searches()) == 1


def test_without_anybody_it_says_so_and_tries_again() -> None:
    of = Owner()
    of.acks(B, C)
    of.severed(B)
    of.searches()
    of.brain.not_found(of.now, cases.SESSION, "no spare node")
    assert of.serving.repair.word == "degraded: no spare node"
    assert (of.searches(), of.number) == ([], 0)
    of.now = 5.0
    of.acks(C)
    assert len(of.searches()) == 1


def test_who_keeps_no_such_session_is_lost_and_leaves_first_where_nobody_else_could_come() -> None:
    of = Owner()
    of.acks(B, C)
    of.brain.from_voter(of.now, B, Unknown(cases.SESSION))
    assert [search.lost for search in of.searches()] == [(B,)]
    of.brain.not_found(of.now, cases.SESSION, "no spare node")
    of.serving.repair.tick(of.now, of.serving)
    assert of.voters == {A, C}
    of.durable()
    of.acks(C)
    (search,) = of.searches()
    assert (seats_of(search), search.lost, search.role) == ({A, C}, (), "replica")
    assert search.since >= 3, "behind the entry that took its seat"


def test_a_dead_voter_keeps_its_seat_until_there_is_somebody() -> None:
    of = Owner()
    of.acks(B, C)
    of.severed(B)
    of.searches()
    of.brain.not_found(of.now, cases.SESSION, "no spare node")
    of.serving.repair.tick(of.now, of.serving)
    assert of.voters == {A, B, C}


def test_a_voter_that_lacks_what_it_acknowledged_in_this_epoch_is_told_that_it_is_out() -> None:
    of = Owner()
    of.acks(B, C)
    of.now = 0.5
    stale = Replicated(cases.SESSION, 1, 1, False, 0)
    of.brain.from_voter(of.now, B, stale)
    assert of.searches() == [], "a refusal of before its acknowledgement came is only late"
    effects = of.brain.from_voter(of.now, B, Replicated(cases.SESSION, 1, 1, False, 400_000))
    assert (B, Out(cases.SESSION, 0)) in cases.sent(effects)
    assert [search.lost for search in of.searches()] == [(B,)]


def test_a_session_that_was_placed_without_replicas_is_not_repaired() -> None:
    of = Owner(1)
    assert of.released == 2
    of.now = 100.0
    assert of.searches() == []


def test_a_session_that_is_over_changes_its_seats_no_more() -> None:
    of = Owner()
    of.acks(B, C)
    of.severed(B)
    of.serving.on_bye(of.now, "done")
    assert of.searches() == []


def test_a_lost_witness_is_replaced_by_a_witness() -> None:
    of = Owner()
    of.acks(B, C)
    of.severed(C)
    assert [search.role for search in of.searches()] == ["witness"]


@pytest.mark.parametrize("told", [True, False])
def test_a_client_that_attends_is_told_who_votes_now(told: bool) -> None:
    of = Owner()
    if told:
        of.brain.from_agent(of.now, cases.AGENT.peer, messages.Subscribe(cases.SESSION, 0))
    of.repairing()
    of.acks(D)
    of.durable()
    of.acks(C)
    effects = of.acks(D)
    routes = [route for to, route in cases.sent(effects, Route) if to == cases.AGENT.peer]
    assert bool(routes) == told
    for route in routes:
        assert {seat.peer for seat in log.roster(route.rosters[-1])[1].seats} <= {A, B, C, D}


def test_who_is_asked_in_again_is_not_sent_away_for_what_it_asks_in_its_old_seat() -> None:
    of = Owner()
    of.repairing(lost=B)
    for _ in range(2):
        of.acks(C, D)
        of.durable()
    of.acks(C, D)
    ask = messages.PreVote(cases.SESSION, 1)
    assert B not in of.voters
    assert [message for _, message in cases.sent(of.brain.from_voter(of.now, B, ask))] == [
        Out(cases.SESSION, of.number)
    ]
    of.severed(D)
    assert len(of.searches()) == 1
    of.brain.found(of.now, cases.SESSION, Seat(B, "replica", NEWCOMER.addresses))
    assert cases.sent(of.brain.from_voter(of.now, B, ask)) == []
