from __future__ import annotations

from pathlib import Path

import yaml

from meshnode import manifest

ROOT = Path(__file__).resolve().parent.parent


def test_the_manifest_that_the_readme_points_to_is_valid() -> None:
    wants = manifest.read(yaml.safe_load((ROOT / "examples" / "manifest.yaml").read_text()))
    assert wants.migration.loss_tokens_max == 0
    assert wants.agent.seed == 42


def test_the_example_agent_compiles() -> None:
    source = (ROOT / "examples" / "agent.py").read_text()
    compile(source, "agent.py", "exec")
