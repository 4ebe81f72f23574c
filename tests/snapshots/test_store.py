"""The page store on a real folder and on a disk in memory that takes every liberty a real one may take."""

from __future__ import annotations

import errno
import functools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from meshnode import errors, ids
from meshnode.snapshots import disk, frames, store

ALICE = ids.SessionId(b"alice" + bytes(11))
BOB = ids.SessionId(b"bob" + bytes(13))
CAROL = ids.SessionId(b"carol" + bytes(11))

Found = TypeVar("Found")


def page(session: ids.SessionId, page_index: int, *, payload_bytes: int = 300, epoch: int = 1) -> bytes:
    address, parent = (ids.digest(session, bytes([at + 1])) for at in (page_index, page_index - 1))
    payload = address * (payload_bytes // 32 + 1)
    return frames.pack(
        frames.PageFrame(session, epoch, page_index, address, parent, 0, payload_bytes, payload[:payload_bytes])
    )


def address(session: ids.SessionId, page_index: int) -> ids.Digest:
    return frames.unpack(page(session, page_index)).address


def file_of(session: ids.SessionId, page_index: int) -> str:
    return f"pages/{session.hex()}/{address(session, page_index).hex()}"


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> disk.Disk:
    return store.FolderDisk(tmp_path / "store") if request.param == "folder" else disk.MemoryDisk()


def overwrite(files: disk.Disk, path: str, data: bytes) -> None:
    """Put bytes in place of a file's, as rot would."""
    files.write("temp/rot", data)
    files.rename("temp/rot", path)


# ----------------------------------------------------------------------------------------------------------- contract


def test_a_page_comes_back_also_after_reopening(files: disk.Disk) -> None:
    pages = store.PageStore(files)
    stored = pages.put(page(ALICE, 0))
    assert stored == store.Stored(frames.unpack(page(ALICE, 0)), ())
    for opened in (pages, store.PageStore(files)):
        assert opened.get(ALICE, address(ALICE, 0)) == stored.frame
        assert opened.have(ALICE) == {address(ALICE, 0)}
        assert opened.statistics().page_count == 1


def test_what_is_not_there_is_none(files: disk.Disk) -> None:
    pages = store.PageStore(files)
    pages.put(page(ALICE, 0))
    assert pages.get(BOB, address(ALICE, 0)) is None
    assert pages.get(ALICE, address(ALICE, 1)) is None
    assert pages.have(BOB) == set()


def test_a_damaged_frame_is_refused_and_not_written(files: disk.Disk) -> None:
    pages = store.PageStore(files)
    with pytest.raises(errors.PeerError):
        pages.put(page(ALICE, 0)[:-1])
    assert files.files() == []


def test_a_page_put_again_takes_its_place_and_costs_once(files: disk.Disk) -> None:
    pages = store.PageStore(files)
    pages.put(page(ALICE, 0))
    pages.put(page(ALICE, 0, epoch=2))
    found = pages.get(ALICE, address(ALICE, 0))
    assert found is not None
    assert found.epoch == 2
    assert pages.statistics().used_bytes == 4096


@pytest.mark.parametrize("rot", [b"", page(ALICE, 0)[:-1], page(ALICE, 1), page(BOB, 0), bytes(500)])
def test_a_torn_or_swapped_file_is_removed_counted_and_never_returned(files: disk.Disk, rot: bytes) -> None:
    pages = store.PageStore(files)
    pages.put(page(ALICE, 0))
    overwrite(files, file_of(ALICE, 0), rot)
    assert pages.get(ALICE, address(ALICE, 0)) is None
    assert pages.statistics() == store.StoreStatistics(0, 0, 0, corrupt_count=1, evicted_count=0)
    assert files.files() == []
    assert pages.get(ALICE, address(ALICE, 0)) is None


def test_a_file_that_vanished_is_none(files: disk.Disk) -> None:
    pages = store.PageStore(files)
    pages.put(page(ALICE, 0))
    files.remove(file_of(ALICE, 0))
    assert pages.get(ALICE, address(ALICE, 0)) is None
    assert pages.have(ALICE) == set()


def test_drop_removes_one_session_and_its_files(files: disk.Disk) -> None:
    pages = store.PageStore(files)
    pages.put(page(ALICE, 0))
    pages.put(page(ALICE, 1))
    pages.put(page(BOB, 0))
    pages.drop(ALICE)
    pages.drop(CAROL)
    assert pages.sessions() == (BOB,)
    assert [path for path, _ in files.files()] == [file_of(BOB, 0)]


def test_opening_cleans_up_half_written_files_and_leaves_foreign_ones(files: disk.Disk) -> None:
    files.write("temp/7", b"half")
    overwrite(files, "pages/readme", b"not ours")
    overwrite(files, f"pages/{ALICE.hex()}/zz", b"not ours")
    overwrite(files, "pages/00/00", b"not ours")
    assert store.PageStore(files).sessions() == ()
    assert len(files.files()) == 3
    assert not [path for path, _ in files.files() if path.startswith("temp/")]


def test_the_session_written_to_longest_ago_gives_way(files: disk.Disk) -> None:
    pages = store.PageStore(files, budget_bytes=4 * 4096)
    for session in (ALICE, BOB, ALICE):
        pages.put(page(session, len(pages.have(session))))
    pages.put(page(CAROL, 0))
    assert pages.put(page(CAROL, 1)).evicted == (BOB,)
    assert pages.put(page(CAROL, 2)).evicted == (ALICE,)
    assert pages.sessions() == (CAROL,)
    assert pages.statistics().evicted_count == 2


def test_a_session_never_evicts_its_own_pages(files: disk.Disk) -> None:
    pages = store.PageStore(files, budget_bytes=2 * 4096)
    pages.put(page(ALICE, 0))
    pages.put(page(ALICE, 1))
    with pytest.raises(errors.StoreError, match="budget"):
        pages.put(page(ALICE, 2))
    assert pages.have(ALICE) == {address(ALICE, 0), address(ALICE, 1)}


def test_the_budget_counts_what_is_found_at_opening(files: disk.Disk) -> None:
    before = store.PageStore(files)
    before.put(page(ALICE, 0, payload_bytes=9000))
    before.put(page(BOB, 0))
    pages = store.PageStore(files, budget_bytes=10000)
    assert pages.statistics().used_bytes > 10000
    assert pages.put(page(CAROL, 0)).evicted == (ALICE,)


# -------------------------------------------------------------------------------------------------------------- faults


class Failing:
    """A disk whose n-th call fails: before it did anything, or after it did everything."""

    def __init__(self, files: disk.Disk, fail_at: int, *, late: bool) -> None:
        self.call_count = 0
        self._files = files
        self._fail_at = fail_at
        self._late = late

    def write(self, path: str, data: bytes) -> None:
        self._call(lambda: self._files.write(path, data))

    def rename(self, old: str, new: str) -> None:
        self._call(lambda: self._files.rename(old, new))

    def read(self, path: str) -> bytes | None:
        return self._call(lambda: self._files.read(path))

    def files(self) -> list[tuple[str, int]]:
        return self._call(self._files.files)

    def remove(self, path: str) -> None:
        self._call(lambda: self._files.remove(path))

    def _call(self, act: Callable[[], Found]) -> Found:
        self.call_count += 1
        failing = self.call_count == self._fail_at
        if failing and not self._late:
            raise errors.StoreError("injected fault, nothing was done")
        found = act()
        if failing:
            raise errors.StoreError("injected fault, all was done")
        return found


class Life:
    """A store at work. Remembers what it was promised, and goes on after each fault as a caller does."""

    def __init__(self) -> None:
        self.acked: set[tuple[ids.SessionId, int]] = set()
        self.evicted: set[ids.SessionId] = set()
        self.fault_count = 0

    def run(self, files: disk.Disk) -> None:
        acts: list[Callable[[store.PageStore], None]] = []
        for page_index in range(3):
            acts += [functools.partial(self.put, session=who, page_index=page_index) for who in (ALICE, BOB)]
        acts += [functools.partial(self.get, session=ALICE, page_index=1), self.drop_alice]
        acts += [functools.partial(self.put, session=CAROL, page_index=page_index) for page_index in (0, 1, 1, 2)]
        acts += [functools.partial(self.put, session=ALICE, page_index=page_index) for page_index in (0, 1)]
        opened: store.PageStore | None = None
        for act in acts:
            try:
                opened = opened or store.PageStore(files, budget_bytes=6 * 4096)
                act(opened)
            except errors.StoreError:
                self.fault_count += 1

    def put(self, pages: store.PageStore, session: ids.SessionId, page_index: int) -> None:
        evicted_before = pages.statistics().evicted_count
        try:
            evicted = pages.put(page(session, page_index)).evicted
        except errors.StoreError:
            if pages.statistics().evicted_count > evicted_before:  # it will be told with the next put
                self.acked = {entry for entry in self.acked if entry[0] in (session, *pages.sessions())}
            raise
        self.acked = {entry for entry in self.acked if entry[0] not in evicted}
        self.evicted |= set(evicted)
        self.acked.add((session, page_index))

    def get(self, pages: store.PageStore, session: ids.SessionId, page_index: int) -> None:
        found = pages.get(session, address(session, page_index))
        assert found == frames.unpack(page(session, page_index)) or (session, page_index) not in self.acked

    def drop_alice(self, pages: store.PageStore) -> None:
        self.acked -= {entry for entry in self.acked if entry[0] == ALICE}
        pages.drop(ALICE)

    def check(self, files: disk.Disk) -> None:
        """After reopening: everything acknowledged is there, and whatever else is there is whole."""
        pages = store.PageStore(files)
        for session, page_index in self.acked:
            assert pages.get(session, address(session, page_index)) == frames.unpack(page(session, page_index))
        for session in pages.sessions():
            for name in pages.have(session):
                assert pages.get(session, name) in [frames.unpack(page(session, at)) for at in range(3)]
        assert pages.statistics().corrupt_count == 0


def test_whatever_step_fails_no_acknowledged_page_is_lost_and_no_torn_one_returned() -> None:
    untouched = disk.MemoryDisk()
    life = Life()
    life.run(untouched)
    assert (life.fault_count, life.evicted) == (0, {BOB})
    for fail_at in range(1, untouched.step_count + 1):
        for seed in range(8):
            files, life = disk.MemoryDisk(), Life()
            files.fail_at = fail_at
            life.run(files)
            files.crash(random.Random(seed))
            assert life.fault_count == 1
            life.check(files)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("real", [False, True])
def test_a_call_that_fails_costs_no_acknowledged_page_on_either_disk(tmp_path: Path, real: bool, late: bool) -> None:
    def fresh(name: str) -> disk.Disk:
        return store.FolderDisk(tmp_path / name) if real else disk.MemoryDisk()

    counting = Failing(fresh("count"), 0, late=late)
    Life().run(counting)
    assert counting.call_count > 20
    for fail_at in range(1, counting.call_count + 1):
        files, life = fresh(str(fail_at)), Life()
        life.run(Failing(files, fail_at, late=late))
        assert life.fault_count == 1
        life.check(files)


class Careless(disk.MemoryDisk):
    """A disk that skips the sync of content, as a store without fsync would."""

    def write(self, path: str, data: bytes) -> None:
        super().write(path, data)
        self._unsynced.add(path)


def test_the_crash_model_catches_a_missing_sync() -> None:
    torn = 0
    for seed in range(8):
        files = Careless()
        store.PageStore(files).put(page(ALICE, 0))
        files.crash(random.Random(seed))
        torn += store.PageStore(files).get(ALICE, address(ALICE, 0)) is None
    assert torn > 0


def test_a_failed_write_leaves_nothing_behind_and_the_store_goes_on() -> None:
    files = disk.MemoryDisk()
    pages = store.PageStore(files)
    files.fail_at = files.step_count + 2
    with pytest.raises(errors.StoreError):
        pages.put(page(ALICE, 0))
    assert files.files() == []
    assert pages.put(page(ALICE, 0)).frame == pages.get(ALICE, address(ALICE, 0))


def test_an_eviction_is_told_even_if_the_put_that_needed_it_failed() -> None:
    files = disk.MemoryDisk()
    pages = store.PageStore(files, budget_bytes=4096)
    pages.put(page(ALICE, 0))
    files.fail_at = files.step_count + 2  # the removal, then the write
    with pytest.raises(errors.StoreError):
        pages.put(page(BOB, 0))
    assert pages.put(page(BOB, 0)).evicted == (ALICE,)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreError, match="disk is full"), store.store_errors("write", tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.StoreError, match="cannot create"):
        store.FolderDisk(tmp_path / "file" / "store")


WRITER = """
import sys, pathlib
from meshnode.snapshots import store
from tests.snapshots import test_store as facts
pages = store.PageStore(store.FolderDisk(pathlib.Path(sys.argv[1])))
for page_index in range(255):
    pages.put(facts.page(facts.ALICE, page_index, payload_bytes=200_000))
    print(page_index, flush=True)
"""


def test_a_killed_process_leaves_every_page_that_it_acknowledged(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as writer:
        assert writer.stdout is not None
        acked = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        acked += [int(line) for line in writer.stdout]
    assert 20 <= len(acked) < 255
    pages = store.PageStore(store.FolderDisk(tmp_path / "store"))
    for page_index in acked:
        assert pages.get(ALICE, address(ALICE, page_index)) is not None
    for name in pages.have(ALICE):
        assert pages.get(ALICE, name) is not None
    assert pages.statistics().corrupt_count == 0
