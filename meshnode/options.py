"""How an answer is drawn and where it ends: what a manifest sets for all turns, and a turn for itself alone.

The idea: `Options` has the names of the manifest's agent table, each None until a turn says otherwise; `over` puts a
turn's words over the manifest's, and one list of bounds judges what comes out, be it a manifest or a turn. Penalties
and biases are named and bounded as in the OpenAI API, so that a gateway needs no translation.

Nothing is clipped: a temperature of 50 is a mistake, and to take it for 10 would hide that.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from meshnode import forms, ids

STOPS_MAX = 4
STOP_CHARS_MAX = 64
"""Longer: more text is held back from the client while it may be the beginning of one."""
GRAMMAR_BYTES_MAX = 32 << 10
"""A turn of the most tokens, its grammar and its biases together fit one log entry."""
BIASES_MAX = 300
TOP_LOGPROBS_MAX = 20
SEED_MAX = 2**63 - 1

T = TypeVar("T")


class GrammarKind(enum.Enum):
    """What a grammar's text is."""

    JSON = "json"
    """A JSON schema."""
    REGEX = "regex"
    """A regular expression for the whole answer, in the syntax of Rust's regex crate."""
    LARK = "lark"
    """A context-free grammar in the Lark notation (an EBNF); its rule is `start`."""
    TOOLS = "tools"
    """A JSON list of tools, {"name", "parameters": schema}; the answer is a call, {"name", "arguments"}, of one."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like."""

    kind: GrammarKind
    text: Annotated[str, GRAMMAR_BYTES_MAX]


@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to one token's logit: -100 bans it, 100 all but forces it."""

    token: Annotated[int, 1 << 24]
    amount: float


Stops = Annotated[tuple[Annotated[str, STOP_CHARS_MAX], ...], STOPS_MAX]
Biases = Annotated[tuple[Bias, ...], BIASES_MAX]


@dataclass(frozen=True, slots=True)
class Options:
    """What one turn asks for. None: as the manifest has it."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Biases | None = None
    seed: int | None = None
    logprobs: int | None = None
    stop: Stops | None = None
    grammar: Grammar | None = None


AS_THE_MANIFEST = Options()


def read(given: Mapping[str, Any]) -> tuple[Options, list[str]]:
    """What a caller asks of one turn, by the names of Options, and what is wrong with the form of the rest.

    Besides: `stop` may be one string, `logit_bias` a mapping of ids to amounts, and instead of `grammar` there may be
    `schema` (a JSON schema), `regex`, `lark` or `tools`.
    """
    table = {name: value for name, value in given.items() if value is not None}
    if isinstance(table.get("stop"), str):
        table["stop"] = [table["stop"]]
    if isinstance(bias := table.get("logit_bias"), Mapping):
        table["logit_bias"] = [{"token": token, "amount": amount} for token, amount in bias.items()]
    if isinstance(grammar := table.get("grammar"), Grammar):
        table["grammar"] = forms.write(grammar)
    named = [name for name in ("schema", "regex", "lark", "tools") if name in table]
    reasons = []
    if len(named) + ("grammar" in table) > 1:
        reasons.append(f"an answer follows one grammar, not {len(named) + ('grammar' in table)}")
    for name in named:
        text = table.pop(name)
        try:
            text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            reasons.append(f"{name}: {error}")
        else:
            table["grammar"] = {"kind": "json" if name == "schema" else name, "text": text}
    reasons += forms.read(Options, table)[1]
    sound = {name: value for name, value in table.items() if forms.read(Options, {name: value})[0] is not None}
    return forms.read(Options, sound)[0] or AS_THE_MANIFEST, reasons


def over(agent: T, options: Options) -> T:
    """`agent` (anything with the fields of Options) with what the turn asks for put over it."""
    asked = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    given = {name: value for name, value in asked.items() if value is not None}
    return dataclasses.replace(agent, **given)  # type: ignore[type-var]


def problems(agent: Any) -> list[str]:
    """Every bound that these options break, each beginning with its field's name."""
    return [words for holds, words in _RULES if not holds(agent)]


def branch_seed(seed: int, branch: int) -> int:
    """The seed of the n-th answer to one question, 63 bits. Branch 0 has the seed itself, so that n = 1 changes
    nothing; the others are BLAKE2b of both, so that no two of any seeds fall together by being neighbours."""
    assert 0 <= seed <= SEED_MAX
    assert 0 <= branch < 1 << 32
    if branch == 0:
        return seed
    mixed = ids.digest(b"meshnode/branch", seed.to_bytes(8, "big"), branch.to_bytes(4, "big"))
    return int.from_bytes(mixed[:8], "big") >> 1


def _encodes(text: str) -> bool:
    """Whether it can be written as UTF-8: Python's text may hold half a surrogate pair."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def _finite(low: float, value: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


_RULES: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda a: _finite(0.0, a.temperature, 10.0), "temperature: must be 0 to 10"),
    (lambda a: a.top_k >= 0, "top_k: must be 0 (all) or more"),
    (lambda a: 0.0 < a.top_p <= 1.0, "top_p: must be above 0 and at most 1"),
    (lambda a: 0.0 <= a.min_p < 1.0, "min_p: must be 0 to below 1"),
    (lambda a: _finite(0.1, a.repetition_penalty, 10.0), "repetition_penalty: must be 0.1 to 10"),
    (lambda a: _finite(-2.0, a.presence_penalty, 2.0), "presence_penalty: must be -2 to 2"),
    (lambda a: _finite(-2.0, a.frequency_penalty, 2.0), "frequency_penalty: must be -2 to 2"),
    (lambda a: len(a.logit_bias) <= BIASES_MAX, f"logit_bias: at most {BIASES_MAX} tokens"),
    (
        lambda a: all(_finite(-100.0, bias.amount, 100.0) for bias in a.logit_bias),
        "logit_bias: amounts must be -100 to 100",
    ),
    (lambda a: all(0 <= bias.token <= 1 << 24 for bias in a.logit_bias), "logit_bias: tokens must be ids"),
    (
        lambda a: len({bias.token for bias in a.logit_bias}) == len(a.logit_bias),
        "logit_bias: each token at most once",
    ),
    (lambda a: 0 <= a.seed <= SEED_MAX, "seed: must be 0 to 2^63-1"),
    (
        lambda a: a.logprobs is None or 0 <= a.logprobs <= TOP_LOGPROBS_MAX,
        f"logprobs: must be 0 to {TOP_LOGPROBS_MAX}",
    ),
    (lambda a: len(a.stop) <= STOPS_MAX, f"stop: at most {STOPS_MAX} strings"),
    (
        lambda a: all(1 <= len(stop) <= STOP_CHARS_MAX for stop in a.stop),
        f"stop: must be 1 to {STOP_CHARS_MAX} characters each",
    ),
    (lambda a: all(_encodes(stop) for stop in a.stop), "stop: must be whole Unicode characters"),
    (
        lambda a: a.grammar is None or 1 <= len(a.grammar.text.encode(errors="replace")) <= GRAMMAR_BYTES_MAX,
        f"grammar.text: must be 1 to {GRAMMAR_BYTES_MAX} bytes in UTF-8",
    ),
    (lambda a: a.grammar is None or _encodes(a.grammar.text), "grammar.text: must be whole Unicode characters"),
)
