"""Pure: frames on a byte stream. Four bytes of length, big-endian, then that many bytes; nothing else.

A stranger's length is checked against the lane's limit before any memory is taken for it, and the decoder holds at
most one frame that is not yet whole. Rejected: varint lengths (they save three bytes and cost a loop), a checksum
(Noise has authenticated every byte already).
"""

from __future__ import annotations

from meshnode import errors
from meshnode.ports import FRAME_BYTES_MAX, Lane

HEADER_BYTES = 4


def check(lane: Lane, frame_bytes: int) -> None:
    """Raises PeerError for a frame that the other side would refuse."""
    if frame_bytes > FRAME_BYTES_MAX[lane]:
        raise errors.PeerError(f"a frame of {frame_bytes} bytes; {lane.name} carries {FRAME_BYTES_MAX[lane]}")


def header(lane: Lane, frame_bytes: int) -> bytes:
    """What goes before the frame. Raises PeerError if it is too long for the lane."""
    check(lane, frame_bytes)
    return frame_bytes.to_bytes(HEADER_BYTES, "big")


class Decoder:
    """Chunks in, whole frames out. After a PeerError it is of no use: the stream has lost its rhythm."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Frames that this chunk completes."""
        self._held += chunk
        frames: list[bytes] = []
        start = 0
        while (body := start + HEADER_BYTES) <= len(self._held):
            frame_bytes = int.from_bytes(self._held[start:body], "big")
            check(self._lane, frame_bytes)
            if body + frame_bytes > len(self._held):
                break
            start = body + frame_bytes
            frames.append(bytes(self._held[body:start]))
        del self._held[:start]
        return frames
