"""Planned moves as their users meet them: real processes, the real model, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from meshnode import client, cluster, control, failover, ids, manifest, moving

pytestmark = pytest.mark.usefixtures("model")
SETTINGS = ("--memory-mib", "384", "--threads", "2")
PROMPT = "Explain to a curious child how a relay race is run, and why the baton must not fall."
WANTS = manifest.read(
    {
        "characteristics": {"context_tokens": 1024},
        "migration": {"replicas_min": 1},
        "agent": {"max_tokens": 90, "temperature": 0.7, "seed": 11},
    }
)


def meshnode(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meshnode", *arguments, "--data", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_session_goes_to_and_fro_during_an_answer_and_then_its_node_is_drained_and_stopped() -> None:
    trio.run(_to_and_fro)


async def _to_and_fro() -> None:
    async with cluster.cluster(3, SETTINGS) as nodes, client.connect(nodes.bootstrap) as mesh:
        async with mesh.session(WANTS) as session:
            reference = await failover.undisturbed(session, PROMPT)
        async with mesh.session(WANTS) as session:
            await session.wait_moved(1)
            first = session.host
            answer = await moving.moved(nodes, session, PROMPT, {5: ""})
            report = await moving.report(nodes, session, reference, answer)
            assert (report.lost, report.repeated, report.equal) == (0, 0, True)
            assert first != session.host
            again = await moving.moved(nodes, session, PROMPT, {5: "", 50: ""})
            assert len(again.seqs) == len(set(again.seqs)) > 60
            assert session.host != first, "to and fro"
            await session.wait_moved(4)
            await _drained(nodes, session)


async def _drained(nodes: cluster.Cluster, session: client.Session) -> None:
    """The command line, on the node that hosts the session."""
    assert session.host is not None
    old = nodes.by_id(ids.peer_text(session.host))
    refused = await trio.to_thread.run_sync(
        meshnode, old.folder, "sessions", "migrate", session.id.hex(), "--to", "nowhere"
    )
    assert refused.returncode == 1
    assert "no node here is called" in refused.stderr
    moved = await trio.to_thread.run_sync(meshnode, old.folder, "sessions", "migrate", session.id.hex()[:8], "--json")
    assert moved.returncode == 0, moved.stderr
    found = json.loads(moved.stdout)
    assert found["host"] not in (None, old.id)
    host = nodes.by_id(found["host"])
    rows = control.ask(host.folder, {"do": "status"})["sessions"]
    assert [row["hosting"] for row in rows if row["id"] == session.id.hex()] == [True]
    drained = await trio.to_thread.run_sync(meshnode, host.folder, "drain", "--wait", "--patience", "1", "--json")
    assert json.loads(drained.stdout) == {"draining": True, "left": []}, drained.stderr
    peers = control.ask(old.folder, {"do": "status"})["peers"]
    assert [one["draining"] for one in peers if one["id"] == host.id] == [True]
    stopped = await trio.to_thread.run_sync(meshnode, host.folder, "down")
    assert stopped.stdout.strip() == "stopped"
    assert [token async for token in session.say("And then?", max_tokens=4)]
