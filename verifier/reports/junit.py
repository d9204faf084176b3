"""The verdict for machines: JUnit XML, and a summary in Markdown for GitHub.

Form only: nothing is judged here. Words of a host are untrusted: they can end no element, start no
markup and move no cursor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from verifier import wording
from verifier.records import Finding, Report, Summary
from verifier.reports import findings

#: Signs that Markdown, GitHub's additions to it, or HTML may act on, and what begins a list or a
#: line at the start of a text.
_ACTIVE: Final = re.compile(
    r"[^\w\s.,;:%()'-]|_|(?<!\s)[:.](?=\w)|\A-|"
    + "|".join(rf"(?<=\A[0-9]{{{digits}}})[.)]" for digits in range(1, 10))
)


def render_junit(report: Report) -> str:
    """One suite with one test case for the verdict and one for each departure of the policy.

    Detected is a failure, excluded a pass. Undecided and not run are skipped, never passed; so is
    a verdict that the evidence does not decide.
    """
    return _to_xml([_suite("hosted-model verifier", report, report.summary)])


def render_junits(summary: Summary, reports: Mapping[str, Report]) -> str:
    """One suite a target, as of its own report; one that was not judged is one skipped case."""
    suites = []
    for target in summary.targets:
        said = f"{target.summary}{wording.describe_accusation(target, summary)}"
        if target.name in reports:
            suites.append(_suite(target.name, reports[target.name], said))
            continue
        suite = TestSuite(wording.one_line(target.name))
        suite.add_testcase(_case("verdict", "not judged", said))
        suites.append(suite)
    return _to_xml(suites)


def _suite(name: str, report: Report, said: str) -> TestSuite:
    cases = [_case("verdict", report.decision, said)]
    cases += [
        _case(f"{findings.describe_kind(f)}: {f.name}", f.decision, f.detail)
        for f in findings.departures(report)
    ]
    suite = TestSuite(wording.one_line(name))
    suite.add_testcases(cases)
    suite.add_property("policy", wording.one_line(report.policy))
    suite.add_property("alpha", f"{report.alpha:g}")
    suite.add_property("beta", f"{report.beta:g}")
    for label, spent in (*wording.list_spending(report.usage), *wording.list_control(report)):
        suite.add_property(label.lower(), wording.one_line(spent))
    return suite


def _to_xml(suites: Sequence[TestSuite]) -> str:
    xml = JUnitXml()
    for suite in suites:
        xml.add_testsuite(suite)
    written: bytes = xml.tostring()  # type: ignore[no-untyped-call]  # junitparser types only some
    return written.decode()


def _case(name: str, decision: str, detail: str) -> TestCase:
    case = TestCase(wording.one_line(name), classname="verifier", time=0.0)
    message = f"{decision}: {wording.one_line(detail)}"
    if decision in ("detected", "inconsistent"):
        case.result = [Failure(message, "inconsistent")]
    elif decision not in ("excluded", "consistent"):
        case.result = [Skipped(message)]
    return case


def render_markdown(report: Report) -> str:
    """A summary as GitHub shows it below a job: verdict, departures, noise scale, spending."""
    sign = wording.SIGNS[report.decision]
    lines = [
        f"## {sign} {report.decision.upper()}: {wording.HEADLINES[report.decision]}",
        "",
        _inert(report.summary),
        "",
        "| departure | about | result | log e |",
        "|---|---|---|---|",
    ]
    lines += [_row(finding) for finding in findings.departures(report)]
    facts = [
        *(("Best name", wording.describe_cause(cause)) for cause in findings.causes(report)),
        *wording.list_belongings(report),
        ("Noise scale", wording.describe_scale(report.noise_scale)),
        *wording.list_spending(report.usage),
        *wording.list_control(report),
        ("Policy", f"{report.policy}, alpha {report.alpha:g}, beta {report.beta:g}"),
        *(("Note", note) for note in report.notes),
    ]
    lines += ["", *(_fact(name, text) for name, text in facts), ""]
    return "\n".join(lines)


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
