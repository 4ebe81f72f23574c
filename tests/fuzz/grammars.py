"""Grammars for the fuzzer: whatever a client sends as one is refused with a reason or followed, and soon."""

from __future__ import annotations

import json
import time

import numpy as np

from meshnode import errors
from meshnode.options import Grammar, GrammarKind
from tests.engine import tiny

KINDS = tuple(GrammarKind)
STEPS_MAX = 6
SECONDS_MAX = 1.0
"""Of this thread's own processor time, for a check and a few tokens: on a busy machine too, a finding is a finding."""
_SEEDS = (
    (GrammarKind.JSON, {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}),
    (GrammarKind.JSON, {"$defs": {"n": {"items": {"$ref": "#/$defs/n"}, "maxItems": 9}}, "$ref": "#/$defs/n"}),
    (GrammarKind.JSON, {"anyOf": [{"pattern": "^[a-z]{2,40}$", "type": "string"}, {"enum": ["grüße", None, 1.5]}]}),
    (GrammarKind.REGEX, r"(\d{3}-)?\d{4}|[^a-f\s]+(?:x|yy){1,9}"),
    (GrammarKind.LARK, 'start: list | NAME\nlist: "[" start ("," start)* "]"\nNAME: /[a-z]{1,20}/\n%ignore / +/'),
    (GrammarKind.LARK, 'start: A{2,40} b~1..3\nA: "a"i | "\\n"\nb: %json {"type": "null"}'),
    (GrammarKind.TOOLS, [{"name": "get", "parameters": {"properties": {"x": {"type": "number"}}}}, {"name": "put"}]),
)


def decode_grammar(data: bytes) -> object:
    """The first byte is the kind. Takes a grammar, and a few of the tokens that it allows."""
    started_s = time.thread_time()
    try:
        wanted = Grammar(KINDS[data[0] % len(KINDS)], data[1:].decode())
        tiny.grammars().check(wanted)
        follower = tiny.grammars().follower(wanted)
        said: list[int] = []
        for step in range(STEPS_MAX):
            choices = np.flatnonzero(follower.allowed(said))
            if not len(choices) or choices[-1] in tiny.SHAPE.eos:
                break
            said.append(int(choices[step * 7919 % len(choices)]))
    except (IndexError, UnicodeDecodeError, errors.EngineError) as error:
        raise errors.PeerError(str(error)) from None
    finally:
        assert time.thread_time() - started_s < SECONDS_MAX, data
    assert not set(said) & set(tiny.SPECIAL.values())
    return said


def seeds() -> tuple[bytes, ...]:
    return tuple(
        bytes([KINDS.index(kind)]) + (value if isinstance(value, str) else json.dumps(value)).encode()
        for kind, value in _SEEDS
    )
