"""`python -m bench NAME [--json] [--quick] [--runs N]` measures one claim; `python -m bench --targets` all of them.

Each bench of `--targets` runs in a process of its own: torch's threads, a warm cache or a leftover socket of one must
not be in the figures of the next.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.table

import bench

ROOT = Path(__file__).resolve().parent.parent
COLUMNS_MIN = 100


def names() -> list[str]:
    """The benches that exist. A name with an underscore in front is shared code, not a claim."""
    found = {module.name for module in pkgutil.iter_modules([str(ROOT / "bench")])}
    return sorted(name for name in found if not name.startswith("_"))


def machine() -> dict[str, Any]:
    """What the figures depend on; the load says how alone we were."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "libp2p": _version("libp2p"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def commit() -> str:
    """The commit that was measured; `-dirty` if the tree is not that commit."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def rows(name: str, figures: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """(figure, measured, target, word) of everything measured or aimed at."""
    targets = bench.TARGETS.get(name, {})
    table = []
    for figure in [*targets, *(extra for extra in figures if extra not in targets)]:
        target = targets.get(figure)
        if figure not in figures:
            table.append((figure, "not measured", target.words if target else "", ""))
            continue
        word = "" if target is None or target is bench.BESIDE else "met" if target.met(figures[figure]) else "missed"
        table.append((figure, f"{figures[figure]:.4g}", target.words if target else "", word))
    return table


def show(name: str, figures: Mapping[str, float]) -> None:
    table = rich.table.Table("figure", "measured", "target", "", title=f"bench {name}", title_justify="left")
    for row in rows(name, figures):
        table.add_row(*row)
    console = rich.console.Console()
    console.width = max(console.width, COLUMNS_MIN)  # a log file has no width, and a cut figure is no figure
    console.print(table)


def measure(wanted: argparse.Namespace) -> int:
    runs = wanted.runs or (bench.RUNS_QUICK if wanted.quick else bench.RUNS)
    facts = machine()
    try:
        figures = importlib.import_module(f"bench.{wanted.name}").run(quick=wanted.quick, runs=runs)
    except bench.CannotMeasure as reason:
        print(f"bench {wanted.name} could not measure: {reason}", file=sys.stderr)
        return 1
    show(wanted.name, figures)
    if wanted.json:
        print(json.dumps({"bench": wanted.name, "machine": facts, "commit": commit(), "figures": figures}))
    return 0


def measure_all(wanted: argparse.Namespace) -> int:
    """Every bench, each in its own process; the tables come at the end, together."""
    passed_on = ["--json"] + ["--quick"] * wanted.quick + (["--runs", str(wanted.runs)] if wanted.runs else [])
    results: dict[str, dict[str, float]] = {}
    code = 0
    for name in sorted({*names(), *bench.TARGETS}):
        results[name] = {}
        if name not in names():
            continue
        print(f"measuring {name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", "bench", name, *passed_on], cwd=ROOT, stdout=subprocess.PIPE)
        if done.returncode:
            code = 1
            continue
        results[name] = json.loads(done.stdout.splitlines()[-1])["figures"]
    facts, measured = machine(), commit()
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + f", commit {measured}")
    for name, figures in results.items():
        show(name, figures)
    if wanted.json:
        print(json.dumps({"machine": facts, "commit": measured, "figures": results}))
    return code


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure one claim, or all beside their targets."
    )
    parser.add_argument("name", nargs="?", choices=names(), help="the claim")
    parser.add_argument("--targets", action="store_true", help="every bench, beside its targets")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="the same figures from fewer runs")
    parser.add_argument("--runs", type=int, default=0, help=f"runs ({bench.RUNS}, or {bench.RUNS_QUICK} with --quick)")
    wanted = parser.parse_args()
    if wanted.runs < 0 or bool(wanted.name) == wanted.targets:
        parser.error("give one bench by name, or --targets")
    return measure_all(wanted) if wanted.targets else measure(wanted)


if __name__ == "__main__":
    sys.exit(main())
