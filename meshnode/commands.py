"""What all commands have in common: how a fault is said, and the options that most of them take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer

from meshnode import errors, shown

Data = Annotated[str, typer.Option("--data", help="Data folder; the default is your user's.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


def said(command: Callable[..., Any]) -> Callable[..., Any]:
    """One sentence and exit code 1 for everything that is not our own fault."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except errors.MeshError as error:
            shown.err.print(f"[red]meshnode:[/red] {_escaped(str(error))}")
            raise typer.Exit(1) from None
        except BaseExceptionGroup as group:
            if group.split((errors.MeshError, KeyboardInterrupt))[1] is not None:
                raise
            found = _mesh_error(group)
            if found is None:
                raise typer.Exit(130) from None
            shown.err.print(f"[red]meshnode:[/red] {_escaped(str(found))}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return wrapped


def _mesh_error(group: BaseExceptionGroup[Any]) -> errors.MeshError | None:
    """The first fault in a group; somebody's Ctrl-C is none."""
    leaf: BaseException | None = group.subgroup(errors.MeshError)
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert leaf is None or isinstance(leaf, errors.MeshError)
    return leaf


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
