"""What befalls the world until the storm ends: each class of faults on its own dice, at random moments.

Dice of their own, so that one class taken away by `shrink` leaves the others where they were, as far as it can.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshnode.sim.checkers import owns
from meshnode.sim.process import Process

if TYPE_CHECKING:
    from meshnode.sim.world import World

SECOND = 1_000_000
JUMPS_S = (0.5, 3.0, 30.0)


class Faults:
    """All classes that are on."""

    def __init__(self, world: World) -> None:
        self.world = world
        options = world.options
        classes: dict[str, tuple[float, Callable[[random.Random], None]]] = {
            "cut": (options.cut_every_s, self._cut),
            "reset": (options.reset_every_s, self._reset),
            "crash": (options.crash_every_s, self._crash),
            "pause": (options.pause_every_s, self._pause),
            "jump": (options.jump_every_s, self._jump),
            "evict": (options.evict_every_s, self._evict),
            "compact": (options.compact_every_s, self._compact),
            "away": (options.away_every_s, self._away),
        }
        for name, (every_s, strike) in classes.items():
            if every_s:
                self._again(random.Random(f"{world.seed}/{name}"), every_s, strike)

    def _again(self, rng: random.Random, every_s: float, strike: Callable[[random.Random], None]) -> None:
        delay_us = int(rng.expovariate(1.0 / every_s) * SECOND)
        self.world.after(delay_us, self._strike, (rng, every_s, strike))

    def _strike(self, rng: random.Random, every_s: float, strike: Callable[[random.Random], None]) -> None:
        if not self.world.stormy:
            return
        strike(rng)
        self._again(rng, every_s, strike)

    def _for(self, seconds: float, end: Callable[..., None], given: tuple[object, ...]) -> None:
        """End a fault, unless the storm's end has ended it."""
        self.world.after(int(seconds * SECOND), self._ended, (end, given))

    def _ended(self, end: Callable[..., None], given: tuple[object, ...]) -> None:
        if self.world.stormy:
            end(*given)

    # ---------------------------------------------------------------------------------------------------------- network

    def _cut(self, rng: random.Random) -> None:
        world = self.world
        if world.options.cut_halves:
            half = {one.place for one in world.processes if rng.random() < 0.5}
            world.marks.hit("halves cut")
        else:
            half = {rng.choice(world.processes).place}
        rest = {one.place for one in world.processes} - half
        pairs = {(a, b) for a in half for b in rest}
        if world.options.one_way:
            world.marks.hit("cut in one direction")
            pairs = {(b, a) for a, b in pairs} if rng.random() < 0.5 else pairs
        else:
            pairs |= {(b, a) for a, b in pairs}
        self._cut_off(pairs, rng.uniform(0.2, 4.0))

    def _cut_off(self, pairs: set[tuple[int, int]], seconds: float) -> None:
        self.world.say(f"cut {sorted(pairs)} for {seconds:.1f} s")
        self.world.network.cut(pairs)
        self._for(seconds, self._mend, (pairs,))

    def _mend(self, pairs: set[tuple[int, int]]) -> None:
        self.world.marks.hit("cut healed")
        self.world.network.heal(pairs)

    def _reset(self, rng: random.Random) -> None:
        if len(self.world.processes) < 2:
            return
        a, b = rng.sample(self.world.processes, 2)
        self.world.say(f"reset {a.place} {b.place}")
        self.world.marks.hit("link reset")
        for number in range(rng.choice((1, 1, 5))):  # five in a second: a connection that flaps
            self._for(number * 0.2, self.world.network.reset, (a, b))

    def _away(self, rng: random.Random) -> None:
        """A client's network or lid."""
        client = rng.choice(self.world.clients)
        if not client.process.running or client.process.paused:
            return
        seconds = rng.uniform(0.5, 5.0)
        if rng.random() < 0.5:
            self._stop(client.process, seconds)
        else:
            others = [one.place for one in self.world.nodes]
            me = client.process.place
            for node in self.world.nodes:
                self.world.network.reset(client.process, node)
            self._cut_off({(me, one) for one in others} | {(one, me) for one in others}, seconds)
        self.world.marks.hit("client came back")

    # -------------------------------------------------------------------------------------------------------- processes

    def _crash(self, rng: random.Random) -> None:
        world = self.world
        running = [node for node in world.nodes if node.running]
        count = 2 if world.options.double and rng.random() < 0.5 else 1
        for node in rng.sample(running, min(count, len(running))):
            if any(owns(node, client.session) and client.said for client in world.clients if client.session):
                world.marks.hit("owner crashed while it answered")
            if rng.random() < world.options.wipe and world.may_lose(node):
                world.lose(node)
                continue
            world.crash(node, rng)
            self._for(rng.uniform(0.05, world.options.down_s), world.restart, (node,))
        if all(not node.running for node in world.nodes):
            world.marks.hit("every voter down at once")

    def _pause(self, rng: random.Random) -> None:
        awake = [one for one in self.world.processes if one.running and not one.paused]
        if awake:
            self._stop(rng.choice(awake), rng.uniform(0.2, 5.0))

    def _stop(self, one: Process, seconds: float) -> None:
        self.world.say(f"stop {one.place} for {seconds:.1f} s")
        one.pause()
        self._for(seconds, self.world.resume, (one, one.life))

    def _jump(self, rng: random.Random) -> None:
        one, seconds = rng.choice(self.world.processes), rng.choice(JUMPS_S)
        self.world.say(f"clock of {one.place} jumps {seconds} s")
        self.world.marks.hit("clock jumped")
        one.clock.jump(int(seconds * SECOND))
        if one.running and not one.paused:
            one.rearm()

    # ------------------------------------------------------------------------------------------------------------ disks

    def _evict(self, rng: random.Random) -> None:
        node = rng.choice(self.world.nodes)
        if node.running and node.disk is not None and node.disk.pages and not node.paused:
            assert node.acts is not None
            self.world.marks.hit("pages evicted")
            node.acts.evict(rng.choice(sorted(node.disk.pages)))

    def _compact(self, rng: random.Random) -> None:
        node = rng.choice(self.world.nodes)
        if node.running and not node.paused:
            self.world.marks.hit("journal written anew")
            self.world.compact(node)
