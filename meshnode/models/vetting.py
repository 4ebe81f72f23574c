"""Whether a folder of three files, as a stranger gave them, is a model that this engine computes.

That each byte is what a digest says proves whose model it is, not that it is one. So it is read as `models add` reads:
the config key by key, within bounds; the tensors' places from the header, and their names and shapes against what the
config asks for; every number finite; and the tokenizer with its template in a process of its own, since the library
that reads it ends in ways that cannot be caught, and a template is a program without an end that anyone guarantees.

A key that is not known is refused by its name: it may change the numbers, and a model that almost fits speaks almost
well.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

from meshnode import errors
from meshnode.models import architectures, gguf, headers, writing

_TRY_S_MAX = 120.0
_TRY = """
import pathlib, sys, tokenizers
from meshnode.models import gguf, tokenizer
folder, vocabulary = pathlib.Path(sys.argv[1]), int(sys.argv[2])
words = tokenizers.Tokenizer.from_str((folder / gguf.TOKENIZER).read_text())
if max(words.get_vocab().values(), default=vocabulary) >= vocabulary:
    sys.exit("it has tokens beyond the vocabulary of the weights")
tokenizer.ChatTokenizer(folder)
"""
_OF_TURNS = {"special", "eos", "chat_template", "template_tokens"}


def check(folder: Path) -> None:
    """Raises EngineError for a model that is not computed here, StoreError for files that are torn."""
    config = headers.read_json((folder / gguf.CONFIG).read_bytes(), gguf.CONFIG)
    if not isinstance(config, dict):
        raise errors.StoreError(f"{gguf.CONFIG} is not an object")
    architectures.check_description({key: value for key, value in config.items() if key not in _OF_TURNS})
    _check_turns(config)
    _check_weights(folder / gguf.WEIGHTS, architectures.tensors(config))
    _try(folder, config["vocabulary"])


def _check_turns(config: dict[str, Any]) -> None:
    """What turns are made of, in form; whether it makes sense is seen when it is tried."""
    special, eos = config.get("special"), config.get("eos")
    if (
        not isinstance(special, dict)
        or not special
        or "" in special
        or not all(_is_token(one, config) for one in special.values())
    ):
        raise errors.StoreError(f"{gguf.CONFIG}: special is not a table of tokens")
    if not isinstance(eos, list) or not eos or not all(_is_token(one, config) for one in eos):
        raise errors.StoreError(f"{gguf.CONFIG}: eos is not a list of tokens")
    if not isinstance(config.get("chat_template"), str):
        raise errors.StoreError(f"{gguf.CONFIG}: chat_template is not a text")
    named = config.get("template_tokens", {})
    if not isinstance(named, dict) or not all(isinstance(one, str) for one in named.values()):
        raise errors.StoreError(f"{gguf.CONFIG}: template_tokens is not a table of texts")


def _is_token(found: Any, config: dict[str, Any]) -> bool:
    return type(found) is int and 0 <= found < config["vocabulary"]


def _check_weights(path: Path, expected: dict[str, tuple[int, ...]]) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tensors = headers.safetensors(data)
        architectures.check_tensors(expected, {one.name: one.shape for one in tensors})
        for one in tensors:
            for start in range(one.start, one.stop, writing.CHUNK_BYTES):
                if not writing.finite(data[start : min(start + writing.CHUNK_BYTES, one.stop)], one.kind):
                    raise errors.EngineError(f"{one.name} holds numbers that are not finite")


def _try(folder: Path, vocabulary: int) -> None:
    command = [sys.executable, "-c", _TRY, str(folder), str(vocabulary)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TRY_S_MAX)
    except subprocess.TimeoutExpired:
        raise errors.EngineError(f"tokenizer and chat template were not read within {_TRY_S_MAX:.0f} s") from None
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise errors.EngineError(f"tokenizer or chat template are refused: {last[:200]}")
