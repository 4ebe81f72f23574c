"""Text to token ids and back, with the chat template that the model brought along.

The idea: a context only grows. So a turn is what the template *adds* when the conversation gets one message longer,
found by rendering a small conversation of placeholders and cutting it where the assistant's words end. Special tokens
are cut out of the rendered frame first; only then the user's text is put in and encoded, by a tokenizer which knows no
special token: `<|im_end|>` typed by a user is eight harmless letters and signs, never the end of a turn.

Refused: a template that raises, or one that rewrites earlier turns. Rejected: rendering the whole conversation with
the user's text in it and searching for special tokens afterwards (that is the injection).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import jinja2.sandbox
import tokenizers

from meshnode import errors
from meshnode.models import gguf

# Private-use letters: no template contains them, and they stand in the frame only, never in what is encoded.
_USER, _SYSTEM, _SAID = "\ue001", "\ue002", "\ue003"

_LEAD = "a"


class ChatTokenizer:
    """The Tokenizer port over a converted model's folder."""

    def __init__(self, folder: Path) -> None:
        try:
            config = json.loads((folder / gguf.CONFIG).read_text())
            self._special: dict[str, int] = config["special"]
            self._eos = frozenset(config["eos"])
            self._words = tokenizers.Tokenizer.from_str((folder / gguf.TOKENIZER).read_text())
            template = str(config["chat_template"])
            named: dict[str, str] = config.get("template_tokens", {})
        except (OSError, ValueError, LookupError) as error:
            raise errors.StoreError(f"the model's tokenizer cannot be read: {error}") from None
        self._marks = re.compile("(" + "|".join(re.escape(mark) for mark in sorted(self._special, key=len)[::-1]) + ")")
        self._numbers = frozenset(self._special.values())
        self._lead = self._encode(_LEAD)
        if self._words.decode(self._lead, skip_special_tokens=False) != _LEAD:
            self._lead = []  # no such letter in its vocabulary
        self._frames = _frames(template, self._special, self._eos, named)

    def turn(self, text: str, *, system: str | None, first: bool, closed: bool) -> list[int]:
        """See ports.Tokenizer. `closed` is ignored for the first turn, `system` belongs to it alone."""
        assert first or system is None, "a system text stands before the first turn only"
        if first:
            if system is not None and "system" not in self._frames:
                raise errors.EngineError("the model's chat template has no place for a system text")
            frame = self._frames["first" if system is None else "system"]
        else:
            frame = self._frames["closed" if closed else "open"]
        found: list[int] = []
        for piece in self._marks.split(frame):
            if piece in self._special:
                found.append(self._special[piece])
            elif piece:
                found += self._encode(piece.translate({ord(_USER): text, ord(_SYSTEM): system or ""}))
        return found

    def text(self, ids: Sequence[int]) -> str:
        """See ports.Tokenizer. Behind a letter that is taken off again: sentencepiece's decoders drop the first space
        of what they are given, and an answer that is decoded in pieces would lose all that it has."""
        kept = [token for token in ids if token not in self._numbers]
        return self._words.decode([*self._lead, *kept], skip_special_tokens=False)[len(self._lead and _LEAD) :]

    def _encode(self, text: str) -> list[int]:
        return list(self._words.encode(text, add_special_tokens=False).ids)


def _frames(template: str, special: dict[str, int], eos: frozenset[int], named: dict[str, str]) -> dict[str, str]:
    """What each kind of turn looks like, with placeholders for what people say."""
    system = {"role": "system", "content": _SYSTEM}
    user = {"role": "user", "content": _USER}
    said = {"role": "assistant", "content": _SAID}
    first = _render(template, named, [user])
    longer = _render(template, named, [user, said, user])
    # A space between the frame and the words is the model's to say: it is the beginning of its first word.
    if not longer.startswith(first) or not longer[len(first) :].lstrip(" ").startswith(_SAID):
        raise errors.EngineError("the chat template rewrites earlier turns; a context here only grows")
    rest = longer.split(_SAID)[1]
    ends = [mark for mark, number in special.items() if number in eos and rest.startswith(mark)]
    if not ends:
        raise errors.EngineError("the chat template ends an assistant's turn without an end-of-turn token")
    frames = {"first": first, "open": rest, "closed": rest[len(ends[0]) :]}
    try:
        with_system = _render(template, named, [system, user])
    except errors.EngineError:
        return frames  # some templates know no system: then a session that has a system text is refused
    return frames | {"system": with_system} if _SYSTEM in with_system else frames


def _render(template: str, named: dict[str, str], messages: list[dict[str, str]]) -> str:
    # A template is a program from the model's author: it runs in a sandbox, and sees nothing but these messages.
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.globals["raise_exception"] = _refuse
    try:
        return sandbox.from_string(template).render(
            messages=messages, add_generation_prompt=True, tools=None, documents=None, **named
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise errors.EngineError(f"the chat template fails: {error}") from None


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
