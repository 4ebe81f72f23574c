"""What a running node shows: one plain table, made from the brain without asking it to do anything."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import meshnode
from meshnode import ids, orders, peer
from meshnode.machine import Note
from meshnode.ports import Lane
from meshnode.sessions import messages
from meshnode.sessions.member import Member

NOTES_MAX = 256


@dataclass(slots=True)
class Journalist:
    """The last milestones, with their times."""

    began_at: float
    notes: deque[tuple[float, Note]] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))

    def note(self, now: float, note: Note) -> None:
        """Keep one."""
        self.notes.append((now, note))


def status(brain: peer.Peer, journalist: Journalist, counts: dict[str, int], now: float) -> dict[str, Any]:
    """Everything that `meshnode status --json` prints."""
    config, card = brain.mesh.config, brain.mesh.card
    return {
        "version": meshnode.__version__,
        "id": ids.peer_text(brain.me),
        "name": config.name,
        "zone": config.zone,
        "operator": config.operator,
        "addresses": list(brain.mesh.addresses),
        "model": card.model if card else None,
        "model_digest": card.model_digest.hex() if card else None,
        "numeric_class": card.numeric_class if card else None,
        "host": config.host,
        "vote": config.vote,
        "up_s": round(now - journalist.began_at, 3),
        "memory_free_mib": brain.bidder.free_bytes(now) >> 20,
        "peers": peers(brain, now),
        "sessions": sessions(brain),
        "drain": orders.drain(brain),
        "weights_given_mib": brain.sharing.given_bytes >> 20,
        "failover": _failover(brain, now),
        "notes": [
            {
                "age_s": round(now - at, 4),
                "what": note.what,
                "session": note.session.hex() if note.session else None,
                "detail": note.detail,
            }
            for at, note in journalist.notes
        ],
        "faults": dict(brain.faults),
        "frames": counts,
    }


def _failover(brain: peer.Peer, now: float) -> str:
    """Whether a session that is placed now would survive its host."""
    members = brain.mesh.directory.members
    alive = [members[one].advert for one in brain.mesh.directory.alive(now)]
    staying = [advert for advert in alive if not advert.draining]
    here = not brain.sessions.moves.draining
    voters = sum(advert.vote for advert in staying) + (brain.mesh.config.vote and here)
    hosts = sum(advert.host for advert in staying) + (brain.mesh.config.host and here)
    if voters >= 3 and hosts >= 2:
        return "sessions survive their host"
    return f"no failover: it needs 3 voting nodes and 2 hosts, there are {voters} and {hosts}"


def peers(brain: peer.Peer, now: float) -> list[dict[str, Any]]:
    """Members of the mesh as this node knows them."""
    alive = set(brain.mesh.directory.alive(now))
    return [
        {
            "id": ids.peer_text(who),
            "name": member.advert.name,
            "zone": member.advert.zone,
            "operator": member.advert.operator,
            "alive": who in alive,
            "linked": brain.mesh.linked(who, Lane.SIGNAL),
            "rtt_ms": None if member.rtt_s is None else round(member.rtt_s * 1000, 2),
            "host": member.advert.host,
            "vote": member.advert.vote,
            "models": [engine.model for engine in member.advert.engines],
            "memory_free_mib": member.advert.memory_bytes >> 20,
            "sessions": member.advert.sessions,
            "sessions_max": member.advert.sessions_max,
            "draining": member.advert.draining,
            "addresses": list(member.advert.addresses),
        }
        for who, member in sorted(brain.mesh.directory.members.items())
    ]


def _repair(member: Member) -> str:
    """What is missing and what is done about it; empty where all is well or this node does not own the session."""
    if member.serving is None:
        return "" if member.seating.seated else "catching up"
    if len(member.contract.seats) < 3:
        return "no failover: it was placed without replicas"
    return member.serving.repair.word


def sessions(brain: peer.Peer) -> list[dict[str, Any]]:
    """Sessions in which this node has a seat."""
    rows = []
    for session, member in brain.sessions.members.items():
        serving, move = member.serving, member.handover.leaving
        tokens = sum(isinstance(change, messages.Token) for change in member.voter.log.changes)
        rows.append(
            {
                "id": session.hex(),
                "kind": member.contract.manifest.characteristics.kind.value,
                "state": member.state.value,
                "role": member.seating.role,
                "hosting": serving is not None,
                "host": ids.peer_text(member.host) if member.host else None,
                "seats": [
                    {"peer": ids.peer_text(seat.peer), "role": seat.role} for seat in member.seating.current.seats
                ],
                "configuration": member.seating.current.number,
                "repair": _repair(member),
                "epoch": member.voter.epoch,
                "log_seq": member.voter.log.last,
                "released_seq": member.voter.released,
                "tokens": tokens,
                "pages_stored": len(brain.sessions.stored.get(session, ())),
                "pages_sealed": serving.hosting.pages.page_count if serving else None,
                "pages_acked": (
                    {ids.peer_text(one): serving.hosting.pages.watermark(one) for one in serving.hosting.replicas}
                    if serving
                    else None
                ),
                "moving_to": ids.peer_text(move.target) if move is not None else None,
                "move_stage": move.stage.value if move is not None else None,
                "move_refusal": member.handover.last_refusal,
                "pages_restored": serving.hosting.pages_restored if serving else None,
                "tokens_recomputed": serving.hosting.recomputed if serving else None,
            }
        )
    return rows
