"""The journal on a real folder and in memory: what was appended is there, whatever fails, and nothing is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import hypothesis
import pytest
from hypothesis import strategies as st

from meshnode import errors, ids, journal
from meshnode.snapshots import tape as tapes

ALICE = ids.SessionId(b"a" * 16)
ONE, TWO, THREE = (journal.record(ALICE, body) for body in (b"one", b"two" * 9, b""))


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
