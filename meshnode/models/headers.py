"""What a file of weights says of itself: GGUF and safetensors headers, believed only where the file bears them out.

The idea: a header is a stranger's. Each count and each length is compared with the bytes that are left before anything
is read or made for it, so memory is bounded by a small multiple of the header that is really there; each tensor's size
follows from its shape and kind, must lie inside the file, and no two share a byte. What comes out can be used to slice
the file without a further thought.

Refused, always with the reason: unknown versions and kinds, names or keys twice, arrays in arrays, sizes that do not
multiply to what is there. Rejected: gguf's own reader, which believes the counts; asking for forgiveness (MemoryError
comes after the machine was made unusable for everybody else).
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import constants

from meshnode import errors

Data = bytes | mmap.mmap
Value = int | float | bool | str | list[Any]

HEADER_BYTES_MAX = 16 << 20
"""Of safetensors; a thousand layers need a megabyte."""
TENSORS_MAX = 1 << 16
FIELDS_MAX = 1 << 12
ITEMS_MAX = 1 << 22
"""In all arrays of a GGUF file together. Vocabularies have a quarter of a million entries, merges as many."""
STRING_BYTES_MAX = 1 << 20
_NAME_BYTES_MAX = 256
_DIMENSIONS_MAX = 4
_SIZE_MAX = 1 << 48

SAFETENSORS_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in its file: data[start:stop]."""

    name: str
    kind: str
    """`F16` and the like in safetensors, the name of a GGML type in GGUF."""
    shape: tuple[int, ...]
    """Rows first, as numpy has it."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Gguf:
    fields: dict[str, Value]
    tensors: tuple[Tensor, ...]


def safetensors(data: Data) -> tuple[Tensor, ...]:
    """Every tensor of a safetensors file. Raises StoreError."""
    if len(data) < 8:
        raise errors.StoreError("a safetensors file begins with eight bytes of length")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, HEADER_BYTES_MAX):
        raise errors.StoreError(f"the header claims {length} bytes, of a file of {len(data)}")
    header = read_json(data[8 : 8 + length], "the header")
    if not isinstance(header, dict) or len(header) > TENSORS_MAX:
        raise errors.StoreError("the header is not an object of tensors")
    begin = 8 + length
    found = [_entry(name, entry, begin) for name, entry in header.items() if name != "__metadata__"]
    _check_apart(found, begin, len(data), gaps=False)
    return tuple(found)


def read_json(data: bytes, what: str) -> Any:
    """JSON of a stranger: a key twice, or nesting that ends Python's stack, is a StoreError like any other fault."""
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise errors.StoreError(f"{what} is not JSON: {str(error)[:100]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _entry(name: str, entry: Any, begin: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise errors.StoreError(f"{name[:80]!r} does not say dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in SAFETENSORS_BYTES:
        raise errors.StoreError(f"{name[:80]!r} is of {str(kind)[:40]!r}, known are {', '.join(SAFETENSORS_BYTES)}")
    if not (_wholes(shape) and _wholes(offsets) and len(shape) <= _DIMENSIONS_MAX and len(offsets) == 2):
        raise errors.StoreError(f"{name[:80]!r} has a shape or offsets that are not sizes")
    start, stop = offsets
    size = _product(shape) * SAFETENSORS_BYTES[kind]
    if stop - start != size:
        raise errors.StoreError(f"{name[:80]!r} needs {size} bytes, and has {stop - start}")
    return Tensor(name, kind, tuple(shape), begin + start, begin + stop)


def _wholes(found: Any) -> bool:
    return isinstance(found, list) and all(type(one) is int and 0 <= one <= _SIZE_MAX for one in found)


def _product(shape: Sequence[int]) -> int:
    size = 1
    for one in shape:
        size *= one
        if not 0 < size <= _SIZE_MAX:
            raise errors.StoreError("a shape multiplies to nothing, or to more than any file has")
    return size


def _check_apart(tensors: Sequence[Tensor], begin: int, end: int, *, gaps: bool) -> None:
    """Inside the file, and no byte in two. Without `gaps` also: no byte in none, where another file might hide."""
    at, before = begin, "the header"
    for one in sorted(tensors, key=lambda one: (one.start, one.stop)):
        if one.start < at or (not gaps and one.start > at):
            raise errors.StoreError(f"{one.name[:80]!r} and {before[:80]!r} overlap, or leave bytes between them")
        at, before = one.stop, one.name
    if at > end or (not gaps and at < end):
        raise errors.StoreError(f"the tensors end at byte {at}, the file at {end}")


def gguf(data: Data) -> Gguf:
    """All metadata and tensors of a GGUF file. Raises StoreError."""
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise errors.StoreError("this is not a GGUF file")
    version, tensor_count, field_count = cursor.numbers("IQQ")
    if version not in (2, 3):
        raise errors.StoreError(f"GGUF of version {version} is not known, only 2 and 3")
    if tensor_count > TENSORS_MAX or field_count > FIELDS_MAX:
        raise errors.StoreError(f"{tensor_count} tensors and {field_count} fields are absurd")
    fields: dict[str, Value] = {}
    for _ in range(field_count):
        name = cursor.text(_NAME_BYTES_MAX)
        if name in fields:
            raise errors.StoreError(f"{name!r} stands there twice")
        fields[name] = cursor.value()
    stated = [cursor.tensor() for _ in range(tensor_count)]
    if len({name for name, *_ in stated}) != tensor_count:
        raise errors.StoreError("two tensors have one name")
    step = fields.get("general.alignment", 32)
    if type(step) is not int or not 1 <= step <= 1 << 16 or step & (step - 1):
        raise errors.StoreError(f"general.alignment is {str(step)[:40]}, not a power of two up to 65536")
    begin = -(-cursor.at // step) * step
    if any(offset % step for *_, offset in stated):
        raise errors.StoreError("a tensor does not begin where the alignment says")
    tensors = tuple(_placed(name, shape, kind, begin + offset) for name, shape, kind, offset in stated)
    _check_apart(tensors, begin, len(data), gaps=True)
    return Gguf(fields, tensors)


def _placed(name: str, shape: tuple[int, ...], number: int, start: int) -> Tensor:
    try:
        kind = constants.GGMLQuantizationType(number)
        items, item_bytes = constants.GGML_QUANT_SIZES[kind]
    except (ValueError, LookupError):
        raise errors.StoreError(f"{name!r} is of the type {number}, which is not known") from None
    if not shape or shape[-1] % items:
        raise errors.StoreError(f"{name!r} has rows that are no multiple of {items}")
    return Tensor(name, kind.name, shape, start, start + _product(shape) // items * item_bytes)


class _Cursor:
    """A place in the bytes that moves on only over what is there."""

    def __init__(self, data: Data) -> None:
        self.at = 0
        self._data = data
        self._items_left = ITEMS_MAX

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            raise errors.StoreError(f"the file ends at byte {len(self._data)}, in the middle of its header")
        self.at += count
        return self._data[self.at - count : self.at]

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        return struct.unpack("<" + kinds, self.take(struct.calcsize("<" + kinds)))

    def text(self, bytes_max: int) -> str:
        (length,) = self.numbers("Q")
        if length > bytes_max:
            raise errors.StoreError(f"a text of {length} bytes is longer than {bytes_max}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise errors.StoreError("a text is not UTF-8") from None

    def value(self) -> Value:
        (kind,) = self.numbers("I")
        if kind != _ARRAY:
            return self._one(kind)
        kind, count = self.numbers("IQ")
        if kind == _ARRAY or count > self._items_left:
            raise errors.StoreError(f"an array of {count} values of kind {kind} is absurd")
        self._items_left -= count
        if kind in _NUMBERS:
            return list(self.numbers(f"{count}{_NUMBERS[kind]}"))
        return [self._one(kind) for _ in range(count)]

    def _one(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text(STRING_BYTES_MAX)
        if kind not in _NUMBERS:
            raise errors.StoreError(f"a value of the kind {kind} is not known")
        found: Value = self.numbers(_NUMBERS[kind])[0]
        return found

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, kind, offset."""
        name = self.text(_NAME_BYTES_MAX)
        (count,) = self.numbers("I")
        if count > _DIMENSIONS_MAX:
            raise errors.StoreError(f"{name!r} has {count} dimensions")
        *shape, kind, offset = self.numbers(f"{count}QIQ")
        if offset > _SIZE_MAX:
            raise errors.StoreError(f"{name!r} begins beyond any file")
        return name, tuple(reversed(shape)), kind, offset
