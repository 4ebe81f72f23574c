"""One voter of one session: who may say what to it, when it stands, and how it comes to its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshnode import errors, ids
from meshnode.machine import Durable, Encode, Encoded, Faulted, Forget, Note, Persist, Restored, Step, Stepped, Unload
from meshnode.options import Bias, Grammar, GrammarKind, Options
from meshnode.ports import Sampling
from meshnode.sessions import engaged, log, member, messages, serving
from meshnode.sessions.lifecycle import State
from meshnode.sessions.messages import Closed, Message, Opened, PreVote, PreVoted, Promise
from tests.sessions import cases
from tests.sessions.cases import A, B, C

AGENT = cases.AGENT.peer
LOST_S = 1.5


def follower(of: int = 1, now: float = 0.0) -> member.Member:
    """B, after the agent's ACK and the host's first entry."""
    one = cases.born(of=of)
    one.on_ack(now)
    one.on_replicate(now, A, cases.replicate(cases.logged(*one.voter.log.entries), 1, 1, [log.entry(1, Opened(A))]))
    return one


def host(count: int = 3, **tables: object) -> member.Member:
    one = cases.born(count, asked=cases.wants(**tables))
    one.on_ack(0.0)
    assert one.serving is not None
    return one


def durable(one: member.Member, now: float = 0.0) -> list[object]:
    """Our disk and one follower have everything."""
    assert one.serving is not None
    last = one.voter.log.last
    effects = one.serving.on_durable(now, last)
    reply = messages.Replicated(cases.SESSION, one.serving.epoch, last, True, int(now * 1e6))
    return effects + one.serving.on_replicated(now, B, reply)


def elected(one: member.Member, now: float) -> list[object]:
    """Everything until it owns the session, with C's vote and promise."""
    one.tick(now)
    effects = one.tick(max(now, one.deadline))
    epoch = one.candidate.epoch
    effects += one.on_prevoted(now, C, PreVoted(cases.SESSION, epoch))
    last = (1, one.voter.released, one.voter.released)
    return effects + one.on_promise(now, C, Promise(cases.SESSION, epoch, True, *last, ()))


def kinds(effects: list[object]) -> list[str]:
    return [effect.what for effect in effects if isinstance(effect, Note)]


# -------------------------------------------------------------------------------------------------------------- owning


def test_the_awards_host_begins_epoch_1_when_the_agent_acknowledges_and_once_only() -> None:
    one = cases.born()
    effects = one.on_ack(0.0)
    assert isinstance(one.voter.log.changes[1], Opened)
    assert {to for to, _ in cases.sent(effects, messages.Replicate)} == {B, C}
    assert one.on_ack(0.1) == []


@pytest.mark.parametrize("why", ["promised", "revived", "no engine"])
def test_epoch_1_is_not_begun_by_a_host_that_promised_more_or_came_back_or_cannot(why: str) -> None:
    one = cases.born(card=None if why == "no engine" else cases.CARD)
    one.revived = why == "revived"
    if why == "promised":
        one.on_prepare(0.0, B, messages.Prepare(cases.SESSION, 2, 1))
    assert one.on_ack(1.0) == []
    assert (one.serving, one.state) == (None, State.ACTIVE)


def test_nothing_is_shown_to_the_client_before_a_majority_has_it() -> None:
    one = host()
    one.on_subscribe(0.0, AGENT, messages.Subscribe(cases.SESSION, 0))
    seen = [message for _, message in cases.sent(one.serving.on_durable(0.0, 2), messages.Notify)]
    assert [message.entries for message in seen] == []
    shown = cases.sent(durable(one), messages.Notify)
    assert shown[0][1].entries == tuple(one.voter.log.entries[1:2])
    assert shown[0][1].released == 2


def test_an_owner_that_hears_of_a_higher_epoch_serves_no_more_and_gives_the_new_one_its_time() -> None:
    one = host()
    effects = one.on_prepare(1.0, B, messages.Prepare(cases.SESSION, 2, 1))
    assert isinstance(effects[0], Persist)
    assert Unload(cases.SESSION) in effects
    assert "deposed" in kinds(effects)
    assert one.serving is None
    assert one.tick(1.1) == []
    assert kinds(one.tick(1.0 + LOST_S)) == ["detected"]


def test_entries_of_an_epoch_that_this_node_owns_are_refused() -> None:
    one = host()
    with pytest.raises(errors.PeerError):
        one.on_replicate(0.0, B, cases.replicate(one.voter.log, 1, 2))


# ------------------------------------------------------------------------------------------------------------ evidence


