"""`meshnode chat`: a session on the mesh at a prompt, or one question from a script."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio

from meshnode import client, errors, forms, ids, manifest, shown
from meshnode.sessions.attach import Lost, Moved

out, err = shown.out, shown.err


def run(
    bootstrap: list[str], wants: manifest.Manifest, turns: list[str] | None, asked: Mapping[str, Any], as_json: bool
) -> None:
    """Talk until the input ends, or ask `turns` and end. `asked`: as client.Session.say takes them, for every turn.
    Raises Refused, ConfigError."""
    trio.run(_talk, bootstrap, wants, turns, asked, as_json)


async def _talk(
    bootstrap: list[str], wants: manifest.Manifest, turns: list[str] | None, asked: Mapping[str, Any], as_json: bool
) -> None:
    async with client.connect(bootstrap) as mesh, mesh.session(wants) as session:
        if not as_json:
            _introduce(session)
        async with trio.open_nursery() as nursery:
            if not as_json:
                nursery.start_soon(_tell_moves, mesh, session)
            async for text in _turns(turns):
                try:
                    answer = await _answer(session, text, asked, quiet=as_json)
                except errors.Refused as refused:
                    if turns is not None:
                        raise
                    err.print(f"[red]{refused}[/red]", markup=True)
                    continue
                if as_json:
                    print(json.dumps(answer))
            nursery.cancel_scope.cancel()


def _introduce(session: client.Session) -> None:
    seats = ", ".join(f"{seat.role} {ids.peer_short(seat.peer)}" for seat in session.seats)
    err.print(f"[dim]session {session.id.hex()[:8]}: {seats}[/dim]")
    for notice in session.notices:
        err.print(f"[yellow]{notice}[/yellow]")


async def _turns(given: list[str] | None) -> AsyncIterator[str]:
    """The user's turns, one at a time."""
    if given is not None:
        for text in given:
            yield text
        return
    tty = sys.stdin.isatty()
    while True:
        if tty:
            out.print("[bold]> [/bold]", end="")
        line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if not line:
            return
        if line.strip():
            yield line.strip()


async def _answer(session: client.Session, text: str, asked: Mapping[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Stream one answer; Ctrl-C ends the answer and not the chat."""
    said: list[str] = []
    chances: list[dict[str, Any]] = []
    count = 0
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_interrupt, signals, nursery.cancel_scope)
            async for token in session.say(text, **asked):
                count += 1
                said.append(token.text)
                if token.logprob is not None:
                    chances.append({"id": token.id, "logprob": token.logprob, "top": forms.write(token.top)})
                if not quiet:
                    print(token.text, end="", flush=True)
            nursery.cancel_scope.cancel()
    if not quiet:
        print(flush=True)
    found = {"answer": "".join(said), "tokens": count, "end": session.end_reason}
    return found | {"logprobs": chances} if chances else found


async def _interrupt(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _tell_moves(mesh: client.Mesh, session: client.Session) -> None:
    """Say on stderr when the host changed or nobody answers: the answer itself shows nothing of it."""
    told = 0
    while True:
        for event in session.history[told:]:
            told += 1
            match event.item:
                case Moved(epoch, host) if epoch > 1:
                    err.print(f"[dim]\\[the host is gone; {ids.peer_short(host)} goes on, epoch {epoch}][/dim]")
                case Lost(reason):
                    err.print(f"[red]\\[{reason}][/red]")
        await mesh.wait_news()
