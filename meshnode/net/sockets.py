"""What libp2p does not do for us before a socket is opened: resolve names, and see whether a port is taken."""

from __future__ import annotations

import socket

import trio

from meshnode import errors
from meshnode.net import places


async def resolved(place: places.Place) -> str:
    """Address and port without a name, the first one found. Raises OSError.

    Not libp2p's own resolver: that one asks name servers itself, so /etc/hosts does not count.
    """
    if place.kind in ("ip4", "ip6"):
        return place.text
    family = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}.get(place.kind, socket.AF_UNSPEC)
    found = await trio.socket.getaddrinfo(place.host, place.port, family=family, type=socket.SOCK_STREAM)
    kind = "ip6" if found[0][0] == socket.AF_INET6 else "ip4"
    return f"/{kind}/{found[0][4][0]}/tcp/{place.port}"


async def probe(place: places.Place) -> None:
    """Raises ConfigError if nobody could listen here now.

    libp2p listens with SO_REUSEPORT: two nodes on one port would not notice, and share their callers by chance.
    """
    family = socket.AF_INET6 if place.kind == "ip6" else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_STREAM) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            await ours.bind((place.host, place.port))
        except OSError as error:
            raise errors.ConfigError(
                f"cannot listen on {place.text}: {error.strerror or error}",
                hint="stop the other node, or choose another port (0: any free one)",
            ) from error
