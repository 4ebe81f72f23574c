"""Frozen dataclasses to CBOR arrays and back, by their own type annotations.

A message class *is* its schema: fields in order, each with a type and a bound. A decoder written by hand for each of
forty messages would be forty places to forget a limit; pydantic would coerce where a protocol must refuse. So this is
a small compiler: annotations are turned once into a checker per field. It refuses a wrong count of fields, a wrong
type, a value out of bounds; it never coerces, and it has no optional fields: a new field is a new message kind.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from meshnode import errors, ids

INTEGER_MAX = 2**63 - 1
TEXT_CHARS_MAX = 4096
BYTES_MAX = 1 << 20
ITEMS_MAX = 1 << 16

_LENGTHS: dict[Any, int] = {
    ids.PeerId: ids.PEER_BYTES,
    ids.SessionId: ids.SESSION_BYTES,
    ids.RequestId: ids.REQUEST_BYTES,
    ids.Digest: ids.DIGEST_BYTES,
}

Check = Callable[[Any], Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Max:
    """Annotated[bytes, Max(64)]: at most so many bytes, characters or items. A bare int says the same, for files that
    stand below the wire."""

    count: int


_kinds: dict[int, type] = {}
_numbers: dict[type, int] = {}


def message(number: int) -> Callable[[type[T]], type[T]]:
    """Give a dataclass its number on the wire. Numbers are never used twice, not even after a message is gone."""

    def register(cls: type[T]) -> type[T]:
        assert number not in _kinds, (number, cls, _kinds[number])
        assert dataclasses.is_dataclass(cls)
        _kinds[number] = cls
        _numbers[cls] = number
        return cls

    return register


def number_of(value: object) -> int:
    """The wire number of a message object."""
    return _numbers[type(value)]


def pack(value: Any) -> Any:
    """A message, or anything in it, as plain CBOR values."""
    if dataclasses.is_dataclass(value):
        return [pack(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple):
        return [pack(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value


def unpack(number: int, fields: Any) -> Any:
    """The message of that number. Raises PeerError."""
    cls = _kinds.get(number)
    if cls is None:
        raise errors.PeerError(f"message kind {number} is not spoken here")
    return _dataclass_check(cls)(fields)


def _refuse(expected: str, value: Any) -> errors.PeerError:
    return errors.PeerError(f"expected {expected}, got {type(value).__name__}")


@functools.cache
def _dataclass_check(cls: type) -> Check:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    checks = [(name, _check(hints[name], None)) for name in names]

    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(checks):
            raise _refuse(f"{cls.__name__} with {len(checks)} fields", value)
        try:
            return cls(*[one(item) for (_, one), item in zip(checks, value, strict=True)])
        except ValueError as error:  # a dataclass's own __post_init__ may refuse
            raise errors.PeerError(f"{cls.__name__}: {error}") from error

    return check


def _check(hint: Any, bound: int | None) -> Check:
    """A checker for one annotation."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        (count,) = [mark.count if isinstance(mark, Max) else mark for mark in marks]
        return _check(inner, count)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        some = _check(inner, bound)
        return lambda value: None if value is None else some(value)
    if origin is tuple:
        item, dots = typing.get_args(hint)
        assert dots is Ellipsis, "tuples on the wire are of one type and any length"
        return _tuple_check(_check(item, None), ITEMS_MAX if bound is None else bound)
    if hint in _LENGTHS:
        return _exact_bytes_check(_LENGTHS[hint])
    if dataclasses.is_dataclass(hint):
        return _dataclass_check(typing.cast(type, hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_check(hint)
    return _PLAIN_CHECKS[hint](bound)


def _tuple_check(item: Check, count_max: int) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not list or len(value) > count_max:
            raise _refuse(f"at most {count_max} items", value)
        return tuple(item(one) for one in value)

    return check


def _exact_bytes_check(length: int) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not bytes or len(value) != length:
            raise _refuse(f"{length} bytes", value)
        return value

    return check


def _enum_check(cls: type[enum.Enum]) -> Check:
    """By type as well as by value: to Python, True and 1.0 are 1, and one message would have three encodings."""
    members = {(type(member.value), member.value): member for member in cls}

    def check(value: Any) -> Any:
        member = members.get((type(value), value)) if isinstance(value, int | str) else None
        if member is None:
            raise _refuse(f"a {cls.__name__}", value)
        return member

    return check


def _int_check(bound: int | None) -> Check:
    top = INTEGER_MAX if bound is None else bound

    def check(value: Any) -> Any:
        if type(value) is not int or not 0 <= value <= top:
            raise _refuse(f"integer up to {top}", value)
        return value

    return check


def _float_check(bound: int | None) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not float or value != value or abs(value) == float("inf"):
            raise _refuse("finite float", value)
        return value

    return check


def _bool_check(bound: int | None) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not bool:
            raise _refuse("boolean", value)
        return value

    return check


def _text_check(bound: int | None) -> Check:
    return _sized_check(str, TEXT_CHARS_MAX if bound is None else bound)


def _bytes_check(bound: int | None) -> Check:
    return _sized_check(bytes, BYTES_MAX if bound is None else bound)


def _sized_check(cls: type[str] | type[bytes], count_max: int) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not cls or len(value) > count_max:
            raise _refuse(f"{cls.__name__} of at most {count_max}", value)
        return value

    return check


_PLAIN_CHECKS: dict[Any, Callable[[int | None], Check]] = {
    int: _int_check,
    float: _float_check,
    bool: _bool_check,
    str: _text_check,
    bytes: _bytes_check,
}
