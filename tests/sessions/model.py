"""A few voters and one client in one loop, without trio: every message may be late, lost, doubled or overtaken.

The idea: an order of events is a list of dice. A crash loses what was not on the disk, a restart replays the rest, and
a clock may leap. After each event the invariants are looked at, so the first bad step is the last one that runs.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass, field

from meshnode import errors
from meshnode.ids import Digest, PeerId
from meshnode.machine import (
    Effect,
    Encode,
    Encoded,
    Forget,
    Note,
    PageStored,
    Persist,
    Post,
    Restore,
    Restored,
    Send,
    Ship,
    Step,
    Stepped,
    Unload,
)
from meshnode.sessions import contract, messages, moves, registry
from meshnode.wire.award import Seat
from tests.sessions import caller, cases, checks, drawing

CALM_S = 12.0
"""After this no more faults are made; what is left must come to its end."""
END_S = 90.0


@dataclass(slots=True)
class Machine:
    """What survives a crash, and the process, if one runs."""

    peer: PeerId
    place: int
    disk: list[bytes] = field(default_factory=list)
    pages: set[Digest] = field(default_factory=set)
    life: int = 0
    offset_s: float = 0.0
    brain: registry.Registry | None = None
    waiting: deque[Effect] = field(default_factory=deque)
    context: list[int] = field(default_factory=list)
    asked_at: float = float("inf")


class World:
    """One seed's world."""

    def __init__(self, seed: int, count: int, turns: int = 2, spares: int = 0) -> None:
        self.rng = random.Random(seed)
        self.count = count
        self.spares = spares
        self.wipes_left = count // 2 if spares else 0
        """Disks that may be lost: as many as a majority can do without."""
        self.now = 0.0
        self.reached: Counter[str] = Counter()
        self.machines = {
            node.peer: Machine(node.peer, place) for place, node in enumerate(cases.NODES[: count + spares])
        }
        self._events: list[tuple[float, int, object]] = []
        self._number = itertools.count()
        self._pages: dict[Digest, list[int]] = {}
        self.checks = checks.Checks(self.reached)
        self.loss = self.rng.choice((0.0, 0.05, 0.2))
        self.delay_s = self.rng.choice((0.005, 0.05, 0.3))
        self.caller = caller.Caller(self, tuple(self.machines)[:count], turns)

    def run(self) -> None:
        """Birth, storm, calm, end."""
        sealed = cases.award(self.count)
        for machine in self.machines.values():
            machine.brain = self._registry(machine, random.Random(machine.place))
            if machine.place >= self.count:
                continue
            made, refusal = machine.brain.born(0.0, contract.read(sealed), sealed)
            assert not refusal
            machine.disk += [effect.record for effect in made if isinstance(effect, Persist)]
            self._want_tick(machine)
        self.caller.begin()
        self.at(self.rng.uniform(0.0, 1.0), "fault")
        self.at(self.rng.uniform(0.0, 2.0), "move")
        while self._events and not self.done:
            self.now, _, event = heapq.heappop(self._events)
            if self.now > END_S:
                break
            self._happen(event)
            self.checks.look(self.machines.values())

    @property
    def done(self) -> bool:
        """Whether every answer is whole, the session is over at the client and dropped by whoever runs."""
        gone = all(one.brain is None or not one.brain.members for one in self.machines.values())
        return bool(self.caller.over) and gone and self.now > CALM_S

    def _registry(self, machine: Machine, rng: random.Random) -> registry.Registry:
        return registry.Registry(machine.peer, self._card(machine), rng, cases.NODES[machine.place])

    def _card(self, machine: Machine) -> object:
        return cases.CARD if machine.place != 2 or self.count > 3 else None

    def at(self, delay_s: float, event: object) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._number), event))

    def _happen(self, event: object) -> None:
        match event:
            case "fault":
                self._fault()
            case "move":
                self._move()
            case ("client tick", at):
                self.caller.tick(at)
            case ("to client", peer, message):
                self.caller.hears(peer, message)
            case ("to", peer, sender, message):
                self._hears(self.machines[peer], sender, message)
            case (kind, machine, life, *rest) if machine.life == life and machine.brain is not None:
                getattr(self, f"_{kind}")(machine, *rest)
            case ("start", machine):
                self._start(machine)

    # -------------------------------------------------------------------------------------------------------- machines

    def _clock(self, machine: Machine) -> float:
        return self.now + machine.offset_s

    def _step(self, machine: Machine, call: object) -> None:
        """Whatever a brain does with an event; a peer's fault changes nothing."""
        try:
            effects = call()
        except errors.PeerError as error:
            self.reached[f"peer error: {error}"] += 1
            effects = []
        self._carry(machine, effects)
        self._search(machine)
        self._want_tick(machine)

    def _want_tick(self, machine: Machine) -> None:
        due = machine.brain.deadline
        if due != machine.asked_at and due < float("inf"):
            machine.asked_at = due
            self.at(max(0.0, due - self._clock(machine)), ("tick", machine, machine.life, due))

    def _tick(self, machine: Machine, due: float) -> None:
        if due != machine.asked_at:
            return
        machine.asked_at = float("inf")
        before = self._clock(machine)
        if before < machine.brain.deadline:
            self._want_tick(machine)
            return
        self._step(machine, lambda: machine.brain.tick(before))
        assert machine.brain.deadline > before, "a deadline that stays in the past is a busy loop"

    def _hears(self, machine: Machine, sender: PeerId, message: object) -> None:
        if machine.brain is None:
            return
        if isinstance(message, messages.Prepare):
            member = machine.brain.members.get(cases.SESSION)
            if member is not None and message.epoch <= member.voter.promised:
                self.reached["prepare refused"] += 1
        now = self._clock(machine)
        agent = isinstance(message, registry.FromAgent)
        brain = machine.brain
        hear = brain.from_agent if agent else brain.from_voter
        self._step(machine, lambda: hear(now, sender, message))

    def _hand(self, machine: Machine, event: object) -> None:
        self._step(machine, lambda: machine.brain.from_hands(self._clock(machine), event))

    def _start(self, machine: Machine) -> None:
        machine.life += 1
        machine.offset_s = self.rng.choice((0.0, 5.0, 1000.0))
        machine.brain = self._registry(machine, random.Random(self.rng.random()))
        machine.brain.replay(self._clock(machine), list(machine.disk), {cases.SESSION: set(machine.pages)})
        self.reached["restarted"] += 1
        machine.asked_at = float("inf")
        self._want_tick(machine)
        for other in self.machines.values():
            if other.brain is not None:
                self.at(self._delay(), ("linked", other, other.life, machine.peer))

    def _linked(self, machine: Machine, peer: PeerId) -> None:
        self._step(machine, lambda: machine.brain.relinked(self._clock(machine), peer))

    def _severed(self, machine: Machine, peer: PeerId) -> None:
        if self.machines[peer].brain is None:
            self._step(machine, lambda: machine.brain.severed_from(self._clock(machine), peer))

    # ---------------------------------------------------------------------------------------------------------- repair

    def _search(self, machine: Machine) -> None:
        """As gossip does: somebody who is there and has no seat is asked in, and answers when its disk has it."""
        if machine.brain is None:
            return
        for member, search in machine.brain.searches(self._clock(machine)):
            taken = {*(seat.peer for seat in search.seats), *search.lost, machine.peer}
            able = [one for one in self.machines.values() if one.brain is not None and one.peer not in taken]
            if not able or self.rng.random() < 0.1:
                self.at(1.0, ("found", machine, machine.life, None))
                continue
            joined = messages.Joined(cases.SESSION, machine.peer, search.role, search.since)
            chosen = self.rng.choice(able)
            self.at(self._delay(), ("join", chosen, chosen.life, machine, machine.life, member.seating.birth, joined))

    def _join(self, machine: Machine, sponsor: Machine, life: int, birth: bytes, joined: messages.Joined) -> None:
        made, refusal = machine.brain.joined(self._clock(machine), contract.read(birth), birth, joined)
        self._carry(machine, made)
        self._want_tick(machine)
        seat = None if refusal else Seat(machine.peer, joined.role, ())
        answer = Post(cases.SESSION, ("found", sponsor, life, seat))
        self._carry(machine, [answer])

    def _found(self, machine: Machine, seat: Seat | None) -> None:
        now = self._clock(machine)
        if seat is None:
            machine.brain.not_found(now, cases.SESSION, "no spare node")
            self._want_tick(machine)
        else:
            self._step(machine, lambda: machine.brain.found(now, cases.SESSION, seat))

    # --------------------------------------------------------------------------------------------------------- effects

    def _carry(self, machine: Machine, effects: list[Effect]) -> None:
        """As the driver does: what follows a Persist of the session waits for the disk."""
        for effect in effects:
            ordered = getattr(effect, "session", None) is not None
            if ordered and (machine.waiting or isinstance(effect, Persist)):
                if not machine.waiting:
                    self.at(self.rng.choice((0.001, 0.01, 0.2)), ("synced", machine, machine.life))
                machine.waiting.append(effect)
            else:
                self._do(machine, effect)

    def _synced(self, machine: Machine) -> None:
        waiting = machine.waiting
        while waiting and isinstance(waiting[0], Persist):
            machine.disk.append(waiting.popleft().record)
        while waiting and not isinstance(waiting[0], Persist):
            self._do(machine, waiting.popleft())
        if waiting:
            self.at(self.rng.choice((0.001, 0.01, 0.2)), ("synced", machine, machine.life))

    def _do(self, machine: Machine, effect: Effect) -> None:
        match effect:
            case Send(to, _, message):
                self.post(machine.peer, to, message)
            case Post(_, ("found", *_) as event):
                self.at(self._delay(), event)
            case Post(_, event):
                self.at(0.0, ("hand", machine, machine.life, event))
            case Encode(session, request, text):
                self.at(0.01, ("hand", machine, machine.life, Encoded(session, request, drawing.encoded(text))))
            case Step():
                self._engine(machine, effect)
            case Restore(session, load, addresses):
                known = [address for address in addresses if address in machine.pages]
                kept = self._pages[known[self.rng.randrange(len(known))]] if known else []
                machine.context = list(kept)
                self.at(0.02, ("hand", machine, machine.life, Restored(session, load, len(kept))))
            case Ship(session, epoch, index, address, parent, to):
                self._pages[address] = machine.context[: (index + 1) * cases.PAGE]
                page = PageStored(machine.peer, session, epoch, index, address, parent)
                if self.rng.random() >= self.loss and self.machines[to].brain is not None:
                    self.at(self._delay(), ("page", self.machines[to], self.machines[to].life, page))
            case Unload() | Forget():
                machine.context = []
            case Note(what, _, detail):
                self.reached[what] += 1
                if what == "detected":
                    self.reached[f"detected: {detail}"] += 1
                if what == "elected" and not detail.endswith("adopted=0"):
                    self.reached["adopted"] += 1

    def _page(self, machine: Machine, page: PageStored) -> None:
        try:
            machine.brain.admits(page.peer, page.session, page.page_index, page.epoch)
        except errors.PeerError:
            return
        machine.pages.add(page.address)
        self._hand(machine, page)

    def _engine(self, machine: Machine, step: Step) -> None:
        work = step.work
        assert work.position <= len(machine.context), "the engine was thought to hold more than it does"
        machine.context[work.position :] = work.feed
        token = drawing.draw(machine.context) if work.sampling is not None else None
        piece = chr(97 + token % 26) if token is not None else ""
        done = Stepped(step.session, step.load, len(machine.context), token, piece)
        self.at(self.rng.choice((0.002, 0.02)), ("hand", machine, machine.life, done))

    # --------------------------------------------------------------------------------------------------------- network

    def _delay(self) -> float:
        return self.rng.expovariate(1.0 / self.delay_s) if self.now < CALM_S else 0.01

    def post(self, sender: PeerId, to: PeerId, message: object) -> None:
        for _ in range(self.rng.choice((1, 1, 1, 2)) if self.now < CALM_S else 1):
            if self.now < CALM_S and self.rng.random() < self.loss:
                self.reached["lost"] += 1
            elif to in self.machines:
                self.at(self._delay(), ("to", to, sender, message))
            else:
                self.at(self._delay(), ("to client", sender, message))

    def _fault(self) -> None:
        if self.now > CALM_S:
            return
        machine = self.rng.choice(list(self.machines.values()))
        running = sum(one.brain is not None for one in self.machines.values())
        what = self.rng.random()
        if machine.brain is not None and what < 0.5 and (running > self.count // 2 + 1 or self.rng.random() < 0.2):
            self._crash(machine)
        elif machine.brain is not None and what < 0.7:
            # A minute before the first word is longer than a session lives that nobody acknowledged.
            machine.offset_s += self.rng.choice((0.5, 3.0, 60.0) if self.reached["first token"] else (0.5, 3.0))
            self._tick(machine, machine.asked_at)
        self.at(self.rng.expovariate(1.0), "fault")

    def _move(self) -> None:
        """Ask whoever owns the session to move it to anybody, dead or alive, and at any time."""
        if self.now > CALM_S:
            return
        self.at(self.rng.expovariate(2.0), "move")
        for machine in self.machines.values():
            if machine.brain is not None and machine.brain.members:
                machine.brain.moves.able = frozenset(self.machines)
                order = moves.Migrate(cases.SESSION, self.rng.choice(list(self.machines)))
                self._step(machine, functools.partial(machine.brain.ordered, self._clock(machine), order))

    def _crash(self, machine: Machine) -> None:
        self.reached["crashed"] += 1
        kept = self.rng.randrange(len(machine.waiting) + 1)
        while machine.waiting and kept and isinstance(machine.waiting[0], Persist):  # written, and nobody told
            machine.disk.append(machine.waiting.popleft().record)
            kept -= 1
        machine.waiting.clear()
        machine.brain, machine.context = None, []
        if self.wipes_left and self.reached["first token"] and self.rng.random() < 0.3:
            self.wipes_left -= 1
            self.reached["wiped"] += 1
            machine.disk.clear()
            machine.pages.clear()
        self.at(self.rng.uniform(0.0, 4.0 if self.rng.random() < 0.7 else 12.0), ("start", machine))
        for other in self.machines.values():
            if other.brain is not None and self.rng.random() < 0.5:
                self.at(self._delay(), ("severed", other, other.life, machine.peer))
