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
from meshnode.sim import campaign, disks, process

SEEDS_MAX = 10_000


def caught(first: int = 0) -> tuple[int, campaign.Outcome]:
    """How many seeds it took, and what was found."""
    for count, seed in enumerate(range(first, first + SEEDS_MAX), start=1):
        one = campaign.run(seed)
        if one.broken:
            return count, one
    raise AssertionError("not caught")


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
    patch.setattr(failover.Candidate, "decide", lambda self, epoch, seq: _take(self))


def _take(self: failover.Candidate) -> failover.Act | None:
    ready = self.stage is failover.Stage.PREPARING and len(self._votes) >= self.needed
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


PLANTED = {
    persist_after_send: {"promises survive", "acknowledged entries survive"},
    rolled_back_disk: {"promises survive", "acknowledged entries survive"},
    vote_from_an_empty_disk: {"promises survive"},
    adopts_the_worst_log: {"the released prefix is in every later owner's log"},
    one_epoch_for_everybody: {"one owner an epoch"},
    released_without_a_majority: {"the released prefix is in every later owner's log", "acknowledged entries survive"},
    client_without_a_fence: {"receivers fence"},
    promise_in_memory_alone: {"promises survive"},
}
"""Each with the invariants that may break first."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    count, found = caught()
    print(f"{plant.__name__}: seed {found.seed}, the {count}th: {found.detail}")
    assert found.broken in PLANTED[plant]
