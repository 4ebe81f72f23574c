"""A prompt of so many tokens, for benches that need a context of a given length and an answer to it."""

from __future__ import annotations

import random
import re

from meshnode import node
from meshnode.models import store, tokenizer

_WORDS = re.findall(
    r"\w+",
    "the node a session moves between hosts and its pages follow while the witness keeps a promise that no later epoch "
    "may break because the log says what was released and every token has one place in it so a voter may crash and "
    "come back and find again what it had written before the cable was cut",
)


def prompt(tokens: int, seed: int) -> str:
    """A text of so many tokens, chat template included; the same each time."""
    words = tokenizer.ChatTokenizer(store.Models(node.models_folder()).path("smollm2-135m"))
    dice = random.Random(seed)
    question = "Tell a long story about what follows. "
    said = [question]

    def length(text: str) -> int:
        return len(words.turn(text, system=None, first=True, closed=False))

    while length("".join(said)) < tokens:
        said += [dice.choice(_WORDS) + " " for _ in range(32)]
    while length("".join(said)) > tokens:
        said.pop()
    return "".join(said)
