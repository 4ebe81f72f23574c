"""The cable: links between processes, what becomes of a frame, and what a process learns of a link's end.

A link is what ports.Transport promises: made by a dial, one for each lane, in order, ended by LinkDown at both sides,
each in its own time. On top of that come the faults, also those that the port excludes (a frame lost or doubled on a
link that stands, one overtaking another), since the brain says that it relies on nothing of the kind.

A cut stops frames in the directions it names; links stay up, nobody is told. What was stopped is lost, or with `held`
arrives when the cut heals. A dial through a cut fails after three seconds, the end of a link is heard after it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from meshnode.ids import PeerId
from meshnode.machine import DialFailed, Received, Ship
from meshnode.ports import Lane, LinkDown, LinkUp
from meshnode.wire import cbor, schema

if TYPE_CHECKING:
    from meshnode.sim.process import Process
    from meshnode.sim.world import World

DIAL_US_MAX = 3_000_000
"""A dial that nothing answers is given up, as over libp2p."""
POLL_US = 250_000
"""How often something that waits for a cut to heal looks."""
HELD_MAX = 256
"""Frames that one direction of a link keeps in a cut: the outbox and the kernel's buffers."""


class Link:
    """One lane between two processes of this moment."""

    __slots__ = ("a", "b", "closed", "due_us", "held", "lane", "lives")

    def __init__(self, a: Process, b: Process, lane: Lane) -> None:
        self.a, self.b, self.lane = a, b, lane
        self.lives = (a.life, b.life)
        self.closed = False
        self.due_us = [0, 0]
        """Towards a, towards b: when the last frame arrives; the next may not be earlier."""
        self.held: tuple[list[tuple[object, int]], list[tuple[object, int]]] = ([], [])

    def far(self, near: Process) -> Process:
        return self.b if near is self.a else self.a

    def stands(self) -> bool:
        """Whether both processes are still those that made it."""
        return not self.closed and self.lives == (self.a.life, self.b.life)


