"""Frames on a byte stream: any chunking gives the same frames, and a stranger's length takes no memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors
from meshnode.net import framing
from meshnode.ports import FRAME_BYTES_MAX, Lane


def written(frames: list[bytes]) -> bytes:
    return b"".join(framing.header(Lane.SIGNAL, len(frame)) + frame for frame in frames)


@given(st.lists(st.binary(max_size=300), max_size=10), st.lists(st.integers(1, 50), min_size=1))
def test_any_chunking_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    stream = written(frames)
    decoder = framing.Decoder(Lane.SIGNAL)
    found: list[bytes] = []
    start = 0
    while start < len(stream):
        size = cuts[start % len(cuts)]
        found += decoder.feed(stream[start : start + size])
        start += size
    assert found == frames


@given(st.binary(max_size=200), st.sampled_from(Lane))
def test_any_bytes_are_frames_or_a_peer_error(chunk: bytes, lane: Lane) -> None:
    decoder = framing.Decoder(lane)
    try:
        found = decoder.feed(chunk)
    except errors.PeerError:
        return
    assert sum(framing.HEADER_BYTES + len(frame) for frame in found) <= len(chunk)


@pytest.mark.parametrize("lane", Lane)
def test_the_longest_frame_passes_and_one_byte_more_does_not(lane: Lane) -> None:
    longest = FRAME_BYTES_MAX[lane]
    decoder = framing.Decoder(lane)
    assert decoder.feed(framing.header(lane, longest) + bytes(longest)) == [bytes(longest)]
    with pytest.raises(errors.PeerError):
        framing.header(lane, longest + 1)
    with pytest.raises(errors.PeerError):
        decoder.feed((longest + 1).to_bytes(framing.HEADER_BYTES, "big"))


def test_a_length_is_refused_before_its_body_comes() -> None:
    with pytest.raises(errors.PeerError):
        framing.Decoder(Lane.BULK).feed(b"\xff\xff\xff\xff")
