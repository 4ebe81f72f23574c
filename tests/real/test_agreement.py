"""How alike the torch classes speak on the real model and real text, printed, and held to a floor."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode.engine import kv, weights
from meshnode.engine import model as torch_model
from meshnode.models import tokenizer
from tests.engine import agreement

TOKENS_MAX = 1500


@pytest.fixture(scope="module")
def text(model: Path) -> list[int]:
    """Prose and code that are at hand: our own design, and the license."""
    words, root = tokenizer.ChatTokenizer(model), Path(__file__).parents[2]
    parts = (root / "meshnode/ARCHITECTURE.md", root / "LICENSE")
    whole = "\n".join(part.read_text()[:6000] for part in parts)
    return words.turn(whole, system=None, first=True, closed=False)[:TOKENS_MAX]


def loaded(folder: Path, numeric_class: str, device: str) -> torch_model.Llama:
    of = weights.shape(folder)
    pool = kv.Pool(of.layers, of.kv_heads, of.head_dim, torch_model.DTYPES[numeric_class], 1 << 28, device)
    return torch_model.Llama(of, weights.load(folder, numeric_class), pool)


def shown(capsys: pytest.CaptureFixture[str], what: str, found: agreement.Agreement) -> None:
    with capsys.disabled():
        print(f"\n{what}: {found}")


def test_bf16_speaks_almost_as_f32_does(model: Path, text: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    reference, other = (loaded(model, kind, "cpu") for kind in ("f32", "bf16"))
    found = agreement.compare(reference, other, text)
    shown(capsys, "f32 and bf16", found)
    assert 0 < found.divergence_nats < 0.01 * found.place_count
    assert found.same_count >= 0.95 * found.place_count
    assert abs(found.other_nats / found.reference_nats - 1) < 0.005


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize("chunk_tokens", [1, 256])
def test_a_gpu_says_what_a_cpu_says(
    model: Path, text: list[int], kind: str, chunk_tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu, gpu = (loaded(model, kind, device) for device in ("cpu", "cuda"))
    found = agreement.compare(cpu, gpu, text[:400] if chunk_tokens == 1 else text, chunk_tokens=chunk_tokens)
    shown(capsys, f"{kind}, CPU and GPU, chunks of {chunk_tokens}", found)
    assert found.same_count >= (0.99 if kind == "f32" else 0.95) * found.place_count
