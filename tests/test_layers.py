"""The layers of ARCHITECTURE.md, checked: who may import whom, what stays out of the pure files, what an SDK drags in.

import-linter reads pyproject.toml for the layers. Purity is said here the other way round: every file is pure unless it
is named as an edge, so that a new file is held to it without anyone thinking of a list.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import importlinter.cli
import pytest

ROOT = Path(__file__).resolve().parent.parent

EDGES = {
    "cli", "sim", "gateway", "node", "client", "driver", "hands", "host", "net", "observe", "journal", "engine",
    "models", "__main__", "snapshots.store", "snapshots.stream", "control", "cluster", "failover", "demo", "talk",
    "shown", "freight", "obtain", "commands", "models_cli", "moves_cli", "sim_cli", "moving",
}  # fmt: skip
"""Packages and files that meet the world. All others are pure, and so are some files of the engine."""
PURE_IN_EDGES = {"engine.pages", "engine.prefix", "engine.memory", "engine.batcher", "engine.sampler", "engine.drawing"}
IMPURE = {
    "asyncio", "datetime", "fcntl", "libp2p", "multiaddr", "os", "secrets", "socket", "subprocess", "threading", "time",
    "torch", "trio", "uuid",
}  # fmt: skip
ABOVE_THE_SDK = {
    "cli", "sim", "gateway", "node", "host", "engine", "models", "__main__", "hands", "cluster", "failover", "demo",
    "talk", "observe", "freight", "obtain", "models_cli", "moves_cli", "sim_cli", "moving",
}  # fmt: skip
"""What an agent's developer does not import: all else, the driver of agents included, must work without torch."""


def modules() -> dict[str, Path]:
    """Every file of the package, by its dotted name below `meshnode`."""
    found = {}
    for path in sorted((ROOT / "meshnode").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "meshnode").with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = path
    return found


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def pure_modules() -> list[str]:
    return [name for name in modules() if name in PURE_IN_EDGES or not within(name, EDGES)]


def imports_at_runtime(tree: ast.AST) -> set[str]:
    """Top-level packages that a file imports, leaving out what stands under `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        found |= imports_at_runtime(node)
    return found


def test_no_layer_imports_from_above(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    code = importlinter.cli.lint_imports(no_logo=True)
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", pure_modules())
def test_a_pure_file_meets_no_clock_disk_or_network(name: str) -> None:
    tree = ast.parse(modules()[name].read_text())
    assert imports_at_runtime(tree) & IMPURE == set()


@pytest.mark.parametrize("name", pure_modules())
def test_a_pure_file_gets_its_dice_from_outside(name: str) -> None:
    tree = ast.parse(modules()[name].read_text())
    rolled = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
    }
    assert rolled <= {"Random"}


def test_the_purity_check_sees_an_import_inside_a_function() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import trio\ndef f():\n    from time import monotonic\n")
    assert imports_at_runtime(tree) == {"time"}


def test_an_agent_can_import_its_layers_without_torch() -> None:
    names = [f"meshnode.{name}".rstrip(".") for name in modules() if not within(name, ABOVE_THE_SDK)]
    program = (
        "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(names) > 5
    assert done.stdout.strip() == "False"


def test_the_sdk_imports_without_what_only_nodes_need() -> None:
    code = """
import sys
for name in ("torch", "numpy", "zstandard", "gguf", "safetensors", "tokenizers", "jinja2", "llguidance"):
    sys.modules[name] = None  # importing it raises ImportError
import meshnode.client, meshnode.net.libp2p
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
