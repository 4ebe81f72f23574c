"""Weights over the mesh for real: processes, sockets, disks. One source is killed in the middle, another one lies."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from meshnode import cluster, config, driver, freight, hands, ids, obtain, peer
from meshnode.chunks import listing
from meshnode.machine import Introduced, Stocked
from meshnode.models import store
from meshnode.net import libp2p
from meshnode.wire import keys
from tests.chunks import shelves
from tests.models import small

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.Installed:
    """A model of some thirty chunks on the shelf that the nodes of a cluster share."""
    monkeypatch.setenv("MESHNODE_DATA", str(tmp_path / "there"))
    monkeypatch.setattr(small, "FFN", 8192)
    monkeypatch.setattr(small, "LAYERS", 20)
    _, installed = shelves.model(tmp_path / "there")
    assert installed.disk_bytes > 25 * listing.CHUNK_BYTES
    return installed


@asynccontextmanager
async def liar(models: store.Models, join: list[str]) -> AsyncIterator[driver.Driver]:
    """A node in this process that changes a byte of each chunk."""
    shelf = shelves.Liar(models)
    who = keys.Identity(b"liar".ljust(keys.SEED_BYTES, b"."))
    brain = peer.Peer(who, config.Node(name="liar", host=False), None, 1, random.Random(1))
    transport = libp2p.Libp2pTransport(who, ["/ip4/127.0.0.1/tcp/0"])
    pump = driver.Driver(brain, who, transport, freight=freight.Giver(shelf, hands.in_thread()))
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: transport.run(task_status=task_status))
        brain.mesh.addresses = transport.addresses
        nursery.start_soon(pump.run)
        pump.submit(Introduced(tuple(join)))
        pump.submit(Stocked(shelf.look()))
        yield pump
        nursery.cancel_scope.cancel()


async def test_a_model_comes_from_two_nodes_though_one_is_killed_and_a_third_lies(
    shared: store.Installed, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.toml"
    slow.write_text("[node]\nupload_mbit_s_max = 40\n")
    here = store.Models(tmp_path / "here")
    with trio.fail_after(cluster.START_S_MAX):
        async with cluster.cluster(2, ("--no-host", "--config", str(slow))) as nodes:
            killed = nodes.nodes[1]
            models = store.Models(shared.folder.parent)
            async with liar(models, nodes.bootstrap) as third:
                seen: list[float] = []

                def progress(what: str, done: int, of: int) -> None:
                    seen.append(trio.current_time())
                    if 3 * done > of > 0 and killed.popen is not None and killed.popen.poll() is None:
                        killed.signal(signal.SIGKILL)

                joined = config.Node(join=(*nodes.bootstrap, *third.transport.addresses))
                got = await obtain.obtain("tiny", here, joined, progress=progress)
    assert all((got.model.folder / one).read_bytes() == (shared.folder / one).read_bytes() for one in listing.FILES)
    assert got.model.digest == shared.digest
    given = {ids.peer_text(who): size for who, size in got.given_bytes.items()}
    assert given.keys() == {nodes.nodes[0].id, killed.id}
    assert 0 < given[killed.id] < shared.disk_bytes * 2 // 3
    assert got.dropped[third.identity.peer].startswith("sent a wrong chunk")


async def test_a_node_without_its_model_joins_fetches_it_and_hosts(
    shared: store.Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(cluster.START_S_MAX):
        async with cluster.cluster(1, ("--no-host",)) as nodes:
            monkeypatch.setenv("MESHNODE_DATA", str(tmp_path / "empty"))
            data = tmp_path / "fourth"
            joining = ("--join", nodes.bootstrap[0], *LISTEN)
            fourth = cluster.Process("fourth", data, ("--data", str(data), "--model", "tiny", *joining))
            nodes.nodes.append(fourth)
            fourth.start()
            await nodes.wait_up(fourth)
            status = await trio.to_thread.run_sync(fourth.status)
            assert (status["model"], status["model_digest"]) == ("tiny", shared.digest.hex())
            assert f"tiny is {shared.digest.hex()}, at 1 peer" in fourth.output()

            monkeypatch.setenv("MESHNODE_DATA", str(tmp_path / "third"))
            command = [sys.executable, "-m", "meshnode", "models", "fetch", shared.digest.hex(), "--name", "mine"]
            command += ["--join", fourth.addresses[0], "--json"]
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["name"], found["digest"]) == ("mine", shared.digest.hex())
    assert sum(one["bytes"] for one in found["given"]) == found["disk_bytes"] == shared.disk_bytes
    command = [sys.executable, "-m", "meshnode", "models", "list", "--json"]
    listed = json.loads((await trio.run_process(command, capture_stdout=True)).stdout)
    assert ("mine", shared.digest.hex()) in [(one["name"], one["digest"]) for one in listed["models"]]
    assert listed["broken_off"] == []
