"""The kernels: the same bits from every variant, thread count and chunk, and close to float32 over the same weights."""

from __future__ import annotations

import dataclasses
import itertools
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from meshnode import errors
from meshnode.engine import exact, known, pages, rope, tiles, weights
from meshnode.engine.native import build, library
from tests.engine import tiny

TOKENS = tuple((index * index * 7 + index * 31 + 5) % 290 for index in range(700))


def model(numeric_class: str = "w8", *, threads: int = 1, variant: str = "", rows_max: int = 700) -> exact.Llama:
    return exact.Llama(
        tiny.SHAPE,
        tiles.pack(tiny.SHAPE, tiny.assembled(numeric_class)),
        1 << 24,
        planes=exact.PLANES[numeric_class],
        threads=threads,
        rows_max=rows_max,
        variant=variant,
    )


def segment(row: int, start: int, end: int, first_page: int = 0) -> pages.Segment:
    held = range(first_page, first_page + -(-end // pages.PAGE_TOKENS))
    return pages.Segment(row, TOKENS[start:end], start, tuple(held))


def last(of: exact.Llama, end: int, cuts: list[int], first_page: int = 0) -> np.ndarray:
    """The logits after `end` tokens, fed in pieces."""
    for start, stop in itertools.pairwise([0, *cuts, end]):
        found = of.forward([segment(0, start, stop, first_page)], [stop - start - 1])
    return found[0]


@pytest.mark.parametrize("variant", library.runnable())
@pytest.mark.parametrize("numeric_class", ["w8", "i8"])
def test_every_variant_gives_the_known_answer_on_any_number_of_threads(variant: str, numeric_class: str) -> None:
    known.check(numeric_class, variant)
    assert known.answer(numeric_class, variant, threads=3) == known.ANSWERS[numeric_class]


def test_a_machine_with_another_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.ANSWERS, "w8", "0" * 16)
    with pytest.raises(errors.EngineError, match="f32"):
        known.check("w8")


@pytest.mark.parametrize("seed", range(6))
def test_a_row_does_not_know_its_chunk_its_pages_nor_its_threads(seed: int) -> None:
    dice = random.Random(seed)
    end = dice.randrange(2, 700)
    expected = last(model(), end, sorted({*range(150, end, 150)} - {0, end}))
    cuts = sorted(dice.sample(range(1, end), min(end - 1, dice.randrange(1, 12))))
    other = model(threads=dice.choice((2, 3)))
    assert np.array_equal(last(other, end, cuts, first_page=dice.randrange(8)), expected)


@pytest.mark.parametrize("count", [2, 4, 5, 7, 16, 23, 64])
def test_lone_rows_do_not_know_their_company(count: int) -> None:
    of, dice = model(threads=2), random.Random(count)
    ends = [dice.randrange(1, 290) for _ in range(count)]
    firsts = [index * 10 for index in range(count)]
    rows = []
    for end, first in zip(ends, firsts, strict=True):
        rows.append(last(of, end, [end - 1] if end > 1 else [], first))
    together = [segment(row, end - 1, end, first) for row, (end, first) in enumerate(zip(ends, firsts, strict=True))]
    assert np.array_equal(of.forward(together, list(range(count))), np.stack(rows))


@pytest.mark.parametrize(("layers", "tolerance"), [(1, 5e-3), (3, 0.06)])
def test_the_logits_are_those_of_float64_over_the_same_weights(layers: int, tolerance: float) -> None:
    """Written out in numpy, without pages: only the rounding of activations differs, and in deeper layers what it does
    to keys that lie between two bfloat16 numbers."""
    of, loaded = dataclasses.replace(tiny.SHAPE, layers=layers), tiny.assembled("w8")
    loaded = dataclasses.replace(loaded, layers=loaded.layers[:layers])
    found = last(exact.Llama(of, tiles.pack(of, loaded), 1 << 24, planes=2, threads=1, rows_max=64), 60, [])

    def dense(matrix: weights.Matrix) -> np.ndarray:
        assert matrix.scale is not None
        return matrix.turned.numpy().astype(np.float64) * matrix.scale.numpy()

    def normed(rows: np.ndarray) -> np.ndarray:
        return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + of.rms_eps)

    def stored(numbers: np.ndarray) -> np.ndarray:
        return torch.from_numpy(numbers).bfloat16().double().numpy()

    rows = dense(loaded.embedding).T[list(TOKENS[:60])]
    turns = rope.turns(of.head_dim, of.rope_theta, (), 1.0, 60)
    turned = turns[..., 0] + 1j * turns[..., 1]
    causal = np.tril(np.ones((60, 60), bool))
    for layer in loaded.layers:
        joined = (normed(rows) @ dense(layer.qkv)).reshape(60, -1, of.head_dim)
        pairs = joined[:, : of.heads + of.kv_heads]
        pairs = (pairs[..., ::2] + 1j * pairs[..., 1::2]) * turned[:, None]
        heads = np.stack([pairs.real, pairs.imag], -1).reshape(60, -1, of.head_dim)
        keys, values = stored(heads[:, of.heads :]), stored(joined[:, of.heads + of.kv_heads :])
        mixed = []
        for head in range(of.heads):
            kv = head * of.kv_heads // of.heads
            scores = np.where(causal, heads[:, head] @ keys[:, kv].T, -np.inf)
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(chances / chances.sum(-1, keepdims=True) @ values[:, kv])
        rows = rows + np.concatenate(mixed, -1) @ dense(layer.out)
        gate, up = np.split(normed(rows) @ dense(layer.gate_up), 2, -1)
        rows = rows + (gate / (1 + np.exp(-gate)) * up) @ dense(layer.down)
    expected = (normed(rows) * loaded.norm.numpy()) @ dense(loaded.head)
    assert np.abs(found - expected[-1]).max() < tolerance * expected[-1].std()


