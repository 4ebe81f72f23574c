"""Placement of one session: offers to nominees, bids, one award, confirmed by all or mended.

Runs at the node that the agent is attached to; it needs no consensus, because an award that nobody confirms is only
paper, and two awards are two sessions. The round trip is measured on the offer and bid themselves, so a latency
ceiling is held against this exchange and not against a rumour.

One replica without a witness would make two voters, of whom no one may die: voters are made odd, by a witness where
there is one, else by doing without. What came out less than asked is said in the answer's reasons (`no failover`).
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from dataclasses import dataclass

from meshnode.gossip.messages import Bid
from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.manifest import Manifest

NOMINEES_MAX = 8
ATTEMPTS_MAX = 3
SILENT = "did not confirm the award"
PATIENCE_WINDOWS = 4
"""Bid windows that a late bid is waited for at most. More: a slower no. Fewer: sessions without failover under load."""


class Phase(enum.Enum):
    """BIDDING -> CONFIRMING -> DONE."""

    BIDDING = "bidding"
    CONFIRMING = "confirming"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Plan:
    """Who would take which part, in order of succession; `shortfall` is what the agent must be told."""

    host: PeerId
    replicas: tuple[PeerId, ...]
    witness: PeerId | None
    shortfall: str

    @property
    def seats(self) -> tuple[tuple[PeerId, str], ...]:
        """(peer, role), the host first."""
        rest = [(peer, "replica") for peer in self.replicas]
        last = [(self.witness, "witness")] if self.witness is not None else []
        return ((self.host, "host"), *rest, *last)


@dataclass(frozen=True, slots=True)
class Refusal:
    """No plan: a SIP status and every reason."""

    status: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answered:
    bid: Bid
    rtt_s: float


class Auction:
    """One INVITE at its auctioneer."""

    def __init__(
        self,
        auction: RequestId,
        session: SessionId,
        agent: PeerId,
        invitation: bytes,
        manifest: Manifest,
        nominees: dict[PeerId, str],
        now: float,
        window_s: float,
        total_s: float,
    ) -> None:
        self.auction = auction
        self.session = session
        self.agent = agent
        self.invitation = invitation
        self.manifest = manifest
        self.operators = nominees
        """Nominee: operator."""
        self.phase = Phase.BIDDING
        self.attempt = 0
        self.offered_at = now
        self.due = self.window_at = now + window_s
        self.ends_at = now + total_s
        self.patience_at = max(self.window_at, min(now + PATIENCE_WINDOWS * window_s, self.ends_at - 1.0))
        """Until then a late bid is waited for, if without it something that was asked cannot be given."""
        self.plan: Plan | None = None
        self.bids: dict[PeerId, _Answered] = {}
        self._excluded: dict[PeerId, str] = {}
        self._confirmed: set[PeerId] = set()

    def on_bid(self, now: float, peer: PeerId, bid: Bid) -> bool:
        """Take a bid; whether it is time to decide."""
        if self.phase is Phase.BIDDING and peer in self.operators:
            self.bids.setdefault(peer, _Answered(bid, now - self.offered_at))
        return self.phase is Phase.BIDDING and (len(self.bids) == len(self.operators) or now >= self.window_at)

    def waits(self, now: float, plan: Plan | Refusal) -> bool:
        """Whether to wait beyond the window: a busy machine answers late, and a session without failover is forever."""
        short = isinstance(plan, Refusal) or bool(plan.shortfall)
        missing = self.phase is Phase.BIDDING and len(self.bids) < len(self.operators)
        if not (short and missing and now < self.patience_at):
            return False
        self.due = self.patience_at
        return True

    def choose(self, rng: random.Random) -> Plan | Refusal:
        """The best plan from the bids that are in and not excluded."""
        ceiling_s = self.manifest.placement.latency_ms_max / 1000
        hosts = [peer for peer in self._standing() if not self._host_refusals(peer, ceiling_s)]
        voters = [peer for peer in self._standing() if not self.bids[peer].bid.vote_refusals]
        rng.shuffle(hosts)
        hosts = sorted((peer for peer in hosts if peer in voters), key=self._cost)
        if not hosts:
            return Refusal(488 if self.bids else 480, self._why(ceiling_s))
        plan = self._seat(hosts, voters)
        if len(plan.replicas) < self.manifest.migration.replicas_min:
            # 503: those who are silent may answer the next time.
            silent = len(self.bids) < len(self.operators) or SILENT in self._excluded.values()
            return Refusal(503 if silent else 488, (f"migration.replicas_min: {plan.shortfall}",))
        self.plan = plan
        return plan

    def spare(self, rng: random.Random, role: str, recipe: str, operators: frozenset[str]) -> PeerId | None:
        """Who may take one seat of a session that lives: by the same constraints and in the same order as a replica or
        witness of an award. `operators` have a seat already."""
        ceiling_s = self.manifest.placement.latency_ms_max / 1000
        fit = [peer for peer in self._standing() if not self.bids[peer].bid.vote_refusals]
        if role != "witness":
            fit = [peer for peer in fit if not self._host_refusals(peer, ceiling_s)]
            fit = [peer for peer in fit if self.bids[peer].bid.recipe == recipe]
        rng.shuffle(fit)
        fit.sort(key=lambda peer: (bool(self.operators[peer]) and self.operators[peer] in operators, self._cost(peer)))
        return fit[0] if fit else None

    def exclude(self, peer: PeerId, why: str) -> None:
        """Not this one."""
        self._excluded[peer] = why

    def _standing(self) -> list[PeerId]:
        return sorted(peer for peer in self.bids if peer not in self._excluded)

    def _host_refusals(self, peer: PeerId, ceiling_s: float) -> list[str]:
        answered = self.bids[peer]
        reasons = list(answered.bid.host_refusals)
        if ceiling_s and answered.rtt_s > ceiling_s:
            took, asked = answered.rtt_s * 1000, ceiling_s * 1000
            reasons.append(f"placement.latency_ms_max: the round trip took {took:.0f} ms, {asked:.0f} ms were asked")
        return reasons

    def _cost(self, peer: PeerId) -> tuple[float, float]:
        """Emptier first; then nearer, in steps of 5 ms so that noise does not place sessions."""
        answered = self.bids[peer]
        return answered.bid.sessions / max(1, answered.bid.sessions_max), round(answered.rtt_s / 0.005)

    def _seat(self, hosts: list[PeerId], voters: list[PeerId]) -> Plan:
        host, wanted = hosts[0], self.manifest.migration.replicas
        operator = self.operators[host]
        recipe = self.bids[host].bid.recipe
        alike = [peer for peer in hosts[1:] if self.bids[peer].bid.recipe == recipe]
        line = sorted(alike, key=lambda peer: bool(operator) and self.operators[peer] == operator)
        replicas = line[:wanted]
        spare = [peer for peer in voters if peer != host and peer not in replicas]
        witness = None
        if len(replicas) % 2 == 1:
            if spare:
                witness = spare[0]
            else:
                replicas.pop()
        shortfall = ""
        if wanted and not replicas:
            shortfall = (
                f"no failover: it needs three nodes that can vote, two of which can host; {len(voters)} can vote"
            )
        elif len(replicas) < wanted:
            shortfall = f"{wanted} replicas asked, {len(replicas)} found"
        return Plan(host, tuple(replicas), witness, shortfall)

    def _why(self, ceiling_s: float) -> tuple[str, ...]:
        if not self.bids:
            return ("no node answered the offer; `meshnode peers` shows who is there",)
        standing = self._standing()
        reasons = Counter(reason for peer in standing for reason in self._host_refusals(peer, ceiling_s))
        seen = {(peer, reason) for peer in standing for reason in self.bids[peer].bid.host_refusals}
        votes = ((peer, reason) for peer in standing for reason in self.bids[peer].bid.vote_refusals)
        reasons.update(reason for peer, reason in votes if (peer, reason) not in seen)
        reasons.update(self._excluded.values())
        return tuple(f"{reason} ({count} of {len(self.bids)} nodes)" for reason, count in reasons.most_common(32))

    def awarding(self, now: float, confirm_s: float) -> None:
        """The plan goes out to its seats."""
        assert self.plan is not None
        self.phase = Phase.CONFIRMING
        self.attempt += 1
        self.due = now + confirm_s
        self._confirmed.clear()

    def on_confirm(self, peer: PeerId, attempt: int, refusals: tuple[str, ...]) -> bool | None:
        """True: all seats are taken. False: one was refused. None: wait."""
        if self.phase is not Phase.CONFIRMING or attempt != self.attempt or self.plan is None:
            return None
        if peer not in dict(self.plan.seats):
            return None
        if refusals:
            self._excluded[peer] = refusals[0]
            return False
        self._confirmed.add(peer)
        return all(seat in self._confirmed for seat, _ in self.plan.seats) or None

    def waits_for_seats(self, now: float, confirm_s: float, rng: random.Random) -> bool:
        """Whether a silent seat is waited for: nobody else could take it, and there is time. A disk may stall."""
        assert self.plan is not None
        if now + confirm_s > self.ends_at - 1.0:
            return False
        plan, excluded = self.plan, dict(self._excluded)
        self.exclude_silent()
        other = self.choose(rng)
        self.plan, self._excluded = plan, excluded
        if isinstance(other, Plan) and len(other.replicas) >= len(plan.replicas):
            return False
        self.due = now + confirm_s
        return True

    def exclude_silent(self) -> None:
        """Whoever was awarded a seat and did not confirm is out."""
        assert self.plan is not None
        for seat, _ in self.plan.seats:
            if seat not in self._confirmed:
                self._excluded.setdefault(seat, SILENT)
