"""One planned move, measured from outside: the owner is told to hand over in mid-answer, and the answer is compared.

The pause is the client's: from the last token of the old owner to the first of the new one. The milestones inside the
mesh come from the two nodes' notes, whose clocks are this machine's.
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
    """Between the old owner's last token and the new one's first, at the client."""
    step_s: float
    """Between two tokens of the undisturbed answer, the median."""
    other_gap_s: float
    """The longest wait for another token of this answer: what the copying cost the owner."""
    copy_s: float
    """From the order to the stop; -1 where the notes are gone."""
    switch_s: float
    """From the stop to the new owner's first token drawn."""
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
    later = [at for at in answer.times if at >= moves[-1].at]
    if len(moves) < 2 or not later:
        raise errors.ConfigError("the session did not move while its answer ran")
    first = answer.times.index(later[0])
    gaps = [after - before for before, after in pairwise(answer.times)]
    asked_at = trio.current_time()
    statuses = {}
    for event in moves[-2:]:
        assert isinstance(event.item, Moved)
        node = nodes.by_id(ids.peer_text(event.item.host))
        statuses[event.item.host] = await trio.to_thread.run_sync(node.status)
    name = session.id.hex()
    notes = [note for status in statuses.values() for note in status["notes"] if note["session"] == name]
    at = {note["what"]: asked_at - note["age_s"] for note in sorted(notes, key=lambda note: -note["age_s"])}
    assert session.host is not None
    row = next(one for one in statuses[session.host]["sessions"] if one["id"] == name)
    handed = [note["detail"] for note in notes if note["what"] == "handed over"]
    return Report(
        tokens=len(answer.ids),
        lost=max(0, row["tokens"] - len(set(answer.seqs))),
        repeated=len(answer.seqs) - len(set(answer.seqs)),
        equal=answer.ids == reference.ids,
        pause_s=round(gaps[first - 1], 4) if first else -1.0,
        step_s=round(median(after - before for before, after in pairwise(reference.times)), 4),
        other_gap_s=round(max(gaps[: max(0, first - 1)] + gaps[first:], default=0.0), 4),
        copy_s=_between(at, "moving", "handed over"),
        switch_s=_between(at, "handed over", "first token"),
        pages_restored=row["pages_restored"] or 0,
        rounds=handed[-1] if handed else "",
    )


def _between(at: Mapping[str, float], begin: str, end: str) -> float:
    return round(at[end] - at[begin], 4) if begin in at and end in at else -1.0
