"""The brain of a node against strangers and bad voters: whatever they say, it is counted and nothing breaks."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from meshnode import config, ids, peer
from meshnode.gossip import messages as talk
from meshnode.ids import PeerId
from meshnode.machine import Capacity, Introduced, Note, Pass, Persist, Received, Send, Tick
from meshnode.ports import Lane, LinkDown, LinkUp
from meshnode.sessions import messages, records
from meshnode.wire import envelope, keys
from meshnode.wire.award import Award, Seat
from tests.fuzz import strangers
from tests.sessions import cases

A, B, C = cases.A, cases.B, cases.C


def fresh(place: int = 0, **settings: object) -> peer.Peer:
    brain = peer.Peer(cases.NODES[place], config.Node(**settings), cases.CARD, 1, random.Random(1))
    brain.step(0.0, Capacity(1 << 30))
    return brain


def hear(brain: peer.Peer, sender: PeerId, message: object, now: float = 0.0) -> list[object]:
    return brain.step(now, Received(sender, Lane.SIGNAL, message))


def attacked(seed: int, steps: int = 250) -> Counter[str]:
    """What a brain did while strangers and voters said anything at all."""
    rng = random.Random(seed)
    maker = strangers.Maker(rng)
    brain = strangers.node(rng, rng.randrange(3), serving=rng.random() < 0.7)
    found: Counter[str] = Counter()
    now, inside = 0.0, []
    for _ in range(steps):
        now += rng.choice((0.0, 0.0, 0.001, 0.01, 0.1, 0.5))
        event = inside.pop(0) if inside and rng.random() < 0.5 else maker.event(brain)
        effects = brain.step(now, event)
        inside += strangers.answers(effects)
        for effect in effects:
            if isinstance(effect, Persist):
                records.unpack(effect.record)  # or the next start would fail
            elif isinstance(effect, Send) and effect.to != brain.me:
                envelope.open_(envelope.seal(cases.NODES[0], effect.message))
        if isinstance(event, Tick):
            assert brain.deadline > now
        found.update(member.state.value for member in brain.sessions.members.values())
        found["serving"] += any(member.serving for member in brain.sessions.members.values())
    found["faults"] += sum(brain.faults.values())
    return found


def test_no_valid_message_of_anybody_breaks_the_brain() -> None:
    found: Counter[str] = Counter()
    for seed in range(60):
        found += attacked(seed)
    assert {what for what in ("proceeding", "active", "recovering", "serving", "faults") if not found[what]} == set()


@pytest.mark.parametrize("wrap", [talk.Relayed, lambda frame: talk.Relay(A, frame)], ids=["relayed", "relay"])
def test_a_stack_of_relayed_frames_is_refused_at_the_second(wrap: object) -> None:
    brain = fresh()
    message: object = talk.Ping(1)
    for _ in range(1500):
        message = wrap(envelope.seal(cases.STRANGER, message))
    assert hear(brain, B, message) == []
    assert brain.faults["a frame that was passed on twice"] == 1


def test_a_message_that_this_node_signed_is_not_heard_from_others() -> None:
    brain = fresh()
    own = envelope.seal(cases.NODES[0], talk.Invite(cases.SESSION, cases.invitation()))
    assert hear(brain, B, talk.Relayed(own)) == []
    assert brain.faults["a message of our own, handed back"] == 1


def test_an_award_of_an_unknown_role_or_a_broken_manifest_is_refused() -> None:
    brain = fresh(1)
    award = envelope.open_(cases.award()).message
    seats = (award.seats[0], award.seats[1], Seat(C, "king", ()))
    crowned = Award(award.auction, award.session, 1, award.invitation, seats)
    assert hear(brain, A, talk.Awarded(envelope.seal(cases.NODES[0], crowned))) == []
    broken = replace(cases.wants(), characteristics=replace(cases.wants().characteristics, context_tokens=0))
    assert hear(brain, A, talk.Awarded(cases.award(asked=broken))) == []
    assert sum(brain.faults.values()) == 2
    assert brain.sessions.members == {}


def test_an_award_of_another_manifest_than_the_offers_is_checked_anew() -> None:
    brain = fresh(1)
    (bid,) = cases.sent(hear(brain, A, talk.Offer(cases.AUCTION, cases.SESSION, cases.invitation())), talk.Bid)
    assert bid[1].host_refusals == ()
    other = cases.wants(placement={"model": "another"})
    effects = hear(brain, A, talk.Awarded(cases.award(asked=other)))
    ((_, confirm),) = cases.sent(effects, talk.Confirm)
    assert "placement.model" in confirm.refusals[0]
    assert brain.sessions.members == {}


def test_only_the_auctioneer_takes_a_seat_back() -> None:
    brain = fresh(1)
    hear(brain, A, talk.Awarded(cases.award()))
    release = talk.Release(cases.AUCTION, cases.SESSION)
    hear(brain, cases.STRANGER.peer, release)
    assert cases.SESSION in brain.sessions.members
    hear(brain, A, release)
    assert brain.sessions.members == {}


def test_strangers_that_come_and_go_leave_nothing_behind() -> None:
    brain = fresh()
    for number in range(300):
        stranger = keys.Identity(number.to_bytes(32, "big")).peer
        for lane in Lane:
            brain.step(1.0, LinkUp(stranger, lane))
        hear(brain, stranger, talk.Ping(1), 1.0)
        hear(brain, stranger, talk.NoPath(stranger), 1.0)
        for lane in Lane:
            brain.step(1.0, LinkDown(stranger, lane))
        hear(brain, stranger, talk.Pong(1), 1.0)  # what was still in the queue
    mesh = brain.mesh
    assert (mesh.links, mesh._heard, mesh._tries, mesh._severed, brain._routes) == (set(), {}, {}, set(), {})


def test_a_route_is_forgotten_by_the_word_of_that_gateway_alone() -> None:
    brain = fresh()
    brain.step(0.0, LinkUp(B, Lane.SIGNAL))
    ping = envelope.seal(cases.AGENT, talk.Ping(5))
    (pong,) = hear(brain, B, talk.Relayed(ping))
    assert (pong.to, pong.via, pong.lane) == (cases.AGENT.peer, B, Lane.SIGNAL)
    hear(brain, C, talk.NoPath(cases.AGENT.peer))
    (again,) = hear(brain, B, talk.Relayed(ping))
    assert again.via == B
    hear(brain, B, talk.NoPath(cases.AGENT.peer))
    assert brain._routes == {}


def test_a_frame_is_passed_on_sealed_or_answered_with_no_path() -> None:
    brain = fresh()
    frame = envelope.seal(cases.AGENT, talk.Ping(5))
    assert cases.sent(hear(brain, cases.AGENT.peer, talk.Relay(C, frame))) == [(cases.AGENT.peer, talk.NoPath(C))]
    brain.step(0.0, LinkUp(C, Lane.SIGNAL))
    assert hear(brain, cases.AGENT.peer, talk.Relay(C, frame)) == [Pass(C, Lane.SIGNAL, frame)]


def test_what_a_node_says_to_itself_is_heard_in_the_same_step() -> None:
    brain = fresh()
    effects = hear(brain, cases.AGENT.peer, talk.Invite(cases.SESSION, cases.invitation()))
    confirmed = [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, talk.Confirm)]
    assert [one.to for one in confirmed] == [A], "a single node bids to itself, awards itself, and waits for its disk"
    assert isinstance(effects[[*map(type, effects)].index(Persist)], Persist)
    answered = hear(brain, A, confirmed[0].message)
    ((_, answer),) = cases.sent(answered, talk.Answer)
    assert answer.status == 200
    assert "no failover" in answer.reasons[0]


def test_a_line_of_a_join_file_that_is_no_address_spoils_no_other() -> None:
    brain = fresh()
    good = f"/ip4/127.0.0.1/tcp/1/p2p/{ids.peer_text(B)}"
    effects = brain.step(0.0, Introduced(("# comment", good)))
    assert [effect.what for effect in effects if isinstance(effect, Note)] == ["no bootstrap address"]
    assert brain.mesh.bootstrap == (B,)


def test_a_message_for_an_unknown_session_is_answered_with_gone_to_its_agent() -> None:
    brain = fresh()
    effects = hear(brain, cases.AGENT.peer, messages.Subscribe(cases.SESSION, 0))
    assert cases.sent(effects) == [(cases.AGENT.peer, messages.Gone(cases.SESSION))]
