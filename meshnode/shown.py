"""How things look in a terminal: tables from the plain data that `--json` prints as it is."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from meshnode import ids

# Lines are never broken: people copy them. A pipe has no width, and a cut id is no id.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 250)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Progress:
    """What `up` prints while it starts."""

    def __init__(self, plain: bool) -> None:
        self.plain = plain or not out.is_terminal
        self._last = (0.0, "")

    def line(self, text: str) -> None:
        """One line."""
        print(text, flush=True) if self.plain else out.print(text)

    def step(self, what: str, done: int, of: int) -> None:
        """A step, or how far a download is; called from threads."""
        now, said = time.monotonic(), self._last[1]
        if what == said and done < of and now - self._last[0] < (5.0 if self.plain else 0.1):
            return
        self._last = (now, what)
        share = f" {done / 1e6:.0f} of {of / 1e6:.0f} MB" if of else ""
        if self.plain or not of:
            self.line(f"{what}{share}")
        else:
            out.print(f"{what}{share}", end="\n" if done >= of else "\r")

    def up(self, node_up: Any) -> None:
        """The node runs."""
        serves = f"serves {node_up.model}" if node_up.model else "introduces peers, hosts nothing"
        self.line(f"up: {node_up.id}, {serves}")
        for address in node_up.addresses:
            self.line(f"  others join with: meshnode up --join {address}")
        if not self.plain:
            out.print("[dim]  talk: meshnode chat   look: meshnode status   stop: Ctrl-C or meshnode down[/dim]")


def status(found: dict[str, Any]) -> Group:
    """What `meshnode status` shows."""
    table = Table.grid(padding=(0, 2))
    table.add_row("node", f"[bold]{found['name'] or '-'}[/bold] {found['id']}")
    model = f"{found['model']} ({found['numeric_class']})" if found["model"] else "hosts nothing"
    table.add_row("serves", f"{model}, {found['memory_free_mib']} MiB of KV free, up {found['up_s']:.0f} s")
    alive = sum(peer["alive"] for peer in found["peers"])
    table.add_row("mesh", f"{alive} of {len(found['peers'])} peers heard; {found['failover']}")
    hosted = sum(session["hosting"] for session in found["sessions"])
    drains = f"; [yellow]draining[/yellow], {len(found['drain']['left'])} left" if found["drain"]["draining"] else ""
    table.add_row("sessions", f"{len(found['sessions'])}, of which {hosted} run here{drains}")
    for note in found["notes"][-6:]:
        session = f" {note['session'][:8]}" if note["session"] else ""
        table.add_row(f"[dim]{note['age_s']:.0f} s ago[/dim]", f"[dim]{note['what']}{session} {note['detail']}[/dim]")
    joins = [f"others join with: meshnode up --join {address}" for address in found["addresses"]]
    return Group(table, *(Text(line, no_wrap=True, overflow="ignore") for line in joins))


def peers(found: list[dict[str, Any]]) -> Table:
    """What `meshnode peers` shows."""
    table = Table(box=None, header_style="dim")
    for title in ("name", "id", "zone", "heard", "rtt", "model", "sessions", "KV free"):
        table.add_column(title, no_wrap=title == "id")
    for peer in found:
        rtt = "-" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms"
        load = f"{peer['sessions']}/{peer['sessions_max']}" if peer["host"] else "-"
        heard = "[green]yes[/green]" if peer["alive"] else "[red]no[/red]"
        heard = "[yellow]draining[/yellow]" if peer["alive"] and peer["draining"] else heard
        models = ", ".join(peer["models"]) or "-"
        table.add_row(
            peer["name"] or "-", peer["id"], peer["zone"] or "-", heard, rtt, models, load,
            f"{peer['memory_free_mib']} MiB" if peer["host"] else "-",
        )  # fmt: skip
    return table


def sessions(found: list[dict[str, Any]]) -> Table:
    """What `meshnode sessions ps` shows."""
    table = Table(box=None, header_style="dim")
    for title in (
        "session",
        "kind",
        "state",
        "here",
        "host",
        "epoch",
        "released",
        "tokens",
        "pages",
        "voters",
        "repair",
    ):
        table.add_column(title)
    for row in found:
        here = "[bold]host[/bold]" if row["hosting"] else row["role"] if row["role"] != "host" else "voter"
        pages = row["pages_sealed"] if row["hosting"] else row["pages_stored"]
        table.add_row(
            row["id"][:8], row["kind"], row["state"], here, (row["host"] or "-")[-6:], str(row["epoch"]),
            str(row["released_seq"]), str(row["tokens"]), str(pages), str(len(row["seats"])), row["repair"],
        )  # fmt: skip
    return table


def models(rows: list[dict[str, Any]]) -> Table:
    """What `meshnode models list` shows."""
    table = Table(box=None, header_style="dim")
    for title in ("model", "here", "download", "license", "digest"):
        table.add_column(title)
    for row in rows:
        place = "[green]yes[/green]" if row["here"] else f"no (meshnode models pull {row['name']})"
        table.add_row(
            str(row["name"]),
            place,
            f"{row['download_mb']} MB" if row["download_mb"] else "-",
            str(row["license"] or "-"),
            str(row["digest"] or "-"),
        )
    return table


def obtained(got: Any) -> dict[str, Any]:
    """What `meshnode models fetch --json` prints of an obtain.Obtained."""
    return {
        "name": got.model.name,
        "digest": got.model.digest.hex(),
        "disk_bytes": got.model.disk_bytes,
        "given": [{"peer": ids.peer_text(peer), "bytes": size} for peer, size in sorted(got.given_bytes.items())],
        "dropped": [{"peer": ids.peer_text(peer), "why": why} for peer, why in sorted(got.dropped.items())],
    }


def obtained_line(got: Any) -> str:
    """The same for people."""
    given = sum(got.given_bytes.values())
    came = f", {given / 1e6:.1f} MB from {len(got.given_bytes)} peer(s)" if given else ""
    return f"{got.model.name} is here: {got.model.digest.hex()}{came}"
