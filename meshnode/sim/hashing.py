"""An engine without a model: the next token is a hash of everything that it may depend on.

The idea: a protocol test needs tokens that betray any lost, doubled or swapped context, and pages that betray any
changed byte. A hash of (context, seed, position) does that better than a model, whose next token is often the same for
two contexts, and it costs microseconds. Pages hold the token ids themselves, sealed with a digest that chains over the
pages before them, so that `restore` refuses what `export` did not write.

What sessions of one domain have in common costs time and memory once, as in the real engine: full pages are known by
their address under the domain's key, and stay until memory is wanted.

What it refuses, it refuses as the real engine does: overflow, full memory, a page that is not full or was tampered
with. Rejected: a scripted engine (a list of tokens to say), which says the same words over a broken context.

Pure: what a step costs is counted here (`cost_tokens`) and spent by whoever runs it, `fakes.HashEngine` under trio and
`acts.Acts` on the simulator's heap.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import struct
from collections.abc import Sequence

from meshnode import errors, ids, options, ports
from meshnode.snapshots import chain

_TOKEN_BYTES = 4
_BYTE_TOKENS = 256
_END_OF_TURN = 256
_USER = 257
_ASSISTANT = 258
_SYSTEM = 259
_MARK_COUNT = 4
_PLAIN = ports.Sampling()


class HashCore:
    """One engine's memory and arithmetic. One instance holds many sessions; nothing is shared between instances."""

    def __init__(
        self,
        *,
        model: str = "hash",
        page_tokens: int = 16,
        page_bytes: int = 256,
        context_tokens_max: int = 8192,
        memory_bytes: int = 1 << 24,
        eos_after: int | None = None,
    ) -> None:
        """`eos_after`: a turn ends with its n-th drawn token, counted from the assistant's mark; without it, with one
        token in 64."""
        assert page_bytes >= page_tokens * _TOKEN_BYTES + ids.DIGEST_BYTES
        self.card = ports.EngineCard(
            model=model,
            model_digest=ids.digest(b"meshnode/hash-engine", model.encode()),
            numeric_class="hash",
            page_tokens=page_tokens,
            page_bytes=page_bytes,
            context_tokens_max=context_tokens_max,
            vocabulary=_BYTE_TOKENS + _MARK_COUNT,
            eos=(_END_OF_TURN,),
        )
        self.contexts: dict[ids.SessionId, list[int]] = {}
        """What the engine holds of each session: for checkers, not part of the port."""
        self._memory_bytes = memory_bytes
        self._eos_after = eos_after
        self._domains: dict[ids.SessionId, bytes] = {}
        self._known: dict[ids.Digest, None] = {}
        """Addresses of full pages that were computed here; the oldest are forgotten when they are too many."""
        self._computed = self._reused = self._steps = 0

    def export(self, session: ids.SessionId, page_index: int) -> bytes:
        """As the port says."""
        tokens = self.contexts.get(session, [])
        if not 0 <= page_index < len(tokens) // self.card.page_tokens:
            raise errors.EngineError(f"page {page_index} is not full: {len(tokens)} tokens are here")
        return self._page(tokens, page_index)

    def restore(
        self, session: ids.SessionId, tokens: Sequence[int], pages: Sequence[bytes], domain: bytes = b""
    ) -> int:
        """As the port says."""
        size = self.card.page_tokens
        held = self._found(domain or session, tokens)
        for page_index in range(held // size, len(pages)):
            page, until = pages[page_index], (page_index + 1) * size
            if len(page) != self.card.page_bytes:
                raise errors.EngineError(f"page {page_index} has {len(page)} bytes, not {self.card.page_bytes}")
            if until > len(tokens) or page != self._page(list(tokens), page_index):
                raise errors.EngineError(f"page {page_index} is not what an engine exported")
        held = max(held, len(pages) * size)
        self._check_room(session, held)
        self._domains[session] = domain or session
        self._hold(session, 0, list(tokens[:held]))
        return held

    def drop(self, session: ids.SessionId) -> None:
        """As the port says."""
        self.contexts.pop(session, None)
        self._domains.pop(session, None)

    def statistics(self) -> ports.EngineStatistics:
        """Idle pages are not counted: here they take no memory from anybody."""
        return ports.EngineStatistics(self._steps, self._computed, self._reused, 0, 0)

    def memory_free(self) -> int:
        """As the port says."""
        return self._memory_bytes - sum(self._bytes(len(tokens)) for tokens in self.contexts.values())

    def cost_tokens(self, work: ports.Work) -> int:
        """Tokens of a feed that must be computed before the one that a next token is drawn from."""
        return max(0, len(work.feed) - 1 - self._at_hand(work))

    def check(self, grammar: options.Grammar) -> None:
        """Takes any grammar but one that its own notation cannot read; what is drawn does not obey it."""
        try:
            if grammar.kind in (options.GrammarKind.JSON, options.GrammarKind.TOOLS):
                json.loads(grammar.text)
            elif grammar.kind is options.GrammarKind.REGEX:
                re.compile(grammar.text)
        except (ValueError, re.error, RecursionError) as error:
            raise errors.EngineError(f"grammar: {error}") from None

    def advance(self, work: ports.Work) -> ports.Answer:
        """One session's part of a step. Raises EngineError."""
        known = self.contexts.get(work.session, [])
        if not 0 <= work.position <= len(known):
            raise errors.EngineError(f"position {work.position} is beyond the {len(known)} tokens held")
        if work.sampling and not 0 <= work.answer_from <= work.position + len(work.feed):
            raise errors.EngineError(f"the answer cannot begin at {work.answer_from}")
        if not work.feed and work.sampling:
            raise errors.EngineError("a token is drawn from what was fed, and nothing was")
        if any(not 0 <= token < self.card.vocabulary for token in work.feed):
            raise errors.EngineError("a token is outside the vocabulary")
        tokens = known[: work.position] + list(work.feed)
        self._check_room(work.session, len(tokens))
        if work.position == 0:
            self._domains[work.session] = work.domain or work.session
        reused = self._at_hand(work)
        self._steps += 1
        self._reused += reused
        self._computed += len(work.feed) - reused
        self._hold(work.session, work.position, tokens)
        if work.sampling is None:
            return None
        token = self.draw(tokens, work.sampling, work.answer_from)
        if work.sampling.logprobs is None:
            return token
        top = tuple(((token + n) % self.card.vocabulary, -0.5 - n) for n in range(work.sampling.logprobs))
        return ports.Drawn(token, -0.5, top)

    def draw(self, tokens: list[int], sampling: ports.Sampling, answer_from: int = 0) -> int:
        """The next token after these."""
        seed = sampling.seed if sampling.temperature > 0 else 0
        parts = [_packed(tokens), (seed % 2**64).to_bytes(8, "big"), len(tokens).to_bytes(8, "big")]
        others = _PLAIN if sampling is ports.GREEDY else _others(sampling)
        if others != _PLAIN:  # a host that lost an option, or where the answer began, says something else
            parts += [repr(others).encode(), answer_from.to_bytes(8, "big")]
        drawn = ids.digest(*parts)
        if self._eos_after is None:
            return _END_OF_TURN if drawn[0] < 4 else 97 + drawn[1] % 26
        # Counted in the context, not in a counter: a turn must end at the same token on a host that restored it.
        said_count = tokens[::-1].index(_ASSISTANT) if _ASSISTANT in tokens else len(tokens) - 1
        return _END_OF_TURN if said_count + 1 >= self._eos_after else 97 + drawn[1] % 26

    def _at_hand(self, work: ports.Work) -> int:
        """How much of a feed its domain has; the token that a next one is drawn from is computed in any case."""
        if len(work.feed) < 2:
            return 0
        known = self.contexts.get(work.session, [])[: work.position]
        domain = work.domain or work.session
        if work.position:
            domain = self._domains.get(work.session, domain)
        usable = len(work.feed) - (work.sampling is not None)
        return max(0, self._found(domain, [*known, *work.feed[:usable]]) - work.position)

    def _found(self, domain: bytes, tokens: Sequence[int]) -> int:
        held = itertools.takewhile(self._known.__contains__, self._addresses(domain, tokens))
        return sum(1 for _ in held) * self.card.page_tokens

    def _hold(self, session: ids.SessionId, start: int, tokens: list[int]) -> None:
        """`tokens` are the session's now; those from `start` on are new."""
        self.contexts[session] = tokens
        if len(tokens) // self.card.page_tokens == start // self.card.page_tokens:
            return
        self._known |= dict.fromkeys(self._addresses(self._domains[session], tokens))
        while len(self._known) > self._memory_bytes // self.card.page_bytes:
            del self._known[next(iter(self._known))]

    def _addresses(self, domain: bytes, tokens: Sequence[int]) -> tuple[ids.Digest, ...]:
        card = self.card
        key = ids.digest(b"meshnode/hash-engine domain", domain)
        return chain.addresses(card.model_digest, card.numeric_class, card.page_tokens, tokens, key=key)

    def _page(self, tokens: list[int], page_index: int) -> bytes:
        end = (page_index + 1) * self.card.page_tokens
        body = _packed(tokens[:end])
        own = body[page_index * self.card.page_tokens * _TOKEN_BYTES :]
        return (own + ids.digest(self.card.model_digest, body)).ljust(self.card.page_bytes, b"\0")

    def _bytes(self, token_count: int) -> int:
        return -(-token_count // self.card.page_tokens) * self.card.page_bytes

    def _check_room(self, session: ids.SessionId, token_count: int) -> None:
        if token_count > self.card.context_tokens_max:
            raise errors.EngineError(f"{token_count} tokens exceed the context of {self.card.context_tokens_max}")
        bytes_free = self.memory_free() + self._bytes(len(self.contexts.get(session, [])))
        if self._bytes(token_count) > bytes_free:
            raise errors.EngineError(
                f"{token_count} tokens need {self._bytes(token_count)} bytes; {bytes_free} are free"
            )


def _packed(tokens: Sequence[int]) -> bytes:
    return struct.pack(f">{len(tokens)}I", *tokens)


def _others(sampling: ports.Sampling) -> ports.Sampling:
    """What else than the plainest options the drawing depends on."""
    return dataclasses.replace(sampling, seed=0, temperature=0.0, top_k=0, top_p=1.0, logprobs=None)


class HashTokenizer:
    """Bytes are ids; four ids above them stand for the marks of a chat template."""

    def turn(self, text: str, *, system: str | None, first: bool, closed: bool) -> list[int]:
        assert first or system is None, "a system text stands before the first turn only"
        turn = [] if first or closed else [_END_OF_TURN]
        if first and system is not None:
            turn += [_SYSTEM, *system.encode(), _END_OF_TURN]
        return turn + [_USER, *text.encode(), _END_OF_TURN, _ASSISTANT]

    def text(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < _BYTE_TOKENS).decode("utf-8", errors="replace")
