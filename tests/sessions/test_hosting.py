"""The engine as a cache of the log: where a step begins, what it puts into the log, which pages go out."""

from __future__ import annotations

from meshnode.machine import Restore, Ship, Step, Stepped
from meshnode.ports import Sampling
from meshnode.sessions import hosting, messages
from meshnode.sessions.messages import Alternative, Birth, Closed, End, Logprobs, Opened, Token, Turn
from meshnode.sessions.transcript import Transcript
from meshnode.snapshots import chain
from tests.sessions import cases
from tests.sessions.cases import A, B, C

PAGE = cases.PAGE


def fresh(context_tokens_max: int = 256) -> hosting.Hosting:
    return hosting.Hosting(cases.SESSION, 1, cases.CARD, context_tokens_max)


def said(length: int, most: int = 8, *tokens: int) -> Transcript:
    turn = Turn(cases.request(1), tuple(range(100, 100 + length)), most)
    return Transcript([Birth(b""), Opened(A), turn, *(Token(token, "x") for token in tokens)])


def step(of: hosting.Hosting, transcript: Transcript, unreleased: int = 0) -> Step:
    (effect,) = of.next_step(transcript, unreleased)
    assert isinstance(effect, Step)
    return effect


def addresses(tokens: list[int]) -> tuple[bytes, ...]:
    return chain.addresses(cases.CARD.model_digest, cases.CARD.numeric_class, PAGE, tokens)


def test_a_transcript_is_the_fold_of_its_log() -> None:
    of = said(3, 8, 7, 8)
    assert of.context == [100, 101, 102, 7, 8]
    assert (of.said, of.turns, of.requests) == (2, 1, {cases.request(1)})
    assert of.answer_from == 3
    of.add(Token(9, "", held=True))
    of.add(Token(10, "öl", held=True))
    assert (of.pending, of.told) == ([9, 10], 2)
    of.add(Token(11, "x"))
    assert (of.pending, of.told) == ([], 0)
    of.add(End("stop"))
    assert (of.open_turn, of.eos_closed) == (None, True)
    of.add(End("interrupted"))
    assert not of.eos_closed
    of.add(Closed("bye"))
    assert of.closed == "bye"


def test_a_prompt_is_fed_in_pieces_and_only_the_last_draws() -> None:
    of, transcript = fresh(1024), said(hosting.PREFILL_TOKENS_MAX + 5)
    first = step(of, transcript)
    assert (first.work.position, len(first.work.feed), first.work.sampling) == (0, hosting.PREFILL_TOKENS_MAX, None)
    assert of.next_step(transcript, 0) == [], "one at a time"
    of.stepped(Stepped(cases.SESSION, 1, hosting.PREFILL_TOKENS_MAX, None, ""), transcript)
    second = step(of, transcript)
    assert (second.work.position, len(second.work.feed)) == (hosting.PREFILL_TOKENS_MAX, 5)
    assert second.work.sampling is not None
    assert of.recomputed == hosting.PREFILL_TOKENS_MAX + 5


def test_a_step_begins_where_engine_and_context_part_and_feeds_one_token_at_least() -> None:
    of, transcript = fresh(), said(6)
    of.loaded = [100, 101, 999, 103]
    assert step(of, transcript).work.position == 2
    full = fresh()
    full.loaded = list(transcript.context)
    work = step(full, transcript).work
    assert (work.position, work.feed) == (5, (105,))


def test_an_owner_that_is_too_far_ahead_of_its_followers_waits() -> None:
    assert fresh().next_step(said(3), hosting.AHEAD_MAX + 1) == []
    assert fresh().next_step(said(3), hosting.AHEAD_MAX) != []


def test_a_token_enters_the_log_and_ends_the_turn_where_it_must() -> None:
    def after(token: int, transcript: Transcript, room: int = 256) -> list[object]:
        of = fresh(room)
        step(of, transcript)
        return of.stepped(Stepped(cases.SESSION, 1, len(transcript.context), token, "a"), transcript)

    assert after(7, said(3)) == [Token(7, "a")]
    assert after(2, said(3)) == [Token(2, "a"), End("stop")]
    assert after(7, said(3, 2, 9)) == [Token(7, "a"), End("length")]
    assert after(7, said(3), room=4) == [Token(7, "a"), End("context full")]


def test_what_may_begin_a_stop_string_is_said_only_if_the_answer_ends_otherwise() -> None:
    def after(most: int, **said: object) -> list[object]:
        of, transcript = fresh(), Transcript([Turn(cases.request(1), (5, 6), most, stop=("END",))])
        assert step(of, transcript).stops == ("END",)
        return of.stepped(Stepped(cases.SESSION, 1, 2, 7, "a", **said), transcript)

    assert after(8, rest="EN", whole=False) == [Token(7, "a", held=True)]
    assert after(1, rest="EN", whole=False) == [Token(7, "aEN"), End("length")]
    assert after(8, stopped=True) == [Token(7, "a"), End("stop string")]
    assert after(8, whole=False) == [Token(7, "a", held=True)], "inside a character"


