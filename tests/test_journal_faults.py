"""The journal when the disk fails, the power does, the process is killed, or a second one starts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from meshnode import errors, ids, journal
from meshnode.snapshots import tape as tapes

ALICE = ids.SessionId(b"a" * 16)
ONE, TWO, THREE = (journal.record(ALICE, body) for body in (b"one", b"two" * 9, b""))


def life(tape: tapes.Tape, acked: list[bytes]) -> bool:
    """A process at work, until something fails. `acked` is what it promised; False if something failed."""
    try:
        ours = journal.Journal.open(tape)
        for step in range(4):
            batch = [journal.record(ALICE, bytes([step, at])) for at in range(2)]
            ours.append(batch)
            acked += batch
        ours.rewrite(acked[2:])
        del acked[:2]
        ours.append([ONE])
        acked.append(ONE)
    except errors.StoreError:
        return False
    return True


def in_doubt(acked: list[bytes]) -> list[list[bytes]]:
    """What may be found after a crash: all that was promised, and at most the one step that was not answered."""
    following = [[journal.record(ALICE, bytes([step, at])) for at in range(2)] for step in range(4)]
    return [acked, acked[2:], [*acked, ONE], *([*acked, *batch] for batch in following)]


def test_whatever_step_fails_no_promise_is_lost_and_none_is_made_up() -> None:
    untouched = tapes.MemoryTape()
    assert life(untouched, [])
    assert untouched.step_count > 10
    for fail_at in range(1, untouched.step_count + 1):
        for seed in range(8):
            tape, acked = tapes.MemoryTape(), list[bytes]()
            tape.fail_at = fail_at
            assert not life(tape, acked)
            tape.crash(random.Random(seed) if seed else None)
            found = list(journal.Journal.open(tape).replay())
            assert found in in_doubt(acked)


def test_what_a_restarted_process_has_read_survives_the_next_power_cut() -> None:
    tape = tapes.MemoryTape()
    ours = journal.Journal.open(tape)
    tape.fail_at = tape.step_count + 2
    with pytest.raises(errors.StoreError):
        ours.append([ONE])
    read = list(journal.Journal.open(tape).replay())  # the process ended, the machine did not: its cache has it
    tape.crash()
    assert read == list(journal.Journal.open(tape).replay()) == [ONE]


def test_a_crash_in_memory_drops_what_was_not_synced() -> None:
    ours = journal.MemoryJournal()
    ours.append([ONE])
    ours.tape.fail_at = ours.tape.step_count + 2
    with pytest.raises(errors.StoreError):
        ours.append([TWO])
    ours.crash()
    assert list(ours.replay()) == [ONE]
    ours.append([THREE])
    ours.crash(random.Random(1))
    assert list(ours.replay()) == [ONE, THREE]


class FailingTape:
    """A tape over another whose next write fails, before or after it did its work."""

    def __init__(self, tape: tapes.Tape) -> None:
        self.path = tape.path
        self.blocking = tape.blocking
        self.failing = ""
        self._tape = tape

    def read(self) -> bytes | None:
        return self._tape.read()

    def append(self, data: bytes) -> None:
        self._tape.append(data[: len(data) // 2] if self.failing == "torn" else b"" if self.failing else data)
        self._fail()

    def replace(self, data: Iterable[bytes]) -> None:
        if not self.failing:
            self._tape.replace(data)
        self._fail()

    def close(self) -> None:
        self._tape.close()

    def _fail(self) -> None:
        if self.failing:
            self.failing = ""
            raise errors.StoreError("injected fault")


@pytest.mark.parametrize("failing", ["torn", "nothing"])
def test_after_one_failed_append_the_journal_is_poisoned_until_it_is_opened_again(tmp_path: Path, failing: str) -> None:
    tape = FailingTape(journal.FolderTape(tmp_path))
    ours = journal.Journal.open(tape)
    ours.append([ONE])
    tape.failing = failing
    with pytest.raises(errors.StoreError, match="injected"):
        ours.append([TWO])
    poisoned = "Start the node again"
    with pytest.raises(errors.StoreError, match=poisoned):
        ours.append([TWO])
    with pytest.raises(errors.StoreError, match=poisoned):
        ours.rewrite([TWO])
    with pytest.raises(errors.StoreError, match=poisoned):
        list(ours.replay())
    ours.close()
    fresh = journal.Journal.open(tmp_path)
    assert list(fresh.replay()) == [ONE]
    assert (fresh.statistics().torn_bytes > 0) == (failing == "torn")
    fresh.close()


def test_after_one_failed_rewrite_the_journal_is_poisoned_and_the_old_one_stands(tmp_path: Path) -> None:
    tape = FailingTape(journal.FolderTape(tmp_path))
    ours = journal.Journal.open(tape)
    ours.append([ONE])
    tape.failing = "nothing"
    with pytest.raises(errors.StoreError, match="injected"):
        ours.rewrite([TWO])
    with pytest.raises(errors.StoreError, match="Start the node again"):
        ours.append([TWO])
    ours.close()
    assert list(journal.Journal.open(tmp_path).replay()) == [ONE]


def test_a_half_written_compaction_is_removed(tmp_path: Path) -> None:
    ours = journal.Journal.open(tmp_path)
    ours.append([ONE])
    ours.close()
    (tmp_path / "journal.new").write_bytes(b"half")
    assert list(journal.Journal.open(tmp_path).replay()) == [ONE]
    assert not (tmp_path / "journal.new").exists()


def test_a_full_disk_is_one_sentence_that_says_so(tmp_path: Path) -> None:
    ours = journal.Journal.open(tmp_path)
    (tmp_path / "journal.new").symlink_to("/dev/full")  # every write to it finds the disk full
    with pytest.raises(errors.StoreError, match=r"the disk is full: cannot write .* free some space"):
        ours.rewrite([ONE])
    ours.close()
    assert list(journal.Journal.open(tmp_path).replay()) == []


# ---------------------------------------------------------------------------------------------------------------- lock


def test_a_data_folder_has_one_journal_at_a_time(tmp_path: Path) -> None:
    ours = journal.Journal.open(tmp_path)
    with pytest.raises(errors.ConfigError, match="another meshnode uses this data folder"):
        journal.Journal.open(tmp_path)
    ours.append([ONE])
    ours.close()
    ours.close()
    with pytest.raises(errors.StoreError):
        ours.append([ONE])
    assert list(journal.Journal.open(tmp_path).replay()) == [ONE]


def test_a_refused_journal_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"foreign")
    for _ in range(2):
        with pytest.raises(errors.StoreError, match="not a journal"):
            journal.Journal.open(tmp_path)


HOLDER = """
import sys, pathlib
from meshnode import journal
ours = journal.Journal.open(pathlib.Path(sys.argv[1]))
for count in range(100_000):
    ours.append([count.to_bytes(4, "big")])
    print(count, flush=True)
"""


def test_a_killed_process_frees_the_lock_and_leaves_what_it_promised(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as holder:
        assert holder.stdout is not None
        promised = [int(holder.stdout.readline()) for _ in range(20)]
        with pytest.raises(errors.ConfigError, match="another meshnode"):
            journal.Journal.open(tmp_path)
        holder.send_signal(signal.SIGKILL)
        promised += [int(line) for line in holder.stdout if line.endswith(b"\n")]
    found = [int.from_bytes(entry, "big") for entry in journal.Journal.open(tmp_path).replay()]
    assert found[: len(promised)] == promised
    assert len(found) <= len(promised) + 1
