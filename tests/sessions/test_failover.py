"""Rounds of one candidate: evidence, votes, promises, the best log, and what sets it back."""

from __future__ import annotations

import random

import pytest

from meshnode import errors
from meshnode.sessions import failover, messages, timers
from meshnode.sessions.failover import Act, Stage
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D


def fresh(needed: int = 1, rank: int | None = 0) -> failover.Candidate:
    voters = frozenset(node.peer for node in cases.NODES[: 2 * needed + 1])
    return failover.Candidate(A, voters, rank, random.Random(1))


def asking(needed: int = 1, promised: int = 1) -> failover.Candidate:
    of = fresh(needed)
    of.begin(0.0)
    assert of.tick(0.0, promised) is Act.PREVOTE
    return of


def preparing(needed: int = 1, after: int = 1) -> failover.Candidate:
    of = asking(needed)
    of.preparing(0.1, after)
    return of


def promise(
    epoch: int, last_epoch: int = 1, last: int = 1, after: int = 1, *entries: messages.Entry
) -> messages.Promise:
    return messages.Promise(cases.SESSION, epoch, True, last_epoch, last, after, entries)


def test_each_waits_by_its_rank_and_who_cannot_host_never_stands() -> None:
    for rank in (0, 2):
        of = fresh(rank=rank)
        of.begin(5.0)
        assert of.due == 5.0 + rank * timers.ELECTION_RANK_S
    of = fresh(rank=None)
    of.begin(5.0)
    assert (of.stage, of.due) == (Stage.IDLE, float("inf"))


def test_a_round_asks_for_an_epoch_above_all_that_were_promised() -> None:
    of = asking(promised=4)
    assert of.epoch == 5
    of.outbid(9)
    assert of.tick(of.due, 4) is Act.PREVOTE
    assert of.epoch == 10
    assert of.tick(of.due - 1e-6, 4) is None


def test_votes_of_a_majority_lead_to_prepare_each_counted_once() -> None:
    of = asking(needed=2)
    assert of.on_prevoted(B, of.epoch) is None
    assert of.on_prevoted(B, of.epoch) is None
    assert of.on_prevoted(C, of.epoch + 1) is None
    assert of.on_prevoted(C, of.epoch) is Act.PREPARE


def test_who_is_alone_prepares_at_once() -> None:
    of = fresh(needed=0)
    of.begin(0.0)
    assert of.tick(0.0, 1) is Act.PREPARE
    of.preparing(0.0, 1)
    assert of.decide(1, 1) is Act.TAKE
    assert of.adopted() is None


def test_the_best_log_is_adopted_by_epoch_first_and_length_second() -> None:
    of = preparing(needed=2)
    of.epoch = 5
    tail = (cases.entry(2, 7),)
    of.on_promise(B, promise(5, 1, 9, 1, *[cases.entry(1)] * 8))
    assert of.decide(1, 3) is None, "one of two is no majority"
    of.on_promise(C, promise(5, 2, 2, 1, *tail))
    assert of.decide(1, 3) is Act.TAKE
    assert of.best == C
    assert of.adopted() == tail
    assert of.decide(3, 1) is Act.TAKE
    assert of.adopted() is None, "our own was better"


def test_a_long_log_is_fetched_in_pieces_and_each_piece_gets_its_time() -> None:
    of = preparing()
    entries = [cases.entry(1, number) for number in range(5)]
    of.on_promise(B, promise(2, 1, 6, 1, *entries[:2]))
    assert of.decide(1, 1) is Act.FETCH
    due = of.due
    assert of.next_fetch(0.3) == 3
    assert of.due > due
    of.on_promise(B, promise(2, 1, 6, 5, entries[4]))
    assert of.next_fetch(0.3) == 3, "a piece behind a gap waits for nothing"
    of.on_promise(B, promise(2, 1, 6, 3, *entries[2:]))
    assert of.decide(1, 1) is Act.TAKE
    assert of.adopted() == tuple(entries)


def test_a_voter_whose_log_ends_before_ours_is_released_has_nothing_that_we_lack() -> None:
    of = preparing(after=5)
    of.on_promise(B, promise(2, 1, 3, 3))
    assert of.decide(1, 5) is Act.TAKE
    assert of.adopted() is None


def test_promises_of_other_rounds_count_for_nothing() -> None:
    of = preparing()
    refused = messages.Promise(cases.SESSION, 2, False, 0, 0, 0, ())
    assert not of.on_promise(B, promise(1))
    assert not of.on_promise(B, promise(3))
    assert not of.on_promise(B, refused)
    assert of.decide(1, 1) is None
    assert not asking().on_promise(B, promise(2))


def test_entries_of_an_epoch_that_has_not_begun_are_no_promise() -> None:
    of = preparing()
    with pytest.raises(errors.PeerError):
        of.on_promise(B, promise(2, 2, 2, 1, cases.entry(1)))
    with pytest.raises(errors.PeerError):
        of.on_promise(B, promise(2, 1, 2, 1, cases.entry(7)))
    assert of.decide(1, 1) is None


def test_a_round_that_gathers_nothing_begins_again_with_a_higher_epoch() -> None:
    of = preparing(needed=2)
    of.on_promise(B, promise(2))
    assert of.tick(of.due, 2) is Act.PREVOTE
    assert (of.stage, of.epoch) == (Stage.ASKING, 3)
    assert of.decide(1, 1) is None


def test_who_stands_down_forgets_votes_and_keeps_what_was_outbid() -> None:
    of = preparing()
    of.outbid(8)
    of.on_promise(D, promise(2))
    of.stand_down()
    assert of.tick(99.0, 2) is None
    assert not of.on_promise(B, promise(2))
    of.begin(100.0)
    of.tick(100.0, 2)
    assert of.epoch == 9


def test_a_majority_is_counted_among_the_voters_of_the_best_log_and_they_are_asked_too() -> None:
    of = preparing()
    four = frozenset((A, B, C, D))
    of.on_promise(B, promise(2, 1, 2, 1, cases.entry(1)))
    assert of.decide(1, 1, lambda entries: four if entries else of.voters) is Act.WIDEN
    assert of.widen() == (D,)
    assert of.decide(1, 1, lambda _: four) is None, "two of four, and everybody is asked"
    of.on_promise(D, promise(2))
    assert of.decide(1, 1, lambda _: four) is Act.TAKE


def test_who_has_no_seat_in_the_best_log_takes_nothing() -> None:
    of = preparing()
    of.on_promise(B, promise(2, 1, 2, 1, cases.entry(1)))
    of.on_promise(C, promise(2, 1, 2, 1, cases.entry(1)))
    assert of.decide(1, 1, lambda _: frozenset((B, C, D))) is None


def test_of_those_who_asked_before_there_was_evidence_one_is_answered() -> None:
    of = failover.Questions()
    for peer, epoch in ((B, 3), (C, 4), (D, 4)):
        of.note(peer, epoch)
    assert cases.sent(of.answers(cases.SESSION, 2, None)) == [(C, messages.PreVoted(cases.SESSION, 4))]
    assert of.answers(cases.SESSION, 2, None) == []
    of.note(B, 2)
    assert of.answers(cases.SESSION, 2, None) == [], "promised to another by now"
