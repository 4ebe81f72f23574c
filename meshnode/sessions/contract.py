"""The papers that a session lives by: the agent's manifest and the award, both signed."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.ids import PeerId
from meshnode.manifest import Manifest
from meshnode.wire import envelope
from meshnode.wire.award import Award, Invitation, Seat


@dataclass(frozen=True, slots=True)
class Contract:
    """What was signed: the award's seats, the agent's manifest, and who the agent is."""

    award: Award
    agent: PeerId
    manifest: Manifest
    auctioneer: PeerId
    """Who may take the award back while the agent has not acknowledged it."""

    @property
    def seats(self) -> tuple[Seat, ...]:
        """All voters in the order of succession."""
        return self.award.seats


def read(sealed: bytes) -> Contract:
    """What a signed award says. Raises PeerError."""
    auctioneer, award = envelope.expect(sealed, Award)
    agent, invitation = envelope.expect(award.invitation, Invitation)
    return Contract(award, agent, invitation.manifest, auctioneer)
