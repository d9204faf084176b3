"""The evidence in words: whose it is, how sure it is, and the replies that tell."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape
from reports import consistent, evidence, finding, inconclusive, inconsistent, make_report, place

from verifier.records import Certificate, Control, Report
from verifier.report_file import report_from_json, report_to_json
from verifier.reports import html, telling
from verifier.reports.markdown import render_markdown
from verifier.reports.next_steps import next_steps
from verifier.steps import write_page
from verifier.verdict.decide import decide_folder

VERDICTS = Path(__file__).parents[1] / "verdicts"
FOLDERS = sorted(path for path in (VERDICTS / "folders").iterdir() if path.is_dir())


def asked_of(**endpoint: Any) -> Report:
    """A report on this endpoint."""
    signature = {"card": "qwen3-8b", "configuration": {"endpoint": endpoint}}
    return replace(inconsistent(), signature=signature)


# -- who ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ({"base_url": "https://api.host.example/v1"}, "api.host.example"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, "127.0.0.1:8000"),
        ({"base_url": "http://[::1]:8000/v1"}, "[::1]:8000"),
        ({"base_url": "https://user:secret@host.example/v1"}, "host.example"),
        ({"base_url": "https://api.together.xyz/v1", "host": "together"}, "together"),
        (
            {"base_url": "https://r.example/v1", "host": "openrouter", "provider": "novita/fp8"},
            "novita/fp8 through openrouter",
        ),
        ({"base_url": "https://[broken"}, "a host that is not on record"),
        ({}, "a host that is not on record"),
    ],
)
def test_the_host_is_the_headline(endpoint: dict[str, Any], named: str) -> None:
    """By the name of the run file, else by the address; never with what is secret in it."""
    assert telling.name_host(asked_of(**endpoint)) == named


def test_the_model_stands_under_it() -> None:
    """With the card, where that has another name."""
    assert telling.name_model(asked_of(model="qwen/q8")) == "qwen/q8, held against qwen3-8b"
    assert telling.name_model(asked_of(model="qwen3-8b")) == "qwen3-8b"
    assert telling.name_model(make_report("consistent")) == "a model that is not on record"


# -- how sure ----------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 0.5))
def test_no_more_is_claimed_than_the_evidence(log_e: float, alpha: float) -> None:
    """That one of N audits brings so much needs evidence of N, and never more than is believed."""
    report = replace(inconsistent(), evidence=evidence(log_e, 1), alpha=alpha)
    audits = telling.once_in(report)

    assert audits == 1 or math.log(audits) <= log_e
    assert 1 <= audits <= telling.RAREST
    assert telling.once_in(replace(report, evidence=None)) <= 1 / alpha * (1 + 1e-6)
    (said,) = re.findall(r"at most (?:one of (.+) audits|every audit)\.$", sureness(report))
    assert int(said.replace(",", "") or 1) == audits if said != "a million" else audits >= 10**6


def sureness(report: Report) -> str:
    return telling.describe_sureness(report)


@pytest.mark.parametrize(
    ("log_e", "said"),
    [
        (math.log(1000) + 1e-9, "one of 1,000 audits"),
        (math.log(1399), "one of 1,300 audits"),
        (math.log(999_999), "one of 990,000 audits"),
        (math.log(1e6) + 1e-6, "one of a million audits"),
        (1776.5, "one of a million audits"),
    ],
)
def test_sureness_is_rounded_down_and_capped(log_e: float, said: str) -> None:
    """Known answers: 1/e is the bound on honest audits with so much evidence."""
    assert sureness(replace(inconsistent(), evidence=evidence(log_e, 1))).endswith(f"{said}.")


def test_a_report_without_evidence_claims_alpha() -> None:
    """As does one beside a control that puts the reference in doubt."""
    plain = replace(inconsistent(), evidence=None)
    control = Control(base_url="", model="", finding="inconsistent", summary="", usage=None)
    doubted = replace(inconsistent(), evidence=evidence(50.0, 1), control=control)

    assert sureness(plain) == sureness(doubted)
    assert sureness(plain).endswith("in at most one of 1,000 audits.")


def test_a_consistent_verdict_says_what_is_excluded_and_what_stays_open() -> None:
    """At which beta, and of how many requests: the largest share that any class leaves open."""
    findings = (
        finding("noise", "excluded", "fp8-class rounding", -9.0),
        finding("noise", "excluded", "another model", -90.0),
        finding("weights", "excluded", "int4-sym-g64", -90.0),
    )
    certificate = Certificate(
        shares=(("fp8-class rounding", 0.46), ("another model", 0.2)), level=0.99, replies=9,
        stop=5, positions=48, kinds=(),
    )  # fmt: skip
    report = replace(consistent(), findings=findings, certificate=certificate, beta=0.01)

    assert sureness(report) == (
        "A host that answered every request with weights as far off as fp8-class rounding or "
        "another model would come out so in at most one of 100 audits; one that did so for fewer "
        "than 46 % stays open."
    )
    assert sureness(replace(report, certificate=None)).endswith("was not asked.")


def test_an_inconclusive_verdict_says_that_nothing_is_decided() -> None:
    """With the rates that either side would take."""
    said = sureness(replace(inconclusive(), alpha=0.01, beta=0.002))

    assert said.startswith("Nothing is decided about this host")
    assert "one of 100 audits" in said
    assert "one of 500 audits" in said


@pytest.mark.parametrize("decision", ["consistent", "inconsistent", "inconclusive"])
def test_no_verdict_is_said_to_be_likely(decision: Any) -> None:
    """A bound on errors is no probability of guilt."""
    assert not re.search(r"\bsure\b|certain|likely|probab", sureness(make_report(decision)))


# -- what differs ------------------------------------------------------------------------------


def test_differing_tokens_stand_beside_those_of_honest_hosts() -> None:
    """Counts, share, and both ends of what honest serving makes."""
    assert telling.describe_differing(evidence(9.5, 133)) == (
        "133 of 480 tokens (28 %) are not the published weights' own choice; honest hosts show up "
        "to about 8 here on average, on the machines that were measured, and about 14 at the most "
        "noise that is held against nobody"
    )
    few = replace(evidence(-9.0, 0), honest=0.3)
    assert "0 of 480 tokens (0 %)" in telling.describe_differing(few)
    assert "show fewer than 1 here" in telling.describe_differing(few)


def test_a_place_says_after_which_words_who_said_what() -> None:
    """And how surely by the published weights; ends of replies and white space in words."""
    assert telling.describe_place(place()) == (
        "after “…ask in your travels to Mar” the published weights say “ra” (90 %), the host said "
        "“ley” (0.01 %)"
    )
    odd = place(after="", published=None, served="\n\t ", log_p_served=-40.0, log_p_published=0.0)
    assert telling.describe_place(odd) == (
        "at the beginning of the reply to “Write a post about your travels.” the published weights "
        "end the reply (over 99.99 %), the host "
        r"said “\n\t ” (less than 0.001 %)"
    )
    assert telling.describe_place(place(served=None)).endswith("the host ended it (0.01 %)")
    assert len(telling.describe_place(place(after="x" * 10_000, served="y" * 10_000))) < 600


@pytest.mark.parametrize("log_p", [0.0, -1e-9, -0.001, -0.01, -0.7, -5.0, -11.0, -800.0])
def test_a_chance_is_never_none_and_never_all(log_p: float) -> None:
    """Nobody is told 0 % or 100 %."""
    assert not re.match(r"(0|100) %", telling.describe_chance(log_p))


@pytest.mark.parametrize(
    ("report", "heading"),
    [
        (consistent(), "The largest departures, as rounding makes them"),
        (inconsistent(), "The replies that tell"),
        (
            replace(inconclusive(), evidence=evidence(1.0, 3, place())),
            "The largest departures so far, which decide nothing",
        ),
    ],
    ids=lambda value: value.decision if isinstance(value, Report) else "",
)
def test_places_accuse_no_more_than_the_verdict(report: Report, heading: str) -> None:
    """The words above them follow from it, in every form."""
    others = {*telling.PLACES.values()} - {heading}
    for text in (render_markdown(report), page_of(report)):
        assert heading in text
        assert not [other for other in others if other in text]


def page_of(report: Report) -> str:
    return html.render_page(report, outcomes={}, probes=(), attempts=())


# -- all verdicts ------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_verdict_has_host_sentence_and_next_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of folders that were scored before evidence was kept: only that part is left out."""
    monkeypatch.setattr(html.dial, "draw_dial", lambda _scale: "")  # slow, and tested elsewhere
    report = report_from_json(json.loads((folder / "expected-report.json").read_text()))
    page, steps = page_of(report), next_steps(report)

    assert f"<h1>{telling.name_host(report)}</h1>" in page
    assert str(escape(sureness(report))) in page
    assert "The replies beside the published weights" not in page
    assert "evidence" not in report_to_json(report)
    for step in (steps.buyer, steps.host):
        assert not re.search(r"[{}]|  ", step), step
        assert str(escape(step.partition("`")[0])) in page


