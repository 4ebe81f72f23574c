"""A fetch from end to end: real folders, real brains, the network in memory and the clock of a test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
import trio.testing

from meshnode import errors, fetcher
from meshnode.chunks import fetching, listing
from meshnode.models import incoming, store
from tests.chunks import shelves
from tests.models import small


@pytest.fixture(autouse=True)
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a KiB, so that a small model has some eighty."""
    monkeypatch.setattr(listing, "CHUNK_BYTES", 1 << 10)


def same(one: store.Installed, other: store.Installed) -> bool:
    return all((one.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in listing.FILES)


async def test_a_model_comes_by_digest_from_several_peers(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    models, installed = shelves.model(tmp_path)
    here = store.Models(tmp_path / "here")
    async with shelves.mesh() as mesh:
        for name in "abc":
            await mesh.start(name, shelves.Shelf(models))
        await mesh.start("none")
        got = await mesh.fetch(installed.digest.hex(), here, "none")
    assert same(got.model, installed)
    assert (got.model.digest, got.model.name) == (installed.digest, "tiny")
    assert sum(got.given_bytes.values()) == installed.disk_bytes
    assert set(got.given_bytes) == {mesh.nodes[name].id for name in "abc"}
    assert here.list() == [got.model]
