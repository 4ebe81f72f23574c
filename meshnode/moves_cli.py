"""The commands that move sessions: drain, undrain, down, sessions migrate."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode import control, errors, shown
from meshnode.commands import Data, Json, said

POLL_S = 0.1
MOVE_S_MAX = 120.0
"""How long `sessions migrate` waits to see the session elsewhere."""
DOWN_S = 30.0
"""How long `down` waits for a drain, unless it is told otherwise."""
STOP_S_MAX = 30.0

out = shown.out


def _asked(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The node's answer. Raises ConfigError for a refusal, too."""
    answer = control.ask(folder, request)
    if "error" in answer:
        raise errors.ConfigError(answer["error"])
    return answer


def _progress(found: dict[str, Any]) -> str:
    left = found["left"]
    first = f"; {left[0]['session'][:8]}: {left[0]['why']}" if left else ""
    return f"{len(left)} session(s) left, {sum(one['moving'] for one in left)} moving{first}"


def _begin(folder: Path, patience_s: float) -> dict[str, Any]:
    """Order a drain, and look how far it is once the order was heard."""
    _asked(folder, {"do": "drain", "patience_s": patience_s})
    time.sleep(POLL_S)
    return _state(folder)


def _state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = control.ask(folder, {"do": "status"})["drain"]
    return found


def _drained(folder: Path, patience_s: float, until: float) -> dict[str, Any]:
    """Wait for the drain to end, or for `until` (monotonic); says how it gets on. The last state."""
    said_last = ""
    found = _begin(folder, patience_s)
    while any(one["able"] for one in found["left"]) and time.monotonic() < until:
        if (words := _progress(found)) != said_last:
            shown.err.print(words)
            said_last = words
        time.sleep(POLL_S)
        found = _state(folder)
    return found


@said
def drain(
    data: Data = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing that can move is left here.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds before what can move must, in mid-answer too.")] = 20.0,
    as_json: Json = False,
) -> None:
    """Hand all sessions over to other nodes and take no new ones; `undrain` ends it."""
    folder = control.data_folder(data)
    found = _drained(folder, patience, float("inf")) if wait else _begin(folder, patience)
    if as_json:
        print(json.dumps(found))
        return
    out.print("draining; " + _progress(found) if found["left"] else "drained: no session runs here, and none will come")


@said
def undrain(data: Data = "") -> None:
    """Take sessions again."""
    _asked(control.data_folder(data), {"do": "undrain"})
    out.print("this node takes sessions again")


@said
def down(
    data: Data = "",
    now: Annotated[bool, typer.Option("--now", help="Do not hand sessions over; others will take them over.")] = False,
    patience: Annotated[float, typer.Option(help="Longest wait for sessions to move, in seconds.")] = DOWN_S,
) -> None:
    """Stop the node of this data folder, after handing its sessions over."""
    folder = control.data_folder(data)
    if not now:
        left = _drained(folder, patience / 2, time.monotonic() + patience)["left"]
        if left:
            shown.err.print(f"{len(left)} session(s) still ran here: {left[0]['why']}")
    control.ask(folder, {"do": "down"})
    until = time.monotonic() + STOP_S_MAX
    while (folder / control.CARD).exists():
        if time.monotonic() >= until:
            hint = f"its process id is in {folder / control.CARD}"
            raise errors.ConfigError(f"the node did not stop within {STOP_S_MAX:.0f} s", hint=hint)
        time.sleep(POLL_S)
    out.print("stopped")


def _moved(folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """The session's row once it has a later owner, empty if it is over. Raises ConfigError if the move fails."""
    until = time.monotonic() + MOVE_S_MAX
    while time.monotonic() < until:
        time.sleep(POLL_S)
        rows: list[dict[str, Any]] = control.ask(folder, {"do": "status"})["sessions"]
        row = next((one for one in rows if one["id"] == order["session"]), None)
        if row is None or (row["epoch"] > order["epoch"] and row["host"]):
            return row or {}
        if row["move_refusal"]:
            raise errors.ConfigError(f"the move was called off: {row['move_refusal']}")
    raise errors.ConfigError(f"the session was still here after {MOVE_S_MAX:.0f} s", hint="see `meshnode status`")


@said
def migrate(
    session: Annotated[str, typer.Argument(help="The session's id, or how it begins.")],
    to: Annotated[str, typer.Option("--to", help="Name or id of a replica; the default is the best one.")] = "",
    data: Data = "",
    as_json: Json = False,
) -> None:
    """Move a session that runs here to a replica, in mid-answer if need be."""
    folder = control.data_folder(data)
    order = _asked(folder, {"do": "migrate", "session": session, "to": to})
    row = _moved(folder, order)
    host = row.get("host")
    if as_json:
        print(json.dumps({"session": order["session"], "host": host, "epoch": row.get("epoch")}))
        return
    out.print(f"{order['session'][:8]} runs on {host}" if host else f"{order['session'][:8]} is over")
