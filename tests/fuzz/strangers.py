"""Whole, valid messages that no correct peer would send: right in form, wrong in time, in place or in what they say.

Mutated bytes rarely come past the schema; a peer that means ill does. So values are made from the messages' own types,
out of a few that mean something here: known sessions, near epochs, real papers, real entries.
"""

from __future__ import annotations

import dataclasses
import enum
import random
import types
import typing
from typing import Any

from meshnode import config, ids, manifest
from meshnode.chunks import messages as weights
from meshnode.gossip import messages as talk
from meshnode.ids import PeerId
from meshnode.machine import (
    Capacity,
    Carried,
    Carry,
    DialFailed,
    Effect,
    Encode,
    Encoded,
    Event,
    Post,
    Received,
    Restore,
    Restored,
    Step,
    Stepped,
    Stocked,
    Tick,
)
from meshnode.peer import Peer
from meshnode.ports import Lane, LinkDown, LinkUp
from meshnode.sessions import log, messages, registry
from meshnode.sessions.messages import Birth, Closed, End, Entry, Opened, Token, Turn
from meshnode.wire import envelope, schema
from meshnode.wire.award import Award, Invitation, Seat
from tests.sessions import cases

KINDS = tuple(
    kind
    for module in (talk, messages, weights)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind in schema._numbers
)
"""Every message, log entry and journal record."""

HEARD = (
    *typing.get_args(registry.FromVoter),
    *typing.get_args(registry.FromAgent),
    *(talk.Ping, talk.Pong, talk.Publish, talk.NoPath, talk.Invite, talk.Cancel, talk.Offer, talk.Bid),
    *(talk.Awarded, talk.Awarded, talk.Awarded, talk.Confirm, talk.Release),
    *(weights.AskShelf, weights.AskListing, weights.AskChunk),
)
"""What a node listens to."""

_INTEGERS = (0, 1, 1, 2, 2, 3, 4, 5, 7, 64, 65, 1 << 16, (1 << 40) - 1, 2**63 - 1)
_TEXTS = ("", "a", "host", "replica", "witness", "grüße", "x" * 128, "tiny", "/ip4/127.0.0.1/tcp/1")
_FLOATS = (0.0, 0.5, 1.0, -1.0, 1e300)
_BYTES = (b"", b"\x80", b"page")


SHELVED = weights.Shelved("tiny", cases.CARD.model_digest, 20 << 20)
"""What a node under attack shares."""


