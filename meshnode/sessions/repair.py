"""How a session gets a new voter for one that it lost: the owner's part.

One voter at a time, in two entries: the newcomer is seated, then the lost one leaves. Each is a change of one voter, so
any majority before it and any after it have a voter in common (Ongaro's dissertation, section 4.1); the next one waits
until this one is released, and the first of an epoch until an entry of that epoch is (his correction of 2015). The
newcomer counts for nothing before it has the log and the pages, so looking for one costs nobody anything, and a voter
that comes back meanwhile keeps its seat.

Rejected: one entry that swaps two voters. Majorities of three before and after need not meet, so it takes majorities of
both, and a second kind of counting in every place that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.ids import PeerId
from meshnode.machine import Effect, Note, Send
from meshnode.ports import Lane
from meshnode.sessions import hosting, messages
from meshnode.wire.award import Seat

if TYPE_CHECKING:  # it makes and holds this
    from meshnode.sessions.seating import Configuration, Seating
    from meshnode.sessions.serving import Serving

STALLED_S = 10.0
"""A newcomer that came no further for so long is given up. Shorter: slow links never catch up. Longer: the next one
waits."""
RETRY_S = 5.0
"""Between searches that found nobody. Shorter: more offers in vain. Longer: a node that comes up waits."""
PAGES_SHORT = 1
"""Pages that a newcomer may lack when it is seated: one is always on its way while tokens are drawn."""


@dataclass(frozen=True, slots=True)
class Search:
    """A seat that wants somebody."""

    role: str
    seats: tuple[Seat, ...]
    """Of those that stay: neither they nor the lost one are asked, and other operators are preferred to theirs."""
    lost: tuple[PeerId, ...]
    since: int
    """The newcomer answers no candidate before it has the log up to here."""


class Repair:
    """One epoch's view of who is lost and who comes."""

    def __init__(self, seating: Seating, role_wanted: int) -> None:
        self.seating = seating
        self.target = role_wanted
        """Voters that the award promised."""
        self.learner: Seat | None = None
        self.word = ""
        """What `status` says; empty while nothing is wrong."""
        self.forgot: set[PeerId] = set()
        """Voters that said that they keep no such session, or proved to have lost a part of it."""
        self._severed: set[PeerId] = set()
        self._searching = False
        self._retry_at = float("-inf")
        self._spare_found = True
        self._since = 0
        """From where the newcomer's vote counts: it must be there when it is seated."""
        self._moved: tuple[int, int] = (0, 0)
        self._moved_at = 0.0

    # ---------------------------------------------------------------------------------------------------------- events

    def severed(self, peer: PeerId) -> None:
        """A link was reset and could not be made again: the process is dead, or its machine is."""
        self._severed.add(peer)

    def relinked(self, peer: PeerId) -> None:
        """It is there."""
        self._severed.discard(peer)

    def unknown(self, now: float, serving: Serving, peer: PeerId) -> list[Effect]:
        """A node keeps no such session."""
        if self.learner is not None and peer == self.learner.peer:
            return self._give_up(now, serving, "the newcomer lost what it was sent")
        if peer in serving.owner.voters:
            self.forgot.add(peer)
        return []

    def replicated(self, peer: PeerId) -> None:
        """It answers: it is there and knows the session."""
        self._severed.discard(peer)
        self.forgot.discard(peer)

    def found(self, now: float, serving: Serving, seat: Seat) -> list[Effect]:
        """A node took part as a learner."""
        self._searching, self._spare_found = False, True
        if self.learner is not None or seat.peer in serving.owner.voters:
            return [self._out(seat.peer)]
        self.learner, self._moved, self._moved_at = seat, (0, 0), now
        serving.owner.follow(seat.peer, now)
        return [Note("newcomer", serving.session, seat.role), *serving.enrol(now, seat)]

    def not_found(self, now: float, reason: str) -> None:
        """Nobody could; to be tried again."""
        self._searching, self._spare_found = False, False
        self._retry_at = now + RETRY_S
        self.word = f"degraded: {reason}"

    # -------------------------------------------------------------------------------------------------------- deciding

    def lost(self, now: float, serving: Serving) -> list[PeerId]:
        """Voters that do not answer, the surest first."""
        bound_s = serving.timers.replace_after_s
        others = sorted(serving.owner.voters - {self.seating.me})
        sure = [peer for peer in others if peer in self.forgot or peer in serving.owner.rolled_back]
        dead = [peer for peer in others if peer in self._severed]
        mute = [peer for peer in others if now - serving.owner.answered_at(peer) > bound_s]
        return list(dict.fromkeys((*sure, *dead, *mute)))

    def search(self, now: float, serving: Serving) -> Search | None:
        """A seat to find somebody for, said once for each search."""
        if self._searching or self.learner is not None or now < self._retry_at or not self._may_change(now, serving):
            return None
        lost, current = self.lost(now, serving), self.seating.current
        if len(current.seats) > self.target or not (lost or len(current.seats) < self.target):
            return None
        self._searching = True
        self.word = "degraded: looking for a node"
        stay = tuple(seat for seat in current.seats if seat.peer not in lost[:1])
        witnesses = [sum(seat.role == "witness" for seat in seats) for seats in (self.seating.contract.seats, stay)]
        role = "witness" if witnesses[1] < witnesses[0] else "replica"
        self._since = serving.voter.released
        return Search(role, stay, tuple(lost), self._since)

    def _may_change(self, now: float, serving: Serving) -> bool:
        """Whether a configuration may be proposed: none is under way, and an entry of this epoch is released."""
        if serving.transcript.closed is not None or serving.stopping or not serving.leased(now) or self.target < 3:
            return False
        return serving.owner.released > 0 and self.seating.current.seq <= serving.voter.released

    def tick(self, now: float, serving: Serving) -> list[Effect]:
        """The next step, if it is time for one."""
        effects: list[Effect] = []
        for peer in serving.owner.rolled_back - self.forgot:
            self.forgot.add(peer)
            effects += [Note("voter rolled back", serving.session), self._out(peer)]
        if not self._may_change(now, serving):
            return effects
        current, lost = self.seating.current, self.lost(now, serving)
        if len(current.seats) > self.target:
            return effects + (self._unseat(now, serving, current, lost[0]) if lost else [])
        if not lost and len(current.seats) >= self.target:
            self.word = ""
            return effects + (self._give_up(now, serving, "the voter came back") if self.learner is not None else [])
        if self.learner is not None:
            return effects + self._wait_for(now, serving, current, self.learner)
        if not self._spare_found and lost and lost[0] in self.forgot and len(current.seats) == self.target:
            # Nobody else is there: it may take the seat anew, once it has none.
            self._retry_at = now
            return effects + self._unseat(now, serving, current, lost[0])
        return effects

    def _wait_for(self, now: float, serving: Serving, current: Configuration, learner: Seat) -> list[Effect]:
        matched, sealed = serving.owner.matched(learner.peer), serving.hosting.pages.page_count
        stored = serving.hosting.pages.watermark(learner.peer)
        self.word = (
            f"degraded: a newcomer has {matched} of {serving.voter.log.last} entries, {stored} of {sealed} pages"
        )
        if (matched, stored) != self._moved:
            self._moved, self._moved_at = (matched, stored), now
        if learner.peer in self._severed or now - self._moved_at > STALLED_S:
            return self._give_up(now, serving, "the newcomer came no further")
        behind = serving.voter.log.last - matched > hosting.AHEAD_MAX or matched < self._since
        if behind or (learner.role != "witness" and sealed - stored > PAGES_SHORT):
            return []
        if now - serving.owner.answered_at(learner.peer) > serving.timers.lost_after_s:
            return []
        return self._propose(now, serving, (*current.seats, learner), "seated")

    def _unseat(self, now: float, serving: Serving, current: Configuration, peer: PeerId) -> list[Effect]:
        return self._propose(now, serving, tuple(seat for seat in current.seats if seat.peer != peer), "unseated")

    def _propose(self, now: float, serving: Serving, seats: tuple[Seat, ...], what: str) -> list[Effect]:
        sealed = self.seating.sign(seats)
        if sealed is None:
            return []
        note = Note("configuration", serving.session, f"{what} number={self.seating.current.number + 1}")
        self.learner = None
        return [note, *serving.write(now, [messages.Seated(sealed)])]

    def _give_up(self, now: float, serving: Serving, why: str) -> list[Effect]:
        assert self.learner is not None
        peer, self.learner = self.learner.peer, None
        self._severed.discard(peer)
        self._retry_at = now + RETRY_S
        serving.owner.unfollow(peer)
        serving.dismiss(peer)
        return [Note("newcomer given up", serving.session, why), self._out(peer)]

    def _out(self, peer: PeerId) -> Effect:
        return Send(peer, Lane.SIGNAL, messages.Out(self.seating.voter.session, self.seating.current.number))

    # ---------------------------------------------------------------------------------------------------------- telling

    def greet(self, peers: list[PeerId], until: int) -> list[Effect]:
        """The rosters up to this seq, so that whoever missed a change knows that our frames are a voter's."""
        route = self.seating.route(until)
        return [Send(peer, Lane.SIGNAL, route) for peer in peers] if route is not None else []

    def remind(self, now: float, serving: Serving) -> list[Effect]:
        """The same again to voters that do not answer: they may take us for a stranger."""
        others = sorted(serving.owner.voters - {self.seating.me})
        silent = [one for one in others if now - serving.owner.answered_at(one) > serving.timers.lost_after_s]
        return self.greet(silent, serving.voter.log.last)

    def settled(self, before: int, serving: Serving) -> list[Effect]:
        """A configuration was released just now: say so to everybody whom it concerns."""
        now_settled, was = self.seating.settled, self.seating.until(before)
        if now_settled.number == was.number:
            return []
        self.word = ""
        told = [*serving.subscribers, *sorted(now_settled.voters - {self.seating.me})]
        effects = self.greet(told, serving.voter.released)
        for peer in sorted(was.voters - now_settled.voters):
            self.forgot.discard(peer)
            self._severed.discard(peer)
            effects.append(self._out(peer))
        seats = " ".join(sorted(seat.role for seat in now_settled.seats))
        return [*effects, Note("seats changed", serving.session, f"number={now_settled.number} {seats}")]
