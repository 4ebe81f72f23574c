"""The bench's table: every figure beside its target, and nothing left out on either side."""

from __future__ import annotations

import pytest

import bench
from bench import __main__ as runner


def test_a_figure_stands_beside_its_target_and_says_whether_it_is_met() -> None:
    table = {
        row[0]: row[1:] for row in runner.rows("transport", {"page_stream_mb_s": 120.0, "control_rtt_p99_ms": 25.5})
    }
    assert table == {
        "page_stream_mb_s": ("120", "≥ 100", "met"),
        "control_rtt_p99_ms": ("25.5", "≤ 20", "missed"),
    }


def test_what_was_not_measured_is_said() -> None:
    assert ("page_stream_mb_s", "not measured", "≥ 100", "") in runner.rows("transport", {})


def test_a_figure_without_a_target_is_shown_too() -> None:
    assert ("pages", "12", "", "") in runner.rows("transport", {"pages": 12.0})


def test_a_figure_that_only_stands_beside_ours_is_neither_met_nor_missed() -> None:
    assert ("stateless_gap_3000_s", "9", "beside ours", "") in runner.rows("failover", {"stateless_gap_3000_s": 9.0})


@pytest.mark.parametrize(("figure", "met"), [(0.0, True), (1.0, False)])
def test_a_count_of_faults_is_met_by_zero_alone(figure: float, met: bool) -> None:
    assert bench.NONE.met(figure) is met


def test_the_machine_is_described_by_what_the_figures_depend_on() -> None:
    facts = runner.machine()
    assert facts["cores"] >= 1
    assert facts["memory_gib"] > 0
    assert facts["processor"]
