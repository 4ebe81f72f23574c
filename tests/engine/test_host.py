"""The engine's thread: callers join and leave between passes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from meshnode import errors, host, ids, ports
from meshnode.engine import batcher, engine, pages, spill
from tests.engine import tiny

A, B, C = (ids.SessionId(bytes([letter]) * ids.SESSION_BYTES) for letter in b"abc")
GREEDY = ports.Sampling()
LONG = tuple(index * 37 % 290 for index in range(1000))


def slow(rows_max: int = 16) -> engine.TorchEngine:
    """An engine that needs many passes for a prompt."""
    return tiny.make(limits=batcher.Limits(rows_max, min(24, rows_max), min(16, rows_max)))


async def test_a_stream_does_not_wait_for_the_end_of_a_prompt() -> None:
    ended: list[str] = []
    async with host.running(slow()) as thread:
        await thread.step([ports.Work(A, 0, LONG[:40], None)])

        async def prompt() -> None:
            await thread.step([ports.Work(B, 0, LONG, GREEDY)])
            ended.append("prompt")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(prompt)
            for position in range(40, 50):
                await thread.step([ports.Work(A, position, (position,), GREEDY)])
            ended.append("stream")
        passes = thread.statistics().pass_count
    assert ended == ["stream", "prompt"]
    assert passes < 3 + 63 + 10


async def test_a_prompt_that_nobody_waits_for_stops() -> None:
    async with host.running(slow()) as thread:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.step, [ports.Work(B, 0, LONG, GREEDY)])
            while not thread.statistics().pass_count:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await thread.step([ports.Work(A, 0, (1, 2), GREEDY)])
        assert thread.statistics().computed_tokens < len(LONG) // 2
        [token] = await thread.step([ports.Work(B, 0, LONG, GREEDY)])
    assert [token] == tiny.make().step([ports.Work(B, 0, LONG, GREEDY)])


async def test_two_streams_that_do_not_fit_together_take_long_turns() -> None:
    said: dict[ids.SessionId, list[int | None]] = {A: [], B: []}
    bay = spill.MemorySpill(1 << 20)
    async with host.running(tiny.make(memory_bytes=10 * tiny.PAGE_BYTES, spill=bay)) as thread:

        async def speak(name: ids.SessionId) -> None:
            feed, position = LONG[: 100 + name[0]], 0
            for _ in range(100):
                said[name] += await thread.step([ports.Work(name, position, feed, GREEDY)])
                position, feed = position + len(feed), (said[name][-1] or 0,)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, A)
            nursery.start_soon(speak, B)
        spill_count = thread.statistics().spill_count
    assert 2 <= spill_count <= 40, "of the 200 if they took turns token by token"
    for name in (A, B):
        feed = LONG[: 100 + name[0]] + tuple(token or 0 for token in said[name][:-1])
        assert tiny.make().step([ports.Work(name, 0, feed, GREEDY)]) == said[name][-1:]


async def test_a_drop_is_told_to_whoever_waits_for_the_session() -> None:
    async with host.running(slow()) as thread:
        async with trio.open_nursery() as nursery:

            async def prompt() -> None:
                with pytest.raises(errors.EngineError, match="dropped"):
                    await thread.step([ports.Work(B, 0, LONG, GREEDY)])

            nursery.start_soon(prompt)
            while not thread.statistics().pass_count:
                await trio.lowlevel.checkpoint()
            await thread.drop(B)
        assert await thread.step([ports.Work(A, 0, (1, 2), None)]) == [None]


async def test_pages_go_out_between_the_passes_of_a_prompt() -> None:
    async with host.running(slow()) as thread:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.step, [ports.Work(B, 0, LONG, GREEDY)])
            while thread.statistics().computed_tokens < 64:
                await trio.lowlevel.checkpoint()
            page = await thread.export(B, 1)
            assert thread.statistics().computed_tokens < len(LONG)
        assert page == await thread.export(B, 1)


async def test_a_prompt_after_a_rest_finds_no_streams(autojump_clock: trio.testing.MockClock) -> None:
    inner = tiny.make()
    passes: list[int] = []
    forward = inner._llama.forward

    def counted(segments: list[pages.Segment], wanted: list[int]) -> object:
        passes.append(sum(len(one.tokens) for one in segments))
        return forward(segments, wanted)

    inner._llama.forward = counted  # type: ignore[method-assign]
    async with host.running(inner) as thread:
        await thread.step([ports.Work(A, 0, (1,), GREEDY)])
        await trio.sleep(2 * host.REST_S)
        await thread.step([ports.Work(B, 0, LONG[:200], GREEDY)])
    assert passes == [1, 200]
