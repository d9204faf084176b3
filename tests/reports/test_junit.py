"""The verdict for machines: one test case a departure, and words of a host that stay words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from junitparser import JUnitXml, TestSuite
from reports import HOSTILE, consistent, make_report, plain_finding

from verifier.checks import ASPECTS
from verifier.records import Asked, Report
from verifier.reports.junit import render_junit


def parsed(report: Report) -> dict[str, Any]:
    """Test cases by name: what a reader of JUnit makes of them."""
    (suite,) = JUnitXml.fromstring(render_junit(report).encode())
    assert isinstance(suite, TestSuite)
    return {case.name: case for case in suite}


def test_each_departure_is_a_test_case() -> None:
    """Detected fails, excluded passes, and what was not decided is skipped, never passed."""
    findings = tuple(
        plain_finding(decision, name=decision)
        for decision in ("detected", "excluded", "undecided", "not run")
    )
    cases = parsed(replace(make_report("inconsistent"), findings=findings))

    assert next(iter(cases)) == "verdict"
    assert [case.name.rpartition(": ")[2] for case in cases.values()][1:] == [
        "at least as far off as detected", "excluded", "undecided", "not run",
    ]  # fmt: skip
    outcomes = [
        type(case.result[0]).__name__ if case.result else "passed" for case in cases.values()
    ]
    assert outcomes == ["Failure", "Failure", "passed", "Skipped", "Skipped"]


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [("consistent", []), ("inconsistent", ["Failure"]), ("inconclusive", ["Skipped"])],
)
def test_the_verdict_is_a_test_case(decision: Any, outcome: list[str]) -> None:
    """Inconclusive is no pass."""
    case = parsed(make_report(decision))["verdict"]

    assert [type(result).__name__ for result in case.result] == outcome


@pytest.mark.parametrize("name", [n for n, a in ASPECTS.items() if a.role != "departure"])
def test_what_neither_accuses_nor_acquits_fails_nothing(name: str) -> None:
    """Names and remarks, such as shown prompts, are no test case, whatever they say."""
    finding = replace(plain_finding("detected"), aspect=name)
    cases = parsed(replace(make_report("consistent"), findings=(finding,)))

    assert [(case.name, case.result) for case in cases.values()] == [("verdict", [])]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_words_of_a_host_act_in_junit(text: str) -> None:
    """The file stays one suite of the same cases, well-formed, with nothing that moves a cursor."""
    report = replace(
        make_report("inconsistent"),
        summary=text,
        findings=(plain_finding("detected", name=text, detail=text),),
        policy=text,
    )
    xml = render_junit(report)

    assert len(parsed(report)) == 2
    assert not any(ord(sign) < 32 and sign != "\n" for sign in xml)
    assert "\x1b" not in xml
    assert "\u202e" not in xml


def test_a_suite_says_whom_it_asked_and_when() -> None:
    """The first question in UTC, the host, and the seconds to the last one."""
    (suite,) = JUnitXml.fromstring(render_junit(consistent()).encode())
    asked = {p.name: p.value for p in suite.properties()}["asked"]

    assert (suite.timestamp, suite.hostname) == ("2026-01-14T09:30:00", "api.example.net")
    assert suite.time == 667
    assert asked == "2026-01-14 09:30:00 to 2026-01-14 09:41:07 UTC"


def test_a_suite_of_no_replies_has_no_time() -> None:
    """Nor one whose folder says nonsense."""
    for asked in (None, Asked(first="\x1bnever", last="soon")):
        report = replace(consistent(), asked=asked, signature={"configuration": {"endpoint": 3}})
        (suite,) = JUnitXml.fromstring(render_junit(report).encode())

        assert suite.time == 0
        assert not suite.hostname
