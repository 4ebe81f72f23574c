"""The journal on a real folder and in memory: what was appended is there, whatever fails, and nothing is made up."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest
import trio
import trio.testing
from hypothesis import strategies as st

from meshnode import errors, ids, journal
from meshnode.snapshots import tape as tapes

ALICE = ids.SessionId(b"a" * 16)
ONE, TWO, THREE = (journal.record(ALICE, body) for body in (b"one", b"two" * 50, b""))


class Shelf(Protocol):
    """Where a journal lies between two lives of a process."""

    def open(self) -> journal.Journal: ...

    def data(self) -> bytes: ...

    def damage(self, data: bytes) -> None: ...


class FolderShelf:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> journal.Journal:
        return journal.Journal.open(self._folder)

    def data(self) -> bytes:
        return (self._folder / "journal").read_bytes()

    def damage(self, data: bytes) -> None:
        (self._folder / "journal").write_bytes(data)


class MemoryShelf:
    def __init__(self) -> None:
        self._tape = tapes.MemoryTape()

    def open(self) -> journal.Journal:
        return journal.Journal.open(self._tape)

    def data(self) -> bytes:
        data = self._tape.read()
        assert data is not None
        return data

    def damage(self, data: bytes) -> None:
        self._tape.replace([data])


@pytest.fixture(params=["folder", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    return FolderShelf(tmp_path / "data") if request.param == "folder" else MemoryShelf()


def reopened(shelf: Shelf, before: journal.Journal) -> journal.Journal:
    before.close()
    return shelf.open()


# ----------------------------------------------------------------------------------------------------------- contract


def test_a_record_names_its_session() -> None:
    assert journal.split(journal.record(ALICE, b"body")) == (ALICE, b"body")
    with pytest.raises(errors.StoreError, match="names no session"):
        journal.split(b"short")


def test_records_come_back_in_order_also_after_reopening(shelf: Shelf) -> None:
    ours = shelf.open()
    assert list(ours.replay()) == []
    ours.append([ONE, TWO])
    ours.append([])
    ours.append([THREE])
    assert list(ours.replay()) == [ONE, TWO, THREE]
    assert ours.statistics() == journal.JournalStatistics(record_count=3, batch_count=2, torn_bytes=0)
    ours = reopened(shelf, ours)
    assert list(ours.replay()) == [ONE, TWO, THREE]
    assert ours.size() == len(shelf.data())
    ours.append([ONE])
    assert list(reopened(shelf, ours).replay()) == [ONE, TWO, THREE, ONE]


def test_a_rewrite_replaces_everything_and_appends_go_on(shelf: Shelf) -> None:
    ours = shelf.open()
    ours.append([ONE] * 100)
    large = ours.size()
    ours.rewrite(iter([TWO, THREE]))
    assert ours.size() < large
    ours.append([ONE])
    assert list(ours.replay()) == [TWO, THREE, ONE]
    ours = reopened(shelf, ours)
    assert list(ours.replay()) == [TWO, THREE, ONE]
    ours.rewrite([])
    assert list(reopened(shelf, ours).replay()) == []


def test_a_rewrite_can_be_larger_than_one_batch(shelf: Shelf) -> None:
    ours = shelf.open()
    records = [bytes([at]) * (3 << 20) for at in range(7)]
    ours.rewrite(records)
    assert list(reopened(shelf, ours).replay()) == records


def test_every_torn_tail_is_cut_counted_and_costs_only_the_last_batch(shelf: Shelf) -> None:
    ours = shelf.open()
    ours.append([ONE])
    sound = ours.size()
    ours.append([TWO, THREE])
    whole = shelf.data()
    for length in range(sound, len(whole)):
        ours.close()
        shelf.damage(whole[:length])
        ours = shelf.open()
        assert list(ours.replay()) == [ONE]
        assert ours.statistics().torn_bytes == length - sound
        assert ours.size() == len(shelf.data()) == sound


def test_a_tail_of_zeros_or_of_old_blocks_is_torn_too(shelf: Shelf) -> None:
    ours = shelf.open()
    ours.append([ONE])
    whole = shelf.data()
    for tail in (bytes(5000), whole[: len(whole) // 2], b"\xff" * 100):
        ours.close()
        shelf.damage(whole + tail)
        ours = shelf.open()
        assert list(ours.replay()) == [ONE]
        assert ours.statistics().torn_bytes == len(tail)


def test_every_flipped_bit_before_sound_records_is_refused(shelf: Shelf) -> None:
    ours = shelf.open()
    ours.append([ONE])
    first = range(tapes.HEADER_BYTES, ours.size())
    ours.append([TWO])
    ours.close()
    whole = shelf.data()
    for at in first:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        shelf.damage(bytes(damaged))
        with pytest.raises(errors.StoreError, match=r"journal.* is damaged at byte .* Move the data folder away"):
            shelf.open()
        assert shelf.data() == bytes(damaged)  # evidence is left as it is
    shelf.damage(whole)
    assert list(shelf.open().replay()) == [ONE, TWO]


@pytest.mark.parametrize("data", [b"", b"MN", b"\x7fELF" + bytes(100), tapes.MAGIC])
def test_a_foreign_or_emptied_file_is_refused(shelf: Shelf, data: bytes) -> None:
    shelf.open().close()
    shelf.damage(data)
    with pytest.raises(errors.StoreError, match="not a journal"):
        shelf.open()


def test_content_that_looks_like_a_batch_does_not_turn_a_torn_tail_into_rot(tmp_path: Path) -> None:
    shelf = FolderShelf(tmp_path)
    ours = shelf.open()
    ours.append([ONE])
    sound = ours.size()
    foreign = tapes.batch(bytes(tapes.SALT_BYTES), [TWO])  # a batch of another journal, as an agent might write it
    ours.append([journal.record(ALICE, foreign * 3)])
    ours.close()
    shelf.damage(shelf.data()[:-1])
    ours = shelf.open()
    assert list(ours.replay()) == [ONE]
    assert ours.size() == sound


@hypothesis.given(
    batches=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), max_size=6),
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=3),
    cut=st.integers(0, 400),
)
def test_what_replays_after_any_damage_is_what_was_appended(
    batches: list[list[bytes]], damage: list[tuple[int, int]], cut: int
) -> None:
    tape = tapes.MemoryTape()
    ours = journal.Journal.open(tape)
    prefixes: list[list[bytes]] = [[]]
    for batch in batches:
        ours.append(batch)
        prefixes.append(prefixes[-1] + batch)
    data = bytearray((tape.read() or b"")[: tapes.HEADER_BYTES + cut])
    for at, mask in damage:
        if tapes.HEADER_BYTES + at < len(data):
            data[tapes.HEADER_BYTES + at] ^= mask
    tape.replace([bytes(data)])
    try:
        found = list(journal.Journal.open(tape).replay())
    except errors.StoreError:
        return
    assert found in prefixes


# -------------------------------------------------------------------------------------------------------------- faults


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


# -------------------------------------------------------------------------------------------------------------- writer


class Gated:
    """A journal whose every append waits for a token in its thread, so that others pile up behind it."""

    def __init__(self, behind: journal.MemoryJournal, *, blocking: bool = True) -> None:
        self.blocking = blocking
        self.groups: list[int] = []
        self._behind = behind
        self.started, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def append(self, records: Sequence[bytes]) -> None:
        self.started.release()
        self.gate.acquire()
        self.groups.append(len(records))
        self._behind.append(records)

    def rewrite(self, records: Iterable[bytes]) -> None:
        self._behind.rewrite(records)


@pytest.fixture(params=["folder", "memory"])
def recorder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[journal.Journal | journal.MemoryJournal]:
    ours = journal.Journal.open(tmp_path) if request.param == "folder" else journal.MemoryJournal()
    yield ours
    ours.close()


async def test_an_append_returns_once_its_records_are_durable(
    recorder: journal.Journal | journal.MemoryJournal,
) -> None:
    writer = journal.JournalWriter(recorder)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        await writer.append([ONE, TWO])
        assert list(recorder.replay()) == [ONE, TWO]
        await writer.append([THREE])
        await writer.rewrite([TWO])
        await writer.append([])
        assert list(recorder.replay()) == [TWO]
        nursery.cancel_scope.cancel()


async def test_many_appends_share_few_writes_and_each_task_keeps_its_order(
    recorder: journal.Journal | journal.MemoryJournal,
) -> None:
    writer = journal.JournalWriter(recorder, queue_max=4)

    async def talk(who: int) -> None:
        for count in range(5):
            await writer.append([bytes([who, count])])

    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as talkers:
            for who in range(20):
                talkers.start_soon(talk, who)
        nursery.cancel_scope.cancel()
    found = list(recorder.replay())
    assert len(found) == 100
    for who in range(20):
        assert [entry[1] for entry in found if entry[0] == who] == list(range(5))
    assert recorder.statistics().batch_count < 100


async def test_what_comes_during_a_write_shares_the_next_one() -> None:
    gated = Gated(journal.MemoryJournal())
    writer = journal.JournalWriter(gated)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as talkers:
            talkers.start_soon(writer.append, [ONE])
            await trio.to_thread.run_sync(gated.started.acquire)
            for _ in range(10):
                talkers.start_soon(writer.append, [TWO])
            await trio.testing.wait_all_tasks_blocked()
            gated.gate.release(2)
        nursery.cancel_scope.cancel()
    assert gated.groups == [1, 10]


async def test_a_rewrite_keeps_its_place_between_appends() -> None:
    ours = journal.MemoryJournal()
    writer = journal.JournalWriter(ours)
    async with trio.open_nursery() as nursery:
        for act, entry in ((writer.append, ONE), (writer.rewrite, TWO), (writer.append, THREE)):
            nursery.start_soon(act, [entry])
            await trio.testing.wait_all_tasks_blocked()
        await nursery.start(writer.run)
        await writer.append([])
        nursery.cancel_scope.cancel()
    assert list(ours.replay()) == [TWO, THREE]


async def refused(writer: journal.JournalWriter, reasons: list[str]) -> None:
    with pytest.raises(errors.StoreError) as caught:
        await writer.append([ONE])
    reasons.append(str(caught.value))


async def test_a_fault_reaches_everyone_who_waits_and_everyone_who_comes_later() -> None:
    ours = journal.MemoryJournal()
    ours.tape.fail_at = ours.tape.step_count + 2
    writer = journal.JournalWriter(ours, queue_max=3)
    reasons: list[str] = []
    async with trio.open_nursery() as nursery:
        for _ in range(8):  # three in the queue, five before it
            nursery.start_soon(refused, writer, reasons)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(errors.StoreError, match="injected"):
            await writer.run()
    await refused(writer, reasons)
    assert len(reasons) == 9
    assert all("injected" in reason for reason in reasons)


async def test_a_writer_that_is_cancelled_leaves_nobody_waiting() -> None:
    for ready in (False, True):  # before it took anything, and in the turn in which it took the first
        writer = journal.JournalWriter(journal.MemoryJournal(), queue_max=1)
        reasons: list[str] = []
        with trio.fail_after(1):
            async with trio.open_nursery() as talkers, trio.open_nursery() as nursery:
                for _ in range(3):
                    talkers.start_soon(refused, writer, reasons)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(writer.run)
                if ready:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert reasons == ["the journal is closing"] * 3


async def test_a_write_that_has_begun_is_finished_and_answered_despite_the_cancel() -> None:
    gated = Gated(journal.MemoryJournal())
    writer = journal.JournalWriter(gated)
    async with trio.open_nursery() as talkers, trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        talkers.start_soon(writer.append, [ONE])
        await trio.to_thread.run_sync(gated.started.acquire)
        nursery.cancel_scope.cancel()
        gated.gate.release()
    assert gated.groups == [1]


async def test_a_journal_in_memory_needs_no_thread(autojump_clock: trio.testing.MockClock) -> None:
    ours = Gated(journal.MemoryJournal(), blocking=False)
    ours.gate.release(1)
    writer = journal.JournalWriter(ours)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        await trio.sleep(1000)
        await writer.append([ONE])
        assert trio.current_time() < 1001
        nursery.cancel_scope.cancel()
    assert ours.groups == [1]
