"""Real nodes on this machine: processes, sockets and data folders of their own, for the demo, the benches and tests.

All nodes start at once and find each other through a join file that the first one writes, which is also how a
composed mesh starts.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from meshnode import control, errors

START_S_MAX = 240.0
"""Seconds for all nodes to be up; the first start of a user fetches a model."""
POLL_S = 0.05


@dataclass
class Process:
    """One node."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    popen: subprocess.Popen[bytes] | None = None
    id: str = ""
    addresses: tuple[str, ...] = ()

    def start(self) -> None:
        """Start it, or start it again."""
        assert self.popen is None or self.popen.poll() is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / control.CARD).unlink(missing_ok=True)
        with (self.folder / "output").open("ab") as output:
            command = [sys.executable, "-m", "meshnode", "up", "--plain", "--leash", *self.arguments]
            self.popen = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.PIPE)

    def signal(self, number: int) -> None:
        """SIGKILL, SIGSTOP, SIGCONT, SIGTERM: to this process only."""
        assert self.popen is not None
        self.popen.send_signal(number)
        if number == signal.SIGKILL:
            self.popen.wait()

    def status(self) -> dict[str, Any]:
        """What it says of itself. Raises ConfigError if it does not answer."""
        return control.ask(self.folder, {"do": "status"})

    def output(self) -> str:
        """The end of what it printed."""
        with contextlib.suppress(OSError):
            return (self.folder / "output").read_text(errors="replace")[-2000:]
        return ""


class Cluster:
    """Some nodes on loopback."""

    def __init__(self, folder: Path, count: int, settings: Sequence[str]) -> None:
        self.folder = folder
        join = folder / "join"
        self.nodes = []
        for number in range(count):
            name = f"node{number + 1}"
            own = ("--join-out", str(join)) if number == 0 else ("--join-file", str(join))
            listen = ("--listen", "/ip4/127.0.0.1/tcp/0")
            arguments = ("--data", str(folder / name), "--name", name, *listen, *own, *settings)
            self.nodes.append(Process(name, folder / name, arguments))

    @property
    def bootstrap(self) -> list[str]:
        """An address of every node."""
        return [address for node in self.nodes for address in node.addresses]

    def by_id(self, name: str) -> Process:
        """The node with this peer id."""
        return next(node for node in self.nodes if node.id == name)

    async def wait_up(self, node: Process) -> None:
        """Until the node answers. Raises ConfigError with what it printed if it ends."""
        assert node.popen is not None
        while not (node.folder / control.CARD).exists():
            if node.popen.poll() is not None:
                raise errors.ConfigError(f"{node.name} ended with {node.popen.returncode}: {node.output().strip()}")
            await trio.sleep(POLL_S)
        card = control.card(node.folder)
        node.id, node.addresses = card["id"], tuple(card["addresses"])

    async def wait_meshed(self) -> None:
        """Until every running node hears every other."""
        running = [node for node in self.nodes if node.popen is not None and node.popen.poll() is None]
        for node in running:
            while True:
                status = await trio.to_thread.run_sync(node.status)
                if sum(peer["alive"] and peer["linked"] for peer in status["peers"]) >= len(running) - 1:
                    break
                await trio.sleep(POLL_S)

    def stop(self) -> None:
        """End every process that this cluster started."""
        for node in self.nodes:
            if node.popen is not None and node.popen.poll() is None:
                node.popen.kill()  # also ends a stopped one
                node.popen.wait()


@asynccontextmanager
async def cluster(
    count: int = 3, settings: Sequence[str] = (), on_up: Callable[[Process], None] = lambda node: None
) -> AsyncIterator[Cluster]:
    """Nodes that have met, in a temporary folder that goes with them. Raises ConfigError."""
    folder = Path(tempfile.mkdtemp(prefix="meshnode-"))
    some = Cluster(folder, count, settings)
    try:
        for node in some.nodes:
            node.start()
        with trio.move_on_after(START_S_MAX) as patience:
            for node in some.nodes:
                await some.wait_up(node)
                on_up(node)
            await some.wait_meshed()
        if patience.cancelled_caught:
            last = "; ".join(f"{node.name}: {node.output().strip()[-300:]}" for node in some.nodes)
            raise errors.ConfigError(f"the nodes were not up within {START_S_MAX:.0f} s: {last}")
        yield some
    finally:
        some.stop()
        shutil.rmtree(folder, ignore_errors=True)
