"""The chain: equal hashes mean equal logs, and what does not fit is not in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors, ids, options
from meshnode.ports import Sampling
from meshnode.sessions import lifecycle, log, messages, records
from meshnode.sessions.lifecycle import State
from meshnode.sessions.messages import Closed, Entry, Opened, Token, Turn
from meshnode.wire import cbor, schema
from tests.sessions import cases

numbers = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=8)


def sorted_log(found: list[tuple[int, int]]) -> log.Log:
    return cases.logged(*(cases.entry(epoch, number) for epoch, number in sorted(found)))


@given(numbers, numbers)
def test_logs_agree_exactly_where_their_entries_are_equal(
    one: list[tuple[int, int]], two: list[tuple[int, int]]
) -> None:
    first, second = sorted_log(one), sorted_log(two)
    for seq in range(max(first.last, second.last) + 2):
        same = seq <= min(first.last, second.last) and first.entries[:seq] == second.entries[:seq]
        assert (seq <= second.last and first.agrees(seq, second.hash_at(seq))) == same


@given(numbers, numbers, st.integers(0, 8))
def test_a_merge_gives_what_the_sender_has_or_changes_nothing(
    one: list[tuple[int, int]], two: list[tuple[int, int]], prev: int
) -> None:
    mine, theirs = sorted_log(one), sorted_log(two)
    prev = min(prev, mine.last, theirs.last)
    before = list(mine.entries)
    try:
        at, new = mine.merge(prev, theirs.entries[prev:])
    except errors.PeerError:
        assert mine.entries == before
        return
    assert mine.entries[:at] + new == mine.entries or not new
    assert mine.entries[prev : theirs.last] == theirs.entries[prev:]
    assert mine.entries[:prev] == before[:prev]
    assert mine.hash_at(mine.last) == cases.logged(*mine.entries).hash_at(mine.last)
    assert len(mine.changes) == mine.last


def test_two_sessions_never_share_a_hash() -> None:
    assert log.genesis(cases.SESSION) != log.genesis(ids.SessionId(b"t" * 16))
    entry = cases.entry(1)
    assert log.follow(log.genesis(cases.SESSION), entry) != log.follow(log.genesis(cases.SESSION), Entry(2, entry.body))


def test_a_cut_forgets_hashes_and_changes_too() -> None:
    of = cases.logged(cases.entry(1, 1), cases.entry(1, 2), cases.entry(2, 3))
    of.cut(1)
    assert (of.last, of.last_epoch, len(of.changes), of.epoch_at(0)) == (1, 1, 1, 0)
    assert of.hash_at(1) == cases.logged(cases.entry(1, 1)).hash_at(1)


def test_epochs_do_not_run_backwards() -> None:
    of = cases.logged(cases.entry(3))
    with pytest.raises(errors.PeerError):
        of.append(cases.entry(2))
    with pytest.raises(errors.PeerError):
        of.merge(1, [cases.entry(4), cases.entry(3)])
    assert of.last == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        cbor.encode([63]),
        cbor.encode(["x", []]),
        cbor.encode([99, []]),
        cbor.encode([3, [1]]),
        cbor.encode([62, [b"r" * 16, [], 5]]),
    ],
    ids=["empty", "half", "no number", "no kind", "no entry", "turn without tokens"],
)
def test_what_is_no_change_is_no_entry(body: bytes) -> None:
    of = cases.logged()
    with pytest.raises(errors.PeerError):
        of.append(Entry(1, body))
    assert of.last == 0


def test_after_gives_what_fits_and_one_at_least() -> None:
    of = cases.logged(*(cases.entry(1, number) for number in range(600)))
    assert len(of.after(0)) == messages.ENTRIES_MAX
    assert of.after(599) == (cases.entry(1, 599),)
    assert of.after(600) == ()
    assert len(of.after(0, bytes_max=1)) == 1
    two = len(of.entries[0].body) + len(of.entries[1].body) + 32
    assert len(of.after(0, bytes_max=two)) == 2
    assert len(of.after(0, count_max=5)) == 5


@pytest.mark.parametrize("change", [Opened(cases.A), Token(5, "a"), Closed("bye"), Turn(cases.request(1), (1, 2), 3)])
def test_a_change_comes_out_as_it_went_in(change: messages.Change) -> None:
    assert log.change(log.entry(4, change)) == change


def test_the_largest_turn_fits_an_entry_and_an_entry_a_message() -> None:
    ids_max = tuple([1 << 24] * messages.TURN_TOKENS_MAX)
    biases = tuple([options.Bias(1 << 24, 99.123456789)] * options.BIASES_MAX)
    grammar = options.Grammar(options.GrammarKind.LARK, "x" * options.GRAMMAR_BYTES_MAX)
    sampling = Sampling(*[2**63 - 1, 0.123456789, 1 << 62, *[0.123456789] * 5], biases, 20, grammar)
    stops = tuple(["􏿿" * options.STOP_CHARS_MAX] * options.STOPS_MAX)
    entry = log.entry(1 << 40, Turn(cases.request(1), ids_max, 1 << 20, sampling, stops))
    sent = messages.Replicate(cases.SESSION, 1 << 40, 0, log.genesis(cases.SESSION), (entry,), 0, 0)
    assert schema.unpack(schema.number_of(sent), cbor.decode(cbor.encode(schema.pack(sent)))) == sent


@pytest.mark.parametrize(
    "record",
    [
        messages.Promised(cases.SESSION, 3, cases.B),
        messages.Appended(cases.SESSION, 1, (cases.entry(1),), 1),
        messages.Dropped(cases.SESSION, True),
    ],
)
def test_a_record_comes_out_as_it_went_in(record: records.Record) -> None:
    assert records.unpack(records.pack(record)) == record


@pytest.mark.parametrize("data", [b"", b"\x80", cbor.encode([70, []]), cbor.encode([3, [1]]), cbor.encode(7)])
def test_a_foreign_record_is_the_disks_fault(data: bytes) -> None:
    with pytest.raises(errors.StoreError):
        records.unpack(data)


def test_the_table_of_states_lets_nobody_come_back_from_the_end() -> None:
    for old in State:
        for new in State:
            legal = new is old or new in lifecycle._LEGAL[old]
            if legal:
                assert lifecycle.move(old, new) is new
            else:
                with pytest.raises(AssertionError):
                    lifecycle.move(old, new)
    assert lifecycle._LEGAL[State.TERMINATED] == frozenset()
    reachable = {new for states in lifecycle._LEGAL.values() for new in states}
    assert reachable == set(State) - {State.PROCEEDING}
