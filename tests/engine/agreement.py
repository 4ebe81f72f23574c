"""How alike two models speak: the same text through both, and at each place which token each would say.

The idea: both are fed what the text says, never what they said, so that one other token does not make all that follow
others. What is counted: the same greedy token; the divergence of the chances (Kullback-Leibler, from the reference to
the other, in nats); and the perplexity of each, which needs no second model.

Any model with a pass over pages will do, whatever its numeric class and its device; it must be nobody's at the time,
since the text takes the pool's pages from 0 on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from meshnode.engine import pages

CHUNK_TOKENS = 256


class Model(Protocol):
    def forward(self, segments: Sequence[pages.Segment], wanted: Sequence[int]) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """Sums over places, so that texts can be added."""

    place_count: int = 0
    same_count: int = 0
    """Places with the same greedy token."""
    divergence_nats: float = 0.0
    reference_nats: float = 0.0
    """Of the text's own next tokens; so is the next."""
    other_nats: float = 0.0

    def __add__(self, more: Agreement) -> Agreement:
        return Agreement(
            self.place_count + more.place_count,
            self.same_count + more.same_count,
            self.divergence_nats + more.divergence_nats,
            self.reference_nats + more.reference_nats,
            self.other_nats + more.other_nats,
        )

    def __str__(self) -> str:
        count = max(1, self.place_count)
        return (
            f"{self.same_count} of {self.place_count} greedy tokens the same ({self.same_count / count:.2%}), "
            f"divergence {self.divergence_nats / count:.5f} nats, perplexity "
            f"{math.exp(self.reference_nats / count):.3f} and {math.exp(self.other_nats / count):.3f}"
        )


def compare(reference: Model, other: Model, text: Sequence[int], *, chunk_tokens: int = CHUNK_TOKENS) -> Agreement:
    """Over all places of a text but the last, of which nobody knows what follows. `chunk_tokens` of 1 is decoding."""
    assert len(text) > 1
    total, start = Agreement(), 0
    pairs = zip(_spoken(reference, text[:-1], chunk_tokens), _spoken(other, text[:-1], chunk_tokens), strict=True)
    for ours, theirs in pairs:  # float32 [place, vocabulary] each
        following = torch.tensor(text[start + 1 : start + 1 + ours.shape[0]])[:, None]
        left, right = ours.log_softmax(-1), theirs.log_softmax(-1)
        total += Agreement(
            place_count=ours.shape[0],
            same_count=int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
            divergence_nats=float((left.exp() * (left - right)).sum()),
            reference_nats=-float(left.gather(1, following).sum()),
            other_nats=-float(right.gather(1, following).sum()),
        )
        start += ours.shape[0]
    return total


def _spoken(model: Model, text: Sequence[int], chunk_tokens: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(text), chunk_tokens):
        chunk = tuple(text[start : start + chunk_tokens])
        held = tuple(range(pages.pages_for(start + len(chunk))))
        yield model.forward([pages.Segment(0, chunk, start, held)], range(len(chunk)))
