"""Whether a session says the same whatever happens to it: every token, and every bit of every row of logits.

Twenty prompts of three architectures, each answered alone first; then again in company, with the prompt in odd chunks,
preempted (spilled and back), restored from pages on another engine in mid-answer, gone on as a fork, and computed by
kernels for another set of instructions. SmolLM2 has
its real weights; Qwen2 and Qwen3 have random ones of a small size, since what can go wrong (biases, norms of heads, an
untied head) does not depend on what weights mean. Half of the prompts are drawn at a temperature.

A row counts as unequal if its bits differ from those of the same row alone, even if the token is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bench
from bench import _engine
from meshnode import errors, ids, ports

if TYPE_CHECKING:
    from meshnode.engine import engine

PROMPTS = 20
SAID = 350
SAID_QUICK = 40
MEMORY_BYTES = 1 << 29


@dataclass
class _Session:
    name: ids.SessionId
    prompt: tuple[int, ...]
    sampling: ports.Sampling
    tokens: list[int] = field(default_factory=list)
    """In the engine, or about to be."""
    fed: int = 0
    rows: list[bytes] = field(default_factory=list)
    """A digest of the logits behind each token drawn."""

    @property
    def said(self) -> list[int]:
        return self.tokens[len(self.prompt) :]


def run(quick: bool, runs: int) -> dict[str, float]:
    """Tokens compared, and how many tokens and rows of logits were not equal, by way and in all."""
    said = SAID_QUICK if quick else SAID
    figures: dict[str, float] = {"architectures": 0, "prompts": 0, "tokens": 0, "unequal_tokens": 0, "unequal_rows": 0}
    for label, made in _architectures():
        of = _Way(made, said)
        expected = of.alone()
        figures["architectures"] += 1
        figures["prompts"] += len(expected)
        figures["tokens"] += sum(len(one.said) for one in expected)
        for way in (of.batched, of.chunked, of.preempted, of.restored, of.forked, of.elsewhere):
            found = way()
            tokens = sum(_differing(a.said, b.said) for a, b in zip(expected, found, strict=True))
            rows = sum(_differing(a.rows, b.rows) for a, b in zip(expected, found, strict=True))
            bench.say(f"{label}, {way.__name__}: {tokens} tokens and {rows} rows of logits differ")
            figures[f"unequal_{way.__name__}"] = figures.get(f"unequal_{way.__name__}", 0) + rows
            figures["unequal_tokens"] += tokens
            figures["unequal_rows"] += rows
    return figures


def _differing(expected: Sequence[Any], found: Sequence[Any]) -> int:
    return sum(a != b for a, b in zip(expected, found, strict=True))


class _Way:
    """The same prompts, answered in different ways by engines of one architecture."""

    def __init__(self, made: Any, said: int) -> None:
        self._made = made
        self._said = said
        self._of: engine.TorchEngine = self._engine(MEMORY_BYTES)
        self._seen: dict[ids.SessionId, _Session] = {}

    def alone(self) -> list[_Session]:
        sessions = self._sessions()
        for one in sessions:
            self._speak([one], self._said)
            self._of.drop(one.name)
        return sessions

    def batched(self) -> list[_Session]:
        sessions = self._sessions()
        self._speak(sessions, self._said)
        return self._dropped(sessions)

    def chunked(self) -> list[_Session]:
        """Prompts come in pieces of one to forty tokens, beside others that speak already."""
        sessions, dice = self._sessions(), random.Random(1)
        for count, one in enumerate(sessions):
            while one.fed < len(one.prompt) - 1:
                end = min(len(one.prompt) - 1, one.fed + dice.randrange(1, 40))
                piece = ports.Work(one.name, one.fed, one.prompt[one.fed : end], None)
                self._step([piece], [other for other in sessions[:count] if len(other.said) < self._said])
                one.fed = end
        self._speak(sessions, self._said)
        return self._dropped(sessions)

    def preempted(self) -> list[_Session]:
        """Memory for a third of the sessions: they take turns of some tokens, and wait on the spill in between."""
        from meshnode.engine import spill

        sessions = self._sessions()
        pages = sum(-(-(len(one.prompt) + self._said) // 32) for one in sessions)
        before, self._of = self._of, self._engine(pages // 3 * self._of.card.page_bytes, spill.MemorySpill(1 << 31))
        while rest := [one for one in sessions if len(one.said) < self._said]:
            for start in range(0, len(rest), 4):
                self._speak(rest[start : start + 4], min(self._said, min(len(one.said) for one in rest) + 50))
        if not self._of.statistics().spill_count:
            raise bench.CannotMeasure("no session was preempted")
        self._of = before
        return sessions

    def restored(self) -> list[_Session]:
        """Half of each answer on one engine; its pages, and no more, go to another one."""
        sessions = self._sessions()
        self._speak(sessions, self._said // 2)
        pages = {
            one.name: [self._of.export(one.name, page) for page in range(one.fed // self._of.card.page_tokens)]
            for one in sessions
        }
        self._dropped(sessions)
        before, self._of = self._of, self._engine(MEMORY_BYTES)
        for one in sessions:
            one.fed = self._of.restore(one.name, one.tokens[: one.fed], pages[one.name])
        self._speak(sessions, self._said)
        self._of = before
        return sessions

    def forked(self) -> list[_Session]:
        """A child takes over in mid-answer, on the pages of its parent, which goes on beside it with other words."""
        sessions = self._sessions()
        self._speak(sessions, self._said // 2)
        children = [
            dataclasses.replace(one, name=ids.SessionId(bytes([100 + number]) * ids.SESSION_BYTES))
            for number, one in enumerate(sessions)
        ]
        for parent, child in zip(sessions, children, strict=True):
            feed = tuple(child.tokens[:-1])
            self._step([ports.Work(child.name, 0, feed, None, domain=parent.name)], [])
            child.fed = len(feed)
            self._step([ports.Work(parent.name, parent.fed, (7,), None)], [])
        if not self._of.statistics().reused_tokens:
            raise bench.CannotMeasure("no page was shared")
        self._speak(children, self._said)
        self._dropped(children)
        return self._dropped(sessions) and children

    def elsewhere(self) -> list[_Session]:
        """With the kernels that the slowest processor of this family would have."""
        from meshnode.engine.native import library

        sessions = self._sessions()
        before, self._of = self._of, self._engine(MEMORY_BYTES, variant=library.runnable()[-2:][0])
        self._speak(sessions, self._said)
        self._of = before
        return sessions

    # ----------------------------------------------------------------------------------------------------------- inside

    def _sessions(self) -> list[_Session]:
        vocabulary, found = self._of.card.vocabulary, []
        for number in range(PROMPTS):
            dice = random.Random(number)
            prompt = tuple(dice.randrange(vocabulary // 40, vocabulary) for _ in range(dice.randrange(5, 300)))
            sampling = ports.Sampling(seed=number, temperature=0.8 if number % 2 else 0.0)
            found.append(_Session(ids.SessionId(bytes([number + 1]) * ids.SESSION_BYTES), prompt, sampling))
            found[-1].tokens += prompt
        return found

    def _speak(self, sessions: Sequence[_Session], count: int) -> None:
        """Until each has said so many tokens; those that have are left out."""
        while going := [one for one in sessions if len(one.said) < count]:
            self._step([], going)

    def _step(self, works: list[ports.Work], speaking: Sequence[_Session]) -> None:
        self._seen = {one.name: one for one in speaking}
        batch = works + [ports.Work(one.name, one.fed, tuple(one.tokens[one.fed :]), one.sampling) for one in speaking]
        for work, answer in zip(batch, self._of.step(batch), strict=True):
            if isinstance(answer, errors.EngineError):
                raise bench.CannotMeasure(str(answer)) from answer
            if one := self._seen.get(work.session):
                one.fed = len(one.tokens)
                assert isinstance(answer, int)
                one.tokens.append(answer)

    def _dropped(self, sessions: list[_Session]) -> list[_Session]:
        for one in sessions:
            self._of.drop(one.name)
        return sessions

    def _engine(self, memory_bytes: int, spill: Any = None, variant: str = "") -> engine.TorchEngine:
        found: engine.TorchEngine = self._made(memory_bytes, spill, variant)
        draw = found._draw

        def seen(job: engine._Job, logits: Any) -> engine.Answer:
            self._seen[job.work.session].rows.append(hashlib.blake2b(logits.tobytes(), digest_size=8).digest())
            return draw(job, logits)

        found._draw = seen  # type: ignore[method-assign]
        return found


def _architectures() -> Iterator[tuple[str, Any]]:
    """(name, what makes an engine with so much memory, this spill and these kernels)."""
    from meshnode.engine import engine, recipes, tiles, weights

    def made(of: weights.Shape, packed: tiles.Packed, digest: ids.Digest) -> Any:
        def make(memory_bytes: int, spill: Any, variant: str) -> engine.TorchEngine:
            recipe = recipes.of_tiles(
                of, packed, _engine.NUMERIC_CLASS, memory_bytes, threads=2, rows_max=256, variant=variant
            )
            return engine.TorchEngine(recipe, name="exact", digest=digest, spill=spill)

        return make

    installed = _engine.installed()
    yield "smollm2", made(weights.shape(installed.folder), tiles.load(installed.folder), installed.digest)
    plain = weights.Shape(6, 256, 8, 2, 64, 512, 4000, 2048, 1e6, 1e-6, (0,))
    others = {
        "qwen2": dataclasses.replace(plain, qkv_bias=True),
        "qwen3": dataclasses.replace(plain, qk_norm=True, tied=False),
    }
    for label, of in others.items():
        packed = tiles.pack(of, weights.assemble(of, _random(of), exact=False))
        yield label, made(of, packed, ids.digest(label.encode()))


def _random(of: Any) -> dict[str, Any]:
    import torch

    dice = torch.Generator().manual_seed(5)
    q_rows, kv_rows = of.heads * of.head_dim, of.kv_heads * of.head_dim
    sizes = {
        "model.embed_tokens.weight": (of.vocabulary, of.hidden),
        "lm_head.weight": (of.vocabulary, of.hidden),
        "model.norm.weight": (of.hidden,),
    }
    for number in range(of.layers):
        at = f"model.layers.{number}."
        sizes |= {f"{at}{name}_layernorm.weight": (of.hidden,) for name in ("input", "post_attention")}
        sizes |= {f"{at}self_attn.{name}_norm.weight": (of.head_dim,) for name in "qk"}
        for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            sizes |= {
                f"{at}self_attn.{name}_proj.weight": (rows, of.hidden),
                f"{at}self_attn.{name}_proj.bias": (rows,),
            }
        sizes |= {f"{at}self_attn.o_proj.weight": (of.hidden, q_rows), f"{at}mlp.down_proj.weight": (of.hidden, of.ffn)}
        sizes |= {f"{at}mlp.{name}_proj.weight": (of.ffn, of.hidden) for name in ("gate", "up")}
    return {
        name: torch.randn(*size, generator=dice) * (1.5 / size[-1] ** 0.5 if len(size) > 1 else 0.1) + ("norm" in name)
        for name, size in sizes.items()
    }
