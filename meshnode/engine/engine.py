"""The engine: sessions over the model and its memory. Synchronous; host.py stands it behind the async port.

The idea: a work becomes a *job*. `advance` admits waiting jobs (memory.py), asks the batcher which rows run, runs them
in one forward pass, and returns what ended by that. So a job joins and leaves between two passes, and nothing that is
long holds up what is short. `step` does it until a whole batch is through. What goes wrong with one session is its
answer, as a value; the others never notice.

`Work.position` cuts the session first, so a caller whose step was lost repeats it and gets the same bits. A job that
is withdrawn leaves what it had so far in the session, which is a shorter prefix of the same and no harm.

A job that finds memory full waits, since another may end; those behind it that need a page wait as well, so that it
gets its turn. After PATIENCE_PASSES it may take the memory of sessions that are between two tokens; if that is not
enough and nobody runs, it is refused.

Refused: context overflow, full memory, logits that are not finite (the session is dropped: its KV cannot be trusted).
Rejected: one forward pass a session (decode of eight sessions costs eight times the weights' memory traffic).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode import errors, ids, ports
from meshnode.engine import batcher, drawing, grammar, memory, pages, prefix, recipes, sampler

PATIENCE_PASSES = 64
"""So many passes a job waits for memory before a session in the middle of an answer has to make room for it. More: new
sessions wait longer when memory is short. Fewer: two that do not fit together are read and written more than they run.
"""

Answer = ports.Answer | errors.EngineError


@dataclass(slots=True)
class _Job:
    """A work, and how much of its feed is in the session."""

    work: ports.Work
    done_count: int = 0
    waited_passes: int = 0
    """For memory."""

    def left_count(self) -> int:
        return len(self.work.feed) - self.done_count


class TorchEngine:
    """Sessions, KV memory and a model. Every method blocks; call it from one thread at a time."""

    def __init__(
        self,
        recipe: recipes.Recipe,
        *,
        name: str,
        digest: ids.Digest,
        grammars: grammar.Grammars | None = None,
        spill: memory.Spill | None = None,
        limits: batcher.Limits | None = None,
        idle_bytes_max: int | None = None,
    ) -> None:
        """Without `spill`, sessions that do not fit are refused; without `grammars`, answers that shall follow one.
        `idle_bytes_max` bounds the pages that are kept for nobody in particular; None keeps them until memory is
        wanted."""
        of = recipe.shape
        self._pool = recipe.pool
        self._llama = recipe.model
        self._drawer = drawing.Drawer(grammars)
        self.grammars = grammars
        """Knows the tokens' bytes."""
        self.card = ports.EngineCard(
            model=name,
            model_digest=digest,
            numeric_class=recipe.numeric_class,
            page_tokens=pages.PAGE_TOKENS,
            page_bytes=self._pool.page_bytes,
            context_tokens_max=of.context_tokens_max,
            vocabulary=of.vocabulary,
            eos=of.eos,
        )
        names = prefix.Names(digest, self.card.numeric_class)
        idle_max = None if idle_bytes_max is None else idle_bytes_max // self._pool.page_bytes
        self._memory = memory.Memory(self._pool, names, spill=spill, idle_pages_max=idle_max)
        self.batcher = batcher.Batcher[ids.SessionId](limits)
        self._count = 0
        self._waiting: dict[int, _Job] = {}
        """Not admitted yet, in the order in which they came."""
        self._running: dict[int, _Job] = {}
        """Admitted: the batcher has them, and their pages are safe. One for each session at most."""
        self._returning: set[ids.SessionId] = set()
        """Sessions that are read back, a few pages in each visit of the admission."""
        self._ended: dict[int, Answer] = {}
        """For the next `advance` to return."""
        self._pass_count = self._computed = self._reused = 0
        self.pass_us = 0
        """What the model's part of the last pass took. Whoever lives in real time tells the batcher."""

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        digest: ids.Digest,
        numeric_class: str,
        memory_bytes: int,
        threads: int = 2,
        spill: memory.Spill | None = None,
        limits: batcher.Limits | None = None,
    ) -> TorchEngine:
        """From a converted model's folder. The first start of an exact class packs the weights beside it.

        `memory_bytes` is for KV alone. Raises ConfigError, StoreError or EngineError.
        """
        limits = limits or batcher.Limits()
        recipe = recipes.load(folder, numeric_class, memory_bytes, threads=threads, rows_max=limits.rows_max)
        grammars = grammar.Grammars.load(folder, recipe.shape.vocabulary, recipe.shape.eos)
        return cls(recipe, name=name, digest=digest, grammars=grammars, spill=spill, limits=limits)

    # ----------------------------------------------------------------------------------------------------------- jobs

    def post(self, work: ports.Work) -> int:
        """A new job's number. It waits for an earlier one of its session."""
        self._count += 1
        self._waiting[self._count] = _Job(work)
        return self._count

    def withdraw(self, number: int) -> None:
        """A job that nobody waits for any more. Ended ones are fine."""
        self._waiting.pop(number, None)
        self._running.pop(number, None)
        self._ended.pop(number, None)
        self.batcher.remove(number)

    def busy(self) -> bool:
        """Whether `advance` would do anything."""
        return bool(self._waiting or self._running or self._ended)

    def advance(self) -> dict[int, Answer]:
        """One pass; the answers of the jobs that ended."""
        self._admit_all()
        if shares := self.batcher.next():
            self._pass(shares)
        ended, self._ended = self._ended, {}
        return ended

    def step(self, batch: Sequence[ports.Work]) -> list[Answer]:
        """All of a batch. One answer a work: the drawn token, None if none was asked for, or the error that is this
        session's alone."""
        assert len({work.session for work in batch}) == len(batch), "a session appears twice in one step"
        numbers = [self.post(work) for work in batch]
        answers: dict[int, Answer] = {}
        while self.busy():
            answers |= self.advance()
        return [answers[number] for number in numbers]

    # -------------------------------------------------------------------------------------------------------- sessions

    def export(self, session: ids.SessionId, page_index: int) -> bytes:
        return self._memory.export(session, page_index)

    def restore(
        self, session: ids.SessionId, tokens: Sequence[int], pages_bytes: Sequence[bytes], *, domain: bytes = b""
    ) -> int:
        """A bad page leaves the session as it was; full memory loses it."""
        if len(tokens) > self.card.context_tokens_max:
            raise errors.EngineError(f"{len(tokens)} tokens exceed the context of {self.card.context_tokens_max}")
        if len(pages_bytes) * pages.PAGE_TOKENS > len(tokens):
            raise errors.EngineError(f"{len(pages_bytes)} pages hold more than {len(tokens)} tokens")
        self._check_vocabulary(tokens)
        self._end_jobs(session, "the session was restored anew")
        return self._memory.restore(session, tokens, pages_bytes, domain=domain, busy=self._busy_sessions())

    def drop(self, session: ids.SessionId) -> None:
        self._end_jobs(session, "the session was dropped")
        self.batcher.rests(session)
        self._memory.drop(session)
        self._drawer.forget(session)

    def memory_free(self) -> int:
        """Pages kept for whoever comes count as free: they go when they are wanted."""
        return self._memory.room() * self._pool.page_bytes

    def statistics(self) -> ports.EngineStatistics:
        return ports.EngineStatistics(
            self._pass_count, self._computed, self._reused, self._memory.idle_count(), self._memory.spill_count
        )

    # --------------------------------------------------------------------------------------------------------- inside

    def _admit_all(self) -> None:
        """Whoever waits and may, in order. Behind one that waits for memory, only those that need none may."""
        self._returning.clear()
        taken = self._busy_sessions()
        short = False
        for number, job in list(self._waiting.items()):
            work = job.work
            end = work.position + len(work.feed)
            if work.session in taken or (short and self._memory.grows(work.session, end)):
                taken.add(work.session)
                continue
            try:
                self._admit(job)
            except memory.Coming:  # some pages in each visit, so nobody has to wait for it, nor may take them again
                self._returning.add(work.session)
                taken.add(work.session)
                continue
            except memory.Full as full:
                if self._running or self._returning or job.waited_passes < PATIENCE_PASSES:
                    short = True
                    job.waited_passes += 1
                    taken.add(work.session)
                    continue
                self._ended[number] = full
            except errors.EngineError as error:
                self._ended[number] = error
            else:
                if job.left_count():
                    self._running[number] = job
                    self.batcher.add(number, work.session, job.left_count())
                else:
                    self._ended[number] = None
                taken.add(work.session)
            del self._waiting[number]

    def _admit(self, job: _Job) -> None:
        """Check the work, cut its session to the position, and make room. Raises EngineError."""
        work = job.work
        if not work.feed and work.sampling:
            raise errors.EngineError("a token is drawn from what was fed, and nothing was")
        self._check_vocabulary(work.feed)
        token_count = work.position + len(work.feed)
        if token_count > self.card.context_tokens_max:
            raise errors.EngineError(f"{token_count} tokens exceed the context of {self.card.context_tokens_max}")
        try:
            job.done_count = self._room_for(job)
        except memory.Lost as lost:
            feed = lost.tokens + work.feed
            job.work = dataclasses.replace(work, position=work.position - len(lost.tokens), feed=feed)
            job.done_count = self._room_for(job)
        self._reused += job.done_count

    def _room_for(self, job: _Job) -> int:
        work, busy = job.work, self._busy_sessions()
        if job.waited_passes < PATIENCE_PASSES:
            busy |= self.batcher.streams()
        draws = work.sampling is not None
        return self._memory.admit(work.session, work.position, work.feed, draws=draws, domain=work.domain, busy=busy)

    def _check_vocabulary(self, tokens: Sequence[int]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.card.vocabulary:
            raise errors.EngineError(f"a token is outside the vocabulary of {self.card.vocabulary}")

    def _busy_sessions(self) -> set[ids.SessionId]:
        return {job.work.session for job in self._running.values()} | self._returning

    def _end_jobs(self, session: ids.SessionId, why: str) -> None:
        for number, job in [*self._waiting.items(), *self._running.items()]:
            if job.work.session == session:
                self.withdraw(number)
                self._ended[number] = errors.EngineError(f"{why} while a step of it was waiting")

    def _pass(self, shares: Sequence[batcher.Share]) -> None:
        """Run these rows, and end the jobs whose last ones are among them."""
        segments: list[pages.Segment] = []
        drawing: list[tuple[_Job, int]] = []
        row = 0
        for share in shares:
            job = self._running[share.job]
            work, position = job.work, job.work.position + job.done_count
            tokens = work.feed[job.done_count : job.done_count + share.rows]
            table = self._memory.table(work.session, position + share.rows)
            segments.append(pages.Segment(row, tokens, position, table))
            row += share.rows
            job.done_count += share.rows
            if not job.left_count() and work.sampling:
                drawing.append((job, row - 1))
        started = time.perf_counter()
        logits = self._llama.forward(segments, [last for _, last in drawing])
        self.pass_us = int((time.perf_counter() - started) * 1e6)
        self._pass_count += 1
        self._computed += row
        for share, segment in zip(shares, segments, strict=True):
            self._memory.fed(self._running[share.job].work.session, segment.tokens)
        drawn = {id(job): self._draw(job, logits[number]) for number, (job, _) in enumerate(drawing)}
        for share in shares:
            job = self._running[share.job]
            if not job.left_count():
                del self._running[share.job]
                self._ended[share.job] = drawn.get(id(job))

    def _draw(self, job: _Job, logits: Any) -> Answer:
        """The next token of a session, whose tokens so far are `self._memory.tokens(session)`."""
        work = job.work
        assert work.sampling is not None
        try:
            tokens = self._memory.tokens(work.session)
            answer = self._drawer.draw(work.session, logits, work.sampling, tokens, work.answer_from)
        except sampler.NotFinite as error:
            self._memory.poisoned(work.session)
            return error
        except errors.EngineError as error:
            return error
        token = answer.token if isinstance(answer, ports.Drawn) else answer
        if token in self.card.eos:
            self.batcher.rests(work.session)
        return answer
