"""Claims, measured: one file a claim, and the figure that each was aimed at.

A bench is `bench/NAME.py` with `run(quick: bool, runs: int) -> dict[str, float]`. It measures and judges nothing: what
a figure is worth is read beside its target in the table below, by a person. A bench that turned red at a missed target
would soon have the target moved, or the machine blamed.

Not refused here: a figure without a target (it is printed all the same). Refused: a figure from one run alone where
peers are compared; `run` interleaves them and gives medians and ratios.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


class CannotMeasure(Exception):
    """The machine lacks what the bench needs. Says what; the only reason for which a bench exits non-zero."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure was aimed at."""

    words: str
    """As the table shows it."""
    at_most: float | None = None
    at_least: float | None = None

    def met(self, figure: float) -> bool:
        """Whether the figure is where it should be. A target that only stands beside another figure is always met."""
        return (self.at_most is None or figure <= self.at_most) and (self.at_least is None or figure >= self.at_least)


def say(words: str) -> None:
    """How far a long measurement is. On standard error: what stands on the other is the figures."""
    print(words, file=sys.stderr, flush=True)


def at_most(value: float) -> Target:
    return Target(f"≤ {value:g}", at_most=value)


def at_least(value: float) -> Target:
    return Target(f"≥ {value:g}", at_least=value)


BESIDE = Target("beside ours")
NONE = Target("0", at_most=0)

RUNS = 5
RUNS_QUICK = 2
"""Unless --runs says otherwise. Fewer: a median of them is a lone time again. More: nobody runs it."""

TARGETS: dict[str, dict[str, Target]] = {
    "failover": {
        "sigkill_gap_p50_s": at_most(1.0),
        "sigkill_gap_p95_s": at_most(2.0),
        "sigstop_gap_p95_s": at_most(3.0),
        "cut_gap_p95_s": at_most(3.0),
        "sync_sigkill_gap_p50_s": at_most(0.25),
        "gap_3000_minus_256_s": at_most(0.15),
        "stateless_gap_3000_s": BESIDE,
        "lost": NONE,
        "repeated": NONE,
        "unequal": NONE,
    },
    "migrate": {
        "pause_steps": at_most(2),
        "pause_4000_over_256": at_most(1.2),
        "stop_and_copy_4000_s": BESIDE,
        "re_prefill_4000_s": BESIDE,
        "lost": NONE,
        "repeated": NONE,
        "unequal": NONE,
    },
    "decode": {
        "b1_over_llamacpp": at_least(1.0),
        "b1_at_2048_over_llamacpp": at_least(1.0),
        "b1_over_transformers": at_least(4.0),
        "b8_over_llamacpp": at_least(2.0),
        "b32_over_llamacpp": at_least(3.0),
    },
    "prefill": {
        "p2048_over_best_peer": at_least(1.5),
    },
    "ttft": {
        "shared_prefix_speedup": at_least(10),
    },
    "loop": {
        "control_rtt_p99_ms": at_most(20),
    },
    "exact": {
        "architectures": at_least(3),
        "prompts": at_least(20),
        "tokens": at_least(20_000),
        "unequal_tokens": NONE,
        "unequal_rows": NONE,
    },
    "memory": {
        "rss_over_parts": at_most(1.3),
    },
    "quality": {
        f"{numeric_class}_{figure}": BESIDE
        for numeric_class in ("f32", "bf16", "w8", "i8")
        for figure in ("perplexity", "agreement")
    },
    "sim": {
        "violations": NONE,
        "marks_missed": NONE,
        "speedup_streaming": at_least(50),
        "seeds_per_minute": at_least(1000),
    },
    "codec": {
        "ratio_page": at_least(1.42),
        "ratio_64": at_least(1.45),
        "ratio_page_over_zstd": at_least(1.10),
        "ratio_64_over_zipnn": at_least(1.0),
        "encode_mb_s": at_least(200),
        "decode_mb_s": at_least(500),
    },
    "transport": {
        "page_stream_mb_s": at_least(100),
        "control_rtt_p99_ms": at_most(20),
    },
}
