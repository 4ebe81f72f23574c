"""A model from peers, composed: a guest's transport and brain, the hand that takes chunks in, the folder they go to.

    found = await obtain.obtain("smollm2-135m", models, config.Node(join=("/ip4/.../p2p/12D3KooW...",)))

Used by `meshnode models fetch`, and by a node that starts without its model: it is a guest until it has it, and a
member only then, since a member without an engine would be a node that hosts nothing.

Several nodes of one user start at once and share the folder of models: one fetches, the others wait at a lock that
ends with its process, and find the model there. What a fetch that breaks off has brought stays, and the next goes on
with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from meshnode import config, driver, errors, fetcher, freight, hands, ids, ports
from meshnode.chunks import pacing
from meshnode.chunks.listing import Listing
from meshnode.machine import Introduced, Note
from meshnode.wire import keys

if TYPE_CHECKING:  # an agent's developer may have none of what these import
    from meshnode.models import incoming, store

JOIN_FILE_S = 1.0
"""Between looks at the join file."""
LOCK_LOOK_S = 0.5
"""Between looks whether another process has ended its fetch."""
_LOCK = ".fetching"

Progress = Callable[[str, int, int], None]
"""(what, done, of): bytes, or 0, 0 for words alone."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """A model that is here now, and how it came."""

    model: store.Installed
    given_bytes: dict[ids.PeerId, int] = field(default_factory=dict)
    """By whom how much of it was given."""
    dropped: dict[ids.PeerId, str] = field(default_factory=dict)
    """Who was asked no more, and why."""


async def obtain(
    what: str,
    models: store.Models,
    settings: config.Node,
    *,
    name: str = "",
    progress: Progress = lambda what, done, of: None,
    identity: keys.Identity | None = None,
    transport: ports.Transport | None = None,
    runner: hands.Runner | None = None,
    patience_s: float = fetcher.PATIENCE_S,
) -> Obtained:
    """The model of this name or digest (64 digits), from the peers that `settings` join.

    A name is what peers call a model; the digest that it came to is said through `progress`. `name`: how to call it
    here, if not as they do. `patience_s`: without a peer that has it, until it is given up.

    Raises ConfigError if no peer has it, or a name means several models; StoreError for a disk that is full;
    EngineError for a model that is not computed here.
    """
    from meshnode.models import store

    digest = store.as_digest(what)
    models.folder.mkdir(parents=True, exist_ok=True)
    async with _alone(models.folder):
        if found := models.find(what):
            return Obtained(found)
        if not settings.join and not settings.join_file:
            raise errors.ConfigError(
                f"{what!r} is not here, and there is no peer to ask", hint="--join ADDRESS names one"
            )
        for called in filter(None, (name, "" if digest else what)):
            if not models.free_name(called):
                raise errors.ConfigError(
                    f"{called!r} is no name, or is taken here", hint=f"meshnode models rm {called}"
                )
        who = identity or keys.Identity(os.urandom(keys.SEED_BYTES))
        rate = pacing.bytes_per_s(settings.download_mbit_s_max)
        brain = fetcher.Fetcher(who, digest or what, rate, random.Random(os.urandom(16)), patience_s)
        link = transport if transport is not None else _libp2p(who)
        return await _fetch(what, models, settings, name, brain, link, runner or hands.in_thread(), progress)


def _libp2p(who: keys.Identity) -> ports.Transport:
    from meshnode.net import libp2p

    return libp2p.Libp2pTransport(who, listen=())


async def _fetch(
    what: str,
    models: store.Models,
    settings: config.Node,
    name: str,
    brain: fetcher.Fetcher,
    link: ports.Transport,
    runner: hands.Runner,
    progress: Progress,
) -> Obtained:
    from meshnode.models import registry

    into = _Into(models)
    taker = freight.Taker(into, runner, brain.expects, lambda done, of: progress(f"fetching {what}", done, of))

    def note(now: float, said: Note) -> None:
        if said.what in ("pinned", "source dropped", "no bootstrap address"):
            progress(f"{said.what}: {said.detail}", 0, 0)

    pump = driver.Driver(brain, brain.identity, link, freight=taker, on_note=note)
    progress(f"looking for {what}", 0, 0)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: link.run(task_status=task_status))
            nursery.start_soon(pump.run)
            nursery.start_soon(introduce, settings, pump)
            await taker.over.wait()
            nursery.cancel_scope.cancel()
        if taker.failure is not None:
            raise taker.failure
        fetching = brain.fetching
        if taker.reason or fetching is None or into.opened is None:
            hint = "what has come is kept; the same command goes on with it" if into.opened is not None else ""
            raise errors.ConfigError(taker.reason, hint=hint)
        progress(f"checking {what}", 0, 0)
        called = name or brain.name or _claimed(models, brain, fetching.digest, set(registry.KNOWN))
        model = await runner(into.opened.install, called)
        return Obtained(model, dict(fetching.given_bytes), dict(fetching.dropped))
    finally:
        into.close()


class _Into:
    """freight.Store over the folder of the model, which is known only once its listing is."""

    def __init__(self, models: store.Models) -> None:
        self.opened: incoming.Incoming | None = None
        self._models = models

    def prepare(self, whole: Listing) -> frozenset[int]:
        from meshnode.models import incoming

        self.opened = incoming.Incoming(self._models, whole.digest)
        return self.opened.prepare(whole)

    def keep(self, index: int, data: bytes) -> None:
        assert self.opened is not None
        self.opened.keep(index, data)

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()


def _claimed(models: store.Models, brain: fetcher.Fetcher, digest: ids.Digest, known: set[str]) -> str:
    """What to call a model that was asked for by its digest: as its peers do, if they agree. A name that `pull` knows
    is not theirs to give away: the next pull would find it taken, by whatever this is."""
    names = {one.name for shelf in brain.shelves.values() for one in shelf if one.digest == digest}
    for one in names:
        if len(names) == 1 and one not in known and models.free_name(one):
            return one
    return f"model-{digest.hex()[:12]}"


@contextlib.asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """One fetch at a time into this folder. Asked again and again, since a thread that waits cannot be called back."""
    with (folder / _LOCK).open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await trio.sleep(LOCK_LOOK_S)
        yield


async def introduce(settings: config.Node, pump: driver.Driver) -> None:
    """Tell the brain of bootstrap peers, and of those that a join file names as it appears or changes."""
    if settings.join:
        pump.submit(Introduced(settings.join))
    seen: set[str] = set()
    while settings.join_file:
        with contextlib.suppress(OSError):
            lines = await trio.to_thread.run_sync(Path(settings.join_file).read_text)
            fresh = {line.strip() for line in lines.splitlines() if line.strip()} - seen
            if fresh:
                seen |= fresh
                pump.submit(Introduced(tuple(sorted(fresh))))
        await trio.sleep(JOIN_FILE_S)
