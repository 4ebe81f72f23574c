"""A class is its schema: what fits comes back as it was, and everything else is refused without being bent to fit."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors, ids
from meshnode.wire import cbor, schema
from tests.wire import samples

INNERS = st.builds(
    samples.Inner, count=st.integers(0, 10), label=st.text(max_size=4).filter(lambda label: label != "bad")
)
EVERYTHINGS = st.builds(
    samples.Everything,
    peer=st.binary(min_size=32, max_size=32).map(ids.PeerId),
    session=st.binary(min_size=16, max_size=16).map(ids.SessionId),
    request=st.binary(min_size=16, max_size=16).map(ids.RequestId),
    digest=st.binary(min_size=32, max_size=32).map(ids.Digest),
    count=st.integers(0, schema.INTEGER_MAX),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    yes=st.booleans(),
    text=st.text(max_size=50),
    blob=st.binary(max_size=50),
    colour=st.sampled_from(samples.Colour),
    shape=st.sampled_from(samples.Shape),
    inner=INNERS,
    few=st.lists(st.binary(max_size=2), max_size=3).map(tuple),
    many=st.lists(INNERS, max_size=3).map(tuple),
    perhaps=st.none() | st.integers(0, 5),
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NAMES = [field.name for field in dataclasses.fields(samples.Everything)]


def sample() -> samples.Everything:
    return samples.Everything(
        peer=ids.PeerId(b"p" * 32),
        session=ids.SessionId(b"s" * 16),
        request=ids.RequestId(b"r" * 16),
        digest=ids.Digest(b"d" * 32),
        count=1,
        ratio=0.5,
        yes=True,
        text="text",
        blob=b"blob",
        colour=samples.Colour.RED,
        shape=samples.Shape.FLAT,
        inner=samples.Inner(1, "a"),
        few=(b"a", b"b"),
        many=(samples.Inner(2, "b"),),
        perhaps=None,
    )


def with_field(name: str, value: Any) -> list[Any]:
    """The packed sample, one field replaced."""
    packed = schema.pack(sample())
    packed[NAMES.index(name)] = value
    return packed


@given(EVERYTHINGS)
def test_a_message_comes_back_as_it_was(message: samples.Everything) -> None:
    over_the_wire = cbor.decode(cbor.encode(schema.pack(message)))
    back = schema.unpack(schema.number_of(message), over_the_wire)
    assert back == message
    assert [type(getattr(back, name)) for name in NAMES] == [type(getattr(message, name)) for name in NAMES]


@given(st.sampled_from(NAMES), JUNK)
def test_a_field_of_any_value_is_kept_as_it_is_or_refused(name: str, value: Any) -> None:
    fields = with_field(name, value)
    try:
        message = schema.unpack(samples.EVERYTHING, fields)
    except errors.PeerError:
        return
    assert cbor.encode(schema.pack(message)) == cbor.encode(fields)


@given(JUNK)
def test_any_value_in_place_of_the_fields_is_refused(value: Any) -> None:
    with pytest.raises(errors.PeerError):
        schema.unpack(samples.EVERYTHING, value)


@pytest.mark.parametrize("change", [-len(NAMES), -1, 1, 1000])
def test_a_wrong_count_of_fields_is_refused(change: int) -> None:
    packed = schema.pack(sample())
    fields = packed[:change] if change < 0 else packed + [None] * change
    with pytest.raises(errors.PeerError, match=f"with {len(NAMES)} fields"):
        schema.unpack(samples.EVERYTHING, fields)


REFUSED: list[tuple[str, Any]] = [
    ("peer", b"p" * 31),
    ("peer", b"p" * 33),
    ("peer", "p" * 32),
    ("session", b"s" * 15),
    ("request", b""),
    ("digest", None),
    ("count", -1),
    ("count", schema.INTEGER_MAX + 1),
    ("count", True),
    ("count", 1.0),
    ("count", "1"),
    ("count", None),
    ("ratio", 1),
    ("ratio", True),
    ("ratio", float("inf")),
    ("ratio", float("-inf")),
    ("ratio", float("nan")),
    ("yes", 1),
    ("yes", None),
    ("text", b"text"),
    ("text", "x" * (schema.TEXT_CHARS_MAX + 1)),
    ("blob", "blob"),
    ("blob", bytes(schema.BYTES_MAX + 1)),
    ("colour", 3),
    ("colour", True),
    ("colour", 1.0),
    ("colour", "RED"),
    ("colour", []),
    ("shape", "square"),
    ("shape", {}),
    ("inner", [1]),
    ("inner", [11, "a"]),
    ("inner", [1, "abcde"]),
    ("inner", [1, "bad"]),
    ("inner", {"count": 1, "label": "a"}),
    ("few", [b""] * 4),
    ("few", [b"abc"]),
    ("few", b"ab"),
    ("few", None),
    ("many", [[1, "a"], [1]]),
    ("many", [None]),
    ("many", [[1, "a"]] * (schema.ITEMS_MAX + 1)),
    ("perhaps", 6),
    ("perhaps", False),
    ("perhaps", []),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=[f"{name}-{index}" for index, (name, _) in enumerate(REFUSED)])
def test_a_wrong_type_or_a_value_out_of_bounds_is_refused(name: str, value: Any) -> None:
    with pytest.raises(errors.PeerError):
        schema.unpack(samples.EVERYTHING, with_field(name, value))


TAKEN: list[tuple[str, Any]] = [
    ("count", 0),
    ("count", schema.INTEGER_MAX),
    ("text", "x" * schema.TEXT_CHARS_MAX),
    ("blob", bytes(schema.BYTES_MAX)),
    ("few", [b"ab"] * 3),
    ("inner", [10, "abcd"]),
    ("many", []),
    ("perhaps", 5),
    ("perhaps", None),
]


@pytest.mark.parametrize(("name", "value"), TAKEN, ids=[f"{name}-{index}" for index, (name, _) in enumerate(TAKEN)])
def test_a_value_at_its_bound_is_taken(name: str, value: Any) -> None:
    fields = with_field(name, value)
    assert schema.pack(schema.unpack(samples.EVERYTHING, fields)) == fields


@pytest.mark.parametrize("number", [0, -1, 9_999_999, 2**64 - 1])
def test_an_unknown_kind_is_refused(number: int) -> None:
    with pytest.raises(errors.PeerError, match="not spoken here"):
        schema.unpack(number, [])


def test_a_refusal_does_not_repeat_a_strangers_megabyte() -> None:
    with pytest.raises(errors.PeerError) as caught:
        schema.unpack(samples.EVERYTHING, with_field("shape", "x" * 1_000_000))
    assert len(str(caught.value)) < 400


def test_a_number_names_one_kind_for_ever() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Other:
        count: int

    with pytest.raises(AssertionError):
        schema.message(samples.SMALL)(Other)


def test_a_bound_of_nothing_is_a_bound() -> None:
    @schema.message(9_000_003)
    @dataclasses.dataclass(frozen=True, slots=True)
    class Hollow:
        none: Annotated[tuple[bytes, ...], schema.Max(0)]

    assert schema.unpack(9_000_003, [[]]) == Hollow(())
    with pytest.raises(errors.PeerError):
        schema.unpack(9_000_003, [[b"a"]])
