"""Many seeds, in as many processes as wanted; what failed is made smaller before a person looks at it.

A process takes a few seeds at a time and answers with sums, so a hundred thousand seeds need no more memory than ten.
A failure is said in three lines: what broke, in which world, and the command that shows it again.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from meshnode import errors
from meshnode.sim import marks
from meshnode.sim import options as worlds
from meshnode.sim.checkers import Violation
from meshnode.sim.options import Options
from meshnode.sim.trace import Trace
from meshnode.sim.world import World

CHUNK = 20
"""Seeds that a process takes at once."""
FAILURES_MAX = 5
"""After so many a campaign ends: the first few say it."""
SHRINKS_MAX = 200
"""Worlds that are tried to make one failure smaller."""
MARKS_SEEDS_MIN = 1000
"""A shorter campaign may miss a mark: it says so, and passes."""
FAULTS = (
    Violation,
    errors.MeshError,
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""A brain's own bug is as good as a broken invariant."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One world, run to its end."""

    seed: int
    options: Options
    broken: str
    """The broken invariant; empty if all held."""
    detail: str
    digest: str
    hits: dict[str, int]
    virtual_s: float
    step_count: int

    def lines(self) -> tuple[str, str, str]:
        """What broke, in which world, and how to see it again."""
        return (
            f"violated: {self.detail}",
            f"seed {self.seed}: {self.options.words()}",
            f"replay: meshnode sim --seed {self.seed} --options '{self.options.words()}' --trace",
        )


def run(seed: int, options: Options | None = None, trace: Trace | None = None) -> Outcome:
    """One world."""
    chosen = options or worlds.drawn(seed)
    world = World(seed, chosen, trace)
    broken = detail = ""
    try:
        world.run()
    except Violation as violation:
        broken, detail = violation.invariant, f"{violation} (at {world.now_us / 1e6:.3f} s)"
    except FAULTS as fault:
        where = traceback.extract_tb(fault.__traceback__)[-1]
        broken = f"{type(fault).__name__} in {where.name}"
        detail = f"{broken}, line {where.lineno}: {fault} (at {world.now_us / 1e6:.3f} s)"
    return Outcome(
        seed, chosen, broken, detail, world.trace.digest, world.hits, world.now_us / 1e6, world.trace.step_count
    )


def shrunk(failed: Outcome, attempt: Callable[[int, Options], Outcome] = run) -> Outcome:
    """The same invariant broken in the plainest world that was found."""
    tries = 0
    smaller = True
    while smaller:
        smaller = False
        for options in worlds.calmer(failed.options):
            tries += 1
            if tries > SHRINKS_MAX:
                return failed
            found = attempt(failed.seed, options)
            if found.broken == failed.broken:
                failed, smaller = found, True
                break
    return failed


@dataclass(slots=True)
class Sum:
    """What a number of seeds came to."""

    seed_count: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    """Worlds in which each mark was hit."""
    failures: list[Outcome] = field(default_factory=list)
    virtual_s: float = 0.0
    step_count: int = 0

    def add(self, other: Sum) -> None:
        self.seed_count += other.seed_count
        self.reached += other.reached
        self.failures += other.failures
        self.virtual_s += other.virtual_s
        self.step_count += other.step_count

    @property
    def missed(self) -> list[str]:
        """Marks that no world hit."""
        return marks.missed(self.reached)

    @property
    def passed(self) -> bool:
        """Nothing broke, and enough seeds missed no mark."""
        return not self.failures and (self.seed_count < MARKS_SEEDS_MIN or not self.missed)


def some(seeds: Sequence[int]) -> Sum:
    """These seeds, one after another."""
    found = Sum()
    for seed in seeds:
        one = run(seed)
        found.seed_count += 1
        found.reached += Counter({name: 1 for name, count in one.hits.items() if count})
        found.virtual_s += one.virtual_s
        found.step_count += one.step_count
        if one.broken:
            found.failures.append(one)
    return found


def campaign(seeds: Sequence[int], jobs: int = 1, progress: Callable[[Sum], None] = lambda so_far: None) -> Sum:
    """All seeds, or as many as it takes to find FAILURES_MAX failures."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    found = Sum()
    for part in _parts(chunks, jobs):
        found.add(part)
        progress(found)
        if len(found.failures) >= FAILURES_MAX:
            break
    found.failures.sort(key=lambda one: one.seed)
    return found


def _parts(chunks: list[Sequence[int]], jobs: int) -> Iterator[Sum]:
    if jobs == 1:
        yield from map(some, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:  # a fork would copy whatever threads the caller has
        yield from pool.imap_unordered(some, chunks)
