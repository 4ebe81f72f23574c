"""The failover of docker-compose.yml's mesh, checked from outside of its network: `python bootstrap/check_compose.py`.

Needs the mesh (`docker-compose up --build -d`) and the package here, without torch. One session, three turns, and the
same three without disturbance to compare with, token by token:

  1. in mid-answer the process that hosts is killed inside its container, whose restart policy brings it back at once;
     it must rejoin with what its journal holds
  2. in mid-answer the container that hosts by then is killed, and stays dead
  3. nobody is killed; two of the three voters go on. Then the dead one is started again, and must catch up

This process has a link to the seed alone, which neither hosts nor votes: the others' names do not exist out here. So
every token comes relayed, and that is checked as well. Exit code 0 if nothing was lost, repeated or changed. Kills
containers of this compose project only, and leaves all of them running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from meshnode import client, errors, failover, ids
from meshnode.ports import Lane

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "/ip4/127.0.0.1/tcp/4001"
WANTS = {
    "characteristics": {"context_tokens": 2048},
    "agent": {"max_tokens": 60, "temperature": 0.7, "seed": 7},
}
TURNS = (
    "Explain to a curious child how a telephone call is handed over from one cell to the next.",
    "And what happens when the mast in the middle loses its power?",
    "Say it again in one sentence.",
)
STRIKE_AFTER = 20
"""Tokens of an answer that come before the blow."""
REJOIN_S_MAX = 180.0
"""For a container to start, load the model, and be heard by all."""
POLL_S = 0.5

CRASH = "import json, os; os.kill(json.load(open('/data/meshnode/node.json'))['pid'], 9)"

Blow = Callable[["Container"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Container:
    """One service of the compose file, as it runs."""

    service: str
    number: str
    """The container's id."""
    peer: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of one answer."""

    lost: int
    repeated: int
    changed: int
    pause_s: float
    """The longest wait for a token from the blow on, or of the whole answer where there was none."""

    @property
    def whole(self) -> bool:
        return not (self.lost or self.repeated or self.changed)


class Failed(Exception):
    """The mesh did not do what it should."""


# ---------------------------------------------------------------------------------------------------------- containers


async def output(*command: str) -> str:
    """What a command printed. Raises Failed if it fails."""
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise Failed(f"`{' '.join(command)}` failed: {done.stderr.decode().strip()[-300:]}")
    return done.stdout.decode()


def compose() -> tuple[str, ...]:
    """The program of its own, or docker's plugin."""
    return ("docker-compose",) if shutil.which("docker-compose") else ("docker", "compose")


async def status(number: str) -> dict[str, Any]:
    """What the node in a container says of itself. Raises Failed if it does not answer."""
    if not number:
        raise Failed("there is no container")
    found: dict[str, Any] = json.loads(await output("docker", "exec", number, "meshnode", "status", "--json"))
    return found


async def containers() -> dict[str, Container]:
    """Every container of the project, by service. Raises Failed for one that does not answer."""
    found, remedy = {}, f"start the mesh with `{' '.join(compose())} up --build -d`"
    for service in sorted((await output(*compose(), "config", "--services")).split()):
        number = (await output(*compose(), "ps", "-q", service)).strip()
        try:
            found[service] = Container(service, number, (await status(number))["id"])
        except Failed as failed:
            raise Failed(f"{service} is not up, {remedy} and wait until it is healthy ({failed})") from None
    return found


async def crash(container: Container) -> None:
    """Kill the node; its container ends with it, and is started again by its restart policy."""
    await output("docker", "exec", container.number, "python", "-c", CRASH)


async def kill(container: Container) -> None:
    """Kill the container; docker leaves one dead that was killed by its user."""
    await output("docker", "kill", container.number)


async def rejoined(container: Container, host: Container, session: bytes, peers: int) -> float:
    """Seconds until the node hears everybody again and its log of the session is as long as the host's."""
    began, row = trio.current_time(), None
    goal = _row(await status(host.number), session)
    with trio.move_on_after(REJOIN_S_MAX):
        while True:
            try:
                said = await status(container.number)
            except Failed:
                said = {"peers": [], "sessions": []}
            row = _row(said, session)
            heard = sum(peer["alive"] and peer["linked"] for peer in said["peers"])
            if row and goal and row["log_seq"] >= goal["log_seq"] and heard >= peers:
                return trio.current_time() - began
            await trio.sleep(POLL_S)
    raise Failed(f"{container.service} did not rejoin within {REJOIN_S_MAX:.0f} s; it has {row}, the host {goal}")


def _row(said: dict[str, Any], session: bytes) -> dict[str, Any] | None:
    return next((row for row in said["sessions"] if row["id"] == session.hex()), None)


# --------------------------------------------------------------------------------------------------------------- turns


async def ask(
    session: client.Session, prompt: str, strike: Callable[[], Awaitable[None]] | None = None
) -> tuple[failover.Answer, float]:
    """An answer, and when the blow fell."""
    answer, struck_at = failover.Answer(), float("-inf")
    async with trio.open_nursery() as nursery:
        async for token in session.say(prompt):
            answer.add(token)
            if strike is not None and len(answer.ids) == STRIKE_AFTER:
                struck_at = trio.current_time()
                nursery.start_soon(strike)
    return answer, struck_at


