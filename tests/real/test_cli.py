"""The command line as its users meet it: real processes, real sockets, the real model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode import cluster

pytestmark = pytest.mark.usefixtures("model")


def meshnode(*arguments: str, feed: str = "", seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meshnode", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command, input=feed, capture_output=True, text=True, timeout=seconds, env=environment, check=False
    )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One running node; its data folder."""
    folder = tmp_path_factory.mktemp("node")
    done = meshnode("up", "--detach", "--data", str(folder), "--name", "attic", "--listen", "/ip4/127.0.0.1/tcp/0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "others join with: meshnode up --join /ip4/127.0.0.1/tcp/" in done.stdout
    yield folder
    done = meshnode("down", "--data", str(folder))
    assert done.stdout.strip() == "stopped"


def test_status_tells_who_the_node_is_and_that_one_node_has_no_failover(node: Path) -> None:
    found = json.loads(meshnode("status", "--json", "--data", str(node)).stdout)
    assert found["name"] == "attic"
    assert found["id"].startswith("12D3KooW")
    assert found["failover"].startswith("no failover")
    assert found["addresses"][0].endswith(found["id"])
    assert "attic" in meshnode("status", "--data", str(node)).stdout


def test_peers_and_sessions_say_that_there_are_none(node: Path) -> None:
    assert "no peers yet" in meshnode("peers", "--data", str(node)).stdout
    assert "no sessions here" in meshnode("sessions", "ps", "--data", str(node)).stdout


def test_a_single_node_answers_and_says_that_nothing_would_catch_it(node: Path) -> None:
    done = meshnode("chat", "--data", str(node), "--max-tokens", "12", "Say hello.")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "no failover" in done.stderr


def test_chat_reads_turns_from_a_pipe_and_prints_json(node: Path) -> None:
    done = meshnode("chat", "--data", str(node), "--max-tokens", "8", "--json", feed="Say hello.\nSay it again.\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["tokens"] <= 8 for answer in answers] == [True, True]
    assert all(answer["end"] in ("stop", "length") for answer in answers)


def test_an_answer_follows_a_schema_from_a_file(node: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": [{"rain": True}, {"rain": False}]}))
    options = ("--temperature", "0", "--schema", str(schema), "--logprobs", "2", "--json")
    done = meshnode("chat", "--data", str(node), *options, "Will it rain?")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads(found["answer"]) in ({"rain": True}, {"rain": False})
    assert found["end"] == "stop"
    assert [len(token["top"]) for token in found["logprobs"]] == [2] * found["tokens"]


def test_an_answer_ends_before_a_stop_string(node: Path) -> None:
    options = ("--temperature", "0", "--regex", "one two three", "--stop", "wo th", "--json")
    done = meshnode("chat", "--data", str(node), *options, "Count.")
    assert json.loads(done.stdout)["answer"] == "one t", done.stderr
    assert json.loads(done.stdout)["end"] == "stop string"


def test_options_and_grammars_that_cannot_be_are_refused_with_every_reason(node: Path, tmp_path: Path) -> None:
    done = meshnode("chat", "--data", str(node), "--temperature", "99", "--min-p", "2", "Hello?")
    assert done.returncode == 1
    assert "temperature: must be 0 to 10" in done.stderr
    assert "min_p: must be" in done.stderr
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer", "minimum": 5, "maximum": 3}')
    done = meshnode("chat", "--data", str(node), "--schema", str(schema), "Hello?")
    assert done.returncode == 1
    assert "Unsatisfiable" in done.stderr
    done = meshnode("chat", "--data", str(node), "--schema", str(tmp_path / "none.json"), "Hello?")
    assert "cannot be read" in done.stderr


def test_a_manifest_that_cannot_be_met_is_refused_with_every_reason(node: Path, tmp_path: Path) -> None:
    wants = tmp_path / "wants.yaml"
    wants.write_text("placement: {model: gpt-9, zones: [moon]}\n")
    done = meshnode("chat", "--data", str(node), "--manifest", str(wants), "Hello?")
    assert done.returncode == 1
    assert "488" in done.stderr
    assert "gpt-9" in done.stderr
    assert "moon" in done.stderr


def test_a_manifest_with_typing_errors_names_all_of_them(node: Path, tmp_path: Path) -> None:
    wants = tmp_path / "wants.json"
    wants.write_text(json.dumps({"placment": {}, "agent": {"temperature": "hot", "top_p": 0.5}}))
    done = meshnode("chat", "--data", str(node), "--manifest", str(wants), "Hello?")
    assert done.returncode == 1
    assert "did you mean 'placement'" in done.stderr
    assert "agent.temperature" in done.stderr


def test_a_node_drains_and_takes_sessions_again(node: Path) -> None:
    assert "drained: no session runs here" in meshnode("drain", "--wait", "--data", str(node)).stdout
    assert "draining, 0 left" in meshnode("status", "--data", str(node)).stdout
    done = meshnode("chat", "--data", str(node), "--max-tokens", "4", "Hello?")
    assert done.returncode == 1
    assert "takes sessions again" in meshnode("undrain", "--data", str(node)).stdout
    assert meshnode("chat", "--data", str(node), "--max-tokens", "4", "Hello?").returncode == 0


def test_a_second_node_on_the_same_data_folder_is_refused(node: Path) -> None:
    done = meshnode("up", "--plain", "--data", str(node), "--listen", "/ip4/127.0.0.1/tcp/0")
    assert done.returncode == 1
    assert "another meshnode uses this data folder" in done.stderr


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        done = meshnode("up", "--plain", "--no-host", "--data", str(tmp_path), "--listen", listen)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "in use" in done.stderr


def test_an_unreadable_identity_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "identity").write_text("not a key")
    done = meshnode("up", "--plain", "--no-host", "--data", str(tmp_path), "--listen", "/ip4/127.0.0.1/tcp/0")
    assert done.returncode == 1
    assert "identity" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    full = Path("/dev/full")
    assert full.exists()
    (tmp_path / "node.json.new").symlink_to(full)
    done = meshnode("up", "--plain", "--no-host", "--data", str(tmp_path), "--listen", "/ip4/127.0.0.1/tcp/0")
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_node_every_command_says_how_to_start_one(tmp_path: Path) -> None:
    commands = (("status",), ("peers",), ("sessions", "ps"), ("down",), ("chat", "hello"), ("drain",), ("undrain",))
    for command in (*commands, ("sessions", "migrate", "5f0c")):
        done = meshnode(command[0], *command[1:2], "--data", str(tmp_path), *command[2:])
        assert done.returncode == 1, command
        assert "no node is running here" in done.stderr
        assert "meshnode up" in done.stderr


def test_models_are_listed_and_an_unknown_one_is_refused() -> None:
    assert "smollm2-135m" in meshnode("models", "list").stdout
    found = json.loads(meshnode("models", "list", "--json").stdout)
    assert found["models"][0]["here"] is True
    done = meshnode("models", "pull", "gpt-9")
    assert done.returncode == 1
    assert "known: smollm2-135m" in done.stderr


def test_the_demo_loses_repeats_and_changes_nothing() -> None:
    done = meshnode("demo", "failover", "--json", "--max-tokens", "60", seconds=cluster.START_S_MAX)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["lost"], found["repeated"], found["equal"]) == (0, 0, True)
    assert found["gap_s"] > 0
    assert found["killed_after"] < found["tokens"]
