"""INVITE to ACK at one node: both sides of every auction that it holds or bids in.

Returns effects; what it cannot decide, the birth of a session, it hands to its caller as `Seated`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from meshnode import errors, ids, manifest
from meshnode.gossip.auction import ATTEMPTS_MAX, NOMINEES_MAX, Auction, Phase, Plan, Refusal
from meshnode.gossip.bidder import Bidder
from meshnode.gossip.mesh import Mesh
from meshnode.gossip.messages import Answer, Awarded, Bid, Cancel, Confirm, Invite, Join, Offer, Release, Trying
from meshnode.ids import PeerId, RequestId
from meshnode.machine import Effect, Note, Send
from meshnode.manifest import Manifest
from meshnode.ports import Lane
from meshnode.wire import envelope
from meshnode.wire.award import Award, Invitation, Seat

AUCTIONS_MAX = 64
ROLES = {"host", "replica", "witness"}


@dataclass(frozen=True, slots=True)
class Windows:
    """The kind's own times, from sessions/timers.py; passed in because gossip knows no sessions."""

    bid_s: float
    total_s: float
    confirm_s: float
    reserve_s: float


@dataclass(frozen=True, slots=True)
class Seated:
    """An award that names this node and passed every check that placement can make."""

    award: Award
    sealed: bytes
    agent: PeerId
    manifest: Manifest
    role: str


