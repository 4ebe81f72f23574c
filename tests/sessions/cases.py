"""Peers, papers and logs that the tests of sessions and placement start from."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meshnode import ids, manifest
from meshnode.ids import PeerId, RequestId, SessionId
from meshnode.machine import Effect, Persist, Send
from meshnode.ports import EngineCard
from meshnode.sessions import contract as contracts
from meshnode.sessions import log, messages, records
from meshnode.sessions.contract import Contract
from meshnode.sessions.member import Member
from meshnode.sessions.messages import Birth, Change, Entry, Token, Turn
from meshnode.sessions.voter import Voter
from meshnode.wire import envelope, keys
from meshnode.wire.award import Award, Invitation, Seat

SESSION = SessionId(b"s" * ids.SESSION_BYTES)
AUCTION = RequestId(b"a" * ids.REQUEST_BYTES)
PAGE = 4
CARD = EngineCard(
    model="tiny",
    model_digest=ids.digest(b"tiny"),
    numeric_class="w8",
    page_tokens=PAGE,
    page_bytes=64,
    context_tokens_max=256,
    vocabulary=1000,
    eos=(2,),
)
ROLES = ("host", "replica", "witness", "replica", "replica")

NODES = tuple(keys.Identity(bytes([place]) * keys.SEED_BYTES) for place in range(1, 8))
AGENT = keys.Identity(b"\xaa" * keys.SEED_BYTES)
STRANGER = keys.Identity(b"\xbb" * keys.SEED_BYTES)
A, B, C, D, E = (node.peer for node in NODES[:5])


def request(number: int) -> RequestId:
    return RequestId(number.to_bytes(ids.REQUEST_BYTES, "big"))


def wants(**tables: dict[str, object]) -> manifest.Manifest:
    """A manifest that a small engine can take."""
    given = {"characteristics": {"context_tokens": 256}, "agent": {"max_tokens": 64}, **tables}
    return manifest.read(given)


def invitation(asked: manifest.Manifest | None = None, session: SessionId = SESSION) -> bytes:
    return envelope.seal(AGENT, Invitation(session, asked or wants()))


def award(count: int = 3, *, asked: manifest.Manifest | None = None, attempt: int = 1, by: int = 0) -> bytes:
    """A sealed award to the first `count` nodes; the first one hosts."""
    seats = tuple(Seat(NODES[place].peer, ROLES[place] if count > 1 else "host", ()) for place in range(count))
    return envelope.seal(NODES[by], Award(AUCTION, SESSION, attempt, invitation(asked), seats))


def contract(count: int = 3, asked: manifest.Manifest | None = None) -> Contract:
    return contracts.read(award(count, asked=asked))


def born(
    count: int = 3, of: int = 0, *, card: EngineCard | None = CARD, asked: manifest.Manifest | None = None
) -> Member:
    """The member of one node, in PROCEEDING."""
    sealed = award(count, asked=asked)
    papers = contracts.read(sealed)
    voter = Voter(SESSION)
    voter.born(log.entry(1, Birth(sealed)), A)
    return Member(NODES[of].peer, papers, voter, card, random.Random(of), 0.0)


def entry(epoch: int, number: int = 0) -> Entry:
    """A token's entry."""
    return log.entry(epoch, Token(number, chr(97 + number % 26)))


def turn(epoch: int, number: int = 1, length: int = 3, most: int = 8) -> Entry:
    return log.entry(epoch, Turn(request(number), tuple(range(3, 3 + length)), most))


def logged(*entries: Entry) -> log.Log:
    of = log.Log(SESSION)
    for one in entries:
        of.append(one)
    return of


def birth() -> Entry:
    return log.entry(1, Birth(b"award"))


def voter(*entries: Entry) -> Voter:
    """A voter that was born, and accepted these entries from A in epoch 1."""
    of = Voter(SESSION)
    of.born(birth(), A)
    if entries:
        at = of.log.last
        epoch = max(one.epoch for one in entries)
        of.on_replicate(A, messages.Replicate(SESSION, epoch, at, of.log.hash_at(at), entries, 0, 1))
    return of


def replicate(
    of: log.Log, epoch: int, prev: int, entries: Sequence[Entry] = (), released: int = 0
) -> messages.Replicate:
    """What an owner with this log would send."""
    return messages.Replicate(SESSION, epoch, prev, of.hash_at(prev), tuple(entries), released, 7)


def changes(*found: Change) -> list[Change]:
    return list(found)


def sent(effects: Sequence[Effect], kind: type | None = None) -> list[tuple[PeerId, object]]:
    """(to, message) of every Send, or of one kind of message."""
    sends = [effect for effect in effects if isinstance(effect, Send)]
    return [(one.to, one.message) for one in sends if kind is None or isinstance(one.message, kind)]


def persisted(effects: Sequence[Effect]) -> list[records.Record]:
    return [records.unpack(effect.record) for effect in effects if isinstance(effect, Persist)]
