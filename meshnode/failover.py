"""One failover, measured from outside: open a session, kill its host in mid-answer, compare with an undisturbed answer.

The demo shows it, the bench repeats it. Everything is counted at the client; the timeline inside the mesh is asked
from the survivors afterwards, whose clocks are this machine's.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from meshnode import client, cluster, errors, ids
from meshnode.sessions.attach import Moved


@dataclass
class Answer:
    """An answer as it came."""

    ids: list[int] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    text: str = ""

    def add(self, token: client.Token) -> None:
        """One more token."""
        self.ids.append(token.id)
        self.seqs.append(token.seq)
        self.times.append(trio.current_time())
        self.text += token.text


@dataclass(frozen=True)
class Report:
    """What a disturbed answer cost."""

    tokens: int
    lost: int
    """Tokens in the session's log that the client did not get."""
    repeated: int
    """Tokens that came with a position that had come already."""
    equal: bool
    """Whether the answer is the undisturbed one, token by token."""
    gap_s: float
    """From the kill to the next token of the new host, at the client."""
    pages_restored: int
    tokens_recomputed: int
    watermark_pages: int
    """Pages that the replica had acknowledged when the host was killed."""
    context_tokens: int
    killed_after: int
    evidence: str
    """Why the new host held the old one for dead: reset or silence."""
    detected_s: float
    elected_s: float
    restored_s: float
    first_token_s: float

    def table(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


OnToken = Callable[[client.Token, bool], None]


async def undisturbed(session: client.Session, prompt: str) -> Answer:
    """The whole answer, nobody killed."""
    answer = Answer()
    async for token in session.say(prompt):
        answer.add(token)
    return answer


async def disturbed(
    nodes: cluster.Cluster,
    session: client.Session,
    prompt: str,
    kill_after: int,
    *,
    kill_delay_s: float = 0.0,
    number: int = signal.SIGKILL,
    on_token: OnToken = lambda token, after: None,
    on_kill: Callable[[cluster.Process], None] = lambda node: None,
) -> tuple[Answer, float, dict[str, Any]]:
    """Hit the host after so many tokens, and so much later. The answer, the time, and the host's status before."""
    answer = Answer()
    struck: dict[str, Any] = {}

    async def strike() -> None:
        await trio.sleep(kill_delay_s)
        assert session.host is not None
        node = nodes.by_id(ids.peer_text(session.host))
        before = await trio.to_thread.run_sync(node.status)
        struck.update(before, struck_at=trio.current_time())
        node.signal(number)
        on_kill(node)

    async with trio.open_nursery() as nursery:
        if kill_after == 0:
            nursery.start_soon(strike)
        async for token in session.say(prompt):
            answer.add(token)
            on_token(token, bool(struck))
            if len(answer.ids) == kill_after:
                nursery.start_soon(strike)
    return answer, struck["struck_at"], struck


async def report(
    nodes: cluster.Cluster,
    session: client.Session,
    reference: Answer,
    answer: Answer,
    struck_at: float,
    before: dict[str, Any],
) -> Report:
    """Count. Raises Refused if no survivor hosts the session."""
    name = session.id.hex()
    assert session.host is not None
    survivor = nodes.by_id(ids.peer_text(session.host))
    asked_at = trio.current_time()
    status = await trio.to_thread.run_sync(survivor.status)
    row = next((row for row in status["sessions"] if row["id"] == name and row["hosting"]), None)
    if row is None:
        raise errors.Refused(481, ["no survivor hosts the session"])
    moved_at = _moved_at(session, struck_at)
    after = [at for at in answer.times if at >= moved_at]
    notes = _notes(status, name, asked_at, struck_at)
    host: dict[str, Any] = next((one for one in before["sessions"] if one["id"] == name), {})
    return Report(
        tokens=len(answer.ids),
        lost=max(0, row["tokens"] - len(set(answer.seqs))),
        repeated=len(answer.seqs) - len(set(answer.seqs)),
        equal=answer.ids == reference.ids,
        gap_s=round((after[0] if after else trio.current_time()) - struck_at, 4),
        pages_restored=row["pages_restored"] or 0,
        tokens_recomputed=row["tokens_recomputed"] or 0,
        watermark_pages=max((host.get("pages_acked") or {}).values(), default=0),
        context_tokens=row["log_seq"],
        killed_after=sum(at < struck_at for at in answer.times),
        evidence=_evidence(status, name),
        **notes,
    )


def _moved_at(session: client.Session, struck_at: float) -> float:
    """When the client learned of the host that came after the blow."""
    later = [event.at for event in session.history if isinstance(event.item, Moved) and event.at >= struck_at]
    return later[0] if later else float("inf")


def _evidence(status: dict[str, Any], session: str) -> str:
    found = [note for note in status["notes"] if note["session"] == session and note["what"] == "detected"]
    return str(found[-1]["detail"]) if found else "none"


def _notes(status: dict[str, Any], session: str, asked_at: float, struck_at: float) -> dict[str, float]:
    """Milestones of the new host, in seconds after the blow; -1 for one that did not happen."""
    found = {"detected": -1.0, "elected": -1.0, "restored": -1.0, "first token": -1.0}
    for note in status["notes"]:
        at = asked_at - note["age_s"] - struck_at
        if note["session"] == session and note["what"] in found and at >= 0 and found[note["what"]] < 0:
            found[note["what"]] = round(at, 4)
    return {f"{what.replace(' ', '_')}_s": at for what, at in found.items()}
