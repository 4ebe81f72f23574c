"""Giving: turns, limits, and what a peer that asks too much gets."""

from __future__ import annotations

import pytest

from meshnode import errors, ids
from meshnode.chunks import frames, listing, pacing, sharing
from meshnode.chunks.messages import AskChunk, AskListing, AskShelf, Lack, Shelf, Shelved
from meshnode.machine import Carried, Carry, HangUp, Note, Send
from meshnode.ports import Lane
from tests.sessions.cases import A, B, C

D, E = (ids.PeerId(bytes([number]) * 32) for number in (4, 5))

MODEL = Shelved("tiny", ids.digest(b"tiny"), 40 * listing.CHUNK_BYTES)
OTHER = ids.digest(b"another")


def stocked(upload_bytes_s: float = 0.0) -> sharing.Sharing:
    found = sharing.Sharing(upload_bytes_s)
    found.stocked([MODEL])
    return found


def ask(of: sharing.Sharing, peer: ids.PeerId, *indexes: int, now: float = 0.0) -> list[object]:
    return [effect for index in indexes for effect in of.asked(now, peer, AskChunk(MODEL.digest, index))]


def carried(peer: ids.PeerId, **settings: bool) -> Carried:
    return Carried(peer, MODEL.digest, listing.CHUNK_BYTES, **settings)


def test_the_shelf_is_shown() -> None:
    assert stocked().asked(0.0, A, AskShelf()) == [Send(A, Lane.SIGNAL, Shelf((MODEL,)))]
    assert sharing.Sharing(0.0).asked(0.0, A, AskShelf()) == [Send(A, Lane.SIGNAL, Shelf(()))]


def test_a_listing_and_a_chunk_are_carried_one_after_the_other_to_one_peer() -> None:
    of = stocked()
    assert of.asked(0.0, A, AskListing(MODEL.digest)) == [Carry(A, MODEL.digest, frames.LISTING)]
    assert ask(of, A, 3) == []
    assert of.carried(0.1, carried(A)) == [Carry(A, MODEL.digest, 3)]
    assert of.given_bytes == listing.CHUNK_BYTES


def test_a_model_that_is_not_here_is_said_so() -> None:
    of = stocked()
    assert of.asked(0.0, A, AskListing(OTHER)) == [Send(A, Lane.SIGNAL, Lack(OTHER))]
    assert of.asked(0.0, A, AskChunk(OTHER, 0)) == [Send(A, Lane.SIGNAL, Lack(OTHER))]


def test_a_chunk_beyond_the_models_end_is_the_peers_fault() -> None:
    of = stocked()
    with pytest.raises(errors.PeerError):
        ask(of, A, 43)
    assert ask(of, A, 42)


def test_peers_take_turns_however_much_one_asks() -> None:
    of = stocked()
    given = ask(of, A, *range(10)) + [one for peer in (B, C, D, E) for one in ask(of, peer, 0, 1)]
    order: list[ids.PeerId] = []
    while given:
        carry = given.pop(0)
        assert isinstance(carry, Carry)
        order.append(carry.to)
        given += of.carried(0.0, carried(carry.to))
    assert len(order) == 18
    assert set(order[:9]) == {A, B, C, D, E}  # a round began before E had asked
    assert order[-7:] == [A] * 7


def test_the_pace_is_kept() -> None:
    of = stocked(upload_bytes_s=0.5 * listing.CHUNK_BYTES)
    assert ask(of, A, 0) == [Carry(A, MODEL.digest, 0)]
    assert ask(of, B, 1) == []
    assert of.deadline == 2.0
    assert of.tick(1.9) == []
    assert of.tick(2.0) == [Carry(B, MODEL.digest, 1)]


def test_no_more_than_a_few_are_carried_at_once() -> None:
    of = stocked()
    peers = [ids.PeerId(bytes([number]) * 32) for number in range(sharing.AT_ONCE + 1)]
    given = [effect for peer in peers for effect in ask(of, peer, 0)]
    assert len(given) == sharing.AT_ONCE
    assert of.carried(0.0, carried(peers[0])) == [Carry(peers[-1], MODEL.digest, 0)]


def test_questions_beyond_the_queue_and_peers_beyond_the_room_come_to_nothing() -> None:
    of = stocked()
    ask(of, A, *range(sharing.QUESTIONS_MAX + 5))
    count = 1  # the first is on its way
    while of.carried(0.0, carried(A)):
        count += 1
    assert count == sharing.QUESTIONS_MAX + 1
    of = stocked(upload_bytes_s=1.0)
    peers = [ids.PeerId(number.to_bytes(32, "big")) for number in range(sharing.PEERS_MAX + 2)]
    answers = [ask(of, peer, 0) for peer in peers]
    assert answers[-1] == [Send(peers[-1], Lane.SIGNAL, Lack(MODEL.digest))]
    assert answers[-2] == []


def test_what_a_peer_asked_is_forgotten_when_it_leaves() -> None:
    of = stocked()
    ask(of, A, 0, 1, 2)
    of.left(A)
    assert of.carried(0.0, carried(A)) == []
    assert of.deadline == float("inf")


def test_a_peer_that_takes_nothing_is_hung_up_with_all_it_asked() -> None:
    of = stocked()
    ask(of, A, 0, 1, 2)
    assert of.carried(30.0, Carried(A, MODEL.digest, 0, stalled=True)) == [HangUp(A)]
    assert of.deadline == float("inf")


def test_a_model_that_the_disk_lost_is_shared_no_more() -> None:
    of = stocked()
    ask(of, A, 0)
    found = of.carried(0.0, Carried(A, MODEL.digest, 0, readable=False))
    assert found == [Note("model not readable", None, MODEL.digest.hex()), Send(A, Lane.SIGNAL, Lack(MODEL.digest))]
    assert ask(of, B, 0) == [Send(B, Lane.SIGNAL, Lack(MODEL.digest))]


def test_a_pace_without_a_limit_never_waits() -> None:
    pace = pacing.Pace(pacing.bytes_per_s(0))
    pace.spend(5.0, 1 << 30)
    assert pace.free_at < 0
    assert pacing.bytes_per_s(8) == 1e6
