"""Jobs that join and leave between passes, share what was computed, and make room for one another: whatever happens to
a session, its numbers are those it has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from meshnode import errors, ids, ports
from meshnode.engine import batcher, engine, pages, recipes, spill
from tests.engine import tiny

A, B, C, D = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abcd")
GREEDY = ports.Sampling()
PROMPT = tuple((index * index * 7 + index * 31 + 5) % 290 for index in range(200))


class Watched:
    """An engine, the logits of each session's last draw, and the rows of each pass."""

    def __init__(self, pages: int = 64, spill_bytes: int = 0, rows_max: int = 256) -> None:
        bay = spill.MemorySpill(spill_bytes) if spill_bytes else None
        limits = batcher.Limits(rows_max, min(24, rows_max), min(16, rows_max))
        self.engine = tiny.make(memory_bytes=pages * tiny.PAGE_BYTES, spill=bay, limits=limits)
        self.logits: dict[ids.SessionId, torch.Tensor] = {}
        self.passes: list[list[int]] = []
        draw, forward = self.engine._draw, self.engine._llama.forward

        def seen(job: engine._Job, logits: Any) -> engine.Answer:
            self.logits[job.work.session] = torch.from_numpy(logits.copy())
            return draw(job, logits)

        def counted(segments: list[pages.Segment], wanted: list[int]) -> Any:
            self.passes.append([len(one.tokens) for one in segments])
            return forward(segments, wanted)

        self.engine._draw = seen  # type: ignore[method-assign]
        self.engine._llama.forward = counted  # type: ignore[method-assign]

    def feed(
        self, session: ids.SessionId, position: int, tokens: tuple[int, ...], *, draw: bool = True, domain: bytes = b""
    ) -> int | None:
        [answer] = self.engine.step([ports.Work(session, position, tokens, GREEDY if draw else None, domain)])
        if isinstance(answer, errors.EngineError):
            raise answer
        return answer

    @property
    def reused(self) -> int:
        return self.engine.statistics().reused_tokens


def alone(tokens: tuple[int, ...]) -> torch.Tensor:
    """The logits behind these tokens, in an engine that never saw anything else."""
    fresh = Watched()
    fresh.feed(A, 0, tokens)
    return fresh.logits[A]


# ------------------------------------------------------------------------------------------------------------ sharing


def test_a_prefix_of_the_domain_is_not_computed_again_and_has_the_same_bits() -> None:
    of = Watched()
    of.feed(A, 0, PROMPT, domain=b"t")
    computed = of.engine.statistics().computed_tokens
    of.feed(B, 0, (*PROMPT[:150], 7, 8), domain=b"t")
    assert (of.engine.statistics().computed_tokens - computed, of.reused) == (24, 128)
    assert torch.equal(of.logits[B], alone((*PROMPT[:150], 7, 8)))


def test_another_domain_finds_nothing_even_of_the_same_tokens() -> None:
    of = Watched()
    of.feed(A, 0, PROMPT, domain=b"t")
    of.engine.drop(A)
    for session, domain in ((B, b"u"), (C, b""), (D, A)):
        of.feed(session, 0, PROMPT, domain=domain)
    assert of.reused == 0


def test_a_session_that_ended_leaves_its_prefix_to_the_next() -> None:
    of = Watched()
    of.feed(A, 0, PROMPT, domain=b"t")
    free = of.engine.memory_free()
    of.engine.drop(A)
    assert of.engine.memory_free() == free + 7 * tiny.PAGE_BYTES
    of.feed(B, 0, PROMPT, domain=b"t")
    assert of.reused == 192
    assert torch.equal(of.logits[B], alone(PROMPT))


def test_idle_pages_keep_to_their_budget() -> None:
    recipe = recipes.assembled(tiny.SHAPE, tiny.assembled("w8"), "w8", 64 * tiny.PAGE_BYTES)
    of = engine.TorchEngine(recipe, name="t", digest=ids.digest(b"t"), idle_bytes_max=3 * tiny.PAGE_BYTES)
    of.step([ports.Work(A, 0, PROMPT, None)])
    of.drop(A)
    assert of.statistics().idle_pages == 3
    of.step([ports.Work(A, 0, PROMPT, None)])
    assert of.statistics().reused_tokens == 96


