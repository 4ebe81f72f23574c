"""What the voters of a session say to each other in a move, and what each of them may believe."""

from __future__ import annotations

import pytest

from meshnode.machine import Faulted, Note, Persist, Restored, Send, Step, Stepped, Unload
from meshnode.sessions import engaged, log, member, messages, migration, registry, timers
from meshnode.sessions.lifecycle import State
from meshnode.sessions.messages import Opened, PreVote, PreVoted, Promise
from meshnode.sessions.refer import HandoverReady, HandoverRequest, Refer
from tests.sessions import cases
from tests.sessions.cases import SESSION, A, B, C


def owner() -> member.Member:
    """A, leased by B."""
    one = cases.born()
    one.on_ack(0.0)
    assert one.serving is not None
    one.serving.on_durable(0.0, 2)
    one.serving.on_replicated(0.0, B, messages.Replicated(SESSION, 1, 2, True, 0))
    return one


def target(length: int = 0) -> member.Member:
    """B, with a log that asks for an answer to so many tokens."""
    one = cases.born(of=1)
    one.on_ack(0.0)
    entries = [log.entry(1, Opened(A))] + ([cases.turn(1, length=length)] if length else [])
    one.on_replicate(0.0, A, cases.replicate(one.voter.log, 1, 1, entries))
    return one


def handed() -> tuple[member.Member, list[object]]:
    one = owner()
    one.handover.start(0.0, B)
    return one, one.handover.on_ready(0.0, B, HandoverReady(SESSION, 1, 2, 0, ""))


def names(effects: list[object]) -> list[str]:
    return [effect.what for effect in effects if isinstance(effect, Note)]


# ---------------------------------------------------------------------------------------------------------------- owner


def test_the_owner_refers_promises_and_is_owner_no_more() -> None:
    one, effects = handed()
    assert cases.sent(effects, Refer) == [(B, Refer(SESSION, 1, 2))]
    assert cases.persisted(effects) == [messages.Promised(SESSION, 2, B)]
    assert (one.serving, one.host, one.state) == (None, None, State.MIGRATING)
    assert not any(isinstance(effect, Unload) for effect in effects), "it may come back"


def test_the_promise_leaves_behind_its_record_and_the_referral_does_not_wait_for_it() -> None:
    _, effects = handed()
    persist = next(place for place, effect in enumerate(effects) if isinstance(effect, Persist))
    promise = next(
        place for place, one in enumerate(effects) if isinstance(one, Send) and isinstance(one.message, Promise)
    )
    assert persist < promise
    assert effects[promise].session == SESSION
    refer = next(effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Refer))
    assert refer.session is None


def test_an_owner_whose_heir_is_not_heard_stands_again_with_its_engine_as_it_was() -> None:
    one, _ = handed()
    load = one.hosting.load
    assert one.deadline == timers.HANDOVER_S
    assert names(one.tick(one.deadline)) == ["detected"]
    effects = one.tick(one.deadline)
    assert {to for to, _ in cases.sent(effects, PreVote)} == {B, C}
    assert one.candidate.epoch == 3, "the second it gave away"
    assert one.hosting.load == load


def test_an_owner_lets_go_when_its_heir_is_heard() -> None:
    one, _ = handed()
    last = one.voter.log.last
    effects = one.on_replicate(0.1, B, cases.replicate(one.voter.log, 2, last, [log.entry(2, Opened(B))]))
    assert Unload(SESSION) in effects
    assert (one.hosting, one.state, one.host) == (None, State.ACTIVE, B)
    assert names(one.tick(timers.HANDOVER_S)) == []


def test_a_move_that_the_target_refuses_leaves_everything_as_it_was() -> None:
    one = owner()
    one.handover.start(0.0, B)
    effects = one.handover.on_ready(0.1, B, HandoverReady(SESSION, 1, 2, 0, "no room"))
    assert names(effects) == ["move called off"]
    assert one.handover.last_refusal == "no room"
    assert (one.state, one.serving.stopping) == (State.ACTIVE, False)
    assert one.handover.refusal(B) == ""


def test_only_the_targets_word_counts_and_only_for_this_epoch() -> None:
    one = owner()
    one.handover.start(0.0, B)
    assert one.handover.on_ready(0.0, C, HandoverReady(SESSION, 1, 2, 0, "")) == []
    assert one.handover.on_ready(0.0, B, HandoverReady(SESSION, 2, 2, 0, "")) == []
    assert one.serving is not None


# --------------------------------------------------------------------------------------------------------------- target


def ready(effects: list[object]) -> list[HandoverReady]:
    return [message for _, message in cases.sent(effects, HandoverReady)]


def test_a_target_feeds_what_the_log_says_and_draws_nothing() -> None:
    one = target(length=30)
    effects = one.handover.on_request(0.0, A, HandoverRequest(SESSION, 1), "")
    assert ready(effects) == []
    effects = engaged.worked(0.0, one, restored(one, 0))
    (step,) = [effect for effect in effects if isinstance(effect, Step)]
    assert (step.work.sampling, len(step.work.feed)) == (None, 29)
    assert [
        found.behind for found in ready(engaged.worked(0.0, one, Stepped(SESSION, one.hosting.load, 29, None, "")))
    ] == [0]


