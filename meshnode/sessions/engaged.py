"""What becomes of the engine's answers: an owner's go to its serving, the others are to a guess or for a move."""

from __future__ import annotations

from meshnode.machine import Effect, Faulted, Note, Restored, Stepped
from meshnode.sessions.member import Member


def worked(now: float, member: Member, event: Restored | Stepped | Faulted) -> list[Effect]:
    """The engine did something for this session, or would not. Nobody hears of a load that is over."""
    hosting, serving = member.hosting, member.serving
    if hosting is None or event.load != hosting.load:
        return []
    match event:
        case Restored(_, _, tokens):
            note = Note("restored", member.session, f"pages={tokens // hosting.card.page_tokens}")
            if serving is not None:
                return [note, *serving.on_restored(now, event), *member.handover.go_on(now)]
            hosting.restored(tokens)
            return [note, *member.handover.follow()]
        case Stepped():
            if serving is None:
                hosting.busy = False
                return member.handover.follow()
            return serving.on_stepped(now, event) + member.handover.go_on(now)
        case Faulted(_, _, reason):
            if serving is None:
                return member.handover.on_faulted(reason)
            return serving.on_faulted(now, event) + member.handover.go_on(now)
