"""The style guide, where a program can check it: format, lint, types, sizes, and words that mean unfinished work.

A reviewer who has to say "this file is too long" has less attention left for what it does.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
SUPERVISOR = "meshnode/node.py"
"""The one place that may catch everything: it ends a node in good order."""

# Written in pieces, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
FAKED = re.compile(r"\bx" + r"fail\b|mock\." + r"patch|pytest\.sk" + r"ip")
MACHINE_PATH = re.compile(r"(?<![\w./-])/(root|home|Users|work|opt|mnt)/\w")
REGISTRY_HOST = re.compile(
    r"py" + r"pi\.org|python" + r"hosted|download\.py" + r"torch|npm" + r"js\.(org|com)|crates\." + r"io"
)


@functools.cache
def tracked() -> tuple[Path, ...]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file())


def lines() -> Iterator[tuple[str, str]]:
    """Every line of every tracked text file, with where it stands."""
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            yield str(path.relative_to(ROOT)), node


def catches_everything(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(one is None or ast.unparse(one) in ("Exception", "BaseException") for one in caught)


@pytest.mark.parametrize(
    "command",
    [["ruff", "format", "--check", "--quiet", "."], ["ruff", "check", "--quiet", "."], ["mypy"]],
    ids=["format", "lint", "types"],
)
def test_the_tree_passes(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_longer_than_anyone_reads() -> None:
    found = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: count for name, count in found.items() if count > FILE_LINES_MAX} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    functions = [(name, node) for name, node in nodes() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {f"{name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1 for name, node in functions}
    assert {where: count for where, count in sizes.items() if count > FUNCTION_LINES_MAX} == {}


def test_only_the_supervisor_catches_everything() -> None:
    found = [f"{name}:{node.lineno}" for name, node in nodes() if catches_everything(node) and name != SUPERVISOR]
    assert found == []


def test_the_check_for_broad_handlers_sees_all_three_forms() -> None:
    tree = ast.parse("try: f()\nexcept (OSError, Exception): g()\ntry: f()\nexcept: g()\ntry: f()\nexcept OSError: g()")
    assert [catches_everything(node) for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "pattern", [UNFINISHED, FAKED, MACHINE_PATH, REGISTRY_HOST], ids=["unfinished", "faked", "paths", "registries"]
)
def test_no_line_says(pattern: re.Pattern[str]) -> None:
    assert [f"{where}: {line.strip()}" for where, line in lines() if pattern.search(line)] == []
