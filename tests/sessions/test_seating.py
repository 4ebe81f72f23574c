"""Configurations: which one counts, which one is settled, and whose word is taken for a newer one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshnode import errors, ids
from meshnode.machine import Persist
from meshnode.sessions import attach, contract, log, messages, records, registry, seating, timers
from meshnode.sessions.messages import Joined, Opened, Out, Prepare, PreVote, Route, Seated
from meshnode.sessions.voter import Voter
from meshnode.wire import envelope, keys
from meshnode.wire.award import Roster, Seat
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D, E

FOUR = (A, B, C, D)
LATER = (A, C, D)


def roster(number: int, peers: tuple[bytes, ...], signer: keys.Identity = cases.NODES[0]) -> bytes:
    return envelope.seal(signer, Roster(cases.SESSION, number, tuple(Seat(peer, "replica", ()) for peer in peers)))


def changed(epoch: int, number: int, peers: tuple[bytes, ...]) -> messages.Entry:
    return log.entry(epoch, Seated(roster(number, peers)))


def fresh(*entries: messages.Entry, of: bytes = B) -> seating.Seating:
    voter = Voter(cases.SESSION)
    voter.born(log.entry(1, messages.Birth(cases.award())), A)
    for one in entries:
        voter.log.append(one)
    return seating.Seating(of, cases.contract(), voter)


def test_the_latest_in_the_log_counts_released_or_not_and_a_cut_brings_the_one_before_back() -> None:
    of = fresh(changed(1, 1, FOUR))
    assert (of.current.number, of.current.voters) == (1, set(FOUR))
    assert (of.settled.number, of.settled.voters) == (0, {A, B, C})
    of.voter.released = 2
    assert of.settled.number == 1
    of.voter.released = 1
    of.voter.log.cut(1)
    assert (of.current.number, of.current.voters) == (0, {A, B, C})


def test_a_candidate_counts_by_the_log_that_it_would_adopt() -> None:
    of = fresh(changed(1, 1, FOUR))
    assert of.behind(1, None) == set(FOUR)
    assert of.behind(1, [cases.entry(2)]) == {A, B, C}, "its own entry would be cut"
    assert of.behind(2, [cases.entry(2)]) == set(FOUR)
    assert of.behind(1, [changed(1, 1, FOUR), changed(2, 2, LATER), cases.entry(2)]) == set(LATER)


def test_a_roster_is_a_hint_if_a_voter_signed_it_and_ends_when_an_owner_writes() -> None:
    of = fresh()
    with pytest.raises(errors.PeerError, match="nobody with a seat"):
        of.learn(Route(cases.SESSION, (roster(1, FOUR, cases.STRANGER),)))
    other = envelope.seal(cases.NODES[0], Roster(ids.SessionId(b"o" * 16), 1, (Seat(A, "host", ()),)))
    with pytest.raises(errors.PeerError, match="another session"):
        of.learn(Route(cases.SESSION, (other,)))
    assert of.electorate == {A, B, C}
    assert of.learn(Route(cases.SESSION, (roster(1, FOUR), roster(2, LATER, cases.NODES[3]))))
    assert (of.electorate, of.current.number, D in of.known) == (set(LATER), 0, True)
    assert not of.learn(Route(cases.SESSION, (roster(1, FOUR),))), "older"
    assert of.electorate == set(LATER)
    of.owner_heard()
    assert of.electorate == {A, B, C}


def test_a_roster_that_seats_nobody_or_somebody_twice_is_no_entry() -> None:
    for peers in ((), (A, A)):
        with pytest.raises(errors.PeerError):
            log.change(log.entry(1, Seated(roster(1, peers))))


def test_who_lost_its_seat_by_a_released_entry_is_told_and_gets_no_vote() -> None:
    one = cases.born(of=0)
    one.on_ack(0.0)
    two = registry.Registry(C, cases.CARD, random.Random(1))
    sealed = cases.award()
    two.born(0.0, contract.read(sealed), sealed)
    member = two.members[cases.SESSION]
    log_of = cases.logged(*member.voter.log.entries, log.entry(1, Opened(A)), changed(1, 1, LATER))
    two.from_voter(0.0, A, cases.replicate(log_of, 1, 1, log_of.entries[1:], 2))
    assert cases.sent(two.from_voter(9.0, B, PreVote(cases.SESSION, 2)), Out) == []
    assert cases.sent(two.from_voter(9.0, B, PreVote(cases.SESSION, 2)), Route) != [], "in the log, not yet released"
    two.from_voter(0.0, A, cases.replicate(log_of, 1, 3, [], 3))
    for ask in (PreVote(cases.SESSION, 2), Prepare(cases.SESSION, 2, 1)):
        assert cases.sent(two.from_voter(9.0, B, ask)) == [(B, Out(cases.SESSION, 1))]
    assert member.voter.promised == 1


@pytest.mark.parametrize(
    ("peer", "number", "believed"), [(C, 1, True), (C, 0, False), (A, 0, True)], ids=["later", "same", "its owner"]
)
def test_only_a_later_configuration_or_its_own_owner_takes_a_seat(peer: bytes, number: int, believed: bool) -> None:
    of = registry.Registry(B, cases.CARD, random.Random(1))
    sealed = cases.award()
    of.born(0.0, contract.read(sealed), sealed)
    effects = of.from_voter(0.0, peer, Out(cases.SESSION, number))
    assert (of.members == {}) == believed
    assert bool(effects) == believed
    if believed:
        assert of._over == {cases.SESSION: False}, "others are not told that the session is over"
        again = of.from_voter(1.0, A, cases.replicate(cases.logged(cases.birth()), 1, 1))
        assert cases.sent(again) == [(A, messages.Unknown(cases.SESSION))]


# ------------------------------------------------------------------------------------------------------------ newcomers

SINCE = 4
JOINED = Joined(cases.SESSION, A, "replica", SINCE)


def joined(place: int = 3) -> tuple[registry.Registry, list[bytes]]:
    of = registry.Registry(cases.NODES[place].peer, cases.CARD, random.Random(1))
    sealed = cases.award()
    made, refusal = of.joined(0.0, contract.read(sealed), sealed, JOINED)
    assert refusal == ""
    return of, [effect.record for effect in made if isinstance(effect, Persist)]


def fed(of: registry.Registry, count: int) -> list[object]:
    """The owner's log up to `count` entries."""
    voter = of.members[cases.SESSION].voter
    whole = cases.logged(*voter.log.entries[:1], *(cases.entry(1, number) for number in range(count - 1)))
    return of.from_voter(0.0, A, cases.replicate(whole, 1, 1, whole.entries[1:]))


