"""The writer: many tasks, one thread, and nobody left waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from meshnode import errors, ids, journal

ONE, TWO, THREE = (journal.record(ids.SessionId(b"a" * 16), body) for body in (b"one", b"two", b""))


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
