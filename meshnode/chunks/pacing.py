"""A limit in bytes a second, as a time from which on the next byte may go.

Rejected: a token bucket. It saves up while nobody wants anything, and then spends it at the owner's cost.
"""

from __future__ import annotations


class Pace:
    """`bytes_per_s` 0: no limit."""

    def __init__(self, bytes_per_s: float) -> None:
        assert bytes_per_s >= 0
        self._bytes_per_s = bytes_per_s
        self.free_at = float("-inf")

    def spend(self, now: float, size_bytes: int) -> None:
        """So much goes now; what comes next waits for as long as that takes."""
        if self._bytes_per_s:
            self.free_at = max(now, self.free_at) + size_bytes / self._bytes_per_s


def bytes_per_s(mbit_s: int) -> float:
    """From the unit in which people know their lines."""
    return mbit_s * 1e6 / 8
