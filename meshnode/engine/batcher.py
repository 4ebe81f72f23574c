"""Which rows run in the next pass: integers only.

The idea: a *job* is some rows of one session; a *pass* runs rows of many jobs through the model once. A job of one row
is a *stream* at its next token (decode); more rows are a prefill and run in chunks. All waiting streams are in every
pass. What prefill may add is bounded while streams run, so that a pass with it takes at most as long as two without:
with s = the time of a step of streams and r = what a row beside them adds, s + p r <= 2 s gives p <= s / r. Both are
measured, because r depends on the machine, on the kernels and on how long the contexts are.

A stream is away between two tokens (its token is written down, sent, and comes back as the next job), and a prefill
that filled that gap with a long pass would hold it up all the same. So a session counts as a stream until it has
stayed away for STREAM_PASSES, or somebody says that it is over. Who was in the last pass is worth a short wait
(`expected`): streams that miss each other run in turns, and each then waits for two passes instead of one.

Nobody starves: the oldest prefill gets half of the room and whatever the others leave; the other half goes to the
others by turns. A session has one job at a time; the next one joins when that is done or gone.

Rejected: prefill in passes of its own (a stream then waits for all of it); shortest first (a long one waits for ever);
equal shares (eight prompts that come together then all end last).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

STREAM_PASSES = 8
"""Passes without a row after which a session is no stream any more. More: prefill is slow for longer after an answer.
Fewer: a slow disk or network turns a stream into somebody that a long pass may keep waiting."""


Session = TypeVar("Session", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of passes, in rows."""

    rows_max: int = 256
    """In one pass. More: longer waits for whoever comes meanwhile. Fewer: the weights are read more often."""
    beside_rows: int = 24
    """Prefill rows beside streams: s / r above, until it was measured."""
    beside_rows_min: int = 8
    """Whatever was measured. More: streams stutter on a machine with slow rows. Fewer: prompts beside streams crawl."""

    def __post_init__(self) -> None:
        assert 2 <= self.beside_rows_min <= self.beside_rows <= self.rows_max
        assert self.rows_max >= 16, "an eighth must be shared by two prefills"


@dataclass(frozen=True, slots=True)
class Share:
    """So many rows of a job, the next ones in its order."""

    job: int
    rows: int


@dataclass(slots=True)
class _Job(Generic[Session]):
    session: Session
    stream: bool
    left: int
    """Above 0; a job that has nothing left is gone."""


class Batcher(Generic[Session]):
    """The jobs that wait, and whose turn it is."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._jobs: dict[int, _Job[Session]] = {}
        """In the order in which they joined."""
        self._turns: list[int] = []
        """The prefills; whoever got rows as one of the others goes to the end."""
        self._away: dict[Session, int] = {}
        """Of each stream, for how many passes it has been without a row."""
        self._last_rows = (0, 0)
        """Of streams and of prefill, in the last pass."""
        self.step_us = 0
        """Microseconds of a pass of streams alone, as measured lately; 0 is not yet."""
        self._row_us = 0
        """What a prefill row beside streams adds to that."""

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: int, session: Session, rows: int) -> None:
        """A job joins; it may be in the next pass. The lower its number, the older it is."""
        assert rows > 0, "a job without rows has nothing to wait for"
        assert job not in self._jobs, f"job {job} is here already"
        assert all(one.session != session for one in self._jobs.values()), "a session's jobs would run side by side"
        self._jobs[job] = _Job(session, rows == 1, rows)
        if rows > 1:
            self._turns.append(job)
            self.rests(session)

    def remove(self, job: int) -> None:
        """A job leaves between passes; what it had stays done. Unknown ones are fine."""
        if self._jobs.pop(job, None) and job in self._turns:
            self._turns.remove(job)

    def rests(self, session: Session) -> None:
        """Its answer is over: the session will not come back with a next token."""
        self._away.pop(session, None)

    def all_rest(self) -> None:
        """Nobody has come for longer than a stream stays away."""
        self._away.clear()

    def streams(self) -> set[Session]:
        """Whoever is in the middle of an answer."""
        return set(self._away)

    def expected(self) -> set[Session]:
        """Whose next token is due: streams of the last pass that are not here again."""
        here = {job.session for job in self._jobs.values()}
        return {session for session, passes in self._away.items() if passes == 0 and session not in here}

    def measured(self, micros: int) -> None:
        """What the last pass took. A quarter of each news is believed: machines have other work."""
        streams, prefill = self._last_rows
        if streams and not prefill:
            self.step_us = _mean(self.step_us, micros)
        elif streams and self.step_us:
            self._row_us = _mean(self._row_us, max(0, micros - self.step_us) // prefill)

    def next(self) -> list[Share]:
        """The rows of the next pass, streams first. Empty if nothing waits. They count as done from now on."""
        # With more streams than rows in a pass, prefill keeps an eighth: else it would wait for the end of a stream.
        streams_max = self._limits.rows_max - (max(1, self._limits.rows_max // 8) if self._turns else 0)
        streams = [number for number, job in self._jobs.items() if job.stream][:streams_max]
        plan = [Share(job, 1) for job in streams] + self._prefills(self._room(len(streams)))
        assert sum(share.rows for share in plan) <= self._limits.rows_max, "a pass is too long"
        assert bool(plan) == bool(self._jobs), "somebody waits and nobody runs"
        self._last_rows = (len(streams), sum(share.rows for share in plan) - len(streams))
        if plan:
            self._note(self._jobs[job].session for job in streams)
        for share in plan:
            self._done(share)
        return plan

    def _room(self, stream_rows: int) -> int:
        """Rows that prefill may have."""
        left = self._limits.rows_max - stream_rows
        if not stream_rows and not self._away:
            return left
        beside = self.step_us // self._row_us if self._row_us else self._limits.beside_rows
        return min(left, max(self._limits.beside_rows_min, beside))

    def _prefills(self, room: int) -> list[Share]:
        """Half of the room for the oldest, the rest by turns, and what is left again for the oldest."""
        if not self._turns:
            return []
        oldest = min(self._turns)
        others = [job for job in self._turns if job != oldest]
        free = room - min(self._jobs[oldest].left, -(-room // 2))
        shares = []
        for job in others:
            if rows := min(self._jobs[job].left, free):
                shares.append(Share(job, rows))
                free -= rows
                self._turns.remove(job)
                self._turns.append(job)
        given = sum(share.rows for share in shares)
        assert given < room, "the oldest gets nothing"
        return [Share(oldest, min(self._jobs[oldest].left, room - given)), *shares]

    def _note(self, running: Iterable[Session]) -> None:
        """Who had a row in this pass, and who stays away."""
        self._away = {session: passes + 1 for session, passes in self._away.items() if passes + 1 < STREAM_PASSES}
        for session in running:
            self._away[session] = 0

    def _done(self, share: Share) -> None:
        job = self._jobs[share.job]
        assert 0 < share.rows <= job.left
        job.left -= share.rows
        if not job.left:
            self.remove(share.job)


def _mean(known: int, news: int) -> int:
    return (3 * known + news) // 4 if known else max(1, news)
