"""The torch classes: however rows come together in passes, each has the numbers that it has alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from meshnode import errors, ids, ports
from meshnode.engine import kv, model, pages, passes, weights
from tests.engine import agreement, passing, tiny

TEXT = tuple((index * index * 7 + index * 31 + 5) % 290 for index in range(700))
LENGTHS = {"a": 1, "b": 31, "c": 32, "d": 33, "e": 200, "f": 650}
NOISE = {"f32": 1e-4, "bf16": 0.15}
"""What may lie between logits of the same row in two passes; they reach to about 5."""
WINDOWED = dataclasses.replace(tiny.SHAPE, window_tokens=70)


@pytest.fixture(params=["f32", "bf16"])
def numeric_class(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def alone(numeric_class: str, device: str, text: tuple[int, ...], **settings: object) -> torch.Tensor:
    """The logits after a text, fed at once into a model of its own."""
    return passing.made(numeric_class, device, **settings).feed({"x": text})["x"]  # type: ignore[arg-type]


def filled(numeric_class: str, device: str, **settings: object) -> passing.Passing:
    """A model with six sessions, each a part of the text as long as LENGTHS says."""
    of = passing.made(numeric_class, device, **settings)  # type: ignore[arg-type]
    of.feed({name: TEXT[-length:] for name, length in LENGTHS.items()})
    return of


def off(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


@pytest.mark.parametrize("fixed_steps", [False, True])
@pytest.mark.parametrize("shape", [tiny.SHAPE, WINDOWED], ids=["all", "window"])
def test_lone_rows_have_the_numbers_that_they_have_alone(
    numeric_class: str, device: str, fixed_steps: bool, shape: weights.Shape
) -> None:
    of = filled(numeric_class, device, of=shape, fixed_steps=fixed_steps)
    for step in range(3):
        found = of.feed(dict.fromkeys(LENGTHS, (50 + step,)))
    assert bool(of.llama._steps) is fixed_steps
    for name, length in LENGTHS.items():
        text = (*TEXT[-length:], 50, 51, 52)
        assert off(found[name], alone(numeric_class, device, text, of=shape)) < NOISE[numeric_class]


def test_a_decode_step_of_a_fixed_size_is_the_plain_pass(numeric_class: str, device: str) -> None:
    plain, fixed = (filled(numeric_class, device, fixed_steps=choice) for choice in (False, True))
    rounds = (["a"], list(LENGTHS), ["f", "b", "a"], ["c", "d"], ["e"], list(LENGTHS)[:5], ["a", "c"])
    for number, names in enumerate(rounds):
        feeds = dict.fromkeys(names, (number * 7 + 1,))
        expected, found = plain.feed(feeds), fixed.feed(feeds)
        for name in names:
            assert off(expected[name], found[name]) < NOISE[numeric_class]
    assert {rows for rows, _ in fixed.llama._steps} == {1, 2, 4, 8}
    assert {width for _, width in fixed.llama._steps} >= {4, 8, 32}
    assert not plain.llama._steps


def test_a_recorded_step_is_the_plain_pass(numeric_class: str) -> None:
    """The recorder is one of memory: what it returns first is all that it ever writes to, as a GPU's does."""
    replays = [0]

    def record(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        result = run()

        def replay() -> None:
            replays[0] += 1
            result.copy_(run())

        return replay, result

    plain = filled(numeric_class, "cpu", fixed_steps=False)
    of = filled(numeric_class, "cpu", fixed_steps=True, recorder=record)
    rounds = (["a", "b"], ["e"], list(LENGTHS)) * 4
    for number, names in enumerate(rounds):
        feeds = dict.fromkeys(names, (number * 7 + 1,))
        expected, found = plain.feed(feeds), of.feed(feeds)
        for name in names:
            assert off(expected[name], found[name]) < NOISE[numeric_class]
    assert replays[0] == 6
    assert all(step.recorded for step in of.llama._steps.values())


def test_a_step_that_cannot_be_recorded_is_run_plainly() -> None:
    asked = [0]

    def refuse(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        asked[0] += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    of = filled("f32", "cpu", fixed_steps=True, recorder=refuse)
    for step in range(4):
        found = of.feed({"b": (50 + step,)})["b"]
    assert asked[0] == 1
    assert off(found, alone("f32", "cpu", (*TEXT[-31:], 50, 51, 52, 53))) < NOISE["f32"]


def test_a_step_writes_nothing_but_its_own_rows_and_the_scratch_page(device: str) -> None:
    of = filled("f32", device, fixed_steps=True)
    of.feed({"b": (3,), "f": (4,), "e": (5,), "d": (6,)})
    of.pool.data[of.held["d"][1], :, :, LENGTHS["d"] % 32] = 9  # as if the page of the one that left were another's
    before = of.pool.data.clone()
    of.feed({"b": (3,), "f": (4,), "e": (5,)})
    assert list(of.llama._steps) == [(4, 32)]
    changed = (of.pool.data != before).flatten(4).any(-1).any(1).any(1).nonzero().tolist()  # [page, slot]
    expected = {(of.held[name][(LENGTHS[name] + 1) // 32], (LENGTHS[name] + 1) % 32) for name in "bfe"}
    assert {(page, slot) for page, slot in changed if page != of.pool.scratch} == expected


@pytest.mark.parametrize("shape", [tiny.SHAPE, WINDOWED], ids=["all", "window"])
def test_a_pass_asks_the_device_for_nothing(numeric_class: str, shape: weights.Shape) -> None:
    """Tensors without contents answer no question, so what runs over them waits for no device and can be recorded."""
    llama = passing.made(numeric_class, "meta", of=shape).llama
    segments = [pages.Segment(0, (1,), 90, (0, 1, 2)), pages.Segment(1, TEXT[:40], 20, (3, 4))]
    for wanted in ([0, 40], []):
        batch = passes.arrange(segments, wanted, window_tokens=70, gathered_pages_max=256, device=torch.device("meta"))
        assert llama._run(batch).shape == (len(wanted), shape.vocabulary)
    with pytest.raises(RuntimeError):
        batch.token.max().item()


def test_tables_of_very_different_lengths_are_not_padded_to_one() -> None:
    segments = [
        pages.Segment(row, (1,), length, tuple(range(100))) for row, length in enumerate((5, 900, 20, 2000, 70, 1000))
    ]
    batch = passes.arrange(segments, [3, 0], window_tokens=None, gathered_pages_max=256, device=torch.device("cpu"))
    assert [tuple(group.table.shape) for group in batch.groups] == [(2, 1), (1, 3), (2, 32), (1, 63)]
    assert batch.wanted is not None
    assert batch.position[batch.wanted].tolist() == [2000, 5]


@pytest.mark.parametrize("fixed_steps", [False, True])
def test_logits_come_in_the_order_of_the_rows_that_are_wanted(fixed_steps: bool) -> None:
    of = passing.made("f32", fixed_steps=fixed_steps)
    found = of.feed({"a": (3,), "b": (4,), "c": (5,)})
    segments = [pages.Segment(2 - row, (3 + row,), 0, (of.free[row],)) for row in range(3)]
    logits = of.llama.forward(segments, [1, 0, 2, 0])
    for row, name in zip(logits, "bcac", strict=True):
        assert off(row, found[name]) < NOISE["f32"]
    assert off(found["a"], found["b"]) > 10 * NOISE["f32"]
    assert of.llama.forward(segments, []).shape == (0, tiny.SHAPE.vocabulary)


def test_a_large_crowd_is_cut() -> None:
    segments = [pages.Segment(row, (1,), 639, tuple(range(20))) for row in range(30)]
    batch = passes.arrange(segments, [], window_tokens=None, gathered_pages_max=256, device=torch.device("cpu"))
    assert [tuple(group.table.shape) for group in batch.groups] == [(12, 20), (12, 20), (6, 20)]


def test_pages_before_a_window_are_not_read() -> None:
    held = passes.table(pages.Segment(0, (1, 2), 100, (7, 8, 9, 10)), 37)
    assert held == passes.Table((9, 10), 64)
    assert passes.table(pages.Segment(0, (1, 2), 100, (7, 8, 9, 10)), 38) == passes.Table((8, 9, 10), 32)


@settings(max_examples=12)
@given(some.data())
def test_any_mix_of_chunks_ends_in_the_same_numbers(data: some.DataObject) -> None:
    of = passing.made("f32", fixed_steps=data.draw(some.booleans()))
    texts = {name: TEXT[start : start + data.draw(some.integers(1, 150))] for start, name in enumerate("abcd")}
    while waiting := {name: text for name, text in texts.items() if of.length.get(name, 0) < len(text)}:
        names = data.draw(some.permutations(sorted(waiting)))[: data.draw(some.integers(1, len(waiting)))]
        feeds = {}
        for name in names:
            start = of.length.get(name, 0)
            feeds[name] = texts[name][start : start + data.draw(some.sampled_from((1, 1, 5, 32, 64)))]
        found = of.feed(feeds)
        for name in names:
            if of.length[name] == len(texts[name]):
                assert off(found[name], alone("f32", "cpu", texts[name])) < NOISE["f32"]


@pytest.mark.parametrize("fixed_steps", [False, True])
def test_what_somebody_left_in_memory_is_not_seen(numeric_class: str, device: str, fixed_steps: bool) -> None:
    of = passing.made(numeric_class, device, fixed_steps=fixed_steps)
    of.pool.data[:] = float("nan")
    of.feed({"a": TEXT[:40], "b": TEXT[:63]})
    for token in (1, 2, 3):
        found = of.feed({"a": (token,), "b": (token,), "c": (token,)})
    for name, text in {"a": TEXT[:40], "b": TEXT[:63], "c": ()}.items():
        assert off(found[name], alone(numeric_class, device, (*text, 1, 2, 3))) < NOISE[numeric_class]


def test_a_restored_or_copied_page_is_as_good_as_a_computed_one(numeric_class: str, device: str) -> None:
    of, other = (passing.made(numeric_class, device) for _ in range(2))
    of.feed({"a": TEXT[:128]})
    room = other.room("a", 128)
    for mine, theirs in zip(of.held["a"], room, strict=True):
        other.pool.restore(theirs, other.pool.parse(of.pool.export(mine)))
    assert [other.pool.export(page) for page in room] == [of.pool.export(page) for page in of.held["a"]]
    for source, target in zip(room, other.room("fork", 128), strict=True):
        other.pool.copy(source, target)
    other.length |= {"a": 128, "fork": 128}
    expected = of.feed({"a": (1,)})["a"]
    assert torch.equal(other.feed({"a": (1,)})["a"], expected)
    assert torch.equal(other.feed({"fork": (1,)})["fork"], expected)


def test_a_page_lies_in_memory_as_on_the_wire(device: str) -> None:
    of, shape = passing.made("bf16", device), tiny.SHAPE
    of.feed({"a": TEXT[:32]})
    [page] = of.held["a"]
    wire = torch.frombuffer(bytearray(of.pool.export(page)), dtype=torch.bfloat16)
    wire = wire.view(shape.layers, 2, pages.PAGE_TOKENS, shape.kv_heads, shape.head_dim)
    assert torch.equal(of.pool.data[page].cpu(), wire)
    assert of.pool.data[page].is_contiguous()
    assert len(of.pool.export(page)) == of.pool.page_bytes


def test_a_page_that_cannot_be_ours_is_refused(numeric_class: str, device: str) -> None:
    pool = passing.made(numeric_class, device).pool
    with pytest.raises(errors.EngineError, match=f"{pool.page_bytes} bytes"):
        pool.parse(bytes(pool.page_bytes - 1))
    poison = torch.zeros(pool.page_bytes // pool.data.element_size(), dtype=pool.data.dtype)
    for number in ("nan", "inf", "-inf"):
        poison[17] = float(number)
        with pytest.raises(errors.EngineError, match="finite"):
            pool.parse(poison.view(torch.uint8).numpy().tobytes())


def test_memory_is_taken_when_it_is_used() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    pool = kv.Pool(30, 3, 64, torch.bfloat16, 2 << 30)
    assert resident_bytes() - before < 100 << 20
    pool.clear(range(300))
    assert resident_bytes() - before > 200 << 20


@pytest.mark.parametrize("memory_bytes", [1000, 1 << 55])
def test_memory_that_is_no_page_or_more_than_there_is_is_the_operators_mistake(device: str, memory_bytes: int) -> None:
    with pytest.raises(errors.ConfigError, match=str(memory_bytes)[:4]):
        passing.made("bf16", device, memory_bytes=memory_bytes)


def test_a_card_says_the_class_and_the_device(numeric_class: str) -> None:
    of = tiny.make(numeric_class)
    assert of.card.numeric_class.startswith(f"{numeric_class}/{torch.__version__.split('+')[0]}/")
    assert of.card.numeric_class.endswith(model.device_name(model.best_device()))


def test_bf16_pages_are_half_of_f32_pages() -> None:
    assert 2 * tiny.make("bf16").card.page_bytes == tiny.make("f32").card.page_bytes


def test_logits_that_are_not_finite_end_their_session_alone(numeric_class: str) -> None:
    sound = tiny.assembled(numeric_class)
    embedding = sound.embedding.turned.clone()
    embedding[:, 7] = float("nan")  # the token 7 poisons whoever reads it
    poisoned = dataclasses.replace(sound, embedding=dataclasses.replace(sound.embedding, turned=embedding))
    of = tiny.make(numeric_class, loaded=poisoned, tied=False)
    names = [ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc"]
    feeds = [(1, 2, 3), (1, 7, 3), (1, 2, 3)]
    of.step([ports.Work(name, 0, feed, None) for name, feed in zip(names[:2], feeds[:2], strict=True)])
    good, bad = of.step([ports.Work(name, 3, (4,), ports.Sampling()) for name in names[:2]])
    assert isinstance(bad, errors.EngineError)
    assert isinstance(good, int)
    assert of.step([ports.Work(names[2], 0, (1, 2, 3, 4), ports.Sampling())]) == [good]


def test_models_that_are_one_agree_with_themselves(device: str) -> None:
    ours, theirs = (passing.made("f32", device).llama for _ in range(2))
    found = agreement.compare(ours, theirs, TEXT[:101], chunk_tokens=40) + agreement.compare(ours, theirs, TEXT[:2])
    assert (found.place_count, found.same_count) == (101, 101)
    assert found.divergence_nats == 0.0
    assert found.reference_nats == found.other_nats


def test_bf16_speaks_almost_as_f32_does(device: str) -> None:
    reference, other = (passing.made(kind, device).llama for kind in ("f32", "bf16"))
    chunked = agreement.compare(reference, other, TEXT[:500])
    decoded = agreement.compare(reference, other, TEXT[:100], chunk_tokens=1)
    for found in (chunked, decoded):
        assert 0 < found.divergence_nats < 0.03 * found.place_count
        assert found.same_count > 0.8 * found.place_count
