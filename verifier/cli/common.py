"""What commands share: their arguments, what they read of the environment, how they show things.

Exit status: 0 consistent (or done), 1 inconsistent, 2 usage or configuration error, 3
inconclusive; `cli` has the rest.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperCommand, TyperGroup

from verifier.errors import ConfigError
from verifier.safety import sieve
from verifier.wording import inert_json, one_line, spelled_out, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

    from verifier.config import RunFile
    from verifier.progress import Show
    from verifier.records import Decision, Report, Summary

EXIT: Final[dict[Decision, int]] = {"consistent": 0, "inconsistent": 1, "inconclusive": 3}
USAGE: Final = 2

_LONGEST_KEY: Final = 16_384  # bytes

Dtype = Literal["float32", "bfloat16", "float16"]
EngineName = Literal["auto", "vllm", "transformers", "remote", "echo"]
RunFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print report.json instead of tables.")]
ListJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table or lines.")]
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
CardName = Annotated[
    str, typer.Argument(metavar="CARD", help="A card's name, its YAML file, or a model of the hub.")
]


def need_folder(run: Path) -> None:
    """Refuse what is no folder at once: what reads run folders loads slowly."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")


def help_when_bare(context: typer.Context) -> None:
    """A command is missing: that is no status for a script to read as a verdict."""
    if context.invoked_subcommand is None:
        for line in context.get_help().splitlines():
            say(line, err=True)
        raise typer.Exit(USAGE)


#: How a help begins to speak of exit statuses, and those of a command that gives no verdict.
_STATUSES: Final = "Exit status:"
_NO_VERDICT: Final = (
    "0 done, 2 usage or configuration error, 4 a defect of this program or of what is installed, "
    "130 interrupted, 141 nobody read on."
)

#: The type of an argument, as typer writes it behind the name.
_TYPE: Final = re.compile(r" <[^>]*>$")


class InSections(TyperCommand):
    """A command whose help shows options in sections, by their panels; those of none come first.

    typer has panels for rich alone, which would read markup in what is shown.
    """

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the command says of itself, its exit statuses at least."""
        super().format_help_text(ctx, formatter)
        _say_statuses(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options of no panel, and each panel's, in the order of the command."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or kind
            if record is not None:
                name, said = record
                sections.setdefault(panel, []).append((_TYPE.sub("", name), said))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=_first_column(formatter))


class WithWholeLines(TyperGroup):
    """A group whose help says of each command a whole sentence, however narrow the terminal is."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the group says of itself, and the exit statuses of its commands."""
        super().format_help_text(ctx, formatter)
        _say_statuses(self, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command with the first sentence of its own help."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [
            (name, " ".join((command.help or "").split("\n\n")[0].split()))
            for name, command in commands.items()
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows, col_max=_first_column(formatter))


def _say_statuses(command: Any, formatter: Any) -> None:
    """The exit statuses of what gives no verdict; what gives one says them itself."""
    if _STATUSES not in (command.help or ""):
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"{_STATUSES} {_NO_VERDICT}")


def help_width() -> int:
    """Columns of help: as many as the terminal has, up to 80."""
    return max(min(shutil.get_terminal_size().columns, 80) - 2, 30)


def _first_column(formatter: Any) -> int:
    """Columns for names: on a narrow terminal what is said of them stands below."""
    return max(8, 3 * int(formatter.width) // 8)


# -- completion --------------------------------------------------------------------------------

#: What a shell sets to have a word completed, as typer names it.
_COMPLETED: Final = "_VERIFIER_COMPLETE"


def is_asked_by_a_shell() -> bool:
    """Whether a shell wants words to complete another; it then gives no arguments.

    With some, a variable that was left set would end a command as if its verdict were consistent.
    """
    return bool(os.environ.get(_COMPLETED))


def complete(command: Any) -> int:
    """Print what may stand where the shell asks; the exit status."""
    from typer.completion import shell_complete

    asked = os.environ[_COMPLETED]
    return USAGE if shell_complete(command, {}, "verifier", _COMPLETED, asked) else 0


def sets_up_completion(arguments: Sequence[str]) -> bool:
    """Whether typer's own options are used, which end with statuses that are no verdict."""
    return list(arguments[:1]) in (["--install-completion"], ["--show-completion"])


# -- the environment ---------------------------------------------------------------------------


def read_key(name: str, *, where: str) -> str:
    """The key that a variable holds. What looks like a key, given by mistake, is not shown."""
    key = os.environ.get(name)
    if not key:
        shown = name if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) else "that it names"
        raise ConfigError(f"{where}: the variable {shown} is not set; export the key in it")
    sieve.know(key)
    return key


def endpoint_key(config: RunFile, *, out: Path) -> str | None:
    """The key of an endpoint. `out` is what is passed on, with all that lies in it."""
    name, path = config.endpoint.api_key_env, config.endpoint.api_key_file
    if path is not None:
        return _read_key_file(path, run=out)
    if name is None:
        return None
    return read_key(name, where="endpoint.api_key_env")


def _read_key_file(path: Path, *, run: Path) -> str:
    """The key that a file holds alone. It may not lie in the run folder, which is passed on."""
    where = "endpoint.api_key_file"
    if path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{where}: {path} lies in the run folder; keep the key outside of it")
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST_KEY + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {path} cannot be read ({error.strerror})") from error
    key = raw.decode("utf-8", "replace").strip()
    if not key or len(raw) > _LONGEST_KEY:
        raise ConfigError(f"{where}: {path} must hold the key and nothing else")
    sieve.know(key)
    return key


