"""Answers that follow a grammar: which tokens may come next, computed by llguidance from the model's own tokens.

The idea: what a grammar has seen is a function of the log: the tokens since the answer began. So a `Follower` is a
cache like the KV: it keeps a matcher and the tokens that it was fed, feeds it what is new, and starts again where they
do not fit, which is what a host does that takes over in mid-answer.

Special tokens are none of an answer's text: whatever the grammar says, none of them is allowed, but for the ends of a
turn, and these exactly when the answer may end here. llguidance gets them marked as special, since our tokenizer.json
does not know them (models/vocabulary.py), and a JSON string could be "<|im_end|>" otherwise.

A grammar is a stranger's program. `check` refuses at the door what is too large, too deep, cannot be read or allows no
first token; the library's own limits hold the cost of each further token. One thing they do not hold, as measured:
counted repetitions (`(a{1000}){1000}` takes 1.5 s for a token), so those are counted here, before it sees them.

Rejected: a parser of our own over texts (a token may end inside a character, and a vocabulary is 49152 texts); to take
a drawn token back when it does not fit (the draw would no longer be of the distribution that was asked for).
"""

from __future__ import annotations

import functools
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llguidance
import numpy as np

from meshnode import errors
from meshnode.engine.sampler import Mask
from meshnode.options import GRAMMAR_BYTES_MAX, Grammar, GrammarKind

DEPTH_MAX = 32
"""Brackets in brackets, of a schema and of a grammar: readers of nested text use the stack."""
UNROLLED_MAX = 1 << 14
"""Atoms of one regular expression with its counted repetitions written out: 10 ms a token, as measured."""
TOOLS_MAX = 64
CACHED_MAX = 64
"""Compiled grammars kept: a session of many turns compiles once."""
_REASON_CHARS_MAX = 300
_COUNT = re.compile(r"\{\s*([0-9]*)\s*,?\s*([0-9]*)\s*\}|~\s*([0-9]+)(?:\s*\.\.\s*([0-9]+))?")
_OPENING, _CLOSING = "([{", ")]}"
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=16_384,
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
"""Some 4 ms to build, 10 ms and 32 MiB at most for a token, by the library's own figures."""
_WHITESPACE: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}"}
"""Unbounded, and a small model fills its answer with line ends."""


class Grammars:
    """Compiles grammars for one model's tokens. `check` and `follower` may run in two threads."""

    def __init__(self, tokenizer: str, special: dict[str, int], vocabulary: int, eos: Sequence[int]) -> None:
        """`tokenizer` is a tokenizer.json's text; `vocabulary` the number of logits."""
        self._tokenizer = tokenizer
        self._special = special
        self.vocabulary = vocabulary
        self.eos = list(eos)
        self.never = sorted({*special.values(), *eos})
        """Ids that no grammar allows."""
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    @classmethod
    def load(cls, folder: Path, vocabulary: int, eos: Sequence[int]) -> Grammars | None:
        """From a converted model's folder; None if it holds no tokenizer, as a test's may."""
        config, words = folder / "config.json", folder / "tokenizer.json"
        if not words.is_file():
            return None
        try:
            special = {str(mark): int(number) for mark, number in json.loads(config.read_text())["special"].items()}
            return cls(words.read_text(), special, vocabulary, eos)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise errors.StoreError(f"the model's tokenizer cannot be read: {error}") from None

    def check(self, grammar: Grammar) -> None:
        """Raises EngineError if it cannot be read, costs too much or allows no answer."""
        if not self.follower(grammar).allowed([]).any():
            raise errors.EngineError("grammar: no answer can begin in a way that it allows")

    def known(self, grammar: Grammar) -> bool:
        """Whether it is compiled already."""
        return grammar in self._compiled

    def follower(self, grammar: Grammar) -> Follower:
        """One answer's place in it. Raises EngineError."""
        return Follower(self, grammar)

    def matcher(self, grammar: Grammar) -> Any:
        """A fresh one, at the beginning of the answer."""
        found = self._compiled.get(grammar)
        if found is None:
            source = _source(grammar)
            found = llguidance.LLMatcher(self._words, source, log_level=0, limits=_LIMITS)
            if found.is_error():
                raise errors.EngineError(f"grammar: {_short(found.get_error())}")
            self._compiled[grammar] = found
            while len(self._compiled) > CACHED_MAX:
                self._compiled.popitem(last=False)
        return found.deep_copy()

    @functools.cached_property
    def _words(self) -> Any:
        """The tokens as llguidance wants them: 0.2 s for 49152 of them, so only for who asks."""
        try:
            whole = json.loads(self._tokenizer)
            known = [one for one in whole.get("added_tokens", []) if one["content"] not in self._special]
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            marks = [{"id": number, "content": mark, **flags} for mark, number in self._special.items()]
            whole["added_tokens"] = sorted(known + marks, key=lambda one: int(one["id"]))
            words = llguidance.LLTokenizer(json.dumps(whole), n_vocab=self.vocabulary, eos_token=self.eos)
            if not all(words.is_special_token(number) for number in self._special.values()):
                raise ValueError("a special token got another id")
            return words
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise errors.EngineError(f"grammar: not with this model's tokenizer ({_short(str(error))})") from None


