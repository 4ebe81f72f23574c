"""Text to measure a model by that every Python brings along: prose about the language, and programs in it.

A fixed order of fixed sources, cut into contexts of equal length: the same Python has the same text. It changes a
little from one version of Python to the next, and so do the figures; the bench prints the version.
"""

from __future__ import annotations

import importlib.util
import itertools
import pydoc_data.topics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import bench

CONTEXT_TOKENS = 512
_PROGRAMS = ("argparse", "textwrap", "statistics", "random", "fractions", "shlex", "csv", "string", "calendar", "heapq")


def contexts(encode: Callable[[str], Sequence[int]], count: int) -> list[list[int]]:
    """So many contexts of CONTEXT_TOKENS, prose and programs by turns. Raises CannotMeasure if there is too little."""
    kinds = (_cut(prose(), encode), _cut(programs(), encode))
    found = list(itertools.islice((one for pair in zip(*kinds, strict=False) for one in pair), count))
    if len(found) < count:
        raise bench.CannotMeasure(f"this Python brings text for {len(found)} contexts, not {count}")
    return found


def prose() -> Iterator[str]:
    """The language reference behind `help()`, by topic."""
    topics = pydoc_data.topics.topics
    yield from (topics[name] for name in sorted(topics))


def programs() -> Iterator[str]:
    """Modules of the standard library, as they are written."""
    for name in _PROGRAMS:
        found = importlib.util.find_spec(name)
        if found and found.origin and Path(found.origin).is_file():
            yield Path(found.origin).read_text(encoding="utf-8")


def _cut(texts: Iterator[str], encode: Callable[[str], Sequence[int]]) -> Iterator[list[int]]:
    """Whole contexts, each from one text; what is left at a text's end is left out."""
    for text in texts:
        tokens = list(encode(text))
        for start in range(0, len(tokens) - CONTEXT_TOKENS + 1, CONTEXT_TOKENS):
            yield tokens[start : start + CONTEXT_TOKENS]
