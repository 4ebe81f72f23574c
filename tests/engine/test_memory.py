"""Sessions over pages that hold their tokens in plain: whatever is shared, copied, spilled or given up, each session
reads its own context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from meshnode import errors, ids
from meshnode.engine import memory, prefix, spill
from meshnode.engine.pages import PAGE_TOKENS

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
PROMPT = [index % 200 for index in range(200)]
GARBAGE = 255
BAD = 254


class Plain:
    """A pool whose slots hold tokens."""

    page_bytes = PAGE_TOKENS

    def __init__(self, page_count: int) -> None:
        self.page_count = page_count
        self.data = [bytearray([GARBAGE]) * PAGE_TOKENS for _ in range(page_count)]
        self.copied = self.parsed = 0

    def clear(self, taken: Sequence[int]) -> None:
        for page in taken:
            self.data[page][:] = bytes(PAGE_TOKENS)

    def copy(self, source: int, target: int) -> None:
        self.copied += 1
        self.data[target][:] = self.data[source]

    def export(self, page: int) -> bytes:
        return bytes(self.data[page])

    def parse(self, page: bytes) -> bytes:
        self.parsed += 1
        if len(page) != PAGE_TOKENS or BAD in page:
            raise errors.EngineError("a bad page")
        return page

    def restore(self, page: int, parsed: bytes) -> None:
        self.data[page][:] = parsed


class Sessions:
    """A memory, and the engine's part: it computes what memory does not have."""

    def __init__(self, page_count: int = 20, spilled: memory.Spill | None = None, idle: int | None = None) -> None:
        self.pool = Plain(page_count)
        names = prefix.Names(ids.digest(b"plain"), "plain")
        self.visits = 0
        """Times that a session was on its way back."""
        self.memory = memory.Memory(self.pool, names, spill=spilled, idle_pages_max=idle)

    def feed(
        self, session: ids.SessionId, position: int, tokens: Sequence[int], *, draws: bool = True, domain: bytes = b""
    ) -> int:
        """Returns how many tokens were at hand."""
        while True:
            try:
                at_hand = self.memory.admit(session, position, tokens, draws=draws, domain=domain, busy=())
                break
            except memory.Coming:
                self.visits += 1
        table = self.memory.table(session, position + len(tokens))
        for place in range(position + at_hand, position + len(tokens)):
            self.pool.data[table[place // PAGE_TOKENS]][place % PAGE_TOKENS] = tokens[place - position]
        self.memory.fed(session, tokens[at_hand:])
        return at_hand

    def read(self, session: ids.SessionId) -> list[int]:
        """A session's context, as it stands in its pages."""
        count = self.memory.token_count(session)
        return list(b"".join(self.pool.export(page) for page in self.memory.table(session, count))[:count])

    def pages(self, session: ids.SessionId) -> list[bytes]:
        return [self.memory.export(session, index) for index in range(self.memory.token_count(session) // PAGE_TOKENS)]


def test_a_second_session_of_a_domain_takes_what_the_first_has() -> None:
    of = Sessions()
    assert of.feed(A, 0, PROMPT, domain=b"t") == 0
    assert of.feed(B, 0, PROMPT[:150] + [7] * 50, domain=b"t") == 128
    assert of.feed(C, 0, PROMPT, domain=b"u") == 0
    assert of.read(B) == PROMPT[:150] + [7] * 50
    assert of.memory.table(A, 128) == of.memory.table(B, 128)
    assert not set(of.memory.table(C, 200)) & set(of.memory.table(A, 200))


def test_without_a_domain_a_session_shares_with_itself_and_with_forks_that_name_it() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT)
    assert of.feed(B, 0, PROMPT) == 0
    of.memory.drop(A)
    assert of.feed(A, 0, PROMPT) == 192
    assert of.feed(C, 0, PROMPT, domain=A) == 192


def test_the_token_that_is_drawn_from_is_computed_in_any_case() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT[:64])
    assert of.feed(B, 0, PROMPT[:64], domain=A) == 32
    assert of.feed(C, 0, PROMPT[:64], domain=A, draws=False) == 64


def test_a_chunk_that_ends_inside_a_page_finds_the_rest_of_it() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT)
    of.feed(B, 0, PROMPT[:20], domain=A)
    assert of.feed(B, 20, PROMPT[20:], domain=A) == 192 - 20
    assert of.read(B) == PROMPT


def test_a_session_cut_into_a_shared_page_writes_into_a_copy() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT)
    of.feed(B, 0, PROMPT, domain=A)
    before = of.pool.copied
    of.feed(B, 70, [9] * 90)
    assert of.pool.copied == before + 1
    assert of.read(A) == PROMPT
    assert of.read(B) == PROMPT[:70] + [9] * 90
    assert of.memory.table(A, 64) == of.memory.table(B, 64)
    assert of.feed(C, 0, PROMPT, domain=A) == 192, "what was cut off is found still"