def test_a_newcomer_answers_no_candidate_before_its_log_is_where_its_vote_counts() -> None:
    of, _ = joined()
    fed(of, SINCE - 1)
    of.members[cases.SESSION].noted_evidence = True
    for ask in (PreVote(cases.SESSION, 2), Prepare(cases.SESSION, 2, 1)):
        assert of.from_voter(0.0, B, ask) == []
    fed(of, SINCE)
    of.members[cases.SESSION].noted_evidence = True
    assert cases.sent(of.from_voter(0.0, B, PreVote(cases.SESSION, 2))) != []
    assert cases.sent(of.from_voter(0.0, B, Prepare(cases.SESSION, 2, 1))) != []


def test_where_its_vote_counts_is_on_the_disk_first_and_found_again_also_when_compacted() -> None:
    of, kept = joined()
    assert records.unpack(kept[0]) == JOINED
    torn = registry.Registry(D, cases.CARD, random.Random(1))
    torn.replay(1.0, kept[:1], {})
    assert torn.members == {}
    for disk in (kept, [record for _, record in of.snapshot()]):
        back = registry.Registry(D, cases.CARD, random.Random(1))
        back.replay(1.0, disk, {})
        member = back.members[cases.SESSION]
        assert (member.voter.joined, member.voter.votes, member.seating.role) == (JOINED, False, "replica")


