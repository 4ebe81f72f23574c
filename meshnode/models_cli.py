"""`meshnode models`: what is on the shelf of this machine, and how more comes onto it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated

import typer

from meshnode import config, control, shown
from meshnode.commands import Data, Json, said

app = typer.Typer(no_args_is_help=True, help="Models on this machine.")
out = shown.out


@app.command("list")
@said
def models_list(as_json: Json = False) -> None:
    """Models that can be served, and which of them are here."""
    from meshnode import node
    from meshnode.models import incoming, registry, store

    here = {model.name: model for model in store.Models(node.models_folder()).list()}
    broken_off = incoming.left(node.models_folder())
    rows = [
        {
            "name": known.name,
            "here": known.name in here,
            "digest": here[known.name].digest.hex() if known.name in here else None,
            "download_mb": round(known.wheel_bytes / 1e6),
            "license": known.license,
        }
        for known in registry.KNOWN.values()
    ] + [
        {"name": name, "here": True, "digest": own.digest.hex(), "download_mb": None, "license": None}
        for name, own in here.items()
        if name not in registry.KNOWN
    ]
    if as_json:
        print(json.dumps({"models": rows, "broken_off": broken_off}))
        return
    out.print(shown.models(rows))
    for folder in broken_off:
        out.print(f"broken off: meshnode models fetch {folder.removesuffix('.new')}, or meshnode models rm {folder}")


@app.command("pull")
@said
def models_pull(name: Annotated[str, typer.Argument()] = config.Node().model) -> None:
    """Fetch a model, check its digest, convert it. Goes on where it was interrupted."""
    from meshnode import node
    from meshnode.models import store

    progress = shown.Progress(False)
    model = store.Models(node.models_folder()).pull(name, functools.partial(progress.step, f"fetching {name}"))
    out.print(f"{model.name} is here: {model.digest.hex()}")


@app.command("fetch")
@said
def models_fetch(
    what: Annotated[str, typer.Argument(help="The digest of a model, 64 digits, or what peers call it.")],
    join: Annotated[list[str] | None, typer.Option(help="Address of the mesh; the default is your node's.")] = None,
    name: Annotated[str, typer.Option(help="How to call it here.")] = "",
    limit: Annotated[int, typer.Option("--mbit", help="Megabits a second at most; 0 is no limit.")] = 0,
    data: Data = "",
    as_json: Json = False,
) -> None:
    """Fetch a model from peers that have it, each chunk checked by the digest. Goes on where it was interrupted."""
    import trio

    from meshnode import node, obtain
    from meshnode.models import store

    models = store.Models(node.models_folder())
    addresses = () if models.find(what) else tuple(join or control.card(control.data_folder(data))["addresses"])
    settings = config.read({"join": addresses, "download_mbit_s_max": limit})
    step = (lambda *said: None) if as_json else shown.Progress(False).step
    got = trio.run(functools.partial(obtain.obtain, what, models, settings, name=name, progress=step))
    print(json.dumps(shown.obtained(got))) if as_json else out.print(shown.obtained_line(got))


@app.command("add")
@said
def models_add(
    name: Annotated[str, typer.Argument(help="How to call it; `meshnode up --model NAME` serves it.")],
    source: Annotated[Path, typer.Argument(help="A .gguf file, or a folder as Hugging Face has it.")],
) -> None:
    """Convert a model that lies on this machine: Llama, Mistral, Qwen2 and Qwen3."""
    from meshnode import node
    from meshnode.models import store

    model = store.Models(node.models_folder()).add(name, source)
    out.print(f"{model.name} is here: {model.digest.hex()}")


@app.command("rm")
@said
def models_rm(name: str) -> None:
    """Remove a model from this machine."""
    from meshnode import node
    from meshnode.models import store

    store.Models(node.models_folder()).remove(name)
    out.print(f"{name} removed")
