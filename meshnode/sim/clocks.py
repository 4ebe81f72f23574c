"""A machine's clock: seconds since it began, with an offset, a drift, and jumps. It never goes back.

The world counts true time in integer microseconds. A brain is only ever told what its own clock shows, and wants to be
woken by it, so the way back is needed too: `true_us` is the first true microsecond at which the clock has come so far.
"""

from __future__ import annotations

import math

MILLION = 1_000_000


class Clock:
    """Shows `offset + true * (1 + drift)`."""

    __slots__ = ("_drift_ppm", "_offset_us")

    def __init__(self, offset_us: int = 0, drift_ppm: int = 0) -> None:
        self._offset_us = offset_us
        self._drift_ppm = drift_ppm

    def local_s(self, true_us: int) -> float:
        """What it shows."""
        return (self._offset_us + true_us + true_us * self._drift_ppm // MILLION) / MILLION

    def true_us(self, local_s: float) -> int:
        """When it will show so much, or did."""
        elapsed_us = math.ceil(local_s * MILLION) - self._offset_us
        at = elapsed_us * MILLION // (MILLION + self._drift_ppm) - 2
        while self.local_s(at) < local_s:
            at += 1
        return at

    def jump(self, by_us: int) -> None:
        """Set forward."""
        assert by_us >= 0
        self._offset_us += by_us

    def stood(self, for_us: int) -> None:
        """It did not run for so long, which is over now."""
        assert for_us >= 0
        self._offset_us -= for_us + for_us * self._drift_ppm // MILLION
