"""The verdict as a summary in Markdown, as GitHub shows it below a job.

Form only: nothing is judged here. Words of a host are untrusted: they can start no markup and move
no cursor.
"""

from __future__ import annotations

import re
from typing import Final

from verifier import wording
from verifier.records import Finding, Report, Summary
from verifier.reports import findings, telling
from verifier.reports.next_steps import next_steps

#: Signs that Markdown, GitHub's additions to it, or HTML may act on, and what begins a list or a
#: line at the start of a text.
_ACTIVE: Final = re.compile(
    r"[^\w\s.,;:%()'-]|_|(?<!\s)[:.](?=\w)|\A-|"
    + "|".join(rf"(?<=\A[0-9]{{{digits}}})[.)]" for digits in range(1, 10))
)


def render_markdown(report: Report) -> str:
    """A summary as GitHub shows it below a job: verdict, departures, noise scale, spending."""
    sign = wording.SIGNS[report.decision]
    lines = [
        f"## {_inert(telling.name_host(report))}",
        "",
        _inert(telling.name_model(report)),
        "",
        f"**{sign} {report.decision.upper()}**: {wording.HEADLINES[report.decision]}",
        "",
        _inert(report.summary),
        "",
        _inert(telling.describe_sureness(report)),
        "",
        *_evidence(report),
        "| departure | about | result | log e |",
        "|---|---|---|---|",
    ]
    lines += [_row(finding) for finding in findings.departures(report)]
    facts = [
        *(("Best name", wording.describe_cause(cause)) for cause in findings.causes(report)),
        *wording.list_belongings(report),
        ("Noise scale", wording.describe_scale(report.noise_scale)),
        ("Asked", wording.describe_asked(report.asked)),
        *wording.list_spending(report.usage),
        *wording.list_control(report),
        ("Policy", f"{report.policy}, alpha {report.alpha:g}, beta {report.beta:g}"),
        *(("Beside", told) for told in findings.list_beside(report)),
        *(("Note", note) for note in report.notes),
    ]
    steps = next_steps(report)
    facts += [("A buyer's next step", steps.buyer), ("The host's next step", steps.host)]
    lines += ["", *(_fact(name, text) for name, text in facts), ""]
    return "\n".join(lines)


def _evidence(report: Report) -> list[str]:
    """How many tokens differ, and the places that tell; nothing where no evidence is on record."""
    found = report.evidence
    if found is None:
        return []
    lines = [_inert(telling.describe_differing(found)), ""]
    if found.worst:
        lines += [f"{telling.PLACES[report.decision]}:", ""]
        lines += [*(f"- {_inert(telling.describe_place(one))}" for one in found.worst), ""]
    return lines


def render_summary(summary: Summary) -> str:
    """Where several targets stand, as GitHub shows it below a job."""
    lines = [
        f"## {_inert(summary.summary)}",
        "",
        f"| {' | '.join(wording.STANDING_COLUMNS)} |",
        f"|{'---|' * len(wording.STANDING_COLUMNS)}",
    ]
    lines += [f"| {' | '.join(map(_inert, cells))} |" for cells in wording.list_standings(summary)]
    lines += ["", *(_fact(name, text) for name, text in wording.list_facts(summary))]
    return "\n".join([*lines, ""])


def _row(finding: Finding) -> str:
    cells = (
        _inert(finding.name),
        _inert(findings.describe_kind(finding)),
        f"**{finding.decision}**",
        _inert(wording.describe_evidence(finding)),
    )
    return f"| {' | '.join(cells)} |"


def _fact(name: str, text: str) -> str:
    return f"- **{_inert(name)}**: {_inert(text)}"


def _inert(text: str) -> str:
    """Text that Markdown shows as it is: what could act on it is written by its number."""
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", wording.one_line(text))
