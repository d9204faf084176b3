"""The verdict for machines: one test case a departure, and words of a host that stay words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from junitparser import JUnitXml, TestSuite

from verifier.records import Decision, Finding, NoiseScale, Report, Usage
from verifier.reports.junit import render_junit

#: What a host may send where a report quotes it.
HOSTILE = (
    "]]></failure></testcase><testcase name='x'/>",
    "<script>alert(1)</script>",
    "a | b\n\n# heading\n| c |",
    "[click](javascript:alert(1)) ![x](http://evil.example/p.png)",
    "@everyone **bold** `code` https://evil.example/x www.evil.example",
    "\x1b[2J\x07\u202egnp.exe\u2028\x00\ud800",
    "=HYPERLINK('http://evil.example')",
    "::error file=a::b",
    "&lt;b&gt; &#60;i&#62;",
)


def make_report(decision: Decision) -> Report:
    return Report(
        schema_version=1, decision=decision, summary="as it is", findings=(finding("excluded"),),
        noise_scale=NoiseScale(
            estimate=0.05, lower=0.01, upper=0.1, level=0.999, equivalent="honest serving",
            honest=0.06, marks=(),
        ),
        usage=Usage(
            requests=12, replies=10, failures=1, not_judged=1, prompt_tokens=300,
            completion_tokens=400, tokens_scored=390, tokens_left_out=10, cost_usd=0.01,
        ),
        notes=("a note",), policy="screen", alpha=0.001, beta=0.001, signature={},
    )  # fmt: skip


def finding(decision: Any, *, name: str = "int4", detail: str = "so it is") -> Finding:
    return Finding(
        aspect="noise", decision=decision, name=name, log_e=1.5, detail=detail, tokens_needed=None
    )


def parsed(report: Report) -> dict[str, Any]:
    """Test cases by name: what a reader of JUnit makes of them."""
    (suite,) = JUnitXml.fromstring(render_junit(report).encode())
    assert isinstance(suite, TestSuite)
    return {case.name: case for case in suite}


def test_each_departure_is_a_test_case() -> None:
    """Detected fails, excluded passes, and what was not decided is skipped, never passed."""
    findings = tuple(
        finding(decision, name=decision)
        for decision in ("detected", "excluded", "undecided", "not run")
    )
    cases = parsed(replace(make_report("inconsistent"), findings=findings))

    assert next(iter(cases)) == "verdict"
    assert [case.name.rpartition(": ")[2] for case in cases.values()][1:] == [
        "detected", "excluded", "undecided", "not run",
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


@pytest.mark.parametrize("text", HOSTILE)
def test_no_words_of_a_host_act_in_junit(text: str) -> None:
    """The file stays one suite of the same cases, well-formed, with nothing that moves a cursor."""
    report = replace(
        make_report("inconsistent"),
        summary=text,
        findings=(finding("detected", name=text, detail=text),),
        policy=text,
    )
    xml = render_junit(report)

    assert len(parsed(report)) == 2
    assert not any(ord(sign) < 32 and sign != "\n" for sign in xml)
    assert "\x1b" not in xml
    assert "\u202e" not in xml