class Placing:
    """Auctions held here, and bids made here."""

    def __init__(self, mesh: Mesh, bidder: Bidder, rng: random.Random) -> None:
        self.mesh = mesh
        self.me = mesh.me
        self.bidder = bidder
        self.rng = rng
        self.auctions: dict[RequestId, Auction] = {}

    # ------------------------------------------------------------------------------------------------------ auctioneer

    def on_invite(self, now: float, agent: PeerId, ask: Invite, windows: dict[manifest.Kind, Windows]) -> list[Effect]:
        """100 at once, offers to nominees; a manifest that cannot stand is answered with all that is wrong in it."""
        invitation = _invitation(ask.invitation, agent)
        problems = manifest.problems(invitation.manifest)
        if invitation.session != ask.session:
            problems.append("the manifest was signed for another session")
        if problems:
            return [_answer(agent, ask, 400, tuple(problems))]
        if any(one.session == ask.session and one.agent == agent for one in self.auctions.values()):
            return [Send(agent, Lane.SIGNAL, Trying(ask.session))]
        if len(self.auctions) >= AUCTIONS_MAX:
            return [_answer(agent, ask, 503, ("this node holds too many auctions; retry in 2 s",))]
        times = windows[invitation.manifest.characteristics.kind]
        auction_id = RequestId(self.rng.randbytes(ids.REQUEST_BYTES))
        nominees = self.nominees(now)
        auction = Auction(
            auction_id,
            ask.session,
            agent,
            ask.invitation,
            invitation.manifest,
            nominees,
            now,
            times.bid_s,
            times.total_s,
        )
        self.auctions[auction_id] = auction
        offer = Offer(auction_id, ask.session, ask.invitation)
        offers = [Send(nominee, Lane.SIGNAL, offer) for nominee in sorted(nominees)]
        return [Send(agent, Lane.SIGNAL, Trying(ask.session)), *offers]

    def nominees(self, now: float) -> dict[PeerId, str]:
        """Who is asked, with their operators: this node if it can do anything, and living members, hosts first."""
        members = self.mesh.directory.members
        alive = [peer for peer in self.mesh.directory.alive(now) if self.mesh.linked(peer, Lane.SIGNAL)]
        adverts = {peer: members[peer].advert for peer in alive}
        able = [peer for peer, says in adverts.items() if (says.host or says.vote) and not says.draining]
        self.rng.shuffle(able)
        able.sort(key=lambda peer: not members[peer].advert.host)
        nominees = {peer: members[peer].advert.operator for peer in able[:NOMINEES_MAX]}
        if (self.mesh.config.host or self.mesh.config.vote) and not self.bidder.draining:
            nominees[self.me] = self.mesh.config.operator
        return nominees

    def on_bid(self, now: float, peer: PeerId, bid: Bid, confirm_s: float) -> list[Effect]:
        """A bid; the last one closes the window early."""
        auction = self.auctions.get(bid.auction)
        if auction is None:
            return []
        return self._decide(now, auction, confirm_s) if auction.on_bid(now, peer, bid) else []

    def _decide(self, now: float, auction: Auction, confirm_s: float) -> list[Effect]:
        plan = auction.choose(self.rng)
        if auction.waits(now, plan):
            return []
        if isinstance(plan, Refusal):
            return self._finish(auction, plan.status, plan.reasons, b"")
        auction.awarding(now, confirm_s)
        sealed = envelope.seal(self.mesh.identity, self._award(auction, plan))
        return [Send(seat, Lane.SIGNAL, Awarded(sealed)) for seat, _ in plan.seats]

    def _award(self, auction: Auction, plan: Plan) -> Award:
        seats = tuple(Seat(peer, role, self.addresses_of(peer)) for peer, role in plan.seats)
        return Award(auction.auction, auction.session, auction.attempt, auction.invitation, seats)

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where to find this node or a member."""
        if peer == self.me:
            return self.mesh.addresses[:8]
        member = self.mesh.directory.members.get(peer)
        return member.advert.addresses if member is not None else ()

    def on_confirm(self, now: float, peer: PeerId, confirm: Confirm, confirm_s: float) -> list[Effect]:
        """All seats taken: answer. One refused: the next plan."""
        auction = self.auctions.get(confirm.auction)
        if auction is None:
            return []
        taken = auction.on_confirm(peer, confirm.attempt, confirm.refusals)
        if taken is None:
            return []
        if not taken:
            return self._again(now, auction, confirm_s)
        assert auction.plan is not None
        sealed = envelope.seal(self.mesh.identity, self._award(auction, auction.plan))
        told = (auction.plan.shortfall,) if auction.plan.shortfall else ()
        return self._finish(auction, 200, told, sealed)

    def _again(self, now: float, auction: Auction, confirm_s: float) -> list[Effect]:
        assert auction.plan is not None
        if now >= auction.due:
            auction.exclude_silent()
        if auction.attempt >= ATTEMPTS_MAX:
            return self._finish(auction, 503, ("the nominees did not confirm; retry in 2 s",), b"")
        return self._decide(now, auction, confirm_s)

    def _finish(self, auction: Auction, status: int, reasons: tuple[str, ...], award: bytes) -> list[Effect]:
        auction.phase = Phase.DONE
        del self.auctions[auction.auction]
        seated = {peer for peer, _ in auction.plan.seats} if status == 200 and auction.plan is not None else set()
        release = Release(auction.auction, auction.session)
        releases = [Send(peer, Lane.SIGNAL, release) for peer in sorted(auction.operators) if peer not in seated]
        answer = Answer(auction.session, status, tuple(reason[:512] for reason in reasons[:64]), award)
        return [Send(auction.agent, Lane.SIGNAL, answer), *releases]

    def on_cancel(self, agent: PeerId, cancel: Cancel) -> list[Effect]:
        """The agent does not want it any more."""
        mine = [one for one in self.auctions.values() if one.session == cancel.session and one.agent == agent]
        return [effect for one in mine for effect in self._finish(one, 487, ("canceled by the agent",), b"")]

    # --------------------------------------------------------------------------------------------------------- nominee

    def on_offer(self, now: float, peer: PeerId, offer: Offer, windows: dict[manifest.Kind, Windows]) -> list[Effect]:
        """Bid, with a reservation if this node could host."""
        invitation = envelope.expect(offer.invitation, Invitation)[1]
        wants = invitation.manifest
        broken = manifest.problems(wants)  # the auctioneer should have said so; it may be nobody's auctioneer
        host = broken or self.bidder.host_refusals(now, wants, offer.auction)
        vote = broken or self.bidder.vote_refusals(wants)
        if not host:
            until = now + windows[wants.characteristics.kind].reserve_s
            self.bidder.hold(now, offer.auction, wants, until)
        hosted, places = len(self.bidder.hosted), self.mesh.config.sessions_max
        bid = Bid(
            offer.auction, _words(host), _words(vote), self.bidder.recipe, self.bidder.free_bytes(now), hosted, places
        )
        return [Send(peer, Lane.SIGNAL, bid)]

    def on_awarded(self, now: float, peer: PeerId, awarded: Awarded) -> tuple[list[Effect], Seated | None]:
        """Check an award against what was bid. Raises PeerError for one that is not what it says it is."""
        auctioneer, award = envelope.expect(awarded.award, Award)
        if auctioneer != peer:
            raise errors.PeerError("an award from somebody else than its signer")
        agent, invitation = envelope.expect(award.invitation, Invitation)
        roles = [seat.role for seat in award.seats if seat.peer == self.me]
        hosts = [seat for seat in award.seats if seat.role == "host"]
        if len(roles) != 1 or len(hosts) != 1 or len({seat.peer for seat in award.seats}) != len(award.seats):
            raise errors.PeerError("an award that seats this node not once, or not one host")
        if invitation.session != award.session or len(award.seats) % 2 == 0:
            raise errors.PeerError("an award for another session, or with an even number of voters")
        if not {seat.role for seat in award.seats} <= ROLES:
            raise errors.PeerError("an award of a role that nobody plays")
        if manifest.problems(invitation.manifest):
            raise errors.PeerError("an award whose manifest breaks its bounds")
        refusals = self._seat_refusals(now, award, invitation.manifest, roles[0])
        if refusals:
            confirm = Confirm(award.auction, award.session, award.attempt, _words(refusals))
            return [Send(peer, Lane.SIGNAL, confirm)], None
        return [], Seated(award, awarded.award, agent, invitation.manifest, roles[0])

    def _seat_refusals(self, now: float, award: Award, wants: Manifest, role: str) -> list[str]:
        """As if nothing had been bid, but for the memory: the award's manifest may be another than the offer's."""
        votes = self.bidder.vote_refusals(wants)
        if role == "witness":
            return votes
        return [*self.bidder.host_refusals(now, wants, award.auction, award.session), *votes]

    def on_join(self, now: float, peer: PeerId, join: Join) -> tuple[list[Effect], Seated | None]:
        """Check what an owner asks this node in for, as if it were a seat of an award. Raises PeerError."""
        _, award = envelope.expect(join.award, Award)
        agent, invitation = envelope.expect(award.invitation, Invitation)
        wants = invitation.manifest
        if award.session != join.session or invitation.session != join.session or join.role not in ROLES - {"host"}:
            raise errors.PeerError("a request to join with papers of another session, or in a role that nobody plays")
        if manifest.problems(wants) or sum(seat.role == "host" for seat in award.seats) != 1:
            raise errors.PeerError("a request to join whose papers break their bounds")
        refusals = self.bidder.vote_refusals(wants)
        if join.role != "witness":
            refusals = [*self.bidder.host_refusals(now, wants, join.auction, join.session), *refusals]
        if refusals:
            return [Send(peer, Lane.SIGNAL, Confirm(join.auction, join.session, 1, _words(refusals)))], None
        return [], Seated(award, join.award, agent, wants, join.role)

    def on_release(self, release: Release) -> list[Effect]:
        """The bid lost."""
        self.bidder.release(release.auction)
        return []

    # ------------------------------------------------------------------------------------------------------------ time

    def tick(self, now: float, confirm_s: float) -> list[Effect]:
        """Windows that closed."""
        effects: list[Effect] = []
        for auction in list(self.auctions.values()):
            if now >= auction.ends_at - 0.5:
                effects += self._finish(auction, 408, ("no placement within the INVITE's time",), b"")
            elif now >= auction.due and auction.phase is Phase.BIDDING:
                effects += self._decide(now, auction, confirm_s)
            elif now >= auction.due and not auction.waits_for_seats(now, confirm_s, self.rng):
                effects.append(Note("award not confirmed", auction.session))
                effects += self._again(now, auction, confirm_s)
        return effects

    @property
    def deadline(self) -> float:
        """The next window to close."""
        return min((min(one.due, one.ends_at - 0.5) for one in self.auctions.values()), default=float("inf"))


def _invitation(sealed: bytes, agent: PeerId) -> Invitation:
    signer, invitation = envelope.expect(sealed, Invitation)
    if signer != agent:
        raise errors.PeerError("a manifest that its sender did not sign")
    return invitation


def _answer(agent: PeerId, ask: Invite, status: int, reasons: tuple[str, ...]) -> Effect:
    return Send(agent, Lane.SIGNAL, Answer(ask.session, status, reasons, b""))


def _words(reasons: list[str]) -> tuple[str, ...]:
    return tuple(reason[:512] for reason in reasons[:64])
