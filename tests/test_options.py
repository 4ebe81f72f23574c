"""What a turn asks for, and what becomes of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import manifest, options, ports
from meshnode.options import Bias, Grammar, GrammarKind, Options
from meshnode.sessions.messages import Message
from meshnode.wire import cbor, schema
from tests.sessions import cases


def test_options_sampling_and_manifest_speak_of_the_same_fields() -> None:
    asked = {field.name for field in dataclasses.fields(Options)}
    drawn = {field.name for field in dataclasses.fields(ports.Sampling)}
    set_ = {field.name for field in dataclasses.fields(manifest.Agent)}
    assert asked - {"stop"} == drawn
    assert asked <= set_
    assert options.over(manifest.Agent(), options.AS_THE_MANIFEST) == manifest.Agent()


def test_what_a_turn_does_not_say_is_as_the_manifest_has_it() -> None:
    agent = manifest.Agent(temperature=0.5, stop=("END",), seed=3, logprobs=4)
    found = options.over(agent, Options(temperature=0.0, stop=(), top_k=5))
    assert found == manifest.Agent(temperature=0.0, stop=(), seed=3, logprobs=4, top_k=5)


def test_a_turn_is_read_as_people_write_it() -> None:
    found, reasons = options.read({"temperature": 1, "stop": "END", "logit_bias": {5: -100, 7: 2.5}, "seed": None})
    assert reasons == []
    assert found == Options(temperature=1.0, stop=("END",), logit_bias=(Bias(5, -100.0), Bias(7, 2.5)))


@pytest.mark.parametrize(
    ("given_", "grammar"),
    [
        ({"schema": {"type": "null"}}, Grammar(GrammarKind.JSON, '{"type": "null"}')),
        ({"schema": '{"enum": ["ä"]}'}, Grammar(GrammarKind.JSON, '{"enum": ["ä"]}')),
        ({"regex": "a+"}, Grammar(GrammarKind.REGEX, "a+")),
        ({"lark": 'start: "a"'}, Grammar(GrammarKind.LARK, 'start: "a"')),
        ({"tools": [{"name": "f"}]}, Grammar(GrammarKind.TOOLS, json.dumps([{"name": "f"}]))),
        ({"grammar": Grammar(GrammarKind.REGEX, "b")}, Grammar(GrammarKind.REGEX, "b")),
    ],
)
def test_each_way_to_name_a_grammar(given_: dict[str, object], grammar: Grammar) -> None:
    assert options.read(given_) == (Options(grammar=grammar), [])


def test_every_mistake_is_said_and_what_is_sound_is_kept() -> None:
    loop: list[object] = []
    loop.append(loop)
    found, reasons = options.read({"temperature": "hot", "tempo": 1, "top_p": 7.0, "regex": "a", "schema": loop})
    assert found.top_p == 7.0
    assert [word for word in ("temperature", "tempo", "one grammar", "schema") if word not in " ".join(reasons)] == []
    assert options.problems(options.over(manifest.Agent(), found)) == ["top_p: must be above 0 and at most 1"]


ASKED = st.builds(
    Options,
    temperature=st.none() | st.floats(0, 10),
    top_k=st.none() | st.integers(0, 99),
    presence_penalty=st.none() | st.floats(-2, 2),
    logit_bias=st.none()
    | st.lists(st.builds(Bias, st.integers(0, 1 << 24), st.floats(-100, 100)), max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    stop=st.none() | st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=4).map(tuple),
    grammar=st.none()
    | st.builds(Grammar, st.sampled_from(GrammarKind), st.text(st.characters(codec="utf-8"), max_size=20)),
)


@given(ASKED)
def test_a_message_comes_over_the_wire_as_it_was_asked(asked: Options) -> None:
    sent = Message(cases.SESSION, cases.request(1), "hi", 0, asked)
    assert schema.unpack(schema.number_of(sent), cbor.decode(cbor.encode(schema.pack(sent)))) == sent
