"""How much memory a node's engine takes with eight sessions of 2,048 tokens, over what cannot be less.

Two fresh processes: one imports what the engine imports and stops there, the other loads the model and prefills the
sessions. Resident set of the second, over the sum of its parts: the first's resident set, the weights as the class
has them (a byte a weight in "w8"), and the bytes of the sessions' pages. What is above 1 is copies, buffers and the
allocator's.

The engine is given the KV memory that a node gives it unless told otherwise, which is more than these sessions need:
what nobody uses should not be resident. Each session has words of its own, so no page is shared.
"""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import safetensors

import bench
from bench import _engine, _orders
from meshnode.models import store

ROOT = Path(__file__).resolve().parent.parent
SESSIONS = 8
CONTEXT_TOKENS = 2048
WEIGHT_BYTES = {"w8": 1, "i8": 1, "bf16": 2, "f32": 4}
_MIB = 1 << 20


def run(quick: bool, runs: int) -> dict[str, float]:
    """MiB of the parts and of the whole, and their ratio. One run whatever is asked: memory is no time."""
    model = _engine.installed()
    bare = _child("bare")
    whole = _child("whole")
    parts = {
        "interpreter_mib": bare["rss_mib"],
        "weights_mib": weight_count(model) * WEIGHT_BYTES[_engine.NUMERIC_CLASS] / _MIB,
        "kv_mib": whole["kv_mib"],
    }
    return {
        "rss_over_parts": whole["rss_mib"] / sum(parts.values()),
        **parts,
        "rss_mib": whole["rss_mib"],
        "rss_loaded_mib": whole["rss_loaded_mib"],
        "rss_peak_mib": whole["rss_peak_mib"],
    }


def weight_count(model: store.Installed) -> int:
    """Numbers in the model's file; a tied head is in it once."""
    with safetensors.safe_open(model.folder / "weights.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def status_mib(text: str) -> dict[str, float]:
    """The sizes in the text of /proc/PID/status, which has them in KiB."""
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines if words[-1:] == ["kB"]}


def _child(what: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "bench.memory", what], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise bench.CannotMeasure(f"the child that was to be measured ended with status {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _bare() -> dict[str, float]:
    importlib.import_module("meshnode.engine.engine")
    return {"rss_mib": _status()["VmRSS"]}


def _whole() -> dict[str, float]:
    inner = _engine.load(_engine.installed())
    loaded_mib = _status()["VmRSS"]
    ours = _engine.Ours(inner)
    for number in range(SESSIONS):
        bench.say(f"session {number + 1} of {SESSIONS}, resident {_status()['VmRSS']:.0f} MiB")
        ours.feed(number, 0, _orders.words(CONTEXT_TOKENS, number))
    ours.decode(SESSIONS, CONTEXT_TOKENS - 1, 1)
    pages = SESSIONS * CONTEXT_TOKENS // inner.card.page_tokens
    found = _status()
    return {
        "kv_mib": pages * inner.card.page_bytes / _MIB,
        "rss_mib": found["VmRSS"],
        "rss_loaded_mib": loaded_mib,
        "rss_peak_mib": found["VmHWM"],
    }


def _status() -> dict[str, float]:
    return status_mib(Path("/proc/self/status").read_text())


if __name__ == "__main__":
    print(json.dumps({"bare": _bare, "whole": _whole}[sys.argv[1]]()))
