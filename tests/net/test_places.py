"""Addresses: what somebody told us is dialled only if it is TCP over IP or a name; everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors, ids
from meshnode.ids import PeerId
from meshnode.net import places

ME = PeerId(bytes(range(32)))
MY_TEXT = ids.peer_text(ME)


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.7/tcp/4001",
        "/ip6/2001:db8::1/tcp/0",
        "/dns4/node-1/tcp/65535",
        "/dns/a.example/tcp/1",
        "/dns6/x/tcp/2",
    ],
)
def test_what_is_dialled_reads_back_as_it_was_written(text: str) -> None:
    assert places.parse(text).text == text
    assert places.parse(text).peer is None
    assert places.parse(f"{text}/p2p/{MY_TEXT}").peer == ME
    assert places.with_peer(text, ME) == f"{text}/p2p/{MY_TEXT}"
    assert places.with_peer(f"{text}/p2p/{MY_TEXT}", ME) == f"{text}/p2p/{MY_TEXT}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "nonsense",
        "/ip4/192.0.2.7",
        "/ip4/192.0.2.7/udp/4001/quic-v1",
        "/ip4/192.0.2.7/tcp/4001/ws",
        "/ip4/192.0.2.7/tcp/65536",
        "/ip4/192.0.2.7/tcp/-1",
        "/ip4/192.0.2.7/tcp/\u0661",
        "/ip4/192.0.2.7/tcp/",
        "/ip4/2001:db8::1/tcp/1",
        "/ip6/192.0.2.7/tcp/1",
        "/ip4/192.0.2.256/tcp/1",
        "/dns4//tcp/1",
        "/dns4/a b/tcp/1",
        "/ip4/192.0.2.7/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"/ip4/192.0.2.7/tcp/1/p2p/{MY_TEXT}/p2p-circuit",
        "/dns4/" + "a" * 600 + "/tcp/1",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(errors.PeerError):
        places.parse(text)


@given(st.text(max_size=60) | st.lists(st.sampled_from(["", "ip4", "1.2.3.4", "tcp", "1", "p2p", "x"])).map("/".join))
def test_any_text_is_a_place_or_a_peer_error(text: str) -> None:
    try:
        place = places.parse(text)
    except errors.PeerError:
        return
    assert places.parse(place.text).port == place.port


def test_a_node_listens_on_addresses_of_its_own_only() -> None:
    assert places.to_listen(["/ip4/0.0.0.0/tcp/4001"], ME)[0].host == "0.0.0.0"
    for text in (
        "/dns4/node/tcp/1",
        "/ip4/0.0.0.0/udp/4001/quic-v1",
        f"/ip4/0.0.0.0/tcp/1/p2p/{ids.peer_text(PeerId(bytes(32)))}",
    ):
        with pytest.raises(errors.ConfigError, match="4001"):
            places.to_listen([text], ME)


def test_what_is_announced_carries_our_id() -> None:
    assert places.to_announce(["/dns4/node/tcp/4001"], ME) == (f"/dns4/node/tcp/4001/p2p/{MY_TEXT}",)
    with pytest.raises(errors.ConfigError):
        places.to_announce(["node:4001"], ME)
