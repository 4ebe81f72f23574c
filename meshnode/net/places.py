"""Pure: the multiaddrs we speak, which are TCP over IP or a name, with the peer at the end.

`/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...`, the same with ip6, dns, dns4 or dns6. Everything else that libp2p can write
(QUIC, WebSocket, relays) is refused here, before libp2p sees it: QUIC loses bytes and streams in the version we build
on, and what is not listed has not been measured.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from meshnode import errors, ids
from meshnode.ids import PeerId

TEXT_MAX = 512
"""Characters. A DNS name has at most 253, a peer id 52."""

_IP_VERSIONS = {"ip4": 4, "ip6": 6}
_NAMES = ("dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to knock, and who should open."""

    kind: str
    """ip4, ip6, dns, dns4 or dns6."""
    host: str
    port: int
    peer: PeerId | None

    @property
    def text(self) -> str:
        """Without the peer, as libp2p dials it."""
        return f"/{self.kind}/{self.host}/tcp/{self.port}"


def parse(text: str) -> Place:
    """Raises PeerError for anything that we would not dial: an address is what somebody told us."""
    if len(text) > TEXT_MAX:
        raise errors.PeerError(f"an address of {len(text)} characters")
    match text.split("/"):
        case ["", kind, host, "tcp", port]:
            return _checked(text, kind, host, port, None)
        case ["", kind, host, "tcp", port, "p2p", peer]:
            return _checked(text, kind, host, port, ids.peer_from_text(peer))
    raise errors.PeerError(f"not a TCP address: {text!r}")


def with_peer(text: str, peer: PeerId) -> str:
    """The address with /p2p/ID at its end, whether it had one or not. Raises PeerError for another's id."""
    place = parse(text)
    if place.peer not in (None, peer):
        raise errors.PeerError(f"{text!r} names another peer")
    return f"{place.text}/p2p/{ids.peer_text(peer)}"


def to_listen(texts: Sequence[str], me: PeerId) -> tuple[Place, ...]:
    """The operator's own addresses: real ones, not names. Raises ConfigError."""
    hint = "write /ip4/0.0.0.0/tcp/4001"
    try:
        found = tuple(parse(with_peer(text, me)) for text in texts)
    except errors.PeerError as error:
        raise errors.ConfigError(f"cannot listen: {error}", hint=hint) from error
    for place in found:
        if place.kind not in _IP_VERSIONS:
            raise errors.ConfigError(f"cannot listen on a name: {place.text}", hint=hint)
    return found


def to_announce(texts: Sequence[str], me: PeerId) -> tuple[str, ...]:
    """What the operator says that others shall dial, with our id. Raises ConfigError."""
    try:
        return tuple(with_peer(text, me) for text in texts)
    except errors.PeerError as error:
        raise errors.ConfigError(f"cannot announce: {error}", hint="write /dns4/NAME/tcp/4001") from error


def _checked(text: str, kind: str, host: str, port: str, peer: PeerId | None) -> Place:
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise errors.PeerError(f"no port: {text!r}")
    if kind in _IP_VERSIONS:
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            raise errors.PeerError(f"no IP address: {text!r}") from None
        if version != _IP_VERSIONS[kind]:
            raise errors.PeerError(f"not an {kind} address: {text!r}")
    elif kind not in _NAMES or not host or any(letter.isspace() for letter in host):
        raise errors.PeerError(f"neither an IP address nor a name: {text!r}")
    return Place(kind, host, int(port), peer)
