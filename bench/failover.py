"""How long a killed host is a pause, and what is lost, repeated or changed by it.

Three node processes on loopback; the client stands outside. The host of a running answer gets SIGKILL (or SIGSTOP) at
a moment drawn uniformly from the decoding; the gap is from the signal to the next token of the new host, at the
client. Beside it, in the same run, what a stateless client would do: notice just as fast, open a new session on a
survivor and send the whole history again, which is prefilled there. Kills during prefill are counted apart: nothing
was shown yet, and the new host starts over from the replicated turn.

Not measured here: a cut cable (`cut_gap_p95_s` needs network namespaces).
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence

import trio

import bench
from bench import _story
from meshnode import client, cluster, errors, failover, manifest

CONTEXTS = (256, 1024, 3000)
ANSWER_TOKENS = 64
SETTINGS = ("--memory-mib", "512", "--threads", "2")
SEED = 20261123


def run(quick: bool, runs: int) -> dict[str, float]:
    """`runs` kills for each context; with `quick` two contexts, and one blow of each other kind."""
    try:
        return trio.run(_measure, quick, runs)
    except* errors.ConfigError as group:
        raise bench.CannotMeasure(str(group.exceptions[0])) from None


async def _measure(quick: bool, runs: int) -> dict[str, float]:
    figures = _Figures()
    async with cluster.cluster(3, SETTINGS) as nodes:
        contexts = (CONTEXTS[0], CONTEXTS[-1]) if quick else CONTEXTS
        for context in contexts:
            bed = await _Bed.prepared(nodes, context)
            figures.stateless[context].append(bed.first_token_s)
            for number in range(1 if quick else runs):
                await bed.strike(figures, "sigkill", number)
                if not quick:
                    figures.stateless[context].append(await bed.stateless())
            if context == contexts[0 if quick else 1]:
                for number in range(1 if quick else max(1, runs // 2)):
                    await bed.strike(figures, "sigstop", 100 + number)
                    await bed.strike(figures, "prefill", 200 + number)
        bed = await _Bed.prepared(nodes, CONTEXTS[0], kind="synchronous")
        for number in range(1 if quick else max(1, runs // 2)):
            await bed.strike(figures, "sync", 300 + number)
    return figures.table()


class _Figures:
    """Everything seen so far."""

    def __init__(self) -> None:
        self.gaps: dict[str, list[float]] = defaultdict(list)
        self.by_context: dict[int, list[float]] = defaultdict(list)
        self.stateless: dict[int, list[float]] = defaultdict(list)
        self.detected: list[float] = []
        self.lost = self.repeated = self.unequal = 0

    def add(self, how: str, context: int, report: failover.Report) -> None:
        self.gaps[how].append(report.gap_s)
        if how == "sigkill":
            self.by_context[context].append(report.gap_s)
            self.detected.append(max(0.0, report.detected_s))
        self.lost += report.lost
        self.repeated += report.repeated
        self.unequal += not report.equal
        print(
            f"{how:8} context {context:5} watermark {report.watermark_pages:3} pages"
            f" restored {report.pages_restored:3} recomputed {report.tokens_recomputed:5} after {report.killed_after:3}"
            f" detected {report.detected_s:6.3f} gap {report.gap_s:6.3f} s"
            f" lost {report.lost} repeated {report.repeated} equal {report.equal}",
            file=sys.stderr,
            flush=True,
        )

    def table(self) -> dict[str, float]:
        low, high = CONTEXTS[0], CONTEXTS[-1]
        detected = statistics.median(self.detected)
        medians = {context: statistics.median(gaps) for context, gaps in self.by_context.items()}
        stateless = {context: detected + statistics.median(found) for context, found in self.stateless.items()}
        return {
            "sigkill_gap_p50_s": statistics.median(self.gaps["sigkill"]),
            "sigkill_gap_p95_s": _p95(self.gaps["sigkill"]),
            "sigstop_gap_p95_s": _p95(self.gaps["sigstop"]),
            "sync_sigkill_gap_p50_s": statistics.median(self.gaps["sync"]),
            "gap_3000_minus_256_s": medians[high] - medians[low],
            "stateless_gap_3000_s": stateless[high],
            "lost": self.lost,
            "repeated": self.repeated,
            "unequal": self.unequal,
            **{f"gap_{context}_p50_s": gap for context, gap in medians.items()},
            **{f"stateless_gap_{context}_s": gap for context, gap in stateless.items() if context != high},
            "prefill_kill_gap_p50_s": statistics.median(self.gaps["prefill"]),
            "kills": sum(map(len, self.gaps.values())),
        }


class _Bed:
    """One context length: a prompt, and the undisturbed answer to it."""

    def __init__(self, nodes: cluster.Cluster, context: int, wants: manifest.Manifest, prompt: str) -> None:
        self.nodes = nodes
        self.context = context
        self.wants = wants
        self.prompt = prompt
        self.reference = failover.Answer()
        self.first_token_s = 0.0

    @classmethod
    async def prepared(cls, nodes: cluster.Cluster, context: int, kind: str = "interactive") -> _Bed:
        wants = manifest.read(
            {
                "characteristics": {"kind": kind, "context_tokens": context + ANSWER_TOKENS + 64},
                "migration": {"replicas_min": 1},
                "agent": {"max_tokens": ANSWER_TOKENS, "temperature": 0.8, "seed": SEED},
            }
        )
        bed = cls(nodes, context, wants, _story.prompt(context, SEED))
        async with client.connect(nodes.bootstrap) as mesh, mesh.session(wants) as session:
            began = trio.current_time()
            bed.reference = await failover.undisturbed(session, bed.prompt)
            bed.first_token_s = bed.reference.times[0] - began
        if len(bed.reference.ids) < 8:
            raise bench.CannotMeasure(f"the model answers {context} tokens of context with fewer than 8")
        return bed

    async def stateless(self) -> float:
        """A new session for the same history: until its first token."""
        async with client.connect(self.nodes.bootstrap) as mesh, mesh.session(self.wants) as session:
            began = trio.current_time()
            async for _ in session.say(self.prompt, max_tokens=1):
                return float(trio.current_time() - began)
        raise bench.CannotMeasure("a fresh session gave no token")

    async def strike(self, figures: _Figures, how: str, number: int) -> None:
        """One answer whose host is hit, and the host's return."""
        dice = random.Random(f"{SEED} {self.context} {how} {number}")
        count = len(self.reference.ids)
        after = 0 if how == "prefill" else dice.randrange(2, count - 4)
        pace = (self.reference.times[-1] - self.reference.times[0]) / max(1, count - 1)
        delay = dice.uniform(0.0, 0.8 * self.first_token_s if how == "prefill" else pace)
        what = signal.SIGSTOP if how == "sigstop" else signal.SIGKILL
        async with client.connect(self.nodes.bootstrap) as mesh, mesh.session(self.wants) as session:
            await session.wait_moved(1)
            answer, struck_at, before = await failover.disturbed(
                self.nodes, session, self.prompt, after, kill_delay_s=delay, number=what
            )
            report = await failover.report(self.nodes, session, self.reference, answer, struck_at, before)
        figures.add(how, self.context, report)
        hit = next(one for one in self.nodes.nodes if one.id == before["id"])
        if how == "sigstop":
            hit.signal(signal.SIGCONT)
        else:
            hit.start()
            await self.nodes.wait_up(hit)
        await self.nodes.wait_meshed()


def _p95(found: Sequence[float]) -> float:
    """The nearest rank: with few runs, the worst."""
    ranked = sorted(found)
    return ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
