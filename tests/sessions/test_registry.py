"""All sessions of a node: who may speak, what a restart finds, and what is kept of what is over."""

from __future__ import annotations

import random

import pytest

from meshnode import errors, ids
from meshnode.ids import RequestId
from meshnode.machine import Persist
from meshnode.sessions import contract, log, messages, records, registry
from meshnode.sessions.lifecycle import State
from meshnode.sessions.messages import Closed, Opened
from tests.sessions import cases
from tests.sessions.cases import A, B, C

AGENT = cases.AGENT.peer
STRANGER = cases.STRANGER.peer


def empty(place: int = 1) -> registry.Registry:
    return registry.Registry(cases.NODES[place].peer, cases.CARD, random.Random(1))


def seated(place: int = 1) -> tuple[registry.Registry, list[bytes]]:
    """With one session, and what its disk holds."""
    of, sealed = empty(place), cases.award()
    made, refusal = of.born(0.0, contract.read(sealed), sealed)
    assert refusal == ""
    return of, disk(made)


def disk(effects: list[object]) -> list[bytes]:
    return [effect.record for effect in effects if isinstance(effect, Persist)]


def entries(
    of: registry.Registry, *found: messages.Entry, released: int = 0, epoch: int = 1, by: bytes = A
) -> list[object]:
    voter = of.members[cases.SESSION].voter
    at = voter.log.last
    return of.from_voter(0.0, by, cases.replicate(voter.log, epoch, at, found, released))


def state(of: registry.Registry) -> object:
    return {
        session: (one.voter.promised, one.voter.candidate, one.voter.log.entries, one.voter.host)
        for session, one in of.members.items()
    }


def again(records_: list[bytes], place: int = 1, now: float = 5.0) -> registry.Registry:
    of = empty(place)
    of.replay(now, records_, {})
    return of


def test_strangers_are_refused_and_unknown_sessions_are_no_fault() -> None:
    of, _ = seated()
    with pytest.raises(errors.PeerError, match="no seat"):
        of.from_voter(0.0, STRANGER, messages.PreVote(cases.SESSION, 2))
    with pytest.raises(errors.PeerError, match="another agent"):
        of.from_agent(0.0, STRANGER, messages.Ack(cases.SESSION, cases.AUCTION))
    other = ids.SessionId(b"o" * 16)
    assert of.from_voter(0.0, STRANGER, messages.PreVote(other, 2)) == []
    assert cases.sent(of.from_agent(0.0, STRANGER, messages.Ack(other, cases.AUCTION))) == [
        (STRANGER, messages.Gone(other))
    ]


def test_no_voter_may_name_an_epoch_that_leaves_none_above_it() -> None:
    of, _ = seated()
    with pytest.raises(errors.PeerError, match="epoch"):
        of.from_voter(0.0, A, messages.Prepare(cases.SESSION, 1 << 40, 1))
    assert of.members[cases.SESSION].voter.promised == 1


def test_the_same_award_twice_changes_nothing_and_another_takes_its_place_only_while_untouched() -> None:
    of, _ = seated()
    sealed, second = cases.award(), cases.award(attempt=2)
    of.from_voter(0.0, A, messages.Prepare(cases.SESSION, 2, 1))
    assert of.born(0.0, contract.read(sealed), sealed) == ([], "")
    assert of.members[cases.SESSION].voter.promised == 2
    assert of.born(0.0, contract.read(second), second)[1] != ""
    fresh, _ = seated()
    made, refusal = fresh.born(0.0, contract.read(second), second)
    assert (bool(made), refusal) == (True, "")


def test_a_restart_finds_promises_logs_and_the_last_host() -> None:
    of, kept = seated()
    kept += disk(entries(of, log.entry(1, Opened(A)), cases.turn(1)))
    kept += disk(of.from_voter(0.0, C, messages.Prepare(cases.SESSION, 4, 1)))
    kept += disk(entries(of, log.entry(4, Opened(C)), epoch=4, by=C))
    found = again(kept)
    assert state(found) == state(of)
    member = found.members[cases.SESSION]
    assert (member.voter.host, member.state, member.revived) == (C, State.ACTIVE, True)


def test_a_compacted_journal_says_the_same_and_so_do_its_graves() -> None:
    of, kept = seated()
    kept += disk(entries(of, *(cases.entry(1, number) for number in range(200))))
    kept += disk(entries(of, *(cases.entry(1, number) for number in range(200)), released=300))
    of._bury(ids.SessionId(b"x" * 16), closed=True)
    compact = [record for _, record in of.snapshot()]
    assert len(compact) < len(kept) + 2
    found = again(compact)
    assert state(found) == state(again(kept)) == state(of)
    assert found._over == of._over
    assert found.members[cases.SESSION].voter.released == 300


def test_what_is_over_is_not_born_again_nor_after_a_restart() -> None:
    of, kept = seated()
    kept += disk(entries(of, log.entry(1, Closed("bye")), released=2))
    kept += disk(of.tick(1.0))
    assert of.members == {}
    sealed = cases.award()
    for one in (of, again(kept), again([record for _, record in again(kept).snapshot()])):
        assert one.members == {}
        assert one.born(9.0, contract.read(sealed), sealed)[1] == "this session is over here"


