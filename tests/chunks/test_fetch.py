"""A fetch from end to end: real folders, real brains, the network in memory and the clock of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from meshnode import errors, fetcher
from meshnode.chunks import fetching, listing
from meshnode.machine import Stocked
from meshnode.models import registry, stock, store
from tests import world
from tests.chunks import shelves

Clock = trio.testing.MockClock


@pytest.fixture(autouse=True)
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a KiB, so that a small model has some fifty."""
    monkeypatch.setattr(listing, "CHUNK_BYTES", 1 << 10)


def same(one: store.Installed, other: store.Installed) -> bool:
    return all((one.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in listing.FILES)


async def restocked(node: shelves.Node, models: store.Models, after_s: float) -> None:
    """The node gets its models later."""
    await world.pass_time(after_s)
    assert node.shelf is not None
    node.shelf.inner = stock.Stock(models)
    node.pump.submit(Stocked(node.shelf.look()))


async def test_a_model_comes_by_digest_from_several_peers(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    here = store.Models(tmp_path / "here")
    seen: list[tuple[str, int, int]] = []
    async with shelves.mesh() as mesh:
        for name in "abc":
            await mesh.start(name, shelves.Shelf(models))
        await mesh.start("none")
        got = await mesh.fetch(
            installed.digest.hex(), here, "none", progress=lambda *at: seen.append(at), download_mbit_s_max=1
        )
    assert same(got.model, installed)
    assert (got.model.digest, got.model.name) == (installed.digest, "tiny")
    assert sum(got.given_bytes.values()) == installed.disk_bytes
    assert set(got.given_bytes) == {mesh.nodes[name].id for name in "abc"}
    assert here.list() == [got.model]
    assert [done for what, done, of in seen if of][-1] == installed.disk_bytes


async def test_a_name_comes_to_a_digest_that_is_said(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    said: list[str] = []
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models))
        got = await mesh.fetch("tiny", store.Models(tmp_path / "here"), progress=lambda what, *at: said.append(what))
    assert got.model.digest == installed.digest
    assert f"pinned: tiny is {installed.digest.hex()}, at 1 peer" in said


async def test_a_name_of_two_models_is_nobodys(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path / "one")
    others, other = shelves.model(tmp_path / "two", seed=2)
    assert other.digest != installed.digest
    here = store.Models(tmp_path / "here")
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models))
        await mesh.start("b", shelves.Shelf(models))
        await mesh.start("c", shelves.Shelf(others))
        with pytest.raises(errors.ConfigError, match="is not one model") as caught:
            await mesh.fetch("tiny", here)
    assert f"{installed.digest.hex()} at 2 peers" in str(caught.value)
    assert f"{other.digest.hex()} at 1 peer" in str(caught.value)
    assert here.list() == []


@pytest.mark.parametrize(("kind", "why"), [(shelves.Liar, "wrong chunk"), (shelves.Forger, "wrong listing")])
async def test_a_peer_that_lies_is_found_out_and_its_chunks_come_from_another(
    tmp_path: Path, autojump_clock: Clock, kind: type[shelves.Shelf], why: str
) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh, trio.open_nursery() as nursery:
        honest = await mesh.start("honest", shelves.Shelf(store.Models(tmp_path / "empty")))
        liars = [await mesh.start(f"liar{number}", kind(models)) for number in range(3)]
        nursery.start_soon(restocked, honest, models, 3.0)  # the liars come first
        got = await mesh.fetch(installed.digest.hex(), store.Models(tmp_path / "here"))
    assert same(got.model, installed)
    assert got.given_bytes == {honest.id: installed.disk_bytes}
    assert got.dropped.keys() == {liar.id for liar in liars}
    assert all(why in said for said in got.dropped.values())


async def test_only_liars_give_nothing_and_are_named(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    here = store.Models(tmp_path / "here")
    async with shelves.mesh() as mesh:
        await mesh.start("liar", shelves.Liar(models))
        with pytest.raises(errors.ConfigError, match="wrong chunk"):
            await mesh.fetch(installed.digest.hex(), here)
    assert here.list() == []


async def test_a_peer_that_never_answers_costs_time_and_nothing_else(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    began = trio.current_time()
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models))
        mute = await mesh.start("mute", shelves.Shelf(models), giver=shelves.Mute)
        got = await mesh.fetch(installed.digest.hex(), store.Models(tmp_path / "here"))
    assert same(got.model, installed)
    assert mute.id not in got.given_bytes
    # At the worst it was asked for the listing; what it owes at the end is asked of the other at once.
    assert trio.current_time() - began < fetching.CHUNK_S_MAX + 10.0


