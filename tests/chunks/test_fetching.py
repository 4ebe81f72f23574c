"""Which chunk is asked of whom next: by values, and by seeds against a dumb world of peers."""

from __future__ import annotations

import heapq
import random

import pytest

from meshnode import ids
from meshnode.chunks import fetching, frames, listing
from meshnode.chunks.messages import AskChunk, AskListing
from meshnode.machine import Note, Prepare, Send
from meshnode.ports import Lane
from tests.sessions.cases import A, B, C

CHUNKS = 40
WHOLE = listing.Listing(((CHUNKS - 2) * listing.CHUNK_BYTES, 1, 1), bytes(CHUNKS * ids.DIGEST_BYTES))
DIGEST = WHOLE.digest


def begun(*peers: ids.PeerId, here: frozenset[int] = frozenset(), download_bytes_s: float = 0.0) -> fetching.Fetching:
    """The listing is here and the disk ready; then these peers join."""
    of = fetching.Fetching(DIGEST, download_bytes_s)
    of.joined(0.0, C)
    of.listed(0.0, C, WHOLE)
    of.left(0.0, C)
    of.prepared(0.0, here)
    for peer in peers:
        of.joined(0.0, peer)
    return of


def asked(effects: list[object], peer: ids.PeerId | None = None) -> list[int]:
    return [
        one.message.index
        for one in effects
        if isinstance(one, Send) and isinstance(one.message, AskChunk) and peer in (None, one.to)
    ]


def test_the_listing_is_asked_for_first_and_of_one() -> None:
    of = fetching.Fetching(DIGEST, 0.0)
    assert of.joined(0.0, A) == [Send(A, Lane.SIGNAL, AskListing(DIGEST))]
    assert of.joined(0.0, B) == []
    assert of.listed(0.1, A, WHOLE) == [Prepare(WHOLE)]
    assert of.tick(0.2) == []
    assert asked(of.prepared(0.3, frozenset())) == [0, 1, 2, 3, 4]  # A has shown that it answers


def test_a_wrong_listing_is_asked_of_another_and_never_again_of_that_one() -> None:
    of = fetching.Fetching(DIGEST, 0.0)
    of.joined(0.0, A)
    of.joined(0.0, B)
    effects = of.spoilt(0.1, A, frames.LISTING)
    assert effects[0] == Note("source dropped", None, f"{ids.peer_short(A)} sent a wrong listing")
    assert effects[1] == Send(B, Lane.SIGNAL, AskListing(DIGEST))
    assert of.joined(0.2, A) == []
    assert of.dropped == {A: "sent a wrong listing"}


def test_each_source_gets_other_chunks_and_as_many_as_its_window() -> None:
    of = fetching.Fetching(DIGEST, 0.0)
    of.joined(0.0, C)
    of.listed(0.0, C, WHOLE)
    of.left(0.0, C)
    of.prepared(0.0, frozenset())
    first, second = of.joined(0.0, A), of.joined(0.0, B)
    assert asked(first, A) == [0, 1]
    assert asked(second, B) == [2, 3]


def test_what_is_here_already_is_not_asked_for() -> None:
    of = begun(A, here=frozenset(range(CHUNKS)) - {7, 39})
    assert set(of.sources[A].asked) == {7, 39}
    of.kept(1.0, A, 7)
    assert not of.done
    of.kept(1.0, A, 39)
    assert of.done
    assert of.given_bytes == {A: listing.CHUNK_BYTES + 1}


def test_an_answer_in_time_widens_the_window_up_to_its_bound() -> None:
    of = begun(A)
    for index in range(fetching.WINDOW_MAX + 4):
        of.kept(0.1, A, index)
    assert of.sources[A].window == fetching.WINDOW_MAX
    assert len(of.sources[A].asked) == fetching.WINDOW_MAX


