"""What kind of world a seed is: drawn first, printed first (swarm testing, Groce et al., ISSTA 2012).

A world with a little of every fault is always the same world; one with huge delays and nothing else, or with crashes
alone, finds what that one never reaches. So each class of faults is off in about half of the worlds.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from meshnode import errors

KINDS = ("synchronous", "interactive", "interactive", "interactive")
AUTONOMOUS = 0.04
"""Share of worlds with sessions of that kind: their minutes of patience take five times as long to simulate."""
NEVER = 0.0
"""Mean seconds between faults of a class that is off."""


@dataclass(frozen=True, slots=True)
class Options:
    """Seconds are virtual; `..._every_s` is the mean time between two faults of that class, NEVER for none."""

    nodes: int = 3
    clients: int = 1
    turns: int = 2
    """Of each client."""
    tokens: int = 12
    """Longest answer."""
    decode_ms: int = 30
    kind: str = "interactive"
    replicas: int = 1
    witnesses: int = 0
    """Nodes that store logs and have no engine."""
    wire: bool = False
    """Whether messages are encoded and decoded on their way."""
    storm_s: float = 8.0
    """When the faults end."""
    delay_ms: int = 5
    """Mean of an exponential distribution, one way."""
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: bool = False
    """Frames of one lane may overtake each other, which the port forbids and the brain does not rely upon."""
    cut_every_s: float = NEVER
    cut_halves: bool = False
    """Uniform halves; otherwise one process is cut off from all."""
    one_way: bool = False
    held: bool = False
    """What a cut stops arrives when it heals, as over TCP; otherwise it is lost."""
    reset_every_s: float = NEVER
    crash_every_s: float = NEVER
    double: bool = False
    """A crash may take a second node with it."""
    down_s: float = 2.0
    """Longest time between crash and restart."""
    wipe: float = 0.0
    """Share of crashes after which the machine, with its disk, never comes back; never more than a minority."""
    pause_every_s: float = NEVER
    clock_stops: bool = False
    """A pause is a suspend: the machine's clock does not see it."""
    drift_ppm: int = 0
    """Each clock gains or loses at most so much."""
    jump_every_s: float = NEVER
    sync_ms: int = 2
    """Mean of what a disk takes for a sync."""
    tear: bool = False
    """A crash may leave any part of what was being written."""
    evict_every_s: float = NEVER
    compact_every_s: float = NEVER
    away_every_s: float = NEVER
    """A client's machine loses its network, or its lid is closed."""
    vanish: float = 0.0
    """Share of clients that leave without a BYE."""
    interrupt: float = 0.0
    """Share of answers that the client stops."""
    linger: bool = False
    """The end is when every voter has dropped the session, not when every client has its answers."""

    def words(self) -> str:
        """What differs from the plainest world."""
        plain = Options()
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return " ".join(f"{name}={value}" for name, value in said.items() if value != getattr(plain, name))


def drawn(seed: int) -> Options:
    """The options of this seed."""
    rng = random.Random(f"{seed}/options")

    def some(*values: float) -> float:
        """One of these in half of the worlds."""
        return rng.choice(values) if rng.random() < 0.5 else NEVER

    nodes = rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 7))
    return Options(
        nodes=nodes,
        clients=rng.choice((1, 1, 1, 2)),
        turns=rng.choice((1, 2, 3)),
        tokens=rng.choice((6, 20, 40)),
        decode_ms=rng.choice((10, 50, 150)),
        kind=_kind(seed, rng),
        replicas=rng.choice((1, 1, 1, 2, 3, 4)),
        witnesses=rng.choice((0, 0, 1)) if nodes > 2 else 0,
        wire=rng.random() < 0.5,
        storm_s=rng.choice((4.0, 8.0, 12.0)),
        delay_ms=rng.choice((1, 5, 5, 50, 300)),
        loss=rng.choice((0.0, 0.0, 0.0, 0.02, 0.1, 0.3)),
        duplicate=rng.choice((0.0, 0.0, 0.1)),
        reorder=rng.random() < 0.25,
        cut_every_s=some(2.0, 5.0),
        cut_halves=rng.random() < 0.5,
        one_way=rng.random() < 0.3,
        held=rng.random() < 0.5,
        reset_every_s=some(0.5, 3.0),
        crash_every_s=some(1.0, 3.0),
        double=rng.random() < 0.3,
        down_s=rng.choice((0.5, 3.0)),
        wipe=rng.choice((0.0, 0.0, 0.3)),
        pause_every_s=some(2.0, 4.0),
        clock_stops=rng.random() < 0.5,
        drift_ppm=rng.choice((0, 0, 200, 20_000)),
        jump_every_s=some(3.0),
        sync_ms=rng.choice((1, 5, 100)),
        tear=rng.random() < 0.5,
        evict_every_s=rng.choice((NEVER, NEVER, NEVER, 3.0)),
        compact_every_s=rng.choice((NEVER, NEVER, NEVER, 1.0)),
        away_every_s=rng.choice((NEVER, NEVER, 3.0)),
        vanish=rng.choice((0.0, 0.0, 0.0, 0.5)),
        interrupt=rng.choice((0.0, 0.0, 0.3)),
        linger=rng.random() < 0.25,
    )


def _kind(seed: int, rng: random.Random) -> str:
    ordinary = rng.choice(KINDS)
    return "autonomous" if random.Random(f"{seed}/patience").random() < AUTONOMOUS else ordinary


CALMER: dict[str, Any] = {
    "loss": 0.0,
    "duplicate": 0.0,
    "reorder": False,
    "cut_every_s": NEVER,
    "reset_every_s": NEVER,
    "crash_every_s": NEVER,
    "double": False,
    "wipe": 0.0,
    "pause_every_s": NEVER,
    "drift_ppm": 0,
    "jump_every_s": NEVER,
    "tear": False,
    "evict_every_s": NEVER,
    "compact_every_s": NEVER,
    "away_every_s": NEVER,
    "vanish": 0.0,
    "interrupt": 0.0,
    "linger": False,
    "one_way": False,
    "held": False,
    "cut_halves": False,
    "clock_stops": False,
    "wire": False,
    "delay_ms": 5,
    "sync_ms": 2,
    "witnesses": 0,
    "clients": 1,
    "turns": 1,
    "replicas": 1,
}
"""Each class of faults, off; what `shrink` tries one by one."""


def read(words: str) -> Options:
    """The inverse of `words`. Raises ConfigError."""
    hint = "meshnode sim prints them as name=value name=value"
    kinds = {field.name: type(getattr(Options(), field.name)) for field in dataclasses.fields(Options)}
    given: dict[str, Any] = {}
    for part in words.split():
        name, _, value = part.partition("=")
        if name not in kinds:
            raise errors.ConfigError(f"{part!r} is no option of a world", hint=hint)
        try:
            given[name] = value == "True" if kinds[name] is bool else kinds[name](value)
        except ValueError:
            raise errors.ConfigError(f"{part!r} has no value that fits", hint=hint) from None
    return Options(**given)


def calmer(options: Options) -> Iterator[Options]:
    """Worlds with one thing less: a node, time, a class of faults."""
    if options.nodes > 1:
        yield dataclasses.replace(options, nodes=options.nodes - 1)
    for storm_s in (1.0, 2.0, 4.0, 8.0):
        if storm_s < options.storm_s:
            yield dataclasses.replace(options, storm_s=storm_s)
    for name, value in CALMER.items():
        if getattr(options, name) != value:
            yield dataclasses.replace(options, **{name: value})
