"""A voter's part in a planned move: as the owner that leaves, as the target that comes, and as the owner that has left.

Make before break. The target loads and follows the log while the owner decodes; then the owner stops after a step,
sends `Refer`, and promises the next epoch to the target before it is asked. The target prepares as every candidate
does. So a move needs no safety rule of its own: `Refer` says only that nobody has to be deposed, as evidence would.

The old owner keeps the session in its engine until it hears the new one. If it does not, it is evidence enough for
everybody that the one who owned the session asks for votes: it takes the session back within HANDOVER_S and a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode import ids
from meshnode.ids import PeerId
from meshnode.machine import Effect, Note, Persist, Send, Unload
from meshnode.ports import Lane
from meshnode.sessions import lifecycle, messages, migration, records, refer, timers
from meshnode.sessions.lifecycle import State
from meshnode.sessions.migration import Act, Leaving, Progress

if TYPE_CHECKING:
    from meshnode.sessions.member import Member


@dataclass(slots=True)
class _Arriving:
    """What the target keeps of a move."""

    host: PeerId
    epoch: int
    until: float
    """When the owner has lost interest."""
    told: bool = False


class Handover:
    """Moves of one session, at one voter."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.leaving: Leaving | None = None
        self.last_refusal = ""
        """Why the last move was called off."""
        self._arriving: _Arriving | None = None
        self._given: tuple[PeerId, float] | None = None
        """To whom this owner gave the session, and when it stops waiting for the new one."""
        self._referred = False
        """The owner named this node the next one."""

    def reset(self) -> None:
        """Another owner is heard, or this node is one."""
        self.leaving = self._arriving = self._given = None
        self._referred = False
        if self.member.state is State.MIGRATING:
            self.member.state = lifecycle.move(self.member.state, State.ACTIVE)

    def on_message(self, now: float, peer: PeerId, message: refer.FromVoter, refusal: str) -> list[Effect]:
        """Another voter speaks of a move. `refusal`: why this node takes none."""
        match message:
            case refer.HandoverRequest():
                return self.on_request(now, peer, message, refusal)
            case refer.HandoverReady():
                return self.on_ready(now, peer, message)
            case refer.Refer():
                return self.on_refer(now, peer, message)

    # ------------------------------------------------------------------------------------------------------- the owner

    def refusal(self, target: PeerId | None) -> str:
        """Why the session cannot be moved there now (None: anywhere); empty if it can."""
        member = self.member
        serving = member.serving
        if serving is None:
            if member.state is State.RECOVERING:
                return "its ownership is being settled; try again"
            return "it is owned by another node; ask there" if member.host else "it has no owner now; try again"
        if self.leaving is not None:
            return "it is being moved already"
        if serving.transcript.closed is not None:
            return "it is over"
        if serving.repair.learner is not None or member.seating.current.seq > member.voter.released:
            return "its group is being changed; try again"  # the newcomer would be forgotten by the next owner
        if not member.contract.manifest.migration.movable:
            return "its manifest says movable: false"
        if target == member.me:
            return "it runs there already"
        # A node outside of the group becomes a replica first (a change of configuration), and then this holds.
        if target is not None and target not in set(serving.hosting.replicas) & serving.owner.voters:
            return "that node is no replica of it: it can move inside its group only"
        return ""

    def start(self, now: float, target: PeerId, *, stop_first: bool = False) -> list[Effect]:
        """Begin; `refusal` was asked before."""
        assert not self.refusal(target)
        self.leaving, self.last_refusal = Leaving(target, now, stop_first=stop_first), ""
        self.member.state = lifecycle.move(self.member.state, State.MIGRATING)
        left = self._progress(now).bytes_left
        note = Note("moving", self.member.session, f"to={ids.peer_short(target)} bytes_left={left}")
        return [note, *self.go_on(now)]

    def _progress(self, now: float) -> Progress:
        assert self.leaving is not None
        serving = self.member.serving
        assert serving is not None
        hosting = serving.hosting
        return Progress(
            hosting.pages.page_count,
            hosting.pages.watermark(self.leaving.target),
            hosting.card.page_bytes,
            serving.prefilling,
            hosting.busy,
            serving.leased(now),
            self.member.voter.log.last,
        )

    def go_on(self, now: float) -> list[Effect]:
        """Whatever the move can do next; asked after every event of the session."""
        serving = self.member.serving
        if self.leaving is None or serving is None:
            return []
        if serving.transcript.closed is not None:
            self.reset()
            return []
        act = self.leaving.go_on(now, self._progress(now))
        if act is Act.STOP:
            serving.stopping = True
            act = self.leaving.go_on(now, self._progress(now))
        if act is Act.REQUEST:
            ask = refer.HandoverRequest(self.member.session, serving.epoch)
            return [Send(self.leaving.target, Lane.SIGNAL, ask)]
        if act is Act.CALL_OFF:
            return self._call_off(now)
        return self._refer(now) if act is Act.REFER else []

    def _call_off(self, now: float) -> list[Effect]:
        assert self.leaving is not None
        serving = self.member.serving
        assert serving is not None
        self.last_refusal = self.leaving.refusal
        serving.stopping = False
        self.reset()
        return [Note("move called off", self.member.session, self.last_refusal), *serving.pump(now)]

    def _refer(self, now: float) -> list[Effect]:
        """Stop for good. `Refer` goes behind the last entries on their lane; the promise follows when it is on disk."""
        member, move = self.member, self.leaving
        assert move is not None
        assert member.serving is not None
        epoch, log = member.serving.epoch, member.voter.log
        detail = f"to={ids.peer_short(move.target)} seq={log.last} rounds={move.rounds}"
        effects: list[Effect] = [Note("handed over", member.session, detail)]
        effects.append(Send(move.target, Lane.MEDIA, refer.Refer(member.session, epoch, log.last)))
        made = member.voter.promise(epoch + 1, move.target)
        effects += [Persist(member.session, records.pack(record)) for record in made]
        promise = messages.Promise(member.session, epoch + 1, True, log.last_epoch, log.last, log.last, ())
        effects.append(Send(move.target, Lane.SIGNAL, promise, member.session))
        member.serving, member.voter.host, member.heard_at = None, None, now
        self.leaving, self._given = None, (move.target, now + timers.HANDOVER_S)
        return effects

    def severed_from(self, now: float, peer: PeerId) -> list[Effect]:
        """The target of a move is gone."""
        if self.leaving is None or peer != self.leaving.target:
            return []
        self.leaving.refusal = "the target is gone"
        return self.go_on(now)

    def on_ready(self, now: float, peer: PeerId, ready: refer.HandoverReady) -> list[Effect]:
        """The target's answer."""
        serving = self.member.serving
        if self.leaving is None or serving is None or peer != self.leaving.target or ready.epoch != serving.epoch:
            return []
        self.leaving.on_ready(now, ready.seq, ready.behind, ready.refusal)
        return self.go_on(now)

    # ------------------------------------------------------------------------------------------------------ the target

    def on_request(self, now: float, peer: PeerId, ask: refer.HandoverRequest, refusal: str) -> list[Effect]:
        """Load the session, or say how far that is. `refusal`: why this node takes none."""
        member = self.member
        voter = member.voter
        if member.serving is not None or member.noted_evidence or (peer, ask.epoch) != (voter.host, voter.epoch):
            return []
        if refusal or not member.stands:
            answer = refer.HandoverReady(
                member.session,
                ask.epoch,
                voter.log.last,
                0,
                refusal or "it cannot own the session: no engine that fits, or no vote",
            )
            return [Send(peer, Lane.SIGNAL, answer)]
        if self._arriving is not None and self._arriving.epoch == ask.epoch:
            self._arriving.until = now + migration.KEEP_S
            return [self._report()]
        self._arriving = _Arriving(peer, ask.epoch, now + migration.KEEP_S)
        effects: list[Effect] = [Note("arriving", member.session, f"from={ids.peer_short(peer)}")]
        if member.hosting is None:
            effects += member.load().restore(member.context())
        return effects + self.follow()

    def keeps(self, epoch: int) -> bool:
        """Whether the session stays in this engine although an owner of this epoch is alive."""
        return self._arriving is not None and self._arriving.epoch == epoch

    def follow(self) -> list[Effect]:
        """The log or the engine got on: feed what is missing, tell the owner once that little is."""
        hosting = self.member.hosting
        if self._arriving is None or self._referred or hosting is None or self.member.serving is not None:
            return []
        context = self.member.context()
        if self._arriving.told and hosting.behind(context) > migration.LAG_ENTRIES_MAX:
            self._arriving.told = False  # the owner goes on after all
        if self._arriving.told:
            return []
        effects = hosting.catch_up(context, migration.LAG_TOKENS_MAX)
        if hosting.busy:
            return effects
        self._arriving.told = True
        return [Note("ready", self.member.session, f"pages={hosting.pages_restored}"), self._report()]

    def _report(self) -> Effect:
        member, move = self.member, self._arriving
        assert move is not None
        assert member.hosting is not None
        behind = member.hosting.behind(member.context())
        if member.hosting.busy:  # nearly there is not there: a pass would be under way when the owner stops
            behind = max(behind, migration.LAG_TOKENS_MAX + 1)
        ready = refer.HandoverReady(member.session, move.epoch, member.voter.log.last, behind, "")
        return Send(move.host, Lane.SIGNAL, ready)

    def on_faulted(self, reason: str) -> list[Effect]:
        """The engine has no room for it, or worse: say so, and let go."""
        move = self._arriving
        if move is None:
            return []
        seq = self.member.voter.log.last
        answer = refer.HandoverReady(self.member.session, move.epoch, seq, 0, reason[:256] or "the engine refused")
        return [Send(move.host, Lane.SIGNAL, answer), *self._let_go()]

    def _let_go(self) -> list[Effect]:
        self._arriving = None
        if self.member.hosting is None or self.member.serving is not None or self._referred:
            return []
        self.member.hosting = None
        return [Unload(self.member.session)]

    def on_refer(self, now: float, peer: PeerId, told: refer.Refer) -> list[Effect]:
        """Be the next owner. No pre-vote: the only one who could be deposed asks for it."""
        member = self.member
        voter = member.voter
        theirs = (peer, told.epoch, told.epoch) == (voter.host, voter.epoch, voter.promised)
        if member.serving is not None or self._referred or not theirs:
            return []
        if not member.stands:
            return []
        member.candidate.rank, member.candidate.voters = member.seating.rank, member.seating.electorate
        act = member.candidate.refer(voter.promised)
        self._referred = member.noted_evidence = True
        for step in (State.ACTIVE, State.MIGRATING):  # this may be the first that is heard of the session's owner
            if member.state is not State.RECOVERING:
                member.state = lifecycle.move(member.state, step)
        effects: list[Effect] = [Note("referred", member.session, f"seq={told.seq} here={voter.log.last}")]
        if member.hosting is None:
            effects += member.load().restore(member.context())
        return effects + member.act(now, act)

    # -------------------------------------------------------------------------------------------------- once it is over

    def evidence(self, now: float) -> str:
        """Why somebody has to stand although no owner fell silent."""
        if self._referred:
            return "referred"
        return "not taken" if self._given is not None and now >= self._given[1] else ""

    def gave_to(self, peer: PeerId) -> bool:
        """Whether this node handed the session to this one, and nobody was heard since."""
        return self._given is not None and self._given[0] == peer

    def tick(self, now: float) -> list[Effect]:
        """What time makes due."""
        if self._arriving is not None and not self._referred and now >= self._arriving.until:
            return self._let_go()
        return self.go_on(now)

    @property
    def deadline(self) -> float:
        """When `tick` or `evidence` has something to say."""
        leaving = self.leaving.deadline if self.leaving is not None else float("inf")
        arriving = self._arriving.until if self._arriving is not None and not self._referred else float("inf")
        return min(leaving, arriving, self._given[1] if self._given is not None else float("inf"))
