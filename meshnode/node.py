"""One node, composed. Dull on purpose: opens what the configuration names, ties it together, runs until stopped."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import stat
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import trio

from meshnode import config, control, driver, errors, freight, hands, ids, journal, observe, obtain, orders, peer, ports
from meshnode.machine import Stocked
from meshnode.snapshots import store
from meshnode.wire import keys

if TYPE_CHECKING:  # a node that hosts nothing needs nothing of what these import
    from meshnode.host import ThreadEngine
    from meshnode.models import stock
    from meshnode.models import store as models

STOCK_LOOK_S = 30.0
"""Between looks at the models that are here: one that was added meanwhile is shared from then on."""
COMPACT_BYTES = 32 << 20
"""A journal that grew by so much since it was last written anew is written anew, without what is over."""
COMPACT_LOOK_S = 30.0
"""Between looks at its size."""

Progress = Callable[[str, int, int], None]
"""(what, done, of): bytes of a download, or 0, 0 for a step without measure."""


@dataclass(frozen=True, slots=True)
class Up:
    """What is known once a node runs."""

    id: str
    addresses: tuple[str, ...]
    model: str
    folder: Path


def models_folder() -> Path:
    """Where converted models lie: one place for all nodes of a user."""
    return Path(os.environ.get("MESHNODE_DATA") or platformdirs.user_data_dir("meshnode")) / "models"


def identity_of(folder: Path) -> keys.Identity:
    """The node's key, made at its first start. Raises ConfigError for a file that is not one."""
    path = folder / "identity"
    hint = "restore it from a copy, or move it away to become a new node"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = folder / "identity.new"
            fresh.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
            fresh.write_text(os.urandom(keys.SEED_BYTES).hex() + "\n")
            fresh.rename(path)
        seed = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise errors.ConfigError(f"the identity {path} cannot be read: {error}", hint=hint) from None
    if len(seed) != keys.SEED_BYTES:
        raise errors.ConfigError(f"the identity {path} has {len(seed)} bytes, not {keys.SEED_BYTES}", hint=hint)
    return keys.Identity(seed)


async def run(
    settings: config.Node,
    *,
    on_up: Callable[[Up], None] = lambda up: None,
    progress: Progress = lambda what, done, of: None,
    join_out: str = "",
) -> None:
    """Run a node until it is cancelled or told to stop. Raises ConfigError, StoreError."""
    from meshnode.net import libp2p

    folder = control.data_folder(settings.data)
    who = identity_of(folder)
    book = journal.Journal.open(folder)
    pages = store.PageStore(store.FolderDisk(folder / "pages"), budget_bytes=settings.disk_mib * config.MIB)
    transport = libp2p.Libp2pTransport(who, listen=settings.listen, announce=settings.announce)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(book.close)
        engine, tokenizer = await stack.enter_async_context(_engine(settings, folder / "spill", progress))
        card = engine.card if engine is not None else None
        brain = peer.Peer(who, settings, card, int(time.time() * 1000), random.Random(os.urandom(16)))
        _replay(brain, book, pages)
        hot_bytes = settings.hot_mib * config.MIB
        journalist = observe.Journalist(trio.current_time())
        body = hands.Hands(
            engine, tokenizer, pages, hands.in_thread(), brain.sessions.admits, grammars=engine, hot_bytes=hot_bytes
        )
        writer = journal.JournalWriter(book)
        stock = _stock(settings)
        giver = freight.Giver(stock, hands.in_thread()) if stock is not None else None
        pump = driver.Driver(brain, who, transport, hands=body, writer=writer, freight=giver, on_note=journalist.note)
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(lambda task_status: transport.run(task_status=task_status))
        await nursery.start(lambda task_status: writer.run(task_status=task_status))
        brain.mesh.addresses = transport.addresses
        nursery.start_soon(pump.run)
        nursery.start_soon(obtain.introduce, settings, pump)
        if stock is not None:
            nursery.start_soon(_show, stock, pump)
        nursery.start_soon(_compact, brain, book, writer)
        stopped = trio.Event()

        async def answer(request: dict[str, Any]) -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            if request.get("do") == "down":
                stopped.set()
                return {"stopping": True}
            done = orders.carry_out(brain, pump.submit, request, trio.current_time())
            return done or observe.status(brain, journalist, dict(pump.counts), trio.current_time())

        up = Up(ids.peer_text(who.peer), transport.addresses, card.model if card else "", folder)
        async with control.served(folder, {"id": up.id, "addresses": list(up.addresses)}, answer):
            _write_join(join_out, up)
            on_up(up)
            await stopped.wait()
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _engine(
    settings: config.Node, spill_folder: Path, progress: Progress
) -> AsyncIterator[tuple[ThreadEngine | None, ports.Tokenizer | None]]:
    """Model, engine and tokenizer; nothing of it on a node that hosts no sessions."""
    if not settings.host:
        yield None, None
        return
    try:
        from meshnode import host
        from meshnode.models import store as models
        from meshnode.models import tokenizer
    except ModuleNotFoundError as error:
        hint = "install meshnode[node], or set host = false"
        raise errors.ConfigError(f"hosting needs {error.name}, which is not installed", hint=hint) from None
    model = await _model(settings, models.Models(models_folder()), progress)
    progress(f"loading {settings.model}", 0, 0)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // 2)
    threads = max(count for count in (1, 2, 4) if count <= threads)
    async with host.opened(
        model.folder,
        name=model.name,
        digest=model.digest,
        numeric_class=settings.numeric_class,
        memory_bytes=settings.memory_mib * config.MIB,
        threads=threads,
        spill_folder=spill_folder,
        spill_bytes=settings.spill_mib * config.MIB,
    ) as engine:
        words = tokenizer.ChatTokenizer(model.folder)
        await _warm_up(engine, words)
        yield engine, words


