"""Headers are believed only where the file bears them out; everything else is the disk's fault, with a reason."""

from __future__ import annotations

import functools
import itertools
import json
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as some

from meshnode import errors
from meshnode.models import headers
from tests.models import small

HUGE = 2**63 - 1


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: Any = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 2] if shape is None else shape, "data_offsets": [start, stop]}


def stated(header: Any, body_bytes: int = 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body_bytes)


@functools.cache
def small_gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return small.write(Path(folder) / "a.gguf").read_bytes()


def field(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name.encode() + sizes + struct.pack("<IQ", kind, offset)


def made(
    *,
    fields: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    counts: tuple[int, int] | None = None,
    version: int = 3,
    body_bytes: int = 64,
) -> bytes:
    tensor_count, field_count = counts or (len(tensors), len(fields))
    whole = b"GGUF" + struct.pack("<IQQ", version, tensor_count, field_count) + b"".join(fields) + b"".join(tensors)
    return whole + bytes(-len(whole) % 32) + bytes(body_bytes)


def test_a_sound_safetensors_file_is_read_as_the_library_reads_it() -> None:
    named = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.arange(3, dtype=np.float32)}
    data = safetensors.numpy.save(named, metadata={"x": "y"})
    found = headers.safetensors(data)
    assert {(one.name, one.kind, one.shape) for one in found} == {("b", "F16", (2, 3)), ("a", "F32", (3,))}
    for one in found:
        assert data[one.start : one.stop] == named[one.name].tobytes()


def test_a_sound_gguf_file_is_read_as_its_own_reader_reads_it(tmp_path: Path) -> None:
    path = small.write(tmp_path / "a.gguf")
    found, theirs = headers.gguf(path.read_bytes()), gguf.GGUFReader(path)
    assert found.fields == {name: one.contents() for name, one in theirs.fields.items() if not name.startswith("GGUF.")}
    assert [(one.name, one.start, one.stop - one.start) for one in found.tensors] == [
        (one.name, one.data_offset, one.n_bytes) for one in theirs.tensors
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "eight bytes"),
        (stated({}, length=HUGE), "claims"),
        (stated({}, length=11), "claims"),
        (stated(b"[]"), "not an object"),
        (stated(b"[" * 100_000), "not JSON"),
        (stated(b'{"a": 1, "a": 2}'), "twice"),
        (stated(b"\xff\xfe\xfd"), "not JSON"),
        (stated({"a": 3}), "does not say"),
        (stated({"a": entry(0, 8) | {"more": 1}}), "does not say"),
        (stated({"a": entry(0, 8, dtype="I64")}), "known are"),
        (stated({"a": entry(0, 8, dtype=["F16"])}), "known are"),
        (stated({"a": entry(0, 8, [2])}), "needs 4 bytes"),
        (stated({"a": entry(8, 0, [-4])}), "not sizes"),
        (stated({"a": entry(0, 8, [4.0])}), "not sizes"),
        (stated({"a": entry(0, 8, [True, 4])}), "not sizes"),
        (stated({"a": entry(0, 8, [1, 1, 1, 1, 4])}), "not sizes"),
        (stated({"a": entry(0, 8, [2**47, 2**47])}), "multiplies"),
        (stated({"a": entry(0, 8), "b": entry(8, 8, [0])}), "multiplies to nothing"),
        (stated({"a": entry(0, 16)}), "the file at"),
        (stated({"a": entry(0, 4)}), "the file at"),
        (stated({"a": entry(0, 6), "b": entry(4, 8)}), "overlap"),
        (stated({"a": entry(0, 8), "b": entry(0, 8)}), "overlap"),
        (stated({"a": entry(0, 2), "b": entry(4, 8)}), "between"),
        (stated({"a": entry(2, 8)}), "between"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(errors.StoreError, match=reason):
        headers.safetensors(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends at byte 0"),
        (b"GGML" + bytes(90), "not a GGUF"),
        (made(version=1), "version 1"),
        (made(counts=(HUGE, 0)), "absurd"),
        (made(counts=(0, HUGE)), "absurd"),
        (made(counts=(3, 0), body_bytes=0), "ends at byte"),
        (made(fields=(field("a", 8, struct.pack("<Q", HUGE)),)), "longer than"),
        (made(fields=(field("a", 8, struct.pack("<Q", 1 << 19)),)), "ends at byte"),
        (made(fields=(field("a", 8, struct.pack("<Q", 1) + b"\xff"),)), "UTF-8"),
        (made(fields=(field("a", 13, bytes(8)),)), "kind 13"),
        (made(fields=(field("a", 9, struct.pack("<IQ", 9, 1)),)), "absurd"),
        (made(fields=(field("a", 9, struct.pack("<IQ", 4, HUGE)),)), "absurd"),
        (made(fields=(field("a", 9, struct.pack("<IQ", 4, 1 << 20)),)), "ends at byte"),
        (made(fields=(field("a", 9, struct.pack("<IQ", 77, 1)),)), "kind 77"),
        (made(fields=(field("a", 7, b"\1"),) * 2), "twice"),
        (made(fields=(field("general.alignment", 4, struct.pack("<I", 0)),)), "alignment"),
        (made(fields=(field("general.alignment", 4, struct.pack("<I", 48)),)), "alignment"),
        (made(fields=(field("general.alignment", 6, struct.pack("<f", 32)),)), "alignment"),
        (made(tensors=(info("a", (4,)), info("a", (4,), offset=32))), "one name"),
        (made(tensors=(info("a", (2,) * 5),)), "dimensions"),
        (made(tensors=(info("a", ()),)), "multiple"),
        (made(tensors=(info("a", (4,), kind=99),)), "type 99"),
        (made(tensors=(info("a", (33,), kind=2),)), "multiple of 32"),
        (made(tensors=(info("a", (4,), offset=4),)), "alignment"),
        (made(tensors=(info("a", (4,), offset=HUGE - 31),)), "beyond any file"),
        (made(tensors=(info("a", (2**40, 2**40)),)), "multiplies"),
        (made(tensors=(info("a", (4, 0)), info("b", (4,)))), "multiplies to nothing"),
        (made(tensors=(info("a", (32,)),)), "the file at"),
        (made(tensors=(info("a", (16,)), info("b", (4,), offset=32))), "overlap"),
    ],
)
def test_a_gguf_header_that_lies_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(errors.StoreError, match=reason):
        headers.gguf(data)


