"""One value, one encoding: what the decoder takes, and what it must not take."""

from __future__ import annotations

import struct
import tracemalloc

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshnode import errors
from meshnode.wire import cbor

INTEGERS = st.integers(min_value=-(2**64), max_value=2**64 - 1)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_every_plain_value_comes_back(value: object) -> None:
    assert cbor.decode(cbor.encode(value)) == value


@given(st.tuples(SCALARS, SCALARS))
def test_a_tuple_comes_back_as_a_list(value: tuple[object, object]) -> None:
    assert cbor.decode(cbor.encode(value)) == list(value)


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_in_which_keys_were_put_in_does_not_show(value: dict[str, int]) -> None:
    assert cbor.encode(value) == cbor.encode(dict(reversed(value.items())))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xf7")  # undefined
@example(b"\xe0")  # an unassigned simple value
@example(b"\xf8\x20")  # a simple value in two bytes
@example(b"\xff")  # a break without a beginning
@example(b"\xa1\x01\x02")  # a key that is not text
@example(b"\xa1\x80\x02")  # a key that Python cannot hash
@example(b"\x62\xff\xff")  # text that is not UTF-8
@example(b"\xfb" + struct.pack(">d", float("nan")))
def test_any_bytes_are_a_value_with_these_very_bytes_or_the_peers_fault(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except errors.PeerError:
        return
    assert cbor.encode(value) == data


@given(VALUES, st.data())
def test_a_changed_byte_is_another_value_or_the_peers_fault(value: object, data: st.DataObject) -> None:
    raw = bytearray(cbor.encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed = cbor.decode(bytes(raw))
    except errors.PeerError:
        return
    assert cbor.encode(changed) == bytes(raw) != cbor.encode(value)


@given(VALUES, st.binary(min_size=1, max_size=8))
def test_bytes_after_the_value_are_refused(value: object, tail: bytes) -> None:
    with pytest.raises(errors.PeerError):
        cbor.decode(cbor.encode(value) + tail)


@given(VALUES)
def test_a_value_that_ends_early_is_refused(value: object) -> None:
    raw = cbor.encode(value)
    for count in range(len(raw)):
        with pytest.raises(errors.PeerError):
            cbor.decode(raw[:count])


@pytest.mark.parametrize(
    "data",
    [
        b"\xa2\x61a\x01\x61a\x02",  # one key twice
        b"\xa2\x61b\x01\x61a\x02",  # keys out of order
        b"\x18\x05",  # 5 in two bytes
        b"\x19\x00\xff",  # 255 in three
        b"\x1b\x00\x00\x00\x00\x00\x00\x00\x01",  # 1 in nine
        b"\x38\x00",  # -1 in two
        b"\x58\x01a",  # a length in two bytes that fits in one
        b"\x98\x01\x00",
        b"\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00",  # 1.0 in eight bytes
        b"\xfa\x3f\x80\x00\x00",  # 1.0 in four
        b"\x5f\x41a\xff",  # indefinite bytes
        b"\x7f\x61a\xff",  # indefinite text
        b"\x9f\x01\xff",  # indefinite array
        b"\xbf\x61a\x01\xff",  # indefinite map
        b"\x1c",  # reserved lengths
        b"\x1d",
        b"\x1e",
        b"\xc0\x60",  # tags: a date, a bignum, a shared value, the self-description
        b"\xc2\x41\x01",
        b"\xd8\x1c\x01",
        b"\xd9\xd9\xf7\x01",
        b"\xf9\x7e\x01",  # a NaN with a payload
    ],
    ids=bytes.hex,
)
def test_a_second_encoding_of_the_same_thing_is_refused(data: bytes) -> None:
    with pytest.raises(errors.PeerError):
        cbor.decode(data)


def test_the_refused_forms_are_ones_that_cbor2_would_take() -> None:
    assert cbor2.loads(b"\xa2\x61a\x01\x61a\x02") == {"a": 2}
    assert cbor2.loads(b"\x18\x05") == 5
    assert cbor2.loads(b"\x9f\x01\xff") == [1]


def test_nesting_ends_at_the_limit() -> None:
    deepest = 0
    for depth in range(1, 2 * cbor.DEPTH_MAX):
        try:
            cbor.decode(b"\x81" * depth + b"\x00")
        except errors.PeerError:
            break
        deepest = depth
    assert deepest == cbor.DEPTH_MAX


def test_a_megabyte_of_brackets_is_refused() -> None:
    for bracket in (b"\x81", b"\xa1", b"\x9f", b"\xd9\xd9\xf7"):
        with pytest.raises(errors.PeerError):
            cbor.decode(bracket * (1 << 20))


@pytest.mark.parametrize("major", [2, 3, 4, 5], ids=["bytes", "text", "array", "map"])
@pytest.mark.parametrize("count", [1 << 20, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_a_length_that_is_not_there_takes_no_memory(major: int, count: int) -> None:
    data = bytes([major << 5 | 27]) + count.to_bytes(8, "big") + b"\x00" * 16
    tracemalloc.start()
    try:
        with pytest.raises(errors.PeerError):
            cbor.decode(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