def compared(reference: failover.Answer, answer: failover.Answer, struck_at: float) -> Turn:
    """Count."""
    waits = [later - at for at, later in zip(answer.times, answer.times[1:], strict=False) if later > struck_at]
    return Turn(
        lost=max(0, len(reference.ids) - len(set(answer.seqs))),
        repeated=len(answer.seqs) - len(set(answer.seqs)),
        changed=sum(ours != theirs for ours, theirs in zip(answer.ids, reference.ids, strict=False)),
        pause_s=max(waits, default=0.0),
    )


async def disturbed(mesh: client.Mesh, nodes: dict[str, Container], references: list[failover.Answer]) -> list[Turn]:
    """The three turns. Raises Failed if a blow hit nobody or a node did not come back."""
    turns: list[Turn] = []
    async with mesh.session(WANTS) as session:
        seats = {ids.peer_text(seat.peer): seat.role for seat in session.seats}
        named = {one.peer: one for one in nodes.values()}
        print("  seats: " + ", ".join(f"{role} {named[peer].service}" for peer, role in seats.items()))
        if len(seats) < 3 or nodes["seed"].peer in seats:
            raise Failed(f"three of the four nodes should vote, and the seed should not: {session.notices}")
        hit: list[Container] = []

        def blow(act: Blow) -> Callable[[], Awaitable[None]]:
            async def strike() -> None:
                assert session.host is not None
                hit.append(named[ids.peer_text(session.host)])
                await act(hit[-1])

            return strike

        for number, act in enumerate((crash, kill, None)):
            answer, struck_at = await ask(session, TURNS[number], blow(act) if act else None)
            turns.append(compared(references[number], answer, struck_at))
            assert session.host is not None
            host = named[ids.peer_text(session.host)]
            told = f"{hit[number].service}'s {'process' if act is crash else 'container'} killed" if act else "no blow"
            print(f"  turn {number + 1}: {told}, {host.service} hosts; {_words(turns[-1], len(answer.ids))}")
            if act is not None and host == hit[number]:
                raise Failed(f"{host.service} was hit and hosts all the same: the blow came too late")
            only_through(mesh, nodes["seed"])
            if act is crash:
                took_s = await rejoined(hit[0], host, session.id, len(nodes) - 1)
                print(f"  {hit[0].service} is back and has the whole log {took_s:.1f} s after the answer's end")
        await output("docker", "start", hit[1].number)
        took_s = await rejoined(hit[1], host, session.id, len(nodes) - 1)
        print(f"  {hit[1].service} is back and has the whole log {took_s:.1f} s after its start")
    return turns


def only_through(mesh: client.Mesh, seed: Container) -> None:
    """Raises Failed if this client has a link to anybody but the seed: then the way through it was not tried."""
    linked = {ids.peer_text(peer) for lane in Lane for peer in mesh.brain.mesh.links_of(lane)}
    if linked != {seed.peer}:
        raise Failed(f"linked to {sorted(linked)}, not to the seed alone; do the nodes' names resolve out here?")


def _words(turn: Turn, count: int) -> str:
    return (
        f"{count} tokens, lost {turn.lost}, repeated {turn.repeated}, changed {turn.changed}, "
        f"longest pause {turn.pause_s:.2f} s"
    )


async def check(rounds: int) -> bool:
    """Whether every answer of every round was whole. Raises Failed, MeshError."""
    nodes = await containers()
    print(f"mesh: {', '.join(nodes)}; joining through the seed at {ADDRESS}")
    async with client.connect([f"{ADDRESS}/p2p/{nodes['seed'].peer}"]) as mesh:
        async with mesh.session(WANTS) as session:
            references = [(await ask(session, prompt))[0] for prompt in TURNS]
        only_through(mesh, nodes["seed"])
        print(f"undisturbed: {', '.join(str(len(one.ids)) for one in references)} tokens, all through the seed")
        turns: list[Turn] = []
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}")
            try:
                turns += await disturbed(mesh, nodes, references)
            finally:
                with trio.CancelScope(shield=True), contextlib.suppress(Failed):
                    await output("docker", "start", *(one.number for one in nodes.values()))
    return all(turn.whole for turn in turns)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Kill what hosts in the composed mesh; no token may be lost.")
    parser.add_argument("--rounds", type=int, default=1, help="how often to do it all (default: once)")
    verdict = "FAILED: an answer is not the undisturbed one"
    whole = False
    try:
        whole = trio.run(check, parser.parse_args().rounds)
    except* (Failed, errors.MeshError, FileNotFoundError) as group:
        verdict = f"FAILED: {_first(group)}"
    print("whole: nothing lost, repeated or changed" if whole else verdict)
    return 0 if whole else 1


def _first(fault: BaseException) -> BaseException:
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault


if __name__ == "__main__":
    raise SystemExit(main())
