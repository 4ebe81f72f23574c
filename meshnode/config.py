"""A node's configuration: one frozen value, checked once.

Read from `node.toml` and overridden by the command line (both in cli.py); nothing else reads files or the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshnode import errors, forms, ids


@dataclass(frozen=True, slots=True)
class Node:
    """What a volunteer may decide."""

    data: str = ""
    """Folder for identity, journal, pages and models. Empty: the user's data folder of this system."""
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)
    """Multiaddrs to listen on, TCP only. Port 0 takes a free one, which then changes with every start."""
    announce: tuple[str, ...] = ()
    """Multiaddrs that others shall dial, where they differ from `listen` (a container, a forwarded port)."""
    join: tuple[str, ...] = ()
    """Bootstrap peers, each a multiaddr that ends in /p2p/ID. All are tried, for ever; none is needed twice."""
    join_file: str = ""
    """A file with one such multiaddr a line, read again at each attempt. For meshes that start all at once."""
    name: str = ""
    """How this node is called in listings, such as `attic`. Anybody may take any name; the peer id tells."""
    zone: str = ""
    """Sovereignty zone, such as `eu`. Manifests may ask for one; a lie here is a lie that is signed."""
    operator: str = ""
    """Who runs this node. Replicas are put with other operators where there is a choice."""
    model: str = "smollm2-135m"
    """What to serve (`meshnode models list`)."""
    numeric_class: str = "w8"
    """`w8`: int8 weights, the same bits on every host. `f32`: the reference, slower; `bf16`: half its size;
    neither is exact over a failover, and both run on a GPU where there is one."""
    host: bool = True
    """Whether sessions may run here. A seed that only introduces peers says false and loads no model."""
    vote: bool = True
    """Whether sessions may store their log here. Needs a disk that keeps its promises."""
    sessions_max: int = 8
    """Sessions hosted at once. More: each is slower. Fewer: bids end sooner."""
    memory_mib: int = 1024
    """KV memory that sessions may take. More: less for the machine's owner. A token of SmolLM2 takes 22.5 KiB."""
    disk_mib: int = 4096
    """Pages kept for others. More: fuller disk. Less: older pages go first, and failovers recompute more."""
    spill_mib: int = 2048
    """Disk for sessions that must make room for others in KV memory. Less: when memory is full, sessions are refused
    sooner. 0 keeps none: whoever does not fit is refused."""
    hot_mib: int = 256
    """Of others' pages, how much to keep unpacked in memory. Less: a takeover of a long context pauses longer."""
    share_models: bool = True
    """Whether others may fetch the models that are here. What they fetch is what anybody may have: weights."""
    upload_mbit_s_max: int = 100
    """Megabits a second that they may take together; 0 is no limit. More: sessions here wait longer for the line, and
    from some 1000 on for the processor that encrypts it. Less: they wait longer for a model."""
    download_mbit_s_max: int = 0
    """Megabits a second for a model that this node fetches from others; 0 is no limit."""
    threads: int = 0
    """Threads that compute; 0 takes half of the cores, at least one: the owner's own work comes first."""


def read(raw: Mapping[str, Any]) -> Node:
    """A configuration from a mapping. Raises ConfigError, naming every wrong key."""
    config, reasons = forms.read(Node, raw)
    if config is not None:
        reasons = _problems(config)
    if config is None or reasons:
        raise errors.ConfigError("; ".join(reasons), hint="bootstrap/node.toml explains every key")
    return config


def _problems(config: Node) -> list[str]:
    checks = (
        (bool(config.listen), "listen: needs at least one multiaddr"),
        (all(map(_names_a_peer, config.join)), "join: each multiaddr must end in /p2p/ID"),
        (config.numeric_class in ("w8", "i8", "bf16", "f32"), "numeric_class: must be w8, i8, bf16 or f32"),
        (config.sessions_max >= 1, "sessions_max: must be 1 or more"),
        (config.memory_mib >= 16, "memory_mib: must be 16 or more"),
        (config.disk_mib >= 16, "disk_mib: must be 16 or more"),
        (config.spill_mib >= 0, "spill_mib: must be 0 or more"),
        (config.hot_mib >= 0, "hot_mib: must be 0 or more"),
        (config.upload_mbit_s_max >= 0, "upload_mbit_s_max: must be 0 or more"),
        (config.download_mbit_s_max >= 0, "download_mbit_s_max: must be 0 or more"),
        (config.threads >= 0, "threads: must be 0 or more"),
        (len(config.name) <= 64, "name: at most 64 characters"),
        (len(config.zone) <= 32, "zone: at most 32 characters"),
        (len(config.operator) <= 64, "operator: at most 64 characters"),
    )
    return [words for holds, words in checks if not holds]


def _names_a_peer(address: str) -> bool:
    try:
        ids.peer_from_text(address.rpartition("/p2p/")[2])
    except errors.PeerError:
        return False
    return "/p2p/" in address


MIB = 1 << 20
"""Unit of `memory_mib` and `disk_mib`."""
