"""How long a planned move is a pause, and how that grows with the context; what is lost, repeated or changed by it.

Three node processes on loopback; the client stands outside. In mid-answer the owner is told to hand the session to its
replica. The pause is the client's longest wait for a token between the old owner's stop and the new one's first draw;
without a move it is one step, so a move that nobody notices is 1.0 steps. Beside it, in the same run and interleaved:

- stop-and-copy: the owner stops first, then the target loads the pages that were streamed to it, then takes over;
- re-prefill: what a stateless client would wait for, a new session that is sent the whole history.

A decode step itself takes longer over a long context. `pause_4000_over_256` compares seconds, that growth included;
`pause_steps_4000_over_256` beside it compares pauses counted in steps of their own context.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict

import trio

import bench
from bench import _story
from meshnode import client, cluster, errors, failover, manifest, moving

CONTEXTS = (256, 1024, 4000)
ANSWER_TOKENS = 96
SETTINGS = ("--memory-mib", "768", "--threads", "2")
SEED = 20261124


def run(quick: bool, runs: int) -> dict[str, float]:
    """`runs` moves for each context and way; with `quick` two contexts."""
    try:
        return trio.run(_measure, quick, runs)
    except* errors.ConfigError as group:
        raise bench.CannotMeasure(str(group.exceptions[0])) from None


async def _measure(quick: bool, runs: int) -> dict[str, float]:
    figures = _Figures()
    async with cluster.cluster(3, SETTINGS) as nodes:
        beds = [await _Bed.prepared(nodes, one) for one in ((CONTEXTS[0], CONTEXTS[-1]) if quick else CONTEXTS)]
        for number in range(runs):
            for bed in beds:
                figures.add("move", bed.context, await bed.move(number))
                figures.add("stop", bed.context, await bed.move(number, stop_first=True))
                figures.prefill[bed.context].append(await bed.prefill())
    return figures.table()


class _Figures:
    """Everything seen so far."""

    def __init__(self) -> None:
        self.reports: dict[tuple[str, int], list[moving.Report]] = defaultdict(list)
        self.prefill: dict[int, list[float]] = defaultdict(list)

    def add(self, how: str, context: int, report: moving.Report) -> None:
        self.reports[how, context].append(report)
        bench.say(
            f"{how} {context:5}: pause {report.pause_s * 1000:7.1f} ms = {report.pause_steps:5.2f} steps of"
            f" {report.step_s * 1000:5.1f} ms; order to stop {report.copy_s:6.3f} s; after the stop: referred"
            f" {report.referred_s * 1000:5.1f}, elected {report.elected_s * 1000:5.1f}, first token"
            f" {report.first_token_s * 1000:5.1f} ms; other gap {report.other_gap_s * 1000:6.1f} ms;"
            f" pages {report.pages_restored}, {report.rounds}; lost {report.lost} repeated {report.repeated}"
            f" equal {report.equal}"
        )

    def table(self) -> dict[str, float]:
        low, high = CONTEXTS[0], CONTEXTS[-1]
        pause = {key: statistics.median(one.pause_s for one in found) for key, found in self.reports.items()}
        steps = {key: statistics.median(one.pause_steps for one in found) for key, found in self.reports.items()}
        prefill = {context: statistics.median(found) for context, found in self.prefill.items()}
        everything = [one for found in self.reports.values() for one in found]
        planned = [one for (how, _), found in self.reports.items() for one in found if how == "move"]
        return {
            "pause_steps": statistics.median(one.pause_steps for one in planned),
            "pause_4000_over_256": pause["move", high] / pause["move", low],
            "pause_steps_worst": max(one.pause_steps for one in planned),
            "pause_steps_4000_over_256": steps["move", high] / steps["move", low],
            "lost": sum(one.lost for one in everything),
            "repeated": sum(one.repeated for one in everything),
            "unequal": sum(not one.equal for one in everything),
            "moves": len(everything),
            **{f"pause_{context}_s": pause["move", context] for context in prefill},
            **{f"pause_{context}_steps": steps["move", context] for context in prefill},
            **{f"stop_and_copy_{context}_s": pause["stop", context] for context in prefill},
            **{f"re_prefill_{context}_s": found for context, found in prefill.items()},
            "stop_and_copy_4000_over_256": pause["stop", high] / pause["stop", low],
            "re_prefill_4000_over_256": prefill[high] / prefill[low],
        }


class _Bed:
    """One context length: a prompt, and the undisturbed answer to it."""

    def __init__(self, nodes: cluster.Cluster, context: int) -> None:
        self.nodes = nodes
        self.context = context
        self.wants = manifest.read(
            {
                "characteristics": {"context_tokens": context + ANSWER_TOKENS + 64},
                "migration": {"replicas_min": 1},
                "agent": {"max_tokens": ANSWER_TOKENS, "temperature": 0.8, "seed": SEED},
            }
        )
        self.prompt = _story.prompt(context, SEED)
        self.reference = failover.Answer()

    @classmethod
    async def prepared(cls, nodes: cluster.Cluster, context: int) -> _Bed:
        bed = cls(nodes, context)
        async with client.connect(nodes.bootstrap) as mesh, mesh.session(bed.wants) as session:
            bed.reference = await failover.undisturbed(session, bed.prompt)
        if len(bed.reference.ids) < ANSWER_TOKENS // 2:
            raise bench.CannotMeasure(f"the model answers {context} tokens of context with too few")
        return bed

    async def move(self, number: int, *, stop_first: bool = False) -> moving.Report:
        """One answer that moves. Early in it, since the load at the target takes a while beside the decoding."""
        after = random.Random(f"{SEED} {self.context} {number}").randrange(4, len(self.reference.ids) // 3)
        async with client.connect(self.nodes.bootstrap) as mesh, mesh.session(self.wants) as session:
            await session.wait_moved(1)
            answer = await moving.moved(self.nodes, session, self.prompt, {after: ""}, stop_first=stop_first)
            return await moving.report(self.nodes, session, self.reference, answer)

    async def prefill(self) -> float:
        """A new session for the same history: until its first token."""
        async with client.connect(self.nodes.bootstrap) as mesh, mesh.session(self.wants) as session:
            began = trio.current_time()
            async for _ in session.say(self.prompt, max_tokens=1):
                return float(trio.current_time() - began)
        raise bench.CannotMeasure("a fresh session gave no token")
