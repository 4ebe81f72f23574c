"""Words and marks from a model's own files: the tokenizer, the special tokens, the ends of a turn, the chat template.

The idea: in what is written here no special token is registered, so in a user's text they are only text; they are kept
beside the tokenizer, for the frame of a turn alone (tokenizer.py). Tokens that the author added without calling them
special (`<tool_call>`) stay words like any other.

Refused: a tokenizer that would have to be guessed (a GGUF file names its splitter, and only some are known here), ids
outside the vocabulary, a model without a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from meshnode import errors

TOKENS_MAX = 1 << 20
_NORMAL_TOKEN, _UNKNOWN_TOKEN, _CONTROL_TOKEN, _USER_TOKEN = 1, 2, 3, 4
_PIECE_LETTERS_MAX = 256
_SPACE = "\u2581"
"""How sentencepiece writes a space."""
_PIECES = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How text is cut before pairs are merged: a fact of the model, which its file only names."""


def said_by_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`count`, and what goes into our config.json."""
    tokens, kinds = _list(fields, "tokenizer.ggml.tokens", str), _list(fields, "tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens):
        raise errors.EngineError(f"the GGUF file has {len(tokens)} tokens and {len(kinds)} kinds of them")
    special = {
        token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == _CONTROL_TOKEN
    }
    eos = {_field(fields, "tokenizer.ggml.eos_token_id", int)} | {
        i for token, i in special.items() if token == "<|endoftext|>"
    }
    if "tokenizer.ggml.eot_token_id" in fields:
        eos.add(_field(fields, "tokenizer.ggml.eot_token_id", int))
    template = _field(fields, "tokenizer.chat_template", str)
    named = {}
    for name in ("bos", "eos"):
        if type(index := fields.get(f"tokenizer.ggml.{name}_token_id")) is int and 0 <= index < len(tokens):
            named[f"{name}_token"] = tokens[index]
    return {"count": len(tokens)} | marks(special, eos, template, named, len(tokens))


def marks(
    special: dict[str, int], eos: set[int], template: str, named: dict[str, str], vocabulary: int
) -> dict[str, Any]:
    """The part of our config.json that is about turns. `named`: bos_token, eos_token, kept if the template asks."""
    if not all(type(one) is int and 0 <= one < vocabulary for one in {*special.values(), *eos}):
        raise errors.EngineError(f"a special token or an end is outside the vocabulary of {vocabulary}")
    if not special or not eos or "" in special:
        raise errors.EngineError("a model without special tokens cannot tell a turn from its text")
    used = {name: text for name, text in sorted(named.items()) if name in template}
    said = {"special": special, "eos": sorted(eos), "chat_template": template}
    return said | {"template_tokens": used} if used else said


def from_gguf(fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """No special token is registered."""
    kind = _field(fields, "tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        raise errors.EngineError(f"tokenizer.ggml.model is {kind!r}, known are gpt2 (bytes) and llama (sentencepiece)")
    tokenizer = _of_bytes(fields) if kind == "gpt2" else _of_pieces(fields)
    tokens, kinds = _list(fields, "tokenizer.ggml.tokens", str), _list(fields, "tokenizer.ggml.token_type", int)
    added = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_TOKEN and token]
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False, special=False) for token in added])
    return tokenizer


def _of_bytes(fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
    splitter = _field(fields, "tokenizer.ggml.pre", str)
    if splitter != "smollm" and splitter not in _PIECES:
        raise errors.EngineError(f"tokenizer.ggml.pre is {splitter!r}, known are smollm, {', '.join(_PIECES)}")
    tokens = _list(fields, "tokenizer.ggml.tokens", str)
    merges = [tuple(merge.split(" ")) for merge in _list(fields, "tokenizer.ggml.merges", str)]
    if any(len(merge) != 2 for merge in merges):
        raise errors.EngineError("tokenizer.ggml.merges holds what is no pair")
    known = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(_checked_bpe(known, merges, whole_words=splitter == "llama-bpe"))
    if splitter == "smollm":  # digits one by one
        first: Any = pre_tokenizers.Digits(individual_digits=True)
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        first = pre_tokenizers.Split(tokenizers.Regex(_PIECES[splitter]), "isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if splitter == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, rest])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _of_pieces(fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Sentencepiece's BPE: it has no list of merges; of all pairs that make a token, the one with the best score is
    merged first."""
    tokens, kinds = _list(fields, "tokenizer.ggml.tokens", str), _list(fields, "tokenizer.ggml.token_type", int)
    scores = _list(fields, "tokenizer.ggml.scores", float)
    unknown = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN_TOKEN]
    if len(scores) != len(tokens) or any(score != score for score in scores) or len(unknown) != 1:
        raise errors.EngineError("tokenizer.ggml.scores does not give each token a score, or not one is unknown")
    if f"<0x{0:02X}>" not in tokens:
        raise errors.EngineError("tokenizer.ggml.tokens has no bytes to fall back to")
    known = {token: index for index, token in enumerate(tokens)}
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL_TOKEN}
    if max(map(len, normal), default=0) > _PIECE_LETTERS_MAX:
        raise errors.EngineError(f"tokenizer.ggml.tokens has words of more than {_PIECE_LETTERS_MAX} letters")
    merges = []
    for token in sorted(normal, key=lambda token: (-scores[known[token]], known[token])):
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges += [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
    found = models.BPE(vocab=known, merges=merges, unk_token=unknown[0], fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(found)
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    first = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*first, decoders.Strip(content=" ", left=1, right=0)])
    return tokenizer