def test_configurations_survive_a_restart_and_a_compacted_journal() -> None:
    of, kept = joined()
    voter = of.members[cases.SESSION].voter
    whole = cases.logged(*voter.log.entries, changed(1, 1, FOUR), cases.entry(1), changed(1, 2, LATER))
    made = of.from_voter(0.0, A, cases.replicate(whole, 1, 1, whole.entries[1:], 3))
    kept += [effect.record for effect in made if isinstance(effect, Persist)]
    for disk in (kept, [record for _, record in of.snapshot()]):
        back = registry.Registry(D, cases.CARD, random.Random(1))
        back.replay(1.0, disk, {})
        found = back.members[cases.SESSION].seating
        assert (found.current.number, found.current.voters, found.current.seq) == (2, set(LATER), 4)


def test_a_newcomer_whose_sponsor_is_silent_asks_some_times_and_forgets_and_by_nobody_elses_word() -> None:
    of, _ = joined()
    fed(of, 2)
    of.from_voter(0.0, B, Out(cases.SESSION, 5))
    assert cases.SESSION in of.members
    now = 0.0
    asked = 0
    while of.members and now < 60.0:
        now = max(of.deadline, now + 0.01)
        asked += len(cases.sent(of.tick(now), PreVote)) > 0
    assert (of.members, asked > 5, now < 60.0) == ({}, True, True)
    late, _ = joined()
    late.tick(3600.0)
    assert cases.SESSION in late.members, "a machine that was suspended hears first what it missed"
    told, _ = joined()
    told.from_voter(0.0, A, Out(cases.SESSION, 0))
    assert told.members == {}


def test_a_node_with_a_part_in_the_session_is_no_newcomer_and_one_that_was_asked_before_keeps_what_it_has() -> None:
    of, _ = joined()
    sealed = cases.award()
    papers = contract.read(sealed)
    fed(of, 3)
    made, refusal = of.joined(0.0, papers, sealed, replace(JOINED, sponsor=C, since=9))
    assert cases.persisted(made) == [replace(JOINED, sponsor=C, since=9)]
    assert (refusal, of.members[cases.SESSION].voter.log.last) == ("", 3)
    of.joined(0.0, papers, sealed, JOINED)
    member = of.members[cases.SESSION]
    assert (member.voter.joined, member.voter.votes) == (replace(JOINED, since=9), False)
    voter = registry.Registry(B, cases.CARD, random.Random(1))
    voter.born(0.0, papers, sealed)
    assert voter.joined(0.0, papers, sealed, JOINED)[1] != ""


# ---------------------------------------------------------------------------------------------------------- the client


def attached() -> attach.Attachment:
    kind = timers.TIMERS[cases.wants().characteristics.kind]
    of = attach.Attachment(cases.SESSION, (A, B, C), kind, 0.0, auction=cases.AUCTION)
    of.begin(0.0)
    return of


def test_a_client_follows_a_signed_route_to_the_newcomers_and_no_older_one_back() -> None:
    of = attached()
    effects = of.on_route(0.1, Route(cases.SESSION, (roster(1, FOUR), roster(2, LATER))))
    assert [to for to, _ in cases.sent(effects, messages.Subscribe)] == [D]
    assert (of.roster, set(of.voters)) == (2, set(LATER))
    assert of.on_route(0.2, Route(cases.SESSION, (roster(1, (A, B)),))) == []
    assert set(of.voters) == set(LATER)
    of.on_notify(0.3, D, messages.Notify(cases.SESSION, 2, 0, (), 0))
    assert of.host == D


def test_a_client_believes_no_roster_that_no_voter_signed() -> None:
    of = attached()
    with pytest.raises(errors.PeerError):
        of.on_route(0.1, Route(cases.SESSION, (roster(1, (E,), cases.STRANGER),)))
    with pytest.raises(errors.PeerError):
        of.on_notify(0.1, E, messages.Notify(cases.SESSION, 2, 0, (), 0))
    assert (of.roster, of.voters) == (0, (A, B, C))


def test_a_client_whose_voters_mostly_do_not_know_the_session_waits_for_no_dead_one() -> None:
    of = attached()
    of.on_gone(A)
    of.on_gone(B)
    assert not of.over, "an owner may be on its way"
    for now in (2.0, 11.0):
        effects = of.tick(now)
        assert of.over == (now > 10.0)
    assert any(isinstance(getattr(effect, "item", None), attach.Over) for effect in effects)
