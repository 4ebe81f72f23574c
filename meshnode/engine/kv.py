"""KV memory of the torch classes, on any device, and pages of it as bytes.

The idea: memory is laid out as the wire is, [page][layer][k|v][slot][head][dim]: a page is one contiguous piece, so
export and restore are a copy, and a page costs one transfer from or to a GPU. Attention gathers a session's pages a
layer at a time (`pieces`); a layer's keys of one page are contiguous, so that is a copy of a few whole runs.

On a CPU memory comes from the system as zeros that nobody has touched yet: a pool of 4 GB costs what was written to it.
(`torch.zeros` writes them all.) One page more than anyone may have is at the end: `scratch` takes the KV of rows that
only fill up a batch of a fixed size.

Refused: a page of the wrong size, and numbers that are not finite: one stranger's infinity would be multiplied by a
masked zero and poison a session. For the same reason a page is zeroed when its first token comes (`begun`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from meshnode import errors
from meshnode.engine import pages


class Pool:
    """Pages of keys and values. Who has which is not known here."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        memory_bytes: int,
        device: str | torch.device = "cpu",
    ) -> None:
        """`memory_bytes` is for pages that sessions may have. Raises ConfigError if that is not even one, or more than
        the device has."""
        self._page_shape = (layers, 2, pages.PAGE_TOKENS, kv_heads, head_dim)
        self.page_bytes = layers * 2 * pages.PAGE_TOKENS * kv_heads * head_dim * dtype.itemsize
        self.page_count = memory_bytes // self.page_bytes
        if self.page_count < 1:
            raise errors.ConfigError(
                f"{memory_bytes} bytes of KV memory are too few", hint=f"at least {self.page_bytes} are needed"
            )
        self.scratch = self.page_count
        """A page that no session has."""
        self.data = _zeros((self.page_count + 1, *self._page_shape), dtype, torch.device(device))
        """[page, layer, k|v, slot, kv_head, dim]; the last page is `scratch`."""
        self.slots = self.data.view(-1, kv_heads * head_dim)
        """The same memory, [page * layer * k|v * slot, kv_head * dim]: where a row's keys or values go."""
        self.pieces = self.data.view(self.data.shape[0] * layers * 2, -1)
        """The same memory, [page * layer * k|v, slot * kv_head * dim]: what attention reads of a page."""
        pinned = self.data.device.type == "cuda"
        # The GPU writes into pinned memory by itself; into other memory the driver would copy through some of its own.
        self._stage = torch.empty(self._page_shape, dtype=dtype, pin_memory=True) if pinned else None

    def export(self, page: int) -> bytes:
        """Waits for the device."""
        assert 0 <= page < self.page_count
        found = self.data[page] if self._stage is None else self._stage.copy_(self.data[page])
        return found.view(torch.uint8).numpy().tobytes()

    def parse(self, page: bytes) -> torch.Tensor:  # [layer, k|v, slot, kv_head, dim]
        """A page's bytes, in the host's memory. Raises EngineError before anything is changed."""
        if len(page) != self.page_bytes:
            raise errors.EngineError(f"a page has {self.page_bytes} bytes, not {len(page)}")
        found = torch.frombuffer(bytearray(page), dtype=self.data.dtype).view(self._page_shape)
        if not torch.isfinite(found.sum(dtype=torch.float32)):  # cheaper than asking each; a finite page sums finitely
            raise errors.EngineError("a page holds numbers that are not finite")
        return found if self._stage is None else found.pin_memory()

    def restore(self, page: int, parsed: torch.Tensor) -> None:
        assert 0 <= page < self.page_count
        # Does not wait: what reads the page comes later on the same stream, and torch keeps pinned memory until then.
        self.data[page].copy_(parsed, non_blocking=True)

    def copy(self, source: int, target: int) -> None:
        assert 0 <= target < self.page_count
        self.data[target].copy_(self.data[source])

    def clear(self, taken: Sequence[int]) -> None:
        for page in taken:
            self.data[page].zero_()


def begun(segments: Sequence[pages.Segment]) -> list[int]:
    """Pages that get their first token in this pass, and not their last.

    Attention reads whole pages and masks what is not written yet; a NaN that somebody left there outlives the mask.
    """
    found = []
    for one in segments:
        end = one.position + len(one.tokens)
        if end % pages.PAGE_TOKENS and end - end % pages.PAGE_TOKENS >= one.position:
            found.append(one.pages[end // pages.PAGE_TOKENS])
    return found


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    size_bytes = torch.Size(size).numel() * dtype.itemsize
    try:
        if device.type != "cpu":
            return torch.zeros(size, dtype=dtype, device=device)
        return torch.from_numpy(numpy.zeros(size_bytes, dtype=numpy.uint8)).view(dtype).view(size)
    except (MemoryError, torch.OutOfMemoryError):
        raise errors.ConfigError(
            f"{device.type} has no {size_bytes} bytes for KV memory", hint="ask for less: memory_mib"
        ) from None
