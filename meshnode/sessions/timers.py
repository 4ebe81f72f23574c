"""Every duration of a session, by its kind (protocol.md, "The session").

A voice call must notice a dead host within a breath; a research job must survive a laptop's lid. The relations that
must hold between these numbers are asserted below, once.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.manifest import Kind


@dataclass(frozen=True, slots=True)
class Timers:
    """All in seconds."""

    invite_s: float
    """From INVITE to a final answer, whatever it is. Longer: users wait for a no."""
    bid_window_s: float
    """How long bids are awaited. Longer: more choice. Shorter: a faster ring."""
    heartbeat_s: float
    """Between signs of life, of a node and of an owner."""
    lost_after_s: float
    """Silence that counts as evidence against a host. Must exceed 2 * heartbeat_s."""
    lease_s: float
    """Without a majority's answer for so long the owner stops decoding. Must exceed lost_after_s or equal it."""
    replace_after_s: float
    """A voter that was silent so long gets a successor; one whose process is known to be dead, at once. Longer: the
    session stands on fewer. Shorter: a pause costs a copy of log and pages. Must exceed lost_after_s."""


TIMERS = {
    Kind.SYNCHRONOUS: Timers(2.0, 0.15, 0.25, 1.0, 1.0, 2.0),
    Kind.INTERACTIVE: Timers(10.0, 0.5, 0.5, 1.5, 2.0, 4.0),
    Kind.AUTONOMOUS: Timers(32.0, 2.0, 10.0, 45.0, 60.0, 120.0),
}

ELECTION_RANK_S = 0.15
"""Each further candidate waits so much longer, so that the one with the pages usually goes first and alone."""
ELECTION_RETRY_S = 0.3
"""A round of votes that did not gather a majority is tried again after this, plus up to as much again by dice."""
HANDOVER_S = 0.5
"""An owner that handed over and hears of no new one for so long stands itself. Longer: a target that died is a longer
pause. Shorter: a slow disk at the target brings the session back. Must exceed some round trips and fsyncs."""
RESERVATION_EXTRA_S = 2.0
"""A bid holds its memory for the bid window and this."""
CONFIRM_S = 0.8
"""A nominee that did not confirm an award within this is replaced."""

for _timers in TIMERS.values():
    assert _timers.lost_after_s > 2 * _timers.heartbeat_s
    assert _timers.lease_s >= _timers.lost_after_s
    assert _timers.replace_after_s > _timers.lost_after_s
    assert _timers.bid_window_s + 2 * CONFIRM_S < _timers.invite_s
