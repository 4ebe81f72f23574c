"""Eight sessions on one engine; one is killed in mid-answer, one is forked, one has to make room and comes back, and
two of them, that one among them, are held to a grammar. Each says what it says alone."""

from __future__ import annotations

import dataclasses
import functools

import trio

from meshnode import host, ids, ports
from meshnode.engine import spill
from meshnode.options import Grammar, GrammarKind
from tests.engine import tiny

NAMES = tuple(ids.SessionId(bytes([number]) * ids.SESSION_BYTES) for number in range(9))
KILLED, FORKED, STRICT, PREEMPTED, FORK = NAMES[0], NAMES[1], NAMES[2], NAMES[7], NAMES[8]
FORM = Grammar(GrammarKind.REGEX, "[a-z ]{60,}")
"""Longer than what is said, so that no answer ends before the others do."""
SAID = 40
PAGES = 40
"""The eight need 52, so they do not fit together."""


def prompt(name: ids.SessionId) -> tuple[int, ...]:
    return tuple((place * place * 7 + place * 31 + name[0]) % 290 for place in range(90 + 20 * name[0]))


def sampling(name: ids.SessionId) -> ports.Sampling:
    plain = ports.Sampling(seed=name[0], temperature=0.8 if name[0] % 2 else 0.0)
    if name not in (STRICT, PREEMPTED):
        return plain
    return dataclasses.replace(plain, grammar=FORM, frequency_penalty=0.5, repetition_penalty=1.1, min_p=0.01)


@functools.cache
def alone(name: ids.SessionId, context: tuple[int, ...]) -> tuple[int, ...]:
    """What a session says in an engine of its own."""
    engine, said, feed, position = tiny.make(follows=tiny.grammars()), [], context, 0
    for _ in range(SAID):
        answer_from = len(context) if said else 0
        [token] = engine.step([ports.Work(name, position, feed, sampling(name), answer_from=answer_from)])
        assert isinstance(token, int)
        said.append(token)
        position, feed = position + len(feed), (token,)
    return tuple(said)


class Story:
    def __init__(self, engine: host.ThreadEngine) -> None:
        self.engine = engine
        self.said: dict[ids.SessionId, list[int]] = {name: [] for name in NAMES}
        self.forked_at: list[int] = []
        self.preempted = trio.Event()
        self.ten = trio.Event()
        """So many tokens the one that is killed has said."""

    async def speak(
        self, name: ids.SessionId, count: int, context: tuple[int, ...] | None = None, domain: bytes = b""
    ) -> None:
        """Go on until so many tokens are said."""
        start = prompt(name) if context is None else context
        said = self.said[name]
        position, feed = (len(start) + len(said) - 1, (said[-1],)) if said else (0, start)
        while len(said) < count:
            answer_from = len(start) if said else 0
            [token] = await self.engine.step([ports.Work(name, position, feed, sampling(name), domain, answer_from)])
            assert isinstance(token, int)
            said.append(token)
            position, feed = position + len(feed), (token,)
            if name == KILLED and len(said) == 10:
                self.ten.set()
            if self.engine.statistics().spill_count:
                self.preempted.set()

    async def is_killed(self) -> None:
        async with trio.open_nursery() as life:
            life.start_soon(self.speak, KILLED, SAID)
            await self.ten.wait()
            life.cancel_scope.cancel()
        await self.engine.drop(KILLED)

    async def is_forked(self, nursery: trio.Nursery) -> None:
        await self.speak(FORKED, 12)
        self.forked_at = list(self.said[FORKED])
        context = (*prompt(FORKED), *self.forked_at)
        nursery.start_soon(self.speak, FORK, SAID, context, FORKED)
        await self.speak(FORKED, SAID)

    async def comes_back(self) -> None:
        await self.preempted.wait()
        await self.speak(PREEMPTED, SAID)


async def test_eight_sessions_say_what_they_say_alone() -> None:
    room = PAGES * tiny.PAGE_BYTES
    inner = tiny.make(memory_bytes=room, spill=spill.MemorySpill(room), follows=tiny.grammars())
    async with host.running(inner) as engine:
        story = Story(engine)
        await story.speak(PREEMPTED, 20)
        reused = engine.statistics().reused_tokens
        async with trio.open_nursery() as nursery:
            nursery.start_soon(story.is_killed)
            nursery.start_soon(story.is_forked, nursery)
            nursery.start_soon(story.comes_back)
            for name in NAMES[2:7]:
                nursery.start_soon(story.speak, name, SAID)
        statistics = engine.statistics()
    assert 10 <= len(story.said[KILLED]) < SAID
    assert story.said[KILLED] == list(alone(KILLED, prompt(KILLED))[: len(story.said[KILLED])])
    for name in NAMES[1:8]:
        assert story.said[name] == list(alone(name, prompt(name)))
    assert story.said[FORK] == list(alone(FORK, (*prompt(FORKED), *story.forked_at)))
    for name in (STRICT, PREEMPTED):
        assert set(tiny.decode(story.said[name])) <= set("abcdefghijklmnopqrstuvwxyz ")
        assert len(set(story.said[name])) > 5, "the penalties count what was said"
    assert statistics.spill_count > 0
    assert statistics.reused_tokens - reused >= 96, "the fork did not compute what its parent had"
    assert statistics.pass_count < statistics.computed_tokens // 4, "nobody shared a pass"
