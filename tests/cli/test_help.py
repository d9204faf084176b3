"""The help of every command: whole at any width, statuses in each, one word for one thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from command_line import _plain_surroundings, call

from verifier.cli import commands

__all__ = ["_plain_surroundings"]  # fixture


def tree(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in (getattr(command, "commands", None) or {}).items():
        yield from tree(inner, (*words, name))


TREE = dict(tree(typer.main.get_command(commands.app)))
OPTIONS = [
    (" ".join(words), parameter) for words, command in TREE.items() for parameter in command.params
]


def squeezed(text: str) -> str:
    """A text without white space: however it is broken into lines, it is the same."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("words", TREE, ids=lambda words: " ".join(words) or "-")
def test_a_help_is_whole_at_any_width(words: tuple[str, ...], columns: int) -> None:
    """It fits, but for examples, which are there to be copied; and nothing of it is cut."""
    out, command = call(*words, "--help", COLUMNS=str(columns)).out, TREE[words]
    examples = re.search(r"^  Examples?:\n(?:    .*\n)+", out, re.MULTILINE)
    told = out.replace(examples.group(), "") if examples else out

    assert max(map(len, told.splitlines())) <= min(columns, 80)
    for text in (command.help, *(getattr(p, "help", None) for p in command.params)):
        assert squeezed((text or "").replace("\b", "")) in squeezed(out)
    for name, inner in (getattr(command, "commands", None) or {}).items():
        assert squeezed(name + inner.help.split("\n\n")[0]) in squeezed(out)


@pytest.mark.parametrize("words", TREE, ids=lambda words: " ".join(words) or "-")
def test_a_help_says_the_exit_statuses_once(words: tuple[str, ...]) -> None:
    """Those of a verdict where the command gives one."""
    said = " ".join(call(*words, "--help").out.split())
    verdicts = words in [(), ("audit",), ("decide",), ("report",), ("summary",)]

    assert said.count("Exit status:") == 1
    assert ("inconclusive" in said.partition("Exit status:")[2][:120]) == verdicts
    for known in ("2 usage", "4 a defect", "130 interrupted", "141 nobody read on"):
        assert known in said


@pytest.mark.parametrize("words", TREE, ids=lambda words: " ".join(words) or "-")
def test_a_help_shows_no_types_of_the_program(words: tuple[str, ...]) -> None:
    """Every value has a name that means something."""
    assert not re.search(r"<[a-z| \[\]\d]+>", call(*words, "--help").out)


def _is_one_file(words: Any, parameter: Any) -> bool:
    """Whether it says where a pack goes, which is one file."""
    return "pack" in words and parameter.name == "out"


def test_one_word_stands_for_one_thing() -> None:
    """A card is CARD, a folder FOLDER, a number N, and a run file RUNFILE, in every command."""
    named = {(p.name, p.metavar) for words, p in OPTIONS if not _is_one_file(words, p)}
    words = {word for _, metavar in named for word in (metavar or "").split("|")}

    assert {metavar for name, metavar in named if name in ("card", "reference")} == {"CARD"}
    assert {metavar for name, metavar in named if name in ("out", "run", "folder", "after")} == {
        "FOLDER"
    }
    assert {m for name, m in named if name in ("seed", "port", "size", "probes", "max_batch")} == {
        "N"
    }
    assert {m for name, m in named if name == "run_file"} == {"RUNFILE"}
    assert not words & {"DIR", "DIRECTORY", "PATH", "RUN", "INT", "INTEGER", "TEXT"}


def test_one_option_means_one_thing_in_commands_that_share_it() -> None:
    """By the first of its names: the same word for its value."""
    metavars: dict[str, set[str | None]] = {}
    for words, parameter in OPTIONS:
        if parameter.param_type_name == "option" and not _is_one_file(words, parameter):
            first = (parameter.opts or parameter.secondary_opts)[0]
            metavars.setdefault(first, set()).add(parameter.metavar)

    assert {name: some for name, some in metavars.items() if len(some) > 1} == {}
