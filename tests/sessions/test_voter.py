"""The acceptor: what it promises, what it refuses, and that its records say all of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors
from meshnode.sessions import messages, records
from meshnode.sessions.messages import Prepare
from meshnode.sessions.voter import Voter
from tests.sessions import cases
from tests.sessions.cases import A, B, C


def prepare(epoch: int, after: int = 0) -> Prepare:
    return Prepare(cases.SESSION, epoch, after)


def state(of: Voter) -> tuple[object, ...]:
    return of.promised, of.candidate, of.log.entries, of.log.hash_at(of.log.last)


def test_a_promise_is_a_record_and_shows_the_log_after_the_position_asked_for() -> None:
    of = cases.voter(cases.entry(1, 1), cases.entry(1, 2))
    made, reply = of.on_prepare(B, prepare(2, after=2))
    assert made == [messages.Promised(cases.SESSION, 2, B)]
    assert reply.granted
    assert (reply.last_epoch, reply.last_seq, reply.after) == (1, 3, 2)
    assert reply.entries == (cases.entry(1, 2),)


def test_an_epoch_is_promised_once_and_to_one_candidate() -> None:
    of = cases.voter()
    of.on_prepare(B, prepare(2))
    made, again = of.on_prepare(B, prepare(2))
    assert made == []
    assert again.granted
    made, other = of.on_prepare(C, prepare(2))
    assert made == []
    assert not other.granted
    assert other.epoch == 2


def test_entries_of_an_older_epoch_than_the_promised_one_are_refused_with_that_epoch() -> None:
    of = cases.voter()
    source = cases.logged(cases.birth())
    of.on_prepare(B, prepare(2))
    made, reply = of.on_replicate(A, cases.replicate(source, 1, 1, [cases.entry(1)]))
    assert made == []
    assert (reply.ok, reply.epoch) == (False, 2)
    assert of.log.last == 1


def test_the_owner_of_an_epoch_is_followed_by_who_promised_it_to_another() -> None:
    of = cases.voter()
    of.promise(2, C)
    source = cases.logged(cases.birth())
    made, reply = of.on_replicate(B, cases.replicate(source, 2, 1, [cases.entry(2)]))
    assert reply.ok
    assert [type(record) for record in made] == [messages.Appended]
    with pytest.raises(errors.PeerError, match="two owners"):
        of.on_replicate(C, cases.replicate(source, 2, 1, [cases.entry(2)]))


def test_a_refused_message_of_a_new_epoch_leaves_no_promise_behind() -> None:
    of = cases.voter(cases.entry(1))
    other = cases.logged(cases.entry(1, 9))
    before = state(of)
    with pytest.raises(errors.PeerError, match="lacks what was released"):
        of.on_replicate(B, cases.replicate(other, 2, 1, [cases.entry(2)]))
    ours = cases.logged(cases.birth())
    with pytest.raises(errors.PeerError, match="has not begun"):
        of.on_replicate(B, cases.replicate(ours, 2, 1, [cases.entry(3)]))
    with pytest.raises(errors.PeerError):
        of.on_replicate(B, cases.replicate(ours, 2, 1, [messages.Entry(2, b"\x80")]))
    assert state(of) == before


def test_what_is_released_is_never_cut() -> None:
    of = cases.voter(cases.entry(1, 1))
    source = cases.logged(cases.birth(), cases.entry(1, 1))
    of.on_replicate(A, cases.replicate(source, 1, 2, released=2))
    assert of.released == 2
    with pytest.raises(errors.PeerError, match="differs from what was released"):
        of.on_replicate(B, cases.replicate(source, 2, 1, [cases.entry(2, 5)]))
    assert of.log.entries[1] == cases.entry(1, 1)


def test_a_tail_of_another_epoch_is_replaced_and_the_record_says_where() -> None:
    of = cases.voter(cases.entry(1, 1), cases.entry(1, 2))
    source = cases.logged(cases.birth(), cases.entry(1, 1))
    made, reply = of.on_replicate(B, cases.replicate(source, 2, 2, [cases.entry(2, 7)]))
    assert reply.matched == 3
    assert made[1] == messages.Appended(cases.SESSION, 2, (cases.entry(2, 7),), 1)
    assert of.log.entries[2:] == [cases.entry(2, 7)]


def test_a_follower_says_from_where_to_send_again() -> None:
    of = cases.voter(cases.entry(1, 1))
    ahead = cases.logged(cases.birth(), cases.entry(1, 1), cases.entry(1, 2), cases.entry(1, 3))
    _, short = of.on_replicate(A, cases.replicate(ahead, 1, 4))
    assert (short.ok, short.matched) == (False, 2)
    differs = cases.logged(cases.birth(), cases.entry(2, 9))
    _, parted = of.on_replicate(B, cases.replicate(differs, 2, 2))
    assert (parted.ok, parted.matched) == (False, 1)


def test_an_older_copy_of_a_message_does_not_cut_what_came_after_it() -> None:
    of = cases.voter(cases.entry(1, 1), cases.entry(1, 2))
    source = cases.logged(cases.birth())
    made, reply = of.on_replicate(A, cases.replicate(source, 1, 1, [cases.entry(1, 1)]))
    assert made == []
    assert reply.matched == 2
    assert of.log.last == 3


def test_released_counts_only_as_far_as_the_logs_were_compared() -> None:
    of = cases.voter(cases.entry(1, 1), cases.entry(1, 2))
    source = cases.logged(cases.birth())
    of.on_replicate(A, cases.replicate(source, 1, 1, [cases.entry(1, 1)], released=3))
    assert of.released == 2


def test_a_long_log_that_is_adopted_becomes_records_that_can_be_read_back() -> None:
    of = cases.voter()
    entries = tuple(cases.entry(1, number) for number in range(3 * messages.ENTRIES_MAX + 5))
    made = of.adopt(1, entries)
    fresh = Voter(cases.SESSION)
    for record in [*Voter(cases.SESSION).born(cases.birth(), A), *made]:
        fresh.replay(records.unpack(records.pack(record)))
    assert fresh.log.entries == of.log.entries
    assert len(made) == 4


def test_adopting_a_shorter_log_cuts_durably() -> None:
    of = cases.voter(cases.entry(1, 1), cases.entry(1, 2))
    made = of.adopt(1, (cases.entry(1, 1),))
    assert of.log.last == 2
    assert made == [messages.Appended(cases.SESSION, 2, (), 1)]


def test_a_record_that_does_not_follow_is_no_journal_of_ours() -> None:
    of = cases.voter()
    with pytest.raises(errors.PeerError):
        of.replay(messages.Appended(cases.SESSION, 5, (cases.entry(1),), 1))


@given(st.integers(0, 2**32))
def test_replaying_the_records_gives_the_same_voter(seed: int) -> None:
    rng = random.Random(seed)
    of = Voter(cases.SESSION)
    made = of.born(cases.birth(), A)
    logs = [cases.logged(cases.birth())]
    for _ in range(rng.randrange(25)):
        source = rng.choice(logs)
        epoch = of.epoch + rng.choice((0, 0, 0, 1))
        peer = of.host if epoch == of.epoch else rng.choice((A, B, C))
        try:
            match rng.randrange(4):
                case 0:
                    made += of.on_prepare(rng.choice((A, B, C)), prepare(of.promised + rng.choice((0, 1)), after=1))[0]
                case 1:
                    after = rng.randrange(of.released, of.log.last + 1)
                    made += of.adopt(after, tuple(cases.entry(of.log.last_epoch, rng.randrange(9)) for _ in "ab"))
                case _:
                    prev = rng.randrange(1, source.last + 1)
                    entries = [cases.entry(epoch, rng.randrange(9)) for _ in range(rng.randrange(4))]
                    released = rng.randrange(prev + 1)
                    made += of.on_replicate(peer, cases.replicate(source, epoch, prev, entries, released))[0]
        except errors.PeerError:
            continue
        logs.append(cases.logged(*of.log.entries))
    fresh = Voter(cases.SESSION)
    for record in made:
        fresh.replay(records.unpack(records.pack(record)))
    assert state(fresh) == state(of)
    assert fresh.released <= of.released


def test_a_journal_written_anew_may_run_ahead_of_the_records_behind_it() -> None:
    of = cases.voter(cases.entry(1, 1))
    behind = messages.Appended(cases.SESSION, of.log.last, (cases.entry(1, 2),), of.released)
    older = messages.Promised(cases.SESSION, 2, B)
    of.promise(3, C)
    of.replay(older)
    assert (of.promised, of.candidate) == (3, C), "a promise is never taken back"
    for _ in range(2):
        of.replay(behind)
        assert of.log.entries[-1] == cases.entry(1, 2)
