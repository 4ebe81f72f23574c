"""The real model: the reference class against transformers, the exact class against the reference and itself."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from bench import _reference
from meshnode import errors, ids, ports
from meshnode.engine import engine, weights
from meshnode.models import store, tokenizer

A, B = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"ab")
GREEDY = ports.Sampling()
PROMPTS = (
    "What is the capital of France? Tell me about it.",
    "Write a short story about a lighthouse keeper.",
    "Explain how rain forms.",
    "List ten animals and one fact about each.",
    "def fibonacci(n):",
)
TOKENS_EACH = 100


@pytest.fixture(scope="module")
def load(installed: store.Installed) -> functools.partial[engine.TorchEngine]:
    return functools.partial(
        engine.TorchEngine.load,
        installed.folder,
        name=installed.name,
        digest=installed.digest,
        memory_bytes=1 << 28,
    )


@pytest.fixture(scope="module")
def words(model: Path) -> tokenizer.ChatTokenizer:
    return tokenizer.ChatTokenizer(model)


@pytest.fixture(scope="module")
def exact(load: functools.partial[engine.TorchEngine]) -> engine.TorchEngine:
    return load(numeric_class="w8")


@pytest.fixture(scope="module")
def reference(load: functools.partial[engine.TorchEngine]) -> engine.TorchEngine:
    return load(numeric_class="f32")


@pytest.fixture(scope="module")
def peer(model: Path) -> transformers.LlamaForCausalLM:
    """transformers over the same weights, in float32."""
    assert weights.shape(model).tied
    found: transformers.LlamaForCausalLM = _reference.model(model)
    return found


def said(
    of: engine.TorchEngine, session: ids.SessionId, feed: Sequence[int], count: int, position: int = 0
) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        [token] = of.step([ports.Work(session, position, tuple(feed), GREEDY)])
        assert isinstance(token, int)
        position += len(feed)
        feed = [token]
        found.append(token)
    return found


def together(of: engine.TorchEngine, feeds: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """What each of several sessions says, in steps that they share."""
    names = [ids.SessionId(bytes([index]) * ids.SESSION_BYTES) for index in range(len(feeds))]
    positions, found = [0] * len(feeds), [[] for _ in feeds]
    for _ in range(count):
        works = [ports.Work(*one, GREEDY) for one in zip(names, positions, map(tuple, feeds), strict=True)]
        tokens = [token for token in of.step(works) if not isinstance(token, errors.EngineError | None)]
        positions = [position + len(feed) for position, feed in zip(positions, feeds, strict=True)]
        feeds = [(token,) for token in tokens]
        for line, token in zip(found, tokens, strict=True):
            line.append(token)
    return found


def greedy(peer: transformers.LlamaForCausalLM, feed: list[int], said: list[int]) -> list[int]:
    """What transformers would have said at each place of the same text."""
    with torch.inference_mode():
        return peer(torch.tensor([feed + said])).logits[0, len(feed) - 1 : -1].argmax(-1).tolist()


@pytest.fixture(scope="module")
def feeds(words: tokenizer.ChatTokenizer) -> list[list[int]]:
    return [words.turn(prompt, system=None, first=True, closed=False) for prompt in PROMPTS]


def test_the_reference_class_says_what_transformers_says(
    reference: engine.TorchEngine, peer: transformers.LlamaForCausalLM, feeds: list[list[int]]
) -> None:
    for feed, line in zip(feeds, together(reference, feeds, TOKENS_EACH), strict=True):
        assert greedy(peer, feed, line) == line


def test_the_exact_class_is_close_to_the_reference(
    exact: engine.TorchEngine, peer: transformers.LlamaForCausalLM, feeds: list[list[int]]
) -> None:
    lines = together(exact, feeds, 40)
    pairs = [
        pair
        for feed, line in zip(feeds, lines, strict=True)
        for pair in zip(greedy(peer, feed, line), line, strict=True)
    ]
    assert sum(theirs == ours for theirs, ours in pairs) >= 0.9 * len(pairs)


def test_the_model_knows_the_capital_of_france(exact: engine.TorchEngine, words: tokenizer.ChatTokenizer) -> None:
    feed = words.turn(PROMPTS[0], system=None, first=True, closed=False)
    assert "Paris" in words.text(said(exact, A, feed, 12))


def test_a_restored_session_says_the_same_words(exact: engine.TorchEngine, words: tokenizer.ChatTokenizer) -> None:
    feed = words.turn(PROMPTS[2] * 40, system=None, first=True, closed=False)
    whole = said(exact, A, feed, 20)
    pages = [exact.export(A, index) for index in range(len(feed) // exact.card.page_tokens)]
    assert exact.card.page_bytes == exact.card.page_tokens * 23040
    restored = exact.restore(B, feed, pages)
    assert said(exact, B, feed[restored:], 20, position=restored) == whole


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_chunks_leave_no_trace_in_the_kv(exact: engine.TorchEngine, words: tokenizer.ChatTokenizer, chunk: int) -> None:
    feed = tuple(words.turn(PROMPTS[3] * 9, system=None, first=True, closed=False))[:64]
    exact.step([ports.Work(A, 0, feed, None)])
    for start in range(0, len(feed), chunk):
        exact.step([ports.Work(B, start, feed[start : start + chunk], None)])
    assert [exact.export(A, index) for index in (0, 1)] == [exact.export(B, index) for index in (0, 1)]


def test_company_leaves_no_trace_in_the_words(exact: engine.TorchEngine, feeds: list[list[int]]) -> None:
    assert together(exact, feeds[:4], 15) == [said(exact, A, feed, 15) for feed in feeds[:4]]


def test_turns_join_to_what_the_template_renders(model: Path, words: tokenizer.ChatTokenizer) -> None:
    import jinja2

    config = json.loads((model / "config.json").read_text())
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Count: 1234, tabs\tand  é 你好!"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And now?"},
    ]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"])
    whole = template.render(messages=messages, add_generation_prompt=True)
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
    plain.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    joined = words.turn(messages[1]["content"], system="Be brief.", first=True, closed=False)
    joined += plain("Yes.")["input_ids"]
    for closed in (False, True):
        ended = [config["special"]["<|im_end|>"]] if closed else []
        rest = words.turn(messages[3]["content"], system=None, first=False, closed=closed)
        assert joined + ended + rest == plain(whole)["input_ids"]


def test_control_tokens_typed_by_a_user_stay_text(model: Path, words: tokenizer.ChatTokenizer) -> None:
    special = json.loads((model / "config.json").read_text())["special"]
    for mark in special:
        plain = words.turn("x", system=None, first=True, closed=False)
        marked = words.turn(f"x{mark}x\ue001\ue002", system=None, first=True, closed=False)
        controls = [[token for token in turn if token in special.values()] for turn in (plain, marked)]
        assert controls[0] == controls[1]
        assert f"x{mark}x\ue001\ue002" in words.text(marked)
