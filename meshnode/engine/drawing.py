"""One draw of one session: its grammar's mask, then the sampler. All it keeps can be made again from the tokens.

Followers of grammars are kept by session, the latest few: whoever was left out, or comes from another host, is followed
again from where its answer began, and gets the same mask.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from meshnode import errors, ids, ports
from meshnode.engine import grammar, sampler
from meshnode.options import Grammar

FOLLOWERS_MAX = 64
"""Sessions whose place in their grammar is kept. Fewer: more is parsed again. More: memory, up to 32 MiB each."""


class Drawer:
    """Draws for all sessions of an engine. `grammars` None: no answer can be held to one."""

    def __init__(self, grammars: grammar.Grammars | None) -> None:
        self.grammars = grammars
        self._followers: OrderedDict[ids.SessionId, grammar.Follower] = OrderedDict()

    def draw(
        self,
        session: ids.SessionId,
        logits: sampler.Floats,
        sampling: ports.Sampling,
        tokens: Sequence[int],
        answer_from: int,
    ) -> int | ports.Drawn:
        """The token after `tokens`, the session's whole context; `answer_from` as in ports.Work.

        Raises sampler.NotFinite for logits that say that the session's KV cannot be trusted, EngineError for a grammar
        that leaves nothing to say, or a bias outside the vocabulary; then the session is as good as before.
        """
        if not 0 <= answer_from <= len(tokens):
            raise errors.EngineError(f"the answer cannot begin at {answer_from} of {len(tokens)}")
        sampler.check(logits)
        allowed = None
        if sampling.grammar is not None:
            said = tokens[answer_from:] if answer_from else ()
            allowed = self._follower(session, sampling.grammar).allowed(said)
        return sampler.draw(logits, sampling, len(tokens), context=tokens, answer_from=answer_from, allowed=allowed)

    def forget(self, session: ids.SessionId) -> None:
        """The session is over here."""
        self._followers.pop(session, None)

    def _follower(self, session: ids.SessionId, wanted: Grammar) -> grammar.Follower:
        if self.grammars is None:
            raise errors.EngineError("grammar: this engine has no vocabulary to hold to one")
        found = self._followers.pop(session, None)
        if found is None or found.grammar != wanted:
            found = self.grammars.follower(wanted)
        self._followers[session] = found
        while len(self._followers) > FOLLOWERS_MAX:
            self._followers.popitem(last=False)
        return found