def test_a_cut_without_a_feed_copies_nothing() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT)
    of.feed(A, 70, [], draws=False)
    assert (of.pool.copied, of.read(A)) == (0, PROMPT[:70])


def test_what_is_not_finite_is_found_by_nobody() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT, domain=b"t")
    of.feed(B, 0, PROMPT, domain=b"t")
    of.memory.poisoned(A)
    assert of.feed(C, 0, PROMPT, domain=b"t") == 0
    of.feed(B, 70, [9] * 20)
    assert of.read(B) == PROMPT[:70] + [9] * 20
    assert of.read(C) == PROMPT


def test_memory_that_others_left_is_room() -> None:
    of = Sessions(page_count=8)
    of.feed(A, 0, PROMPT)
    of.memory.drop(A)
    assert (of.memory.room(), of.memory.idle_count()) == (8, 6)
    of.feed(B, 0, [1] * 256)
    assert of.read(B) == [1] * 256


@pytest.fixture(params=["memory", "folder"])
def bay(request: pytest.FixtureRequest, tmp_path: Path) -> memory.Spill:
    return spill.MemorySpill(1 << 20) if request.param == "memory" else spill.FolderSpill(tmp_path / "spill", 1 << 20)


def test_the_session_used_longest_ago_makes_room_and_comes_back(bay: memory.Spill) -> None:
    of = Sessions(page_count=14, spilled=bay)
    for name in (A, B):
        of.feed(name, 0, [name[0], *PROMPT[1:]])
    exported = of.pages(A)
    of.feed(A, 200, [5])
    of.feed(C, 0, [1] * 100)
    assert of.memory.spill_count == 1
    assert of.read(A) == [A[0], *PROMPT[1:], 5], "B was idle for longer"
    assert of.pages(B) == [bytes([B[0]]) + exported[0][1:], *exported[1:]], "it can be shipped from where it is"
    of.feed(B, 200, [6])
    assert of.memory.spill_count == 2
    assert of.read(B) == [B[0], *PROMPT[1:], 6]


def test_only_what_is_wanted_is_spilled_and_comes_back_a_few_pages_at_a_time() -> None:
    bay = spill.MemorySpill(1 << 20)
    of = Sessions(page_count=20, spilled=bay)
    of.feed(A, 0, [*PROMPT, *PROMPT])
    of.feed(B, 0, [1] * 250)
    assert list(bay._payloads) == [(A, 12)]
    of.feed(C, 0, [2] * 290)
    assert list(bay._payloads) == [(A, index) for index in range(12, 1, -1)]
    assert of.visits == 0
    of.feed(A, 400, [5])
    assert of.visits == 5
    assert of.read(A) == [*PROMPT, *PROMPT, 5]


def test_sessions_that_share_all_their_pages_make_room_together() -> None:
    of = Sessions(page_count=8, spilled=spill.MemorySpill(1 << 20))
    of.feed(A, 0, PROMPT[:192])
    of.feed(B, 0, PROMPT[:192], domain=A, draws=False)
    of.feed(C, 0, [1] * 250)
    for name in (A, B):
        of.feed(name, 192, [name[0]])
        assert of.read(name) == [*PROMPT[:192], name[0]]


def test_what_came_back_is_shared_again(bay: memory.Spill) -> None:
    of = Sessions(page_count=8, spilled=bay)
    of.feed(A, 0, PROMPT)
    of.feed(B, 0, [3] * 200)
    of.memory.drop(B)
    of.feed(A, 200, [5])
    assert of.feed(C, 0, PROMPT[:33], domain=A) == 32


def test_a_spilled_session_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    bay = spill.FolderSpill(tmp_path / "spill", 1 << 20)
    of = Sessions(page_count=8, spilled=bay)
    room = bay.room()
    of.feed(A, 0, PROMPT)
    of.feed(B, 0, [3] * 200)
    assert bay.room() < room
    assert len(list((tmp_path / "spill").iterdir())) == 6
    of.memory.drop(A)
    assert (bay.room(), list((tmp_path / "spill").iterdir())) == (room, [])


