"""The command line: the only reader of arguments, files and the environment.

Thin: each command reads, calls one function, prints. What a command prints as a table it prints as JSON with `--json`.
Imports stay inside commands: `meshnode status` must answer before libp2p has finished importing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode import __version__, config, control, errors, models_cli, moves_cli, shown, sim_cli
from meshnode.commands import Data, Json
from meshnode.commands import said as _said

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="A peer-to-peer mesh whose sessions outlive the machine they run on.",
)
sessions_app = typer.Typer(no_args_is_help=True, help="Sessions in which this node has a part.")
demo_app = typer.Typer(no_args_is_help=True, help="See it work.")
app.add_typer(models_cli.app, name="models")
app.add_typer(sessions_app, name="sessions")
app.add_typer(demo_app, name="demo")
for _command in (moves_cli.down, moves_cli.drain, moves_cli.undrain):
    app.command()(_command)
sessions_app.command("migrate")(moves_cli.migrate)
app.command("sim")(sim_cli.sim)

out, err = shown.out, shown.err


def _folder(data: str) -> Path:
    return control.data_folder(data)


def _settings(path: str, given: dict[str, Any]) -> config.Node:
    """A configuration file's [node] table, and over it what the command line says."""
    raw: dict[str, Any] = {}
    if path:
        try:
            raw = tomllib.loads(Path(path).read_text()).get("node", {})
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise errors.ConfigError(f"{path} cannot be read: {error}", hint="see bootstrap/node.toml") from None
    return config.read({**raw, **{key: value for key, value in given.items() if value not in (None, [], "")}})


# ----------------------------------------------------------------------------------------------------------------- node


@app.command()
@_said
def up(
    config_file: Annotated[str, typer.Option("--config", help="Configuration (bootstrap/node.toml explains).")] = "",
    data: Data = "",
    join: Annotated[list[str] | None, typer.Option(help="Bootstrap multiaddr; repeat for more.")] = None,
    join_file: Annotated[str, typer.Option(help="File with bootstrap multiaddrs.")] = "",
    join_out: Annotated[str, typer.Option(help="Write this node's addresses to a file.")] = "",
    listen: Annotated[list[str] | None, typer.Option(help="Multiaddr to listen on.")] = None,
    announce: Annotated[list[str] | None, typer.Option(help="Multiaddr that others shall dial.")] = None,
    name: Annotated[str, typer.Option(help="How this node is called in listings.")] = "",
    zone: Annotated[str, typer.Option(help="Sovereignty zone.")] = "",
    operator: Annotated[str, typer.Option(help="Who runs this node.")] = "",
    model: Annotated[str, typer.Option(help="What to serve: a model's name or digest.")] = "",
    numeric_class: Annotated[str, typer.Option(help="w8, i8, bf16 or f32.")] = "",
    memory_mib: Annotated[int | None, typer.Option(help="KV memory for sessions.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.")] = None,
    host: Annotated[bool | None, typer.Option("--host/--no-host", help="Run sessions here.")] = None,
    vote: Annotated[bool | None, typer.Option("--vote/--no-vote", help="Keep sessions' logs here.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Go to the background once it is up.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No colours, no progress bars: for logs.")] = False,
    leash: Annotated[bool, typer.Option("--leash", help="Stop when standard input ends.", hidden=True)] = False,
) -> None:
    """Run a node: join a mesh, or begin one."""
    given = {
        "data": data, "join": join, "join_file": join_file, "listen": listen, "announce": announce, "name": name,
        "zone": zone, "operator": operator, "model": model, "numeric_class": numeric_class, "memory_mib": memory_mib,
        "threads": threads, "host": host, "vote": vote,
    }  # fmt: skip
    settings = _settings(config_file, given)
    if detach:
        _detach(control.data_folder(settings.data))
        return
    import trio

    from meshnode import node

    progress = shown.Progress(plain)

    async def until_signalled() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_signalled, nursery.cancel_scope)
            if leash:
                nursery.start_soon(_leashed, nursery.cancel_scope)
            await node.run(settings, on_up=progress.up, progress=progress.step, join_out=join_out)
            nursery.cancel_scope.cancel()

    trio.run(until_signalled)
    progress.line("stopped")


async def _leashed(scope: Any) -> None:
    """A demo's nodes end with the demo, however that ends: its end of the pipe closes."""
    import trio

    await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
    scope.cancel()


async def _signalled(scope: Any) -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


