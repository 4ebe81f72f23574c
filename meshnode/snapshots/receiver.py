"""What one replica holds of one session: the chain of stored pages from the first one on.

Each page names its parent, so a replica links the chain without knowing the tokens or the key: a page counts once
every page before it is there *and* it follows the last of them. A page at an index that is taken replaces the rest of
the chain (the context was rewound, and the host ships what came instead); one that does not follow waits, in a
bounded place.

It refuses stale epochs and pages far ahead before they reach the disk: ask `admit` first, tell `stored` after. That a
newer epoch is really its sender's is for the caller to know. Rejected: a watermark of indexes alone, which calls two
halves of different contexts one prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode import errors, ids


@dataclass(frozen=True, slots=True)
class Ack:
    """What a replica answers to a page: so many contiguous pages, the last of which is `tip`."""

    watermark: int
    epoch: int
    tip: ids.Digest


class Receiver:
    """One session at one replica. `genesis` is the parent of page 0: another recipe never gets in."""

    def __init__(self, epoch: int, genesis: ids.Digest, *, ahead_max: int = 16) -> None:
        assert ahead_max > 0
        self.epoch = epoch
        self._genesis = genesis
        self._ahead_max = ahead_max
        self._chain: list[ids.Digest] = []
        self._ahead: dict[int, tuple[ids.Digest, ids.Digest]] = {}  # index: address, parent; at most ahead_max

    @property
    def watermark(self) -> int:
        """Contiguous pages stored."""
        return len(self._chain)

    @property
    def tip(self) -> ids.Digest:
        """The address of the last contiguous page, or the genesis: what an acknowledgement names."""
        return self._chain[-1] if self._chain else self._genesis

    @property
    def chain(self) -> tuple[ids.Digest, ...]:
        """The addresses to restore from, in order."""
        return tuple(self._chain)

    def adopt(self, epoch: int) -> None:
        """A newer owner. What is stored stays: a page once sealed is right in every epoch."""
        self.epoch = max(self.epoch, epoch)

    def admit(self, page_index: int, epoch: int) -> None:
        """Raises PeerError for a page that must not be stored."""
        if epoch < self.epoch:
            raise errors.PeerError(f"a page of epoch {epoch}, this session is in {self.epoch}")
        if not 0 <= page_index < len(self._chain) + self._ahead_max:
            raise errors.PeerError(f"page {page_index} is too far ahead of {len(self._chain)}")

    def stored(self, page_index: int, address: ids.Digest, parent: ids.Digest, epoch: int) -> Ack:
        """The page is on disk. Returns what to acknowledge. Raises PeerError as `admit` does.

        A page that was there already is acknowledged as far as itself: what follows it here may be a future that the
        host has rewound, and the host knows no page of that name.
        """
        self.admit(page_index, epoch)
        self.adopt(epoch)
        if self._chain[page_index : page_index + 1] == [address]:
            return Ack(page_index + 1, self.epoch, address)
        if self._follows(page_index, parent):
            self._chain[page_index:] = [address]
            self._absorb()
        else:
            self._keep(page_index, address, parent)
        return Ack(len(self._chain), self.epoch, self.tip)

    def lost(self, address: ids.Digest) -> int:
        """A stored page turned out to be gone or torn: the chain ends before it. Returns the watermark."""
        if address in self._chain:
            del self._chain[self._chain.index(address) :]
        return len(self._chain)

    def emptied(self) -> None:
        """The store gave this session up for room."""
        self._chain.clear()
        self._ahead.clear()

    def _follows(self, page_index: int, parent: ids.Digest) -> bool:
        if page_index == 0:
            return parent == self._genesis
        return page_index <= len(self._chain) and self._chain[page_index - 1] == parent

    def _keep(self, page_index: int, address: ids.Digest, parent: ids.Digest) -> None:
        """Set aside a page that came too early. The oldest makes room: it can be sent again."""
        self._ahead.pop(page_index, None)
        if len(self._ahead) == self._ahead_max:
            del self._ahead[next(iter(self._ahead))]
        self._ahead[page_index] = (address, parent)
        assert len(self._ahead) <= self._ahead_max

    def _absorb(self) -> None:
        """Append what waited for this page. What waited for another page goes on waiting."""
        while len(self._chain) in self._ahead and self._ahead[len(self._chain)][1] == self._chain[-1]:
            self._chain.append(self._ahead.pop(len(self._chain))[0])