def _checked_bpe(known: dict[str, int], merges: list[tuple[str, ...]], *, whole_words: bool) -> models.BPE:
    """The library answers a merge of unknown tokens with its most general exception, so they are looked for here."""
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in known:
                raise errors.EngineError(f"a merge makes {token[:40]!r}, which is no token")
    if whole_words:
        return models.BPE(vocab=known, merges=merges, ignore_merges=True)
    return models.BPE(vocab=known, merges=merges)


def _field(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    found = fields.get(name)
    if type(found) is not kind:
        raise errors.EngineError(f"the GGUF file lacks {name}")
    return found


def _list(fields: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    found = _field(fields, name, list)
    if not 1 <= len(found) <= TOKENS_MAX or any(type(one) is not kind for one in found):
        raise errors.EngineError(f"{name} is no list of 1 to {TOKENS_MAX}")
    return list(found)


def from_hub(whole: Any, settings: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """From what tokenizer.json holds: ours, which knows no special token, and the special tokens."""
    added = whole.get("added_tokens", []) if isinstance(whole, dict) else None
    if not isinstance(added, list) or not all(_is_added(one) for one in added):
        raise errors.EngineError("tokenizer.json is no tokenizer with a list of added tokens")
    decoder = settings.get("added_tokens_decoder")
    more = list(decoder.values()) if isinstance(decoder, dict) else []
    also = [one.get("content") for one in more if isinstance(one, dict) and one.get("special")]
    special = {one["content"]: one["id"] for one in added if one["special"] or one["content"] in also}
    kept = [one for one in added if one["content"] not in special]
    # The places where text is cut and joined are ours (tokenizer.py), so nothing is put before or after a piece.
    whole |= {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
    _never_first(whole.get("pre_tokenizer"))
    return json.dumps(whole, ensure_ascii=False), special


def _is_added(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("content"), str)
        and type(one.get("id")) is int
        and isinstance(one.get("special"), bool)
    )


def _never_first(splitter: Any) -> None:
    """A space before the first word of a text is for texts; what is encoded here are pieces that follow a mark."""
    several = splitter.get("pretokenizers", [splitter]) if isinstance(splitter, dict) else []
    for one in several if isinstance(several, list) else []:
        if isinstance(one, dict) and one.get("type") == "Metaspace" and one.get("prepend_scheme") == "first":
            one["prepend_scheme"] = "never"
