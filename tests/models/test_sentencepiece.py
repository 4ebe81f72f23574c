"""Models whose words carry their space in front: said in pieces and held to grammars like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from meshnode.engine import grammar
from meshnode.models import gguf, tokenizer, vocabulary
from meshnode.options import Grammar, GrammarKind
from meshnode.sessions import speech

LETTERS = ["▁", *"aehipstüb!"]
WORDS = ["▁t", "▁th", "▁the", "▁s", "▁sh", "▁shi", "▁ship", "▁ships", "▁a"]
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *WORDS]
TEMPLATE = "{% for one in messages %}<s>{{ one['content'] }}</s>{% endfor %}<s>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(TOKENS) - 259),
        "tokenizer.ggml.scores": [0.0 if token in WORDS else -1e6 for token in TOKENS],
    }
    (tmp_path / gguf.TOKENIZER).write_text(vocabulary.from_gguf(fields).to_str())
    config = {"special": {"<s>": 1, "</s>": 2}, "eos": [2], "chat_template": TEMPLATE}
    (tmp_path / gguf.CONFIG).write_text(json.dumps(config))
    return tmp_path


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def test_an_answer_that_is_said_in_pieces_keeps_its_spaces(folder: Path) -> None:
    words = tokenizer.ChatTokenizer(folder)
    said = ids("▁the", "▁ships", "▁", "▁", "ü", "<0xE2>", "<0x82>", "<0xAC>", "!", "</s>")
    pieces: list[str] = []
    pending: list[int] = []
    told = 0
    for token in said:
        spoken = speech.spoken(words.text([*pending, token]), told, ("shipshape",))
        pieces.append(spoken.piece)
        pending, told = ([], 0) if spoken.whole else ([*pending, token], told + len(spoken.piece))
    assert "".join(pieces) == words.text(said) == " the ships  ü€!"
    assert pieces[:3] == [" the", " ", "ships "], "the ships may have become shipshape"


def test_a_grammar_is_followed_letter_by_letter_and_word_by_word(folder: Path) -> None:
    of = grammar.Grammars.load(folder, len(TOKENS), [2])
    assert of is not None
    follower = of.follower(Grammar(GrammarKind.REGEX, "the ships?"))

    def allowed(*said: str) -> set[str]:
        return {TOKENS[token] for token in np.flatnonzero(follower.allowed(ids(*said)))}

    assert allowed() == {"t"}, "and neither a word with its space nor the name of a byte"
    assert allowed("t", "h", "e") - {"<0x20>"} == {"▁", "▁s", "▁sh", "▁shi", "▁ship", "▁ships"}
    assert allowed("t", "h", "e", "▁ships") == {"</s>"}
    assert "</s>" in allowed("t", "h", "e", "▁ship")
