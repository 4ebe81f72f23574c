"""Replication from the owner's side: what goes out, what counts, and how long it may go on."""

from __future__ import annotations

from meshnode.sessions import owner
from meshnode.sessions.messages import Replicated
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D, E


def fresh(*epochs: int, epoch: int = 2, others: tuple[bytes, ...] = (B, C)) -> owner.Owner:
    return owner.Owner(cases.logged(*(cases.entry(one) for one in epochs)), epoch, A, others, 10.0)


def ok(matched: int, epoch: int = 2, stamp_us: int = 10_000_000) -> Replicated:
    return Replicated(cases.SESSION, epoch, matched, True, stamp_us)


def no(matched: int, epoch: int = 2, stamp_us: int = 10_000_000) -> Replicated:
    return Replicated(cases.SESSION, epoch, matched, False, stamp_us)


def spans(out: list[object], peer: bytes = B) -> list[tuple[int, int]]:
    return [(message.prev_seq, len(message.entries)) for to, message in out if to == peer]


def test_entries_go_out_as_they_are_written_without_waiting_for_answers() -> None:
    of = fresh(1)
    for number in range(3):
        of.log.append(cases.entry(2, number))
        assert spans(of.outbound(10.0, 1)) == [(1 + number, 1)]
    assert of.outbound(10.0, 1) == []
    assert spans(of.outbound(10.0, 1, heartbeat=True)) == [(4, 0)]


def test_a_long_log_goes_out_in_messages_that_are_bounded() -> None:
    of = fresh(*[1] * 600)
    of.on_replicated(B, no(0), 10.0)
    assert spans(of.outbound(10.0, 1)) == [(0, 256), (256, 256), (512, 88)]


def test_a_refusal_goes_back_once_and_older_refusals_are_stale() -> None:
    of = fresh(1, 1, 1)
    of.on_replicated(B, no(1), 10.5)
    assert spans(of.outbound(10.5, 0)) == [(1, 2)]
    of.on_replicated(B, no(0, stamp_us=10_400_000), 10.6)
    assert of.outbound(10.6, 0) == []
    of.on_replicated(B, no(0, stamp_us=10_600_000), 10.7)
    assert spans(of.outbound(10.7, 0)) == [(0, 3)]


def test_only_an_entry_of_the_own_epoch_releases_and_then_all_before_it() -> None:
    of = fresh(1, 1)
    of.durable = 2
    of.on_replicated(B, ok(2), 10.0)
    assert of.releasable() == 0
    of.log.append(cases.entry(2))
    of.on_replicated(B, ok(3), 10.0)
    assert of.releasable() == 0, "our own disk has it not yet"
    of.durable = 3
    assert of.releasable() == 3


def test_a_majority_may_be_without_our_own_disk() -> None:
    of = fresh(2)
    of.on_replicated(B, ok(1), 10.0)
    of.on_replicated(C, ok(1), 10.0)
    assert of.releasable() == 1


def test_of_five_voters_three_are_needed() -> None:
    of = fresh(2, others=(B, C, D, E))
    of.durable = 1
    of.on_replicated(B, ok(1), 10.0)
    assert of.releasable() == 0
    of.on_replicated(E, ok(1), 10.0)
    assert of.releasable() == 1


def test_a_refusal_of_what_was_sent_in_going_back_makes_it_go_back_further() -> None:
    """A follower with a longer tail of its own names its own end first, and what is released only when asked there."""
    of = fresh(1, 1, 1, 2)
    of.on_replicated(B, no(3, stamp_us=11_000_000), 11.0)
    ((_, resent),) = [(to, one) for to, one in of.outbound(11.0, 0) if to == B]
    of.on_replicated(B, no(1, stamp_us=resent.stamp_us), 11.1)
    assert spans(of.outbound(11.1, 0)) == [(1, 3)]


def test_strangers_other_epochs_and_claims_beyond_the_log_count_for_nothing() -> None:
    of = fresh(2)
    of.durable = 1
    for peer, reply in ((D, ok(1)), (B, ok(1, epoch=1)), (B, ok(1, epoch=3)), (B, ok(2))):
        of.on_replicated(peer, reply, 99.0)
    assert of.releasable() == 0
    assert of.lease_until(2.0) == 12.0


def test_an_acknowledgement_never_runs_backwards() -> None:
    of = fresh(2, 2)
    of.durable = 2
    of.on_replicated(B, ok(2), 10.0)
    of.on_replicated(B, ok(1), 10.0)
    assert of.matched(B) == 2


def test_a_lease_counts_from_the_sending_of_what_a_majority_answered() -> None:
    of = fresh(2)
    assert of.lease_until(2.0) == 12.0
    of.on_replicated(B, ok(1, stamp_us=11_000_000), 11.9)
    assert of.lease_until(2.0) == 13.0
    of.on_replicated(C, ok(1, stamp_us=99_000_000), 12.0)
    assert of.lease_until(2.0) == 14.0, "a stamp of the future is worth no more than now"
    five = fresh(2, others=(B, C, D, E))
    five.on_replicated(B, ok(1, stamp_us=15_000_000), 15.0)
    assert five.lease_until(2.0) == 12.0


def test_who_is_alone_needs_nobody() -> None:
    of = fresh(2, others=())
    of.durable = 1
    assert of.releasable() == 1
    assert of.lease_until(2.0) == float("inf")


def test_a_new_link_is_sent_again_what_was_under_way_on_the_old() -> None:
    of = fresh(2)
    of.on_replicated(B, ok(1), 10.0)
    of.log.append(cases.entry(2, 1))
    of.outbound(10.0, 0)
    of.relinked(B)
    of.relinked(D)
    assert spans(of.outbound(10.0, 0)) == [(1, 1)]


def test_who_is_seated_counts_from_then_on_and_who_is_not_is_sent_nothing() -> None:
    of = fresh(2, others=(B, C))
    of.durable = 1
    of.follow(D, 10.0)
    of.on_replicated(D, ok(1), 10.0)
    assert (of.releasable(), of.majority) == (0, 2)
    of.reseat(frozenset((A, B, C, D)))
    assert (of.releasable(), of.majority) == (0, 3)
    of.on_replicated(C, ok(1), 10.0)
    assert of.releasable() == 1
    of.reseat(frozenset((A, C, D)))
    assert B not in {to for to, _ in of.outbound(10.0, 1, heartbeat=True)}


def test_a_long_log_goes_to_a_learner_as_it_is_acknowledged() -> None:
    of = fresh(*[2] * 3000)
    of.follow(D, 10.0)
    assert sum(count for _, count in spans(of.outbound(10.0, 1), D)) == 1024
    assert spans(of.outbound(10.0, 1), D) == []
    of.on_replicated(D, ok(257), 10.1)
    assert spans(of.outbound(10.1, 1), D) == [(1025, 256)]


def test_a_refusal_below_what_was_acknowledged_means_a_lost_disk_only_if_it_was_asked_for_later() -> None:
    of = fresh(2, 2, 2)
    of.on_replicated(B, ok(3), 10.5)
    of.on_replicated(B, no(1, stamp_us=10_400_000), 10.6)
    assert of.rolled_back == set()
    of.on_replicated(B, no(1, stamp_us=10_600_000), 10.7)
    assert of.rolled_back == {B}


def test_a_follower_with_another_tail_of_older_epochs_lost_nothing() -> None:
    of = fresh(1, 1, 1)
    of.on_replicated(B, ok(3), 10.5)
    of.on_replicated(B, no(1, stamp_us=10_600_000), 10.7)
    assert of.rolled_back == set()
