"""The Engine port over hashes (hashing.py), for tests that run on trio: the same arithmetic, and its costs slept.

Under a MockClock the delays cost nothing; at 0 a step is only a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from meshnode import errors, ids, options, ports
from meshnode.sim import hashing


class HashEngine:
    """As HashCore, and every call is a checkpoint."""

    def __init__(self, *, prefill_s_per_token: float = 0.0, decode_s_per_token: float = 0.0, **card: Any) -> None:
        """`card`: as HashCore takes it."""
        self.core = hashing.HashCore(**card)
        self.card = self.core.card
        self._prefill_s_per_token = prefill_s_per_token
        self._decode_s_per_token = decode_s_per_token

    async def step(self, batch: Sequence[ports.Work]) -> list[ports.Answer]:
        await self._spend(batch)
        answers: list[ports.Answer] = []
        fault: errors.EngineError | None = None
        for work in batch:
            try:
                answers.append(self.core.advance(work))
            except errors.EngineError as error:
                fault = error
        if fault:
            raise fault
        return answers

    async def _spend(self, batch: Sequence[ports.Work]) -> None:
        seconds = sum(map(self.core.cost_tokens, batch)) * self._prefill_s_per_token
        if any(work.feed for work in batch):
            seconds += self._decode_s_per_token  # one step's time, however many sessions share it
        await trio.sleep(seconds)

    async def export(self, session: ids.SessionId, page_index: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.core.export(session, page_index)

    async def restore(
        self, session: ids.SessionId, tokens: Sequence[int], pages: Sequence[bytes], *, domain: bytes = b""
    ) -> int:
        await trio.lowlevel.checkpoint()
        return self.core.restore(session, tokens, pages, domain)

    async def drop(self, session: ids.SessionId) -> None:
        await trio.lowlevel.checkpoint()
        self.core.drop(session)

    async def check(self, grammar: options.Grammar) -> None:
        await trio.lowlevel.checkpoint()
        self.core.check(grammar)

    def statistics(self) -> ports.EngineStatistics:
        return self.core.statistics()

    def memory_free(self) -> int:
        return self.core.memory_free()

    def context(self, session: ids.SessionId) -> tuple[int, ...]:
        """What the engine holds of a session: for checkers, not part of the port."""
        return tuple(self.core.contexts.get(session, []))
