"""Bugs that the simulator must find: each is planted in one place, and caught within a number of seeds.

A checker that never fails proves nothing. The lease is not among them: with no loss accepted, which is all that is
served so far, safety never rests on it (sessions/DESIGN.md), so a lease counted wrongly breaks nothing to be caught.
What takes its place here is what safety does rest on: whose log is adopted, who is promised an epoch, what a majority
is, what a client refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshnode.machine import Effect, Persist, Send
from meshnode.ports import Lane
from meshnode.sessions import attach, failover, messages, owner, registry, voter
from meshnode.sim import campaign, checkers, disks, options, process

SEEDS_MAX = 10_000


def caught(wanted: Callable[[options.Options], bool]) -> campaign.Outcome:
    """The first ordinary seed that shows it. Worlds in which it cannot show are not run, and count all the same."""
    for seed in range(SEEDS_MAX):
        drawn = options.drawn(seed)
        if wanted(drawn) and (one := campaign.run(seed, drawn)).broken:
            return one
    raise AssertionError("not caught")


def group(drawn: options.Options) -> bool:
    """Sessions of three voters or more, and something that makes one of them fail."""
    return drawn.nodes >= 3 and bool(drawn.crash_every_s or drawn.cut_every_s or drawn.pause_every_s)


def rival_group(drawn: options.Options) -> bool:
    """The same where candidates run beside each other."""
    return group(drawn) and bool(drawn.crash_every_s and drawn.loss) and drawn.delay_ms == 50


def waking_group(drawn: options.Options) -> bool:
    """The same where an owner is stopped in a long answer, and wakes."""
    long = drawn.turns == 3 and drawn.tokens == 40 and drawn.storm_s >= 12.0
    return group(drawn) and bool(drawn.pause_every_s) and long


def parting_group(drawn: options.Options) -> bool:
    """The same where one voter has what another lacks when the owner dies."""
    lossy = bool(drawn.loss or drawn.reset_every_s or drawn.cut_every_s)
    return group(drawn) and bool(drawn.crash_every_s) and lossy and drawn.sync_ms >= 5 and drawn.decode_ms <= 50


def persist_after_send(patch: pytest.MonkeyPatch) -> None:
    """What follows a Persist does not wait for the disk."""
    patch.setattr(process.Process, "_held", lambda self, session, effect: isinstance(effect, Persist))


def rolled_back_disk(patch: pytest.MonkeyPatch) -> None:
    """A machine comes back with yesterday's journal, under its own name."""
    opened = disks.Disk.opened

    def yesterday(self: disks.Disk) -> tuple[list[bytes], int]:
        records, torn = opened(self)
        return records[: len(records) // 2], torn

    patch.setattr(disks.Disk, "opened", yesterday)


def vote_from_an_empty_disk(patch: pytest.MonkeyPatch) -> None:
    """A machine that lost its journal promises epochs of sessions that it knows nothing of."""
    hear = registry.Registry.from_voter

    def obliging(self: registry.Registry, now: float, peer: bytes, message: object) -> list[Effect]:
        if isinstance(message, messages.Prepare) and message.session not in self.members:
            promise = messages.Promise(message.session, message.epoch, True, 0, 0, 0, ())
            return [Send(peer, Lane.SIGNAL, promise, message.session)]
        return hear(self, now, peer, message)

    patch.setattr(disks.Disk, "opened", lambda self: ([], 0))
    patch.setattr(registry.Registry, "from_voter", obliging)


def adopts_the_worst_log(patch: pytest.MonkeyPatch) -> None:
    """A candidate goes on from its own log, whatever it is shown."""
    patch.setattr(failover.Candidate, "decide", lambda self, epoch, seq, voters_of: _take(self))


def _take(self: failover.Candidate) -> failover.Act | None:
    ready = self.stage is failover.Stage.PREPARING and self._carried(self.voters)
    self.best = None
    return failover.Act.TAKE if ready else None


def one_epoch_for_everybody(patch: pytest.MonkeyPatch) -> None:
    """An epoch is promised to each who asks for it."""
    prepare = voter.Voter.on_prepare

    def generous(self: voter.Voter, candidate: bytes, ask: messages.Prepare) -> object:
        if ask.epoch == self.promised:
            self.candidate = candidate
        return prepare(self, candidate, ask)

    patch.setattr(voter.Voter, "on_prepare", generous)


def released_without_a_majority(patch: pytest.MonkeyPatch) -> None:
    """An entry is shown when one follower has it, of however many."""
    majority = owner.Owner.majority.fget
    patch.setattr(owner.Owner, "majority", property(lambda self: max(1, majority(self) - 1)))


def client_without_a_fence(patch: pytest.MonkeyPatch) -> None:
    """The client takes entries of an owner that was replaced."""
    hear = attach.Attachment.on_notify

    def trusting(self: attach.Attachment, now: float, peer: bytes, notify: messages.Notify) -> list[Effect]:
        if notify.epoch < self.epoch:
            self.epoch = 0
        return hear(self, now, peer, notify)

    patch.setattr(attach.Attachment, "on_notify", trusting)


def promise_in_memory_alone(patch: pytest.MonkeyPatch) -> None:
    """A voter follows a new owner without writing down that it does."""
    replicate = voter.Voter.on_replicate

    def forgetful(self: voter.Voter, who: bytes, ask: messages.Replicate) -> object:
        records, reply = replicate(self, who, ask)
        return [one for one in records if not isinstance(one, messages.Promised)], reply

    patch.setattr(voter.Voter, "on_replicate", forgetful)


PREFIX = "the released prefix is in every later owner's log"
PROMISES, ENTRIES = "promises survive", "acknowledged entries survive"

PLANTED: dict[Callable[[pytest.MonkeyPatch], None], tuple[set[str], Callable[[options.Options], bool]]] = {
    persist_after_send: ({PROMISES, ENTRIES}, group),
    rolled_back_disk: ({PROMISES, ENTRIES}, group),
    vote_from_an_empty_disk: ({PROMISES}, group),
    adopts_the_worst_log: ({PREFIX}, parting_group),
    one_epoch_for_everybody: ({"one owner an epoch"}, rival_group),
    released_without_a_majority: ({PREFIX, ENTRIES}, group),
    client_without_a_fence: ({"receivers fence"}, waking_group),
    promise_in_memory_alone: ({PROMISES}, group),
}
"""Each with the invariants that may break first, and the worlds that can show it."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    invariants, wanted = PLANTED[plant]
    found = caught(wanted)
    print(f"{plant.__name__}: seed {found.seed}: {found.detail}")
    assert found.broken in invariants


@pytest.mark.parametrize("plant", [rolled_back_disk, vote_from_an_empty_disk], ids=lambda plant: plant.__name__)
def test_a_vote_that_was_forgotten_does_harm(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by what follows from it, with the checker turned off that compares a disk with its claims."""
    plant(monkeypatch)
    monkeypatch.setattr(
        checkers.Truth,
        "restarted",
        lambda self, node, dropped: [one.claims.pop(node.place, None) for one in self.sessions.values()],
    )
    found = caught(lambda drawn: group(drawn) and bool(drawn.crash_every_s))
    print(f"{plant.__name__}: seed {found.seed}: {found.detail}")
    assert found.broken in {PREFIX, "one owner an epoch", "one released log", "one log an epoch", "liveness"}
