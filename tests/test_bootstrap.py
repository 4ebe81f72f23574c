"""What brings a mesh up says what the code says: the example files are read by the code that reads yours."""

from __future__ import annotations

import dataclasses
import json
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from meshnode import cli, config, failover, ids
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


def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def parsed(command: list[str]) -> dict[str, Any]:
    """The options of a command line, read by the code that reads yours."""
    assert command[0] == "up"
    return typer.main.get_command(cli.app).commands["up"].make_context("up", command[1:]).params  # type: ignore


def settings(name: str) -> config.Node:
    """What a container of the image runs with."""
    options = parsed(services()[name]["command"])
    own = {key: options[key] for key in ("name", "announce") if options[key]}
    path = Path(options["config_file"])
    assert path.parent == Path("/etc/meshnode")
    return config.read({**tomllib.loads((ROOT / "bootstrap" / path.name).read_text())["node"], **own})


def test_the_composed_mesh_is_a_seed_and_four_nodes_of_one_image() -> None:
    assert sorted(services()) == ["node1", "node2", "node3", "node4", "seed"]
    assert {service["image"] for service in services().values()} == {"meshnode"}
    assert [name for name, service in services().items() if "build" in service] == ["seed"]
    assert [name for name in services() if not settings(name).host] == ["seed"]


def test_the_nodes_of_the_compose_file_read_the_address_that_its_seed_writes() -> None:
    assert parsed(services()["seed"]["command"])["join_out"] == "/join/seed"
    for name, service in services().items():
        assert settings(name).join_file == ("" if name == "seed" else "/join/seed")
        assert any(volume.split(":")[:2] == ["join", "/join"] for volume in service["volumes"])


def test_a_container_is_dialled_by_its_name_and_called_by_it() -> None:
    for name in services():
        node = settings(name)
        assert (node.name, node.announce) == (name, (f"/dns4/{name}/tcp/4001",))
        assert node.listen == ("/ip4/0.0.0.0/tcp/4001",)


def test_the_seeds_port_alone_is_published_and_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"seed": ["127.0.0.1:4001:4001"]}


def test_the_nodes_have_a_data_folder_each_and_the_models_together() -> None:
    dockerfile = (ROOT / "bootstrap/Dockerfile").read_text()
    assert "XDG_DATA_HOME=/data" in dockerfile
    for name, service in services().items():
        assert f"{name}:/data" in service["volumes"]
        assert ("models:/data/meshnode/models" in service["volumes"]) == (name != "seed")
    assert "/data/meshnode/models" in dockerfile, "docker would make it, as root's"


def test_the_images_own_command_is_one() -> None:
    (line,) = [line for line in (ROOT / "bootstrap/Dockerfile").read_text().splitlines() if line.startswith("CMD ")]
    assert parsed(json.loads(line.removeprefix("CMD ")))["config_file"] == "/etc/meshnode/compose.toml"


def test_what_the_image_copies_is_in_its_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in (ROOT / "bootstrap/Dockerfile").read_text().splitlines():
        if not line.startswith("COPY ") or "--from" in line:
            continue
        for source in line.split()[1:-1]:
            assert (ROOT / source).exists(), source
            assert any(Path(source).match(kept[1:]) for kept in ignored if kept.startswith("!")), source


def check_compose() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "bootstrap/check_compose.py"))


def test_the_check_of_the_composed_mesh_knocks_at_the_published_port() -> None:
    (port,) = services()["seed"]["ports"]
    assert check_compose()["ADDRESS"] == "/ip4/{}/tcp/{}".format(*port.split(":"))


def test_the_check_counts_what_is_lost_repeated_and_changed() -> None:
    check = check_compose()
    whole = failover.Answer([5, 6, 7], [1, 2, 3], [0.0, 1.0, 2.0])
    assert check["compared"](whole, whole, -1.0).whole
    short = check["compared"](whole, failover.Answer([5, 6], [1, 2], [0.0, 4.0]), 0.5)
    assert (short.lost, short.repeated, short.changed, short.pause_s) == (1, 0, 0, 4.0)
    twice = check["compared"](whole, failover.Answer([5, 6, 6, 7], [1, 2, 2, 3], [0.0, 1.0, 2.0, 3.0]), 0.5)
    assert (twice.lost, twice.repeated, twice.changed) == (0, 1, 1)
    assert not twice.whole
