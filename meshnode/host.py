"""The engine's thread: torch behind the async Engine port.

    async with host.opened(installed.folder, name=..., digest=..., memory_bytes=1 << 30) as engine:
        [token] = await engine.step([ports.Work(session, 0, feed, ports.Sampling())])

The idea: one thread does everything that touches torch, so nothing there needs a lock. Calls of different sessions
that wait while a step runs are joined into the next step: under load the batch grows by itself, without a timer, and a
lone caller never waits for company. Each caller gets its own answers; what failed for one session is raised to the
caller of that session alone.

Cancellation: a caller that is cancelled while waiting leaves the queue; one whose step is running loses the answer, but
the step is finished in the thread before anything else starts, so the session's KV is never half written. Since
`Work.position` cuts, such a caller just asks again.

This file imports torch's engine when an engine is opened and not before: commands that host nothing start quickly.
Rejected: a child process (pages of 700 KB through a pipe; the port would allow it); a thread a session (torch's own
threads would fight for two cores).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from meshnode import errors, ids, options, ports

if TYPE_CHECKING:
    from meshnode.engine import engine as torch_engine

BATCH_SESSIONS_MAX = 64
"""Sessions joined into one step. More: a lone decode waits longer for its neighbours. Fewer: less throughput."""

CHECK_S = 5.0
"""For one grammar, the wait behind others included. More: a client waits longer for its refusal."""

Result = TypeVar("Result")


class _Call:
    """One waiting `step`: the works of one caller, and where the answers go."""

    def __init__(self, batch: Sequence[ports.Work]) -> None:
        self.batch = tuple(batch)
        self.done = trio.Event()
        self.answers: list[torch_engine.Answer] = []
        self.abandoned = False


class ThreadEngine:
    """The Engine port over a TorchEngine. Made by `opened`, which runs its `serve` for as long as it is open."""

    def __init__(self, inner: torch_engine.TorchEngine) -> None:
        self.card = inner.card
        self._inner = inner
        self._thread = trio.CapacityLimiter(1)
        self._compiling = trio.CapacityLimiter(1)
        # Bounded by the callers: each waits for its own call, and puts in one at a time.
        self._calls_in, self._calls_out = trio.open_memory_channel[_Call](math.inf)
        self._held_over: _Call | None = None
        self._memory_free = inner.memory_free()

    async def step(self, batch: Sequence[ports.Work]) -> list[ports.Answer]:
        """See ports.Engine. If one of several works fails, the others are done, and may be repeated at no harm."""
        await self._compile(batch)
        call = _Call(batch)
        self._calls_in.send_nowait(call)
        try:
            await call.done.wait()
        finally:
            call.abandoned = True
        failed = [answer for answer in call.answers if isinstance(answer, errors.EngineError)]
        if failed:
            raise failed[0]
        return [answer for answer in call.answers if not isinstance(answer, errors.EngineError)]

    async def export(self, session: ids.SessionId, page_index: int) -> bytes:
        return await self._run(lambda: self._inner.export(session, page_index))

    async def restore(self, session: ids.SessionId, tokens: Sequence[int], pages: Sequence[bytes]) -> int:
        return await self._run(lambda: self._inner.restore(session, tokens, pages))

    async def drop(self, session: ids.SessionId) -> None:
        await self._run(lambda: self._inner.drop(session))

    async def check(self, grammar: options.Grammar) -> None:
        """See ports.Grammars. In a thread of its own: neither steps nor heartbeats wait for a stranger's grammar. One
        at a time; the library's limits end it in milliseconds, and what is left of a doubt is ended by the clock."""
        grammars = self._inner.grammars
        if grammars is None:
            raise errors.EngineError("grammar: this engine has no vocabulary to hold to one")
        with trio.move_on_after(CHECK_S):
            await trio.to_thread.run_sync(grammars.check, grammar, limiter=self._compiling, abandon_on_cancel=True)
            return
        raise errors.EngineError(f"grammar: to read it takes more than {CHECK_S:g} s")

    async def _compile(self, batch: Sequence[ports.Work]) -> None:
        """Grammars that this engine has not seen: a session came from another host, with its answer half said."""
        for work in batch:
            wanted = work.sampling.grammar if work.sampling is not None else None
            if wanted is not None and self._inner.grammars is not None and not self._inner.grammars.known(wanted):
                with contextlib.suppress(errors.EngineError):  # the step says it to whom it concerns
                    await self.check(wanted)

    def memory_free(self) -> int:
        """As of the last call that ended: the thread may be taking some right now."""
        return self._memory_free

    async def serve(self) -> None:
        """Join waiting calls into steps until cancelled."""
        while True:
            calls = self._joined(await self._next())
            if not calls:
                continue
            batch = [work for call in calls for work in call.batch]
            answers = await self._run(lambda batch=batch: self._inner.step(batch))  # type: ignore[misc]
            for call in calls:
                call.answers, answers = answers[: len(call.batch)], answers[len(call.batch) :]
                call.done.set()

    async def _next(self) -> _Call:
        if held := self._held_over:
            self._held_over = None
            return held
        return await self._calls_out.receive()

    def _joined(self, first: _Call) -> list[_Call]:
        """This call and all that wait behind it, up to the first that would bring a session in twice."""
        calls: list[_Call] = []
        sessions: set[ids.SessionId] = set()
        call: _Call | None = first
        while call:
            names = {work.session for work in call.batch}
            if calls and (names & sessions or len(sessions) + len(names) > BATCH_SESSIONS_MAX):
                self._held_over = call
                break
            if not call.abandoned:
                calls.append(call)
                sessions |= names
            call = self._waiting()
        return calls

    def _waiting(self) -> _Call | None:
        try:
            return self._calls_out.receive_nowait()
        except trio.WouldBlock:
            return None

    async def _run(self, work: Callable[[], Result]) -> Result:
        """In the thread, one at a time. Not abandoned on cancel: whoever comes next must find the pool at rest."""

        def told() -> tuple[Result, int]:
            return work(), self._inner.memory_free()

        result, self._memory_free = await trio.to_thread.run_sync(told, limiter=self._thread)
        return result


