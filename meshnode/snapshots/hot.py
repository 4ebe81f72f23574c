"""Pages of others' sessions, decoded and in memory, so that a takeover need not read, check and unpack them first.

Unpacking a page on arrival costs a millisecond in a second or two of somebody's speech; unpacking a long context when
its host has just died costs a fifth of a second of silence. It is a cache: the store has every page, and what is not
here is read from there. Budgeted in bytes, the page that came longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict

from meshnode.ids import Digest, SessionId


class HotPages:
    """Raw pages by session and address."""

    def __init__(self, budget_bytes: int) -> None:
        assert budget_bytes >= 0
        self._budget_bytes = budget_bytes
        self._pages: OrderedDict[tuple[SessionId, Digest], bytes] = OrderedDict()
        self.used_bytes = 0

    def put(self, session: SessionId, address: Digest, raw: bytes) -> None:
        """Keep a page, and drop older ones for it; one that is larger than the whole budget is not kept."""
        self._remove((session, address))
        if len(raw) > self._budget_bytes:
            return
        self._pages[session, address] = raw
        self.used_bytes += len(raw)
        while self.used_bytes > self._budget_bytes:
            self._remove(next(iter(self._pages)))

    def get(self, session: SessionId, address: Digest) -> bytes | None:
        """The page, if it is here."""
        return self._pages.get((session, address))

    def drop(self, session: SessionId) -> None:
        """Forget a session."""
        for key in [key for key in self._pages if key[0] == session]:
            self._remove(key)

    def _remove(self, key: tuple[SessionId, Digest]) -> None:
        raw = self._pages.pop(key, None)
        self.used_bytes -= len(raw) if raw is not None else 0
