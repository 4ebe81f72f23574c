"""`meshnode sim`: hostile worlds by number. One to look at, or as many as there is time for."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated, Any

import typer

from meshnode import shown
from meshnode.commands import Json, said

out = shown.out


@said
def sim(
    seed: Annotated[int | None, typer.Option("--seed", help="Run this world.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Run so many, from --first on.")] = 0,
    first: Annotated[int, typer.Option("--first", help="The first of them.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes; 0 is one for each core.")] = 0,
    options: Annotated[str, typer.Option("--options", help="A world as a failure names it; not the seed's own.")] = "",
    trace: Annotated[bool, typer.Option("--trace", help="Every step of every brain.")] = False,
    as_json: Json = False,
) -> None:
    """Run the mesh in a simulated world: virtual time, and every fault that a seed draws."""
    if (seed is None) == (seeds == 0):
        raise typer.BadParameter("give one world by --seed, or a number of them by --seeds")
    passed = _one(seed, options, trace, as_json) if seed is not None else _many(first, seeds, jobs, as_json)
    raise typer.Exit(0 if passed else 1)


def _one(seed: int, words: str, trace: bool, as_json: bool) -> bool:
    from meshnode.sim import campaign
    from meshnode.sim import options as worlds
    from meshnode.sim.trace import Trace

    chosen = worlds.read(words) if words else worlds.drawn(seed)
    if not as_json:
        print(f"seed {seed}: {chosen.words()}", flush=True)
    one = campaign.run(seed, chosen, Trace(print if trace else None))
    if as_json:
        print(json.dumps(_outcome(one) | {"digest": one.digest, "marks": one.hits, "steps": one.step_count}))
    elif one.broken:
        print("\n".join(one.lines()))
    else:
        print(f"nothing broken in {one.virtual_s:.1f} virtual s, {one.step_count} steps; digest {one.digest}")
    return not one.broken


def _many(first: int, count: int, jobs: int, as_json: bool) -> bool:
    from meshnode.sim import campaign

    began_s = time.monotonic()

    def progress(so_far: campaign.Sum) -> None:
        if sys.stderr.isatty():
            rate = 60 * so_far.seed_count / (time.monotonic() - began_s)
            told = f"{so_far.seed_count} of {count} seeds, {rate:.0f} a minute, {len(so_far.failures)} failed"
            print(f"\r{told}", end="", file=sys.stderr, flush=True)

    found = campaign.campaign(range(first, first + count), jobs or len(os.sched_getaffinity(0)), progress)
    seconds = time.monotonic() - began_s
    if sys.stderr.isatty():
        print(file=sys.stderr)
    small = [campaign.shrunk(one) for one in found.failures[:1]] + found.failures[1:]
    digest = campaign.run(1).digest
    if as_json:
        print(json.dumps(_summed(found, small, seconds, digest)))
        return found.passed
    for one in small:
        print("\n".join(one.lines()))
    _say(found, seconds, digest)
    return found.passed


def _say(found: Any, seconds: float, digest: str) -> None:
    for name in found.missed:
        print(f"never reached: {name}")
    rate = 60 * found.seed_count / seconds
    out.print(f"{found.seed_count} seeds, {len(found.failures)} violations, {len(found.missed)} marks missed")
    out.print(f"{found.virtual_s / 3600:.1f} virtual hours, {found.step_count} steps, {rate:.0f} seeds a minute")
    out.print(f"digest of seed 1: {digest}")


def _outcome(one: Any) -> dict[str, Any]:
    replay = one.lines()[2].removeprefix("replay: ")
    return {"seed": one.seed, "options": one.options.words(), "violated": one.detail or None, "replay": replay}


def _summed(found: Any, small: list[Any], seconds: float, digest: str) -> dict[str, Any]:
    return {
        "seeds": found.seed_count,
        "violations": [_outcome(one) for one in small],
        "marks": dict(sorted(found.reached.items())),
        "marks_missed": found.missed,
        "seeds_per_minute": 60 * found.seed_count / seconds,
        "virtual_s": found.virtual_s,
        "steps": found.step_count,
        "digest": digest,
    }
