"""A move as its owner sees it: rounds, readiness, the stop, and everything that ends it otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshnode.sessions import migration
from meshnode.sessions.migration import Act, Leaving, Progress, Stage
from tests.sessions.cases import B

PAGE_BYTES = 1 << 20
AT_REST = Progress(
    sealed=0, acked=0, page_bytes=PAGE_BYTES, prefilling=False, busy=False, leased=True, last=20
)  # fmt: skip


def loading(now: float = 0.0) -> Leaving:
    move = Leaving(B, now)
    assert move.go_on(now, AT_REST) is Act.REQUEST
    assert move.stage is Stage.LOADING
    return move


def stopping(now: float = 0.0) -> Leaving:
    move = loading(now)
    move.on_ready(now, 20, 0, "")
    assert move.go_on(now, replace(AT_REST, busy=True)) is Act.STOP
    return move


def test_a_target_that_has_nearly_all_pages_loads_at_once() -> None:
    move = Leaving(B, 0.0)
    near = replace(AT_REST, sealed=100, acked=98)
    assert move.go_on(0.0, near) is Act.REQUEST
    assert move.rounds == 0


def test_a_round_is_over_when_the_pages_are_there_that_were_full_when_it_began() -> None:
    move = Leaving(B, 0.0)
    assert move.go_on(0.0, replace(AT_REST, sealed=100)) is None
    assert move.go_on(1.0, replace(AT_REST, sealed=104, acked=99)) is None
    assert move.rounds == 0
    assert move.go_on(2.0, replace(AT_REST, sealed=108, acked=100)) is None
    assert move.rounds == 1
    assert move.go_on(3.0, replace(AT_REST, sealed=110, acked=108)) is Act.REQUEST


def test_rounds_run_out_where_pages_fill_as_fast_as_they_go() -> None:
    move = Leaving(B, 0.0)
    for number in range(migration.ROUNDS_MAX + 1):
        act = move.go_on(float(number), replace(AT_REST, sealed=10 * (number + 1), acked=10 * number))
    assert act is Act.REQUEST
    assert move.rounds == migration.ROUNDS_MAX


def test_a_copy_that_stalls_leaves_the_rest_to_the_targets_engine() -> None:
    move = Leaving(B, 0.0)
    far = replace(AT_REST, sealed=100, acked=3)
    assert move.go_on(1.0, far) is None
    assert move.go_on(move.deadline - 0.1, far) is None
    assert move.go_on(move.deadline, far) is Act.REQUEST


def test_the_target_loads_after_the_owners_own_prefill() -> None:
    move = Leaving(B, 0.0)
    assert move.go_on(0.0, replace(AT_REST, prefilling=True)) is None
    assert move.go_on(99.0, replace(AT_REST, prefilling=True)) is None, "prefill is progress"
    assert move.go_on(99.0, AT_REST) is Act.REQUEST


def test_the_request_is_repeated_and_given_up_when_the_target_gets_no_nearer() -> None:
    move = loading()
    assert move.go_on(0.1, AT_REST) is None
    assert move.go_on(migration.REQUEST_S, AT_REST) is Act.REQUEST
    move.on_ready(9.0, 20, 500, "")
    assert move.go_on(migration.STALL_S + 1.0, AT_REST) is Act.REQUEST, "500 is nearer than nothing"
    move.on_ready(12.0, 20, 500, "")
    assert move.go_on(9.0 + migration.STALL_S, AT_REST) is Act.CALL_OFF
    assert "ready" in move.refusal


@pytest.mark.parametrize(
    ("seq", "behind", "act"),
    [
        (20, 0, Act.STOP),
        (20 - migration.LAG_ENTRIES_MAX, migration.LAG_TOKENS_MAX, Act.STOP),
        (19 - migration.LAG_ENTRIES_MAX, 0, None),
        (20, migration.LAG_TOKENS_MAX + 1, None),
    ],
)
def test_the_owner_stops_only_for_a_target_that_is_near_the_end_of_the_log(
    seq: int, behind: int, act: Act | None
) -> None:
    move = loading()
    move.on_ready(0.1, seq, behind, "")
    assert move.go_on(0.1, AT_REST) is act


def test_a_target_that_is_too_slow_to_get_nearer_is_near_enough_after_a_stall() -> None:
    move = loading()
    move.on_ready(1.0, 20, migration.NEAR_TOKENS_MAX, "")
    assert move.go_on(0.9 + migration.STALL_S, AT_REST) is Act.REQUEST
    assert move.go_on(1.0 + migration.STALL_S, AT_REST) is Act.STOP


def test_without_a_lease_the_owner_does_not_stop_and_does_not_refer() -> None:
    move = loading()
    move.on_ready(0.1, 20, 0, "")
    assert move.go_on(0.1, replace(AT_REST, leased=False)) is None
    move = stopping()
    assert move.go_on(0.1, replace(AT_REST, leased=False)) is Act.CALL_OFF
    assert "majority" in move.refusal


def test_the_owner_finishes_its_step_and_then_refers() -> None:
    move = stopping()
    assert move.go_on(0.1, replace(AT_REST, busy=True)) is None
    assert move.go_on(0.2, AT_REST) is Act.REFER


def test_an_engine_that_does_not_stop_ends_the_move() -> None:
    move = stopping()
    assert move.go_on(migration.STALL_S, replace(AT_REST, busy=True)) is Act.CALL_OFF


@pytest.mark.parametrize("make", [loading, stopping])
def test_a_target_that_refuses_ends_the_move(make: object) -> None:
    assert callable(make)
    move = make()
    move.on_ready(0.1, 20, 0, "no room")
    assert move.go_on(0.1, AT_REST) is Act.CALL_OFF
    assert move.refusal == "no room"
