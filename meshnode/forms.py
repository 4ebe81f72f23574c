"""Mappings that people wrote (TOML, YAML, JSON) into frozen dataclasses, with every reason at once.

A person who has three typing errors wants to hear of three. So nothing here raises: `read` returns the value or the
reasons, each naming its field with a dot path and, for an unknown key, the key that was probably meant. pydantic would
do this too, at the price of a dependency in the SDK and of coercion that a contract must not have ("3" is not 3).
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

INTEGER_MAX = 2**63 - 1
"""What the wire carries: a larger number would be refused there, without a word to the person who wrote it."""


def read(cls: type[T], raw: Any, *, at: str = "") -> tuple[T | None, list[str]]:
    """A `cls` from a mapping, or None and the reasons. Missing keys take their defaults."""
    if not isinstance(raw, Mapping):
        return None, [f"{at or cls.__name__.lower()}: expected a table, got {_kind(raw)}"]
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if field.init}
    reasons = [_unknown(at, key, list(fields)) for key in raw if key not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path = f"{at}.{name}" if at else name
        if name in raw:
            value, bad = _value(hints[name], raw[name], path)
            reasons += bad
            values[name] = value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            reasons.append(f"{path}: is required")
    if reasons:
        return None, reasons
    return cls(**values), []


def write(value: Any) -> Any:
    """The inverse of `read`: plain tables, lists, strings and numbers."""
    if dataclasses.is_dataclass(value):
        return {field.name: write(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [write(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    return value


def _unknown(at: str, key: Any, known: list[str]) -> str:
    path = f"{at}.{key}" if at else str(key)
    close = difflib.get_close_matches(str(key), known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(known)
    return f"{path}: unknown key; {meant}"


def _value(hint: Any, raw: Any, path: str) -> tuple[Any, list[str]]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if raw is None:
            return None, []
        (hint,) = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        origin = typing.get_origin(hint)
    if origin is tuple:
        return _items(typing.get_args(hint)[0], raw, path)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type, hint), raw, at=path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        choices = [member.value for member in hint]
        if raw in choices:
            return hint(raw), []
        return None, [f"{path}: {raw!r} is not one of {', '.join(map(str, choices))}"]
    if hint is bytes:
        return _hex(raw, path)
    if hint is float and type(raw) is int and abs(raw) < 2**53:
        return float(raw), []
    if type(raw) is not hint:
        return None, [f"{path}: expected {_names[hint]}, got {_kind(raw)}"]
    if hint is float and not math.isfinite(raw):
        return None, [f"{path}: expected a number, got {raw}"]
    if hint is int and abs(raw) > INTEGER_MAX:
        return None, [f"{path}: at most {INTEGER_MAX}"]
    return raw, []


def _items(item: Any, raw: Any, path: str) -> tuple[Any, list[str]]:
    if not isinstance(raw, list | tuple):
        return None, [f"{path}: expected a list, got {_kind(raw)}"]
    pairs = [_value(item, one, f"{path}[{place}]") for place, one in enumerate(raw)]
    return tuple(value for value, _ in pairs), [reason for _, bad in pairs for reason in bad]


def _hex(raw: Any, path: str) -> tuple[bytes | None, list[str]]:
    try:
        return bytes.fromhex(raw), []
    except (TypeError, ValueError):
        return None, [f"{path}: expected hexadecimal digits, got {_kind(raw)}"]


_names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _kind(raw: Any) -> str:
    return "nothing" if raw is None else f"{type(raw).__name__} {str(raw)[:40]!r}"
