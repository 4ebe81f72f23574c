"""What a grammar lets be said: by value, along random answers, and after a host that forgot everything."""

from __future__ import annotations

import json
import random
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from meshnode import errors, host, ids, options, ports
from meshnode.engine import drawing, engine, grammar
from meshnode.options import Grammar, GrammarKind
from tests.engine import tiny

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
PROMPT = tuple((index * 37 + 11) % 256 for index in range(150))
END, START = 299, 298
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 999}, "of": {"enum": ["ä", "b"]}, "on": {"type": "boolean"}},
    "required": ["n", "of", "on"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "name": "get",
        "parameters": {
            "$defs": {"unit": {"enum": ["C", "F"]}},
            "properties": {"unit": {"$ref": "#/$defs/unit"}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
    {"name": "put", "parameters": {"properties": {"at": {"type": "boolean"}}, "additionalProperties": False}},
]


def of(kind: str, text: object) -> Grammar:
    return Grammar(GrammarKind(kind), text if isinstance(text, str) else json.dumps(text))


JSON, CALLS = of("json", SCHEMA), of("tools", TOOLS)


def allowed(wanted: Grammar, said: str = "") -> list[str]:
    mask = tiny.grammars().follower(wanted).allowed(tiny.encode(said))
    names = {END: "END", START: "START"}
    return sorted(names.get(int(token)) or tiny.decode([int(token)]) for token in np.flatnonzero(mask))


def walked(wanted: Grammar, rng: random.Random, most: int = 120) -> list[int]:
    """An answer drawn from what is allowed, its end token included if it came to one."""
    follower = tiny.grammars().follower(wanted)
    said: list[int] = []
    while len(said) < most and said[-1:] != [END]:
        choices = np.flatnonzero(follower.allowed(said))
        said.append(END if END in choices and rng.random() < 0.5 else int(rng.choice(choices)))
    return said


def test_a_regular_expression_allows_its_letters_and_the_end_where_it_may_end() -> None:
    wanted = of("regex", "a[bc]{1,2}")
    assert allowed(wanted) == ["a"]
    assert allowed(wanted, "a") == ["b", "c"]
    assert allowed(wanted, "ab") == ["END", "b", "c"]
    assert allowed(wanted, "abc") == ["END"]


def test_tokens_of_several_letters_are_allowed_where_all_of_them_fit() -> None:
    assert allowed(JSON) == ["{", '{"']
    assert '":' in allowed(JSON, '{"n')
    assert '":' not in allowed(JSON, '{"n":1,"o')


def test_a_token_may_end_inside_a_character() -> None:
    assert len(allowed(of("regex", "ä|ö"))) == 1
    mask = tiny.grammars().follower(of("regex", "ä|ö")).allowed(tiny.encode("ä")[:1])
    assert set(np.flatnonzero(mask)) == {tiny.encode("ä")[1], tiny.encode("ö")[1]}


def test_an_ebnf_nests() -> None:
    wanted = of("lark", 'start: "(" start ")" | "x"')
    assert allowed(wanted, "((x)") == [")"]
    assert allowed(wanted, "((x))") == ["END"]


@pytest.mark.parametrize(
    "wanted",
    [
        of("json", {"type": "string"}),
        of("regex", r"[\s\S]*"),
        of("lark", 'start: <[298]> | "<|start|>" | <|end|> | "x"'),
    ],
)
def test_special_tokens_are_no_text_whatever_the_grammar_says(wanted: Grammar) -> None:
    said = '"' if wanted.kind is GrammarKind.JSON else ""
    mask = tiny.grammars().follower(wanted).allowed(tiny.encode(said))
    assert mask.sum() > 1
    assert not mask[START]
    assert mask[END] == (wanted.kind is GrammarKind.REGEX), "the end alone, and only where the answer may end"
    assert mask[tiny.encode("<")[0]], "their letters are letters like any"


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_that_ends_parses(seed: int) -> None:
    rng = random.Random(seed)
    found = json.loads(tiny.decode(walked(JSON, rng)))
    assert set(found) == {"n", "of", "on"}
    assert type(found["n"]) is int
    assert found["n"] <= 999
    assert found["of"] in ("ä", "b")
    call = json.loads(tiny.decode(walked(CALLS, rng)))
    assert list(call) == ["name", "arguments"]
    if call["name"] == "get":
        assert call["arguments"]["unit"] in ("C", "F")
    else:
        assert (call["name"], set(call["arguments"]) <= {"at"}) == ("put", True)


def test_whitespace_is_bounded() -> None:
    assert " " in allowed(JSON, "{" + " " * 15)
    assert allowed(JSON, "{" + " \n" * 8) == ['"']


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.integers(0, 10**6), st.sampled_from([JSON, CALLS, of("regex", "(ab?|[c-z]{2})*")]), st.data())
def test_a_follower_that_was_cut_or_forgot_allows_what_one_that_saw_all_allows(
    seed: int, wanted: Grammar, data: st.DataObject
) -> None:
    said = walked(wanted, random.Random(seed), 40)
    follower = tiny.grammars().follower(wanted)
    for _ in range(6):
        count = data.draw(st.integers(0, len(said) - (said[-1:] == [END])))
        fresh = tiny.grammars().follower(wanted)
        assert np.array_equal(follower.allowed(said[:count]), fresh.allowed(said[:count]))


def test_two_followers_of_one_grammar_do_not_meet() -> None:
    one, other = tiny.grammars().follower(JSON), tiny.grammars().follower(JSON)
    one.allowed(tiny.encode('{"n"'))
    assert np.array_equal(other.allowed([]), tiny.grammars().follower(JSON).allowed([]))


def test_tokens_that_do_not_follow_are_said_to_and_harm_nothing() -> None:
    follower = tiny.grammars().follower(JSON)
    for wrong in (tiny.encode("[1"), [START], [END], tiny.encode('{"n": 1') + [END]):
        with pytest.raises(errors.EngineError, match="does not follow"):
            follower.allowed(wrong)
        assert follower.allowed(tiny.encode("{")).any()


REFUSED = {
    "no JSON": of("json", '{"type": '),
    "nested 34 deep": of("json", '{"items":' * 33 + "{}" + "}" * 33),
    "Unsatisfiable": of("json", {"type": "integer", "minimum": 5, "maximum": 3}),
    "property 'a'": of(
        "json",
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["a"]},
    ),
    "Unimplemented": of("json", {"type": "object", "dependentRequired": {"a": ["b"]}}),
    "retriev": of("json", {"$ref": "https://example.com/schema.json"}),
    "unrolls": of("json", {"type": "string", "pattern": "^(a{1000}){1000}$"}),
    "to more than 16384 atoms": of("regex", "((a{1000}){1000}){1000}"),
    "16384 atoms; use": of("regex", "a{00000000000099999}"),
    "4 atoms; use": of("regex", f"a{{{'9' * 5000}}}"),
    "unclosed": of("regex", "(a"),
    "NoExtension": of("regex", r"[^\s\S]"),
    "flag x": of("regex", "(?x)a # )"),
    "unknown name": of("lark", "start: nothing"),
    "multiply": of("lark", "start: A\nA: B{1000}\nB: C{1000}\nC: /a/"),
    "too big": of("lark", "start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(40)) + 'A40: "a"'),
    "no answer can begin": of("lark", "start: <[298]>"),
    "nested 200 deep": of("lark", "start: " + "(" * 200 + '"a"' + ")" * 200),
    "bytes": of("regex", "ä" * options.GRAMMAR_BYTES_MAX),
    "a list of 1 to 64": of("tools", []),
    "tool 0": of("tools", [{"name": "", "parameters": {}}]),
    "tool 1": of("tools", [TOOLS[0], {"name": "a", "parameters": 5}]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_followed_is_refused_with_the_reason(words: str) -> None:
    with pytest.raises(errors.EngineError, match=re.escape(words)) as caught:
        tiny.grammars().check(REFUSED[words])
    assert str(caught.value).startswith("grammar: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("pattern", "times"),
    [
        ("a", 1),
        ("ab{3}c", 5),
        ("(ab){3}", 6),
        ("((ab){3}c){2}", 14),
        (r"\({2}[)(\]]{3}", 5),
        ("a{2,5}|b{7,}", 12),
        ("a{}b", 2),
    ],
)
def test_repetitions_are_counted_as_they_nest(pattern: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "UNROLLED_MAX", times)
    grammar._check_regex(pattern)
    monkeypatch.setattr(grammar, "UNROLLED_MAX", times - 1)
    with pytest.raises(errors.EngineError, match="unrolls"):
        grammar._check_regex(pattern)


def test_compiled_grammars_have_a_bound() -> None:
    for number in range(grammar.CACHED_MAX + 5):
        tiny.grammars().check(of("regex", f"a{number}"))
    assert len(tiny.grammars()._compiled) == grammar.CACHED_MAX
    assert tiny.grammars().known(of("regex", f"a{number}"))


# ------------------------------------------------------------------------------------------------------- in an engine


def said(
    of_: engine.TorchEngine,
    session: ids.SessionId,
    feed: tuple[int, ...],
    sampling: ports.Sampling,
    count: int,
    *,
    position: int = 0,
    answer_from: int = 0,
) -> list[int]:
    """Draw until the end, or `count` tokens."""
    found: list[int] = []
    prompt_count = answer_from or position + len(feed)
    while len(found) < count and found[-1:] != [END]:
        [token] = of_.step([ports.Work(session, position, feed, sampling, answer_from=answer_from)])
        assert isinstance(token, int), token
        found.append(token)
        position, feed, answer_from = position + len(feed), (token,), prompt_count
    return found


STRICT = ports.Sampling(seed=3, temperature=1.5, grammar=JSON, presence_penalty=0.5, repetition_penalty=1.2)


def test_an_engine_says_what_the_grammar_allows_and_another_goes_on_from_the_log() -> None:
    first, second = tiny.make(follows=tiny.grammars()), tiny.make(follows=tiny.grammars())
    whole = said(first, A, PROMPT, STRICT, 120)
    assert json.loads(tiny.decode(whole))["of"] in ("ä", "b")
    assert whole[-1] == END
    context = [*PROMPT, *whole[:12]]
    pages = [first.export(A, index) for index in range(len(context) // first.card.page_tokens)]
    restored = second.restore(B, context, pages)
    assert restored > 100
    rest = said(second, B, tuple(context[restored:]), STRICT, 120, position=restored, answer_from=len(PROMPT))
    assert [*whole[:12], *rest] == whole


def test_sessions_beside_a_grammar_do_not_notice_it() -> None:
    alone, together = tiny.make(follows=tiny.grammars()), tiny.make(follows=tiny.grammars())
    plain = ports.Sampling(seed=1, temperature=1.0)
    wants = {A: STRICT, B: plain, C: ports.Sampling(grammar=of("lark", "start: nothing"))}
    expected = {name: said(alone, name, PROMPT, wants[name], 15) for name in (A, B)}
    feeds = dict.fromkeys(wants, PROMPT)
    found: dict[ids.SessionId, list[int]] = {A: [], B: []}
    for step in range(15):
        position = len(PROMPT) + step - 1 if step else 0
        start = len(PROMPT) if step else 0
        answers = together.step(
            [ports.Work(name, position, feeds[name], wants[name], answer_from=start) for name in feeds]
        )
        for name, answer in zip(list(feeds), answers, strict=True):
            if name == C:
                assert isinstance(answer, errors.EngineError)
                assert "unknown name" in str(answer)
                del feeds[C]
            else:
                assert isinstance(answer, int)
                found[name].append(answer)
                feeds[name] = (answer,)
    assert found == expected


def test_the_first_draw_does_not_depend_on_what_the_last_turn_said() -> None:
    of_ = tiny.make(follows=tiny.grammars())
    first = said(of_, A, PROMPT, STRICT, 120)
    context = len(PROMPT) + len(first) - 1
    again = said(of_, A, (first[-1], *PROMPT[:20]), STRICT, 120, position=context)
    assert json.loads(tiny.decode(again))["of"] in ("ä", "b")


def test_n_sessions_of_one_prompt_draw_n_answers_that_come_again() -> None:
    of_ = tiny.make()
    seeds = [options.branch_seed(7, branch) for branch in range(4)]
    names = [ids.SessionId(bytes([branch]) * ids.SESSION_BYTES) for branch in range(4)]

    def all_said() -> list[list[int]]:
        draws = [ports.Sampling(seed=seed, temperature=1.0) for seed in seeds]
        return [said(of_, name, PROMPT, draw, 12) for name, draw in zip(names, draws, strict=True)]

    answers = all_said()
    assert len({tuple(answer) for answer in answers}) == 4
    assert all_said() == answers
    assert answers[0] == said(of_, A, PROMPT, ports.Sampling(seed=7, temperature=1.0), 12), "n = 1 is the first of n"


async def test_behind_the_port_a_grammar_is_checked_and_compiled_beside_the_steps() -> None:
    inner = tiny.make(follows=grammar.Grammars(*_parts()))
    assert inner.grammars is not None
    async with host.running(inner) as thread:
        await thread.check(CALLS)
        with pytest.raises(errors.EngineError, match="unclosed"):
            await thread.check(of("regex", "(a"))
        assert not inner.grammars.known(JSON)
        [token] = await thread.step([ports.Work(A, 0, PROMPT, STRICT)])
        assert inner.grammars.known(JSON)
        assert token in tiny.encode("{") or tiny.decode([token]) == '{"'
        bad = ports.Sampling(grammar=of("lark", "start: nothing"))
        with pytest.raises(errors.EngineError, match="unknown name"):
            await thread.step([ports.Work(B, 0, PROMPT, bad)])


async def test_an_engine_without_a_tokenizer_is_held_to_no_grammar() -> None:
    async with host.running(tiny.make()) as thread:
        with pytest.raises(errors.EngineError, match="no vocabulary"):
            await thread.check(JSON)
        with pytest.raises(errors.EngineError, match="no vocabulary"):
            await thread.step([ports.Work(A, 0, PROMPT, STRICT)])


def _parts() -> tuple[str, dict[str, int], int, list[int]]:
    of_ = tiny.grammars()
    return of_._tokenizer, of_._special, of_.vocabulary, of_.eos


def test_a_drawer_that_let_a_session_go_follows_it_again_from_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FOLLOWERS_MAX", 1)
    few, many = drawing.Drawer(tiny.grammars()), drawing.Drawer(tiny.grammars())
    logits = np.random.default_rng(5).normal(size=tiny.SHAPE.vocabulary).astype(np.float32)
    contexts: dict[ids.SessionId, list[int]] = {A: [5, 6, 7], B: [8, 9]}
    starts = {name: len(context) for name, context in contexts.items()}
    for _ in range(12):
        for name, context in contexts.items():
            at = starts[name] if len(context) > starts[name] else 0
            drawn = [one.draw(name, logits, STRICT, context, at) for one in (few, many)]
            assert drawn[0] == drawn[1]
            context.append(drawn[0])
        assert len(few._followers) == 1
    many.forget(A)
    assert A not in many._followers
