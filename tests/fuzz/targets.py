"""Every decoder that a stranger's bytes reach, with good inputs to start from. A new decoder adds a line to TARGETS.

A target takes bytes and returns, or raises PeerError. Anything else is a finding: another exception, an assertion of
ours, or an assertion written into the target, which says what must hold of what was decoded.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from meshnode import fetcher, ids
from meshnode.chunks import frames, listing
from meshnode.machine import Received, Tick
from meshnode.ports import Lane, LinkUp
from meshnode.wire import cbor, envelope, keys, schema
from tests.fuzz import grammars, strangers, weights
from tests.sessions import cases
from tests.wire import samples

IDENTITY = keys.Identity(b"\x07" * keys.SEED_BYTES)
VOTER = cases.NODES[1]
_DOMAIN = b"meshnode envelope 1\0"


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    decode: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def decode_cbor(data: bytes) -> object:
    value = cbor.decode(data)
    assert cbor.encode(value) == data
    return value


def decode_fields(data: bytes) -> object:
    """As if the signature held: the schema has to stand on its own."""
    fields = cbor.decode(data)
    message = schema.unpack(samples.EVERYTHING, fields)
    assert cbor.encode(schema.pack(message)) == data
    return message


def open_signed(body: bytes) -> object:
    """A peer that signs whatever comes to its mind."""
    return envelope.open_(IDENTITY.sign(_DOMAIN + body) + body)


def decode_peer(data: bytes) -> object:
    text = data.decode("latin-1")
    peer = ids.peer_from_text(text)
    assert ids.peer_text(peer) == text
    return peer


def heard(body: bytes) -> object:
    """A frame of a voter that signs whatever comes to its mind, in a node that has a session with it."""
    opened = envelope.open_(VOTER.sign(_DOMAIN + body) + body)
    return _NODE.step(1.0, Received(VOTER.peer, Lane.SIGNAL, opened.message))


def every_kind(signer: keys.Identity) -> tuple[bytes, ...]:
    """One message of each kind that meshnode speaks, without the signature."""
    maker = strangers.Maker(random.Random(5))
    sealed = [envelope.seal(signer, maker.of(kind)) for kind in strangers.KINDS]
    return tuple(one[keys.SIGNATURE_BYTES :] for one in sealed)


def decode_listing(data: bytes) -> object:
    """Whatever it claims, its chunks cover its files."""
    found = listing.decode(data)
    assert found.encode() == data
    last = found.chunk(found.chunk_count - 1)
    assert last.start + last.size == found.sizes[last.file]
    return found


def decode_frame(data: bytes) -> object:
    frame = frames.unpack(data)
    assert frames.pack(frame) == data
    return frame


def heard_by_a_fetch(body: bytes) -> object:
    """A frame of a peer that a fetch has a link with."""
    opened = envelope.open_(VOTER.sign(_DOMAIN + body) + body)
    brain = fetcher.Fetcher(IDENTITY, strangers.SHELVED.digest, 0.0, random.Random(1), 60.0)
    for lane in (Lane.SIGNAL, Lane.BULK):
        brain.step(0.0, LinkUp(VOTER.peer, lane))
    brain.step(1.0, Received(VOTER.peer, Lane.SIGNAL, opened.message))
    return brain.step(9.0, Tick())


_LISTING = listing.Listing((listing.CHUNK_BYTES + 5, 7, 9), bytes(4 * ids.DIGEST_BYTES))
_NODE = strangers.node(random.Random(1))
_FULL = samples.Everything(
    peer=IDENTITY.peer,
    session=ids.SessionId(b"s" * ids.SESSION_BYTES),
    request=ids.RequestId(b"r" * ids.REQUEST_BYTES),
    digest=ids.Digest(b"d" * ids.DIGEST_BYTES),
    count=300,
    ratio=0.5,
    yes=True,
    text="grüße",
    blob=b"blob",
    colour=samples.Colour.BLUE,
    shape=samples.Shape.ROUND,
    inner=samples.Inner(3, "a"),
    few=(b"a", b"bc"),
    many=(samples.Inner(1, ""), samples.Inner(10, "abcd")),
    perhaps=5,
)
_MESSAGES = (_FULL, dataclasses.replace(_FULL, perhaps=None, few=(), many=()), samples.Small(7))
_ENVELOPES = tuple(envelope.seal(IDENTITY, message) for message in _MESSAGES)

TARGETS = (
    Target(
        "cbor", decode_cbor, tuple(cbor.encode(value) for value in ([1, [2, {"a": b"b"}], None, 1.5, "x" * 30], {}, -1))
    ),
    Target("schema", decode_fields, tuple(cbor.encode(schema.pack(message)) for message in _MESSAGES[:2])),
    Target("envelope", envelope.open_, _ENVELOPES),
    Target("signed", open_signed, tuple(sealed[keys.SIGNATURE_BYTES :] for sealed in _ENVELOPES)),
    Target("messages", open_signed, every_kind(IDENTITY)),
    Target("node", heard, every_kind(VOTER)),
    Target("peer", decode_peer, (ids.peer_text(IDENTITY.peer).encode(),)),
    Target("fetch", heard_by_a_fetch, every_kind(VOTER)),
    Target("listing", decode_listing, (_LISTING.encode(),)),
    Target("chunk", decode_frame, (frames.pack(frames.ChunkFrame(_LISTING.digest, 3, b"chunk")),)),
    Target("safetensors", weights.decode_safetensors, weights.safetensors_seeds()),
    Target("gguf", weights.decode_gguf, weights.gguf_seeds()),
    Target("grammar", grammars.decode_grammar, grammars.seeds()),
)
