"""How small a page becomes, and how fast: the codec as it ships, beside plain zstd level 1 of the same bytes.

Pages come from the engine if a model is installed (`meshnode pull`), which prefills a text of this repository;
otherwise from a random generator, which the figure `synthetic` says: random numbers have an exponent's statistics,
but neither the outliers nor the channels of a real cache, so their ratios are not evidence. Speeds are CPU time of
one thread: the machine is shared, and the codec has a core to itself when it runs.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import zstandard

from meshnode import errors, ids, ports
from meshnode.snapshots import codec

TOKENS = 1024
TOKENS_QUICK = 256
TOKEN_WORDS = 11520  # SmolLM2-135M: 30 layers, keys and values, 3 heads of 64
PAGE_TOKENS = 32
ROOT = Path(__file__).resolve().parent.parent


def run(quick: bool, runs: int) -> dict[str, float]:
    tokens = TOKENS_QUICK if quick else TOKENS
    pages = _real(tokens)
    synthetic = not pages
    pages = pages or _synthetic(tokens)
    raw_bytes = sum(map(len, pages))
    encoded = [codec.encode(page) for page in pages]
    pairs = [pages[at] + pages[at + 1] for at in range(0, len(pages) - 1, 2)]
    plain = zstandard.ZstdCompressor(level=1)
    paired_bytes = sum(len(codec.encode(pair).payload) for pair in pairs)
    payload_bytes = sum(len(page.payload) for page in encoded)

    def encode() -> None:
        for page in pages:
            codec.encode(page)

    def decode() -> None:
        for page, raw in zip(encoded, pages, strict=True):
            assert codec.decode(page.codec, page.payload, len(raw)) == raw  # a comparison costs a percent of it

    return {
        "ratio_page": raw_bytes / payload_bytes,
        "ratio_64": sum(map(len, pairs)) / paired_bytes,
        "ratio_page_over_zstd": sum(len(plain.compress(page)) for page in pages) / payload_bytes,
        "encode_mb_s": raw_bytes / 1e6 / _cpu_s(encode, runs),
        "decode_mb_s": raw_bytes / 1e6 / _cpu_s(decode, runs),
        "synthetic": float(synthetic),
    }


def _cpu_s(act: Callable[[], None], runs: int) -> float:
    act()
    taken = []
    for _ in range(runs):
        start = time.thread_time()
        act()
        taken.append(time.thread_time() - start)
    return statistics.median(taken)


def _real(tokens: int) -> list[bytes]:
    """Pages of the first installed model over a text; none if there is no model, or no engine in this environment."""
    if importlib.util.find_spec("torch") is None:
        return []
    from meshnode.engine import engine
    from meshnode.models import store, tokenizer

    installed = store.Models(Path(platformdirs.user_data_dir("meshnode")) / "models").list()
    if not installed:
        return []
    model = installed[0]
    try:
        ours = engine.TorchEngine.load(
            model.folder, name=model.name, digest=model.digest, numeric_class="w8", memory_bytes=256 << 20
        )
    except (errors.ConfigError, errors.StoreError):
        return []
    text = "\n".join(path.read_text() for path in sorted((ROOT / "meshnode").glob("*.py")))[: tokens * 8]
    feed = tokenizer.ChatTokenizer(model.folder).turn(text, system=None, first=True, closed=False)[:tokens]
    session = ids.SessionId(bytes(ids.SESSION_BYTES))
    answer = ours.step([ports.Work(session, 0, tuple(feed), None)])[0]
    assert answer is None, answer
    return [ours.export(session, page_index) for page_index in range(len(feed) // ours.card.page_tokens)]


def _synthetic(tokens: int) -> list[bytes]:
    """Gaussian numbers whose scale differs from channel to channel, as bf16."""
    dice = np.random.default_rng(1)
    scale = np.exp(dice.standard_normal(TOKEN_WORDS))
    values = (dice.standard_normal((tokens, TOKEN_WORDS)) * scale).astype(np.float32)
    words = (values.view(np.uint32) >> 16).astype("<u2")
    return [words[start : start + PAGE_TOKENS].tobytes() for start in range(0, tokens, PAGE_TOKENS)]
