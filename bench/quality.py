"""What each numeric class costs in quality: perplexity, and how often its greedy token is that of "f32".

The text is what every Python brings along (`_corpus`), in contexts of 512 tokens; a context's first token is not
predicted, so 40 of them are 20,440 predictions. Perplexity is exp of the mean of minus log probability; agreement is
the share of positions at which the likeliest token is the same, over the same contexts, teacher-forced: one token that
differs does not change the next context. Both are the same each time.

"f32" itself is checked against transformers by the tests, not here.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import bench
from bench import _corpus, _engine
from meshnode import errors
from meshnode.models import store

if TYPE_CHECKING:
    import torch

CLASSES = ("f32", "bf16", "w8", "i8")
"""The first is what the others are compared with."""
CONTEXTS = 40
CONTEXTS_QUICK = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """What a class said about the text, position by position."""

    losses: torch.Tensor  # [position] minus log probability of the token that follows
    greedy: torch.Tensor  # [position] the likeliest token


def run(quick: bool, runs: int) -> dict[str, float]:
    """Perplexity and agreement of each class that the engine knows. One run: there is no chance in it."""
    import tokenizers

    model = _engine.installed()
    words = tokenizers.Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    count = CONTEXTS_QUICK if quick else CONTEXTS
    contexts = _corpus.contexts(lambda text: words.encode(text, add_special_tokens=False).ids, count)
    positions = count * (_corpus.CONTEXT_TOKENS - 1)
    if quick:
        bench.say(f"--quick: {positions} predictions; figures to be quoted take 20,000")
    seen: dict[str, Seen] = {}
    for numeric_class in CLASSES:
        if found := _seen(model, numeric_class, contexts):
            seen[numeric_class] = found
    figures: dict[str, float] = {"tokens": float(positions)}
    for numeric_class, found in seen.items():
        figures |= compared(numeric_class, found, seen[CLASSES[0]])
    return figures


def compared(numeric_class: str, found: Seen, reference: Seen) -> dict[str, float]:
    """Figures of one class beside the reference, over the same positions."""
    assert found.losses.shape == found.greedy.shape == reference.greedy.shape
    perplexity, theirs = (math.exp(one.losses.double().mean().item()) for one in (found, reference))
    return {
        f"{numeric_class}_perplexity": perplexity,
        f"{numeric_class}_agreement": (found.greedy == reference.greedy).double().mean().item(),
        f"{numeric_class}_perplexity_ratio": perplexity / theirs,
    }


def _seen(model: store.Installed, numeric_class: str, contexts: list[list[int]]) -> Seen | None:
    """None if the engine does not know the class."""
    import torch

    try:
        inner = _engine.load(model, numeric_class)
    except errors.ConfigError as unknown:
        bench.say(f"{numeric_class}: {unknown}")
        return None
    losses, greedy = [], []
    started_s = time.perf_counter()
    for number, context in enumerate(contexts):
        with torch.inference_mode():
            rows = _engine.logits(inner, number, context)[:-1]
            following = torch.tensor(context[1:])
            losses.append(torch.nn.functional.cross_entropy(rows, following, reduction="none"))
            greedy.append(rows.argmax(-1))
        if (number + 1) % 10 == 0 or number + 1 == len(contexts):
            bench.say(f"{numeric_class}: {number + 1} contexts in {time.perf_counter() - started_s:.0f} s")
    del inner
    gc.collect()
    return Seen(torch.cat(losses), torch.cat(greedy))
