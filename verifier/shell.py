"""What commands share: their arguments, what they read of the environment, how they show things.

Exit status: 0 consistent (or done), 1 inconsistent, 2 usage or configuration error, 3
inconclusive; `cli` has the rest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from verifier import sieve
from verifier.errors import ConfigError

if TYPE_CHECKING:
    from verifier.pace import Show
    from verifier.records import Decision, Report, Summary

EXIT: Final[dict[Decision, int]] = {"consistent": 0, "inconsistent": 1, "inconclusive": 3}
USAGE: Final = 2

Dtype = Literal["float32", "bfloat16", "float16"]
EngineName = Literal["auto", "vllm", "transformers", "remote"]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print report.json instead of tables.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="The run folder is yours: do what its run file says.")
]
Junit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML there.")
]
Markdown = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Also append a summary in Markdown there."),
]
CardName = Annotated[str, typer.Argument(metavar="CARD", help="A card's name or YAML file.")]


def help_when_bare(context: typer.Context) -> None:
    """A command is missing: that is no status for a script to read as a verdict."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(USAGE)


# -- the environment ---------------------------------------------------------------------------


def read_key(name: str, *, where: str) -> str:
    """The key that a variable holds. What looks like a key, given by mistake, is not shown."""
    key = os.environ.get(name)
    if not key:
        shown = name if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) else "that it names"
        raise ConfigError(f"{where}: the variable {shown} is not set; export the key in it")
    sieve.know(key)
    return key


def cache_directory() -> Path:
    """Where fetched weights are kept."""
    if os.environ.get("VERIFIER_CACHE"):
        return Path(os.environ["VERIFIER_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "verifier"


# -- showing -----------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print one line on stdout, without the API keys that this process knows."""
    typer.echo(sieve.strike(line))


@contextmanager
def showing() -> Iterator[Show]:
    """Progress on stderr: a bar on a terminal, and one line per step."""
    from verifier.pace import Show

    console = Terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task("starting", total=None)

        def step(name: str, done: int, of: int) -> None:
            progress.update(bar, description=sieve.strike(name), completed=done, total=of)

        def tell(line: str) -> None:
            line = sieve.strike(line)
            progress.update(bar, description=line, completed=0, total=None)
            console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

        yield Show(tell=tell, step=step)


def show_report(found: Report, run: Path | None, *, as_json: bool) -> None:
    from verifier.report import render_terminal, report_to_json

    found = sieve.strike_all(found)
    if as_json:
        text = json.dumps(report_to_json(found), indent=2, ensure_ascii=False)
        typer.echo(f"{text}\n".encode(), nl=False)  # UTF-8 whatever the terminal: as in the file
        return
    console = Terminal()
    render_terminal(found, console=console)
    if run is not None:
        console.print(
            sieve.strike(f"\nrun folder: {run}"), markup=False, highlight=False, soft_wrap=True
        )


def show_summary(found: Summary, folder: Path, *, as_json: bool) -> None:
    from verifier.report import plain
    from verifier.sheets import print_summary

    found = sieve.strike_all(found)
    if as_json:
        text = json.dumps(plain(found), indent=2, ensure_ascii=False)
        typer.echo(f"{text}\n".encode(), nl=False)  # as in the file
        return
    console = Terminal()
    print_summary(found, console)
    console.print(
        sieve.strike(f"\nrun folders: {folder}"), markup=False, highlight=False, soft_wrap=True
    )


class Terminal(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Rich would end with status 1, which is a verdict."""
        raise BrokenPipeError