def test_a_busy_session_keeps_its_pages_and_full_memory_says_how_full() -> None:
    of = Sessions(page_count=10, spilled=spill.MemorySpill(1 << 20))
    of.feed(A, 0, PROMPT)
    with pytest.raises(memory.Full, match="5 pages wanted, 3 are free"):
        of.memory.admit(B, 0, [1] * 150, draws=True, domain=b"", busy={A})
    assert of.read(A) == PROMPT
    assert of.memory.room() == 3
    assert of.feed(B, 0, [1] * 150) == 0


def test_no_room_for_spilling_is_full_memory() -> None:
    for bay in (None, spill.MemorySpill(5)):
        of = Sessions(page_count=10, spilled=bay)
        of.feed(A, 0, PROMPT)
        with pytest.raises(memory.Full, match="5 pages wanted, 3 are free"):
            of.feed(B, 0, [1] * 150)
        assert of.read(A) == PROMPT
    with pytest.raises(errors.EngineError, match="11 pages wanted, 10 are all"):
        of.feed(B, 0, [1] * 350)


def test_a_disk_that_rots_says_what_is_to_be_computed_again(tmp_path: Path) -> None:
    for harm in ("rot", "loss"):
        of = Sessions(page_count=8, spilled=spill.FolderSpill(tmp_path / "spill", 1 << 20))
        of.feed(A, 0, PROMPT)
        of.feed(B, 0, [3] * 200)
        path = tmp_path / "spill" / f"{A.hex()}-3"
        path.write_bytes(path.read_bytes()[:-1] + b"\x99") if harm == "rot" else path.unlink()
        with pytest.raises(memory.Lost) as caught:
            of.feed(A, 200, [1])
        held = of.memory.token_count(A)
        assert caught.value.tokens == tuple(PROMPT[held:])
        assert held == 96
        of.feed(A, held, PROMPT[held:])
        assert of.read(A) == PROMPT


def test_a_full_disk_refuses_and_harms_nobody(tmp_path: Path) -> None:
    bay = spill.FolderSpill(tmp_path / "spill", 1 << 20)
    of = Sessions(page_count=8, spilled=bay)
    of.feed(A, 0, PROMPT)
    (tmp_path / "spill").rmdir()
    with pytest.raises(memory.Full):
        of.feed(B, 0, [3] * 200)
    assert of.read(A) == PROMPT
    assert bay.room() == 1 << 20


def test_pages_from_outside_continue_what_the_domain_has() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT)
    exported = of.pages(A)
    other = Sessions()
    other.feed(C, 0, PROMPT[:70], domain=B)
    before = other.pool.parsed
    assert other.memory.restore(B, PROMPT, exported, domain=b"", busy=()) == 192
    assert other.pool.parsed - before == 4
    assert other.read(B) == PROMPT[:192]
    assert other.feed(B, 192, PROMPT[192:]) == 0


def test_a_restore_without_pages_takes_what_is_there() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT)
    assert of.memory.restore(B, PROMPT, [], domain=A, busy=()) == 192
    assert of.memory.restore(C, PROMPT, [], domain=b"", busy=()) == 0
    assert of.read(B) == PROMPT[:192]


def test_pages_from_outside_are_believed_by_one_session_of_a_tenant_alone() -> None:
    of = Sessions()
    lies = [bytes([9]) * PAGE_TOKENS] * 6
    assert of.memory.restore(A, PROMPT, lies, domain=b"t", busy=()) == 192
    of.feed(A, 192, [5] * 40, domain=b"t")
    assert of.feed(B, 0, PROMPT, domain=b"t") == 0
    assert of.read(B) == PROMPT
    of.feed(A, 0, PROMPT, domain=b"t")
    assert of.read(A)[:192] == PROMPT[:192], "from the start, it is of the domain again"


def test_a_bad_page_leaves_a_session_as_it_was() -> None:
    of = Sessions()
    of.feed(A, 0, PROMPT)
    room = of.memory.room()
    with pytest.raises(errors.EngineError, match="bad page"):
        of.memory.restore(A, [3] * 64, [bytes(PAGE_TOKENS), bytes([BAD]) * PAGE_TOKENS], domain=b"", busy=())
    assert of.read(A) == PROMPT
    assert of.memory.room() == room
