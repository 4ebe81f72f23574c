"""From a folder as Hugging Face has it to ours: config.json, *.safetensors, tokenizer.json, and what lies beside them.

The idea: everything small is read and judged first (the architecture, the headers, the tokenizer, the template), and
only then the weights are copied, a few megabytes at a time, in the kind that their author chose: float32, float16 and
bfloat16 are all taken as they are, so nothing is rounded here.

The folder is a stranger's: sizes are bounded, names in an index are plain names, no code of the model is run, and the
tokenizer is tried in a process of its own, since the library that reads it ends in ways that cannot be caught.

Refused: pickled weights, sentencepiece files without a tokenizer.json, a model without a chat template. Rejected:
transformers as the reader (a node would need it, and it runs code that comes with a model).
"""

from __future__ import annotations

import functools
import json
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meshnode import errors
from meshnode.models import architectures, gguf, headers, vocabulary, writing

_JSON_BYTES_MAX = 64 << 20
"""A tokenizer.json of a quarter of a million tokens has 20 MB."""
_FILES_MAX = 1024
_TRY_S_MAX = 120.0
_TRY = "import sys, tokenizers; tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode())"
_DERIVED = ".rotary_emb.inv_freq"
"""Old checkpoints carry rope's table, which follows from the config."""


def convert(source: Path, folder: Path) -> None:
    """Write the three files into `folder`. Raises EngineError for a model that this engine does not know, StoreError
    for files that are torn."""
    said = _object(source / "config.json")
    config = architectures.from_hub(said)
    tensors = {name: at for name, at in _tensors(source).items() if not name.endswith(_DERIVED)}
    tied = said.get("tie_word_embeddings")
    if not (tied if isinstance(tied, bool) else "lm_head.weight" not in tensors):
        config["tied"] = False
    else:
        tensors.pop("lm_head.weight", None)  # the same numbers once more
    expected = architectures.tensors(config)
    architectures.check_tensors(expected, {name: tensor.shape for name, (_, tensor) in tensors.items()})
    words, marks = _words(source, said, config["vocabulary"])
    parts = {
        name: writing.Part(tensor.kind, tensor.shape, functools.partial(_chunks, data, tensor))
        for name, (data, tensor) in tensors.items()
    }
    writing.write(folder / gguf.WEIGHTS, parts)
    (folder / gguf.CONFIG).write_text(json.dumps(config | marks, indent=1, sort_keys=True))
    (folder / gguf.TOKENIZER).write_text(words)


def _tensors(source: Path) -> dict[str, tuple[headers.Data, headers.Tensor]]:
    """Every tensor of every file, and the mapped file that it lies in."""
    found: dict[str, tuple[headers.Data, headers.Tensor]] = {}
    for name in _weight_files(source):
        data = _mapped(source / name)
        try:
            tensors = headers.safetensors(data)
        except errors.StoreError as error:
            raise errors.StoreError(f"{name}: {error}") from None
        for tensor in tensors:
            if tensor.name in found:
                raise errors.StoreError(f"{name}: {tensor.name} is in another file as well")
            found[tensor.name] = (data, tensor)
    return found


def _weight_files(source: Path) -> list[str]:
    if (source / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = source / "model.safetensors.index.json"
    if not index.is_file():
        raise errors.EngineError(f"{source.name} holds no model.safetensors; other kinds of weights are not read here")
    names = _object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise errors.StoreError(f"{index.name} does not say which tensor is in which file")
    files = sorted(set(names.values()))
    if len(files) > _FILES_MAX or any(name != Path(name).name or not name.endswith(".safetensors") for name in files):
        raise errors.StoreError(f"{index.name} names files that are not beside it")
    return files


def _words(source: Path, config: dict[str, Any], vocabulary_size: int) -> tuple[str, dict[str, Any]]:
    """Our tokenizer.json, and the part of our config.json that is about turns."""
    settings = _object(source / "tokenizer_config.json")
    whole = headers.read_json(_bytes(source / "tokenizer.json"), "tokenizer.json")
    words, special = vocabulary.from_hub(whole, settings)
    named = {name: text for name in ("bos_token", "eos_token") if (text := _text(settings.get(name)))}
    eos: set[int] = set()
    generation = source / "generation_config.json"
    for said in (config, _object(generation) if generation.is_file() else {}):
        ends = said.get("eos_token_id")
        eos |= {one for one in (ends if isinstance(ends, list) else [ends]) if type(one) is int}
    if (end := named.get("eos_token")) in special:
        eos.add(special[str(end)])
    _try(words)
    return words, vocabulary.marks(special, eos, _template(source, settings), named, vocabulary_size)


def _template(source: Path, settings: dict[str, Any]) -> str:
    if (source / "chat_template.jinja").is_file():
        return _bytes(source / "chat_template.jinja").decode(errors="replace")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next(
            (one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), 0
        )
    if not isinstance(found, str):
        raise errors.EngineError("the model has no chat template: it was not taught to talk")
    return found


def _text(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _try(words: str) -> None:
    """Whether the tokenizers library can read it, asked where its failure harms nobody."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY], input=words.encode(), capture_output=True, timeout=_TRY_S_MAX
        )
    except subprocess.TimeoutExpired:
        raise errors.EngineError(f"tokenizer.json was not read within {_TRY_S_MAX:.0f} s") from None
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise errors.EngineError(f"tokenizer.json is refused by the tokenizers library: {last[:200]}")


def _object(path: Path) -> dict[str, Any]:
    found = headers.read_json(_bytes(path), path.name)
    if not isinstance(found, dict):
        raise errors.StoreError(f"{path.name} is not an object")
    return found


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise errors.EngineError(f"the folder lacks {path.name}")
    if path.stat().st_size > _JSON_BYTES_MAX:
        raise errors.StoreError(f"{path.name} has more than {_JSON_BYTES_MAX} bytes")
    return path.read_bytes()


def _mapped(path: Path) -> headers.Data:
    if not path.is_file() or not path.stat().st_size:
        raise errors.StoreError(f"{path.name} is missing, or empty")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _chunks(data: headers.Data, tensor: headers.Tensor) -> Iterator[bytes]:
    for start in range(tensor.start, tensor.stop, writing.CHUNK_BYTES):
        yield data[start : min(start + writing.CHUNK_BYTES, tensor.stop)]
