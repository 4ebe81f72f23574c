"""What brings a mesh up says what the code says: the example files are read by the code that reads yours."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
import yaml

from meshnode import config, ids
from meshnode.net import places

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "bootstrap").glob("*.toml"))


def read(path: Path) -> config.Node:
    return config.read(tomllib.loads(path.read_text())["node"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_a_valid_configuration(path: Path) -> None:
    assert list(tomllib.loads(path.read_text())) == ["node"]
    node = read(path)
    me = ids.PeerId(bytes(32))
    assert places.to_listen(node.listen, me)
    assert len(places.to_announce(node.announce, me)) == len(node.announce)


def test_the_volunteers_file_shows_every_key_with_its_default_and_a_comment() -> None:
    path = ROOT / "bootstrap/node.toml"
    assert read(path) == config.Node()
    lines = path.read_text().splitlines()
    for field in dataclasses.fields(config.Node):
        (at,) = [index for index, line in enumerate(lines) if line.startswith(f"{field.name} = ")]
        assert lines[at - 1].startswith("# "), field.name


def test_the_seed_hosts_nothing_and_votes_on_nothing() -> None:
    seed = read(ROOT / "bootstrap/seed.toml")
    assert (seed.host, seed.vote) == (False, False)


def test_the_nodes_of_the_compose_file_read_the_address_that_its_seed_writes() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert sorted(services) == ["node1", "node2", "node3", "node4", "seed"]
    assert services["seed"]["command"][-1] == read(ROOT / "bootstrap/compose.toml").join_file
    for name, service in services.items():
        assert f"{name}:/data" in service["volumes"]
        assert service["image"] == "meshnode"
