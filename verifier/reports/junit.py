"""The verdict for machines: JUnit XML.

Form only: nothing is judged here. Words of a host are untrusted: they can end no element and move
no cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from verifier import wording
from verifier.records import Asked, Report, Summary
from verifier.reports import findings, telling


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
    cases[0].time = _seconds(report.asked)  # of asking: the departures rest on the same replies
    suite.add_testcases(cases)
    suite.hostname = wording.one_line(telling.host_of(report, port=False))
    if report.asked is not None:
        suite.timestamp = wording.one_line(report.asked.first[:19])
    suite.add_property("asked", wording.describe_asked(report.asked))
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


def _seconds(asked: Asked | None) -> float:
    """How long it was asked."""
    if asked is not None:
        with suppress(ValueError, TypeError):
            first, last = map(datetime.fromisoformat, (asked.first, asked.last))
            return (last - first).total_seconds()
    return 0.0


def _case(name: str, decision: str, detail: str) -> TestCase:
    case = TestCase(wording.one_line(name), classname="verifier", time=0.0)
    message = f"{decision}: {wording.one_line(detail)}"
    if decision in ("detected", "inconsistent"):
        case.result = [Failure(message, "inconsistent")]
    elif decision not in ("excluded", "consistent"):
        case.result = [Skipped(message)]
    return case
