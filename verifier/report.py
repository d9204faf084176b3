"""The verdict for readers: `report.json`, a terminal table, and (from `page`) an HTML page.

Form only: nothing is judged here. Text from a host is untrusted: it is shown with its control
characters made visible, and never read as console markup.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verifier import folder, wording
from verifier.errors import ConfigError
from verifier.page import render_page
from verifier.records import Decision, Finding, Report, Status

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

__all__ = [
    "SCHEMA_VERSION",
    "STYLES", "plain", "render_page", "render_terminal", "report_from_json",
    "report_to_json",
]  # fmt: skip

SCHEMA_VERSION: Final = 1

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
#: The style of each decision, beside its word.
STYLES: Final[dict[Decision | Status, str]] = {
    "consistent": "bold green",
    "inconsistent": "bold red",
    "inconclusive": "bold yellow",
    "detected": "red",
    "excluded": "green",
    "undecided": "yellow",
    "not run": "dim",
}


def report_to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; `report_from_json` gives it back.

    Lone surrogates become U+FFFD, so that the file is valid UTF-8 whatever a host sent.
    """
    found: dict[str, Any] = plain(report)
    return found


def plain(value: object) -> Any:
    """A record as JSON values; lone surrogates become U+FFFD."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def report_from_json(value: Mapping[str, Any]) -> Report:
    """The report that `report.json` holds, every key and type checked.

    Raises ConfigError that names the key for another schema version, and for keys that are
    unknown, missing or of another type.
    """
    version = value.get("schema_version", SCHEMA_VERSION)
    if type(version) is int and version != SCHEMA_VERSION:
        raise ConfigError(
            f"{folder.REPORT}: schema_version: this version reads {SCHEMA_VERSION}, got {version}; "
            "run `verifier decide` on the run folder again"
        )
    from pydantic import ValidationError

    try:
        (report,) = _schema().validate_json(json.dumps([value]))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)[0]
        raise ConfigError(f"{folder.REPORT}: {_complaint(wrong)}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{folder.REPORT}: holds what JSON cannot ({error})") from error
    return report


@cache
def _schema() -> TypeAdapter[list[Report]]:
    from pydantic import ConfigDict, TypeAdapter

    # the list is there because a bare dataclass takes no config from outside
    rules = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return TypeAdapter(list[Report], config=rules)


def _complaint(wrong: ErrorDetails) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in wrong["loc"][1:])
    key = wording.visible("".join(steps)).removeprefix(".") or "the whole file"
    match wrong["type"]:
        case "missing":
            return f"{key}: missing; every key is needed"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{key}: unknown key; remove it, or read the file with the version that wrote it"
        case _:
            got = wording.visible(repr(wrong["input"]))[:80]
            return f"{key}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}, got {got}"


def render_terminal(report: Report, *, console: Console) -> None:
    """Print the report as a compact table that fits 80 columns."""
    verdict = Text(report.decision.upper(), style=STYLES[report.decision])
    verdict.append(f"  {wording.HEADLINES[report.decision]}", style="default not bold")
    console.print(verdict)
    console.print(_line(report.summary), end="\n\n")
    if wording.departures(report):
        console.print(_departure_table(report))
        console.print()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    for name, text in _facts(report):
        facts.add_row(name, _line(text))
    console.print(facts)


def _departure_table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=False)
    table.add_column("Departure", overflow="fold")
    table.add_column("About", overflow="fold", min_width=9)
    table.add_column("Result", no_wrap=True)
    table.add_column("log e", justify="right", no_wrap=True)
    table.add_column("Tokens needed", justify="right", no_wrap=True)
    for finding in wording.departures(report):
        table.add_row(
            _line(finding.name) if finding.decision != "not run" else _unrun(finding),
            _line(wording.describe_kind(finding)),
            Text(finding.decision, style=STYLES[finding.decision]),
            wording.describe_evidence(finding),
            wording.describe_need(finding),
        )
    return table


def _facts(report: Report) -> list[tuple[str, str]]:
    """What the terminal says below the table: label and one line each."""
    scale = report.noise_scale
    return [
        ("Departures", wording.count_statuses(report)),
        *(("Best name", wording.describe_cause(cause)) for cause in wording.causes(report)),
        *wording.list_belongings(report),
        ("Noise scale", wording.describe_scale(scale)),
        *([] if scale.estimate is None else [("Equivalent", scale.equivalent)]),
        ("Honest", f"serving reaches a noise scale of {wording.describe_number(scale.honest)}"),
        *wording.list_spending(report.usage),
        *wording.list_control(report),
        ("Policy", f"{report.policy}, alpha {report.alpha:g}, beta {report.beta:g}"),
        *(("Note", note) for note in report.notes),
    ]


def _line(text: str) -> Text:
    """Untrusted text on one line, never read as console markup."""
    return Text(wording.one_line(text))


def _unrun(finding: Finding) -> Text:
    """The name of a check that did not run, with the reason below it."""
    return Text.assemble(_line(finding.name), "\n", _line(finding.detail), style="dim")
