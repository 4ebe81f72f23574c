"""A mesh in memory whose nodes have a model on their shelves, and peers that do not give what they say."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from meshnode import config, driver, freight, hands, obtain, peer
from meshnode.ids import Digest, PeerId
from meshnode.machine import Carry, Introduced, Stocked
from meshnode.models import stock, store
from meshnode.net import memory
from meshnode.wire import keys
from tests import world
from tests.models import small


def model(folder: Path, name: str = "tiny", seed: int = 0) -> tuple[store.Models, store.Installed]:
    """A folder of models with one of a few hundred kilobytes in it: random weights for 'seed'."""
    folder.mkdir(parents=True, exist_ok=True)
    models = store.Models(folder / "models")
    installed = models.add(name, small.write(folder / f"{name}.gguf", weights=small.dense(seed)))
    return models, installed


class Shelf:
    """What lies on a node's shelf, given as it is."""

    def __init__(self, models: store.Models) -> None:
        self.inner = stock.Stock(models)
        self.read_count = 0

    def look(self) -> tuple[object, ...]:
        return self.inner.look()

    def read(self, digest: Digest, index: int) -> bytes:
        self.read_count += 1
        return self.inner.read(digest, index)


class Liar(Shelf):
    """Its first byte of each chunk of weights is another one."""

    def read(self, digest: Digest, index: int) -> bytes:
        data = super().read(digest, index)
        return bytes([data[0] ^ 1]) + data[1:] if index >= 0 else data


class Forger(Shelf):
    """Its listing is one of other chunks."""

    def read(self, digest: Digest, index: int) -> bytes:
        data = super().read(digest, index)
        return data if index >= 0 else data[:-1] + bytes([data[-1] ^ 1])


class Mute(freight.Giver):
    """It hears each question and never answers."""

    def take(self, nursery, act, post, transport) -> None:  # type: ignore[no-untyped-def]
        assert isinstance(act, Carry)


@dataclass
class Node:
    identity: keys.Identity
    brain: peer.Peer
    pump: driver.Driver
    shelf: Shelf | None

    @property
    def id(self) -> PeerId:
        return self.identity.peer


@dataclass
class Mesh:
    """Nodes by name, over one network."""

    nursery: trio.Nursery
    network: memory.Network
    nodes: dict[str, Node] = field(default_factory=dict)

    async def start(
        self,
        name: str,
        shelf: Shelf | None = None,
        *,
        giver: Callable[..., freight.Giver] = freight.Giver,
        **settings: object,
    ) -> Node:
        """A node that hosts nothing and has met all that were started before it."""
        identity = keys.Identity(name.encode().ljust(keys.SEED_BYTES, b"."))
        brain = peer.Peer(identity, config.Node(name=name, host=False, **settings), None, 1, random.Random(1))
        transport = self.network.transport(identity)
        carrier = giver(shelf, hands.at_once) if shelf is not None else None
        pump = driver.Driver(brain, identity, transport, freight=carrier)
        await self.nursery.start(lambda task_status: transport.run(task_status=task_status))
        brain.mesh.addresses = transport.addresses
        self.nursery.start_soon(pump.run)
        pump.submit(Introduced(tuple(memory.address(one.id) for one in self.nodes.values())))
        if shelf is not None:
            pump.submit(Stocked(shelf.look()))
        self.nodes[name] = node = Node(identity, brain, pump, shelf)
        return node

    async def met(self) -> None:
        """Until every node has heard of every other."""
        for node in self.nodes.values():
            while len(node.brain.mesh.directory.members) < len(self.nodes) - 1:
                await world.pass_time(0.1)

    async def fetch(self, what: str, into: store.Models, *join: str, **options: object) -> obtain.Obtained:
        """Through the nodes of these names, or the first."""
        await self.met()
        names = join or tuple(self.nodes)[:1]
        rate = options.pop("download_mbit_s_max", 0)
        settings = config.Node(
            join=tuple(memory.address(self.nodes[one].id) for one in names), download_mbit_s_max=rate
        )
        who = keys.Identity(b"guest".ljust(keys.SEED_BYTES, b"."))
        link = self.network.transport(who)
        return await obtain.obtain(what, into, settings, identity=who, transport=link, runner=hands.at_once, **options)


@asynccontextmanager
async def mesh(delay_s: tuple[float, float] = (0.001, 0.004)) -> AsyncIterator[Mesh]:
    async with trio.open_nursery() as nursery:
        yield Mesh(nursery, memory.Network(random.Random(1), delay_s))
        nursery.cancel_scope.cancel()
