"""Rotations of rope, with the same bits on every machine.

The idea: a library's sine may differ in the last digit from the next library's, and one differing bit in a table of
250,000 numbers makes two numeric classes of one. So the few numbers that need a transcendental function (the
frequencies, and each frequency's rotation by a power of two) are computed in decimal arithmetic, exact to the digits
asked for; the table is built from these by doubling, in float64 products and sums, which IEEE 754 fixes. The error is
that of fourteen complex products in float64: far below float32, to which the table is rounded once.

Rejected: `torch.polar` (its bits are those of one libm), and decimal arithmetic for every entry (a minute).
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from typing import Any

import numpy as np

_DIGITS = 50
_PI = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803")


def turns(
    head_dim: int, theta: float, divisors: Sequence[float], amplitude: float, positions: int
) -> np.ndarray[Any, Any]:
    """float32 [position, head_dim / 2, (cos, sin)] of position * theta^(-2i / head_dim) / divisors[i].

    `divisors` has head_dim / 2 numbers, or none; all is multiplied by `amplitude`.
    """
    with decimal.localcontext() as context:
        context.prec = _DIGITS
        slow = [decimal.Decimal(one) for one in divisors] or [decimal.Decimal(1)] * (head_dim // 2)
        angles = [
            decimal.Decimal(theta) ** (decimal.Decimal(-2 * i) / head_dim) / slow[i] for i in range(head_dim // 2)
        ]
        doublings = max(0, (positions - 1).bit_length())
        steps = np.array([[_turn(angle * 2**k) for angle in angles] for k in range(doublings)])  # [k, dim / 2, 2]
    cos, sin = np.ones((1, head_dim // 2)), np.zeros((1, head_dim // 2))
    for step_cos, step_sin in (steps[k].T for k in range(doublings)):
        cos, sin = (
            np.concatenate([cos, cos * step_cos - sin * step_sin]),
            np.concatenate([sin, sin * step_cos + cos * step_sin]),
        )
    table = np.stack([cos[:positions], sin[:positions]], axis=-1)
    return np.ascontiguousarray((table * amplitude).astype(np.float32))


def _turn(angle: decimal.Decimal) -> tuple[float, float]:
    """Cosine and sine, by their series after taking off whole turns."""
    rest = angle.remainder_near(2 * _PI)
    cos, sin, term, n = decimal.Decimal(0), decimal.Decimal(0), decimal.Decimal(1), 0
    smallest = decimal.Decimal(10) ** -(_DIGITS - 10)
    while abs(term) > smallest:
        cos, sin = (cos + term, sin) if n % 2 == 0 else (cos, sin + term)
        n += 1
        term = term * rest / n * (-1 if n % 2 == 0 else 1)
    return float(cos), float(sin)
