"""Words that a shell completes, and that nothing of it is taken for a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import shellingham
from audits import NOWHERE
from command_line import call

ASKED = "_VERIFIER_COMPLETE"


def unknown_shell() -> NoReturn:
    raise shellingham.ShellDetectionFailure


def test_a_shell_is_told_what_may_follow() -> None:
    """Commands, those of a group, and options."""
    for words, expected in (
        ("verifier re", ["report", "reference"]),
        ("verifier testbed l", ["list"]),
        ("verifier bench --fa", ["--fault", "--family"]),
    ):
        number = str(len(words.split()) - 1)
        told = call(**{ASKED: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number})
        assert (told.status, told.out.split(), told.err) == (0, expected, "")


def test_a_variable_that_was_left_set_makes_no_verdict(tmp_path: Path) -> None:
    """A shell gives no arguments; whoever gives some wants the command."""
    ended = call("report", tmp_path / "none", **{ASKED: "complete_bash"})

    assert ended.status == 2
    assert "none" in ended.err


def test_a_question_that_cannot_be_read_is_a_usage_error() -> None:
    """typer's own status would say that an endpoint is inconsistent."""
    assert call(**{ASKED: "nonsense"}).status == 2
    assert call(**{ASKED: "complete_of-no-shell"}).status == 2


def test_completion_is_shown_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the shell that runs the command, in the home of whoever does."""
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("bash", "/bin/bash"))
    shown = call("--show-completion")
    installed = call("--install-completion", HOME=str(tmp_path))

    assert (shown.status, installed.status) == (0, 0)
    assert ASKED in shown.out
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {".bashrc", "verifier.sh"}


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_a_shell_that_is_not_known_is_a_usage_error(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And changes nothing."""
    monkeypatch.setattr(shellingham, "detect_shell", unknown_shell)

    assert call(option, HOME=str(tmp_path)).status == 2
    assert list(tmp_path.rglob("*")) == []


def test_no_command_ends_as_its_options_of_completion_would() -> None:
    """They are read at the front alone."""
    assert call("report", "--show-completion", NOWHERE).status == 2


def test_the_help_of_bench_groups_options_by_part() -> None:
    """Those of every part come first."""
    text = call("bench", "--help").out
    sections = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]

    assert sections == [
        "Arguments:", "Options:", "Options of left-out and templates:", "Options of identity:",
        "Options of certificate:", "Options of made:",
    ]  # fmt: skip
    assert text.rindex("--seed") < text.rindex("--audits") < text.rindex("--fault")
