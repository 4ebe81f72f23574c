"""How the owner's terminal talks to the owner's node: one line of JSON each way over a unix socket.

The socket lies in the data folder (or, where that path is too long for a socket's 108 bytes, in a private folder under
the system's temporary one); `node.json` beside the journal says where. Only the user who runs the node can open it,
so there is no password, and `meshnode status` needs neither libp2p nor torch and answers in a blink.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from meshnode import errors

if TYPE_CHECKING:  # loading trio takes longer than asking: only the answering side does
    import trio

REQUEST_BYTES_MAX = 4096
SOCKET_CHARS_MAX = 100
ANSWER_S_MAX = 5.0
CARD = "node.json"

Serve = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def served(folder: Path, card: dict[str, Any], answer: Serve) -> AsyncIterator[None]:
    """Answer requests while the block lasts; `node.json` appears once the socket listens, and goes with it."""
    import trio

    path = _socket_path(folder)
    path.unlink(missing_ok=True)
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    old = os.umask(0o177)
    try:
        await listening.bind(str(path))
    finally:
        os.umask(old)
    listening.listen(8)
    try:
        _announce(folder, {**card, "pid": os.getpid(), "socket": str(path)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, listening, answer)
            yield
            nursery.cancel_scope.cancel()
    finally:
        listening.close()
        for file in (path, folder / CARD):
            file.unlink(missing_ok=True)


def _announce(folder: Path, card: dict[str, Any]) -> None:
    fresh = folder / f"{CARD}.new"
    try:
        fresh.write_text(json.dumps(card))
        fresh.rename(folder / CARD)
    except OSError as error:
        raise errors.StoreError(f"{folder / CARD} cannot be written: {error.strerror}") from None


def data_folder(named: str) -> Path:
    """Where a node lives: the folder that was named, else the user's data folder of this system."""
    return Path(named).expanduser() if named else Path(platformdirs.user_data_dir("meshnode"))


def _socket_path(folder: Path) -> Path:
    path = folder / "control.sock"
    if len(str(path)) <= SOCKET_CHARS_MAX:
        return path
    return Path(tempfile.mkdtemp(prefix="meshnode-")) / "control.sock"


async def _accept(listening: trio.socket.SocketType, answer: Serve) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        while True:
            conn, _ = await listening.accept()
            nursery.start_soon(_converse, trio.SocketStream(conn), answer)


async def _converse(stream: trio.SocketStream, answer: Serve) -> None:
    import trio

    async with stream:
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(ANSWER_S_MAX):
            data = b""
            while not data.endswith(b"\n") and len(data) <= REQUEST_BYTES_MAX:
                chunk = await stream.receive_some(REQUEST_BYTES_MAX)
                if not chunk:
                    return
                data += chunk
            try:
                request = json.loads(data)
            except ValueError:
                request = {}
            reply = await answer(request if isinstance(request, dict) else {})
            await stream.send_all(json.dumps(reply).encode() + b"\n")


# -------------------------------------------------------------------------------------------------------------- caller


def card(folder: Path) -> dict[str, Any]:
    """What the node of this data folder says of itself. Raises ConfigError if none runs."""
    hint = f"start one with `meshnode up` (data folder {folder})"
    try:
        found: dict[str, Any] = json.loads((folder / CARD).read_text())
        return found
    except FileNotFoundError:
        raise errors.ConfigError("no node is running here", hint=hint) from None
    except (OSError, ValueError) as error:
        raise errors.ConfigError(f"{folder / CARD} cannot be read: {error}", hint=hint) from None


def ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """One request to the running node. Raises ConfigError if none runs, or it does not answer."""
    where = card(folder)
    try:
        with socket.socket(socket.AF_UNIX) as conn:
            conn.settimeout(ANSWER_S_MAX)
            conn.connect(where["socket"])
            conn.sendall(json.dumps(request).encode() + b"\n")
            with conn.makefile("rb") as file:
                reply: dict[str, Any] = json.loads(file.readline())
                return reply
    except (ConnectionRefusedError, FileNotFoundError):
        raise errors.ConfigError("no node is running here (the last one was killed)", hint="`meshnode up`") from None
    except (OSError, ValueError) as error:
        raise errors.ConfigError(f"the node (process {where.get('pid')}) does not answer: {error}") from None