def _detach(folder: Path) -> None:
    """Start this same command again without --detach, in the background, and wait until it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output"
    arguments = [argument for argument in sys.argv[1:] if argument not in ("-d", "--detach")]
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "meshnode", *arguments, "--plain"],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    while not (folder / control.CARD).exists() or control.card(folder).get("pid") != child.pid:
        if child.poll() is not None:
            tail = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise errors.ConfigError(f"the node ended: {' '.join(tail)}", hint=f"its output is in {log}")
        time.sleep(0.1)
    card = control.card(folder)
    out.print(f"up in the background: {card['id']} (output in {log})")
    for address in card["addresses"]:
        out.print(f"  others join with: meshnode up --join {address}")


@app.command()
@_said
def status(
    data: Data = "",
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
) -> None:
    """What the running node is doing."""
    folder = _folder(data)
    if not watch:
        found = control.ask(folder, {"do": "status"})
        print(json.dumps(found)) if as_json else out.print(shown.status(found))
        return
    from rich.live import Live

    with Live(shown.status(control.ask(folder, {"do": "status"})), console=out, refresh_per_second=4) as live:
        while True:
            time.sleep(1.0)
            live.update(shown.status(control.ask(folder, {"do": "status"})))


@app.command()
@_said
def peers(data: Data = "", as_json: Json = False) -> None:
    """The members of the mesh, as the running node knows them."""
    found = control.ask(_folder(data), {"do": "status"})["peers"]
    if as_json:
        print(json.dumps({"peers": found}))
        return
    out.print(shown.peers(found) if found else "no peers yet; others join with the line that `meshnode status` prints")


@sessions_app.command("ps")
@_said
def sessions_ps(data: Data = "", as_json: Json = False) -> None:
    """Sessions that run here, or of which this node keeps a copy."""
    found = control.ask(_folder(data), {"do": "status"})["sessions"]
    if as_json:
        print(json.dumps({"sessions": found}))
        return
    out.print(shown.sessions(found) if found else "no sessions here; `meshnode chat` opens one")


# ----------------------------------------------------------------------------------------------------------------- talk


@app.command()
@_said
def chat(
    prompt: Annotated[list[str] | None, typer.Argument(help="Ask this and end; without it, talk.")] = None,
    data: Data = "",
    join: Annotated[list[str] | None, typer.Option(help="Address of the mesh; the default is your node's.")] = None,
    manifest: Annotated[str, typer.Option("--manifest", help="YAML or JSON.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Longest answer; 0 is the manifest's.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k best tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the best tokens with this probability together.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens with this share of the best one's.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: says less again.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="-2 to 2, for what was said.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="-2 to 2, for each time.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same answer.")] = None,
    logprobs: Annotated[int | None, typer.Option(help="With --json: log probabilities, and so many others.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; up to four.")] = None,
    schema: Annotated[str, typer.Option(help="File with a JSON schema that answers follow.")] = "",
    regex: Annotated[str | None, typer.Option(help="Regular expression that answers follow.")] = None,
    as_json: Json = False,
) -> None:
    """Open a session on the mesh and talk in it."""
    from meshnode import talk

    addresses = list(join or ()) or list(control.card(_folder(data))["addresses"])
    turns = [" ".join(prompt)] if prompt else None
    asked = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty, "seed": seed,
        "frequency_penalty": frequency_penalty, "logprobs": logprobs, "stop": stop or None, "regex": regex,
        "schema": _text(schema) if schema else None,
    }  # fmt: skip
    talk.run(addresses, _manifest(manifest), turns, asked, as_json)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{path} cannot be read: {error}") from None


def _manifest(path: str) -> Any:
    import yaml

    from meshnode import manifest

    if not path:  # a person at a prompt wants no greedy model, which would repeat itself, nor the same answer twice
        seed = int.from_bytes(os.urandom(7))
        return manifest.Manifest(agent=manifest.Agent(temperature=0.7, top_p=0.95, seed=seed))
    try:
        return manifest.read(yaml.safe_load(Path(path).read_text()))  # JSON is YAML
    except (OSError, yaml.YAMLError) as error:
        raise errors.ConfigError(f"{path} cannot be read: {error}") from None


@demo_app.command("failover")
@_said
def demo_failover(
    as_json: Json = False,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Length of the answer.")] = 120,
) -> None:
    """Three nodes, one session; its host is killed in mid-answer, and the answer goes on."""
    from meshnode import demo

    raise typer.Exit(demo.run(prompt or demo.PROMPT, max_tokens, as_json))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """The entry point."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Read when torch is loaded: a thread that waits for the others sleeps. Spinning is faster alone, and ruinous beside
    # the owner's own work or a second node.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