def test_silence_of_the_host_is_evidence_after_lost_after_and_not_before() -> None:
    one = follower()
    assert one.deadline == LOST_S
    assert one.tick(LOST_S - 0.01) == []
    effects = one.tick(LOST_S)
    assert kinds(effects) == ["detected"]
    assert one.state is State.RECOVERING
    assert {to for to, _ in cases.sent(effects, PreVote)} == {A, C}
    assert one.deadline > LOST_S


def test_a_reset_link_to_the_host_is_evidence_at_once_and_to_others_is_none() -> None:
    one = follower()
    assert one.severed_from(0.1, C) == []
    assert kinds(one.severed_from(0.1, A)) == ["detected"]


def test_a_prevote_is_answered_when_the_evidence_comes() -> None:
    one = follower(2)
    assert one.on_prevote(B, PreVote(cases.SESSION, 2)) == []
    assert (B, PreVoted(cases.SESSION, 2)) in cases.sent(one.tick(LOST_S))
    assert cases.sent(one.on_prevote(B, PreVote(cases.SESSION, 3))) == [(B, PreVoted(cases.SESSION, 3))]


def test_a_prevote_is_not_answered_when_the_host_was_heard_meanwhile() -> None:
    one = follower(2)
    one.on_prevote(B, PreVote(cases.SESSION, 2))
    one.on_replicate(1.0, A, cases.replicate(one.voter.log, 1, 2))
    assert not cases.sent(one.tick(1.0 + LOST_S), PreVoted)


def test_a_voter_that_missed_a_promise_learns_of_it_when_it_asks_for_votes() -> None:
    one = follower(2)
    one.on_prepare(0.0, B, messages.Prepare(cases.SESSION, 7, 1))
    ((to, reply),) = cases.sent(one.on_prevote(A, PreVote(cases.SESSION, 2)))
    assert (to, reply.granted, reply.epoch) == (A, False, 7)
    asker = cases.born()
    asker.state, asker.voter.host = State.ACTIVE, None
    asker.tick(LOST_S)
    asker.on_promise(LOST_S, C, reply)
    asker.tick(asker.deadline)
    assert asker.candidate.epoch == 8


def test_a_witness_without_engine_votes_and_never_stands() -> None:
    one = cases.born(of=2, card=None)
    one.on_ack(0.0)
    effects = one.tick(LOST_S)
    assert kinds(effects) == ["detected"]
    assert set(cases.sent(effects)) == {(A, PreVote(cases.SESSION, 1)), (B, PreVote(cases.SESSION, 1))}
    assert one.on_prevoted(LOST_S, A, PreVoted(cases.SESSION, 1)) == []
    assert one.voter.promised == 1
    assert one.deadline == 2 * LOST_S


# ------------------------------------------------------------------------------------------------------------ takeover


def test_the_own_promise_is_on_disk_before_others_are_asked_for_theirs() -> None:
    one = follower()
    effects = elected(one, LOST_S)
    order = [type(effect.message) if hasattr(effect, "message") else type(effect) for effect in effects]
    assert order.index(Persist) < order.index(messages.Prepare)
    prepares = [effect for effect in effects if isinstance(getattr(effect, "message", None), messages.Prepare)]
    assert all(effect.session == cases.SESSION for effect in prepares), "ordered behind the promise"
    assert one.serving is not None
    assert one.serving.epoch == 2
    assert one.voter.log.last_epoch == 2
    assert one.state is State.ACTIVE


def test_restoring_starts_with_the_first_question_and_ends_with_the_owner_heard_again() -> None:
    one = follower()
    at = one.voter.log.last
    one.on_replicate(0.0, A, cases.replicate(one.voter.log, 1, at, [cases.turn(1, length=9)]))
    effects = one.tick(LOST_S)
    assert one.hosting is not None
    assert any(type(effect).__name__ == "Restore" for effect in effects)
    stale = Restored(cases.SESSION, one.hosting.load + 1, 8)
    assert engaged.worked(2.0, one, stale) == []
    effects = one.on_replicate(2.0, A, cases.replicate(one.voter.log, 1, at))
    assert effects[0] == Unload(cases.SESSION)
    assert (one.hosting, one.state) == (None, State.ACTIVE)


def test_an_epoch_that_was_lost_to_another_is_followed() -> None:
    one = follower()
    one.tick(LOST_S)
    one.on_prevoted(LOST_S, C, PreVoted(cases.SESSION, 2))
    assert one.voter.promised == 2
    effects = one.on_replicate(LOST_S, C, cases.replicate(one.voter.log, 2, 2, [log.entry(2, Opened(C))]))
    ((_, reply),) = cases.sent(effects, messages.Replicated)
    assert (reply.ok, reply.matched) == (True, 3)
    assert one.on_promise(LOST_S, A, Promise(cases.SESSION, 2, True, 1, 1, 1, ())) == []
    assert one.serving is None


