"""Headers of weights for the fuzzer: what is taken lies inside the file, apart from its neighbours."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Sequence

from meshnode import errors
from meshnode.models import headers


def decode_safetensors(data: bytes) -> object:
    return _decoded(lambda: headers.safetensors(data), data)


def decode_gguf(data: bytes) -> object:
    return _decoded(lambda: headers.gguf(data).tensors, data)


def _decoded(decode: Callable[[], Sequence[headers.Tensor]], data: bytes) -> object:
    try:
        found = sorted(decode(), key=lambda one: one.start)
    except errors.StoreError as error:
        raise errors.PeerError(str(error)) from None  # to the fuzzer a stranger is a stranger
    assert all(before.stop <= after.start for before, after in itertools.pairwise(found))
    assert all(0 <= one.start <= one.stop <= len(data) for one in found)
    return found


def safetensors_seeds() -> tuple[bytes, ...]:
    parts = {"a.weight": ("F16", [2, 3], 12), "b.weight": ("BF16", [4], 8), "c.bias": ("F32", [], 4)}
    header, at = {}, 0
    for name, (kind, shape, size) in parts.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    texts = [json.dumps({"__metadata__": {"k": "v"}} | header).encode(), b"{} "]
    return tuple(struct.pack("<Q", len(text)) + text + bytes(size) for text, size in zip(texts, (at, 0), strict=True))


def gguf_seeds() -> tuple[bytes, ...]:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    fields = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("grüße".encode().hex()),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.5, 1.5, 2.5),
        text("llama.rope.freq_base") + struct.pack("<Id", 12, 1e4),
    ]
    tensors = [
        text("token_embd.weight") + struct.pack("<I2QIQ", 2, 8, 2, 0, 0),
        text("blk.0.attn_q.weight") + struct.pack("<I2QIQ", 2, 32, 2, 8, 64),
    ]
    whole = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields + tensors)
    return (whole + bytes(-len(whole) % 32) + bytes(64 + 68), b"GGUF" + struct.pack("<IQQ", 2, 0, 0) + bytes(8))
