"""Acts in order, whole characters, and pages that are only as good as their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from meshnode import errors, hands, options, ports
from meshnode.ids import SessionId
from meshnode.machine import (
    Encode,
    Encoded,
    Event,
    Faulted,
    Forget,
    PageFailed,
    PageStored,
    Restore,
    Restored,
    Ship,
    Step,
    Stepped,
    Unload,
)
from meshnode.ports import GREEDY, Lane, Sampling, Work
from meshnode.sessions.messages import Token, Turn
from meshnode.sessions.transcript import Transcript
from meshnode.sim import fakes, hashing
from meshnode.snapshots import chain, disk, frames, store
from tests.sessions import cases
from tests.sessions.cases import A, B, C

TOKENS = list(range(40))


class Wire:
    """The bulk lane: keeps frames; a peer may be slow."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes]] = []
        self.slow: dict[bytes, trio.Event] = {}

    async def send(self, peer: bytes, lane: Lane, frame: bytes) -> None:
        assert lane is Lane.BULK
        if peer in self.slow:
            await self.slow[peer].wait()
        await trio.lowlevel.checkpoint()
        self.sent.append((peer, frame))


class Body:
    """One node's hands over an engine of hashes, and what they say."""

    def __init__(self, engine: fakes.HashEngine | None = None, files: disk.MemoryDisk | None = None) -> None:
        self.engine = engine or fakes.HashEngine()
        self.disk = files or disk.MemoryDisk()
        self.pages = store.PageStore(self.disk)
        self.admitted: list[int] = []
        self.hands = hands.Hands(
            self.engine, hashing.HashTokenizer(), self.pages, hands.at_once, self._gate, grammars=self.engine
        )
        self.wire = Wire()
        self.events: list[Event] = []

    def _gate(self, peer: bytes, session: SessionId, page_index: int, epoch: int) -> None:
        self.admitted.append(page_index)

    async def do(self, *acts: object) -> list[Event]:
        """What came of these acts."""
        before = len(self.events)
        async with trio.open_nursery() as nursery:
            for act in acts:
                self.hands.take(nursery, act, self.events.append, self.wire)
        return self.events[before:]

    @property
    def addresses(self) -> tuple[bytes, ...]:
        card = self.engine.card
        return chain.addresses(card.model_digest, card.numeric_class, card.page_tokens, TOKENS)

    def ship(self, index: int, to: bytes = B) -> Ship:
        card = self.engine.card
        parents = (chain.genesis(card.model_digest, card.numeric_class, card.page_tokens), *self.addresses)
        return Ship(cases.SESSION, 1, index, self.addresses[index], parents[index], to)

    def restore(self, load: int = 1) -> Restore:
        return Restore(cases.SESSION, load, self.addresses, tuple(TOKENS[:32]), b"")


def step(position: int, feed: Sequence[int], *, draw: bool = True, sampling: Sampling = GREEDY) -> Step:
    return Step(cases.SESSION, 1, Work(cases.SESSION, position, tuple(feed), sampling if draw else None), ())


async def test_acts_of_a_session_run_in_their_order() -> None:
    body = Body()
    events = await body.do(step(0, TOKENS, draw=False), step(40, [5]), Unload(cases.SESSION), step(41, [6]))
    assert [type(event) for event in events] == [Stepped, Stepped, Faulted]
    assert (events[0].token, events[0].position, events[1].position) == (None, 40, 41)
    assert "position 41" in events[2].reason


async def test_a_slow_replica_holds_no_step_and_no_other_replica() -> None:
    body = Body()
    await body.do(step(0, TOKENS, draw=False))
    body.wire.slow[B] = trio.Event()
    async with trio.open_nursery() as nursery:
        for act in (body.ship(0), body.ship(1), body.ship(0, C), step(40, [5])):
            body.hands.take(nursery, act, body.events.append, body.wire)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(body.events[-1], Stepped)
        assert [peer for peer, _ in body.wire.sent] == [C]
        body.wire.slow[B].set()
    assert [peer for peer, _ in body.wire.sent] == [C, B, B]


