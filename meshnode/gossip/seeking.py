"""One seat of a living session: offers, bids, one request to join, confirmed or passed on to the next best.

An auction for one, with the offers, bids and constraints of the large one; the session's owner holds it. It decides
nothing about the session: whom it finds is a learner, and becomes a voter by an entry of the log.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from meshnode import ids
from meshnode.gossip.auction import SILENT, Auction
from meshnode.gossip.messages import Bid, Confirm, Join, Offer, Release
from meshnode.gossip.placing import Placing, Windows
from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.machine import Effect, Send
from meshnode.manifest import Manifest
from meshnode.ports import Lane
from meshnode.wire.award import Award, Seat

SEARCHES_MAX = 64


@dataclass(frozen=True, slots=True)
class Want:
    """A seat, and what its taker is given."""

    session: SessionId
    award: Award
    birth: bytes
    """The award, signed."""
    role: str
    stay: tuple[PeerId, ...]
    """Who keeps a seat."""
    lost: tuple[PeerId, ...]
    since: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A search is over: somebody joined, or nobody can (`reason`)."""

    session: SessionId
    seat: Seat | None
    reason: str = ""


@dataclass(slots=True)
class _Search:
    want: Want
    auction: Auction
    confirm_s: float
    asked: PeerId | None = None
    """Who was sent a Join and has not answered."""


Came = tuple[list[Effect], list[Outcome]]


class Seeking:
    """Searches of the owners on this node."""

    def __init__(self, placing: Placing, rng: random.Random) -> None:
        self.placing = placing
        self.rng = rng
        self._searches: dict[RequestId, _Search] = {}

    def begin(self, now: float, want: Want, manifest: Manifest, windows: Windows) -> Came:
        """Ask everybody who is there and has no part in it."""
        taken = {*want.stay, *want.lost, self.placing.me}
        nominees = {peer: operator for peer, operator in self.placing.nominees(now).items() if peer not in taken}
        if not nominees or len(self._searches) >= SEARCHES_MAX:
            return [], [Outcome(want.session, None, "no spare node")]
        number = RequestId(self.rng.randbytes(ids.REQUEST_BYTES))
        paper = want.award.invitation
        auction = Auction(
            number, want.session, self.placing.me, paper, manifest, nominees, now, windows.bid_s, windows.total_s
        )
        self._searches[number] = _Search(want, auction, windows.confirm_s)
        offer = Offer(number, want.session, paper)
        return [Send(nominee, Lane.SIGNAL, offer) for nominee in sorted(nominees)], []

    def on_bid(self, now: float, peer: PeerId, bid: Bid) -> Came:
        """A bid; the last one closes the window early."""
        search = self._searches.get(bid.auction)
        if search is None or search.asked is not None or not search.auction.on_bid(now, peer, bid):
            return [], []
        return self._ask(now, search)

    def _ask(self, now: float, search: _Search) -> Came:
        """The best of those that are left."""
        auction, want = search.auction, search.want
        members = self.placing.mesh.directory.members
        operators = {members[peer].advert.operator for peer in want.stay if peer in members}
        taken = frozenset({*operators, self.placing.mesh.config.operator})
        best = auction.spare(self.rng, want.role, self.placing.bidder.recipe, taken)
        if best is None:
            return self._finish(search, None, f"no spare node{_why(auction)}")
        search.asked = best
        auction.due = now + search.confirm_s
        join = Join(auction.auction, want.session, want.birth, want.role, want.since)
        return [Send(best, Lane.SIGNAL, join)], []

    def on_confirm(self, now: float, peer: PeerId, confirm: Confirm) -> Came:
        """It joined, or it cannot."""
        search = self._searches.get(confirm.auction)
        if search is None or search.asked != peer:
            return [], []
        if not confirm.refusals:
            seat = Seat(peer, search.want.role, self.placing.addresses_of(peer))
            return self._finish(search, seat, "")
        search.auction.exclude(peer, confirm.refusals[0])
        search.asked = None
        return self._ask(now, search)

    def _finish(self, search: _Search, seat: Seat | None, reason: str) -> Came:
        auction = search.auction
        del self._searches[auction.auction]
        release = Release(auction.auction, auction.session)
        losers = [peer for peer in sorted(auction.operators) if seat is None or peer != seat.peer]
        effects: list[Effect] = [Send(peer, Lane.SIGNAL, release) for peer in losers]
        return effects, [Outcome(auction.session, seat, reason)]

    def tick(self, now: float) -> Came:
        """Windows that closed."""
        effects: list[Effect] = []
        outcomes: list[Outcome] = []
        for search in list(self._searches.values()):
            if now < search.auction.due:
                continue
            if search.asked is not None:
                search.auction.exclude(search.asked, SILENT)
                search.asked = None
            more, over = self._ask(now, search)
            effects, outcomes = effects + more, outcomes + over
        return effects, outcomes

    @property
    def deadline(self) -> float:
        """The next window to close."""
        return min((search.auction.due for search in self._searches.values()), default=float("inf"))


def _why(auction: Auction) -> str:
    """Why those that answered cannot, in a few words."""
    bids = [one.bid for one in auction.bids.values()]
    reasons = Counter(reason for bid in bids for reason in (*bid.host_refusals, *bid.vote_refusals))
    return "".join(f"; {reason}" for reason, _ in reasons.most_common(2))
