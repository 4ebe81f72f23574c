"""Stop strings and broken characters: whatever the borders of tokens, the same text is said, and never too much."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from meshnode.sessions import speech
from meshnode.sessions.messages import End, Token, Turn
from meshnode.sessions.transcript import Transcript
from tests.sessions import cases


def answered(parts: list[bytes], stops: tuple[str, ...], moves: frozenset[int] = frozenset()) -> tuple[list[str], str]:
    """Pieces as the log has them, and how it ended. Before the tokens in `moves` a new host reads the log anew."""
    changes: list[Turn | Token | End] = [Turn(cases.request(1), (1,), 99, stop=stops)]
    of = Transcript(changes)
    for place in range(len(parts)):
        if place in moves:
            of = Transcript(changes)
        text = b"".join(parts[id_] for id_ in [*of.pending, place]).decode(errors="replace")
        said = speech.spoken(text, of.told, stops)
        last = place == len(parts) - 1
        piece = said.piece + (said.rest if last and not said.stopped else "")
        changes.append(Token(place, piece, not (said.whole or said.stopped or last)))
        of.add(changes[-1])
        if said.stopped:
            return [change.piece for change in changes[1:]], "stop string"
    return [change.piece for change in changes[1:]], "length"


def splits(text: bytes) -> list[list[bytes]]:
    """Every way to cut it into tokens."""
    if len(text) <= 1:
        return [[text]] if text else [[]]
    return [[text[:cut], *rest] for cut in range(1, len(text)) for rest in splits(text[cut:])] + [[text]]


@pytest.mark.parametrize(
    ("text", "stops", "said"),
    [
        ("abEND cd", ("END",), "ab"),
        ("aENENDx", ("END",), "aEN"),
        ("aENEN", ("END",), "aENEN"),
        ("aabaabx", ("aabx",), "aab"),
        ("abcabd", ("bd", "abc"), ""),
        ("xéyß!", ("ß",), "xéy"),
        ("néné", ("éné",), "n"),
        ("a\n\nb", ("\n\n",), "a"),
        ("xbaa", ("a", "baa"), "xb"),
        ("xbaa", ("ab", "aa", "a"), "xb"),
    ],
)
def test_an_answer_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: tuple[str, ...], said: str
) -> None:
    ways = splits(text.encode())
    assert len(ways) == 2 ** (len(text.encode()) - 1)
    for parts in ways:
        pieces, end = answered(parts, stops)
        assert "".join(pieces) == said
        assert end == ("stop string" if said != text else "length")


def by_letters(text: str, stops: tuple[str, ...]) -> tuple[str, str]:
    """The definition: at the first letter that completes a stop string, what stands before the longest that it does."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], "stop string"
    return text, "length"


LETTERS = st.text("abß€", min_size=1, max_size=14)
STOPS = st.lists(st.text("abß€", min_size=1, max_size=4), max_size=4).map(tuple)


@hypothesis.given(LETTERS, STOPS, st.data())
def test_what_is_said_is_what_stands_before_the_first_stop_and_a_move_changes_nothing(
    text: str, stops: tuple[str, ...], data: st.DataObject
) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)))))
    parts = [part for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if (part := raw[a:b])]
    pieces, end = answered(parts, stops)
    assert ("".join(pieces), end) == by_letters(text, stops)
    moves = data.draw(st.frozensets(st.integers(0, len(parts) - 1)))
    assert answered(parts, stops, moves)[0] == pieces
    shown = ""
    for piece in pieces:  # at every moment, what is shown is a beginning of what is said in the end
        shown += piece
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_no_more_is_held_than_could_begin_a_stop_string() -> None:
    told = speech.spoken("a" * 500, 490, ("aab", "x" * 64))
    assert (told.piece, told.rest, told.whole) == ("a" * 8, "aa", False)
    assert speech.spoken("ab", 0, ()) == speech.Spoken("ab")


def test_bytes_that_make_no_character_are_said_when_four_of_them_stand_there() -> None:
    for count in (1, 2, 3):
        assert speech.spoken("a" + "\ufffd" * count, 0, ()) == speech.Spoken("a", whole=False)
    assert speech.spoken("a" + "\ufffd" * 4, 0, ()) == speech.Spoken("a" + "\ufffd" * 4)
