"""Pure: which links stand, which one to send on, and what to tell the brain about it.

Both sides may dial at the same moment, so two links of one lane can stand between two peers; and a peer that restarted
behind a cut cable dials again while its old link still looks alive here. The two cases want opposite answers. Of two
crossing links we keep sending on the *older*: moving to the newer would let its frames overtake those in flight, and
the port promises order. An old link that the peer itself has forgotten must be left at once. So both sides begin a
link with a *greeting*: who speaks (a random number per run) and how often it has lost this lane to this peer. Equal
greetings are a crossing; a different one says that what stood before is gone.

Rejected: always the newest (reorders), always the oldest (sends into a dead link until the heartbeat notices), and
letting the smaller peer id win (an answer to crossings only).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from meshnode import errors, ids
from meshnode.ids import PeerId
from meshnode.ports import Lane, LinkDown, LinkUp

LINKS_MAX = 4
"""Links of one lane with one peer. Two are honest; a peer that opens more loses its oldest ones."""

LOSSES_MAX = 4096
"""Peers and lanes whose losses are remembered. Beyond it the longest forgotten starts at 0 again, as after a run."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first thing said on a link, in each direction."""

    run: bytes
    """Random, drawn when the transport starts."""
    losses: int
    """How often the speaker has reported LinkDown of this lane with the listener."""


class Link(Protocol):
    """What the table must know of a link."""

    greeting: Greeting
    """The *other* side's."""
    ended: bool
    """Ended by us or seen to be; the task that reads it has not yet taken it out of the table."""

    def end(self) -> object:
        """Idempotent, does not block."""


L = TypeVar("L", bound=Link)
News = tuple[LinkUp | LinkDown, ...]


class Links(Generic[L]):
    """Links by (peer, lane), oldest first. LinkUp and LinkDown of a key alternate, LinkUp first."""

    def __init__(self) -> None:
        self._standing: dict[tuple[PeerId, Lane], list[L]] = {}
        self._losses: dict[tuple[PeerId, Lane], int] = {}

    def add(self, peer: PeerId, lane: Lane, link: L) -> News:
        """Links that the peer has forgotten, and those that have ended here, fall out now."""
        assert not link.ended
        older = self._standing.get((peer, lane), [])
        kept = [other for other in older if not other.ended and other.greeting == link.greeting][1 - LINKS_MAX :]
        for other in older:
            if other not in kept:
                other.end()
        self._standing[peer, lane] = [*kept, link]
        if kept:
            return ()
        if older:
            return (self._lost(peer, lane), LinkUp(peer, lane))
        return (LinkUp(peer, lane),)

    def remove(self, peer: PeerId, lane: Lane, link: L) -> News:
        """Nothing to tell if it was replaced before, or if another still stands."""
        assert link.ended
        standing = self._standing.get((peer, lane), [])
        if link not in standing:
            return ()
        standing.remove(link)
        if standing:
            return ()
        del self._standing[peer, lane]
        return (self._lost(peer, lane),)

    def sending(self, peer: PeerId, lane: Lane) -> L | None:
        """The link to send on, if any stands."""
        return next((link for link in self._standing.get((peer, lane), ()) if not link.ended), None)

    def required(self, peer: PeerId, lane: Lane) -> L:
        """The same, or Unreachable."""
        link = self.sending(peer, lane)
        if link is None:
            raise errors.Unreachable(f"no {lane.name} link to {ids.peer_short(peer)}")
        return link

    def of(self, peer: PeerId | None = None) -> list[L]:
        """Every link, or every link with one peer."""
        return [link for (other, _), links in self._standing.items() if peer in (None, other) for link in links]

    def losses(self, peer: PeerId, lane: Lane) -> int:
        """For our own greeting."""
        return self._losses.get((peer, lane), 0)

    def _lost(self, peer: PeerId, lane: Lane) -> LinkDown:
        self._losses[peer, lane] = self._losses.pop((peer, lane), 0) + 1  # to the young end of the dict
        if len(self._losses) > LOSSES_MAX:
            del self._losses[next(iter(self._losses))]
        return LinkDown(peer, lane)
