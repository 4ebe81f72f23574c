"""The engine: sessions over the model and the pool. Synchronous; host.py stands it behind the async port.

The idea: a step is admitted session by session (position, context, memory), then run in passes of at most ROWS_MAX
rows. Short feeds go first, so that decode rows ride along with the first chunk of somebody's prefill instead of
waiting for all of it. What goes wrong with one session is its answer, as a value; the others never notice.

A session is a list of blocks and a length. `Work.position` cuts the length first, so a caller whose step was lost
repeats it and gets the same bits.

Refused: context overflow, full memory, logits that are not finite (the session is dropped: its KV cannot be trusted).
Rejected: one forward pass a session (decode of eight sessions costs eight times the weights' memory traffic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from meshnode import errors, ids, ports
from meshnode.engine import arithmetic, drawing, grammar, kv, model, pages, sampler, weights

ROWS_MAX = 256
"""Rows in one pass. More: longer waits for decode rows beside a prefill. Fewer: the weights are read more often."""

_DTYPES = {"w8": torch.bfloat16, "f32": torch.float32}
Answer = ports.Answer | errors.EngineError


@dataclass(slots=True)
class _Session:
    blocks: list[int] = field(default_factory=list)
    token_count: int = 0
    """At most `len(blocks) * BLOCK_TOKENS`."""
    tokens: list[int] = field(default_factory=list)
    """What was fed, for penalties and grammars; may run ahead of `token_count` inside a step."""


@dataclass(slots=True)
class _Job:
    """A work that was admitted, and how far it is."""

    index: int
    work: ports.Work
    session: _Session
    done_count: int = 0

    def left_count(self) -> int:
        return len(self.work.feed) - self.done_count


class TorchEngine:
    """Sessions, KV memory and a model. Every method blocks; call it from one thread only."""

    def __init__(
        self,
        of: weights.Shape,
        loaded: weights.Weights,
        *,
        name: str,
        digest: ids.Digest,
        numeric_class: str,
        memory_bytes: int,
        grammars: grammar.Grammars | None = None,
    ) -> None:
        if numeric_class not in _DTYPES:
            raise errors.ConfigError(f"no numeric class {numeric_class!r}", hint=f"known: {', '.join(_DTYPES)}")
        recipe = [numeric_class, torch.__version__.split("+")[0]]
        if numeric_class != "f32":
            recipe.append(arithmetic.fingerprint())
        self._pool = kv.Pool(of.layers, of.kv_heads, of.head_dim, _DTYPES[numeric_class], memory_bytes)
        self._llama = model.Llama(of, loaded, self._pool)
        self._sessions: dict[ids.SessionId, _Session] = {}
        self._drawer = drawing.Drawer(grammars)
        self.grammars = grammars
        """Knows the tokens' bytes; None: no answer can be held to a grammar."""
        self.card = ports.EngineCard(
            model=name,
            model_digest=digest,
            numeric_class="/".join(recipe),
            page_tokens=pages.PAGE_TOKENS,
            page_bytes=self._pool.page_bytes,
            context_tokens_max=of.context_tokens_max,
            vocabulary=of.vocabulary,
            eos=of.eos,
        )

    @classmethod
    def load(cls, folder: Path, *, name: str, digest: ids.Digest, numeric_class: str, memory_bytes: int) -> TorchEngine:
        """From a converted model's folder. The first start with "w8" packs the weights beside it."""
        loaded = weights.load(folder, numeric_class)
        of = weights.shape(folder)
        return cls(
            of,
            loaded,
            name=name,
            digest=digest,
            numeric_class=numeric_class,
            memory_bytes=memory_bytes,
            grammars=grammar.Grammars.load(folder, of.vocabulary, of.eos),
        )

    @torch.inference_mode()
    def step(self, batch: Sequence[ports.Work]) -> list[Answer]:
        """One answer a work: the drawn token, None if none was asked for, or the error that is this session's alone."""
        assert len({work.session for work in batch}) == len(batch), "a session appears twice in one step"
        answers: list[Answer] = [None] * len(batch)
        jobs = []
        for index, work in enumerate(batch):
            try:
                jobs.append(_Job(index, work, self._admit(work)))
            except errors.EngineError as error:
                answers[index] = error
        # Lone rows first, and of these the short contexts: the model attends them together.
        jobs.sort(key=lambda job: (len(job.work.feed), job.work.position))
        waiting = [job for job in jobs if job.work.feed]
        while waiting:
            for job, answer in self._pass(waiting):
                answers[job.index] = answer
            waiting = [job for job in waiting if job.left_count()]
        return answers

    @torch.inference_mode()
    def export(self, session: ids.SessionId, page_index: int) -> bytes:
        known = self._sessions.get(session, _Session())
        if not 0 <= page_index < known.token_count // pages.PAGE_TOKENS:
            raise errors.EngineError(f"page {page_index} is not full: {known.token_count} tokens are here")
        block, page_in_block = divmod(page_index, pages.BLOCK_PAGES)
        return self._pool.export(known.blocks[block], page_in_block)

    @torch.inference_mode()
    def restore(self, session: ids.SessionId, tokens: Sequence[int], pages_bytes: Sequence[bytes]) -> int:
        """All or nothing: a bad page or full memory leaves the session as it was, but for memory, which it may lose."""
        token_count = len(pages_bytes) * pages.PAGE_TOKENS
        if token_count > self.card.context_tokens_max:
            raise errors.EngineError(f"{token_count} tokens exceed the context of {self.card.context_tokens_max}")
        if len(tokens) < token_count:
            raise errors.EngineError(f"{len(pages_bytes)} pages hold more than the {len(tokens)} tokens named")
        parsed = [self._pool.parse(page) for page in pages_bytes]
        known = self._sessions.setdefault(session, _Session())
        known.token_count = 0
        self._resize(known, token_count)
        for page_index, page in enumerate(parsed):
            block, page_in_block = divmod(page_index, pages.BLOCK_PAGES)
            self._pool.restore(known.blocks[block], page_in_block, page)
        known.token_count = token_count
        known.tokens = list(tokens[:token_count])
        return token_count

    def drop(self, session: ids.SessionId) -> None:
        if known := self._sessions.pop(session, None):
            self._pool.blocks.give(known.blocks)
        self._drawer.forget(session)

    def memory_free(self) -> int:
        return self._pool.memory_free()

    def _admit(self, work: ports.Work) -> _Session:
        """Check the work, cut its session to the position, and make room. Raises EngineError."""
        known = self._sessions.get(work.session, _Session())
        if not 0 <= work.position <= known.token_count:
            raise errors.EngineError(f"position {work.position} is beyond the {known.token_count} tokens held")
        if not work.feed and work.sampling:
            raise errors.EngineError("a token is drawn from what was fed, and nothing was")
        if work.feed and not 0 <= min(work.feed) <= max(work.feed) < self.card.vocabulary:
            raise errors.EngineError(f"a token is outside the vocabulary of {self.card.vocabulary}")
        token_count = work.position + len(work.feed)
        if token_count > self.card.context_tokens_max:
            raise errors.EngineError(f"{token_count} tokens exceed the context of {self.card.context_tokens_max}")
        known.token_count = work.position
        self._resize(known, token_count)
        known.tokens[work.position :] = work.feed
        self._sessions[work.session] = known
        return known

    def _resize(self, known: _Session, token_count: int) -> None:
        wanted = pages.blocks_for(token_count)
        self._pool.blocks.give(known.blocks[wanted:])
        del known.blocks[wanted:]
        missing = wanted - len(known.blocks)
        known.blocks += self._pool.take(missing, known.blocks[-1] if known.blocks else None)

    def _pass(self, waiting: list[_Job]) -> list[tuple[_Job, Answer]]:
        """Run at most ROWS_MAX rows of the jobs, in their order; the answers of those that are done by that."""
        segments: list[model.Segment] = []
        finished: list[tuple[_Job, int]] = []
        row = 0
        for job in waiting:
            taken = min(job.left_count(), ROWS_MAX - row)
            if taken == 0:
                break
            position = job.work.position + job.done_count
            tokens = job.work.feed[job.done_count : job.done_count + taken]
            blocks = tuple(job.session.blocks[: pages.blocks_for(position + taken)])
            segments.append(model.Segment(row, tokens, position, blocks))
            row += taken
            job.done_count += taken
            job.session.token_count = position + taken
            if not job.left_count() and job.work.sampling:
                finished.append((job, row - 1))
        logits = self._llama.forward(segments, [last for _, last in finished])
        return [(job, self._draw(job, logits[number])) for number, (job, _) in enumerate(finished)]

    def _draw(self, job: _Job, logits: torch.Tensor) -> Answer:
        work, known = job.work, job.session
        assert work.sampling is not None
        assert len(known.tokens) == known.token_count
        try:
            return self._drawer.draw(work.session, logits.numpy(), work.sampling, known.tokens, work.answer_from)
        except sampler.NotFinite as error:
            self.drop(work.session)
            return error
        except errors.EngineError as error:
            return error
