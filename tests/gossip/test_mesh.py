"""Links, dials, adverts and heartbeats of one node, step by step."""

from __future__ import annotations

import random

from meshnode import config, ids
from meshnode.gossip import mesh
from meshnode.gossip.messages import Ping, Pong, Publish
from meshnode.machine import Dial, DialFailed, HangUp, Note, Send
from meshnode.ports import Lane, LinkDown, LinkUp
from meshnode.wire import envelope, keys
from tests.gossip.test_directory import advert, sealed
from tests.sessions import cases
from tests.sessions.cases import A, B, C

WHERE = "/ip4/127.0.0.1/tcp/9"


def at(peer: bytes) -> str:
    return f"{WHERE}/p2p/{ids.peer_text(ids.PeerId(peer))}"


def fresh(*, agent: bool = False) -> mesh.Mesh:
    return mesh.Mesh(cases.NODES[0], config.Node(), cases.CARD, 1, random.Random(1), agent=agent)


def dials(effects: list[object]) -> list[tuple[bytes, Lane]]:
    return [(effect.peer, effect.lane) for effect in effects if isinstance(effect, Dial)]


def joined(now: float = 0.0) -> mesh.Mesh:
    """With B as bootstrap peer and member, all lanes up."""
    of = fresh()
    of.introduced(now, (at(B),))
    for lane in Lane:
        of.link_up(now, LinkUp(B, lane))
    of.on_publish(now, B, Publish((sealed(addresses=(at(B),)),)))
    return of


def test_a_bootstrap_peer_is_dialled_at_once_on_the_signalling_lane_first() -> None:
    of = fresh()
    effects = of.introduced(0.0, (at(B), at(A)))
    assert effects == [Dial(B, (at(B),), Lane.SIGNAL)]
    assert of.introduced(0.0, (at(B),)) == []
    assert dials(of.link_up(0.1, LinkUp(B, Lane.SIGNAL))) == [(B, Lane.MEDIA), (B, Lane.BULK)]


def test_a_dial_that_fails_is_tried_again_after_a_growing_pause_for_ever() -> None:
    of = fresh()
    of.introduced(0.0, (at(B),))
    now, gaps = 0.0, []
    for _ in range(9):
        of.dial_failed(now, DialFailed(B, Lane.SIGNAL))
        failed_at = now
        while not dials(of.tick(now)):
            now += 0.1
        gaps.append(now - failed_at)
    assert gaps[0] < 1.0
    assert 4.9 < max(gaps[-3:]) < 15.2
    assert gaps[-1] > gaps[0]


def test_a_dial_without_any_answer_is_given_up() -> None:
    of = fresh()
    of.introduced(0.0, (at(B),))
    assert dials(of.tick(mesh.DIAL_S_MAX - 0.1)) == []
    assert dials(of.tick(mesh.DIAL_S_MAX)) == [(B, Lane.SIGNAL)]


def test_a_broken_link_is_dialled_at_once_and_only_that_dials_failure_is_evidence() -> None:
    of = fresh()
    of.introduced(0.0, (at(B),))
    assert not of.dial_failed(0.0, DialFailed(B, Lane.SIGNAL)), "never linked: proves nothing"
    of.link_up(1.0, LinkUp(B, Lane.SIGNAL))
    assert dials(of.link_down(2.0, LinkDown(B, Lane.SIGNAL))) == [(B, Lane.SIGNAL)]
    assert of.dial_failed(2.1, DialFailed(B, Lane.SIGNAL))
    of.link_up(3.0, LinkUp(B, Lane.SIGNAL))
    assert not of.dial_failed(3.1, DialFailed(B, Lane.MEDIA))


def test_a_bulk_lane_that_breaks_alone_is_no_evidence() -> None:
    of = joined()
    assert dials(of.link_down(1.0, LinkDown(B, Lane.BULK))) == [(B, Lane.BULK)]
    assert not of.dial_failed(1.1, DialFailed(B, Lane.BULK))


def test_of_two_members_the_lower_id_dials_first_and_the_other_waits_a_second() -> None:
    of = fresh()
    low, high = (next(one for one in cases.NODES if one.peer != A and (one.peer < A) is less) for less in (True, False))
    for one in (low, high):
        paper = envelope.seal(one, advert(addresses=(at(one.peer),)))
        effects = of.on_publish(0.0, C, Publish((paper,)))
        assert dials(effects) == ([(one.peer, Lane.SIGNAL)] if one is high else [])
    assert (low.peer, Lane.SIGNAL) in dials(of.tick(1.0))


