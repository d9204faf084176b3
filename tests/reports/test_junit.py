"""The verdict for machines: one test case a departure, and words of a host that stay words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from junitparser import JUnitXml, TestSuite
from markdown_it import MarkdownIt
from reports import make_report, plain_finding

from verifier.records import Report, Standing, Summary
from verifier.reports.junit import render_junit, render_markdown, render_summary

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
        findings=(plain_finding("detected", name=text, detail=text),),
        policy=text,
    )
    xml = render_junit(report)

    assert len(parsed(report)) == 2
    assert not any(ord(sign) < 32 and sign != "\n" for sign in xml)
    assert "\x1b" not in xml
    assert "\u202e" not in xml


@pytest.mark.parametrize("text", HOSTILE)
def test_no_words_of_a_host_act_in_markdown(text: str) -> None:
    """The same lines as with plain words, and none of the signs that start anything."""
    plain, hostile = (
        render_markdown(
            replace(
                make_report("inconsistent"),
                summary=words,
                findings=(plain_finding("detected", name=words, detail=words),),
                notes=(words,),
            )
        )
        for words in ("plain words", text)
    )

    assert len(hostile.splitlines()) == len(plain.splitlines())
    for sign in "<>[]`@\x1b\u202e\u2028\x00":
        assert sign not in hostile
    for sign in "|*#":
        assert hostile.replace("&#", "").count(sign) == plain.replace("&#", "").count(sign)
    assert "://" not in hostile
    assert "www." not in hostile
    assert "&lt;" not in hostile


BEGINNINGS = [
    "1. one", "1) one", "123456789. many", "- item", "-\titem", "--- ", "+ item", "* item",
    "# heading", "> quote", "| a | b |", "```", "~~~ py", "    code", "\tcode", "=== ",
    "[a]: b", "<b>", "1986. A great year", "-1 is a number", "$$x$$", "- [ ] task", "_ _ _",
]  # fmt: skip


@pytest.mark.parametrize("text", BEGINNINGS)
def test_no_beginning_of_a_text_begins_a_block(text: str) -> None:
    """No list, heading, quote, code or line comes of it, and what is shown is the text."""
    report = replace(make_report("inconsistent"), summary=text, notes=(text,))
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown(report))
    summary = tokens[tokens.index(next(t for t in tokens if t.type == "heading_close")) + 1 :]

    assert [t.type for t in summary[:4]] == [
        "paragraph_open", "inline", "paragraph_close", "table_open",
    ]  # fmt: skip
    shown = "".join(child.content for child in summary[1].children or ())
    assert shown == " ".join(text.split())
    assert [t.type for t in tokens].count("bullet_list_open") == 1
    assert {t.type for t in tokens}.isdisjoint({"ordered_list_open", "hr", "fence", "code_block"})


def test_names_of_facts_are_inert_too() -> None:
    """A target's name comes from a file."""
    target = Standing(
        name="<b>[x](y)", base_url="", model="m", decision=None, summary="no", best_name=None,
        noise_scale=None, log_e=None, accusation=None, usage=None,
    )  # fmt: skip
    text = render_summary(
        Summary(
            schema_version=1, summary="no", alpha=0.001, log_e_needed=7.0, targets=(target,),
            control=None, cost_usd=None,
        )
    )  # fmt: skip

    assert "<b>" not in text
    assert "[x]" not in text


def test_the_summary_says_verdict_departures_and_spending() -> None:
    """What a reader of a job wants to know, without opening the report."""
    text = render_markdown(make_report("inconclusive"))

    assert text.startswith("## ? INCONCLUSIVE: ")
    assert "| departure | about | result | log e |" in text
    assert "- **Cost**:" in text
