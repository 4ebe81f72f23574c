"""The real model held to grammars: what it says parses, and a host that takes over says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshnode import ids, options, ports
from meshnode.engine import engine
from meshnode.models import store, tokenizer
from meshnode.options import Grammar, GrammarKind
from meshnode.sessions import speech

A, B = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"ab")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "name": "weather",
        "parameters": {
            "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
    {"name": "clock", "parameters": {"additionalProperties": False}},
]
TOKENS_MAX = 150


@pytest.fixture(scope="module")
def words(model: Path) -> tokenizer.ChatTokenizer:
    return tokenizer.ChatTokenizer(model)


def load(installed: store.Installed) -> engine.TorchEngine:
    return engine.TorchEngine.load(
        installed.folder,
        name=installed.name,
        digest=installed.digest,
        numeric_class="w8",
        memory_bytes=1 << 28,
    )


@pytest.fixture(scope="module")
def first(installed: store.Installed) -> engine.TorchEngine:
    return load(installed)


@pytest.fixture(scope="module")
def second(installed: store.Installed) -> engine.TorchEngine:
    """Another host."""
    return load(installed)


def said(
    of: engine.TorchEngine, session: ids.SessionId, context: list[int], sampling: ports.Sampling, position: int, at: int
) -> list[int]:
    """Go on with an answer that began at `at`, the engine holding `position` tokens, until its end."""
    context = list(context)
    while len(context) < at + TOKENS_MAX and not (len(context) > at and context[-1] in of.card.eos):
        answer_from = at if len(context) > at else 0
        [token] = of.step([ports.Work(session, position, tuple(context[position:]), sampling, answer_from=answer_from)])
        assert isinstance(token, int), token
        position = len(context)
        context.append(token)
    return context[at:]


def asked(words: tokenizer.ChatTokenizer, text: str) -> list[int]:
    return words.turn(text, system="You answer in JSON.", first=True, closed=False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_answer_parses_under_its_schema_on_whatever_host_it_is_ended(
    first: engine.TorchEngine, second: engine.TorchEngine, words: tokenizer.ChatTokenizer, temperature: float
) -> None:
    grammar = Grammar(GrammarKind.JSON, json.dumps(PERSON))
    sampling = ports.Sampling(seed=5, temperature=temperature, top_p=0.95, presence_penalty=0.3, grammar=grammar)
    prompt = asked(words, "Invent a person who lives by the sea and describe them. " * 3)
    whole = said(first, A, prompt, sampling, 0, len(prompt))
    assert whole[-1] in first.card.eos
    found = json.loads(words.text(whole))
    assert set(found) == set(PERSON["required"])
    assert isinstance(found["name"], str)
    assert 0 <= found["age"] <= 150
    assert all(isinstance(one, str) for one in found["likes"])
    context = prompt + whole[:9]
    pages = [first.export(A, index) for index in range(len(context) // first.card.page_tokens)]
    restored = second.restore(B, context, pages)
    assert restored > 0
    assert said(second, B, context, sampling, restored, len(prompt)) == whole


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_tool_call_names_a_tool_and_gives_it_what_it_wants(
    first: engine.TorchEngine, words: tokenizer.ChatTokenizer, seed: int
) -> None:
    grammar = Grammar(GrammarKind.TOOLS, json.dumps(TOOLS))
    sampling = ports.Sampling(seed=seed, temperature=1.2, grammar=grammar)
    prompt = asked(words, "What is the weather in Paris?")
    call = json.loads(words.text(said(first, A, prompt, sampling, 0, len(prompt))))
    assert list(call) == ["name", "arguments"]
    if call["name"] == "weather":
        assert isinstance(call["arguments"]["city"], str)
        assert call["arguments"]["unit"] in ("C", "F")
    else:
        assert call == {"name": "clock", "arguments": {}}


def test_a_regular_expression_is_matched_whole(first: engine.TorchEngine, words: tokenizer.ChatTokenizer) -> None:
    sampling = ports.Sampling(grammar=Grammar(GrammarKind.REGEX, r"Answer: (yes|no), [0-9]{2}%\."))
    prompt = asked(words, "Will it rain?")
    text = words.text(said(first, A, prompt, sampling, 0, len(prompt)))
    assert text in {f"Answer: {word}, {number:02}%." for word in ("yes", "no") for number in range(100)}


def test_a_stop_string_across_the_models_own_tokens(first: engine.TorchEngine, words: tokenizer.ChatTokenizer) -> None:
    prompt = asked(words, "Name three colours, with an emoji each: 🔴 red.")
    answer = said(first, A, prompt, ports.Sampling(seed=2, temperature=0.8), 0, len(prompt))
    whole = words.text(answer)
    for start in range(0, len(whole) - 8, 5):
        stop = whole[start : start + 8]
        pending: list[int] = []
        told, shown, stopped = 0, "", False
        for token in answer:
            spoken = speech.spoken(words.text([*pending, token]), told, ("nowhere to be found", stop))
            shown, stopped = shown + spoken.piece, spoken.stopped
            if stopped:
                break
            pending, told = ([], 0) if spoken.whole else ([*pending, token], told + len(spoken.piece))
        assert stopped
        assert shown == whole[: whole.index(stop)]


def test_log_probabilities_of_the_model_sum_to_less_than_one(
    first: engine.TorchEngine, words: tokenizer.ChatTokenizer
) -> None:
    prompt = tuple(asked(words, "What is the capital of France?"))
    sampling = ports.Sampling(logprobs=options.TOP_LOGPROBS_MAX, temperature=2.0, seed=1)
    [drawn] = first.step([ports.Work(A, 0, prompt, sampling)])
    assert isinstance(drawn, ports.Drawn)
    chances = [2.718281828459045**logprob for _, logprob in drawn.top]
    assert chances == sorted(chances, reverse=True)
    assert 0.3 < sum(chances) < 1.0
