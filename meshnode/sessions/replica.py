"""What one voter keeps of a session's pages, and whose pages it takes.

Pages are a cache of the log, so nothing here is durable state of the protocol: what is missing costs time.
"""

from __future__ import annotations

from meshnode import errors
from meshnode.ids import Digest, PeerId
from meshnode.machine import Effect, Send
from meshnode.ports import EngineCard, Lane
from meshnode.sessions import messages
from meshnode.sessions.voter import Voter
from meshnode.snapshots import chain, receiver


class Replica:
    """Pages of one session at one voter; a voter without a fitting engine (`card` None) keeps none."""

    def __init__(self, voter: Voter, card: EngineCard | None) -> None:
        self.session = voter.session
        self.voter = voter
        self.pages: receiver.Receiver | None = None
        self._genesis: Digest | None = None
        if card is not None:
            self._genesis = chain.genesis(card.model_digest, card.numeric_class, card.page_tokens)
            self.pages = receiver.Receiver(1, self._genesis, ahead_max=messages.PAGES_MAX)

    def admit(self, peer: PeerId, page_index: int, epoch: int) -> None:
        """Raises PeerError for a page that must not be stored."""
        if self.pages is None:
            raise errors.PeerError("a page for a session that does not expect one")
        self._check_owner(peer, epoch)
        self.pages.admit(page_index, epoch)

    def _check_owner(self, peer: PeerId, epoch: int) -> None:
        """A later epoch than the one that was heard may be anybody's: a majority can do without this voter."""
        if epoch < self.voter.promised or (epoch == self.voter.epoch and peer != self.voter.host):
            raise errors.PeerError("pages from somebody who does not own the session")

    def stored(self, peer: PeerId, index: int, address: Digest, parent: Digest, epoch: int) -> list[Effect]:
        """A page of this session came to rest in the store."""
        if self.pages is None:
            return []
        ack = self.pages.stored(index, address, parent, epoch)
        return [Send(peer, Lane.SIGNAL, messages.PageAck(self.session, ack.epoch, ack.watermark, ack.tip))]

    def on_evicted(self) -> list[Effect]:
        """The store needed the room: the host must not count on this replica's pages any more."""
        if self.pages is None or self.voter.host is None or self._genesis is None:
            return []
        self.pages.emptied()
        ack = messages.PageAck(self.session, self.pages.epoch, 0, self._genesis)
        return [Send(self.voter.host, Lane.SIGNAL, ack)]

    def on_offer(self, peer: PeerId, offer: messages.PageOffer, stored: frozenset[Digest]) -> list[Effect]:
        """A new owner names its chain: say how much of it is here."""
        if self._genesis is None:
            return []
        self._check_owner(peer, offer.epoch)
        self.pages = receiver.Receiver(offer.epoch, self._genesis, ahead_max=messages.PAGES_MAX)
        for index, address in enumerate(offer.addresses):
            if address not in stored:
                break
            self.pages.stored(index, address, self.pages.tip, offer.epoch)
        ack = messages.PageAck(self.session, offer.epoch, self.pages.watermark, self.pages.tip)
        return [Send(peer, Lane.SIGNAL, ack)]
