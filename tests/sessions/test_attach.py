"""The client's end: in order, once, from the newest owner only; and what was lost on the way is asked for again."""

from __future__ import annotations

import pytest

from meshnode import errors, manifest
from meshnode.machine import Deliver
from meshnode.sessions import attach, log, messages, timers
from meshnode.sessions.messages import Closed, End, Entry, Notify, Opened
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D

ANSWER = (
    log.entry(1, Opened(A)),
    cases.turn(1),
    cases.entry(1, 4),
    cases.entry(1, 5),
    log.entry(1, End("stop")),
)


def fresh(kind: manifest.Kind = manifest.Kind.INTERACTIVE) -> attach.Attachment:
    of = attach.Attachment(cases.SESSION, (A, B, C), timers.TIMERS[kind], 0.0, auction=cases.AUCTION)
    of.begin(0.0)
    return of


def notify(epoch: int, after: int, *entries: Entry, released: int = 99) -> Notify:
    return Notify(cases.SESSION, epoch, after, entries, released)


def items(effects: list[object]) -> list[object]:
    return [effect.item for effect in effects if isinstance(effect, Deliver)]


def said(effects: list[object]) -> list[tuple[int, int]]:
    return [(item.seq, item.token.id) for item in items(effects) if isinstance(item, attach.Said)]


def ask(number: int = 1) -> messages.Message:
    return messages.Message(cases.SESSION, cases.request(number), "hi", 0)


def test_entries_are_delivered_in_order_and_once() -> None:
    of = fresh()
    effects = of.on_notify(0.1, A, notify(1, 0, cases.birth(), *ANSWER[:3]))
    assert items(effects)[0] == attach.Moved(1, A)
    assert said(effects) == [(4, 4)]
    effects = of.on_notify(0.2, A, notify(1, 2, *ANSWER[1:]))
    assert said(effects) == [(5, 5)]
    assert items(effects)[-1] == attach.Ended(cases.request(1), "stop")
    assert items(of.on_notify(0.3, A, notify(1, 2, *ANSWER[1:]))) == []


def test_a_gap_is_asked_for_and_nothing_behind_it_is_taken() -> None:
    of = fresh()
    assert items(of.on_notify(0.1, A, notify(1, 3, *ANSWER[2:])))[1:] == []
    effects = of.on_notify(1.0, A, notify(1, 3, *ANSWER[2:]))
    assert cases.sent(effects) == [(A, messages.Subscribe(cases.SESSION, 0))]
    assert cases.sent(of.on_notify(1.1, A, notify(1, 3))) == [], "not with every message"
    assert of.last == 0


def test_older_epochs_are_refused_and_counted() -> None:
    of = fresh()
    of.on_notify(0.1, B, notify(2, 0, cases.birth()))
    assert of.on_notify(0.2, A, notify(1, 1, *ANSWER)) == []
    assert (of.stale_count, of.last, of.host) == (1, 1, B)


@pytest.mark.parametrize(("peer", "epoch"), [(D, 5), (C, 2)])
def test_strangers_and_second_owners_of_an_epoch_are_refused(peer: bytes, epoch: int) -> None:
    of = fresh()
    of.on_notify(0.1, B, notify(2, 0))
    with pytest.raises(errors.PeerError):
        of.on_notify(0.2, peer, notify(epoch, 0, cases.birth()))
    assert of.last == 0


def test_a_message_that_holds_no_log_is_refused_as_a_whole() -> None:
    of = fresh()
    with pytest.raises(errors.PeerError):
        of.on_notify(0.1, A, notify(1, 0, cases.birth(), Entry(1, b"\x80")))
    assert (of.last, of.epoch, of.host) == (0, 0, None)


def test_a_turn_is_said_again_to_each_new_owner_until_the_log_shows_it() -> None:
    of = fresh()
    assert of.say(0.0, ask()) == []
    assert (A, ask()) in cases.sent(of.on_notify(0.1, A, notify(1, 0)))
    assert (B, ask()) in cases.sent(of.on_notify(0.2, B, notify(2, 0)))
    of.on_notify(0.3, B, notify(2, 0, cases.birth(), *ANSWER[:2]))
    assert (C, ask()) not in cases.sent(of.on_notify(0.4, C, notify(3, 3)))