# --------------------------------------------------------------------------------------------------------------- pages


def test_pages_are_taken_from_the_owner_alone() -> None:
    one = follower()
    one.admit_page(A, 0, 1)
    for peer, epoch in ((C, 1), (A, 0)):
        with pytest.raises(errors.PeerError):
            one.admit_page(peer, 0, epoch)
    offer = messages.PageOffer(cases.SESSION, 1, ())
    with pytest.raises(errors.PeerError):
        one.replica.on_offer(C, offer, frozenset())
    with pytest.raises(errors.PeerError):
        host().admit_page(B, 0, 1)


def test_an_offer_is_answered_with_how_much_of_the_chain_is_here() -> None:
    one = follower()
    chain = tuple(ids.digest(bytes([place])) for place in range(4))
    effects = one.replica.on_offer(
        A, messages.PageOffer(cases.SESSION, 1, chain), frozenset((chain[0], chain[1], chain[3]))
    )
    assert cases.sent(effects) == [(A, messages.PageAck(cases.SESSION, 1, 2, chain[1]))]
    gone = cases.sent(one.replica.on_evicted())
    assert gone[0][1].watermark == 0


# ------------------------------------------------------------------------------------------------------------- the end


def released_close(one: member.Member) -> None:
    seq = one.voter.log.last
    entries = [log.entry(1, Closed("bye"))]
    one.on_replicate(0.0, A, cases.replicate(one.voter.log, 1, seq, entries, released=seq + 1))


def test_a_follower_drops_a_session_whose_end_is_released_also_behind_a_later_opening() -> None:
    one = follower()
    assert one.finished(0.0) is None
    released_close(one)
    assert one.voter.closed
    last = one.voter.log.last
    one.on_replicate(0.0, C, cases.replicate(one.voter.log, 2, last, [log.entry(2, Opened(C))]))
    assert one.voter.closed
    effects = one.finished(0.0)
    assert cases.persisted(effects) == [messages.Dropped(cases.SESSION, True)]
    assert Forget(cases.SESSION) in effects
    assert one.state is State.TERMINATED


def test_an_end_that_is_not_released_is_none() -> None:
    one = follower()
    one.on_replicate(0.0, A, cases.replicate(one.voter.log, 1, 2, [log.entry(1, Closed("bye"))]))
    assert one.finished(99.0) is None


def test_an_owner_says_farewell_for_three_heartbeats_at_least() -> None:
    one = host(characteristics={"kind": "autonomous", "context_tokens": 256})
    one.serving.on_bye(0.0, "done")
    durable(one)
    assert one.finished(serving.FAREWELL_S + 1) is None
    assert one.finished(30.0) is not None


def test_a_turn_that_was_being_encoded_when_the_session_ended_stays_out_of_the_log() -> None:
    one = host()
    effects = one.serving.on_message(0.0, AGENT, Message(cases.SESSION, cases.request(1), "hi", 0))
    assert isinstance(effects[-1], Encode)
    one.serving.on_bye(0.0, "done")
    denied = one.serving.on_encoded(0.0, Encoded(cases.SESSION, cases.request(1), (5, 6)))
    assert [message.status for _, message in cases.sent(denied)] == [481]
    assert isinstance(one.voter.log.changes[-1], Closed)


def test_a_session_that_was_never_acknowledged_ends_by_itself() -> None:
    one = cases.born(of=1)
    assert one.finished(one.deadline - 0.1) is None
    assert cases.persisted(one.finished(one.deadline)) == [messages.Dropped(cases.SESSION, False)]


# -------------------------------------------------------------------------------------------------------------- serving


def encoded(one: member.Member, number: int = 1, length: int = 3) -> list[object]:
    event = Encoded(cases.SESSION, cases.request(number), tuple(range(5, 5 + length)))
    return one.serving.on_encoded(0.0, event)


def ask(number: int = 1, most: int = 0) -> Message:
    return Message(cases.SESSION, cases.request(number), "hi", most)


def test_turns_wait_for_their_turn_and_a_repeat_changes_nothing() -> None:
    one = host()
    assert isinstance(one.serving.on_message(0.0, AGENT, ask())[-1], Encode)
    assert one.serving.on_message(0.0, AGENT, ask()) == []
    effects = encoded(one)
    assert isinstance(effects[-1], Step)
    assert one.serving.on_message(0.0, AGENT, ask()) == [], "in the log by now"
    assert one.serving.on_message(0.0, AGENT, ask(2)) == []
    one.serving.on_interrupt(0.0, cases.request(1))
    assert len([change for change in one.voter.log.changes if isinstance(change, messages.Turn)]) == 1
    encoded(one, 2)
    assert one.serving.transcript.open_turn.request == cases.request(2)


