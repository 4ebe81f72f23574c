"""Who votes: the award's seats, and every configuration that the log put in their place.

Three answers, for three questions. `current` is what counts: the latest configuration in this voter's own log,
released or not (Ongaro's dissertation, section 4.1). `settled` is what may be told to others as a fact: a majority has
it. `heard` is a hint, which decides nothing but whom a candidate asks first and whose frames are read at all: it may
come from a route, whose rosters are signed by voters of the configuration before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshnode import errors
from meshnode.ids import PeerId
from meshnode.sessions import log, messages
from meshnode.sessions.contract import Contract
from meshnode.sessions.messages import Entry, Route
from meshnode.sessions.voter import Voter
from meshnode.wire import envelope, keys
from meshnode.wire.award import Roster, Seat


@dataclass(frozen=True, slots=True)
class Configuration:
    """Voters, from one entry of the log on."""

    number: int
    """0 is the award; each change adds one."""
    seq: int
    """Of its entry."""
    seats: tuple[Seat, ...]

    @property
    def voters(self) -> frozenset[PeerId]:
        """All of them."""
        return frozenset(seat.peer for seat in self.seats)

    def seat(self, peer: PeerId) -> Seat | None:
        """This peer's seat."""
        return next((seat for seat in self.seats if seat.peer == peer), None)


class Seating:
    """The configurations of one session, as one node knows them."""

    def __init__(self, me: PeerId, contract: Contract, voter: Voter, identity: keys.Identity | None = None) -> None:
        self.me = me
        self.contract = contract
        self.voter = voter
        self._identity = identity
        """Signs what this node proposes as an owner; without it nothing is proposed."""
        self._award = Configuration(0, 1, contract.seats)
        self._heard: list[tuple[bytes, Roster]] = []
        self._hinted = False
        """Whether a route came since an owner was heard: one that writes to us counts us in."""

    # --------------------------------------------------------------------------------------------------------- lookups

    @property
    def current(self) -> Configuration:
        """The latest in this node's log."""
        return self.until(self.voter.log.last)

    @property
    def settled(self) -> Configuration:
        """The latest that a majority is known to have."""
        return self.until(self.voter.released)

    def until(self, seq: int) -> Configuration:
        """The latest whose entry stands at `seq` or before."""
        for at, roster in reversed(self.voter.log.rosters):
            if at <= seq:
                return Configuration(roster.number, at, roster.seats)
        return self._award

    def behind(self, after: int, entries: Sequence[Entry] | None) -> frozenset[PeerId]:
        """Voters if these entries stood behind `after` (a candidate's question); None: as the log is."""
        if entries is None:
            return self.current.voters
        for of in reversed(entries):
            change = log.change(of)
            if isinstance(change, messages.Seated):
                return frozenset(seat.peer for seat in log.roster(change.roster)[1].seats)
        return self.until(after).voters

    @property
    def seated(self) -> bool:
        """Whether this node votes by its own log."""
        return self.me in self.current.voters

    @property
    def rank(self) -> int:
        """Succession: replicas first, then the witness if it can host, the host of the award last, and whoever is
        seated by another's log only behind them all."""
        order = {"replica": 0, "witness": 1, "host": 2}
        line = [seat.peer for seat in sorted(self.current.seats, key=lambda seat: order.get(seat.role, 2))]
        return line.index(self.me) if self.me in line else len(line)

    def ousted(self, peer: PeerId) -> bool:
        """Whether this peer had a seat, and a majority knows that it has none now."""
        settled = self.settled
        return settled.number == self.current.number and peer not in settled.voters and peer in self.known

    def ousts(self, peer: PeerId, out: messages.Out) -> bool:
        """Whether this word ends the session here: a later configuration, or the present owner, does without us."""
        current = self.current.number
        if self.voter.joined is not None and not self.seated:
            # Its sponsor may have seated it just now, and others may not know: a seat that forgets is a seat less.
            return peer in (self.voter.host, self.voter.joined.sponsor) and out.number >= current
        return out.number > current or (peer == self.voter.host and out.number >= current)

    @property
    def birth(self) -> bytes:
        """The signed award, as the first entry has it."""
        first = self.voter.log.changes[0]
        assert isinstance(first, messages.Birth)
        return first.award

    @property
    def role(self) -> str:
        """This node's part: as seated, else as it was asked in for."""
        seat = self.current.seat(self.me) or self._award.seat(self.me)
        return seat.role if seat is not None else self.voter.joined.role if self.voter.joined is not None else "voter"

    @property
    def others(self) -> tuple[PeerId, ...]:
        """Voters to talk to: the current ones, and those of a newer configuration that was heard of."""
        known = self.current.voters | self.electorate
        return tuple(sorted(known - {self.me}))

    @property
    def electorate(self) -> frozenset[PeerId]:
        """Whose pre-votes a candidate counts: the newest configuration that was heard of."""
        current = self.current
        if self._hinted and self._heard and self._heard[-1][1].number > current.number:
            return frozenset(seat.peer for seat in self._heard[-1][1].seats)
        return current.voters

    @property
    def known(self) -> frozenset[PeerId]:
        """Everybody who has or had a seat, and the one that asked this node in."""
        rosters = [roster for _, roster in (*self.voter.log.rosters, *self._heard)]
        found = {seat.peer for seats in (self.contract.seats, *(one.seats for one in rosters)) for seat in seats}
        if self.voter.joined is not None:
            found.add(self.voter.joined.sponsor)
        return frozenset(found - {self.me})

    # ---------------------------------------------------------------------------------------------------------- routes

    def route(self, until: int) -> Route | None:
        """The signed rosters up to this seq; None while the award stands."""
        changes = self.voter.log.changes[:until]
        rosters = [change.roster for change in changes if isinstance(change, messages.Seated)]
        return Route(self.voter.session, tuple(rosters[-messages.ROSTERS_MAX :])) if rosters else None

    def learn(self, route: Route) -> bool:
        """Take a route in as a hint; whether it was news. Raises PeerError for one that does not follow."""
        news = follow(self.voter.session, set(self.known) | {self.me}, self.newest, route)
        self._heard = (self._heard + news)[-messages.ROSTERS_MAX :]
        self._hinted = True
        return bool(news)

    def owner_heard(self) -> None:
        """Somebody writes to this node: what a route said of it may never have been released."""
        self._hinted = False

    @property
    def newest(self) -> int:
        """Number of the newest configuration that was heard of."""
        return max(self.current.number, self._heard[-1][1].number if self._heard else 0)

    def sign(self, seats: tuple[Seat, ...]) -> bytes | None:
        """The next configuration."""
        if self._identity is None:
            return None
        return envelope.seal(self._identity, Roster(self.voter.session, self.current.number + 1, seats))


def follow(session: bytes, known: set[PeerId], newest: int, route: Route) -> list[tuple[bytes, Roster]]:
    """The rosters of a route above `newest`, each signed by somebody who was seated before. `known` grows by whom they
    seat. Raises PeerError."""
    news: list[tuple[bytes, Roster]] = []
    for sealed in route.rosters:
        signer, roster = log.roster(sealed)
        if roster.session != session:
            raise errors.PeerError("a roster of another session")
        if signer not in known:
            raise errors.PeerError("a roster that was signed by nobody with a seat")
        known |= {seat.peer for seat in roster.seats}
        if roster.number > (news[-1][1].number if news else newest):
            news.append((sealed, roster))
    return news