class Follower:
    """How far one answer is in its grammar."""

    def __init__(self, grammars: Grammars, grammar: Grammar) -> None:
        self.grammar = grammar
        self._grammars = grammars
        self._matcher = grammars.matcher(grammar)
        self._said: list[int] = []

    def allowed(self, said: Sequence[int]) -> Mask:
        """Bool [vocabulary]: what may follow these tokens of the answer. Raises EngineError if they do not follow the
        grammar themselves, or if it takes more than the limits to say."""
        done = len(self._said)
        if self._said != list(said[:done]):
            self._matcher, self._said, done = self._grammars.matcher(self.grammar), [], 0
        if len(said) > done and not self._matcher.consume_tokens(list(said[done:])):
            self._matcher, self._said = self._grammars.matcher(self.grammar), []
            raise errors.EngineError("grammar: the answer so far does not follow it")
        self._said = list(said)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise errors.EngineError(f"grammar: {_short(self._matcher.get_error())}")
        mask: Mask = np.unpackbits(bits, bitorder="little")[: self._grammars.vocabulary].astype(bool)
        mask[self._grammars.never] = False
        mask[self._grammars.eos] = self._matcher.is_accepting()
        return mask


def _source(grammar: Grammar) -> str:
    """What llguidance compiles. Raises EngineError for what it shall not even see."""
    if len(grammar.text.encode(errors="replace")) > GRAMMAR_BYTES_MAX:
        raise errors.EngineError(f"grammar: more than {GRAMMAR_BYTES_MAX} bytes")
    if grammar.kind is GrammarKind.REGEX:
        _check_regex(grammar.text)
        return str(llguidance.LLMatcher.grammar_from_regex(grammar.text))
    if grammar.kind is GrammarKind.LARK:
        _check_lark(grammar.text)
        return str(llguidance.LLMatcher.grammar_from_lark(grammar.text))
    schema = _json(grammar.text)
    if grammar.kind is GrammarKind.TOOLS:
        schema = _calls(schema)
    for pattern in _patterns(schema):
        _check_regex(pattern)
    try:
        return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_WHITESPACE))
    except ValueError as error:
        raise errors.EngineError(f"grammar: {_short(str(error))}") from None


