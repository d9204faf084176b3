"""Which model the replies name: tallied and told, and never the ground of a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audits import configure, host_with, run
from simulate import decide, make_plan, make_reply, simulate_row

from verifier.checks.named_models import how_named
from verifier.evidence.ledger import Ledger
from verifier.records import Finding, Outcome, Report
from verifier.reports.junit import render_junit
from verifier.reports.markdown import render_markdown

ASKED = "owner/Some-Model-8B-Instruct"


def judge(*names: str | None, asked: str = ASKED) -> Report:
    """The report on replies that name these models."""
    rng = np.random.default_rng(3)
    rows = tuple(simulate_row(rng, f"p{n}", scale=0.02) for n in range(max(10, len(names))))
    named = [*names, *[None] * (len(rows) - len(names))]
    outcomes: dict[str, Outcome] = {
        row.probe_id: replace(make_reply(row.probe_id), named=name)
        for row, name in zip(rows, named, strict=True)
    }
    plan = make_plan(configuration={"endpoint": {"model": asked}})
    return decide(plan, Ledger(rows=rows), outcomes=outcomes)


def found(report: Report) -> list[Finding]:
    """What is said of the names."""
    return [finding for finding in report.findings if finding.aspect == "named"]


# -- level -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        ASKED,
        "some-model-8b-instruct",
        "other-owner/some_model_8b_instruct",
        "owner/some-model-8b-instruct:free",
        "accounts/x/models/some-model-8b-instruct",
        "/srv/models/Some-Model-8B-Instruct.gguf",
        "some model 8b instruct",
        None,
    ],
)
def test_another_spelling_is_not_remarked(name: str | None) -> None:
    """Case, owner, folder, signs and what routers add; nor is a name that is not said."""
    plain, told = judge(), judge(*[name] * 10)

    assert found(told) == []
    assert told.notes == plain.notes


def test_a_verdict_does_not_rest_on_a_name() -> None:
    """Nor does anything else in the report but the remark."""
    plain, told = judge(*[ASKED] * 10), judge(*["another/model"] * 10)

    assert (told.decision, told.summary) == (plain.decision, plain.summary)
    assert [f for f in told.findings if f.aspect != "named"] == list(plain.findings)
    assert "named" not in render_junit(told)


# -- power -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "someone/another-model-7b", "gpt-3.5-turbo", "some-model-70b-instruct", "some-model-8b",
        "some-model-8b-instruct-turbo", "default", "some-model:8b",
    ],
)  # fmt: skip
def test_another_model_is_told_with_how_many_replies_name_it(name: str) -> None:
    """By the endpoint's own word, which proves nothing."""
    report = judge(*[name] * 7, *[ASKED] * 3)

    (finding,) = found(report)
    assert (finding.decision, finding.log_e) == ("detected", None)
    assert f"7 of 10 replies name another model than {ASKED!r}" in finding.detail
    assert f"{name!r} 7" in finding.detail
    assert "proves nothing" in finding.detail
    assert finding.detail in report.notes
    assert "which was asked for" in render_markdown(report)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("some-model-8b-instruct-fp8", "rounding"),
        ("Some-Model-8B-Instruct-AWQ", "rounding"),
        ("some-model-8b-instruct-w4a16", "rounding"),
        ("some-model-8b-instruct.Q4_K_M.gguf", "rounding"),
        ("some-model-8b-instruct-nvfp4", "rounding"),
        ("some-model-8b-instruct-2507-FP8", "rounding"),
        ("some-model-8b-instruct-4bit", "rounding"),
        ("some-model-8b-instruct-2507", "date"),
        ("some-model-8b-instruct-2024-07-18", "date"),
        ("some-model-8b-instruct-20240718", "date"),
        ("some-model-8b-instruct@20240718", "date"),
        ("some-model-0324-8b-instruct", "date"),
    ],
)
def test_a_date_and_a_rounding_are_told_as_what_they_are(name: str, kind: str) -> None:
    """No finding, and a line that says it."""
    report = judge(*[name] * 10)

    assert how_named(ASKED, name) == kind
    assert found(report) == []
    (note,) = [note for note in report.notes if name in note]
    assert note.endswith(f"the same name but for a {kind}, by the endpoint's own words")


# -- known answer ----------------------------------------------------------------------------------


def test_many_names_are_told_the_most_frequent_first_and_no_more_than_four() -> None:
    """As of a router that draws one for each request."""
    report = judge(*"aabbbcdef")

    (finding,) = found(report)
    assert "9 of 10 replies" in finding.detail
    assert "'b' 3, 'a' 2, 'c' 1, 'd' 1 and 2 other names" in finding.detail


def test_nothing_is_said_where_the_plan_does_not_say_what_was_asked_for() -> None:
    """As in the plans of a laboratory."""
    assert found(judge("x", asked="")) == []


# -- one audit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_an_audit_notes_what_the_endpoint_itself_names(
    card: Path, tmp_path: Path, stream: bool
) -> None:
    """Beside a consistent verdict."""
    with host_with("delivers:default-model") as url:
        report = run(configure(url, card, tmp_path / "run", endpoint={"stream": stream}))

    (finding,) = found(report)
    assert report.decision == "consistent"
    assert "'someone/another-model-7b'" in finding.detail
    assert "'tiny', which was asked for" in finding.detail
