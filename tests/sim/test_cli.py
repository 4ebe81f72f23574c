"""`meshnode sim` as it is typed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from meshnode import cli
from meshnode.sim import world
from meshnode.sim.checkers import Violation


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["sim", *words])


def test_a_world_says_its_options_first_and_its_digest_last() -> None:
    first, last = typed("--seed", "3").stdout.splitlines()
    assert first.startswith("seed 3: nodes=")
    assert "digest" in last
    assert typed("--seed", "3").stdout.splitlines()[-1] == last


def test_a_trace_shows_steps() -> None:
    shown = typed("--seed", "3", "--trace").stdout
    assert "Replicate(" in shown
    assert "* healed" in shown


def test_a_campaign_sums_up() -> None:
    done = typed("--seeds", "20", "--jobs", "1", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (found["seeds"], found["violations"]) == (20, [])
    assert found["marks"]["session born"] == 20
    assert len(found["digest"]) == 32


def test_a_failure_is_three_lines_and_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: world.World) -> None:
        raise Violation("never", "it was")

    monkeypatch.setattr(world.World, "run", broken)
    done = typed("--seed", "3", "--options", "nodes=2 loss=0.1")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "seed 3: nodes=2 loss=0.1",
        "violated: never: it was (at 0.000 s)",
        "seed 3: nodes=2 loss=0.1",
        "replay: meshnode sim --seed 3 --options 'nodes=2 loss=0.1' --trace",
    ]


@pytest.mark.parametrize("words", [(), ("--seed", "1", "--seeds", "2"), ("--seed", "1", "--options", "speed=9")])
def test_what_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    assert typed(*words).exit_code != 0
