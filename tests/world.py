"""A whole mesh in one process: the node's own brain, driver and hands over the in-memory network.

Under MockClock an hour costs a second. A killed node loses its process and what its disk had not synced, and starts
again from the rest; the engine behind the port draws tokens by hash, so one wrong id in a context changes all that
follow.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from meshnode import client, config, driver, hands, journal, manifest, options, peer, ports
from meshnode.ids import PeerId
from meshnode.machine import Effect, Introduced, Note
from meshnode.net import memory
from meshnode.sim import fakes, hashing
from meshnode.snapshots import disk, store
from meshnode.wire import keys


@dataclass
class Machine:
    """What survives a crash, and the process that runs on it now."""

    identity: keys.Identity
    config: config.Node
    disk: disk.MemoryDisk = field(default_factory=disk.MemoryDisk)
    journal: journal.MemoryJournal = field(default_factory=journal.MemoryJournal)
    starts: int = 0
    engine: fakes.HashEngine | None = None
    brain: peer.Peer | None = None
    driver: driver.Driver | None = None
    scope: trio.CancelScope | None = None
    notes: list[tuple[float, Note]] = field(default_factory=list)
    running: bool = False

    @property
    def id(self) -> PeerId:
        return self.identity.peer


class World:
    """Machines by name, one network, one seed."""

    def __init__(self, nursery: trio.Nursery, seed: int, delay_s: tuple[float, float]) -> None:
        self.rng = random.Random(seed)
        self.network = memory.Network(random.Random(seed), delay_s)
        self.machines: dict[str, Machine] = {}
        self._nursery = nursery
        self._stepped = trio.Event()

    async def start(self, name: str, join: Iterable[str] = (), **settings: object) -> Machine:
        """Start a machine, or start it again after a kill."""
        machine = self.machines.get(name)
        if machine is None:
            identity = keys.Identity(self.rng.randbytes(32))
            machine = self.machines[name] = Machine(identity, config.Node(name=name, **settings))
        machine.starts += 1
        await self._nursery.start(self._run, machine, tuple(self.address(one) for one in join))
        return machine

    def address(self, name: str) -> str:
        return memory.address(self.machines[name].id)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        machine = self.machines[name]
        self.network.crash(machine.id)
        assert machine.scope is not None
        machine.scope.cancel()
        machine.running = False
        machine.disk.crash(self.rng)
        machine.journal.crash(self.rng)

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Until something is so; looked at after every step of every brain."""
        while not holds():
            await self._stepped.wait()

    async def wait_meshed(self) -> None:
        """Until every machine that runs has heard every other and has all links to it."""
        running = [machine for machine in self.machines.values() if machine.brain is not None and machine.running]

        def meshed() -> bool:
            now = trio.current_time()
            return all(
                len(one.brain.mesh.directory.alive(now)) >= len(running) - 1
                and len(one.brain.mesh.links) >= 3 * (len(running) - 1)
                for one in running
                if one.brain is not None
            )

        await self.wait_until(meshed)

    def _note_step(self) -> None:
        self._stepped.set()
        self._stepped = trio.Event()

    def name_of(self, who: PeerId | None) -> str:
        return next(name for name, machine in self.machines.items() if machine.id == who)

    async def _run(self, machine: Machine, join: tuple[str, ...], *, task_status: trio.TaskStatus[None]) -> None:
        hosts = machine.config.host
        engine = machine.engine = fakes.HashEngine(eos_after=60, decode_s_per_token=0.02, prefill_s_per_token=0.001)
        card = engine.card if hosts else None
        brain = machine.brain = peer.Peer(machine.identity, machine.config, card, machine.starts, self.rng)
        pages = store.PageStore(machine.disk)
        found = {session: pages.have(session) for session in pages.sessions()}
        records = [journal.split(entry)[1] for entry in machine.journal.replay()]
        brain.replay(trio.current_time(), records, found)
        transport = self.network.transport(machine.identity)
        writer = journal.JournalWriter(machine.journal)
        tokenizer = hashing.HashTokenizer()
        body = hands.Hands(
            engine if hosts else None,
            tokenizer,
            pages,
            hands.at_once,
            brain.sessions.admits,
            grammars=engine,
            hot_bytes=4096,
        )
        pump = machine.driver = driver.Driver(
            _Watched(brain, self._note_step),
            machine.identity,
            transport,
            hands=body,
            writer=writer,
            on_note=lambda now, note: machine.notes.append((now, note)),
        )
        with trio.CancelScope() as scope:
            machine.scope = scope
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: transport.run(task_status=task_status))
                await nursery.start(lambda task_status: writer.run(task_status=task_status))
                brain.mesh.addresses = transport.addresses
                machine.running = True
                nursery.start_soon(pump.run)
                pump.submit(Introduced(join))
                task_status.started()

    @asynccontextmanager
    async def agent(self, *names: str) -> AsyncIterator[client.Mesh]:
        """An agent that is attached through these machines."""
        identity = keys.Identity(self.rng.randbytes(32))
        transport = self.network.transport(identity)
        bootstrap = [self.address(name) for name in names]
        async with client.connect(bootstrap, identity=identity, transport=transport) as mesh:
            yield mesh


@asynccontextmanager
async def world(seed: int = 1, delay_s: tuple[float, float] = (0.0005, 0.003)) -> AsyncIterator[World]:
    """A world that ends with its block."""
    async with trio.open_nursery() as nursery:
        yield World(nursery, seed, delay_s)
        nursery.cancel_scope.cancel()


class _Watched:
    """A brain whose every step is told."""

    def __init__(self, brain: peer.Peer, told: Callable[[], None]) -> None:
        self._brain = brain
        self._told = told

    @property
    def deadline(self) -> float:
        return self._brain.deadline

    def step(self, now: float, event: Any) -> list[Effect]:
        effects = self._brain.step(now, event)
        self._told()
        return effects


async def pass_time(seconds: float) -> None:
    """Let virtual time pass: the world goes on, the clock on the wall does not."""
    await trio.sleep(seconds)


def expected(wants: manifest.Manifest, text: str, count: int, **asked: Any) -> list[int]:
    """What an undisturbed engine says to the first turn of a session: ids, the last one the end of turn. `asked`: as in
    client.Session.say."""
    engine = fakes.HashEngine(eos_after=60)
    agent = options.over(wants.agent, options.read(asked)[0])
    sampling = ports.Sampling(
        **{field.name: getattr(agent, field.name) for field in dataclasses.fields(ports.Sampling)}
    )
    system = wants.agent.system or None
    context = hashing.HashTokenizer().turn(text, system=system, first=True, closed=False)
    said: list[int] = []
    while len(said) < count:
        token = engine.core.draw(context, sampling, len(context) - len(said) if said else 0)
        said.append(token)
        context.append(token)
        if token in engine.card.eos:
            break
    return said
