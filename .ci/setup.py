"""Make .venv and install the tree into it, once: `make demo` and `make test` call this first; after that it is silent.

Plain Python without packages, since it runs before there are any, and readable to a Python 3.7, since what it has to
say to one is that it is too old. Whatever is missing is said in one sentence, before minutes are spent on downloads; a
digest of what decides the installation lies in .venv, so nothing is done twice.

Not a tool of its own (tox, nox, uv): one more thing to install before the first command works.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "setup.stamp"
LOG = VENV / "setup.log"
VERSIONS = ((3, 11), (3, 12), (3, 13))
DISK_BYTES_MIN = 3 * 10**9
WORD_EVERY_S = 20
LOG_LINES_SHOWN = 40

# One line of version, one word on venv, one include folder: what a Python says of itself.
_PROBE = """
import importlib.util, sys, sysconfig
print("{}.{}".format(*sys.version_info[:2]))
print(all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")))
print(sysconfig.get_path("include"))
"""


class Missing(Exception):
    """One sentence for the one who typed the command."""


class Python:
    """An interpreter that runs, and what it says of itself."""

    def __init__(self, path: str, answer: list[str]) -> None:
        self.path = path
        self.name = answer[0]
        self.version = tuple(int(part) for part in answer[0].split("."))
        self.has_venv = answer[1] == "True"
        self.include = answer[2]


def probed(path: str) -> Python | None:
    """None for a name that is on PATH and yet does not run, as version managers leave them."""
    try:
        done = subprocess.run([path, "-c", _PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Python(path, done.stdout.decode().split("\n"))


def chosen_python() -> Python:
    """The first of python3.11, 3.12, 3.13 on PATH that works, then the one that runs this file."""
    names = [shutil.which(f"python{major}.{minor}") for major, minor in VERSIONS]
    found = [python for python in map(probed, [*filter(None, names), sys.executable]) if python is not None]
    fitting = [python for python in found if python.version in VERSIONS]
    if not fitting:
        raise Missing(
            f"meshnode needs Python 3.11, 3.12 or 3.13, and the only Python found here is {sys.version.split()[0]}; "
            "install python3.11 (Debian: python3.11, python3.11-venv, python3.11-dev) and run this again."
        )
    for python in fitting:
        if python.has_venv:
            return python
    raise Missing(f"Python {fitting[0].name} has no venv module here; install it (Debian: python3-venv).")


def check_compiler(python: Python) -> None:
    """One dependency of libp2p (fastecdsa) has no wheel and is compiled: against Python's headers and gmp's."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Missing(
            "There is no C compiler, and one dependency is compiled here; install gcc (Debian: gcc, libc6-dev)."
        )
    for header, package in (("stdio.h", "libc6-dev"), ("gmp.h", "libgmp-dev"), ("Python.h", "python3-dev")):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(f"#include <stdio.h>\n#include <{header}>\n")
            command = [compiler, "-I", python.include, "-fsyntax-only", str(source)]
            if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
                raise Missing(
                    f"The C header {header} is missing, and one dependency is compiled against it; "
                    f"install it (Debian: {package})."
                )


def check_disk() -> None:
    free_bytes = shutil.disk_usage(str(ROOT)).free
    if free_bytes < DISK_BYTES_MIN:
        raise Missing(
            f"There are {free_bytes / 1e9:.1f} GB free on this disk and the installation takes "
            f"{DISK_BYTES_MIN / 1e9:.0f} GB; make room and run this again."
        )


def wanted(extras: str) -> str:
    """The digest of everything that decides what the installation holds."""
    state = hashlib.sha256(extras.encode())
    for name in ("pyproject.toml", "constraints.txt", ".ci/setup.py"):
        state.update((ROOT / name).read_bytes())
    return state.hexdigest()


def make_venv(python: Python) -> None:
    inside = probed(str(VENV / "bin" / "python"))
    if inside is not None and inside.version == python.version:
        return
    command = [python.path, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout.decode(errors="replace"), file=sys.stderr)
        raise Missing(f"Python {python.name} could not make .venv; its own words stand above.")


def install(extras: str, began_s: float) -> None:
    """pip's words go to a log: thousands of lines that matter only when it fails."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    command += ["-c", "constraints.txt", "-e", f".[{extras}]"]
    with LOG.open("wb") as log:
        pip = subprocess.Popen(command, cwd=str(ROOT), stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                code = pip.wait(WORD_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                say(began_s, f"  still installing ({LOG.relative_to(ROOT)} has pip's words)")
            except KeyboardInterrupt:
                pip.terminate()
                raise
    if code:
        raise Missing(reason_of_failure(LOG.read_text(errors="replace")))


def reason_of_failure(log: str) -> str:
    """pip's log in one sentence, after its last lines."""
    print("\n".join(log.splitlines()[-LOG_LINES_SHOWN:]), file=sys.stderr)
    if "No space left on device" in log:
        return "The disk ran full during the installation; make room and run this again."
    # "from versions: none" is what pip says of an index that it could not ask, once it has given up.
    signs = (
        "NewConnectionError",
        "name resolution",
        "ReadTimeoutError",
        "ConnectTimeoutError",
        "ProxyError",
        "SSLError",
    )
    if any(sign in log for sign in (*signs, "(from versions: none)")):
        return "The package index could not be reached; check the network and pip's index settings and run this again."
    if "No matching distribution found" in log:
        return "The package index does not have one of the pinned versions for this Python; pip names it above."
    return "pip could not install the dependencies; its last words stand above, all of them in .venv/setup.log."


def say(began_s: float, words: str) -> None:
    print(f"[{time.monotonic() - began_s:4.0f} s] {words}", flush=True)


def main() -> int:
    extras = sys.argv[1] if len(sys.argv) > 1 else "node,test"
    if STAMP.exists() and STAMP.read_text() == wanted(extras):
        return 0
    began_s = time.monotonic()
    try:
        python = chosen_python()
        check_compiler(python)
        check_disk()
        say(began_s, f"Python {python.name}, a C compiler and the headers are here")
        make_venv(python)
        say(began_s, "installing the dependencies into .venv (a few minutes the first time)")
        install(extras, began_s)
    except Missing as missing:
        print(f"setup: {missing}", file=sys.stderr)
        return 1
    STAMP.write_text(wanted(extras))
    say(began_s, "ready")
    return 0


if __name__ == "__main__":
    os.chdir(str(ROOT))
    sys.exit(main())
