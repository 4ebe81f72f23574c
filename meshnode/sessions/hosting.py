"""What the owner does with its engine: feed it what the log says, draw the next token, ship pages as they fill.

The engine is a cache of the log. `loaded` is what it holds; the next Work starts where that and the context part, so
the same three lines serve a new turn, a failover with half of the pages and a failover with none.
"""

from __future__ import annotations

from meshnode.ids import Digest, PeerId, SessionId
from meshnode.machine import Effect, Restore, Ship, Step, Stepped
from meshnode.ports import EngineCard, Work
from meshnode.sessions import messages
from meshnode.sessions.messages import Alternative, Change, End, Logprobs, Token
from meshnode.sessions.transcript import Transcript
from meshnode.snapshots import chain, sender

PREFILL_TOKENS_MAX = 256
"""Tokens of one prefill step. More: fewer steps. Fewer: the first pages are shipped earlier, and a turn that is
interrupted stops earlier. Other sessions do not wait for it (engine/batcher.py)."""
AHEAD_MAX = 16
"""Tokens that may be drawn before they are released. More: hides the network. Fewer: less is drawn in vain."""


class Hosting:
    """One session on this node's engine. It may be loaded before it is owned: restoring costs nobody a vote."""

    def __init__(
        self, session: SessionId, load: int, card: EngineCard, context_tokens_max: int, domain: bytes = b""
    ) -> None:
        self.session = session
        self.load = load
        self.card = card
        self.context_tokens_max = min(context_tokens_max, card.context_tokens_max)
        self.domain = domain
        """Whose pages this session may find in the engine, and who may find its own."""
        self.epoch = 0
        """Of the owner that this node is; 0 before."""
        self.loaded: list[int] = []
        """Ids that the engine holds."""
        self.busy = False
        """A step or a restore is under way."""
        self.drawn = False
        """A token was drawn since the load."""
        self.recomputed = 0
        """Tokens fed before that."""
        self.pages_restored = 0
        self.replicas: tuple[PeerId, ...] = ()
        """Who gets pages."""
        self.pages = sender.Sender(0, sender.Window())
        self._genesis = chain.genesis(card.model_digest, card.numeric_class, card.page_tokens)
        self._tip = self._genesis
        self._restoring: list[int] = []

    # ------------------------------------------------------------------------------------------------------- restore

    def restore(self, context: list[int]) -> list[Effect]:
        """Ask for the pages of this context; the last token is left out, since its logits are needed."""
        usable = context[: max(0, len(context) - 1)]
        addresses = self._addresses(usable)
        if not addresses:
            return []
        self.busy = True
        self._restoring = usable
        whole = tuple(usable[: len(addresses) * self.card.page_tokens])
        return [Restore(self.session, self.load, addresses, whole, self.domain)]

    def restored(self, tokens: int) -> None:
        """So many tokens are in the engine."""
        self.busy = False
        self.loaded = self._restoring[:tokens]
        self._restoring = []
        self.pages_restored = tokens // self.card.page_tokens

    def own(self, epoch: int, replicas: tuple[PeerId, ...]) -> None:
        """The session is this node's now; pages go out under this epoch, the first of them again."""
        assert epoch > self.epoch
        self.epoch = epoch
        self._tip = self._genesis
        self.replicas = replicas
        self.pages = sender.Sender(epoch, sender.Window())
        for replica in replicas:
            self.pages.added(replica)

    def supply(self, replicas: tuple[PeerId, ...]) -> None:
        """Who gets pages from here on; who got some before keeps its progress."""
        for peer in set(self.replicas) - set(replicas):
            self.pages.removed(peer)
        for peer in set(replicas) - set(self.replicas):
            self.pages.added(peer)
        self.replicas = replicas

    def align(self, context: list[int]) -> None:
        """What was loaded on a guess may part from the log that was adopted; forget it from there on."""
        if not self.busy:
            del self.loaded[self._common(context) if context else 0 :]

    def _addresses(self, tokens: list[int]) -> tuple[Digest, ...]:
        return chain.addresses(self.card.model_digest, self.card.numeric_class, self.card.page_tokens, tokens)

    # -------------------------------------------------------------------------------------------------------- decode

    def next_step(self, transcript: Transcript, unreleased: int) -> list[Effect]:
        """The next piece of work, if there is any and the owner is not too far ahead of its followers."""
        turn = transcript.open_turn
        if self.busy or turn is None or unreleased > AHEAD_MAX:
            return []
        context = transcript.context
        common = self._common(context)
        feed = tuple(context[common : common + PREFILL_TOKENS_MAX])
        last = common + len(feed) == len(context)
        answer_from = transcript.answer_from if last else 0
        work = Work(self.session, common, feed, turn.sampling if last else None, self.domain, answer_from)
        self.loaded[common:] = feed
        self.busy = True
        if not self.drawn:
            self.recomputed += len(feed)
        pending = tuple(transcript.pending) if last else ()
        return [Step(self.session, self.load, work, pending, transcript.told, turn.stop)]

    def behind(self, context: list[int]) -> int:
        """Tokens of the context that the engine lacks once it is idle; the last one does not count, since it is fed
        with the draw."""
        return len(context) - 1 - self._common(context) if context else 0

    def catch_up(self, context: list[int], lag_max: int) -> list[Effect]:
        """Feed what the log says and draw nothing: somebody else owns the session, and is about to hand it over. A few
        tokens are left for the first pass of one's own."""
        missing = self.behind(context)
        if self.busy or missing <= lag_max:
            return []
        common = self._common(context)
        feed = tuple(context[common : common + min(missing, PREFILL_TOKENS_MAX)])
        self.loaded[common:] = feed
        self.busy = True
        return [Step(self.session, self.load, Work(self.session, common, feed, None, self.domain), ())]

    def _common(self, context: list[int]) -> int:
        """How much of the context the engine holds; at least one token is always fed again."""
        limit = min(len(self.loaded), len(context) - 1)
        if self.loaded[:limit] == context[:limit]:
            return limit
        return next(place for place in range(limit) if self.loaded[place] != context[place])

    def stepped(self, event: Stepped, transcript: Transcript) -> list[Change]:
        """What the log gets. A step for a turn that is over by now drew its token in vain."""
        self.busy = False
        self.drawn = self.drawn or event.token is not None
        turn = transcript.open_turn
        if event.token is None or turn is None or event.position != len(transcript.context):
            return []
        ended = self._ended(event, transcript, turn.max_tokens)
        if not ended:
            return [Token(event.token, event.piece, not event.whole, _logprobs(event))]
        # What might have begun a stop string began none; a character that broke off is never said.
        return [Token(event.token, event.piece + event.rest, False, _logprobs(event)), End(ended)]

    def _ended(self, event: Stepped, transcript: Transcript, tokens_max: int) -> str:
        """Why the answer is over with this token, or nothing."""
        if event.token in self.card.eos:
            return "stop"
        if event.stopped:
            return "stop string"
        if transcript.said + 1 >= tokens_max:
            return "length"
        return "context full" if len(transcript.context) + 1 >= self.context_tokens_max else ""

    # --------------------------------------------------------------------------------------------------------- pages

    def seal(self) -> None:
        """Give every page that is full by now its address."""
        size = self.card.page_tokens
        for index in range(self.pages.page_count, len(self.loaded) // size):
            tokens = self.loaded[index * size : (index + 1) * size]
            self._tip = chain.address(
                self._tip, self.card.model_digest, self.card.numeric_class, self.card.page_tokens, tokens
            )
            self.pages.sealed(index, self._tip, self.card.page_bytes)

    def ship(self) -> list[Effect]:
        """Pages that may go out now. Only while the engine is idle is `loaded` what the engine holds."""
        if self.busy:
            return []
        self.seal()
        return [
            Ship(self.session, self.epoch, index, self.pages.address(index), self._parent(index), replica)
            for replica in self.replicas
            for index in self.pages.next_for(replica)
        ]

    def _parent(self, index: int) -> Digest:
        return self.pages.address(index - 1) if index else self._genesis

    def chain(self) -> tuple[Digest, ...]:
        """Addresses of all sealed pages, as many as one offer may name."""
        count = min(self.pages.page_count, messages.PAGES_MAX)
        return tuple(self.pages.address(index) for index in range(count))


def _logprobs(event: Stepped) -> Logprobs | None:
    if event.logprob is None:
        return None
    cut = messages.TOKEN_CHARS_MAX
    return Logprobs(event.logprob, tuple(Alternative(token, text[:cut], chance) for token, text, chance in event.top))