def test_a_fork_holds_the_pages_of_its_parent_and_neither_disturbs_the_other() -> None:
    of = Watched(pages=16)
    of.feed(A, 0, PROMPT)
    of.feed(B, 0, PROMPT, domain=A)
    assert of.engine._memory.table(A, 192) == of.engine._memory.table(B, 192)
    of.feed(B, 100, (3,) * 60)
    of.feed(A, 200, (4,) * 10)
    assert torch.equal(of.logits[B], alone((*PROMPT[:100], *(3,) * 60)))
    assert torch.equal(of.logits[A], alone((*PROMPT, *(4,) * 10)))
    assert len({*of.engine._memory.table(A, 210), *of.engine._memory.table(B, 160)}) == 9


def test_a_drop_while_a_fork_lives_takes_nothing_from_it() -> None:
    of = Watched(pages=9)
    of.feed(A, 0, PROMPT)
    of.feed(B, 0, PROMPT, domain=A)
    of.engine.drop(A)
    of.feed(C, 0, (1,) * 40)
    of.feed(B, 200, (4,))
    assert torch.equal(of.logits[B], alone((*PROMPT, 4)))


def test_pages_of_numbers_that_are_not_finite_are_found_by_nobody() -> None:
    of = Watched()
    sound = tiny.poison(of.engine, 7)
    fed = (*(1,) * 40, 7, *(2,) * 40)
    of.feed(A, 0, fed, draw=False, domain=b"t")
    tiny.poison(of.engine, 7, sound)
    with pytest.raises(errors.EngineError):
        of.feed(A, 81, (3,))
    of.feed(B, 0, (*fed, 3), domain=b"t")
    assert of.reused == 0
    assert torch.equal(of.logits[B], alone((*fed, 3)))


# ------------------------------------------------------------------------------------------------------------- memory


def test_what_nobody_holds_goes_first() -> None:
    of = Watched(pages=10, spill_bytes=1 << 20)
    of.feed(A, 0, PROMPT)
    of.engine.drop(A)
    of.feed(B, 0, PROMPT)
    assert of.engine.statistics().spill_count == 0
    assert torch.equal(of.logits[B], alone(PROMPT))


def test_a_preempted_session_comes_back_with_the_same_bits() -> None:
    of = Watched(pages=10, spill_bytes=1 << 20)
    of.feed(A, 0, PROMPT)
    exported = [of.engine.export(A, index) for index in range(6)]
    of.feed(B, 0, PROMPT[50:])
    assert of.engine.statistics().spill_count == 1
    assert [of.engine.export(A, index) for index in range(6)] == exported
    of.feed(A, 200, (4,))
    assert of.engine.statistics().spill_count == 2
    assert torch.equal(of.logits[A], alone((*PROMPT, 4)))
    of.feed(B, 150, (5,))
    assert torch.equal(of.logits[B], alone((*PROMPT[50:], 5)))


def test_a_spill_that_is_lost_costs_time_and_no_token(tmp_path: Path) -> None:
    of = Watched(pages=10)
    of.engine._memory._spill = spill.FolderSpill(tmp_path / "spill", 1 << 20)
    of.feed(A, 0, PROMPT)
    of.feed(B, 0, PROMPT[::-1])
    path = tmp_path / "spill" / f"{A.hex()}-4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    computed = of.engine.statistics().computed_tokens
    of.feed(A, 200, (4,))
    assert of.engine.statistics().computed_tokens - computed > 64
    assert torch.equal(of.logits[A], alone((*PROMPT, 4)))


def test_two_that_do_not_fit_together_are_served_in_turn() -> None:
    of = Watched(pages=10, spill_bytes=1 << 20)
    answers = of.engine.step([ports.Work(A, 0, PROMPT, GREEDY), ports.Work(B, 0, PROMPT[::-1], GREEDY)])
    assert all(isinstance(answer, int) for answer in answers)
    assert torch.equal(of.logits[A], alone(PROMPT))
    assert torch.equal(of.logits[B], alone(PROMPT[::-1]))


def test_full_memory_refuses_one_session_and_serves_the_others() -> None:
    of = Watched(pages=10)
    works = [ports.Work(A, 0, PROMPT, GREEDY), ports.Work(B, 0, PROMPT, GREEDY), ports.Work(C, 0, (1, 2), GREEDY)]
    good, refused, small = of.engine.step(works)
    assert isinstance(good, int)
    assert isinstance(small, int)
    assert isinstance(refused, errors.EngineError)
    assert "7 pages wanted, 3 are free" in str(refused)
    assert of.engine.memory_free() == 2 * tiny.PAGE_BYTES


