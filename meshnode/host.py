"""The engine's thread: torch behind the async Engine port.

    async with host.opened(installed.folder, name=..., digest=..., memory_bytes=1 << 30) as engine:
        [token] = await engine.step([ports.Work(session, 0, feed, ports.Sampling())])

The idea: one thread does everything that touches torch, so nothing there needs a lock. It runs one pass at a time;
calls that came meanwhile are in the next one, and calls that ended leave. Under load the passes grow by themselves,
without a timer, and a lone caller never waits for company, nor for the end of somebody's long prompt. Each caller gets
its own answers; what failed for one session is raised to the caller of that session alone.

Cancellation: a caller that is cancelled loses the answer. If its rows are in a pass, that is finished in the thread
before anything else starts, so the session's KV is never half written; what is left of its work does not run. Since
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

REST_S = 0.25
"""Without a call for so long, nobody is between two tokens. Longer: the first passes of a prompt that comes then are
short for nothing. Shorter: a stream over a slow disk or network finds a long pass in its way."""
STRAGGLE_STEPS = 0.25
"""For how much of a step those that are here wait for streams that were in the last one. More: lost whenever one of
them is over. Less: streams fall into two groups that wait for each other, and each pass carries half of them."""
STRAGGLE_S_MAX = 0.01
"""At most so long. Longer than an answer's way through the log on a common disk, it only helps those who are lost."""

CHECK_S = 5.0
"""For one grammar, the wait behind others included. More: a client waits longer for its refusal."""

Result = TypeVar("Result")


class _Call:
    """One waiting `step`: the works of one caller, and where the answers go."""

    def __init__(self, batch: Sequence[ports.Work]) -> None:
        self.batch = tuple(batch)
        self.numbers: list[int] = []
        """Of the engine's jobs, one a work, once it was posted."""
        self.answers: dict[int, torch_engine.Answer] = {}
        """By number."""
        self.done = trio.Event()
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
        self._open: list[_Call] = []
        """Posted, and not answered."""
        self._due: set[ids.SessionId] = set()
        """Streams of the last pass. Set in the thread, and only while `serve` waits for it."""
        self._straggle_s = 0.0
        """For how long they are waited for; the same."""
        self._memory_free = inner.memory_free()

    async def step(self, batch: Sequence[ports.Work]) -> list[ports.Answer]:
        """See ports.Engine. If one of several works fails, the others are done, and may be repeated at no harm."""
        assert batch, "a step of nothing has no answer"
        await self._compile(batch)
        call = _Call(batch)
        self._calls_in.send_nowait(call)
        try:
            await call.done.wait()
        finally:
            call.abandoned = True
        answers = [call.answers[number] for number in call.numbers]
        for answer in answers:
            if isinstance(answer, errors.EngineError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, errors.EngineError)]

    async def export(self, session: ids.SessionId, page_index: int) -> bytes:
        return await self._run(lambda: self._inner.export(session, page_index))

    async def restore(
        self, session: ids.SessionId, tokens: Sequence[int], pages: Sequence[bytes], *, domain: bytes = b""
    ) -> int:
        return await self._run(lambda: self._inner.restore(session, tokens, pages, domain=domain))

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

    def statistics(self) -> ports.EngineStatistics:
        return self._inner.statistics()

    async def serve(self) -> None:
        """Run passes until cancelled, as long as there is anybody to run them for."""
        while True:
            calls = [] if self._open else [await self._first()]
            calls += self._waiting()
            calls += await self._stragglers(calls)
            fresh = [call for call in calls if not call.abandoned]
            gone = [call for call in self._open if call.abandoned]
            self._open = [call for call in [*self._open, *fresh] if not call.abandoned]
            if fresh or gone or self._open:
                answers = await self._run(lambda fresh=fresh, gone=gone: self._pass(fresh, gone))  # type: ignore[misc]
                self._answer(answers)

    async def _first(self) -> _Call:
        """The next call. The engine is at rest meanwhile."""
        with trio.move_on_after(REST_S):
            return await self._calls_out.receive()
        await self._run(self._inner.batcher.all_rest)
        return await self._calls_out.receive()

    async def _stragglers(self, calls: Sequence[_Call]) -> list[_Call]:
        """Streams of the last pass that are on their way back: worth a wait that is short against a pass."""
        missing = self._due - {work.session for call in calls for work in call.batch}
        found: list[_Call] = []
        with trio.move_on_after(self._straggle_s):
            while missing:
                found.append(await self._calls_out.receive())
                missing -= {work.session for work in found[-1].batch}
        return found

    def _waiting(self) -> list[_Call]:
        calls: list[_Call] = []
        with contextlib.suppress(trio.WouldBlock):
            while True:
                calls.append(self._calls_out.receive_nowait())
        return calls

    def _pass(self, fresh: list[_Call], gone: list[_Call]) -> dict[int, torch_engine.Answer]:
        """In the thread: calls that were given up leave, new ones join, one pass runs."""
        for call in gone:
            for number in call.numbers:
                self._inner.withdraw(number)
        for call in fresh:
            call.numbers = [self._inner.post(work) for work in call.batch]
        before = self._inner.statistics().pass_count
        answers = self._inner.advance()
        if self._inner.statistics().pass_count > before:
            self._inner.batcher.measured(self._inner.pass_us)
        self._due = self._inner.batcher.expected()
        self._straggle_s = min(STRAGGLE_S_MAX, self._inner.batcher.step_us * STRAGGLE_STEPS / 1e6)
        return answers

    def _answer(self, answers: dict[int, torch_engine.Answer]) -> None:
        for call in self._open:
            call.answers |= {number: answers[number] for number in call.numbers if number in answers}
            if len(call.answers) == len(call.batch):
                call.done.set()
        self._open = [call for call in self._open if not call.done.is_set()]

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
    spill_folder: Path | None = None,
    spill_bytes: int = 0,
) -> AsyncIterator[ThreadEngine]:
    """Load a converted model and serve it.

    `folder`, `name` and `digest` are those of `models.store.Installed`. `memory_bytes` is for KV alone (23 KB a token
    for the 135M model). `threads` compute a step together. Sessions that do not fit into memory wait in `spill_folder`,
    which is emptied first; without one they are refused. Raises ConfigError,
    StoreError or EngineError.
    """

    def load() -> torch_engine.TorchEngine:
        # A thread of torch's that waits for the other one spins, by default, for milliseconds; on a machine with other
        # work that keeps the awaited one from its core, and a step of 240 waits took 1.7 s instead of 0.04. This must
        # be said before torch loads its OpenMP.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from meshnode.engine import engine as torch_engine
        from meshnode.engine import spill

        return torch_engine.TorchEngine.load(
            folder,
            name=name,
            digest=digest,
            numeric_class=numeric_class,
            memory_bytes=memory_bytes,
            threads=threads,
            spill=spill.FolderSpill(spill_folder, spill_bytes) if spill_folder and spill_bytes else None,
        )

    inner = await trio.to_thread.run_sync(load)
    async with running(inner) as engine:
        yield engine
