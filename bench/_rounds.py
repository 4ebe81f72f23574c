"""Ours and its peers in turn, and medians of what came of it.

A ratio is taken within a round, where a slow moment of the machine is in both halves. That is not enough beside busy
neighbours: llama.cpp's threads spin at a barrier, and with one of two cores taken away they are a hundred times slower
(measured), while ours sleep. So a round waits a while for a quiet moment, and says how much of the machine others had;
rounds that were not quiet are run again, and the quietest count. The figure `..._others_cores` says how quiet it was.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import bench

QUIET_CORES = 0.1
"""What others may take in a round that counts. Less: on a desktop no round counts. More: see above."""
QUIET_POLL_S = 1.0
QUIET_POLLS_MAX = 10
"""How long a round waits for a quiet second."""
ROUNDS_MAX_FACTOR = 2
"""So many times the rounds asked for are run at most, and then the quietest have to do."""
_BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat: user, nice, system, irq, softirq, and what the hypervisor took."""
_UTIME, _STIME = 11, 12
"""Fields of /proc/PID/stat behind the name in brackets, which may hold spaces."""


class Decoder(Protocol):
    """What ours and its peers have in common; each act returns seconds."""

    pid: int

    def fill(self, size: int, context: int) -> float:
        """Prefill `size` sessions of `context` tokens, one after another."""

    def prefill(self, count: int, seed: int) -> float:
        """Compute `count` tokens from nothing; `seed` says which."""

    def decode(self, size: int, context: int, burst: int) -> float:
        """`burst` steps of all sessions, from `context` on."""


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of each."""

    speeds: Mapping[str, float]
    """Tokens a second by name; ours is "ours"."""
    others_cores: float


def run(
    label: str, tokens: int, runs: int, acting: Mapping[str, Decoder], act: Callable[[Decoder], float]
) -> list[Round]:
    """The `runs` quietest rounds, after one that warms up. An act takes seconds for `tokens` tokens.

    Every other round runs backwards: what comes first after another's work finds the caches cold.
    """
    found: list[Round] = []
    names = list(acting)
    neighbours = Neighbours([one.pid for one in acting.values()])
    for number in range(ROUNDS_MAX_FACTOR * runs + 1):
        neighbours.await_quiet()
        speeds = {name: tokens / act(acting[name]) for name in (names if number % 2 else names[::-1])}
        one = Round(speeds, neighbours.cores())
        shown = ", ".join(f"{name} {speeds[name]:.1f}" for name in names)
        bench.say(f"{label}: {shown} tokens/s, others {one.others_cores:.2f} cores{'' if number else ' (warm-up)'}")
        if number:
            found.append(one)
        if enough(found, runs):
            break
    return quietest(found, runs)


def enough(found: Sequence[Round], runs: int) -> bool:
    """Whether so many rounds were quiet."""
    return sum(one.others_cores <= QUIET_CORES for one in found) >= runs


def quietest(found: Sequence[Round], runs: int) -> list[Round]:
    return sorted(found, key=lambda one: one.others_cores)[:runs]


def paired(label: str, rounds: Sequence[Round]) -> dict[str, float]:
    """Figures: medians of tokens a second, of the ratios within rounds, and how busy the busiest of these was."""
    figures = {f"{label}_tok_s": statistics.median(one.speeds["ours"] for one in rounds)}
    for name in rounds[0].speeds:
        if name != "ours":
            figures[f"{label}_{name}_tok_s"] = statistics.median(one.speeds[name] for one in rounds)
            figures[f"{label}_over_{name}"] = _over(name, rounds)
    return figures | {f"{label}_others_cores": max(one.others_cores for one in rounds)}


def over_best(rounds: Sequence[Round]) -> float:
    """Ours over whichever peer was the fastest, by the medians."""
    speeds = {name: statistics.median(one.speeds[name] for one in rounds) for name in rounds[0].speeds}
    del speeds["ours"]
    return _over(max(speeds, key=lambda name: speeds[name]), rounds)


def _over(name: str, rounds: Sequence[Round]) -> float:
    return statistics.median(one.speeds["ours"] / one.speeds[name] for one in rounds)


class Neighbours:
    """How many cores all processes but some took since the last question."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._before = self._now()

    def cores(self) -> float:
        before, self._before = self._before, self._now()
        passed_s, busy_s, own_s = (now - then for now, then in zip(self._before, before, strict=True))
        return round(max(0.0, busy_s - own_s) / passed_s, 3) if passed_s else 0.0

    def await_quiet(self) -> None:
        """Or the end of our patience; the next `cores` is about what comes after."""
        self.cores()
        for _ in range(QUIET_POLLS_MAX):
            time.sleep(QUIET_POLL_S)
            if self.cores() <= QUIET_CORES:
                return

    def _now(self) -> tuple[float, float, float]:
        """(clock, busy of all cores, our own), in seconds."""
        own_s = sum(spent_s(Path(f"/proc/{pid}/stat").read_text()) for pid in self._pids)
        return os.times().elapsed, busy_s(Path("/proc/stat").read_text()), own_s


def busy_s(stat: str) -> float:
    """Seconds that all cores were not idle, from the text of /proc/stat."""
    columns = stat.splitlines()[0].split()[1:]
    return sum(int(columns[at]) for at in _BUSY) / os.sysconf("SC_CLK_TCK")


def spent_s(stat: str) -> float:
    """Seconds of CPU of a process and its threads, from the text of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
