"""A whole mesh on one heap: the brains of production, virtual time, one seed.

Phases: the mesh boots, the storm begins (everything that Options has on), the storm ends and all is healed, and from
then on every client must get what it waits for within a bound. Checkers look at every step. Time is in integer
microseconds; ties are broken by the order of pushing; each concern has dice of its own, seeded by a string.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from meshnode import config, ids, journal, manifest, peer
from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.machine import Capacity, Effect, Introduced, Note, Send
from meshnode.sessions import messages, records, timers
from meshnode.sim import acts, checkers, clocks, disks, faults, hashing, marks, network, workload
from meshnode.sim.checkers import Violation
from meshnode.sim.options import Options
from meshnode.sim.process import Process
from meshnode.sim.trace import Trace
from meshnode.wire import keys

SECOND = 1_000_000
BOOT_S = 1.0
"""Nodes find each other before anything befalls them."""
BOUND_S = 90.0
"""After healing every client has what it waits for within this, and eight times the kind's silence. The longest part
is a redial that backed off to fifteen seconds, and the INVITE's time if a session has to be opened anew."""
STEPS_MAX = 400_000
"""Of one world; more are messages that breed messages."""
CALM_DELAY_MS_MAX = 50


class World:
    """One seed with one set of options."""

    def __init__(self, seed: int, options: Options, trace: Trace | None = None) -> None:
        self.seed = seed
        self.options = options
        self.trace = trace or Trace()
        self.marks = marks.Marks()
        self.now_us = 0
        self.stormy = True
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = itertools.count()
        self._rng = random.Random(f"{seed}/world")
        self._disk_rng = random.Random(f"{seed}/disk")
        self.network = network.Network(self)
        self.nodes = [self._machine(place) for place in range(options.nodes)]
        self.truth = checkers.Truth(self.marks, self.nodes)
        self._bootstrap = tuple(self._address(node) for node in self.nodes)
        self.clients = [self._client(options.nodes + place) for place in range(options.clients)]
        self.processes = [*self.nodes, *(client.process for client in self.clients)]
        self._by_peer = {one.peer: one for one in self.processes}
        self._lost: set[int] = set()
        """Places of machines that are gone for good."""
        self._starts = itertools.count(1)
        self._asked: set[RequestId] = set()
        """Turns that left their client once."""

    # ---------------------------------------------------------------------------------------------------------- making

    def _machine(self, place: int) -> Process:
        identity = keys.Identity(self._rng.randbytes(keys.SEED_BYTES))
        drift = self.options.drift_ppm
        clock = clocks.Clock(self._rng.randrange(1000 * SECOND), self._rng.randint(-drift, drift))
        return Process(self, place, identity, clock)

    def _client(self, place: int) -> workload.Client:
        return workload.Client(self, self._machine(place), self._bootstrap)

    def _address(self, node: Process) -> str:
        return f"/memory/{node.place}/p2p/{ids.peer_text(node.peer)}"

    def who(self, peer: PeerId) -> Process:
        """The machine of this identity."""
        return self._by_peer[peer]

    # ----------------------------------------------------------------------------------------------------------- time

    def at(self, when_us: int, call: Callable[..., None], given: tuple[Any, ...] = ()) -> None:
        """Call at this moment."""
        heapq.heappush(self._heap, (when_us, next(self._number), call, given))

    def after(self, delay_us: int, call: Callable[..., None], given: tuple[Any, ...] = ()) -> None:
        """Call some time from now."""
        self.at(self.now_us + delay_us, call, given)

    def sync_us(self) -> int:
        """What a disk takes for a sync."""
        return 100 + int(self._disk_rng.expovariate(1.0 / (self.options.sync_ms * 1000)))

    def run(self) -> None:
        """All phases. Raises Violation."""
        for node in self.nodes:
            self.restart(node)
        for client in self.clients:
            self.after(int(self._rng.uniform(0.0, 2 * BOOT_S) * SECOND), client.begin)
        self.at(int(BOOT_S * SECOND), self._storm)
        silence_s = timers.TIMERS[manifest.Kind(self.options.kind)].lost_after_s
        self._end_us = int((BOOT_S + self.options.storm_s + BOUND_S + 8 * silence_s) * SECOND)
        while not self._over():
            when_us, _, call, given = heapq.heappop(self._heap)
            assert when_us >= self.now_us
            self.now_us = when_us
            if when_us > self._end_us:
                raise Violation("liveness", f"{BOUND_S:.0f} s after healing; {self._waiting()}")
            call(*given)
        self._last_look()

    def _last_look(self) -> None:
        """Take the power from every node: what it has told must be on its disk now, too."""
        for node in self.nodes:
            if node.running:
                self.crash(node, self._disk_rng)
                self.restart(node)
        for client in self.clients:
            if client.process.running and any(one.stale_count for one in client.process.brain.attachments.values()):
                self.marks.hit("stale word refused by the client")

    def _over(self) -> bool:
        if self.stormy or not all(client.done for client in self.clients):
            return False
        if not self.options.linger:
            return True
        kept = {session for node in self.nodes if node.running for session in node.brain.sessions.members}
        # A session of which nothing was ever released may be left behind at a minority: see DESIGN.md, "Known".
        if any(self.truth.of(session).released for session in kept):
            return False
        self.marks.hit("dropped by every voter")
        return True

    def _waiting(self) -> str:
        waits = [client.waits for client in self.clients if not client.done]
        kept = [f"node {node.place} has {len(node.brain.sessions.members)}" for node in self.nodes if node.running]
        return "; ".join(waits or kept)

    # ---------------------------------------------------------------------------------------------------------- phases

    def _storm(self) -> None:
        self.network.faulty = True
        faults.Faults(self)
        self.after(int(self.options.storm_s * SECOND), self._heal)

    def _heal(self) -> None:
        self.say("healed")
        self.stormy = False
        self.network.faulty = False
        self.network.mean_us = min(self.network.mean_us, CALM_DELAY_MS_MAX * 1000)
        self.network.heal()
        for one in self.processes:
            if one.paused:
                self.resume(one, one.life)
        for node in self.nodes:
            if not node.running and node.place not in self._lost:
                self.restart(node)
        if self.options.loss:
            # What was lost on a link that stood may be an advert, which TCP would have carried and nothing repeats
            # within a minute; a mended network has new connections.
            for a, b in itertools.combinations(self.processes, 2):
                self.network.reset(a, b)

    # -------------------------------------------------------------------------------------------------------- machines

    def restart(self, node: Process) -> None:
        """Start a node, or start it again with what its disk has."""
        if node.running or node.place in self._lost:
            return
        options = self.options
        disk = node.disk = node.disk or disks.Disk()
        hosts = node.place >= options.witnesses
        core = hashing.HashCore()
        settings = config.Node(name=f"n{node.place}", operator=f"o{node.place}", host=hosts)
        rng = random.Random(f"{self.seed}/node{node.place}/{node.life}")
        brain = peer.Peer(node.identity, settings, core.card if hosts else None, next(self._starts), rng)
        found, torn_bytes = disk.opened()
        if torn_bytes:
            self.marks.hit("journal's tail torn")
        brain.replay(node.now_s, found, disk.addresses())
        kept = brain.sessions.snapshot()
        for session in [one for one in disk.pages if one not in brain.sessions.members]:
            del disk.pages[session]
        disk.journal.rewrite([journal.record(session, record) for session, record in kept])
        brain.mesh.addresses = (self._address(node),)
        node.start(brain, acts.Acts(node, core if hosts else None, options.decode_ms * 1000))
        self.say(f"start {node.place}")
        self.truth.restarted(node, {session for session, record in kept if _drops(record)})
        if hosts:
            node.hear(Capacity(core.memory_free()))
        node.hear(Introduced(tuple(one for one in self._bootstrap if one != self._address(node))))

    def crash(self, node: Process, rng: random.Random) -> None:
        """SIGKILL, or the power."""
        self.say(f"crash {node.place}")
        assert node.disk is not None
        if node.disk.crash(rng, tear=self.options.tear):
            self.marks.hit("records lost that were not synced")
        node.crash()

    def resume(self, one: Process, life: int) -> None:
        """A stopped process goes on."""
        if one.life != life or not one.paused:
            return
        self.say(f"go on {one.place}")
        if self.options.clock_stops:
            self.marks.hit("clock stood")
        one.resume(clock_stood=self.options.clock_stops)

    def compact(self, node: Process) -> None:
        """As node.py does when the journal has grown."""
        kept = [journal.record(session, record) for session, record in node.brain.sessions.snapshot()]
        node.write(disks.Write(kept, lambda: None, anew=True))

    def may_lose(self, node: Process) -> bool:
        """Whether every session keeps a majority of its voters without this machine, and some machine is left."""
        lost = self._lost | {node.place}
        members = [member for one in self.nodes if one.running for member in one.brain.sessions.members.values()]
        groups = [frozenset(known.seats) for known in self.truth.sessions.values() if known.seats]
        groups += [voters.voters for one in members for voters in (one.seating.current, one.seating.settled)]
        kept = all(2 * sum(self.who(seat).place in lost for seat in seats) < len(seats) for seats in groups)
        unborn = any(not self.truth.of(member.session).seats for member in members)
        # Who is down may have another configuration in its log.
        shown = all(one.running or one.place in lost for one in self.nodes)
        return kept and shown and not unborn and 2 * len(lost) < len(self.nodes)

    def lose(self, node: Process) -> None:
        """The machine is gone for good, and its disk."""
        self.say(f"lose {node.place}")
        self.marks.hit("machine gone for good")
        self._lost.add(node.place)
        node.crash()

    # -------------------------------------------------------------------------------------------------------- watching

    def stepped(self, process: Process, event: object) -> list[Effect]:
        """One step of one brain, seen by everyone who watches."""
        brain, now_s = process.brain, process.now_s
        if process.disk is None:
            effects: list[Effect] = brain.step(now_s, event)
        else:
            effects = self.truth.step(process, event, lambda: brain.step(now_s, event))
        self.trace.step(self.now_us, process.place, event, effects)
        if self.trace.step_count > STEPS_MAX:
            raise Violation("bounds", f"{STEPS_MAX} steps in {self.now_us / SECOND:.0f} s")
        return effects

    def sending(self, process: Process, effect: Send) -> None:
        """A message leaves a process."""
        if effect.via is not None:
            self.marks.hit("through a gateway")
        if process.disk is not None:
            self.truth.sending(process, effect.to, effect.message)
        elif isinstance(effect.message, messages.Message):
            if effect.message.request in self._asked:
                self.marks.hit("turn asked again")
            self._asked.add(effect.message.request)

    def noted(self, process: Process, note: Note) -> None:
        """A milestone."""
        self.trace.note(self.now_us, process.place, note)
        match note.what:
            case "elected" if not note.detail.endswith("adopted=0"):
                self.marks.hit("adopted another voter's entries")
            case "deposed" if self.now_us - process.resumed_us < SECOND:
                self.marks.hit("paused owner came back deposed")
            case "restored":
                self.marks.hit("went on without pages" if note.detail == "pages=0" else "restored from pages")

    def say(self, what: str) -> None:
        """Something that the world does."""
        self.trace.say(self.now_us, what)

    def check(self, holds: bool, invariant: str, detail: Callable[[], str]) -> None:
        """Raises Violation."""
        if not holds:
            raise Violation(invariant, detail())

    def forgotten(self, process: Process, session: SessionId) -> None:
        """A node dropped a session for good."""
        self.truth.forgotten(process, session)

    @property
    def hits(self) -> dict[str, int]:
        """Marks, with those that the network counts."""
        counted = {name: count for name, count in self.network.counts.items() if name in marks.DECLARED}
        return {**self.marks.hits, **counted}


def _drops(record: bytes) -> bool:
    return isinstance(records.unpack(record), messages.Dropped)
