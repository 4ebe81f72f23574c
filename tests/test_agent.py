"""The brain of an agent: calls, routes through gateways, and gateways and voters that mean ill."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from meshnode import agent, ids
from meshnode.gossip import messages as talk
from meshnode.ids import PeerId
from meshnode.machine import Deliver, Dial, Introduced, Received, Send, Tick
from meshnode.ports import Lane, LinkDown, LinkUp
from meshnode.sessions import attach, messages
from meshnode.wire import envelope, keys
from meshnode.wire.award import Award, Roster, Seat
from tests.fuzz import strangers
from tests.sessions import cases
from tests.sessions.cases import A, B, C, D

ME = cases.AGENT.peer
CALL = agent.Call(cases.SESSION, cases.wants())


def fresh(*linked: PeerId) -> agent.Agent:
    """Introduced to A, with signalling links."""
    brain = agent.Agent(cases.AGENT, random.Random(1))
    brain.step(0.0, Introduced((f"/ip4/127.0.0.1/tcp/1/p2p/{ids.peer_text(A)}",)))
    for peer in linked:
        brain.step(0.0, LinkUp(peer, Lane.SIGNAL))
    return brain


def hear(brain: agent.Agent, sender: PeerId, message: object, now: float = 0.1) -> list[object]:
    return brain.step(now, Received(sender, Lane.SIGNAL, message))


def invited(brain: agent.Agent) -> bytes:
    (invite,) = [one for _, one in cases.sent(brain.step(0.0, CALL)) if isinstance(one, talk.Invite)]
    return invite.invitation


def answer(invitation: bytes, *, by: int = 0, seats: int = 3) -> talk.Answer:
    seated = envelope.expect(cases.award(), Award)[1].seats[:seats]
    award = Award(cases.AUCTION, cases.SESSION, 1, invitation, seated)
    return talk.Answer(cases.SESSION, 200, (), envelope.seal(cases.NODES[by], award))


def attached(*linked: PeerId) -> agent.Agent:
    brain = fresh(*(linked or (A,)))
    hear(brain, A, answer(invited(brain)))
    assert cases.SESSION in brain.attachments
    return brain


def items(effects: list[object]) -> list[object]:
    return [effect.item for effect in effects if isinstance(effect, Deliver)]


def test_a_call_goes_to_the_gateway_as_soon_as_there_is_one() -> None:
    brain = fresh()
    assert cases.sent(brain.step(0.0, CALL)) == []
    ((to, invite),) = cases.sent(brain.step(1.0, LinkUp(A, Lane.SIGNAL)), talk.Invite)
    assert to == A
    assert envelope.open_(invite.invitation).sender == ME


def test_an_award_is_answered_with_ack_to_every_seat_through_the_gateway_where_there_is_no_link() -> None:
    brain = fresh(A)
    effects = hear(brain, A, answer(invited(brain)))
    assert items(effects)[0].status == 200
    acks = [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, messages.Ack)]
    assert {(ack.to, ack.via) for ack in acks} == {(A, None), (B, A), (C, A)}


def test_no_answer_within_the_invite_time_is_an_answer() -> None:
    brain = fresh()
    brain.step(0.0, CALL)
    (told,) = items(brain.step(10.0, Tick()))
    assert told.status == 408
    assert "bootstrap" in told.reasons[0]
    assert brain.deadline > 10.0


def test_an_answer_that_is_no_award_of_this_call_leaves_the_call_open() -> None:
    brain = fresh(A, B)
    paper = invited(brain)
    for bad in (
        answer(paper, by=1),
        answer(cases.invitation(cases.wants(agent={"seed": 5, "max_tokens": 9}))),
        answer(paper, seats=0),
    ):
        assert items(hear(brain, A, bad)) == []
    assert items(hear(brain, B, answer(paper, by=1))) == [], "not from the gateway that was asked"
    assert sum(brain.faults.values()) == 3
    assert items(hear(brain, A, answer(paper)))[0].status == 200


def test_a_refusal_is_never_without_words() -> None:
    brain = fresh(A)
    invited(brain)
    (told,) = items(hear(brain, A, talk.Answer(cases.SESSION, 488, (), b"")))
    assert told.reasons


def test_a_call_whose_gateway_breaks_goes_through_another() -> None:
    brain = fresh(A, B)
    brain.step(0.0, CALL)
    assert [to for to, _ in cases.sent(brain.step(0.5, LinkDown(A, Lane.SIGNAL)), talk.Invite)] == [B]


def test_a_call_that_nobody_waits_for_is_canceled() -> None:
    brain = fresh(A)
    paper = invited(brain)
    assert cases.sent(brain.step(0.1, agent.Detach(cases.SESSION))) == [(A, talk.Cancel(cases.SESSION))]
    assert items(hear(brain, A, answer(paper))) == []
    assert brain.attachments == {}


def test_commands_for_a_session_that_is_closed_here_break_nothing() -> None:
    brain = attached()
    brain.step(0.2, agent.Detach(cases.SESSION))
    assert brain.step(0.3, agent.Stop(cases.SESSION, cases.request(1))) == []
    assert brain.step(0.3, agent.Leave(cases.SESSION, "done")) == []
    (refusal,) = items(brain.step(0.3, agent.Say(cases.SESSION, cases.request(1), "hi", 0)))
    assert refusal.status == 481


def test_a_gateway_without_a_path_is_left_for_another_until_all_have_refused() -> None:
    brain = attached(A, C)
    hear(brain, B, messages.Notify(cases.SESSION, 1, 0, (), 0))
    said = agent.Say(cases.SESSION, cases.request(1), "hi", 0)

    def gateway() -> PeerId | None:
        (send,) = [effect for effect in brain.step(0.2, said) if isinstance(effect, Send)]
        return send.via

    assert gateway() == A
    hear(brain, A, talk.NoPath(B))
    assert gateway() == C
    hear(brain, C, talk.NoPath(B))
    assert gateway() in (A, C)
    brain.step(0.3, LinkUp(B, Lane.SIGNAL))
    assert gateway() is None


def test_what_a_gateway_says_of_strangers_is_not_remembered() -> None:
    brain = attached()
    for number in range(200):
        identity = keys.Identity((500 + number).to_bytes(32, "big"))
        hear(brain, A, talk.NoPath(identity.peer))
        hear(brain, A, talk.Relayed(envelope.seal(identity, talk.Ping(1))))
    assert len(brain._refused) + len(brain._gateways) <= 6
    assert len(brain.mesh._heard) <= 1


@pytest.mark.parametrize("depth", [2, 1500])
def test_a_stack_of_relayed_frames_is_refused(depth: int) -> None:
    brain = fresh(A)
    message: object = talk.Ping(1)
    for _ in range(depth):
        message = talk.Relayed(envelope.seal(cases.STRANGER, message))
    assert hear(brain, A, message) == []
    assert brain.faults == {"a frame that was passed on twice": 1}


def test_a_relayed_notification_is_its_signers_and_the_answer_goes_back_the_same_way() -> None:
    brain = attached(A, C)
    frame = envelope.seal(cases.NODES[1], messages.Notify(cases.SESSION, 1, 0, (), 5))
    effects = hear(brain, C, talk.Relayed(frame))
    assert attach.Moved(1, B) in items(effects)
    (subscribe,) = [effect for effect in effects if isinstance(effect, Send)]
    assert (subscribe.to, subscribe.via) == (B, C)


def test_no_valid_message_of_anybody_breaks_the_agent() -> None:
    found: Counter[str] = Counter()
    for seed in range(40):
        rng = random.Random(seed)
        maker = strangers.Maker(rng)
        brain = attached() if rng.random() < 0.7 else fresh(A)
        now = 0.2
        for _ in range(200):
            now += rng.choice((0.0, 0.01, 0.1, 1.0))
            kind = rng.choice((messages.Notify, messages.Denied, messages.Gone, talk.Answer, talk.Publish, talk.NoPath))
            message = maker.of(kind) if rng.random() < 0.7 else maker.message()
            sender = rng.choice(maker.identities).peer
            event = Received(sender, Lane.SIGNAL, message) if rng.random() < 0.9 else Tick()
            effects = brain.step(now, event)
            if isinstance(event, Tick):
                assert brain.deadline > now
            found.update(type(item).__name__ for item in items(effects))
            found["dials"] += any(isinstance(effect, Dial) for effect in effects)
        found["faults"] += sum(brain.faults.values())
    assert {what for what in ("Moved", "Over", "Lost", "faults", "dials") if not found[what]} == set()


def test_a_route_makes_links_to_the_newcomers_and_needs_none_to_who_left() -> None:
    brain = attached(A, B, C)
    there = ("/ip4/10.0.0.4/tcp/4001",)
    assert set(brain.mesh.interests) == {A, B, C}
    seats = (Seat(A, "host", ()), Seat(C, "witness", ()), Seat(D, "replica", there))
    sealed = envelope.seal(cases.NODES[0], Roster(cases.SESSION, 1, seats))
    effects = hear(brain, B, messages.Route(cases.SESSION, (sealed,)), now=20.0)
    assert [(effect.peer, effect.addresses) for effect in effects if isinstance(effect, Dial) and effect.peer == D] == [
        (D, there)
    ]
    assert set(brain.mesh.interests) == {A, C, D}
    assert items(effects) == [attach.Reseated(1, seats)]
    forged = envelope.seal(cases.STRANGER, Roster(cases.SESSION, 2, seats[:1]))
    assert hear(brain, A, messages.Route(cases.SESSION, (forged,)), now=21.0) == []
    assert set(brain.mesh.interests) == {A, C, D}
    assert sum(brain.faults.values()) == 1