def warn_of_keys_in_clear(configs: Iterable[RunFile]) -> None:
    """Before anything is sent."""
    from verifier.cli.trust import sent_in_clear

    for line in dict.fromkeys(line for config in configs for line in sent_in_clear(config)):
        say(f"warning: {line}", err=True)


def cache_directory() -> Path:
    """Where fetched weights are kept."""
    if os.environ.get("VERIFIER_CACHE"):
        return Path(os.environ["VERIFIER_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "verifier"


def state_directory() -> Path:
    """Where it is noted which run files were written here."""
    return _of_the_user("XDG_STATE_HOME", "state")


def cards_directory() -> Path:
    """Where cards lie that were pinned or calibrated here, but for those of a checkout."""
    return _of_the_user("XDG_DATA_HOME", "share") / "cards"


def _of_the_user(variable: str, below_local: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - never raises
    return (base if base.is_absolute() else home / ".local" / below_local) / "verifier"


def say_own(card: str) -> None:
    """Say which of a user's own files stand for a card that ships; a card that is not there, who
    reads it says."""
    from verifier.reference.cards import shadowing

    with suppress(ConfigError):
        for path in shadowing(card):
            say(f"{path}: stands for the one that ships; remove it to go back to that", err=True)


def now() -> datetime:
    """The moment, in UTC."""
    return datetime.now(UTC)


# -- threads -----------------------------------------------------------------------------------

#: What torch reads; a value that is set already comes first.
THREADS: Final = "OMP_NUM_THREADS"

#: What this process has set it to: a command may share more than was known when it began.
_OURS: Final[set[str]] = set()

#: Where Linux says how much of the processors a container has: its second version, then its first.
_QUOTAS: Final = (
    (Path("/sys/fs/cgroup/cpu.max"), None),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def usable_cores() -> int:
    """The cores that this process may use, by its affinity and its container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    quota = _quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def share_cores(processes: int, *, threads: int | None = None) -> int:
    """Take one of so many equal shares, for this process and those that it starts; the threads.

    Two processes that each take every core, or one that takes cores which a container does not
    have, wait for each other at the end of every product.
    Nothing is changed where somebody has set THREADS, nor where the share is the whole machine.
    `threads`, where a run file names some, are taken whatever else is said.
    """
    if threads is not None:
        os.environ[THREADS] = str(threads)
        _OURS.add(str(threads))
        return threads
    said = os.environ.get(THREADS, "").partition(",")[0]
    if said.isdecimal() and said not in _OURS:
        return int(said)
    share = max(1, usable_cores() // processes)
    if share < (os.cpu_count() or 1):
        os.environ[THREADS] = str(share)
        _OURS.add(str(share))
    return share


def _quota() -> float | None:
    """Cores' worth of time that the container has; None: no limit is known."""
    for path, beside in _QUOTAS:
        try:
            said = path.read_text().split()
            of = said[1] if beside is None else beside.read_text()
            if said[0] not in ("max", "-1"):
                return float(said[0]) / float(of)
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return None


# -- showing -----------------------------------------------------------------------------------


class Terminal(Console):
    """What tables and progress are printed with: no text acts on the screen, or is markup."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As a console does; what is left of signs that act is made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_shown(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """Rich would end with status 1, which is a verdict."""
        raise BrokenPipeError


def say(line: str, *, err: bool = False) -> None:
    """Print one line: what it quotes neither acts on the screen nor begins another line, and no
    API key that this process knows stands in it."""
    typer.echo(spelled_out(_shown(line)), err=err)


def say_json(value: object) -> None:
    """Print a value as JSON, in UTF-8 whatever the terminal: to the byte as in the file.

    On a terminal, signs that act are escaped; the value is the same.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    shown = inert_json(text) if sys.stdout.isatty() else text
    typer.echo(f"{shown}\n".encode(), nl=False)


def _shown(text: str) -> str:
    """Text as it is shown: without API keys, also where making it visible puts one together."""
    return sieve.strike(visible(sieve.strike(text)))


@contextmanager
def showing() -> Iterator[Show]:
    """Progress on stderr: a bar on a terminal, and one line per step."""
    from verifier.progress import Show

    console = Terminal(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task("starting", total=None)

        def step(name: str, done: int, of: int) -> None:
            progress.update(bar, description=one_line(_shown(name)), completed=done, total=of)

        def tell(line: str) -> None:
            shown = one_line(_shown(line))
            progress.update(bar, description=shown, completed=0, total=None)
            console.print(shown, style="dim", soft_wrap=True)

        yield Show(tell=tell, step=step)


def show_report(found: Report, run: Path, *, as_json: bool) -> None:
    from verifier.files.run_folder import PAGE
    from verifier.report_file import report_to_json
    from verifier.reports.terminal import render_terminal

    found = sieve.strike_all(found)
    if as_json:
        say_json(report_to_json(found))
        return
    console = Terminal()
    render_terminal(found, console=console)
    console.print(f"\nrun folder: {spelled_out(str(run))}", soft_wrap=True)
    if (run / PAGE).is_file():
        console.print(f"page: {spelled_out(str(run / PAGE))}", soft_wrap=True)


def show_summary(found: Summary, folder: Path, *, as_json: bool) -> None:
    from verifier.files.run_folder import PAGE
    from verifier.report_file import plain
    from verifier.reports.tables import print_summary

    found = sieve.strike_all(found)
    if as_json:
        say_json(plain(found))
        return
    console = Terminal()
    print_summary(found, console)
    console.print(f"\nrun folders: {spelled_out(str(folder))}", soft_wrap=True)
    for target in found.targets:
        page = folder / target.name / PAGE
        if target.decision is not None and page.is_file():
            shown = f"page of {spelled_out(target.name)}: {spelled_out(str(page))}"
            console.print(shown, soft_wrap=True)