def test_a_late_source_loses_its_window_and_its_chunks_go_to_others() -> None:
    of = begun(A, B)
    late = set(of.sources[A].asked)
    of.sources[B].asked.update(dict.fromkeys(of.sources[B].asked, 1e9))  # B has all the time of the world
    effects = of.tick(fetching.CHUNK_S_MAX)
    assert of.sources[A].window == 1
    assert of.sources[A].room == 0
    assert set(of.sources[A].late) == late
    assert effects == []
    given = of.kept(fetching.CHUNK_S_MAX, B, 2)
    assert set(asked(given, B)) == late
    assert asked(given, A) == []


def test_what_a_late_source_sends_after_all_is_taken_and_it_is_asked_again() -> None:
    of = begun(A)
    of.tick(fetching.CHUNK_S_MAX)
    assert of.expects(A, DIGEST, 0)
    assert asked(of.kept(16.0, A, 0)) == []
    assert len(asked(of.kept(16.1, A, 1))) == 1
    assert 0 not in of.missing


def test_a_source_that_never_answers_is_dropped_in_the_end() -> None:
    of, now = begun(A), 0.0
    while A in of.sources:
        assert of.deadline > now
        now = of.deadline
        of.tick(now)
    assert of.dropped == {A: "does not answer"}
    assert now == pytest.approx(fetching.STRIKES_MAX * (fetching.CHUNK_S_MAX + fetching.LATE_S_MAX))
    assert of.deadline == float("inf")


def test_the_chunks_of_one_that_left_are_asked_of_others_and_it_may_come_back() -> None:
    of = begun(A, B)
    of.left(1.0, A)
    given = of.kept(1.0, B, 2)
    assert asked(given, B) == [0, 1]
    assert len(asked(of.joined(2.0, A), A)) == fetching.WINDOW_FIRST


def test_the_last_chunks_of_a_slow_source_are_asked_of_a_quick_one_too() -> None:
    of = begun(A, B, here=frozenset(range(2, CHUNKS)))
    assert {index for source in of.sources.values() for index in source.asked} == {0, 1}
    assert all(len(source.asked) == 2 for source in of.sources.values())  # each was asked for the other's as well
    of.kept(1.0, A, 0)
    of.kept(1.0, A, 1)
    assert of.done
    assert of.expects(B, DIGEST, 1)  # B's may come yet, and are no fault of its


def test_only_what_was_asked_of_a_peer_is_expected_from_it() -> None:
    of = begun(A)
    assert of.expects(A, DIGEST, 0)
    assert not of.expects(A, DIGEST, 30)
    assert not of.expects(B, DIGEST, 0)
    assert not of.expects(A, ids.digest(b"another"), 0)


def test_the_download_limit_is_kept() -> None:
    of = begun(A, download_bytes_s=2.0 * listing.CHUNK_BYTES)
    assert set(of.sources[A].asked) == {0}
    assert of.deadline == 0.5
    assert asked(of.tick(0.4)) == []
    assert asked(of.tick(0.5)) == [1]


def test_under_a_limit_the_sources_take_turns() -> None:
    of, order, now = begun(A, B, download_bytes_s=1.0 * listing.CHUNK_BYTES), [], 0.0
    while len(order) < 6:
        peer, index = next((peer, index) for peer, source in of.sources.items() for index in source.asked)
        order.append(peer)
        of.kept(now, peer, index)  # long before the next may be asked for
        now = of.deadline
        of.tick(now)
    assert order.count(A) == order.count(B) == 3


def test_no_more_is_under_way_than_may_wait_for_the_disk() -> None:
    of = fetching.Fetching(DIGEST, 0.0)
    of.joined(0.0, C)
    of.listed(0.0, C, WHOLE)
    of.prepared(0.0, frozenset())
    peers = [ids.PeerId(bytes([number]) * 32) for number in range(40)]
    for peer in peers:
        of.joined(0.0, peer)
    assert len(of.sources) == fetching.SOURCES_MAX
    for source in of.sources.values():
        source.window = fetching.WINDOW_MAX
    of.tick(0.1)
    assert sum(len(source.asked) for source in of.sources.values()) <= fetching.ASKED_MAX