def test_pages_of_several_targets_are_named(tmp_path: Path) -> None:
    """Where the page of each lies, and it is that of the verdict just made."""
    left_out = shutil.ignore_patterns("expected-*")
    out = Path(shutil.copytree(VERDICTS / "fleet", tmp_path / "fleet", ignore=left_out))
    ended = call("summary", out)
    judged = [one for one in json.loads((out / "summary.json").read_text())["targets"]
              if one["decision"]]  # fmt: skip

    pages = [f"page of {one['name']}: {out / one['name'] / 'report.html'}" for one in judged]
    assert ended.out.splitlines()[-len(pages) :] == pages
    for one in judged:
        page = (out / one["name"] / "report.html").read_text()
        assert f": {one['decision']}</title>" in page


def test_a_page_is_that_of_the_verdict_decided_last(tmp_path: Path) -> None:
    """`decide` names a page, so it writes it."""
    left_out = shutil.ignore_patterns("expected-*")
    run = Path(shutil.copytree(VERDICTS / "folders" / "build-named", tmp_path / "r",
                               ignore=left_out))  # fmt: skip
    decide_folder(run)
    write_page(run)
    (run / "report.html").write_text("of another day")
    ended = call("decide", run)

    assert ended.out.splitlines()[-1] == f"page: {run / 'report.html'}"
    assert ": inconsistent</title>" in (run / "report.html").read_text()
