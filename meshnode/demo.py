"""`meshnode demo failover`: the promise of this project, kept in front of your eyes in a minute.

Three node processes on loopback, over libp2p; an agent outside of them asks a question twice. The first time nobody
disturbs the answer. The second time its host is killed with SIGKILL after a third of it. The end of the show is a
comparison, token by token, and exit code 1 if it does not come out even.
"""

from __future__ import annotations

import json

import trio
from rich.table import Table

from meshnode import client, cluster, failover, ids, manifest, shown

PROMPT = "Explain to a curious child, step by step, how a telephone call is handed over from one cell to the next."
SETTINGS = ("--memory-mib", "512", "--threads", "2")

_EVIDENCE = {
    "reset": "the link was reset and could not be made again",
    "silence": "nothing was heard for too long",
}

err = shown.err


def run(prompt: str, max_tokens: int, as_json: bool) -> int:
    """The exit code: 0 if nothing was lost or repeated and the answers are equal."""
    report, timeline = trio.run(_show, prompt, max_tokens, not as_json)
    if as_json:
        print(json.dumps({**report.table(), "timeline": timeline}))
    else:
        err.print(_table(report))
    good = report.lost == 0 and report.repeated == 0 and report.equal
    return 0 if good else 1


async def _show(prompt: str, max_tokens: int, aloud: bool) -> tuple[failover.Report, dict[str, float]]:
    say = err.print if aloud else lambda *args, **kwargs: None
    wants = manifest.read(
        {
            "characteristics": {"context_tokens": 2048},
            "migration": {"replicas_min": 1},
            "agent": {"max_tokens": max_tokens, "temperature": 0.7, "seed": 7},
        }
    )
    say("[dim]starting three nodes on loopback (the first time fetches a 92 MB model) ...[/dim]")

    def up(node: cluster.Process) -> None:
        say(f"[dim]  {node.name}  {node.id}[/dim]")

    async with cluster.cluster(3, SETTINGS, up) as nodes, client.connect(nodes.bootstrap) as mesh:
        say(f"\n[bold]{prompt}[/bold]\n")
        async with mesh.session(wants) as session:
            say("[dim]first, undisturbed:[/dim] ", end="")
            reference = await failover.undisturbed(session, prompt)
            say(f"[dim]{len(reference.ids)} tokens in {_span(reference):.1f} s[/dim]")
        async with mesh.session(wants) as session:
            _seats(say, nodes, session)
            return await _kill(say, nodes, session, prompt, reference)


async def _kill(
    say: object, nodes: cluster.Cluster, session: client.Session, prompt: str, reference: failover.Answer
) -> tuple[failover.Report, dict[str, float]]:
    assert callable(say)

    def on_token(token: client.Token, after: bool) -> None:
        say(token.text, end="", style="green" if after else "", markup=False)

    def on_kill(node: cluster.Process) -> None:
        say(f" [bold white on red] {node.name} killed (SIGKILL) [/bold white on red] ", end="")

    answer, struck_at, before = await failover.disturbed(
        nodes, session, prompt, max(1, len(reference.ids) // 3), on_token=on_token, on_kill=on_kill
    )
    say("\n")
    report = await failover.report(nodes, session, reference, answer, struck_at, before)
    timeline = {
        "detected": report.detected_s,
        "restored": report.restored_s,
        "elected": report.elected_s,
        "first_token_drawn": report.first_token_s,
        "next_token_at_client": report.gap_s,
    }
    return report, timeline


def _seats(say: object, nodes: cluster.Cluster, session: client.Session) -> None:
    assert callable(say)
    names = [f"{seat.role} [bold]{nodes.by_id(ids.peer_text(seat.peer)).name}[/bold]" for seat in session.seats]
    say(f"[dim]again, with {', '.join(names)}:[/dim]\n")


def _span(answer: failover.Answer) -> float:
    return answer.times[-1] - answer.times[0] if answer.times else 0.0


def _table(report: failover.Report) -> Table:
    table = Table.grid(padding=(0, 2))
    steps = (
        ("detected", report.detected_s, _EVIDENCE.get(report.evidence, report.evidence)),
        ("restored", report.restored_s, f"{report.pages_restored} pages put back into the engine"),
        ("elected", report.elected_s, "a majority of the voters promised the next epoch"),
        ("first token", report.first_token_s, f"{report.tokens_recomputed} tokens were recomputed"),
        ("at the client", report.gap_s, "the next token of the answer"),
    )
    for what, at, words in sorted(steps, key=lambda step: step[1]):
        when = f"{at * 1000:6.0f} ms" if at >= 0 else "       -"
        table.add_row(f"[dim]kill +[/dim]{when}", f"[bold]{what}[/bold]", f"[dim]{words}[/dim]")
    good = "[bold green]yes[/bold green]" if report.equal else "[bold red]NO[/bold red]"
    table.add_row("", "", "")
    table.add_row("[bold]lost[/bold]", str(report.lost), f"[dim]of {report.tokens} tokens[/dim]")
    table.add_row("[bold]repeated[/bold]", str(report.repeated), "")
    table.add_row("[bold]equal[/bold]", good, "[dim]to the undisturbed answer, token by token[/dim]")
    return table