class Maker:
    """Values of any message's types, from one seed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.identities = (*cases.NODES[:4], cases.AGENT, cases.STRANGER)

    def message(self, depth: int = 0) -> Any:
        """One message of any kind; now and then wrapped, as a gateway would pass it on."""
        rng = self.rng
        if depth < 3 and rng.random() < 0.15:
            frame = envelope.seal(rng.choice(self.identities), self.message(depth + 1))
            return rng.choice((talk.Relayed(frame), talk.Relay(rng.choice(self.identities).peer, frame)))
        return self._dataclass(rng.choice(HEARD if rng.random() < 0.9 else KINDS))

    def of(self, kind: type) -> Any:
        """One message of this kind."""
        return self._dataclass(kind)

    def _dataclass(self, kind: type) -> Any:
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = {field.name: self._value(hints[field.name], field.name) for field in dataclasses.fields(kind)}
        return kind(**fields)

    def _value(self, hint: Any, name: str) -> Any:
        rng = self.rng
        count_max = 2**63 - 1
        if typing.get_origin(hint) is typing.Annotated:
            hint, mark = typing.get_args(hint)[:2]
            count_max = getattr(mark, "count", mark)
        origin = typing.get_origin(hint)
        if origin in (typing.Union, types.UnionType):
            return rng.choice((None, self._value(typing.get_args(hint)[0], name)))
        if origin is tuple:
            item = typing.get_args(hint)[0]
            return tuple(self._value(item, name) for _ in range(rng.choice((0, 1, 1, 2, 3))))[:count_max]
        if hint is Entry:
            return self._entry()
        if dataclasses.is_dataclass(hint):
            return self._dataclass(typing.cast(type, hint))
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return rng.choice(list(hint))
        if hint is int:
            return min(rng.choice(_INTEGERS), count_max)
        if hint is bool:
            return rng.random() < 0.5
        if hint is str:
            return rng.choice(_TEXTS)[:count_max]
        if hint is float:
            return rng.choice(_FLOATS)
        return self._bytes(hint, name)

    def _bytes(self, hint: Any, name: str) -> bytes:
        rng = self.rng
        if hint is ids.SessionId:
            return rng.choice((cases.SESSION, cases.SESSION, cases.SESSION, b"o" * ids.SESSION_BYTES))
        if hint is ids.PeerId:
            return rng.choice(self.identities).peer
        if hint is ids.RequestId:
            return rng.choice((cases.AUCTION, cases.request(1), cases.request(2)))
        if hint is ids.Digest:
            return rng.choice((log.genesis(cases.SESSION), *self.digests, SHELVED.digest, bytes(ids.DIGEST_BYTES)))
        if name in ("invitation", "award", "adverts"):
            return self._paper(name)
        return rng.choice(_BYTES)

    digests: tuple[bytes, ...] = ()
    """Hashes of the log under attack."""

    def _entry(self) -> Entry:
        rng = self.rng
        change = rng.choice((
            Opened(rng.choice(self.identities).peer), Turn(cases.request(rng.randrange(4)), (5, 6), 4), Token(7, "a"),
            Token(2, ""), End("stop"), Closed("bye"), Birth(b""), Turn(cases.request(9), (), 4),
        ))  # fmt: skip
        epoch = rng.choice((1, 1, 1, 2, 3, 5, 1 << 40))
        return log.entry(epoch, change) if rng.random() < 0.9 else Entry(epoch, rng.choice(_BYTES))

    def _paper(self, name: str) -> bytes:
        rng = self.rng
        if name == "adverts":
            return envelope.seal(rng.choice(self.identities), self._dataclass(talk.Advert))
        wants = cases.wants() if rng.random() < 0.7 else self._dataclass(manifest.Manifest)
        signer = cases.AGENT if rng.random() < 0.8 else cases.STRANGER
        invitation = envelope.seal(signer, Invitation(self._bytes(ids.SessionId, ""), wants))
        if name == "invitation":
            return invitation
        roles = ("host", "replica", "witness", "king")
        places = rng.sample(range(4), rng.choice((1, 2, 3)))
        seats = tuple(
            Seat(self.identities[place].peer, roles[at] if rng.random() < 0.9 else rng.choice(roles), ())
            for at, place in enumerate(places)
        )
        award = Award(cases.AUCTION, self._bytes(ids.SessionId, ""), rng.randrange(3), invitation, seats)
        return envelope.seal(rng.choice(self.identities), award)

    def event(self, brain: Peer) -> Any:
        """Something that the network may bring: mostly messages, and links that come and go."""
        rng = self.rng
        members = list(brain.sessions.members.values())
        if members:
            of = members[0].voter.log
            self.digests = tuple(of.hash_at(seq) for seq in range(of.last + 1))[-6:]
        peer = rng.choice(self.identities).peer
        what = rng.random()
        if what < 0.05:
            return rng.choice((LinkUp, LinkDown, DialFailed))(peer, rng.choice(tuple(Lane)))
        if what < 0.1:
            return Tick()
        message = self.message()
        return Received(self._sender(message), rng.choice((Lane.SIGNAL, Lane.MEDIA)), message)

    def _sender(self, message: Any) -> PeerId:
        """Mostly one that may say such a thing."""
        rng = self.rng
        if rng.random() < 0.2:
            return rng.choice(self.identities).peer
        match message:
            case talk.Awarded(award):
                return envelope.open_(award).sender
            case talk.Invite() | talk.Cancel():
                return cases.AGENT.peer
            case _ if isinstance(message, registry.FromAgent):
                return cases.AGENT.peer
            case _:
                return rng.choice(cases.NODES[:4]).peer


def node(rng: random.Random, place: int = 0, *, serving: bool = True) -> Peer:
    """A node with a seat in a session; as its host, it serves if the agent has acknowledged."""
    brain = Peer(cases.NODES[place], config.Node(), cases.CARD, 1, rng)
    brain.step(0.0, Capacity(1 << 30))
    brain.step(0.0, Stocked((SHELVED,)))
    brain.step(0.0, Received(cases.A, Lane.SIGNAL, talk.Awarded(cases.award())))
    if serving:
        brain.step(0.0, Received(cases.AGENT.peer, Lane.SIGNAL, messages.Ack(cases.SESSION, cases.AUCTION)))
    return brain


def answers(effects: list[Effect]) -> list[Event]:
    """What the hands would say to these effects."""
    found: list[Event] = []
    for effect in effects:
        match effect:
            case Post(_, event):
                found.append(event)
            case Encode(session, request):
                found.append(Encoded(session, request, (5, 6, 7)))
            case Step(session, load, work):
                token = 9 if work.sampling is not None else None
                found.append(Stepped(session, load, work.position + len(work.feed), token, "a"))
            case Restore(session, load):
                found.append(Restored(session, load, 0))
            case Carry(to, digest):
                found.append(Carried(to, digest, 1))
    return found
