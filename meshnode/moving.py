"""One planned move, measured from outside: the owner is told to hand over in mid-answer, and the answer is compared.

The pause is the client's: the longest wait for a token between the old owner's stop and the first token that the new
one draws. (Not the wait for its first word: that may be a token which the old one drew and did not release.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import trio

from meshnode import client, cluster, control, errors, failover, ids
from meshnode.sessions.attach import Moved


@dataclass(frozen=True)
class Report:
    """What one move cost."""

    tokens: int
    lost: int
    """Tokens in the session's log that the client did not get."""
    repeated: int
    equal: bool
    """Whether the answer is the undisturbed one, token by token."""
    pause_s: float
    """The longest wait for a token from the stop to the new owner's first draw, at the client."""
    step_s: float
    """Between two other tokens of this answer, the median: the same seconds of the same machine."""
    other_gap_s: float
    """The longest wait for another token of this answer: what the copying cost the owner."""
    copy_s: float
    """From the order to the stop; -1 where the notes are gone."""
    referred_s: float
    """From the stop to the target's hearing of it; the rest likewise."""
    elected_s: float
    first_token_s: float
    """Drawn, not shown yet."""
    pages_restored: int
    rounds: str

    @property
    def pause_steps(self) -> float:
        """The pause in decode steps. A wait without any move is 1."""
        return self.pause_s / self.step_s

    def table(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


async def moved(
    nodes: cluster.Cluster,
    session: client.Session,
    prompt: str,
    after: Mapping[int, str],
    *,
    stop_first: bool = False,
) -> failover.Answer:
    """The answer, with an order to move after each of these numbers of tokens, to the peer that is named ("" is the
    owner's choice). Raises ConfigError if the owner refuses."""
    answer = failover.Answer()

    async def ask(to: str) -> None:
        assert session.host is not None
        node = nodes.by_id(ids.peer_text(session.host))
        order = {"do": "migrate", "session": session.id.hex(), "to": to, "stop_first": stop_first}
        reply = await trio.to_thread.run_sync(control.ask, node.folder, order)
        if "error" in reply:
            raise errors.ConfigError(reply["error"])

    async with trio.open_nursery() as nursery:
        async for token in session.say(prompt):
            answer.add(token)
            if len(answer.ids) in after:
                nursery.start_soon(ask, after[len(answer.ids)])
    return answer


async def report(
    nodes: cluster.Cluster, session: client.Session, reference: failover.Answer, answer: failover.Answer
) -> Report:
    """Count. Raises ConfigError if the session did not move while the answer ran."""
    moves = [event for event in session.history if isinstance(event.item, Moved)]
    if len(moves) < 2 or answer.times[-1] <= moves[-1].at:
        raise errors.ConfigError("the session did not move while its answer ran")
    asked_at = trio.current_time()
    statuses = {}
    for event in moves[-2:]:
        assert isinstance(event.item, Moved)
        node = nodes.by_id(ids.peer_text(event.item.host))
        statuses[event.item.host] = await trio.to_thread.run_sync(node.status)
    name = session.id.hex()
    notes = [note for status in statuses.values() for note in status["notes"] if note["session"] == name]
    at = {note["what"]: asked_at - note["age_s"] for note in sorted(notes, key=lambda note: -note["age_s"])}
    if not {"handed over", "first token"} <= at.keys():
        raise errors.ConfigError("the nodes' notes of the move are gone")
    assert session.host is not None
    row = next(one for one in statuses[session.host]["sessions"] if one["id"] == name)
    handed = [note["detail"] for note in notes if note["what"] == "handed over"]
    gaps = list(pairwise(answer.times))
    moving = [later - earlier for earlier, later in gaps if later >= at["handed over"] and earlier <= at["first token"]]
    others = [later - earlier for earlier, later in gaps if later < at["handed over"] or earlier > at["first token"]]
    return Report(
        tokens=len(answer.ids),
        lost=max(0, row["tokens"] - len(set(answer.seqs))),
        repeated=len(answer.seqs) - len(set(answer.seqs)),
        equal=answer.ids == reference.ids,
        pause_s=round(max(moving), 4),
        step_s=round(median(others), 4),
        other_gap_s=round(max(others), 4),
        copy_s=_between(at, "moving", "handed over"),
        referred_s=_between(at, "handed over", "referred"),
        elected_s=_between(at, "handed over", "elected"),
        first_token_s=_between(at, "handed over", "first token"),
        pages_restored=row["pages_restored"] or 0,
        rounds=handed[-1] if handed else "",
    )


def _between(at: Mapping[str, float], begin: str, end: str) -> float:
    return round(at[end] - at[begin], 4) if begin in at and end in at else -1.0
