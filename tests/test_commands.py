"""How a command ends: one sentence for a fault that is not ours, nothing for who presses Ctrl-C."""

from __future__ import annotations

import pytest
import typer

from meshnode import commands, errors

FAULT = errors.ConfigError("no node is running here")
BESIDE = BaseExceptionGroup("", [KeyboardInterrupt(), ExceptionGroup("", [FAULT])])


def ended(raised: BaseException) -> int:
    @commands.said
    def command() -> None:
        raise raised

    with pytest.raises(typer.Exit) as caught:
        command()
    return caught.value.exit_code


@pytest.mark.parametrize(
    "raised",
    [
        FAULT,
        BaseExceptionGroup("", [FAULT]),
        BaseExceptionGroup("", [KeyboardInterrupt(), ExceptionGroup("", [FAULT])]),
    ],
    ids=["alone", "in a group", "beside a Ctrl-C"],
)
def test_a_fault_is_one_sentence(raised: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raised) == 1
    assert capsys.readouterr().err == "meshnode: no node is running here\n"


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])])
def test_a_ctrl_c_is_no_fault(raised: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raised) == 130
    assert capsys.readouterr().err == ""


def test_our_own_fault_is_shown_as_it_is() -> None:
    @commands.said
    def command() -> None:
        raise BaseExceptionGroup("", [FAULT, AssertionError("ours")])

    with pytest.raises(BaseExceptionGroup):
        command()
