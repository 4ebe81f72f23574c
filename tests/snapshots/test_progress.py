"""Sender and receiver together: what the host believes is what the replica has."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from meshnode import errors, ids
from meshnode.snapshots import receiver, sender

ONE = ids.PeerId(b"1" * 32)
TWO = ids.PeerId(b"2" * 32)
GENESIS = ids.digest(b"genesis")
WINDOW = sender.Window(pages_max=4, bytes_max=1000)


def named(parent: ids.Digest, token: int = 0) -> ids.Digest:
    return ids.digest(parent, bytes([token]))


def linked(count: int, token: int = 0) -> list[ids.Digest]:
    """A chain of `count` addresses."""
    links = [named(GENESIS, token)]
    while len(links) < count:
        links.append(named(links[-1], token))
    return links


def host(page_count: int, *, epoch: int = 1, frame_bytes: int = 100, window: sender.Window = WINDOW) -> sender.Sender:
    ours = sender.Sender(epoch, window)
    for page_index, address in enumerate(linked(page_count)):
        ours.sealed(page_index, address, frame_bytes)
    ours.added(ONE)
    return ours


def replica(page_count: int, *, epoch: int = 1) -> receiver.Receiver:
    theirs = receiver.Receiver(epoch, GENESIS, ahead_max=4)
    feed(theirs, linked(page_count) if page_count else [])
    return theirs


def feed(theirs: receiver.Receiver, links: list[ids.Digest], *, epoch: int = 1) -> None:
    for page_index, address in enumerate(links):
        theirs.stored(page_index, address, links[page_index - 1] if page_index else GENESIS, epoch)


# ------------------------------------------------------------------------------------------------------------- sender


def test_pages_are_shipped_once_in_order_within_the_window() -> None:
    ours = host(6)
    assert ours.next_for(ONE) == [0, 1, 2, 3]
    assert ours.next_for(ONE) == []
    assert ours.acked(ONE, 2, 1, linked(6)[1])
    assert ours.next_for(ONE) == [4, 5]


def test_the_window_counts_bytes_but_never_blocks_a_single_page() -> None:
    ours = host(4, frame_bytes=400)
    assert ours.next_for(ONE) == [0, 1]
    large = host(3, frame_bytes=5000)
    assert large.next_for(ONE) == [0]
    assert large.next_for(ONE) == []
    assert large.acked(ONE, 1, 1, linked(1)[0])
    assert large.next_for(ONE) == [1]


def test_a_broken_link_ships_again_from_the_watermark() -> None:
    ours = host(4)
    ours.next_for(ONE)
    ours.acked(ONE, 1, 1, linked(1)[0])
    ours.link_down(ONE)
    assert ours.next_for(ONE) == [1, 2, 3]


def test_replicas_progress_apart_and_strangers_get_nothing() -> None:
    ours = host(2)
    ours.added(TWO)
    ours.next_for(ONE)
    ours.acked(ONE, 2, 1, linked(2)[1])
    assert (ours.watermark(ONE), ours.watermark(TWO)) == (2, 0)
    assert ours.next_for(TWO) == [0, 1]
    ours.removed(ONE)
    assert ours.next_for(ONE) == []
    assert not ours.acked(ONE, 2, 1, linked(2)[1])
    assert not ours.has(ONE, linked(2), 1)
    ours.link_down(ONE)


@pytest.mark.parametrize(
    ("watermark", "epoch", "tip"),
    [
        (2, 0, linked(2)[1]),
        (2, 2, linked(2)[1]),
        (2, 1, linked(1)[0]),
        (3, 1, linked(3)[2]),
        (0, 1, GENESIS),
        (-1, 1, linked(2)[1]),
    ],
)
def test_an_ack_of_another_epoch_chain_or_length_is_ignored(watermark: int, epoch: int, tip: ids.Digest) -> None:
    ours = host(2)
    assert not ours.acked(ONE, watermark, epoch, tip)
    assert ours.watermark(ONE) == 0


def test_an_older_ack_does_not_lower_the_watermark() -> None:
    ours = host(3)
    ours.acked(ONE, 3, 1, linked(3)[2])
    assert not ours.acked(ONE, 2, 1, linked(3)[1])
    assert ours.watermark(ONE) == 3


def test_an_ack_from_before_a_rewind_does_not_vouch_for_the_pages_after_it() -> None:
    ours = host(4)
    ours.next_for(ONE)
    ours.truncated(1)
    other = named(linked(1)[0], 9)
    ours.sealed(1, other, 100)
    assert not ours.acked(ONE, 2, 1, linked(2)[1])
    assert ours.acked(ONE, 2, 1, other)


def test_a_rewind_lowers_the_watermarks() -> None:
    ours = host(4)
    ours.next_for(ONE)
    ours.acked(ONE, 4, 1, linked(4)[3])
    ours.truncated(2)
    assert ours.watermark(ONE) == 2
    ours.sealed(2, named(linked(2)[1], 9), 100)
    assert ours.next_for(ONE) == [2]


def test_a_new_host_ships_only_what_a_replica_says_it_lacks() -> None:
    ours = host(5, epoch=2)
    assert ours.has(ONE, linked(3), 2)
    assert ours.next_for(ONE) == [3, 4]


def test_a_replica_that_has_more_or_another_branch_counts_up_to_where_they_part() -> None:
    ours = host(3)
    assert ours.has(ONE, linked(5), 1)
    assert ours.watermark(ONE) == 3
    assert ours.has(ONE, [*linked(2), named(linked(2)[1], 9)], 1)
    assert ours.watermark(ONE) == 2
    assert ours.next_for(ONE) == [2]


def test_a_replica_that_lost_its_pages_gets_them_again() -> None:
    ours = host(3)
    ours.next_for(ONE)
    ours.acked(ONE, 3, 1, linked(3)[2])
    assert not ours.has(ONE, [], 0)
    assert ours.watermark(ONE) == 3
    assert ours.has(ONE, [], 1)
    assert ours.next_for(ONE) == [0, 1, 2]


# ----------------------------------------------------------------------------------------------------------- receiver


def test_contiguous_pages_raise_the_watermark() -> None:
    theirs = replica(3)
    assert theirs.watermark == 3
    assert theirs.chain == tuple(linked(3))
    assert theirs.tip == linked(3)[2]


@hypothesis.given(order=st.permutations(range(4)))
def test_any_order_gives_the_same_chain(order: list[int]) -> None:
    theirs, links = replica(0), linked(4)
    for page_index in order:
        theirs.stored(page_index, links[page_index], links[page_index - 1] if page_index else GENESIS, 1)
    assert theirs.chain == tuple(links)


def test_a_page_that_came_early_does_not_count_yet() -> None:
    theirs, links = replica(0), linked(2)
    assert theirs.stored(1, links[1], links[0], 1) == receiver.Ack(0, 1, GENESIS)
    assert theirs.stored(0, links[0], GENESIS, 1) == receiver.Ack(2, 1, links[1])


def test_a_page_of_another_recipe_never_counts() -> None:
    theirs = replica(0)
    assert theirs.stored(0, linked(1)[0], ids.digest(b"another model"), 1).watermark == 0


def test_a_duplicate_is_acknowledged_as_far_as_itself() -> None:
    theirs, links = replica(3), linked(3)
    assert theirs.stored(0, links[0], GENESIS, 1) == receiver.Ack(1, 1, links[0])
    assert theirs.watermark == 3


def test_a_page_in_place_of_another_replaces_the_rest_of_the_chain() -> None:
    theirs, links = replica(4), linked(4)
    other = named(links[0], 9)
    assert theirs.stored(1, other, links[0], 1) == receiver.Ack(2, 1, other)
    late = theirs.stored(2, links[2], links[1], 1)
    assert late == receiver.Ack(2, 1, other)


def test_a_rewound_future_that_arrives_backwards_is_linked() -> None:
    theirs, links = replica(4), linked(4)
    other = named(links[0], 9)
    after = named(other, 9)
    assert theirs.stored(2, after, other, 1).watermark == 4
    assert theirs.stored(1, other, links[0], 1) == receiver.Ack(3, 1, after)


def test_a_page_that_waits_for_another_parent_is_not_linked_to_this_one() -> None:
    theirs, links = replica(1), linked(2)
    other = named(links[0], 9)
    theirs.stored(2, named(other, 9), other, 1)
    assert theirs.stored(1, links[1], links[0], 1) == receiver.Ack(2, 1, links[1])
    assert theirs.stored(1, other, links[0], 1) == receiver.Ack(3, 1, named(other, 9))


def test_a_stale_epoch_is_refused_and_a_newer_one_keeps_what_is_stored() -> None:
    theirs, links = replica(2), linked(3)
    theirs.adopt(2)
    with pytest.raises(errors.PeerError, match="epoch 1"):
        theirs.stored(2, links[2], links[1], 1)
    assert theirs.stored(2, links[2], links[1], 3) == receiver.Ack(3, 3, links[2])
    theirs.adopt(2)
    assert theirs.epoch == 3


@pytest.mark.parametrize("page_index", [-1, 6, 2**32 - 1])
def test_a_page_far_ahead_is_refused_before_it_is_stored(page_index: int) -> None:
    theirs = replica(2)
    theirs.admit(5, 1)
    with pytest.raises(errors.PeerError, match="too far"):
        theirs.admit(page_index, 1)


def test_a_torn_page_ends_the_chain_and_an_eviction_empties_it() -> None:
    theirs, links = replica(4), linked(4)
    assert theirs.lost(links[2]) == 2
    assert theirs.lost(ids.digest(b"unknown")) == 2
    theirs.emptied()
    assert (theirs.watermark, theirs.tip) == (0, GENESIS)


# ----------------------------------------------------------------------------------------------------- both, together


class Shipping(stateful.RuleBasedStateMachine):
    """A host that seals, rewinds and fails over, a link that breaks, late acks, a replica that loses pages."""

    def __init__(self) -> None:
        super().__init__()
        self.host = sender.Sender(1, sender.Window(pages_max=3))
        self.host.added(ONE)
        self.replica = receiver.Receiver(1, GENESIS, ahead_max=3)
        self.truth: list[ids.Digest] = []
        self.lane: list[tuple[int, ids.Digest, ids.Digest, int]] = []
        self.acks: list[receiver.Ack] = []

    @stateful.rule(token=st.integers(0, 1))
    def seal(self, token: int) -> None:
        self.truth.append(named(self.truth[-1] if self.truth else GENESIS, token))
        self.host.sealed(len(self.truth) - 1, self.truth[-1], 1)

    @stateful.rule(keep=st.integers(0, 3))
    def rewind(self, keep: int) -> None:
        del self.truth[keep:]
        self.host.truncated(len(self.truth))

    @stateful.rule()
    def ship(self) -> None:
        for index in self.host.next_for(ONE):
            parent = self.truth[index - 1] if index else GENESIS
            self.lane.append((index, self.truth[index], parent, self.host.epoch))

    @stateful.precondition(lambda self: self.lane)
    @stateful.rule()
    def arrive(self) -> None:
        self.acks.append(self.replica.stored(*self.lane.pop(0)))

    @stateful.precondition(lambda self: self.acks)
    @stateful.rule()
    def acknowledge(self) -> None:
        ack = self.acks.pop(0)
        self.host.acked(ONE, ack.watermark, ack.epoch, ack.tip)

    @stateful.rule()
    def cut(self) -> None:
        """The bulk lane breaks; acks travel on another one and may still come."""
        self.lane.clear()
        self.host.link_down(ONE)

    @stateful.rule()
    def fail_over(self) -> None:
        epoch = self.host.epoch + 1
        self.lane.clear()
        self.replica.adopt(epoch)
        self.host = sender.Sender(epoch, sender.Window(pages_max=3))
        self.host.added(ONE)
        for page_index, address in enumerate(self.truth):
            self.host.sealed(page_index, address, 1)
        self.host.has(ONE, self.replica.chain, epoch)

    @stateful.rule()
    def lose(self) -> None:
        self.replica.emptied()
        self.acks.clear()
        self.cut()
        self.host.has(ONE, self.replica.chain, self.host.epoch)

    @stateful.invariant()
    def the_host_never_believes_in_pages_that_the_replica_has_not(self) -> None:
        believed = self.host.watermark(ONE)
        assert believed <= len(self.truth)
        assert list(self.replica.chain[:believed]) == self.truth[:believed]

    def teardown(self) -> None:
        """Left alone, it always ends with all pages stored and acknowledged."""
        for _ in range(4 * len(self.truth) + len(self.lane) + len(self.acks) + 4):
            self.ship()
            if self.lane:
                self.arrive()
            while self.acks:
                self.acknowledge()
        assert self.host.watermark(ONE) == len(self.truth)
        assert list(self.replica.chain[: len(self.truth)]) == self.truth


TestShipping = Shipping.TestCase
TestShipping.settings = hypothesis.settings(stateful_step_count=40)
