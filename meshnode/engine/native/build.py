"""Compile the kernels: one shared library for each family of instruction sets, with the C compiler of the machine.

    python -m meshnode.engine.native.build [FOLDER]      # all variants of this processor's architecture

The idea: a library's name holds the digest of its sources and flags, so a stale one is never loaded, and nothing has
to be rebuilt by hand. A wheel carries the libraries (hatch_build.py calls `compile_all`); a checkout whose sources were
edited compiles what it lacks into the user's cache when an engine is opened, in some seconds.

No -march=native and no fast-math: what a variant may use is said by its flags, and the bits are those of all others.
Plain Python without our own imports, since it also runs before the package is installed.

Rejected: a C++ extension against torch's headers (minutes to compile, bound to one torch and one Python), and writing
the kernels in torch.compile's Python (it needs the same compiler on every host, a minute of warm-up at each start, and
its arithmetic changes with shapes).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_UNITS = ("forward.c", "threads.c")
_HEADERS = ("attention.h", "model.h", "products.h", "rows.h", "sessions.h", "simd.h", "threads.h")
SOURCES = (*_UNITS, *_HEADERS)
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-pthread")
_HERE = Path(__file__).resolve().parent
_COMPILE_S_MAX = 120.0
"""A compiler that takes longer is not working on this."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One library. `needs` are flags of /proc/cpuinfo without which it must not be loaded."""

    name: str
    machine: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma")
_AVX512_NEEDS = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma"))
VARIANTS = (
    Variant(
        "amx", "x86_64", (*_AVX512, "-mamx-tile", "-mamx-int8"), _AVX512_NEEDS | frozenset(("amx_tile", "amx_int8"))
    ),
    Variant("avx512", "x86_64", _AVX512, _AVX512_NEEDS),
    Variant("vnni", "x86_64", ("-mavx2", "-mfma", "-mavxvnni"), frozenset(("avx2", "fma", "avx_vnni"))),
    Variant("avx2", "x86_64", ("-mavx2", "-mfma"), frozenset(("avx2", "fma"))),
    Variant("plain", "", (), frozenset()),
)
"""The best first. `plain` is for every machine: on one without a fused multiply-add it is right and very slow."""


class CannotCompile(Exception):
    """In one sentence why."""


def variants(machine: str | None = None) -> list[Variant]:
    """Those that make sense on this architecture."""
    return [of for of in VARIANTS if of.machine in ("", machine or platform.machine())]


def file_name(of: Variant, folder: Path = _HERE) -> str:
    """Of the library that the sources in `folder` make."""
    state = hashlib.sha256("\0".join((of.name, platform.machine(), *_FLAGS, *of.flags)).encode())
    for name in SOURCES:
        state.update((folder / name).read_bytes())
    return f"_kernels-{of.name}-{state.hexdigest()[:12]}.so"


def compile_one(of: Variant, target_folder: Path, source_folder: Path = _HERE) -> Path:
    """Compile into `target_folder` unless it is there. Raises CannotCompile."""
    target = target_folder / file_name(of, source_folder)
    if target.exists():
        return target
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotCompile("there is no C compiler")
    target_folder.mkdir(parents=True, exist_ok=True)
    units = [str(source_folder / name) for name in _UNITS]
    with tempfile.TemporaryDirectory(dir=target_folder) as folder:
        fresh = Path(folder, target.name)
        command = [compiler, *_FLAGS, *of.flags, "-o", str(fresh), *units, "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S_MAX)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotCompile(f"{compiler} did not run: {error}") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CannotCompile(f"{compiler} failed on variant {of.name}: {last}")
        fresh.rename(target)  # whole or not at all: another process may be looking for it
    return target


def compile_all(target_folder: Path, source_folder: Path = _HERE) -> list[Path]:
    """What this machine's compiler can make; an old one lacks AMX, say. Raises CannotCompile if it makes none."""
    made, reasons = [], []
    for of in variants():
        try:
            made.append(compile_one(of, target_folder, source_folder))
        except CannotCompile as reason:
            reasons.append(str(reason))
    if not made:
        raise CannotCompile("; ".join(reasons))
    return made


if __name__ == "__main__":
    try:
        for library in compile_all(Path(sys.argv[1]) if len(sys.argv) > 1 else _HERE):
            print(library.name)
    except CannotCompile as reason:
        sys.exit(f"the kernels cannot be compiled: {reason}")
