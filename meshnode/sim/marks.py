"""Rare paths, by name: a campaign in which one of them was never walked has proven nothing about it and fails.

After SQLite's coverage marks and the `sometimes` assertions of Antithesis. A mark is declared here and hit where the
path is seen from outside the brain; hitting an undeclared one is our own bug.
"""

from __future__ import annotations

from collections import Counter

DECLARED = (
    "session born",
    "every turn answered",
    "owner crashed while it answered",
    "every voter down at once",
    "taken over",
    "adopted another voter's entries",
    "restored from pages",
    "went on without pages",
    "restarted owner went on",
    "two believed that they own a session",
    "paused owner came back deposed",
    "epoch promised to another",
    "stale entries refused",
    "stale word refused by the client",
    "owner without a lease",
    "no quorum said",
    "journal's tail torn",
    "records lost that were not synced",
    "journal written anew",
    "pages evicted",
    "page refused",
    "machine gone for good",
    "link reset",
    "cut healed",
    "cut in one direction",
    "halves cut",
    "clock jumped",
    "clock stood",
    "client came back",
    "client left without a word",
    "answer interrupted",
    "turn asked again",
    "through a gateway",
    "frames lost",
    "frames doubled",
    "frames overtaken",
    "frames held",
    "dropped by every voter",
    "end heard from another voter",
    "expired",
    "two awards of one session",
    "five voters",
)


class Marks:
    """How often each was hit in one world."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()

    def hit(self, name: str) -> None:
        assert name in _KNOWN, name
        self.hits[name] += 1


_KNOWN = frozenset(DECLARED)


def missed(hits: Counter[str]) -> list[str]:
    """Declared, and never hit."""
    return [name for name in DECLARED if not hits[name]]
