"""A node's configuration: each wrong key named, with where the keys are explained."""

from __future__ import annotations

import pytest

from meshnode import config, errors, forms, ids
from tests.sessions import cases

PEER = ids.peer_text(cases.A)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("listen", []),
        ("join", ["/ip4/1.2.3.4/tcp/1"]),
        ("join", ["/ip4/1.2.3.4/tcp/1/p2p/nobody"]),
        ("join", [PEER]),
        ("numeric_class", "w9"),
        ("sessions_max", 0),
        ("memory_mib", 15),
        ("disk_mib", 15),
        ("threads", -1),
        ("share_models", "yes"),
        ("upload_mbit_s_max", -1),
        ("download_mbit_s_max", -1),
        ("name", "n" * 65),
        ("zone", "z" * 33),
        ("operator", "o" * 65),
        ("host", "yes"),
        ("memory_mib", 2**80),
    ],
)
def test_each_bound_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        config.read({key: value})
    assert caught.value.message.startswith(f"{key}:")
    assert "node.toml" in caught.value.hint


def test_several_mistakes_and_a_typing_error_are_said_at_once() -> None:
    with pytest.raises(errors.ConfigError) as caught:
        config.read({"sesions_max": 3, "host": 1})
    assert "did you mean 'sessions_max'?" in str(caught.value)
    assert "host: expected true or false" in str(caught.value)


def test_a_configuration_is_written_and_read_back() -> None:
    of = config.read({"join": [f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"], "zone": "eu", "host": False})
    assert config.read(forms.write(of)) == of
    assert config.read({}) == config.Node()
