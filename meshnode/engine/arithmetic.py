"""The arithmetic of the exact class: integer products, and the proof that this machine computes rows one by one.

The idea: float sums depend on their order, and libraries choose the order by the number of rows; integer sums do not.
So weights are int8, and each row of activations is rounded to 15 bits (one scale a row) and multiplied as two int8
planes: y = (high @ W + low @ W / 128) * scale. Whatever kernel is chosen, for one row or for many, with any number of
threads, the integers are the same; what follows is element by element.

The planes matter: with one plane the mean KL divergence from float32 is 0.046, with two it is 0.005 to 0.008.

`fingerprint` runs every non-integer kernel the model uses on fixed numbers: it refuses a machine whose bits change with
the number of rows, and names the bits, so that two machines know whether they are in one numeric class.

Rejected: `_weight_int8pack_mm` (rows are equal there too, but 32 rows cost five times as much, and it reads beyond the
end of a mapped file); bf16 matrices (twice the memory traffic); float32 `linear` (one row has other bits than many).
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as functional

from meshnode import errors
from meshnode.engine import weights

_HIGH = 127
"""Steps of the high plane: the greatest magnitude of a row is 127."""
_LOW = 128
"""Steps of the low plane in one of the high; the rest after rounding is at most half, so -64 to 64."""
_SMALLEST = 1e-30
THREAD_COUNTS = (1, 2, 4)
"""Others split a row between threads at places where a kernel has no whole vector left, and rounds otherwise."""


def linear(
    rows: torch.Tensor,  # [row, in]
    matrix: weights.Matrix,
    norm_eps: float | None = None,
) -> torch.Tensor:  # [row, out]
    """rows @ matrix; with `norm_eps`, of rows that are first divided by their root mean square.

    The norm's gain is in the matrix already. So the norm is one number a row, and here it meets the scale, which is one
    number a row too: rows are rounded as they are.
    """
    if matrix.scale is None:
        return functional.linear(rows if norm_eps is None else rows * inverse_rms(rows, norm_eps), matrix.turned.t())
    count, width = rows.shape
    top = torch.linalg.vector_norm(rows, float("inf"), -1, True).clamp_min_(_SMALLEST)
    planes = torch.empty((2, count, width), dtype=torch.int8)
    levels = rows * (_HIGH / top)
    high = levels.round()
    planes[0].copy_(high)
    planes[1].copy_(levels.sub_(high).mul_(_LOW))
    sums = torch._int_mm(planes.view(2 * count, width), matrix.turned).float()
    by_row = top.mul_(1 / _HIGH) if norm_eps is None else top.mul_(inverse_rms(rows, norm_eps)).mul_(1 / _HIGH)
    # _LOW is a power of two: fused or not, this addition rounds once.
    return torch.add(sums[:count], sums[count:], alpha=1 / _LOW).mul_(by_row).mul_(matrix.scale)


def inverse_rms(rows: torch.Tensor, eps: float) -> torch.Tensor:  # [row, in] -> [row, 1]
    return torch.linalg.vector_norm(rows, 2, -1, True).square_().div_(rows.shape[1]).add_(eps).sqrt_().reciprocal_()


def fold(parts: torch.Tensor) -> torch.Tensor:  # [block, ...] -> [...]; destroys `parts`
    """Sum over blocks in one order that is a function of the block's number alone.

    Halves are added from the top power of two down; a missing block is a missing zero. So a row with few blocks has the
    same bits beside a row with many.
    """
    count = parts.shape[0]
    half = 1 << max(0, (count - 1).bit_length() - 1)
    while count > 1:
        parts[: count - half] += parts[half:count]
        count, half = half, half // 2
    return parts[0]


def fingerprint() -> str:
    """Eight hex digits of this machine's bits. Raises EngineError if rows influence one another."""
    state = hashlib.blake2b(digest_size=4)
    for many, few in zip(_probe(64), _probe(1), strict=True):
        if not torch.equal(many[:, :1], few):
            raise errors.EngineError("this machine's kernels give one row other bits than many: use numeric class f32")
        state.update(many.contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _probe(row_count: int) -> list[torch.Tensor]:
    """Each kernel over the first `row_count` of the same rows; results are [block, row, ...]."""
    numbers = (torch.arange(3 * 64 * 64) * 2654435761 % 65521).float().view(3, 64, 64) / 32768 - 1
    rows, keys = numbers[:, :row_count] * 3, numbers.flip(0).repeat(1, 2, 1).bfloat16()
    scores = torch.bmm(rows.bfloat16(), keys.transpose(1, 2)).float()  # [block, row, slot]
    chances = (scores - scores.amax(-1, keepdim=True)).exp_()
    mixed = torch.bmm(chances.bfloat16(), keys).float()
    flat = rows.reshape(-1, 64).contiguous()
    turned = torch.view_as_complex(flat.unflatten(1, (-1, 2))) * torch.complex(flat[:, :32], flat[:, 32:])
    matrix = weights.quantised(numbers[0])
    _check_integers(flat, matrix)
    others = [
        inverse_rms(flat, 1e-5),
        functional.silu(flat),
        torch.view_as_real(turned).flatten(1),
        linear(flat, matrix, 1e-5),
    ]
    return [scores, chances.sum(-1), mixed, *(other.view(3, row_count, -1) for other in others)]


def _check_integers(rows: torch.Tensor, matrix: weights.Matrix) -> None:
    """Old instruction sets saturate sums of int8 products at 16 bits; then nothing here is true."""
    left = (rows * 127 / rows.abs().amax()).to(torch.int8)
    right = (torch.sign(left[:1]) * 127).expand(8, -1).contiguous()
    for other in (matrix.turned, right.t()):
        if not torch.equal(torch._int_mm(left, other).long(), left.long() @ other.long()):
            raise errors.EngineError("this machine's int8 products are not exact: use numeric class f32")
