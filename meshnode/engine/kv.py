"""KV memory: one tensor for all sessions, and pages of it as bytes.

The idea: attention reads [page, head, slot, dim] (a block is a page), so that (page, head) is one batch dimension
without a copy; the wire and the disk see [layer][k|v][slot][head][dim], token by token, which is what later formats and
other engines can read. The change of order is paid at export and restore, once a page.

Refused: a page of the wrong size, and numbers that are not finite: one stranger's infinity would be multiplied by a
masked zero and poison a session. For the same reason a page is cleared when it is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from meshnode import errors
from meshnode.engine import pages


class Pool:
    """Pages of keys and values; who holds which is not known here (memory.py)."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, memory_bytes: int) -> None:
        self._page_shape = (layers, 2, pages.PAGE_TOKENS, kv_heads, head_dim)
        self.page_bytes = layers * 2 * pages.PAGE_TOKENS * kv_heads * head_dim * dtype.itemsize
        self.page_count = memory_bytes // self.page_bytes
        if self.page_count < 1:
            raise errors.ConfigError(
                f"{memory_bytes} bytes of KV memory are too few", hint=f"at least {self.page_bytes} are needed"
            )
        self.data = torch.zeros((layers, 2, self.page_count, kv_heads, pages.PAGE_TOKENS, head_dim), dtype=dtype)

    def clear(self, taken: Sequence[int]) -> None:
        """Before a session writes into pages that were somebody else's."""
        for page in taken:
            self.data[:, :, page] = 0

    def copy(self, source: int, target: int) -> None:
        self.data[:, :, target] = self.data[:, :, source]

    def write(
        self, layer: int, block: torch.Tensor, slot: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """One token a row: `block` and `slot` are [row], `keys` and `values` [row, kv_head, dim]."""
        self.data[layer, 0][block, :, slot] = keys.to(self.data.dtype)
        self.data[layer, 1][block, :, slot] = values.to(self.data.dtype)

    def export(self, page: int) -> bytes:
        return self.data[:, :, page].transpose(2, 3).contiguous().view(torch.uint8).numpy().tobytes()

    def parse(self, page: bytes) -> torch.Tensor:
        """A page's bytes as a tensor in the wire's order. Raises EngineError before anything is changed."""
        if len(page) != self.page_bytes:
            raise errors.EngineError(f"a page has {self.page_bytes} bytes, not {len(page)}")
        found = torch.frombuffer(bytearray(page), dtype=self.data.dtype).view(self._page_shape)
        if not torch.isfinite(found.sum(dtype=torch.float32)):  # cheaper than asking each; a finite page sums finitely
            raise errors.EngineError("a page holds numbers that are not finite")
        return found

    def restore(self, page: int, parsed: torch.Tensor) -> None:
        self.data[:, :, page].copy_(parsed.transpose(2, 3))

    def select(self, blocks: Sequence[int]) -> list[torch.Tensor]:
        """All layers' keys and values of some blocks, each [block * head, slot, dim]: k of layer 0, v of layer 0, ...

        Views if the blocks are neighbours. Others are not gathered here, which would copy all layers at once.
        """
        assert neighbours(blocks)
        found = self.data[:, :, blocks[0] : blocks[0] + len(blocks)]
        return list(found.flatten(0, 1).flatten(1, 2).unbind(0))

    def gather(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's keys and values of any blocks, copied, each [block * head, slot, dim]."""
        keys, values = self.data[layer].unbind(0)
        return keys.index_select(0, blocks).flatten(0, 1), values.index_select(0, blocks).flatten(0, 1)

    def slots(self, block: int, slot: int) -> list[torch.Tensor]:
        """All layers' places of one token, each [head, dim]: k of layer 0, v of layer 0, ..."""
        return list(self.data[:, :, block, :, slot].flatten(0, 1).unbind(0))


def neighbours(blocks: Sequence[int]) -> bool:
    return all(after - before == 1 for before, after in itertools.pairwise(blocks))