def test_news_goes_once_to_all_but_the_teller_and_its_subject() -> None:
    of = joined()
    of.link_up(0.0, LinkUp(C, Lane.SIGNAL))
    of.on_publish(0.0, C, Publish((sealed(by=2),)))
    news = sealed(by=3)
    effects = of.on_publish(1.0, C, Publish((news,)))
    assert cases.sent(effects) == [(B, Publish((news,)))]
    assert of.on_publish(1.0, B, Publish((news,))) == []


def test_a_guest_hears_of_a_new_member_once_and_of_nothing_else() -> None:
    of, guest = joined(), cases.AGENT.peer
    of.link_up(0.0, LinkUp(guest, Lane.SIGNAL))
    new, newer = sealed(by=3), sealed(version=2, by=3)
    assert (guest, Publish((new,))) in cases.sent(of.on_publish(1.0, B, Publish((new,))))
    assert guest not in [to for to, _ in cases.sent(of.on_publish(2.0, B, Publish((newer,))))]


def test_a_bad_advert_takes_no_other_with_it() -> None:
    of = joined()
    of.on_publish(1.0, B, Publish((cases.invitation(), sealed(by=3), b"junk")))
    assert cases.D in of.directory.members


def test_a_new_link_is_told_of_everybody_in_messages_that_fit_their_lane() -> None:
    of = fresh()
    fat = {"addresses": (WHERE + "x" * 230,) * 8, "name": "n" * 128}
    for number in range(150):
        identity = keys.Identity((1000 + number).to_bytes(32, "big"))
        of.directory.learn(0.0, envelope.seal(identity, advert(**fat)))
    told = [message for _, message in cases.sent(of.link_up(0.0, LinkUp(B, Lane.SIGNAL)), Publish)]
    assert sum(len(message.adverts) for message in told) == 151
    assert all(len(envelope.seal(cases.NODES[0], message)) < 1 << 20 for message in told)
    assert len(told) > 1


def test_an_agent_publishes_nothing_and_links_to_whom_it_needs() -> None:
    of = fresh(agent=True)
    of.introduced(0.0, (at(B),))
    assert cases.sent(of.link_up(0.0, LinkUp(B, Lane.SIGNAL))) == []
    members = [keys.Identity((1000 + number).to_bytes(32, "big")) for number in range(5)]
    papers = tuple(envelope.seal(one, advert(addresses=(at(one.peer),))) for one in members)
    effects = of.on_publish(0.0, B, Publish(papers))
    assert cases.sent(effects) == []
    assert len(dials(effects)) == mesh.SPARE_GATEWAYS
    of.interests[C] = (at(C),)
    assert (C, Lane.SIGNAL) in dials(of.tick(1.0))
    assert not any(isinstance(effect, Send) and isinstance(effect.message, Publish) for effect in of.tick(99.0))


def test_members_are_pinged_and_an_answer_is_measured() -> None:
    of = joined()
    assert (B, Ping(2_000_000)) in cases.sent(of.tick(2.0))
    of.on_pong(2.25, B, Pong(2_000_000))
    assert of.directory.members[B].rtt_s == 0.25
    of.on_pong(2.25, B, Pong(9_000_000))
    assert of.directory.members[B].rtt_s == 0.25, "a stamp of the future is no measurement"
    assert cases.sent(of.on_ping(B, Ping(7))) == [(B, Pong(7))]


def test_a_link_that_is_silent_for_long_is_hung_up() -> None:
    of = joined()
    of.heard(1.0, B)
    assert HangUp(B) not in of.tick(1.0 + mesh.HUNG_AFTER_S)
    assert HangUp(B) in of.tick(2.0 + mesh.HUNG_AFTER_S)


def test_the_own_advert_is_made_anew_when_it_says_something_else_and_not_more_often() -> None:
    of = joined()
    of.tick(1.0)
    assert cases.sent(of.tick(2.0), Publish) == []
    of.load = mesh.Load(5, 1)
    ((to, _),) = cases.sent(of.tick(3.0), Publish)
    assert to == B
    of.load = mesh.Load(6, 1)
    assert cases.sent(of.tick(3.1), Publish) == [], "not within the spacing"
    assert len(cases.sent(of.tick(3.6), Publish)) == 1


def test_a_member_that_ran_out_is_noted_and_forgotten() -> None:
    of = fresh()
    of.on_publish(0.0, B, Publish((sealed(ttl_s=10),)))
    effects = of.tick(10.0)
    assert [effect.what for effect in effects if isinstance(effect, Note)] == ["advert expired"]
    assert of._tries == {}


def test_after_a_tick_the_deadline_is_ahead() -> None:
    of = joined()
    now = 0.0
    for _ in range(500):
        now = max(now, of.deadline)
        of.tick(now)
        assert of.deadline > now
    assert now > 60.0