def test_a_turn_that_a_full_queue_lost_is_said_again_to_the_same_owner() -> None:
    of = fresh()
    of.on_notify(0.1, A, notify(1, 0))
    assert cases.sent(of.say(0.2, ask())) == [(A, ask())]
    of.on_notify(2.0, A, notify(1, 0))
    assert 0.2 + attach.REPEAT_S < of.deadline < 0.3 + attach.REPEAT_S
    assert (A, ask()) in cases.sent(of.tick(of.deadline))


def test_an_interrupt_takes_an_unheard_turn_back_and_is_repeated_a_few_times() -> None:
    of = fresh()
    of.on_notify(0.1, A, notify(1, 0))
    of.say(0.2, ask())
    assert cases.sent(of.interrupt(0.3, cases.request(1))) == [(A, messages.Interrupt(cases.SESSION, cases.request(1)))]
    repeats: list[object] = []
    for second in range(30):
        of.on_notify(float(second), A, notify(1, 0))
        repeats += cases.sent(of.tick(float(second)))
    assert (A, ask()) not in repeats
    assert sum(isinstance(message, messages.Interrupt) for _, message in repeats) == attach.STOPS_MAX


def test_a_bye_is_repeated_until_the_session_is_over() -> None:
    of = fresh()
    of.on_notify(0.1, A, notify(1, 0, cases.birth()))
    bye = (A, messages.Bye(cases.SESSION, "done"))
    assert cases.sent(of.bye(0.2, "done")) == [bye]
    of.on_notify(2.3, A, notify(1, 1))
    assert bye in cases.sent(of.tick(2.3))
    assert items(of.on_notify(2.4, A, notify(1, 1, log.entry(1, Closed("done"))))) == [attach.Over("done")]
    assert (of.tick(9.0), of.deadline) == ([], float("inf"))
    assert items(of.say(9.0, ask()))[0].status == 481


def test_a_refusal_of_the_owner_is_delivered_once_and_never_without_words() -> None:
    of = fresh()
    of.on_notify(0.1, A, notify(1, 0))
    of.say(0.2, ask())
    denied = messages.Denied(cases.SESSION, cases.request(1), 413, ())
    assert of.on_denied(B, denied) == []
    (refusal,) = items(of.on_denied(A, denied))
    assert (refusal.status, refusal.reasons) == (413, ("no reason was given",))
    assert of.on_denied(A, denied) == []


def test_all_voters_must_have_forgotten_a_session_before_it_is_over() -> None:
    of = fresh()
    assert of.on_gone(A) + of.on_gone(A) + of.on_gone(B) + of.on_gone(D) == []
    of.on_notify(0.1, C, notify(1, 0))
    assert of.on_gone(C) == [], "an owner was heard since"
    of.on_gone(A)
    (over,) = items(of.on_gone(B))
    assert "no voter" in over.reason


@pytest.mark.parametrize("kind", list(manifest.Kind))
def test_a_silence_is_said_once_and_the_deadline_never_stays_in_the_past(kind: manifest.Kind) -> None:
    of = fresh(kind)
    of.say(0.0, ask())
    now, lost, asked = 0.0, [], 0
    while now < 300.0:
        assert of.deadline > now
        now = of.deadline
        effects = of.tick(now)
        lost += [(now, item) for item in items(effects) if isinstance(item, attach.Lost)]
        asked += len(cases.sent(effects, messages.Subscribe))
    assert len(lost) == 1
    assert lost[0][0] <= max(of.timers.invite_s, of.timers.lost_after_s) + 0.1
    assert asked >= 3 * 20
    of.on_notify(now, B, notify(2, 0))
    assert of.deadline > now


def test_a_client_that_is_served_says_that_it_attends() -> None:
    of = fresh()
    of.on_notify(attach.REFRESH_S, A, notify(1, 0))
    effects = of.tick(attach.REFRESH_S)
    assert {to for to, _ in cases.sent(effects, messages.Subscribe)} == {A, B, C}
