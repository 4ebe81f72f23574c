"""KV memory: one tensor for all sessions, and pages of it as bytes.

The idea: attention reads [block, head, slot, dim], so that (block, head) is one batch dimension without a copy; the
wire and the disk see [layer][k|v][slot][head][dim], token by token, which is what later formats and other engines can
read. The change of order is paid at export and restore, once a page.

Refused: a page of the wrong size, and numbers that are not finite: one stranger's infinity would be multiplied by a
masked zero and poison a session. For the same reason a block is zeroed when it is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from meshnode import errors
from meshnode.engine import pages


class Pool:
    """Blocks of keys and values, and who may still have one (`blocks`)."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, memory_bytes: int) -> None:
        self._page_shape = (layers, 2, pages.PAGE_TOKENS, kv_heads, head_dim)
        self.page_bytes = layers * 2 * pages.PAGE_TOKENS * kv_heads * head_dim * dtype.itemsize
        block_count = memory_bytes // (self.page_bytes * pages.BLOCK_PAGES)
        if block_count < 1:
            least = self.page_bytes * pages.BLOCK_PAGES
            raise errors.ConfigError(
                f"{memory_bytes} bytes of KV memory are too few", hint=f"at least {least} are needed"
            )
        self.data = torch.zeros((layers, 2, block_count, kv_heads, pages.BLOCK_TOKENS, head_dim), dtype=dtype)
        self.blocks = pages.Blocks(block_count)

    def take(self, count: int, after: int | None) -> list[int]:
        taken = self.blocks.take(count, after)
        for block in taken:
            self.data[:, :, block] = 0
        return taken

    def write(
        self, layer: int, block: torch.Tensor, slot: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """One token a row: `block` and `slot` are [row], `keys` and `values` [row, kv_head, dim]."""
        self.data[layer, 0][block, :, slot] = keys.to(self.data.dtype)
        self.data[layer, 1][block, :, slot] = values.to(self.data.dtype)

    def memory_free(self) -> int:
        return self.blocks.free_count * self.page_bytes * pages.BLOCK_PAGES

    def export(self, block: int, page_in_block: int) -> bytes:
        page = self._page(block, page_in_block).transpose(2, 3).contiguous()
        return page.view(torch.uint8).numpy().tobytes()

    def parse(self, page: bytes) -> torch.Tensor:
        """A page's bytes as a tensor in the wire's order. Raises EngineError before anything is changed."""
        if len(page) != self.page_bytes:
            raise errors.EngineError(f"a page has {self.page_bytes} bytes, not {len(page)}")
        found = torch.frombuffer(bytearray(page), dtype=self.data.dtype).view(self._page_shape)
        if not torch.isfinite(found.sum(dtype=torch.float32)):  # cheaper than asking each; a finite page sums finitely
            raise errors.EngineError("a page holds numbers that are not finite")
        return found

    def restore(self, block: int, page_in_block: int, page: torch.Tensor) -> None:
        self._page(block, page_in_block).copy_(page.transpose(2, 3))

    def _page(self, block: int, page_in_block: int) -> torch.Tensor:  # [layer, k|v, head, slot, dim]
        start = page_in_block * pages.PAGE_TOKENS
        return self.data[:, :, block, :, start : start + pages.PAGE_TOKENS]

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
