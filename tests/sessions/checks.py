"""What must hold after every event of the model, whoever crashed: each check keeps what it saw and compares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from meshnode.ids import Digest, PeerId
from meshnode.sessions import registry


class Machine(Protocol):
    peer: PeerId
    life: int
    brain: registry.Registry | None


class Checks:
    """One owner an epoch, one released past, one released configuration of each number."""

    def __init__(self, reached: Counter[str]) -> None:
        self.reached = reached
        self.owners: dict[int, tuple[PeerId, int]] = {}
        self.truth: dict[int, Digest] = {}
        self.voters: dict[int, frozenset[PeerId]] = {}

    def look(self, machines: Iterable[Machine]) -> None:
        """After every event."""
        for machine in machines:
            for member in machine.brain.members.values() if machine.brain is not None else ():
                if member.serving is not None:
                    me = (machine.peer, machine.life)
                    if member.serving.epoch not in self.owners and self.truth:
                        top = max(self.truth)
                        assert member.voter.log.last >= top, "an owner lacks what was released"
                        assert member.voter.log.hash_at(top) == self.truth[top], "an owner has another past"
                        assert machine.peer in member.seating.current.voters, "an owner without a seat"
                    assert self.owners.setdefault(member.serving.epoch, me) == me, "two owners of one epoch"
                    assert member.serving.epoch == member.voter.promised, "serves below what it promised"
                    assert member.voter.candidate == machine.peer
                voter = member.voter
                seen = self.truth.setdefault(voter.released, voter.log.hash_at(voter.released))
                assert seen == voter.log.hash_at(voter.released), "two voters released different logs"
                settled = member.seating.settled
                assert self.voters.setdefault(settled.number, settled.voters) == settled.voters, "two configurations"
                if member.candidate.best is not None:
                    self.reached["saw a better log"] += 1
