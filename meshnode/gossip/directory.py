"""Who is in the mesh: signed adverts with expiry, and who was heard lately.

In a small mesh every node keeps a link to every other, so gossip is one rule: what is new to me I pass on to all but
the one who told me. An advert lives as long as its signer says and no relay can lengthen that. Being listed proves
nothing about being alive: that is what `heard` is for.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from meshnode import errors
from meshnode.gossip.messages import Advert
from meshnode.ids import PeerId
from meshnode.wire import envelope

MEMBERS_MAX = 512
"""More nodes need cells; this many adverts of at most 8 KiB are 4 MiB."""
TTL_S_MAX = 300
SILENT_AFTER_S = 3.0
"""A member that was not heard for so long is nominated for nothing."""


@dataclass(slots=True)
class Member:
    """A node that published itself."""

    advert: Advert
    sealed: bytes
    """The advert in its signer's envelope, as it is passed on."""
    expires_at: float
    heard_at: float = float("-inf")
    rtt_s: float | None = None


class Directory:
    """All members but oneself."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.members: dict[PeerId, Member] = {}
        self._expired: OrderedDict[PeerId, int] = OrderedDict()
        """Versions that ran out here: a copy of one, kept by somebody else, is no news and no longer life."""

    def learn(self, now: float, sealed: bytes) -> PeerId | None:
        """Take an advert in; the peer if it was news. Raises PeerError for what is no advert, or a full directory."""
        peer, advert = envelope.expect(sealed, Advert)
        if peer == self.me:
            return None
        known = self.members.get(peer)
        if known is not None and known.advert.version >= advert.version:
            return None
        if self._expired.get(peer, -1) >= advert.version:
            return None
        if known is None and len(self.members) >= MEMBERS_MAX:
            raise errors.PeerError(f"the directory holds {MEMBERS_MAX} members already")
        expires_at = now + min(advert.ttl_s, TTL_S_MAX)
        if known is None:
            self.members[peer] = Member(advert, sealed, expires_at)
        else:
            known.advert, known.sealed, known.expires_at = advert, sealed, expires_at
        return peer

    def heard(self, now: float, peer: PeerId, rtt_s: float | None = None) -> None:
        """Something came from this peer."""
        member = self.members.get(peer)
        if member is None:
            return
        member.heard_at = now
        if rtt_s is not None:
            member.rtt_s = rtt_s if member.rtt_s is None else 0.8 * member.rtt_s + 0.2 * rtt_s

    def expire(self, now: float) -> list[PeerId]:
        """Forget whose advert ran out; who."""
        gone = [peer for peer, member in self.members.items() if member.expires_at <= now]
        for peer in gone:
            self._expired[peer] = self.members.pop(peer).advert.version
            self._expired.move_to_end(peer)
        while len(self._expired) > MEMBERS_MAX:
            self._expired.popitem(last=False)
        return gone

    def alive(self, now: float) -> list[PeerId]:
        """Members that were heard lately, in a fixed order."""
        return sorted(peer for peer, one in self.members.items() if now - one.heard_at <= SILENT_AFTER_S)

    @property
    def deadline(self) -> float:
        """When the next advert runs out."""
        return min((member.expires_at for member in self.members.values()), default=float("inf"))