def test_a_full_queue_answers_491_and_a_turn_without_room_413() -> None:
    one = host()
    for number in range(serving.QUEUE_MAX):
        one.serving.on_message(0.0, AGENT, ask(number))
    ((_, denied),) = cases.sent(one.serving.on_message(0.0, AGENT, ask(99)))
    assert denied.status == 491
    ((_, denied), *_) = cases.sent(encoded(one, 0, 300), messages.Denied)
    assert (denied.status, "room for" in denied.reasons[0]) == (413, True)
    ((_, denied), *_) = cases.sent(encoded(one, 1, 0), messages.Denied)
    assert denied.status == 400


def test_a_turn_is_drawn_as_manifest_and_turn_say_together() -> None:
    one = host(agent={"max_tokens": 64, "temperature": 0.5, "seed": 3, "stop": ["END"]})
    asked = Options(temperature=0.9, min_p=0.1, logprobs=2, grammar=Grammar(GrammarKind.REGEX, "a+"))
    effects = one.serving.on_message(0.0, AGENT, Message(cases.SESSION, cases.request(1), "hi", 0, asked))
    assert effects[-1].grammar == asked.grammar
    step = encoded(one)[-1]
    expected = Sampling(seed=3, temperature=0.9, min_p=0.1, logprobs=2, grammar=asked.grammar)
    assert (step.work.sampling, step.stops) == (expected, ("END",))
    turn = one.voter.log.changes[-1]
    assert (turn.sampling, turn.stop) == (expected, ("END",)), "so that a later host draws as this one"


def test_options_out_of_bounds_are_refused_with_every_reason() -> None:
    one = host()
    bias = (Bias(cases.CARD.vocabulary, 1.0),)
    asked = Options(temperature=11.0, top_p=0.0, stop=("",), logit_bias=bias, presence_penalty=-3.0)
    ((_, denied),) = cases.sent(one.serving.on_message(0.0, AGENT, replace(ask(), options=asked)))
    assert denied.status == 400
    assert [reason.split(":")[0] for reason in denied.reasons] == [
        "temperature", "top_p", "presence_penalty", "stop", "logit_bias",
    ]  # fmt: skip
    assert one.serving.queue == []


def test_a_grammar_that_cannot_be_followed_is_refused_and_the_next_turn_goes_on() -> None:
    one = host()
    one.serving.on_message(0.0, AGENT, ask())
    one.serving.on_message(0.0, AGENT, ask(2))
    effects = one.serving.on_encoded(0.0, Encoded(cases.SESSION, cases.request(1), (), "grammar: too deep"))
    ((_, denied),) = cases.sent(effects, messages.Denied)
    assert (denied.status, denied.reasons) == (400, ("grammar: too deep",))
    assert isinstance(effects[-1], Encode)
    assert isinstance(encoded(one, 2)[-1], Step)


def test_an_engine_that_refuses_ends_the_turn_and_not_the_session() -> None:
    one = host()
    one.serving.on_message(0.0, AGENT, ask())
    encoded(one)
    fault = Faulted(cases.SESSION, 1, "overflow")
    one.serving.on_faulted(0.0, fault)
    assert one.voter.log.changes[-1] == messages.End("error: overflow")
    assert one.state is State.ACTIVE


def test_without_a_lease_an_owner_neither_decodes_nor_speaks() -> None:
    one = host()
    one.on_subscribe(0.0, AGENT, messages.Subscribe(cases.SESSION, 0))
    durable(one)
    one.serving.on_message(0.5, AGENT, ask())
    encoded(one)
    late = 0.0 + one.timers.lease_s + 0.1
    stepped = one.serving.on_stepped(late, Stepped(cases.SESSION, 1, 3, 9, "a"))
    assert not any(isinstance(effect, Step) for effect in stepped)
    effects = one.tick(late)
    assert {to for to, _ in cases.sent(effects)} == {B, C}
    assert one.deadline > late
    again = durable(one, late)
    assert any(isinstance(effect, Step) for effect in again)


def test_durable_events_of_another_epoch_count_for_nothing() -> None:
    one = host()
    assert Durable(cases.SESSION, 1, 2) in [getattr(effect, "event", None) for effect in cases.born().on_ack(0.0)]
    one.serving.on_durable(0.0, 99)
    assert one.serving.owner.durable == one.voter.log.last
