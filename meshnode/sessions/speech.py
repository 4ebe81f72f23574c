"""Which text may be said now: whole characters, and nothing that may yet turn out to begin a stop string.

The idea: the log is all the state there is. `pending` are the ids since the last moment at which nothing was held back,
`told` the characters of their text that entries have said already; both follow from the entries alone (transcript.py).
A new host decodes the same ids, finds the same text and cuts it at the same places, whatever the tokens' borders.

What is held is no longer than the longest stop string less one character, and the inside of one character. Rejected:
to say pieces at once and take them back (a client cannot unsee), and to keep the held text in the log (the client
reads the log).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BROKEN = "\ufffd"
_BROKEN_MAX = 3
"""A character has four bytes at most, so three that make none yet may still be one."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What one more token does to the text."""

    piece: str
    """To be said now."""
    rest: str = ""
    """Held back because a stop string may begin in it; to be said after all if the answer ends here."""
    whole: bool = True
    """Nothing is held back, neither a rest nor the inside of a character."""
    stopped: bool = False
    """The answer ends: a stop string stands behind `piece`, and is not said."""


def spoken(text: str, told: int, stops: Sequence[str]) -> Spoken:
    """`text` is that of all pending ids, of which the first `told` characters have been said."""
    fresh = text[told:]
    tail = len(fresh) - len(fresh.rstrip(BROKEN))
    if tail > _BROKEN_MAX:
        tail = 0  # no character will come of it
    settled = fresh[: len(fresh) - tail]
    places = [(place + len(stop), place) for stop in stops if (place := settled.find(stop)) >= 0]
    if places:  # the one that is whole first, as if letters came one by one: tokens' borders must not decide
        return Spoken(settled[: min(places)[1]], stopped=True)
    held = max((_overlap(settled, stop) for stop in stops), default=0)
    said = len(settled) - held
    return Spoken(settled[:said], settled[said:], whole=not held and not tail)


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`, and not all of it."""
    return next((count for count in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:count])), 0)