def test_a_page_travels_token_by_token_and_comes_back() -> None:
    of, other = model(), model(threads=2)
    expected = last(of, 200, [])
    exported = [of.pool.export(index) for index in range(6)]
    for index, page in enumerate(exported):
        other.pool.restore(20 + index, other.pool.parse(page))
    assert [other.pool.export(20 + index) for index in range(6)] == exported
    found = other.forward([pages.Segment(0, TOKENS[192:200], 192, (*range(20, 26), 3))], [7])
    assert np.array_equal(found[0], expected)
    values = np.frombuffer(exported[1], np.uint16).reshape(of.pool._wire_shape)
    tail = model()
    last(tail, 40, [])
    assert np.array_equal(
        np.frombuffer(tail.pool.export(1), np.uint16).reshape(values.shape)[:, :, :8], values[:, :, :8]
    )


def test_numbers_that_are_not_finite_reach_the_logits_of_their_session_alone() -> None:
    sound = tiny.assembled("w8")
    assert sound.embedding.scale is not None
    scale = sound.embedding.scale.clone()
    scale[TOKENS[3]] = float("inf")
    poisoned = dataclasses.replace(sound, embedding=weights.Matrix(sound.embedding.turned, scale))
    of = exact.Llama(
        tiny.SHAPE,
        tiles.pack(dataclasses.replace(tiny.SHAPE, tied=False), dataclasses.replace(poisoned, head=sound.head)),
        1 << 24,
        planes=2,
        threads=1,
        rows_max=64,
    )
    found = of.forward([segment(0, 0, 3, 0), segment(3, 0, 9, 4)], [2, 11])
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1]).any()


@pytest.mark.parametrize("poison", [0x7FC0, 0x7F80, 0xFF80])
def test_a_page_that_is_not_finite_or_not_whole_is_refused(poison: int) -> None:
    pool = model().pool
    page = np.frombuffer(pool.export(0), np.uint16).copy()
    page[-1] = poison
    for wrong in (page.tobytes(), page.tobytes()[:-2], b""):
        with pytest.raises(errors.EngineError):
            pool.parse(wrong)


def test_the_table_of_rope_is_right_to_the_last_bit_but_one_and_never_changes() -> None:
    found = rope.turns(64, 100000.0, (), 1.0, 8192)
    angles = np.arange(8192)[:, None] * 100000.0 ** (-np.arange(0, 64, 2) / 64)
    assert np.abs(found[..., 0] - np.cos(angles)).max() < 6e-8
    assert np.abs(found[..., 1] - np.sin(angles)).max() < 6e-8
    divided = rope.turns(8, 10000.0, (1.0, 2.0, 4.0, 8.0), 1.5, 3)
    assert divided[2, 1, 0] == np.float32(1.5 * np.cos(2 * 10000.0**-0.25 / 2))


def test_the_name_of_a_library_follows_its_sources(tmp_path: Path) -> None:
    of = build.variants()[-1]
    for name in build.SOURCES:
        (tmp_path / name).write_bytes((Path(build.__file__).parent / name).read_bytes())
    assert build.file_name(of, tmp_path) == build.file_name(of)
    (tmp_path / "simd.h").write_text("#error changed\n")
    assert build.file_name(of, tmp_path) != build.file_name(of)
    with pytest.raises(build.CannotCompile, match=r"note|error"):
        build.compile_all(tmp_path / "made", tmp_path)
    assert list((tmp_path / "made").iterdir()) == []


def test_a_machine_without_a_compiler_hears_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    library.load.cache_clear()
    with pytest.raises(errors.ConfigError, match="no C compiler") as refused:
        library.load("plain")
    assert "gcc" in str(refused.value.hint)
    library.load.cache_clear()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_every_piece_of_every_phase_once(tmp_path: Path, threads: int) -> None:
    program, native = tmp_path / "check", Path(build.__file__).parent
    source = Path(__file__).with_name("threads_check.c")
    command = ["cc", "-O2", "-std=gnu11", "-I", str(native), str(source), str(native / "threads.c"), "-pthread"]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = subprocess.run([str(program), str(threads), "5000"], check=True, capture_output=True, text=True)
    assert done.stdout == "0 wrong in 5000 phases\n"
