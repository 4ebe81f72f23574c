"""What moves, what waits, what stays, and in which order: one table."""

from __future__ import annotations

import itertools

import pytest

from meshnode.manifest import Kind, Value
from meshnode.sessions import policy
from meshnode.sessions.policy import Phase, Standing, Urgency, Verdict

GIB = 1 << 30
CALL = Standing(Kind.SYNCHRONOUS, Phase.DECODE, 0, 0.05, 1.0)
CALL_QUIET = Standing(Kind.SYNCHRONOUS, Phase.IDLE, 0, 0.05, 1.0)
TUTOR = Standing(Kind.INTERACTIVE, Phase.DECODE, 10 << 20, 0.05, 1.0)
TUTOR_IDLE = Standing(Kind.INTERACTIVE, Phase.IDLE, 10 << 20, 0.05, 1.0)
RESEARCH = Standing(Kind.AUTONOMOUS, Phase.DECODE, 50 * GIB, 0.05, 1.0)
RESEARCH_COPIED = Standing(Kind.AUTONOMOUS, Phase.DECODE, 0, 0.05, 1.0)
RESEARCH_DEAR = Standing(Kind.AUTONOMOUS, Phase.DECODE, 50 * GIB, 0.05, 100.0)
SLOW_ANSWER = Standing(Kind.INTERACTIVE, Phase.DECODE, 0, 0.8, 1.0)
WORTHLESS = Standing(Kind.INTERACTIVE, Phase.IDLE, 1, 0.05, 0.0)

TABLE = (
    # a call in mid-sentence stays until the sentence is over, unless it must
    (CALL, Urgency.BETTER, Verdict.WAIT),
    (CALL, Urgency.DRAIN, Verdict.WAIT),
    (CALL, Urgency.MUST, Verdict.MOVE),
    (CALL_QUIET, Urgency.BETTER, Verdict.MOVE),
    # tutoring: idle at once; in mid-answer for a drain, but not for a slightly better place
    (TUTOR_IDLE, Urgency.BETTER, Verdict.MOVE),
    (TUTOR, Urgency.BETTER, Verdict.WAIT),
    (TUTOR, Urgency.DRAIN, Verdict.MOVE),
    (SLOW_ANSWER, Urgency.DRAIN, Verdict.WAIT),
    # gigabytes go when they must, or are there already, or the state is worth them
    (RESEARCH, Urgency.BETTER, Verdict.STAY),
    (RESEARCH, Urgency.DRAIN, Verdict.STAY),
    (RESEARCH, Urgency.MUST, Verdict.MOVE),
    (RESEARCH_COPIED, Urgency.BETTER, Verdict.MOVE),
    (RESEARCH_DEAR, Urgency.DRAIN, Verdict.MOVE),
    # nobody's time is spent on what is worth nothing
    (WORTHLESS, Urgency.DRAIN, Verdict.STAY),
    (WORTHLESS, Urgency.MUST, Verdict.MOVE),
)


@pytest.mark.parametrize(("of", "urgency", "verdict"), TABLE)
def test_the_verdict(of: Standing, urgency: Urgency, verdict: Verdict) -> None:
    assert policy.decide(of, urgency).verdict is verdict


def test_a_drain_moves_the_idle_first_then_the_answers_then_calls_and_gigabytes_last() -> None:
    these = [RESEARCH, CALL, TUTOR, TUTOR_IDLE]
    these.sort(key=lambda one: -policy.decide(one, Urgency.MUST).surplus)
    assert these == [TUTOR_IDLE, TUTOR, CALL, RESEARCH]


def test_of_two_equal_sessions_the_dearer_moves_first() -> None:
    dear = Standing(Kind.INTERACTIVE, Phase.IDLE, 0, 0.05, 5.0)
    cheap = Standing(Kind.INTERACTIVE, Phase.IDLE, 0, 0.05, 1.0)
    assert policy.decide(dear, Urgency.DRAIN).surplus > policy.decide(cheap, Urgency.DRAIN).surplus


def test_more_urgency_never_keeps_what_less_would_have_moved() -> None:
    moved = 0
    sizes, stops, worths = (0, GIB, 50 * GIB), (0.0, 0.05, 2.0), (0.0, 1.0, 50.0)
    for kind, phase, size, stop_s, worth in itertools.product(Kind, Phase, sizes, stops, worths):
        verdicts = [policy.decide(Standing(kind, phase, size, stop_s, worth), one).verdict for one in Urgency]
        first = verdicts.index(Verdict.MOVE)
        assert verdicts[first:] == [Verdict.MOVE] * (3 - first)
        moved += first == 0
    assert moved


def test_the_value_curve_counts_tokens_and_does_not_go_below_nothing() -> None:
    assert policy.worth(Value(1.0, 0.5), 10) == 6.0
    assert policy.worth(Value(1.0, -0.5), 10) == 0.0