def _json(text: str) -> Any:
    _check_depth(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.EngineError(f"grammar: no JSON: {_short(str(error))}") from None


def _calls(tools: Any) -> dict[str, Any]:
    """The schema of a call of one of these tools: {"name": ..., "arguments": {...}}, in this order."""
    if not isinstance(tools, list) or not 1 <= len(tools) <= TOOLS_MAX:
        raise errors.EngineError(f"grammar: tools are a list of 1 to {TOOLS_MAX}")
    calls: list[Any] = []
    definitions = {}
    for number, tool in enumerate(tools):
        name = tool.get("name") if isinstance(tool, dict) else None
        parameters = tool.get("parameters", {}) if isinstance(tool, dict) else None
        if not isinstance(name, str) or not name or not isinstance(parameters, dict):
            raise errors.EngineError(f"grammar: tool {number} has no name, or parameters that are no schema")
        place = f"#/$defs/tool{number}"
        definitions[f"tool{number}"] = _moved({"type": "object", **parameters}, place)
        call = {"name": {"const": name}, "arguments": {"$ref": place}}
        closed = {"required": ["name", "arguments"], "additionalProperties": False}
        calls.append({"type": "object", "properties": call, **closed})
    return {"anyOf": calls, "$defs": definitions}


def _moved(schema: Any, place: str) -> Any:
    """The same schema with its references to itself, for where it lies now."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(one, place) for key, one in schema.items()}
    target = schema.get("$ref")
    return moved | {"$ref": place + target[1:]} if isinstance(target, str) and target.startswith("#") else moved


def _patterns(schema: Any) -> Iterator[str]:
    """Every regular expression in a schema, and more: a property that is named `pattern` may be one as well."""
    if isinstance(schema, list):
        for one in schema:
            yield from _patterns(one)
    elif isinstance(schema, dict):
        for key, one in schema.items():
            if key == "patternProperties" and isinstance(one, dict):
                yield from one
            if key in ("pattern", "whitespace_pattern") and isinstance(one, str):
                yield one
            yield from _patterns(one)


def _check_depth(text: str) -> None:
    depth = deepest = 0
    for letter in text:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        deepest = max(deepest, depth)
    if deepest > DEPTH_MAX:
        raise errors.EngineError(f"grammar: nested {deepest} deep, of {DEPTH_MAX} at most")


def _check_lark(text: str) -> None:
    """Names may stand for expressions that count, inside of expressions that count: so all counts are multiplied."""
    _check_depth(text)
    unrolled = 1
    for found in _COUNT.finditer(text):
        unrolled *= max(1, _times(found))
        if unrolled > UNROLLED_MAX:
            raise errors.EngineError(
                f"grammar: its counted repetitions multiply to more than {UNROLLED_MAX}; use + or *"
            )


def _check_regex(pattern: str) -> None:
    """Refuse what unrolls to too much: a{3} is aaa, and (a{3}){2} six of them."""
    if re.search(r"\(\?[a-zA-Z-]*x", pattern):
        raise errors.EngineError("grammar: no regular expressions with comments (flag x)")
    _check_depth(re.sub(r"\\.", "", pattern))
    sizes, last, at = [0], 0, 0
    while at < len(pattern):
        letter = pattern[at]
        step = 1
        count = _COUNT.match(pattern, at) if letter == "{" else None
        if count is not None:
            times = _times(count)
            sizes[-1] += last * max(0, times - 1)
            last *= max(1, times)
            step = count.end() - at
        elif letter == "(":
            sizes.append(0)
        elif letter == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif letter not in "?*+|":
            last, step = 1, 2 if letter == "\\" else _class_end(pattern, at) - at if letter == "[" else 1
            sizes[-1] += 1
        if max(sizes[-1], last) > UNROLLED_MAX:
            raise errors.EngineError(f"grammar: an expression unrolls to more than {UNROLLED_MAX} atoms; use + or *")
        at += step


def _times(count: re.Match[str]) -> int:
    """The most that this count asks for; of numbers that are longer than any bound, no more than that."""
    return max((int(number.lstrip("0")[:9] or 0) for number in count.groups() if number), default=1)


def _class_end(pattern: str, at: int) -> int:
    """Behind a class of letters; classes nest in this syntax."""
    depth, place = 0, at
    while place < len(pattern):
        letter = pattern[place]
        depth += (letter == "[") - (letter == "]" and place > at + 1)
        place += 2 if letter == "\\" else 1
        if depth == 0:
            break
    return place


def _short(reason: str) -> str:
    return " ".join(reason.replace("<non-verbose/>", "").split())[:_REASON_CHARS_MAX]
