"""What waits to be sent on one link: bounded in frames and in bytes, one taker, any number of putters.

Both transports use it, so that `send_nowait` is full at the same point in tests and in production. Not a trio memory
channel, because that counts items and a bulk frame may be eight million times as long as a token; and because the
taker wants everything that has gathered in one go, to write it with one system call.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

from meshnode import errors
from meshnode.ports import Lane

FRAMES_MAX = 1024
"""Frames that wait on a link. More: a stalled peer is noticed later. Fewer: a burst of gossip meets WouldBlock."""

BYTES_MAX = {Lane.SIGNAL: 4 << 20, Lane.MEDIA: 4 << 20, Lane.BULK: 32 << 20}
"""Bytes that wait on a link, four of the longest frames. One frame always fits an empty box, however long."""

T = TypeVar("T")


class Outbox(Generic[T]):
    """A queue that can end: what was in it is then lost, putters get Unreachable, the taker an empty list."""

    def __init__(self, lane: Lane) -> None:
        self._bytes_max = BYTES_MAX[lane]
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._mail = trio.lowlevel.ParkingLot()
        self.ended = False

    def __len__(self) -> int:
        return len(self._items)

    def put_nowait(self, item: T, size_bytes: int) -> None:
        """Raises Unreachable after the end, WouldBlock when full or when others wait already (they come first)."""
        if self.ended:
            raise errors.Unreachable("the link has ended")
        if self._room or self._full(size_bytes):
            raise trio.WouldBlock
        self._take_in(item, size_bytes)

    async def put(self, item: T, size_bytes: int) -> None:
        """Wait for room. Raises Unreachable if the link ends meanwhile."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self.ended and (self._room or self._full(size_bytes)):
            await self._room.park()
            while not self.ended and self._full(size_bytes):
                await self._room.park()
        if self.ended:
            raise errors.Unreachable("the link has ended")
        self._take_in(item, size_bytes)
        self._room.unpark()  # there may be room for the next in the queue, too; if not, it parks again

    async def take(self, bytes_max: int) -> list[T]:
        """At least one item, and what else has gathered; an empty list once the link has ended."""
        while not self._items and not self.ended:
            await self._mail.park()
        taken: list[T] = []
        taken_bytes = 0
        while self._items and (not taken or taken_bytes + self._items[0][1] <= bytes_max):
            item, size_bytes = self._items.popleft()
            taken_bytes += size_bytes
            taken.append(item)
        self._bytes -= taken_bytes
        if taken:
            self._room.unpark()
        return taken

    def end(self) -> int:
        """Idempotent. Returns how many items were lost."""
        lost_count = len(self._items)
        self.ended = True
        self._items.clear()
        self._bytes = 0
        self._room.unpark_all()
        self._mail.unpark_all()
        return lost_count

    def _full(self, size_bytes: int) -> bool:
        if not self._items:
            return False
        return len(self._items) >= FRAMES_MAX or self._bytes + size_bytes > self._bytes_max

    def _take_in(self, item: T, size_bytes: int) -> None:
        assert not self.ended
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        self._mail.unpark()