async def test_a_peer_that_dies_in_the_middle_is_replaced(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh:
        a = await mesh.start("a", shelves.Shelf(models), upload_mbit_s_max=1)
        b = await mesh.start("b", shelves.Shelf(models), upload_mbit_s_max=1)

        def kill(what: str, done: int, of: int) -> None:
            if 3 * done > of > 0 and b.id in mesh.network._running:
                mesh.network.crash(b.id)

        got = await mesh.fetch(installed.digest.hex(), store.Models(tmp_path / "here"), progress=kill)
    assert same(got.model, installed)
    assert 0 < got.given_bytes[b.id] < installed.disk_bytes // 2
    assert got.given_bytes[a.id] + got.given_bytes[b.id] == installed.disk_bytes


def cut_off(at_bytes: int, scope: trio.CancelScope) -> Callable[[str, int, int], None]:
    return lambda what, done, of: scope.cancel() if done >= at_bytes else None


async def test_a_fetch_that_broke_off_goes_on_where_it_was(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    here = store.Models(tmp_path / "here")
    async with shelves.mesh() as mesh:
        a = await mesh.start("a", shelves.Shelf(models))
        with trio.CancelScope() as scope:
            await mesh.fetch("tiny", here, progress=cut_off(installed.disk_bytes // 2, scope))
        assert scope.cancelled_caught
        assert here.list() == []
        (broken,) = [path for path in (tmp_path / "here").iterdir() if path.suffix == ".new"]
        spoil = broken / "tokenizer.json"  # as a crash might, before it was synced
        spoil.write_bytes(bytes(spoil.stat().st_size))
        got = await mesh.fetch("tiny", here)
    assert same(got.model, installed)
    assert 0 < got.given_bytes[a.id] < installed.disk_bytes * 3 // 4
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [".fetching", ".lock", "tiny"]


@pytest.mark.parametrize(("side", "settings"), [("upload", {"upload_mbit_s_max": 1}), ("download", {})])
async def test_both_owners_limits_are_kept(
    tmp_path: Path, autojump_clock: Clock, side: str, settings: dict[str, int]
) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models), **settings)
        await mesh.met()
        began = trio.current_time()
        limit = 1 if side == "download" else 0
        await mesh.fetch(installed.digest.hex(), store.Models(tmp_path / "here"), download_mbit_s_max=limit)
        took_s = trio.current_time() - began
    expected_s = installed.disk_bytes * 8 / 1e6
    assert 0.9 * expected_s < took_s < 2 * expected_s + 2.0


async def test_what_nobody_has_is_said_with_what_they_do_have(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models))
        with pytest.raises(errors.ConfigError) as caught:
            await mesh.fetch("other", store.Models(tmp_path / "here"), patience_s=10.0)
    assert f"no peer of 1 has other; shared are: tiny ({installed.digest.hex()})" in str(caught.value)


async def test_a_peer_that_gets_the_model_later_is_asked(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh, trio.open_nursery() as nursery:
        a = await mesh.start("a", shelves.Shelf(store.Models(tmp_path / "empty")))
        nursery.start_soon(restocked, a, models, 20.0)
        got = await mesh.fetch("tiny", store.Models(tmp_path / "here"))
    assert got.model.digest == installed.digest


async def test_a_peer_that_comes_later_is_asked_though_it_was_not_named(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh, trio.open_nursery() as nursery:
        await mesh.start("named")

        async def later() -> None:
            await world.pass_time(20.0)
            await mesh.start("late", shelves.Shelf(models))

        nursery.start_soon(later)
        got = await mesh.fetch("tiny", store.Models(tmp_path / "here"), "named")
    assert got.given_bytes == {mesh.nodes["late"].id: installed.disk_bytes}


async def test_without_a_mesh_it_is_given_up(tmp_path: Path, autojump_clock: Clock) -> None:
    async with shelves.mesh() as mesh:
        dead = await mesh.start("dead")
        mesh.network.crash(dead.id)
        with pytest.raises(errors.ConfigError, match="no peer could be reached"):
            await mesh.fetch("tiny", store.Models(tmp_path / "here"))
    assert trio.current_time() < fetcher.PATIENCE_S + 1.0


async def test_a_name_that_is_taken_is_refused_before_anything_is_fetched(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh:
        a = await mesh.start("a", shelves.Shelf(models))
        other, _ = shelves.model(tmp_path / "two", seed=2)
        with pytest.raises(errors.ConfigError, match="taken here"):
            await mesh.fetch(installed.digest.hex(), other, name="tiny")
        assert a.shelf is not None
        assert a.shelf.read_count == 0
        got = await mesh.fetch(installed.digest.hex(), other)
    assert got.model.name == f"model-{installed.digest.hex()[:12]}"  # what peers call it is another model here
    assert len(other.list()) == 2


async def test_peers_do_not_get_to_give_away_a_name_that_pull_knows(
    tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, installed = shelves.model(tmp_path)
    monkeypatch.setitem(registry.KNOWN, "tiny", registry.KNOWN["smollm2-135m"])
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models))
        got = await mesh.fetch(installed.digest.hex(), store.Models(tmp_path / "here"))
    assert got.model.name.startswith("model-")


async def test_what_is_here_is_not_fetched(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    async with shelves.mesh() as mesh:
        await mesh.start("a")
        for what in ("tiny", installed.digest.hex()):
            assert (await mesh.fetch(what, models)).model == installed


async def test_right_chunks_of_what_is_no_model_are_thrown_away(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    config = installed.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"experts": 8}))
    card = json.loads((installed.folder / "model.json").read_text())
    card = card | {"version": 1, "files": card["files"] | {"config.json": config.stat().st_size}}
    (installed.folder / "model.json").write_text(json.dumps(card))
    here = store.Models(tmp_path / "here")
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models))
        with pytest.raises(errors.EngineError, match="experts"):
            await mesh.fetch("tiny", here)
    assert here.list() == []
    assert not list((tmp_path / "here").glob("*.new"))


async def test_of_two_that_fetch_at_once_one_fetches_and_both_have_it(tmp_path: Path, autojump_clock: Clock) -> None:
    models, installed = shelves.model(tmp_path)
    here = store.Models(tmp_path / "here")
    found: list[int] = []
    async with shelves.mesh() as mesh:
        await mesh.start("a", shelves.Shelf(models))

        async def one() -> None:
            got = await mesh.fetch("tiny", here)
            assert got.model.digest == installed.digest
            found.append(sum(got.given_bytes.values()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
    assert sorted(found) == [0, installed.disk_bytes]