class Peers:
    """Peers of several kinds, each with a time in which it answers, in one queue of what will happen."""

    KINDS = ("quick", "slow", "liar", "mute", "leaver")

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.kinds = {ids.PeerId(rng.randbytes(32)): rng.choice(self.KINDS) for _ in range(6)}
        self.kinds[ids.PeerId(rng.randbytes(32))] = "slow"  # one is honest, if slow
        self.queue: list[tuple[float, int, str, ids.PeerId, int]] = []
        self.count = 0

    def put(self, at: float, what: str, peer: ids.PeerId, index: int = 0) -> None:
        self.count += 1
        heapq.heappush(self.queue, (at, self.count, what, peer, index))

    def hear(self, now: float, effects: list[object]) -> None:
        for one in effects:
            if isinstance(one, Prepare):
                self.put(now + 0.1, "prepared", one.listing.digest)
            if not isinstance(one, Send):
                continue
            index = one.message.index if isinstance(one.message, AskChunk) else frames.LISTING
            match self.kinds[one.to]:
                case "quick" | "leaver":
                    self.put(now + self.rng.uniform(0.01, 0.3), "answers", one.to, index)
                case "slow":
                    self.put(now + self.rng.uniform(5.0, 40.0), "answers", one.to, index)
                case "liar":
                    self.put(now + 0.02, "lies" if self.rng.random() < 0.5 else "answers", one.to, index)

    def happen(self, of: fetching.Fetching, here: frozenset[int]) -> float:
        now, _, what, peer, index = heapq.heappop(self.queue)
        expected = of.expects(peer, DIGEST, index)
        match what:
            case "answers" if expected:
                found = of.listed(now, peer, WHOLE) if index == frames.LISTING else of.kept(now, peer, index)
            case "lies" if expected:
                found = of.spoilt(now, peer, index)
            case "prepared":
                found = of.prepared(now, here)
            case "joins":
                found = of.joined(now, peer)
            case "leaves":
                found = of.left(now, peer)
            case _:
                found = []
        self.hear(now, found)
        return now


@pytest.mark.parametrize("seed", range(40))
def test_every_chunk_comes_whatever_the_others_do(seed: int) -> None:
    rng = random.Random(seed)
    peers, of = Peers(rng), fetching.Fetching(DIGEST, rng.choice((0.0, 4.0 * listing.CHUNK_BYTES)))
    here = frozenset(rng.sample(range(CHUNKS), rng.choice((0, 10))))
    for peer, kind in peers.kinds.items():
        for at in range(rng.choice((1, 3))):
            peers.put(at * 10.0 + rng.random(), "joins", peer)
            if kind == "leaver":
                peers.put(at * 10.0 + 2 * rng.random(), "leaves", peer)
    now = 0.0
    for _ in range(5000):
        if of.done:
            break
        if peers.queue and peers.queue[0][0] <= of.deadline:
            now = peers.happen(of, here)
        else:
            assert of.deadline < float("inf"), "nothing will happen any more"
            now = max(now, of.deadline)
            peers.hear(now, of.tick(now))
            assert of.deadline > now, "it would tick for ever"
        for source in of.sources.values():
            assert len(source.asked) <= fetching.WINDOW_MAX
            assert source.asked.keys().isdisjoint(source.late)
    assert of.done
    assert now < 3600
    kinds = [peers.kinds[peer] for peer, why in of.dropped.items() if why.startswith("sent a wrong")]
    assert set(kinds) <= {"liar"}
    given = sum(of.given_bytes.values())
    assert given == WHOLE.total_bytes - sum(WHOLE.chunk(index).size for index in here)


def test_the_seeds_reach_liars_and_mutes() -> None:
    kinds = [kind for seed in range(40) for kind in Peers(random.Random(seed)).kinds.values()]
    assert min(kinds.count(kind) for kind in Peers.KINDS) > 10
