"""What the owner of a node may tell it over the control socket: stop, drain, move a session.

An order is judged here, so that the terminal gets its refusal at once, and carried out by the brain, as an event like
any other. What became of it is read from `status`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshnode import ids, peer
from meshnode.ids import PeerId
from meshnode.sessions import moves

PATIENCE_S = 20.0
"""A drain's own, before what can move must move."""
PATIENCE_S_MAX = 86400.0


def carry_out(
    brain: peer.Peer, submit: Callable[[moves.Order], None], request: dict[str, Any], now: float
) -> dict[str, Any] | None:
    """The answer to an order, or None for a request that is none. A refusal stands under `error`."""
    match request.get("do"):
        case "drain":
            asked = request.get("patience_s", PATIENCE_S)
            if not isinstance(asked, int | float) or not 0 <= asked <= PATIENCE_S_MAX:
                return {"error": f"patience_s must be 0 to {PATIENCE_S_MAX:.0f}"}
            submit(moves.Drain(float(asked)))
            return {"ordered": True}
        case "undrain":
            submit(moves.Undrain())
            return {"ordered": True}
        case "migrate":
            return _migrate(brain, submit, request, now)
        case _:
            return None


def _migrate(
    brain: peer.Peer, submit: Callable[[moves.Order], None], request: dict[str, Any], now: float
) -> dict[str, Any]:
    prefix, to = str(request.get("session", "")), str(request.get("to", ""))
    found = [session for session in brain.sessions.members if session.hex().startswith(prefix.lower())]
    if not prefix or len(found) != 1:
        return {"error": f"{len(found)} sessions here have an id that begins with {prefix!r}; name one of them"}
    member = brain.sessions.members[found[0]]
    target = _peer(brain, to) if to else None
    if to and target is None:
        return {"error": f"no node here is called {to!r}; `meshnode peers` lists them"}
    brain.sessions.moves.able = brain.able(now)
    if refusal := brain.sessions.moves.refusal(member, target):
        where = f" ({ids.peer_text(member.host)})" if member.serving is None and member.host is not None else ""
        return {"error": f"session {found[0].hex()[:8]} cannot move: {refusal}{where}"}
    submit(moves.Migrate(found[0], target, bool(request.get("stop_first"))))
    chosen = target or brain.sessions.moves.target(member)
    assert chosen is not None
    return {"session": found[0].hex(), "to": ids.peer_text(chosen), "epoch": member.voter.epoch}


def _peer(brain: peer.Peer, called: str) -> PeerId | None:
    """By name, by id, or by the id's end as listings show it; None if that is nobody or several."""
    members = brain.mesh.directory.members
    named = [one for one, member in members.items() if member.advert.name == called]
    listed = [one for one in members if ids.peer_text(one).endswith(called)]
    found = named or listed
    return found[0] if len(found) == 1 else None


def drain(brain: peer.Peer) -> dict[str, Any]:
    """How far a drain is: what still runs here, and why."""
    left = brain.sessions.moves.left(brain.sessions.members.values())
    return {
        "draining": brain.sessions.moves.draining,
        "left": [
            {"session": one.session.hex(), "moving": one.moving, "able": one.able, "why": one.why} for one in left
        ],
    }