async def _model(settings: config.Node, shelf: models.Models, progress: Progress) -> models.Installed:
    """What is to be served: here, or pulled, or else fetched from peers."""
    from meshnode.models import registry

    found = await trio.to_thread.run_sync(shelf.find, settings.model)
    if found is not None:
        return found
    peers = bool(settings.join or settings.join_file)
    if settings.model in registry.KNOWN or not peers:
        told = functools.partial(progress, f"fetching {settings.model}")
        try:
            return await trio.to_thread.run_sync(shelf.pull, settings.model, told)
        except errors.ConfigError as error:
            if not peers:
                raise
            progress(f"{settings.model} could not be pulled ({error}); asking peers", 0, 0)
    obtained = await obtain.obtain(settings.model, shelf, settings, progress=progress)
    return obtained.model


def _stock(settings: config.Node) -> stock.Stock | None:
    """The models that others may have from here; a node without what hosting needs has none."""
    if not settings.share_models:
        return None
    try:
        from meshnode.models import stock
        from meshnode.models import store as models
    except ModuleNotFoundError:
        return None
    return stock.Stock(models.Models(models_folder()))


async def _show(stock: stock.Stock, pump: driver.Driver) -> None:
    """Tell the brain what is on the shelf."""
    while True:
        pump.submit(Stocked(await trio.to_thread.run_sync(stock.look)))
        await trio.sleep(STOCK_LOOK_S)


async def _warm_up(engine: ports.Engine, words: ports.Tokenizer) -> None:
    """Run the engine once. Its first steps take five times as long, and a failover must not be the one to pay that."""
    nobody = ids.SessionId(bytes(ids.SESSION_BYTES))
    fed = tuple(words.turn("ready? " * 16, system=None, first=True, closed=False))
    await engine.step([ports.Work(nobody, 0, fed, ports.Sampling())])
    await engine.step([ports.Work(nobody, len(fed), fed[:1], ports.Sampling())])
    await engine.drop(nobody)


def _replay(brain: peer.Peer, book: journal.Journal, pages: store.PageStore) -> None:
    """What the disk remembers, and only what is still needed of it; pages of sessions that are over go."""
    found = {session: pages.have(session) for session in pages.sessions()}
    brain.replay(trio.current_time(), (journal.split(entry)[1] for entry in book.replay()), found)
    for session in found:
        if session not in brain.sessions.members:
            pages.drop(session)
    book.rewrite(_records(brain))


def _records(brain: peer.Peer) -> list[bytes]:
    """All that is still needed of the journal."""
    return [journal.record(session, record) for session, record in brain.sessions.snapshot()]


async def _compact(brain: peer.Peer, book: journal.Journal, writer: journal.JournalWriter) -> None:
    """Write the journal anew when it has grown.

    The records say what the brain knows now, some of which may be on its way to the disk still; those come behind, and
    saying a thing twice in the same order changes nothing.
    """
    small = book.size()
    while True:
        await trio.sleep(COMPACT_LOOK_S)
        if book.size() > small + COMPACT_BYTES:
            await writer.rewrite(_records(brain))
            small = book.size()


def _write_join(path: str, up: Up) -> None:
    if not path:
        return
    try:
        fresh = Path(f"{path}.new")
        fresh.write_text("\n".join(up.addresses) + "\n")
        fresh.rename(path)
    except OSError as error:
        raise errors.ConfigError(f"the join file {path} cannot be written: {error}") from None
