"""What people write into frozen values: every reason at once, nothing coerced, nothing lost on the way back."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import forms


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    count: int = 3
    label: str = "x"


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    ratio: float = 0.5
    on: bool = True
    colour: Colour = Colour.RED
    digest: bytes = b""
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()
    perhaps: int | None = None
    hidden: int = field(default=7, init=False)


def reasons(raw: object) -> list[str]:
    value, found = forms.read(Outer, raw)
    assert (value is None) == bool(found)
    return found


def test_missing_keys_take_their_defaults() -> None:
    assert forms.read(Outer, {"name": "a"}) == (Outer("a"), [])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "name: is required"),
        ({"name": 3}, "name: expected text, got int '3'"),
        ({"name": "a", "ratio": "3"}, "ratio: expected a number, got str '3'"),
        ({"name": "a", "ratio": float("nan")}, "ratio: expected a number, got nan"),
        ({"name": "a", "ratio": float("inf")}, "ratio: expected a number, got inf"),
        ({"name": "a", "ratio": 10**400}, "ratio: expected a number, got int"),
        ({"name": "a", "on": 1}, "on: expected true or false, got int '1'"),
        ({"name": "a", "colour": "green"}, "colour: 'green' is not one of red, blue"),
        ({"name": "a", "colour": ["red"]}, "colour: ['red'] is not one of"),
        ({"name": "a", "digest": "xyz"}, "digest: expected hexadecimal digits"),
        ({"name": "a", "digest": 5}, "digest: expected hexadecimal digits"),
        ({"name": "a", "inner": None}, "inner: expected a table, got nothing"),
        ({"name": "a", "inner": {"count": True}}, "inner.count: expected a whole number, got bool"),
        ({"name": "a", "inner": {"count": 2**70}}, "inner.count: at most 9223372036854775807"),
        ({"name": "a", "many": [{}, {"count": "x"}]}, "many[1].count: expected a whole number"),
        ({"name": "a", "words": "abc"}, "words: expected a list, got str"),
        ({"name": "a", "rato": 1}, "rato: unknown key; did you mean 'ratio'?"),
        ({"name": "a", "inner": {"zzz": 1}}, "inner.zzz: unknown key; known keys: count, label"),
        ({"name": "a", 5: 1}, "5: unknown key"),
        ({"name": "a", "hidden": 1}, "hidden: unknown key"),
        ([], "outer: expected a table, got list"),
    ],
)
def test_a_wrong_key_or_value_is_named(raw: object, reason: str) -> None:
    (found,) = reasons(raw)
    assert found.startswith(reason)


def test_three_mistakes_give_three_reasons() -> None:
    assert len(reasons({"nam": 1, "ratio": "x"})) == 3


def test_a_whole_number_will_do_where_a_number_is_asked_for() -> None:
    value, _ = forms.read(Outer, {"name": "a", "ratio": 2})
    assert value is not None
    assert (value.ratio, type(value.ratio)) == (2.0, float)


inners = st.builds(Inner, st.integers(-(2**63) + 1, 2**63 - 1), st.text(max_size=5))
outers = st.builds(
    Outer,
    st.text(max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.sampled_from(Colour),
    st.binary(max_size=8),
    inners,
    st.lists(inners, max_size=3).map(tuple),
    st.lists(st.text(max_size=3), max_size=3).map(tuple),
    st.none() | st.integers(0, 9),
)


@given(outers)
def test_what_was_written_is_read_back(value: Outer) -> None:
    written = forms.write(value)
    written.pop("hidden")
    assert forms.read(Outer, written) == (value, [])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inside, max_size=3)
    ),
)


@given(st.dictionaries(st.sampled_from(["name", "ratio", "colour", "digest", "inner", "many", "perhaps", "x"]), plain))
def test_nothing_that_a_parser_gives_raises(raw: dict[str, object]) -> None:
    reasons(raw)