@contextlib.asynccontextmanager
async def running(inner: torch_engine.TorchEngine) -> AsyncIterator[ThreadEngine]:
    """An engine that exists already, behind the port for as long as the block lasts."""
    engine = ThreadEngine(inner)
    async with trio.open_nursery() as hands:
        hands.start_soon(engine.serve)
        yield engine
        hands.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def opened(
    folder: Path,
    *,
    name: str,
    digest: ids.Digest,
    numeric_class: str = "w8",
    memory_bytes: int = 1 << 30,
    threads: int = 2,
) -> AsyncIterator[ThreadEngine]:
    """Load a converted model and serve it.

    `folder`, `name` and `digest` are those of `models.store.Installed`. `memory_bytes` is for KV alone (23 KB a token
    for the 135M model). `threads` is torch's, for the whole process: 1, 2 or 4 for exact classes. Raises ConfigError,
    StoreError or EngineError.
    """

    def load() -> torch_engine.TorchEngine:
        # A thread of torch's that waits for the other one spins, by default, for milliseconds; on a machine with other
        # work that keeps the awaited one from its core, and a step of 240 waits took 1.7 s instead of 0.04. This must
        # be said before torch loads its OpenMP.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        from meshnode.engine import arithmetic
        from meshnode.engine import engine as torch_engine

        if numeric_class != "f32" and threads not in arithmetic.THREAD_COUNTS:
            raise errors.ConfigError(f"{threads} threads do not keep a row's bits", hint="use 1, 2 or 4")
        torch.set_num_threads(threads)
        return torch_engine.TorchEngine.load(
            folder, name=name, digest=digest, numeric_class=numeric_class, memory_bytes=memory_bytes
        )

    inner = await trio.to_thread.run_sync(load)
    async with running(inner) as engine:
        yield engine
