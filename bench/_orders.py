"""What a peer in a child process is told, and how it obeys: a line of JSON in, its seconds out.

Read by three interpreters, one of which has neither meshnode nor torch: the standard library is all that is used here.
The seconds are the child's own, so that a pipe and a task switch are in nobody's figure.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping

TOKEN = 1000
"""What a decode step is fed: arithmetic takes as long over nonsense."""


def words(count: int, seed: int = 0) -> list[int]:
    """Token ids without meaning. Two seeds have no prefix in common: nothing that was paged for one serves another."""
    return [1000 + (seed * 31 + index * 7919 + seed * index % 97) % 40000 for index in range(count)]


def obey(acts: Mapping[str, Callable[..., float]]) -> None:
    """Answer orders from standard input until it ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(acts[order.pop("act")](**order)), file=answers, flush=True)
