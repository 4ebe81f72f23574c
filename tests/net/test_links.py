"""Which link is sent on, and what the brain hears: ups and downs alternate whatever the network does."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from meshnode.ids import PeerId
from meshnode.net import links
from meshnode.ports import Lane, LinkDown, LinkUp

PEER = PeerId(bytes(32))
UP = LinkUp(PEER, Lane.SIGNAL)
DOWN = LinkDown(PEER, Lane.SIGNAL)


@dataclass(eq=False)
class Link:
    greeting: links.Greeting = field(default_factory=lambda: links.Greeting(b"run", 0))
    ended: bool = False

    def end(self) -> None:
        self.ended = True


def test_links_that_crossed_are_one_and_the_older_is_sent_on() -> None:
    table, older, younger = links.Links[Link](), Link(), Link()
    assert table.add(PEER, Lane.SIGNAL, older) == (UP,)
    assert table.add(PEER, Lane.SIGNAL, younger) == ()
    assert table.sending(PEER, Lane.SIGNAL) is older
    older.end()
    assert table.sending(PEER, Lane.SIGNAL) is younger
    assert table.remove(PEER, Lane.SIGNAL, older) == ()
    younger.end()
    assert table.remove(PEER, Lane.SIGNAL, younger) == (DOWN,)


def test_a_link_that_the_peer_has_forgotten_is_left_at_once() -> None:
    for forgotten in (links.Greeting(b"another run", 0), links.Greeting(b"run", 1)):
        table, older, younger = links.Links[Link](), Link(), Link(forgotten)
        table.add(PEER, Lane.SIGNAL, older)
        assert table.add(PEER, Lane.SIGNAL, younger) == (DOWN, UP)
        assert older.ended
        assert table.sending(PEER, Lane.SIGNAL) is younger
        assert table.remove(PEER, Lane.SIGNAL, older) == ()


def test_a_stranger_does_not_pile_up_links() -> None:
    table = links.Links[Link]()
    crowd = [Link() for _ in range(100)]
    for link in crowd:
        table.add(PEER, Lane.SIGNAL, link)
    assert len(table.of(PEER)) == links.LINKS_MAX
    assert sum(not link.ended for link in crowd) == links.LINKS_MAX
    assert not crowd[-1].ended


def test_losses_are_counted_and_forgotten_in_the_end() -> None:
    table = links.Links[Link]()
    for number in range(links.LOSSES_MAX + 1):
        peer = PeerId(number.to_bytes(32, "big"))
        link = Link()
        table.add(peer, Lane.BULK, link)
        link.end()
        table.remove(peer, Lane.BULK, link)
    assert table.losses(PeerId(bytes(32)), Lane.BULK) == 0
    assert table.losses(PeerId((1).to_bytes(32, "big")), Lane.BULK) == 1


@given(st.lists(st.tuples(st.sampled_from(["add", "stale", "end", "fall"]), st.integers(0, 7))))
def test_ups_and_downs_alternate(story: list[tuple[str, int]]) -> None:
    table = links.Links[Link]()
    made: list[Link] = []
    told: list[LinkUp | LinkDown] = []
    for act, number in story:
        if act in ("add", "stale"):
            made.append(Link(links.Greeting(b"run", number if act == "stale" else 0)))
            told += table.add(PEER, Lane.SIGNAL, made[-1])
        elif made:
            link = made[number % len(made)]
            link.end()
            if act == "fall":
                told += table.remove(PEER, Lane.SIGNAL, link)
    assert told[::2] == [UP] * len(told[::2])
    assert told[1::2] == [DOWN] * len(told[1::2])
    assert (len(told) % 2 == 1) == bool(table.of(PEER))
    for link in list(made):
        link.end()
        told += table.remove(PEER, Lane.SIGNAL, link)
    assert len(told) % 2 == 0
    assert table.losses(PEER, Lane.SIGNAL) == len(told) // 2
