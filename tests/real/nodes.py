"""Transports in processes of their own, for what only a real process can do: die, stop, and have a full socket.

Run as `python -m tests.real.nodes NAME LISTEN ROLE`: prints its first address, then obeys the role for ever.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from meshnode.net import libp2p
from meshnode.ports import Frame, Lane
from tests.net import meshes

ROOT = Path(__file__).resolve().parents[2]
ANYWHERE = "/ip4/127.0.0.1/tcp/0"


class Node:
    """A child process, killed when the test ends."""

    def __init__(self, process: trio.Process, name: str, address: str) -> None:
        self.process = process
        self.me = meshes.identity(name).peer
        self.addresses = (address,)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def child(name: str, role: str = "echo", listen: str = ANYWHERE) -> AsyncIterator[Node]:
    command = [sys.executable, "-m", "tests.real.nodes", name, listen, role]
    process = await trio.lowlevel.open_process(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        with trio.fail_after(30):
            address = await _line(process)
        yield Node(process, name, address)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()


@contextlib.asynccontextmanager
async def here(name: str, listen: str = ANYWHERE) -> AsyncIterator[libp2p.Libp2pTransport]:
    """A transport in this process."""
    node = libp2p.Libp2pTransport(meshes.identity(name), [listen])
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        nursery.cancel_scope.cancel()


async def _line(process: trio.Process) -> str:
    text = b""
    assert process.stdout is not None
    while not text.endswith(b"\n"):
        chunk = await process.stdout.receive_some(1000)
        assert chunk, f"the child ended after {text!r}"
        text += chunk
    return text.decode().strip()


async def _obey(name: str, listen: str, role: str) -> None:
    async with here(name, listen) as node:
        print(node.addresses[0], flush=True)
        async for event in node.events:
            if role == "echo" and isinstance(event, Frame) and event.lane != Lane.BULK:
                await node.send(event.peer, event.lane, event.data)


if __name__ == "__main__":
    trio.run(_obey, *sys.argv[1:4])