def test_a_turn_is_drawn_as_its_entry_says_and_knows_where_its_answer_began() -> None:
    sampling = Sampling(seed=4, temperature=0.5, presence_penalty=1.0)
    of, transcript = fresh(), Transcript([Turn(cases.request(1), (5, 6), 9, sampling)])
    work = step(of, transcript).work
    assert (work.sampling, work.answer_from) == (sampling, 0)
    for change in of.stepped(Stepped(cases.SESSION, 1, 2, 7, "a"), transcript):
        transcript.add(change)
    assert step(of, transcript).work.answer_from == 2
    transcript.add(End("stop string"))
    assert not transcript.eos_closed, "no end-of-turn id stands there"
    transcript.add(Turn(cases.request(2), (5, 6), 9))
    assert transcript.answer_from == 0


def test_a_prompt_that_is_recomputed_in_pieces_says_where_the_answer_began_with_the_last() -> None:
    of, transcript = fresh(1024), said(hosting.PREFILL_TOKENS_MAX + 5, 8, 7, 8)
    assert step(of, transcript).work.answer_from == 0, "it lies behind what this step feeds"
    of.stepped(Stepped(cases.SESSION, 1, hosting.PREFILL_TOKENS_MAX, None, ""), transcript)
    assert step(of, transcript).work.answer_from == hosting.PREFILL_TOKENS_MAX + 5


def test_log_probabilities_enter_the_log_and_long_texts_are_cut() -> None:
    of, transcript = fresh(), said(3)
    step(of, transcript)
    top = ((7, "a", -0.5), (8, "b" * 999, -1.5))
    (token,) = of.stepped(Stepped(cases.SESSION, 1, 3, 7, "a", logprob=-0.5, top=top), transcript)
    cut = Alternative(8, "b" * messages.TOKEN_CHARS_MAX, -1.5)
    assert token == Token(7, "a", logprobs=Logprobs(-0.5, (Alternative(7, "a", -0.5), cut)))


def test_a_token_that_was_drawn_in_vain_is_not_logged() -> None:
    of, transcript = fresh(), said(3)
    step(of, transcript)
    transcript.add(End("interrupted"))
    assert of.stepped(Stepped(cases.SESSION, 1, 3, 7, "a"), transcript) == []
    transcript.add(Turn(cases.request(2), (5, 6), 4))
    work = step(of, transcript).work
    assert (work.position, work.feed) == (3, (5, 6))
    assert of.stepped(Stepped(cases.SESSION, 1, 3, 7, "a"), transcript) == [], "of the turn before"


def test_a_restore_asks_for_whole_pages_and_leaves_the_last_token_to_be_fed() -> None:
    of = fresh()
    context = list(range(9))
    assert of.restore(context) == [Restore(cases.SESSION, 1, addresses(context)[:2], tuple(context[: 2 * PAGE]), b"")]
    assert of.busy
    of.restored(PAGE)
    assert (of.loaded, of.pages_restored, of.busy) == (context[:PAGE], 1, False)
    assert fresh().restore(list(range(PAGE))) == [], "its last token is needed, so no page is whole"


def test_what_was_restored_on_a_guess_is_forgotten_where_the_adopted_log_parts() -> None:
    of = fresh()
    of.restore(list(range(13)))
    of.align([0, 1, 2])
    of.restored(12)
    of.align([0, 1, 2, 3, 4, 99, 98])
    assert of.loaded == [0, 1, 2, 3, 4]
    of.align([])
    assert of.loaded == []


def test_pages_are_sealed_and_shipped_in_order_to_each_replica() -> None:
    of, transcript = fresh(), said(2 * PAGE + 2)
    of.own(3, (B, C))
    step(of, transcript)
    assert of.ship() == [], "the engine is at work"
    of.stepped(Stepped(cases.SESSION, 1, 2 * PAGE + 2, 7, "a"), transcript)
    ships = of.ship()
    assert all(isinstance(effect, Ship) for effect in ships)
    assert [(effect.to, effect.page_index) for effect in ships] == [(B, 0), (B, 1), (C, 0), (C, 1)]
    assert of.chain() == addresses(transcript.context)
    assert ships[1].parent == ships[0].address
    assert ships[0].parent == chain.genesis(cases.CARD.model_digest, cases.CARD.numeric_class, PAGE)
    assert of.ship() == []
    of.pages.acked(B, 1, 3, ships[0].address)
    of.pages.link_down(B)
    assert [(effect.to, effect.page_index) for effect in of.ship()] == [(B, 1)]


def test_steps_and_restores_name_whom_the_session_shares_with() -> None:
    of = hosting.Hosting(cases.SESSION, 1, cases.CARD, 256, b"tenant")
    assert step(of, said(3)).work.domain == b"tenant"
    of = hosting.Hosting(cases.SESSION, 1, cases.CARD, 256, b"tenant")
    (effect,) = of.restore(list(range(9)))
    assert isinstance(effect, Restore)
    assert effect.domain == b"tenant"