@pytest.mark.parametrize("decode", [headers.safetensors, headers.gguf])
def test_a_lie_costs_no_memory(decode: Callable[[bytes], object]) -> None:
    lies = [made(fields=(field("a", 9, struct.pack("<IQ", kind, 1 << 22)),)) for kind in (0, 4, 8, 12)]
    lies += [made(counts=(1 << 16, 1 << 12)), stated({"a": entry(0, 2**48)}), stated({}, length=1 << 24)]
    tracemalloc.start()
    for lie in lies:
        with pytest.raises(errors.StoreError):
            decode(lie)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


@hypothesis.given(cut=some.integers(0, 10_000))
def test_a_truncated_gguf_file_is_refused(cut: int) -> None:
    whole = small_gguf()
    with pytest.raises(errors.StoreError):
        headers.gguf(whole[: len(whole) * cut // 10_001])


@hypothesis.given(
    at=some.integers(0, 9_000), patch=some.one_of(some.binary(min_size=1, max_size=9), some.just(b"\xff" * 8))
)
def test_what_is_taken_lies_inside_the_file_and_apart(at: int, patch: bytes) -> None:
    whole = bytearray(small_gguf())
    whole[at : at + len(patch)] = patch
    try:
        found = headers.gguf(bytes(whole)).tensors
    except errors.StoreError:
        return
    ordered = sorted(found, key=lambda one: one.start)
    assert all(before.stop <= after.start for before, after in itertools.pairwise(ordered))
    assert all(0 <= one.start <= one.stop <= len(whole) for one in found)


@hypothesis.given(
    some.dictionaries(
        some.text(max_size=4),
        some.fixed_dictionaries(
            {
                "dtype": some.sampled_from(["F16", "F32", "BF16", "X"]),
                "shape": some.lists(some.integers(0, 4), max_size=3),
                "data_offsets": some.lists(some.integers(-1, 12), min_size=1, max_size=3),
            }
        ),
        max_size=3,
    )
)
def test_whatever_a_header_says_it_is_taken_or_refused(header: dict[str, Any]) -> None:
    try:
        found = headers.safetensors(stated(header))
    except errors.StoreError:
        return
    assert sum(one.stop - one.start for one in found) == 8
