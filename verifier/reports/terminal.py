"""The verdict as a table on the terminal.

Form only: nothing is judged here. Text from a host is untrusted: it is shown with its control
characters made visible, and never read as console markup.
"""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verifier import wording
from verifier.records import Decision, Evidence, Finding, Report, Status
from verifier.reports import findings, telling
from verifier.reports.next_steps import next_steps

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


#: Columns from which on departures are a table.
_WIDE: Final = 60


def render_terminal(report: Report, *, console: Console) -> None:
    """Print the report as a compact table that fits 80 columns."""
    console.print(Text.assemble(
        (wording.one_line(telling.name_host(report)), "bold"), "\n",
        (wording.one_line(telling.name_model(report)), "dim"), "\n",
    ))  # fmt: skip
    verdict = Text(report.decision.upper(), style=STYLES[report.decision])
    verdict.append(f"  {wording.HEADLINES[report.decision]}", style="default not bold")
    console.print(verdict)
    console.print(_line(report.summary))
    console.print(_line(telling.describe_sureness(report)), end="\n\n")
    if report.evidence is not None:
        for line in _evidence_lines(report, report.evidence):
            console.print(_line(line))
        console.print()
    if findings.departures(report):
        table = _departure_table(report) if console.width >= _WIDE else _departure_lines(report)
        console.print(table)
        console.print()
    console.print(_grid(_facts(report)), end="\n\n")
    steps = next_steps(report)
    console.print(_grid([("Buyer's next", steps.buyer), ("Host's next", steps.host)]))


def _evidence_lines(report: Report, evidence: Evidence) -> list[str]:
    """How many tokens differ, and the places that tell."""
    places = [f"- {telling.describe_place(place)}" for place in evidence.worst]
    heading = [f"{telling.PLACES[report.decision]}:"] if places else []
    return [telling.describe_differing(evidence), *heading, *places]


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(name, _line(text))
    return grid


def _departure_table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=False)
    table.add_column("Departure", overflow="fold")
    table.add_column("About", overflow="fold", min_width=9)
    table.add_column("Result", no_wrap=True)
    table.add_column("log e", justify="right", no_wrap=True)
    table.add_column("Tokens needed", justify="right", no_wrap=True)
    for finding in findings.departures(report):
        table.add_row(
            _line(finding.name) if finding.decision != "not run" else _unrun(finding),
            _line(findings.describe_kind(finding)),
            Text(finding.decision, style=STYLES[finding.decision]),
            wording.describe_evidence(finding),
            wording.describe_need(finding),
        )
    return table


def _departure_lines(report: Report) -> Text:
    """The same on a narrow terminal: each departure with what was found of it below."""
    lines = []
    for finding in findings.departures(report):
        name = _line(finding.name) if finding.decision != "not run" else _unrun(finding)
        found = Text(f"  {finding.decision}", style=STYLES[finding.decision])
        need = "" if finding.tokens_needed is None else f", {wording.describe_need(finding)} tokens"
        lines += [name, found.append(f", log e {wording.describe_evidence(finding)}{need}")]
    return Text("\n").join(lines)


def _facts(report: Report) -> list[tuple[str, str]]:
    """What the terminal says below the table: label and one line each."""
    scale = report.noise_scale
    return [
        ("Departures", findings.count_statuses(report)),
        *(("Best name", wording.describe_cause(cause)) for cause in findings.causes(report)),
        *wording.list_belongings(report),
        ("Noise scale", wording.describe_scale(scale)),
        *([] if scale.estimate is None else [("Equivalent", scale.equivalent)]),
        ("Honest", f"serving reaches a noise scale of {wording.describe_number(scale.honest)}"),
        ("Asked", wording.describe_asked(report.asked)),
        *wording.list_spending(report.usage),
        *wording.list_control(report),
        ("Policy", f"{report.policy}, alpha {report.alpha:g}, beta {report.beta:g}"),
        *(("Beside", told) for told in findings.list_beside(report)),
        *(("Note", note) for note in report.notes),
    ]


def _line(text: str) -> Text:
    """Untrusted text on one line, never read as console markup."""
    return Text(wording.one_line(text))


def _unrun(finding: Finding) -> Text:
    """The name of a check that did not run, with the reason below it."""
    return Text.assemble(_line(finding.name), "\n", _line(finding.detail), style="dim")
