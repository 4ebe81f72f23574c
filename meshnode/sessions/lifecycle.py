"""A session's states and the moves between them that are legal; everything else is our own bug.

The diagram in DESIGN.md is this table.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a session stands, seen from one voter."""

    PROCEEDING = "proceeding"
    """Awarded and confirmed here; the agent has not acknowledged yet."""
    ACTIVE = "active"
    RECOVERING = "recovering"
    """Evidence against the host: a new owner is being found."""
    MIGRATING = "migrating"
    """The owner is handing it over, or has."""
    TERMINATING = "terminating"
    """The last entry is written, not yet everywhere."""
    TERMINATED = "terminated"


_LEGAL: dict[State, frozenset[State]] = {
    State.PROCEEDING: frozenset({State.ACTIVE, State.TERMINATED}),
    State.ACTIVE: frozenset({State.MIGRATING, State.RECOVERING, State.TERMINATING, State.TERMINATED}),
    State.MIGRATING: frozenset({State.ACTIVE, State.RECOVERING, State.TERMINATING, State.TERMINATED}),
    State.RECOVERING: frozenset({State.ACTIVE, State.TERMINATING, State.TERMINATED}),
    State.TERMINATING: frozenset({State.RECOVERING, State.TERMINATED}),
    State.TERMINATED: frozenset(),
}


def move(old: State, new: State) -> State:
    """`new`, if one may go there from `old` or is there already."""
    assert new is old or new in _LEGAL[old], f"{old.value} -> {new.value}"
    return new