def restored(one: member.Member, tokens: int) -> object:
    return Restored(SESSION, one.hosting.load, tokens)


def test_a_target_stays_loaded_while_its_owner_is_heard_and_no_longer_than_it_is_asked() -> None:
    one = target(length=30)
    one.handover.on_request(0.0, A, HandoverRequest(SESSION, 1), "")
    effects = one.on_replicate(0.5, A, cases.replicate(one.voter.log, 1, one.voter.log.last))
    assert Unload(SESSION) not in effects
    one.on_replicate(migration.KEEP_S, A, cases.replicate(one.voter.log, 1, one.voter.log.last))
    assert one.deadline <= migration.KEEP_S
    assert Unload(SESSION) in one.tick(migration.KEEP_S)
    assert one.hosting is None


@pytest.mark.parametrize("why", ["drains", "no engine", "fault"])
def test_a_target_that_cannot_says_why(why: str) -> None:
    one = target() if why != "no engine" else cases.born(of=1, card=None)
    if why == "no engine":
        one.on_ack(0.0)
        one.on_replicate(0.0, A, cases.replicate(one.voter.log, 1, 1, [log.entry(1, Opened(A))]))
    effects = one.handover.on_request(0.0, A, HandoverRequest(SESSION, 1), "it drains" if why == "drains" else "")
    if why == "fault":
        effects = one.handover.on_faulted("no room")
        assert Unload(SESSION) in effects
    (answer,) = ready(effects)
    assert answer.refusal in ("it drains", "it cannot own the session: no engine that fits, or no vote", "no room")
    assert one.hosting is None


def test_a_request_or_referral_of_somebody_who_does_not_own_the_session_is_nothing() -> None:
    one = target()
    assert one.handover.on_request(0.0, C, HandoverRequest(SESSION, 1), "") == []
    assert one.handover.on_refer(0.0, C, Refer(SESSION, 1, 2)) == []
    assert one.handover.on_refer(0.0, A, Refer(SESSION, 2, 2)) == []
    assert one.voter.promised == 1


def test_a_referral_after_a_promise_to_another_is_too_late() -> None:
    one = target()
    one.on_prepare(0.0, C, messages.Prepare(SESSION, 2, 1))
    assert one.handover.on_refer(0.0, A, Refer(SESSION, 1, 2)) == []


def test_a_target_prepares_without_a_pre_vote_and_takes_the_owners_promise_for_it() -> None:
    one = target()
    one.handover.on_request(0.0, A, HandoverRequest(SESSION, 1), "")
    effects = one.handover.on_refer(0.0, A, Refer(SESSION, 1, 2))
    assert cases.sent(effects, PreVote) == []
    assert {to for to, _ in cases.sent(effects, messages.Prepare)} == {A, C}
    assert cases.persisted(effects) == [messages.Promised(SESSION, 2, B)]
    effects = one.on_promise(0.0, A, Promise(SESSION, 2, True, 1, 2, 2, ()))
    assert "elected" in names(effects)
    assert (one.serving.epoch, one.state) == (2, State.ACTIVE)


def test_a_target_whose_log_is_short_fetches_before_it_opens() -> None:
    one = target()
    one.handover.on_refer(0.0, A, Refer(SESSION, 1, 5))
    effects = one.on_promise(0.0, A, Promise(SESSION, 2, True, 1, 5, 5, ()))
    assert [to for to, _ in cases.sent(effects, messages.Prepare)] == [A]
    assert one.serving is None


# ------------------------------------------------------------------------------------------------------------- evidence


def test_an_owner_that_asks_for_votes_is_believed_at_once() -> None:
    one = cases.born(of=2)
    one.on_ack(0.0)
    one.on_replicate(0.0, A, cases.replicate(one.voter.log, 1, 1, [log.entry(1, Opened(A))]))
    assert cases.sent(one.on_prevote(B, PreVote(SESSION, 2))) == []
    assert (A, PreVoted(SESSION, 2)) in cases.sent(one.on_prevote(A, PreVote(SESSION, 2)))


def test_an_owner_that_gave_the_session_away_votes_for_its_heir_at_once() -> None:
    one, _ = handed()
    assert cases.sent(one.on_prevote(C, PreVote(SESSION, 3))) == []
    assert (B, PreVoted(SESSION, 3)) in cases.sent(one.on_prevote(B, PreVote(SESSION, 3)))


def test_a_step_or_fault_of_an_earlier_load_is_nobodys() -> None:
    one = target()
    one.handover.on_request(0.0, A, HandoverRequest(SESSION, 1), "")
    brain = registry.Registry(B, cases.CARD, one.candidate.rng)
    brain.members[SESSION] = one
    stale = one.hosting.load + 1
    assert brain.from_hands(0.0, Stepped(SESSION, stale, 1, None, "")) == []
    assert brain.from_hands(0.0, Faulted(SESSION, stale, "no")) == []
