"""How far each replica of one session is: what to ship next, and from where recovery may start.

Pages are sealed in order and shipped in order, so a replica is two numbers: `acked` pages that it has stored, and
`sent` pages that are on their way. A broken link means "send again from acked"; nothing else is remembered about it.

An acknowledgement names its epoch *and* the address of the last page it counts. The address commits to everything
before it, so one that was on its way while the context was rewound cannot vouch for the pages that replaced the old
ones.

It refuses to hold page bytes or to retry by the clock: while a link stands, the lane delivers. Rejected: a bitmap of
acknowledged pages (a hole is useless to recovery, which needs a prefix).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshnode import ids


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be on its way to one replica."""

    pages_max: int = 16
    """Higher: more to send again after a break. Lower: a long link idles. At most the receiver's `ahead_max`."""
    bytes_max: int = 16 << 20
    """The same in bytes. One page may always be on its way, however large."""


@dataclass(slots=True)
class _Progress:
    acked: int = 0
    sent: int = 0  # acked <= sent <= pages sealed


class Sender:
    """One session at its host, in one epoch. A new host makes a new one and learns from `has` what replicas hold."""

    def __init__(self, epoch: int, window: Window) -> None:
        assert window.pages_max > 0
        self.epoch = epoch
        self._window = window
        self._pages: list[tuple[ids.Digest, int]] = []
        self._replicas: dict[ids.PeerId, _Progress] = {}

    @property
    def page_count(self) -> int:
        return len(self._pages)

    def address(self, page_index: int) -> ids.Digest:
        return self._pages[page_index][0]

    def sealed(self, page_index: int, address: ids.Digest, frame_bytes: int) -> None:
        """The next page is full and will not change. `frame_bytes` may be an upper bound: it counts in the window."""
        assert page_index == len(self._pages)
        assert frame_bytes >= 0
        self._pages.append((address, frame_bytes))

    def truncated(self, page_count: int) -> None:
        """The context was rewound: pages from `page_count` on are void, whoever has them."""
        del self._pages[page_count:]
        for progress in self._replicas.values():
            progress.acked = min(progress.acked, len(self._pages))
            progress.sent = min(progress.sent, len(self._pages))

    def added(self, replica: ids.PeerId) -> None:
        """A replica that has nothing yet. One that stands already keeps its progress."""
        self._replicas.setdefault(replica, _Progress())

    def standing(self, replica: ids.PeerId) -> bool:
        """Whether pages go to this replica."""
        return replica in self._replicas

    def removed(self, replica: ids.PeerId) -> None:
        self._replicas.pop(replica, None)

    def acked(self, replica: ids.PeerId, watermark: int, epoch: int, tip: ids.Digest) -> bool:
        """The replica stored `watermark` pages, the last of which is `tip`. False if that is stale or not ours."""
        progress = self._replicas.get(replica)
        if progress is None or epoch != self.epoch or not progress.acked < watermark <= len(self._pages):
            return False
        if self._pages[watermark - 1][0] != tip:
            return False
        progress.acked = watermark
        progress.sent = max(progress.sent, watermark)
        return True

    def has(self, replica: ids.PeerId, chain: Sequence[ids.Digest], epoch: int) -> bool:
        """What a replica says it has when its link comes up, or after it lost pages: true even when it is less."""
        progress = self._replicas.get(replica)
        if progress is None or epoch != self.epoch:
            return False
        common = 0
        for theirs, (ours, _) in zip(chain, self._pages, strict=False):
            if theirs != ours:
                break
            common += 1
        progress.acked = progress.sent = common
        return True

    def link_down(self, replica: ids.PeerId) -> None:
        """What was on its way is lost: ship again from the watermark."""
        if progress := self._replicas.get(replica):
            progress.sent = progress.acked

    def next_for(self, replica: ids.PeerId) -> list[int]:
        """The pages to ship now, in order; they count as on their way from here on."""
        progress = self._replicas.get(replica)
        if progress is None:
            return []
        first = progress.sent
        flying_bytes = sum(size for _, size in self._pages[progress.acked : first])
        while progress.sent < len(self._pages) and progress.sent - progress.acked < self._window.pages_max:
            flying_bytes += self._pages[progress.sent][1]
            if flying_bytes > self._window.bytes_max and progress.sent > progress.acked:
                break
            progress.sent += 1
        assert progress.acked <= progress.sent <= len(self._pages)
        return list(range(first, progress.sent))

    def watermark(self, replica: ids.PeerId) -> int:
        """Pages that recovery on this replica can start from. 0 for strangers."""
        progress = self._replicas.get(replica)
        return progress.acked if progress else 0