class Network:
    """All links, all cuts."""

    def __init__(self, world: World) -> None:
        options = world.options
        self.world = world
        self.rng = random.Random(f"{world.seed}/net")
        self.counts: Counter[str] = Counter()
        self.cuts: set[tuple[int, int]] = set()
        """(from, to) by place."""
        self.loss, self.duplicate, self.reorder = options.loss, options.duplicate, options.reorder
        self.mean_us = options.delay_ms * 1000
        self._held, self._wire = options.held, options.wire
        self._standing: dict[tuple[int, int, Lane], Link] = {}
        self.faulty = False
        """Whether loss, doubling and overtaking are on: they begin with the storm and end with it."""

    def delay_us(self) -> int:
        """One frame's way."""
        return 200 + int(-self.mean_us * math.log(1.0 - self.rng.random()))

    def blocked(self, near: Process, far: Process) -> bool:
        return (near.place, far.place) in self.cuts

    # ---------------------------------------------------------------------------------------------------------- frames

    def send(self, near: Process, to: PeerId, lane: Lane, message: object) -> None:
        """As send_nowait of the port: lost and counted if there is no link."""
        link = near.links.get((to, lane))
        if link is None:
            self.counts["no link"] += 1
            return
        sent: object = message
        if self._wire:
            sent = cbor.encode([schema.number_of(message), schema.pack(message)])
        if self.faulty:
            if self.rng.random() < self.loss:
                self.counts["frames lost"] += 1
                return
            if self.rng.random() < self.duplicate:
                self.counts["frames doubled"] += 1
                self._launch(link, near, sent)
        self._launch(link, near, sent)

    def send_page(self, near: Process, to: PeerId, page: tuple[Ship, bytes]) -> None:
        """A page on the bulk lane."""
        self._launch(near.links[to, Lane.BULK], near, page)

    def _launch(self, link: Link, near: Process, sent: object) -> None:
        far = link.far(near)
        if self.blocked(near, far):
            self._stop(link, far, sent)
            return
        side = far is link.b
        due_us = self.world.now_us + self.delay_us()
        if due_us < link.due_us[side]:
            if self.faulty and self.reorder:
                self.counts["frames overtaken"] += 1
            else:
                due_us = link.due_us[side]
        else:
            link.due_us[side] = due_us
        self.world.at(due_us, self._arrive, (link, near, far, sent, far.life))

    def _stop(self, link: Link, far: Process, sent: object) -> None:
        held = link.held[far is link.b]
        if self._held and len(held) < HELD_MAX:
            held.append((sent, far.life))
        else:
            self.counts["frames cut off"] += 1

    def _arrive(self, link: Link, near: Process, far: Process, sent: object, life: int) -> None:
        if far.links.get((near.peer, link.lane)) is not link or far.life != life:
            self.counts["frames after the link"] += 1
            return
        if self.blocked(near, far):
            self._stop(link, far, sent)
            return
        if link.lane is Lane.BULK and isinstance(sent, tuple):
            far.page_arrived(near, *sent)
            return
        message: Any = sent
        if self._wire:
            assert isinstance(sent, bytes)
            number, fields = cbor.decode(sent)
            message = schema.unpack(number, fields)
        far.hear(Received(near.peer, link.lane, message))

    # ----------------------------------------------------------------------------------------------------------- links

    def dial(self, near: Process, peer: PeerId, lane: Lane) -> None:
        """Knock; LinkUp at both sides, DialFailed, or nothing if a link stands already."""
        give_up_us = self.world.now_us + DIAL_US_MAX
        self.world.after(self.delay_us(), self._knock, (near, near.life, peer, lane, give_up_us))

    def _knock(self, near: Process, life: int, peer: PeerId, lane: Lane, give_up_us: int) -> None:
        if near.life != life or not near.running:
            return
        far = self.world.who(peer)
        if self.blocked(near, far) or self.blocked(far, near) or far.paused:
            if self.world.now_us < give_up_us:
                self.world.after(POLL_US, self._knock, (near, life, peer, lane, give_up_us))
            else:
                near.hear(DialFailed(peer, lane))
            return
        if not far.running:
            self.world.after(self.delay_us(), self._refused, (near, life, peer, lane))
            return
        self._connect(near, far, lane)

    def _refused(self, near: Process, life: int, peer: PeerId, lane: Lane) -> None:
        if near.life == life and near.running:
            near.hear(DialFailed(peer, lane))

    def _connect(self, near: Process, far: Process, lane: Lane) -> None:
        key = (min(near.place, far.place), max(near.place, far.place), lane)
        known = self._standing.get(key)
        if known is not None and known.stands():
            return
        link = self._standing[key] = Link(near, far, lane)
        opens_us = self.world.now_us + self.delay_us()
        link.due_us[near is link.b] = opens_us
        self._up(far, far.life, near, link)
        self.world.at(opens_us, self._up, (near, near.life, far, link))

    def _up(self, one: Process, life: int, other: Process, link: Link) -> None:
        if one.life != life or not one.running:
            return
        key = (other.peer, link.lane)
        if link.closed:  # it ended on its way here, and another may stand by now
            if key not in one.links:
                one.hear(DialFailed(*key))
            return
        if key in one.links:
            one.hear(LinkDown(*key))
        one.links[key] = link
        one.hear(LinkUp(*key))

    def _down(self, one: Process, life: int, other: Process, link: Link) -> None:
        if one.life != life or not one.running or one.links.get((other.peer, link.lane)) is not link:
            return
        if self.blocked(other, one):
            self.world.after(POLL_US, self._down, (one, life, other, link))
            return
        del one.links[other.peer, link.lane]
        one.hear(LinkDown(other.peer, link.lane))

    def reset(self, a: Process, b: Process) -> None:
        """Every link between the two breaks; each side hears of it in its own time."""
        self._end(a, b, (a, b))

    def hang_up(self, near: Process, peer: PeerId) -> None:
        """As the port."""
        far = self.world.who(peer)
        self._end(near, far, (near, far))

    def crashed(self, one: Process) -> None:
        """Its kernel closes its sockets, and the others hear that."""
        for other in self.world.processes:
            if other is not one:
                self._end(one, other, (other,))
        one.links.clear()

    def _end(self, a: Process, b: Process, told: tuple[Process, ...]) -> None:
        for lane in Lane:
            link = self._standing.pop((min(a.place, b.place), max(a.place, b.place), lane), None)
            if link is None:
                continue
            link.closed = True
            for one in told:
                other = link.far(one)
                heard_us = max(self.world.now_us + self.delay_us(), link.due_us[one is link.b])
                self.world.at(heard_us, self._down, (one, one.life, other, link))

    # ------------------------------------------------------------------------------------------------------------ cuts

    def cut(self, pairs: set[tuple[int, int]]) -> None:
        """Frames of these directions go nowhere."""
        self.cuts |= pairs

    def heal(self, pairs: set[tuple[int, int]] | None = None) -> None:
        """These directions again, or all; what was held comes in order."""
        self.cuts = set() if pairs is None else self.cuts - pairs
        for link in self._standing.values():
            for near, far in ((link.a, link.b), (link.b, link.a)):
                held = link.held[far is link.b]
                if held and not self.blocked(near, far):
                    self.counts["frames held"] += len(held)
                    for sent, life in held:
                        if far.life == life:
                            self._launch(link, near, sent)
                    held.clear()
