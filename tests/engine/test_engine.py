"""What the engine refuses, and what a refusal leaves standing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from meshnode import errors, ids, ports
from meshnode.engine import exact, pages, recipes
from tests.engine import tiny

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
GREEDY = ports.Sampling()
PROMPT = tuple(range(200))


def test_memory_too_small_for_one_page_is_the_operators_mistake() -> None:
    with pytest.raises(errors.ConfigError, match="at least"):
        tiny.make(memory_bytes=1000)


def test_an_unknown_numeric_class_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="w8"):
        recipes.load(tmp_path, "int3", 1 << 20, threads=1, rows_max=64)


def test_logits_that_are_not_finite_end_their_session_alone() -> None:
    engine = tiny.make()
    sound = tiny.poison(engine, 7)
    answers = engine.step([ports.Work(A, 0, (1, 2, 3), None), ports.Work(B, 0, (1, 7, 3), None)])
    assert answers == [None, None]
    tiny.poison(engine, 7, sound)  # the head is the embedding: its own logit would be poisoned for everybody
    good, bad = engine.step([ports.Work(A, 3, (4,), GREEDY), ports.Work(B, 3, (4,), GREEDY)])
    assert isinstance(bad, errors.EngineError)
    assert engine.step([ports.Work(C, 0, (1, 2, 3, 4), GREEDY)]) == [good]
    assert isinstance(engine.step([ports.Work(B, 3, (4,), GREEDY)])[0], errors.EngineError)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_page_with_numbers_that_are_not_finite_is_refused(poison: float) -> None:
    engine = tiny.make()
    engine.step([ports.Work(A, 0, PROMPT, None)])
    page = bytearray(engine.export(A, 0))
    page[-2:] = torch.tensor([poison]).bfloat16().view(torch.uint8).numpy().tobytes()
    with pytest.raises(errors.EngineError, match="finite"):
        engine.restore(B, PROMPT, [bytes(page)])
    engine.step([ports.Work(B, 0, PROMPT[1:], None)])
    kept = engine.export(B, 5)
    with pytest.raises(errors.EngineError, match="finite"):
        engine.restore(B, PROMPT, [bytes(page)])
    assert engine.export(B, 5) == kept


def test_a_page_is_layer_kv_slot_head_dim() -> None:
    engine = tiny.make()
    engine.step([ports.Work(A, 0, PROMPT, None)])
    of = tiny.SHAPE
    assert isinstance(engine._pool, exact.Pool)
    page = np.frombuffer(engine.export(A, 1), np.uint16)
    page = page.reshape(of.layers, 2, pages.PAGE_TOKENS, of.kv_heads, of.head_dim)
    second = engine._pool.data[engine._memory.table(A, 64)[1]].reshape(of.layers, 2, of.kv_heads, -1)
    keys, values = (second[2, which, 1].reshape(32, 32) for which in (0, 1))  # [dim, slot] and [slot, dim]
    place = [i % 16 * 2 + i // 16 for i in range(32)]
    assert np.array_equal(page[2, 0, 5, 1], keys[:, place[5]])
    assert np.array_equal(page[2, 1, 5, 1], values[5, place])


def test_a_restore_beyond_the_context_is_refused() -> None:
    engine = tiny.make()
    engine.step([ports.Work(A, 0, PROMPT, None)])
    page = engine.export(A, 0)
    with pytest.raises(errors.EngineError, match="1024"):
        engine.restore(B, [1] * 33 * pages.PAGE_TOKENS, [page] * 33)


def test_decode_rows_ride_along_with_a_prefill() -> None:
    engine = tiny.make()
    engine.step([ports.Work(A, 0, PROMPT, None)])
    rows: list[list[int]] = []
    inner = engine._llama.forward
    engine._llama.forward = lambda segments, wanted: (  # type: ignore[method-assign]
        rows.append([len(one.tokens) for one in segments]) or inner(segments, wanted)  # type: ignore[func-returns-value]
    )
    engine.step([ports.Work(B, 0, PROMPT * 2, GREEDY), ports.Work(A, 200, (1,), GREEDY)])
    assert rows == [[1, 24], *([24] for _ in range(8)), [184]]


def test_a_page_of_the_reference_is_twice_as_large() -> None:
    assert tiny.make("f32").card.page_bytes == 2 * tiny.make().card.page_bytes
