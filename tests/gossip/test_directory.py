"""Who is listed, for how long, and by whose word."""

from __future__ import annotations

import pytest

from meshnode import errors
from meshnode.gossip import directory
from meshnode.gossip.messages import Advert
from meshnode.wire import envelope, keys
from tests.sessions import cases
from tests.sessions.cases import A, B


def advert(version: int = 1, ttl_s: int = 60, **other: object) -> Advert:
    given = {"name": "", "zone": "", "operator": "", "addresses": (), "host": True, "vote": True, "engines": ()}
    return Advert(version, ttl_s, **{**given, "memory_bytes": 1, "sessions": 0, "sessions_max": 8, **other})


def sealed(version: int = 1, ttl_s: int = 60, by: int = 1, **other: object) -> bytes:
    return envelope.seal(cases.NODES[by], advert(version, ttl_s, **other))


def test_a_higher_version_is_news_and_an_equal_or_lower_one_is_not() -> None:
    of = directory.Directory(A)
    assert of.learn(0.0, sealed(2)) == B
    assert of.learn(0.0, sealed(2)) is None
    assert of.learn(0.0, sealed(1)) is None
    assert of.learn(0.0, sealed(3, name="attic")) == B
    assert of.members[B].advert.name == "attic"


def test_ones_own_advert_is_no_news() -> None:
    assert directory.Directory(A).learn(0.0, sealed(by=0)) is None


def test_what_is_no_advert_or_not_its_signers_is_refused() -> None:
    of = directory.Directory(A)
    with pytest.raises(errors.PeerError):
        of.learn(0.0, cases.invitation())
    torn = sealed()
    with pytest.raises(errors.PeerError, match="signature"):
        of.learn(0.0, bytes([torn[0] ^ 1]) + torn[1:])


def test_an_advert_runs_out_and_a_copy_of_it_is_no_longer_life() -> None:
    of = directory.Directory(A)
    of.learn(0.0, sealed(5, ttl_s=60))
    assert of.deadline == 60.0
    assert of.expire(59.9) == []
    assert of.expire(60.0) == [B]
    assert of.learn(61.0, sealed(5)) is None
    assert of.learn(61.0, sealed(6)) == B
    assert of.deadline == 121.0


def test_no_signer_may_ask_for_longer_than_the_limit() -> None:
    of = directory.Directory(A)
    of.learn(0.0, sealed(ttl_s=3600))
    assert of.deadline == directory.TTL_S_MAX


def test_a_full_directory_refuses_strangers_and_goes_on_with_members() -> None:
    of = directory.Directory(A)
    of.learn(0.0, sealed(1))
    for number in range(directory.MEMBERS_MAX - 1):
        identity = keys.Identity((1000 + number).to_bytes(32, "big"))
        of.learn(0.0, envelope.seal(identity, advert()))
    with pytest.raises(errors.PeerError, match="512 members"):
        of.learn(0.0, sealed(by=2))
    assert of.learn(0.0, sealed(2)) == B
    of.expire(100.0)
    assert len(of._expired) == directory.MEMBERS_MAX


def test_alive_is_who_was_heard_and_not_who_is_listed() -> None:
    of = directory.Directory(A)
    of.learn(0.0, sealed())
    assert of.alive(0.0) == []
    of.heard(1.0, B, 0.1)
    of.heard(1.0, B, 0.2)
    of.heard(1.0, cases.C)
    assert of.alive(1.0 + directory.SILENT_AFTER_S) == [B]
    assert of.alive(1.1 + directory.SILENT_AFTER_S) == []
    assert of.members[B].rtt_s == pytest.approx(0.12)
