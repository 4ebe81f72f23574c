"""What a log means: the context that the model sees, and whether an answer is due.

A pure function of the log's changes, kept up to date as entries come, so that every host derives the same context, the
same position for the next token, and the same text for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.ids import RequestId
from meshnode.sessions.messages import Birth, Change, Closed, End, Opened, Seated, Token, Turn


class Transcript:
    """Fold of a log's changes."""

    __slots__ = ("closed", "context", "eos_closed", "open_turn", "pending", "requests", "said", "told", "turns")

    def __init__(self, changes: Sequence[Change] = ()) -> None:
        self.context: list[int] = []
        """Token ids in order; the next token's position is its length."""
        self.open_turn: Turn | None = None
        """The turn that is being answered."""
        self.said = 0
        """Tokens of the open turn so far."""
        self.pending: list[int] = []
        """Ids of the open turn since the last one after which no text was held back."""
        self.told = 0
        """Characters of their text that were said."""
        self.requests: set[RequestId] = set()
        self.turns = 0
        self.eos_closed = False
        """Whether the context ends in an end-of-turn id."""
        self.closed: str | None = None
        """Why the session is over."""
        for change in changes:
            self.add(change)

    def add(self, change: Change) -> None:
        """Apply the next change."""
        match change:
            case Birth() | Opened() | Seated():
                pass
            case Turn(request, ids):
                self.context.extend(ids)
                self.open_turn, self.said, self.eos_closed = change, 0, False
                self._settle()
                self.requests.add(request)
                self.turns += 1
            case Token(token, piece, held):
                self.context.append(token)
                self.said += 1
                if held:
                    self.pending.append(token)
                    self.told += len(piece)
                else:
                    self._settle()
            case End(reason):
                self.open_turn = None
                self._settle()
                self.eos_closed = reason == "stop"
            case Closed(reason):
                self.open_turn = None
                self.closed = reason

    @property
    def answer_from(self) -> int:
        """Where the answer begins in the context; 0 while none of it is said."""
        return len(self.context) - self.said if self.said else 0

    def _settle(self) -> None:
        self.pending, self.told = [], 0