class Letters:
    """A tokenizer whose tokens are single bytes."""

    def turn(self, text: str, *, system: str | None, first: bool, closed: bool) -> list[int]:
        return [*text.encode()]

    def text(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Speaker(fakes.HashEngine):
    """An engine that says what it is told to."""

    def __init__(self, says: bytes) -> None:
        super().__init__()
        self.says = list(says)

    async def step(self, batch: Sequence[Work]) -> list[int | None]:
        await trio.lowlevel.checkpoint()
        return [self.says.pop(0)]


async def spoken(says: bytes, *stops: str) -> list[str]:
    """What the log would show of these bytes, one a token, until a stop string ends them."""
    body = Body(Speaker(says))
    body.hands.tokenizer = Letters()
    pieces: list[str] = []
    of = Transcript([Turn(cases.request(1), (1,), 99)])
    for byte in says:
        work = Work(cases.SESSION, 0, (1,), GREEDY)
        (event,) = await body.do(Step(cases.SESSION, 1, work, tuple(of.pending), of.told, stops))
        assert event.token == byte
        pieces.append(event.piece)
        of.add(Token(byte, event.piece, not event.whole))
        if event.stopped:
            break
    return pieces


async def test_a_character_of_many_bytes_is_said_when_it_is_whole() -> None:
    assert await spoken("aß€😀".encode()) == ["a", "", "ß", "", "", "€", "", "", "", "😀"]


async def test_bytes_that_never_become_a_character_are_said_in_the_end() -> None:
    pieces = await spoken(b"\xff\xff\xff\xffa")
    assert pieces[:3] == ["", "", ""]
    assert pieces[3] == "\ufffd" * 4
    assert pieces[4] == "a"


async def test_an_answer_stops_before_a_stop_string_and_says_what_only_began_one() -> None:
    assert await spoken(b"abEND", "END") == ["a", "b", "", "", ""]
    assert await spoken(b"aENENDx", "END") == ["a", "", "", "EN", "", ""]
    assert "".join(await spoken("grüß dich".encode(), "ß")) == "grü"


async def test_log_probabilities_come_with_the_text_of_each_alternative() -> None:
    body = Body()
    (event,) = await body.do(step(0, TOKENS, sampling=Sampling(logprobs=2)))
    assert event.logprob == -0.5
    assert event.top == ((event.token, chr(event.token), -0.5), (event.token + 1, chr(event.token + 1), -1.5))


async def test_a_grammar_is_judged_before_its_turn_has_ids() -> None:
    def encode(grammar: options.Grammar) -> Encode:
        return Encode(cases.SESSION, cases.request(1), "hi", None, True, False, grammar)

    good = options.Grammar(options.GrammarKind.REGEX, "a+")
    bad = options.Grammar(options.GrammarKind.REGEX, "(")
    body = Body()
    taken, refused = await body.do(encode(good), encode(bad))
    assert (taken.refusal, bool(taken.ids)) == ("", True)
    assert (refused.refusal[:8], refused.ids) == ("grammar:", ())
    body.hands.grammars = None
    (refused,) = await body.do(encode(good))
    assert "cannot be held" in refused.refusal


async def test_a_turn_that_the_chat_template_has_no_place_for_is_refused_and_the_node_lives() -> None:
    class Strict(Letters):
        def turn(self, text: str, *, system: str | None, first: bool, closed: bool) -> list[int]:
            raise errors.EngineError("no place for a system text")

    body = Body()
    body.hands.tokenizer = Strict()
    (refused,) = await body.do(Encode(cases.SESSION, cases.request(1), "hi", "teach", True, False))
    assert refused == Encoded(cases.SESSION, cases.request(1), (), "no place for a system text")


async def test_a_turn_is_encoded_with_its_system_text_at_first_only() -> None:
    body = Body()
    first, later = await body.do(
        Encode(cases.SESSION, cases.request(1), "hi", "teach", True, False),
        Encode(cases.SESSION, cases.request(2), "hi", "teach", False, True),
    )
    assert isinstance(first, Encoded)
    assert len(first.ids) == len(later.ids) + len("teach") + 2


async def shipped() -> tuple[Body, list[ports.Frame]]:
    """A host's two pages, on their way to B."""
    body = Body()
    await body.do(step(0, TOKENS, draw=False), body.ship(0), body.ship(1))
    await body.do(body.ship(0), body.ship(1))
    return body, [ports.Frame(A, Lane.BULK, frame) for _, frame in body.wire.sent[:2]]


async def test_pages_go_to_a_replica_and_come_back_as_the_same_tokens() -> None:
    host, sent = await shipped()
    replica = Body()
    for index, frame in enumerate(sent):
        (stored,) = await replica.hands.store_page(frame)
        assert stored == PageStored(A, cases.SESSION, 1, index, host.addresses[index], frames.unpack(frame.data).parent)
    assert replica.admitted == [0, 1]
    (restored,) = await replica.do(host.restore(3))
    assert restored == Restored(cases.SESSION, 3, 32)
    assert replica.engine.context(cases.SESSION) == tuple(TOKENS[:32])


async def test_a_page_that_rotted_stops_the_restore_there() -> None:
    host, sent = await shipped()
    for rotten, tokens in ((0, 0), (1, 16)):
        replica = Body()
        for frame in sent:
            await replica.hands.store_page(frame)
        path = next(path for path, _ in replica.disk.files() if host.addresses[rotten].hex() in path)
        data = bytearray(replica.disk.read(path))
        data[-1] ^= 1
        replica.disk.write(path, bytes(data))
        (restored,) = await replica.do(host.restore())
        assert restored.tokens == tokens


async def test_pages_that_the_engine_did_not_write_are_none() -> None:
    host, sent = await shipped()
    stranger = Body(fakes.HashEngine(model="other"))
    for frame in sent:
        await stranger.hands.store_page(frame)
    (restored,) = await stranger.do(host.restore())
    assert restored.tokens == 0
    assert stranger.engine.context(cases.SESSION) == ()


async def test_a_page_that_is_not_full_is_said_to_be_missing() -> None:
    body = Body()
    await body.do(step(0, TOKENS[:20], draw=False))
    (failed,) = await body.do(body.ship(1))
    assert isinstance(failed, PageFailed)
    assert failed.to == B


async def test_what_is_forgotten_is_gone_from_engine_and_store() -> None:
    _, sent = await shipped()
    body = Body()
    await body.hands.store_page(sent[0])
    await body.do(step(0, TOKENS, draw=False), Forget(cases.SESSION))
    assert body.engine.context(cases.SESSION) == ()
    assert body.pages.sessions() == ()


async def test_a_session_that_left_the_engine_leaves_its_pages_to_itself_and_to_its_domain() -> None:
    for domain, after in ((b"", Unload(cases.SESSION)), (b"tenant", Forget(cases.SESSION))):
        body = Body()
        work = Work(cases.SESSION, 0, tuple(TOKENS), None, domain)
        await body.do(Step(cases.SESSION, 1, work, ()), after)
        session = cases.SESSION if not domain else SessionId(b"t" * 16)
        (restored,) = await body.do(Restore(session, 2, body.addresses, tuple(TOKENS[:32]), domain))
        assert restored == Restored(session, 2, 32)
        assert body.engine.context(session) == tuple(TOKENS[:32])


async def test_a_step_of_another_session_of_the_domain_computes_the_rest_alone() -> None:
    body = Body()
    await body.do(Step(cases.SESSION, 1, Work(cases.SESSION, 0, tuple(TOKENS), None, b"tenant"), ()))
    await body.do(Forget(cases.SESSION))
    second = SessionId(b"t" * 16)
    before = body.engine.statistics().computed_tokens
    (stepped,) = await body.do(Step(second, 1, Work(second, 0, tuple(TOKENS), Sampling(), b"tenant"), ()))
    (alone,) = await Body().do(step(0, TOKENS))
    assert stepped.token == alone.token
    assert body.engine.statistics().computed_tokens - before == len(TOKENS) - 32