def test_an_entry_that_reached_the_disk_behind_its_sessions_grave_raises_nobody() -> None:
    of, kept = seated()
    kept += disk(entries(of, log.entry(1, Closed("bye")), released=2))
    behind = kept[-1]
    of.tick(1.0)
    anew = [record for _, record in of.snapshot()]
    found = again([*anew, behind])
    assert found.members == {}
    assert found._over == of._over != {}


def test_a_voter_that_was_away_at_the_end_is_told_and_believes_it_when_it_finds_no_owner() -> None:
    closed, _ = seated(2)
    entries(closed, log.entry(1, Closed("bye")), released=2)
    closed.tick(1.0)
    away, kept = seated()
    kept += disk(entries(away, log.entry(1, Opened(A))))
    back = again(kept)
    gone = messages.Gone(cases.SESSION)
    assert back.from_voter(5.0, C, gone) == []
    asked = [message for to, message in cases.sent(back.tick(20.0)) if to == C]
    assert cases.sent(closed.from_voter(20.0, B, asked[0])) == [(B, gone)]
    effects = back.from_voter(20.0, C, gone)
    assert cases.persisted(effects) == [messages.Dropped(cases.SESSION, True)]
    assert back.members == {}
    with pytest.raises(errors.PeerError):
        seated()[0].from_voter(0.0, STRANGER, gone)


def test_a_session_that_nobody_closed_is_not_said_to_be_over() -> None:
    of, _ = seated(2)
    of.tick(99.0)
    assert of.members == {}
    assert of.from_voter(99.0, B, messages.PreVote(cases.SESSION, 2)) == []


def test_an_award_is_taken_back_by_its_auctioneer_and_not_once_it_lives() -> None:
    of, _ = seated()
    with pytest.raises(errors.PeerError):
        of.release(C, cases.AUCTION, cases.SESSION)
    assert of.release(A, cases.request(9), cases.SESSION) == []
    assert cases.persisted(of.release(A, cases.AUCTION, cases.SESSION)) == [messages.Dropped(cases.SESSION, False)]
    living, _ = seated()
    living.from_agent(0.0, AGENT, messages.Ack(cases.SESSION, cases.AUCTION))
    assert living.release(A, cases.AUCTION, cases.SESSION) == []


def test_graves_and_sessions_have_a_bound() -> None:
    of = empty()
    for number in range(registry.TOMBSTONES_MAX + 9):
        of._bury(ids.SessionId(number.to_bytes(16, "big")), closed=False)
    assert len(of._over) == registry.TOMBSTONES_MAX


@pytest.mark.parametrize(
    "record",
    [
        messages.Appended(cases.SESSION, 7, (cases.entry(1),), 1),
        messages.Appended(cases.SESSION, 0, (cases.entry(1),), 1),
        messages.Appended(cases.SESSION, 0, (cases.birth(),), 1),
    ],
    ids=["a gap", "no birth", "no award"],
)
def test_a_journal_that_does_not_fit_together_is_the_disks_fault(record: records.Record) -> None:
    with pytest.raises(errors.StoreError):
        again([records.pack(record)])


def test_an_acknowledgement_of_another_auctions_award_begins_nothing() -> None:
    of, _ = seated(0)
    assert of.from_agent(0.0, AGENT, messages.Ack(cases.SESSION, RequestId(b"b" * 16))) == []
    assert of.members[cases.SESSION].state is State.PROCEEDING
    of.from_agent(0.0, AGENT, messages.Ack(cases.SESSION, cases.AUCTION))
    assert of.members[cases.SESSION].serving is not None


def test_an_award_that_was_overtaken_by_a_later_one_of_its_auction_is_refused() -> None:
    of, _ = seated(0)
    later, earlier = cases.award(3, attempt=3), cases.award(3, attempt=2)
    assert of.born(0.0, contract.read(later), later)[1] == ""
    assert "already" in of.born(0.0, contract.read(earlier), earlier)[1]


def test_a_deposed_owner_goes_above_the_epoch_that_it_heard_of() -> None:
    of, _ = seated(0)
    of.from_agent(0.0, AGENT, messages.Ack(cases.SESSION, cases.AUCTION))
    of.from_voter(0.1, C, messages.Replicated(cases.SESSION, 6, 0, False, 0))
    member = of.members[cases.SESSION]
    assert member.serving is None
    of.tick(0.1 + 1.5)
    of.tick(of.deadline)
    assert member.candidate.epoch == 7


def test_a_client_that_was_away_at_the_end_is_told_by_a_voter_that_remembers_it() -> None:
    of, kept = seated(2)
    kept += disk(entries(of, log.entry(1, Closed("bye")), released=2))
    kept += disk(of.tick(1.0))
    assert of.members == {}
    ask = messages.Subscribe(cases.SESSION, 0)
    for one in (of, again(kept)):
        assert cases.sent(one.from_agent(2.0, AGENT, ask)) == [(AGENT, messages.Concluded(cases.SESSION))]
    assert cases.sent(empty().from_agent(2.0, AGENT, ask)) == [(AGENT, messages.Gone(cases.SESSION))]
