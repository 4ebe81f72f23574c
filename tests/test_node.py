"""Which model a node serves, and where it looks for it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode import config, errors, ids, node, obtain
from meshnode.models import registry, store
from tests.chunks import shelves
from tests.sessions import cases

PEER = f"/ip4/127.0.0.1/tcp/1/p2p/{ids.peer_text(cases.B)}"


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, what: str, done: int, of: int) -> None:
        self.lines.append(what)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[store.Models, store.Installed, list[str]]:
    """A shelf with one model, an index that is out of reach, and peers that have whatever they are asked for."""
    models, installed = shelves.model(tmp_path)
    monkeypatch.setitem(registry.KNOWN, "known", registry.KNOWN["smollm2-135m"])
    asked: list[str] = []

    def pull(self: store.Models, name: str, progress: object) -> store.Installed:
        asked.append(f"pull {name}")
        raise errors.ConfigError("no index")

    async def fetched(what: str, models: store.Models, settings: config.Node, **options: object) -> obtain.Obtained:
        asked.append(f"fetch {what}")
        return obtain.Obtained(installed)

    monkeypatch.setattr(store.Models, "pull", pull)
    monkeypatch.setattr(obtain, "obtain", fetched)
    return models, installed, asked


World = tuple[store.Models, store.Installed, list[str]]


async def test_a_model_that_is_here_is_served_by_its_name_and_by_its_digest(world: World) -> None:
    models, installed, asked = world
    for what in ("tiny", installed.digest.hex()):
        assert await node._model(config.Node(model=what, join=(PEER,)), models, Said()) == installed
    assert asked == []


async def test_a_name_that_pull_knows_is_pulled_and_only_then_asked_of_peers(world: World) -> None:
    models, _, asked = world
    said = Said()
    await node._model(config.Node(model="known", join=(PEER,)), models, said)
    assert asked == ["pull known", "fetch known"]
    assert any("could not be pulled (no index); asking peers" in line for line in said.lines)


async def test_what_pull_does_not_know_is_asked_of_peers_at_once(world: World) -> None:
    models, _, asked = world
    for joined in (config.Node(model="other", join=(PEER,)), config.Node(model="other", join_file="join")):
        await node._model(joined, models, Said())
    assert asked == ["fetch other", "fetch other"]


@pytest.mark.parametrize("name", ["known", "other"])
async def test_without_peers_what_cannot_be_pulled_is_said(world: World, name: str) -> None:
    models, _, asked = world
    with pytest.raises(errors.ConfigError, match="no index"):
        await node._model(config.Node(model=name), models, Said())
    assert asked == [f"pull {name}"]
