"""What only a machine with a GPU can show: recorded steps, the same words as a CPU's, and pages that go both ways."""

from __future__ import annotations

import pytest
import torch

from meshnode import ids, ports
from meshnode.engine import model
from tests.engine import agreement, passing, tiny
from tests.engine.test_model import LENGTHS, NOISE, TEXT, filled, off

pytestmark = pytest.mark.gpu

A = ids.SessionId(b"a" * ids.SESSION_BYTES)


@pytest.fixture(params=["f32", "bf16"])
def numeric_class(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_replayed_graph_has_the_numbers_of_the_plain_step(numeric_class: str) -> None:
    recorded, plain = (filled(numeric_class, "cuda", fixed_steps=True) for _ in range(2))
    plain.llama._recorder = None
    for token in range(8):
        feeds = dict.fromkeys(LENGTHS, (token,))
        expected, found = plain.feed(feeds), recorded.feed(feeds)
        for name in LENGTHS:
            assert off(expected[name], found[name]) < 1e-5
    assert [step.recorded for step in recorded.llama._steps.values()] == [True]
    assert [step.recorded for step in plain.llama._steps.values()] == [False]
    for name in LENGTHS:
        last = plain.held[name][-1]
        assert torch.allclose(plain.pool.data[last].float(), recorded.pool.data[last].float(), atol=1e-5)


def test_graphs_of_several_sizes_do_not_disturb_each_other(numeric_class: str) -> None:
    of, plain = (filled(numeric_class, "cuda", fixed_steps=choice) for choice in (True, False))
    rounds = (["a"], list(LENGTHS), ["f", "b", "a"]) * 4
    for number, names in enumerate(rounds):
        feeds = dict.fromkeys(names, (number + 1,))
        expected, found = plain.feed(feeds), of.feed(feeds)
        for name in names:
            assert off(expected[name], found[name]) < NOISE[numeric_class]
    assert sum(step.recorded for step in of.llama._steps.values()) >= 3


def test_a_step_that_cannot_be_recorded_is_run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    of, plain = filled("f32", "cuda", fixed_steps=True), filled("f32", "cuda", fixed_steps=False)
    waits = [0]
    inner = of.llama._logits

    def waiting(rows: torch.Tensor) -> torch.Tensor:
        waits[0] += 1
        torch.cuda.synchronize()  # which a recording forbids
        return inner(rows)

    monkeypatch.setattr(of.llama, "_logits", waiting)
    for token in range(4):
        expected, found = plain.feed({"a": (token,)}), of.feed({"a": (token,)})
        assert off(expected["a"], found["a"]) < NOISE["f32"]
    assert waits[0] == 5
    assert not any(step.recorded for step in of.llama._steps.values())


def test_a_gpu_has_the_numbers_of_a_cpu_in_float32() -> None:
    cpu, gpu = (passing.made("f32", device) for device in ("cpu", "cuda"))
    assert off(cpu.feed({"a": TEXT})["a"], gpu.feed({"a": TEXT})["a"]) < NOISE["f32"]  # TF32 would be off by more


def test_a_gpu_says_what_a_cpu_says(numeric_class: str, capsys: pytest.CaptureFixture[str]) -> None:
    cpu, gpu = (passing.made(numeric_class, device).llama for device in ("cpu", "cuda"))
    for chunk_tokens in (1, 256):
        found = agreement.compare(cpu, gpu, TEXT, chunk_tokens=chunk_tokens)
        with capsys.disabled():
            print(f"\n{numeric_class}, CPU and GPU, chunks of {chunk_tokens}: {found}")
        assert found.same_count >= (0.99 if numeric_class == "f32" else 0.8) * found.place_count


def test_pages_go_from_a_gpu_to_a_cpu_and_back(numeric_class: str) -> None:
    gpu, cpu, back = (passing.made(numeric_class, device) for device in ("cuda", "cpu", "cuda"))
    gpu.feed({"a": TEXT[:96]})
    for source, target in ((gpu, cpu), (cpu, back)):
        room = target.room("a", 96)
        for mine, theirs in zip(source.held["a"], room, strict=True):
            target.pool.restore(theirs, target.pool.parse(source.pool.export(mine)))
        target.length["a"] = 96
    exported = [[of.pool.export(page) for page in of.held["a"]] for of in (gpu, cpu, back)]
    assert exported[0] == exported[1] == exported[2]
    words = [of.feed({"a": (1, 2, 3)})["a"] for of in (gpu, cpu, back)]
    assert torch.equal(words[0], words[2])
    assert off(words[0], words[1]) < NOISE[numeric_class]


def test_the_engine_takes_the_gpu_by_itself(numeric_class: str) -> None:
    of = tiny.make(numeric_class)
    assert of.card.numeric_class.endswith(model.device_name(torch.device("cuda")))
    assert "cuda-sm" in of.card.numeric_class
    [token] = of.step([ports.Work(A, 0, TEXT[:70], ports.Sampling())])
    assert isinstance(token, int)
    assert of.restore(A, TEXT[:64], [of.export(A, 0), of.export(A, 1)]) == 64
    [again] = of.step([ports.Work(A, 64, TEXT[64:70], ports.Sampling())])
    assert isinstance(again, int)
    assert again == token or numeric_class == "bf16"  # six rows may be rounded otherwise than seventy


def test_the_exact_class_stays_on_the_cpu() -> None:
    assert "cuda" not in tiny.make("w8").card.numeric_class
