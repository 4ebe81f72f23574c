"""One contract for both engines: whatever the mesh relies on, the fake does as the real one does."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from meshnode import errors, host, ids, ports
from meshnode.sim import fakes
from tests.engine import tiny

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
Engine = fakes.HashEngine | host.ThreadEngine
GREEDY = ports.Sampling()
RANDOM = ports.Sampling(seed=7, temperature=0.9)
PROMPT = tuple((index * 37 + 11) % 256 for index in range(150))


@pytest.fixture(params=["hash", "torch"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    if request.param == "hash":
        yield fakes.HashEngine(context_tokens_max=1024)
        return
    async with host.running(tiny.make()) as thread:
        yield thread


async def said(
    engine: Engine,
    session: ids.SessionId,
    feed: Sequence[int],
    count: int,
    position: int = 0,
    sampling: ports.Sampling = GREEDY,
) -> list[int]:
    """Feed, then draw `count` tokens, each fed back. The last one drawn is not in the engine."""
    found: list[int] = []
    for _ in range(count):
        [token] = await engine.step([ports.Work(session, position, tuple(feed), sampling)])
        assert token is not None
        position += len(feed)
        feed = [token]
        found.append(token)
    return found


async def fed(
    engine: Engine, session: ids.SessionId, feed: Sequence[int], domain: bytes = b"", *, draw: bool = False
) -> int:
    """Feed from the start; how many tokens did not have to be computed."""
    before = engine.statistics().reused_tokens
    await engine.step([ports.Work(session, 0, tuple(feed), GREEDY if draw else None, domain)])
    return engine.statistics().reused_tokens - before


async def pages_of(engine: Engine, session: ids.SessionId, token_count: int) -> list[bytes]:
    return [await engine.export(session, index) for index in range(token_count // engine.card.page_tokens)]


async def test_a_step_without_sampling_answers_none(engine: Engine) -> None:
    assert await engine.step([ports.Work(A, 0, PROMPT, None)]) == [None]


async def test_one_context_has_one_continuation(engine: Engine) -> None:
    assert await said(engine, A, PROMPT, 8) == await said(engine, B, PROMPT, 8)


async def test_another_context_has_another_continuation(engine: Engine) -> None:
    assert await said(engine, A, PROMPT, 8) != await said(engine, B, (PROMPT[0] ^ 1, *PROMPT[1:]), 8)


async def test_chunks_change_nothing(engine: Engine) -> None:
    whole = await said(engine, A, PROMPT, 8)
    await engine.step([ports.Work(B, 0, PROMPT[:67], None)])
    await engine.step([ports.Work(B, 67, PROMPT[67:100], None)])
    assert await said(engine, B, PROMPT[100:], 8, position=100) == whole


async def test_a_position_cuts_what_lies_beyond_it(engine: Engine) -> None:
    whole = await said(engine, A, PROMPT, 8)
    await said(engine, B, PROMPT[:40] + tuple(reversed(PROMPT)), 3)
    assert await said(engine, B, PROMPT[40:], 8, position=40) == whole


async def test_a_position_beyond_the_context_is_refused(engine: Engine) -> None:
    await engine.step([ports.Work(A, 0, PROMPT[:3], None)])
    with pytest.raises(errors.EngineError):
        await engine.step([ports.Work(A, 4, PROMPT[:3], None)])


async def test_sessions_in_one_step_do_not_meet(engine: Engine) -> None:
    apart = [await said(engine, name, PROMPT[:cut], 1) for name, cut in ((A, 20), (B, 90), (C, 150))]
    works = [ports.Work(name, 0, PROMPT[:cut], GREEDY) for name, cut in ((A, 20), (B, 90), (C, 150))]
    assert await engine.step(works) == [one[0] for one in apart]


async def test_a_failure_stays_with_its_session(engine: Engine) -> None:
    alone = await said(engine, A, PROMPT, 3)
    answers: dict[ids.SessionId, list[int] | str] = {}

    async def ask(name: ids.SessionId, position: int) -> None:
        try:
            answers[name] = await said(engine, name, PROMPT, 3, position=position)
        except errors.EngineError:
            answers[name] = "refused"

    async with trio.open_nursery() as hands:
        for name, position in ((A, 0), (B, 5), (C, 0)):
            hands.start_soon(ask, name, position)
    assert answers == {A: alone, B: "refused", C: alone}


async def test_a_restored_session_goes_on_as_the_first_would_have(engine: Engine) -> None:
    whole = await said(engine, A, PROMPT, 8)
    restored = await engine.restore(B, PROMPT, await pages_of(engine, A, len(PROMPT)))
    assert restored == len(PROMPT) // engine.card.page_tokens * engine.card.page_tokens
    assert await said(engine, B, PROMPT[restored:], 8, position=restored) == whole


async def test_a_page_comes_back_as_it_went(engine: Engine) -> None:
    await engine.step([ports.Work(A, 0, PROMPT, None)])
    exported = await pages_of(engine, A, len(PROMPT))
    await engine.restore(B, PROMPT, exported)
    assert exported == await pages_of(engine, B, len(PROMPT))
    assert {len(page) for page in exported} == {engine.card.page_bytes}
    assert len(set(exported)) == len(exported)


async def test_a_page_that_is_not_full_is_not_exported(engine: Engine) -> None:
    await engine.step([ports.Work(A, 0, PROMPT[: engine.card.page_tokens * 2 - 1], None)])
    for page_index in (-1, 1, 2):
        with pytest.raises(errors.EngineError):
            await engine.export(A, page_index)


async def test_a_page_of_a_wrong_size_is_refused(engine: Engine) -> None:
    await engine.step([ports.Work(A, 0, PROMPT, None)])
    page = await engine.export(A, 0)
    for wrong in (b"", page[:-1], page + b"\0"):
        with pytest.raises(errors.EngineError):
            await engine.restore(B, PROMPT, [wrong])


async def test_a_seed_and_a_position_decide_what_is_drawn(engine: Engine) -> None:
    first = await said(engine, A, PROMPT, 12, sampling=RANDOM)
    assert first == await said(engine, B, PROMPT, 12, sampling=RANDOM)
    assert first != await said(engine, C, PROMPT, 12, sampling=ports.Sampling(seed=8, temperature=0.9))


async def test_an_overflow_names_the_limit_and_keeps_the_context(engine: Engine) -> None:
    await engine.step([ports.Work(A, 0, PROMPT, None)])
    with pytest.raises(errors.EngineError, match="1024"):
        await engine.step([ports.Work(A, 150, PROMPT * 6, None)])
    assert await said(engine, A, PROMPT[140:], 3, position=140) == await said(engine, B, PROMPT, 3)


async def test_a_token_outside_the_vocabulary_is_refused(engine: Engine) -> None:
    for token in (-1, engine.card.vocabulary):
        with pytest.raises(errors.EngineError):
            await engine.step([ports.Work(A, 0, (1, token), None)])


async def test_nothing_is_drawn_from_nothing(engine: Engine) -> None:
    with pytest.raises(errors.EngineError):
        await engine.step([ports.Work(A, 0, (), GREEDY)])


async def test_a_dropped_session_gives_its_memory_back(engine: Engine) -> None:
    free = engine.memory_free()
    await engine.step([ports.Work(A, 0, PROMPT, None)])
    held = engine.memory_free()
    await engine.drop(A)
    await engine.drop(B)
    assert held < free == engine.memory_free()
    with pytest.raises(errors.EngineError):
        await engine.step([ports.Work(A, 1, PROMPT, None)])


async def test_what_a_domain_has_is_not_computed_again(engine: Engine) -> None:
    size = engine.card.page_tokens
    assert await fed(engine, A, PROMPT, b"t") == 0
    assert await fed(engine, B, (*PROMPT[:100], 5), b"t") == 100 // size * size
    whole = await said(engine, C, (*PROMPT[:100], 5), 8)
    assert await said(engine, B, (5,), 8, position=100) == whole


async def test_the_last_token_is_computed_where_one_is_drawn(engine: Engine) -> None:
    size = engine.card.page_tokens
    assert await fed(engine, A, PROMPT[: 2 * size], b"t") == 0
    assert await fed(engine, B, PROMPT[: 2 * size], b"t", draw=True) == size
    assert await fed(engine, C, PROMPT[: 2 * size], b"t") == 2 * size


async def test_no_domain_finds_what_another_has(engine: Engine) -> None:
    await fed(engine, A, PROMPT, b"t")
    assert await fed(engine, B, PROMPT, b"u") == 0
    assert await fed(engine, C, PROMPT) == 0


async def test_a_session_finds_its_own_and_what_its_parent_has(engine: Engine) -> None:
    size = engine.card.page_tokens
    whole = await said(engine, A, PROMPT, 8)
    assert await fed(engine, B, PROMPT, A) == len(PROMPT) // size * size
    assert await said(engine, B, PROMPT[140:], 8, position=140) == whole
    await engine.drop(A)
    assert await fed(engine, A, PROMPT) == len(PROMPT) // size * size


async def test_what_a_dropped_session_left_takes_nobodys_memory(engine: Engine) -> None:
    free = engine.memory_free()
    await fed(engine, A, PROMPT, b"t")
    await engine.drop(A)
    assert engine.memory_free() == free
    assert await fed(engine, B, PROMPT, b"t") > 0


async def test_a_restore_takes_what_the_domain_has_and_then_the_pages(engine: Engine) -> None:
    whole = await said(engine, A, PROMPT, 8)
    pages = await pages_of(engine, A, len(PROMPT))
    held = len(pages) * engine.card.page_tokens
    assert await engine.restore(B, PROMPT, [], domain=A) == held
    assert await engine.restore(C, PROMPT, []) == 0
    assert await engine.restore(C, PROMPT, pages[:2]) == 2 * engine.card.page_tokens
    assert await engine.restore(C, PROMPT, pages) == held
    for session in (B, C):
        assert await said(engine, session, PROMPT[held:], 8, position=held) == whole


async def test_pages_of_more_than_their_tokens_are_refused(engine: Engine) -> None:
    await fed(engine, A, PROMPT)
    with pytest.raises(errors.EngineError):
        await engine.restore(
            B, PROMPT[: engine.card.page_tokens - 1], await pages_of(engine, A, engine.card.page_tokens)
        )


async def test_a_caller_that_went_away_harms_nobody(engine: Engine) -> None:
    alone = await said(engine, A, PROMPT, 3)
    with trio.CancelScope() as scope:
        scope.cancel()
        await engine.step([ports.Work(B, 0, PROMPT, GREEDY)])
    assert scope.cancelled_caught
    assert await said(engine, B, PROMPT, 3) == alone


async def test_log_probabilities_come_when_they_are_asked_for(engine: ports.Engine) -> None:
    [plain] = await engine.step([ports.Work(A, 0, PROMPT, GREEDY)])
    [told] = await engine.step([ports.Work(A, 0, PROMPT, ports.Sampling(logprobs=3))])
    assert isinstance(told, ports.Drawn)
    assert told.token == plain
    assert len(told.top) == 3
    assert told.logprob == told.top[0][1] <= 0, "the greedy token is the likeliest"
    assert told.top[0][0] == plain


async def test_where_the_answer_began_decides_what_penalties_count(engine: ports.Engine) -> None:
    strict = ports.Sampling(seed=7, temperature=0.9, frequency_penalty=2.0, presence_penalty=2.0)

    async def tokens(session: ids.SessionId, starts: int) -> list[int]:
        await engine.step([ports.Work(session, 0, PROMPT, None)])
        works = [
            ports.Work(session, 149, PROMPT[149:], dataclasses.replace(strict, seed=n), answer_from=starts)
            for n in range(9)
        ]
        return [token for work in works for token in await engine.step([work])]

    assert await tokens(A, 20) == await tokens(B, 20)
    assert await tokens(A, 20) != await tokens(C, 140)


async def test_an_answer_cannot_begin_behind_the_context(engine: ports.Engine) -> None:
    with pytest.raises(errors.EngineError, match="begin"):
        await engine.step([ports.Work(A, 0, PROMPT, GREEDY, answer_from=len(PROMPT) + 1)])


async def test_pages_are_restored_with_the_tokens_that_they_hold(engine: ports.Engine) -> None:
    await engine.step([ports.Work(A, 0, PROMPT, None)])
    pages = await pages_of(engine, A, len(PROMPT))
    with pytest.raises(errors.EngineError):
        await engine.restore(B, PROMPT[: len(pages) * engine.card.page_tokens - 1], pages)