def test_who_waits_for_memory_is_not_overtaken_by_others_that_need_some() -> None:
    of = Watched(pages=10, rows_max=16)
    first = of.engine.post(ports.Work(A, 0, PROMPT, GREEDY))
    of.engine.advance()
    second = of.engine.post(ports.Work(B, 0, PROMPT[:120], GREEDY))
    third = of.engine.post(ports.Work(C, 0, (1, 2), GREEDY))
    ended: dict[int, engine.Answer] = {}
    while first not in ended:
        assert not ended
        ended |= of.engine.advance()
    of.engine.drop(A)
    while of.engine.busy():
        ended |= of.engine.advance()
    assert isinstance(ended[second], int)
    assert isinstance(ended[third], int)


# ------------------------------------------------------------------------------------------------------------- passes


def test_a_long_prompt_lets_streams_through_in_every_pass() -> None:
    of = Watched()
    for session in (A, B):
        of.feed(session, 0, PROMPT)
    of.passes.clear()
    long = of.engine.post(ports.Work(C, 0, PROMPT[::-1], GREEDY))
    ended: dict[int, engine.Answer] = {}
    position = 200
    while long not in ended:
        streams = {of.engine.post(ports.Work(name, position, (position % 7,), GREEDY)) for name in (A, B)}
        ended = of.engine.advance()
        assert streams <= set(ended)
        position += 1
    assert len(of.passes) == 9
    assert max(map(sum, of.passes)) == 2 + batcher.Limits().beside_rows
    tail = tuple(place % 7 for place in range(200, position))
    assert torch.equal(of.logits[A], alone((*PROMPT, *tail)))
    assert torch.equal(of.logits[C], alone(PROMPT[::-1]))


def test_works_of_one_session_run_in_the_order_in_which_they_came() -> None:
    of = Watched(rows_max=16)
    first = of.engine.post(ports.Work(A, 0, PROMPT[:100], None))
    second = of.engine.post(ports.Work(A, 100, PROMPT[100:], GREEDY))
    order: list[int] = []
    while of.engine.busy():
        order += of.engine.advance()
    assert order == [first, second]
    assert torch.equal(of.logits[A], alone(PROMPT))


def test_a_job_that_is_withdrawn_half_way_may_be_repeated() -> None:
    of = Watched(rows_max=16)
    of.feed(A, 0, PROMPT[:40])
    number = of.engine.post(ports.Work(A, 40, PROMPT[40:], GREEDY))
    for _ in range(3):
        assert of.engine.advance() == {}
    of.engine.withdraw(number)
    assert not of.engine.busy()
    of.feed(A, 40, PROMPT[40:])
    assert torch.equal(of.logits[A], alone(PROMPT))


def test_a_drop_ends_what_its_session_has_under_way() -> None:
    of = Watched(rows_max=16)
    running = of.engine.post(ports.Work(A, 0, PROMPT, GREEDY))
    of.engine.advance()
    waiting = of.engine.post(ports.Work(A, 1, (2,), GREEDY))
    of.engine.drop(A)
    ended = of.engine.advance()
    assert set(ended) == {running, waiting}
    assert all("dropped" in str(answer) for answer in ended.values())
    assert not of.engine.busy()
    assert of.engine.memory_free() == 64 * tiny.PAGE_BYTES


def test_a_restore_continues_what_the_domain_has() -> None:
    of, other = Watched(), Watched()
    of.feed(A, 0, PROMPT)
    exported = [of.engine.export(A, index) for index in range(6)]
    other.feed(C, 0, PROMPT[:70], domain=B)
    assert other.engine.restore(B, PROMPT, exported) == 192
    other.feed(B, 192, PROMPT[192:])
    assert torch.equal(other.logits[B], alone(PROMPT))


def test_pages_of_more_than_their_tokens_are_refused() -> None:
    of = Watched()
    of.feed(A, 0, PROMPT)
    page = of.engine.export(A, 0)
    for tokens in (PROMPT[:31], (300, *PROMPT[1:32]), (-1, *PROMPT[1:32])):
        with pytest.raises(errors.EngineError):
            of.engine.restore(B, tokens, [page])
