"""What an endpoint says of its own tokens: it accuses, never acquits, and is not what it serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from audits import FAULT, configure, host_with, run
from hosts import judge, only, rows_at
from simulate import case_of, make_plan

from verifier.checks import greedy_tokens, reported_logprobs
from verifier.evidence.calibration import Calibration
from verifier.evidence.ledger import LOGPROB_SCALES, Ledger, Row
from verifier.lab.testbed.reporting import HABITS
from verifier.records import Finding, Report
from verifier.reference.calibrations import calibration_path
from verifier.reports.junit import render_junit
from verifier.verdict.combine import combine

PLAN = make_plan(top_logprobs=5)
SHIPPED: Final = Calibration.model_validate_json(
    calibration_path("smollm2-135m-instruct").read_text()
)

SHIPS = make_plan(top_logprobs=5, calibration=SHIPPED)

#: What each habit of the testbed is said to be; "": it adds no noise worth the name.
SAID: Final = {
    "zeros": "one log-probability for whatever token is given",
    "given-zero": "one log-probability for whatever token is given",
    "given-zero-in-both": "one log-probability for whatever token is given",
    "one-hot": "one log-probability for whatever token is given",
    "before": "log-probabilities of the position before",
    "after": "log-probabilities of the position after",
    "before-whole": "log-probabilities of the position before",
    "chunks": "alternatives copied from other positions",
    "another-reply": "log-probabilities of something else than its replies",
    "temperature": "log-probabilities scaled by about 1.4",
    "warm": "log-probabilities scaled by about 0.9",
    "penalized": "log-probabilities after a penalty",
    "base10": "log-probabilities scaled by about 0.43",
    "base2": "log-probabilities scaled by about 1.4",
    "probabilities": "probabilities in the place of their logarithms",
    "rounded": "log-probabilities rounded to steps of 0.1",
    "integers": "log-probabilities rounded to steps of 1",
    "bfloat16": "",
    "fillers": "fillers in the place of small log-probabilities",
    "alike": "one log-probability for all tokens of a position",
}


def log_e(rows: Sequence[Row]) -> float:
    """What is said of the tokens, against honest serving."""
    case = case_of(PLAN, Ledger(rows=tuple(rows)))
    return float(reported_logprobs.CHECK.weigh(case, None).evidence.log_e)


def on_reports(report: Report) -> Finding | None:
    """What is remarked of the reports."""
    return next((f for f in report.findings if f.aspect == "reports"), None)


def accuses(rows: Sequence[Row]) -> bool:
    """Whether all evidence together does."""
    return combine(case_of(SHIPS, Ledger(rows=tuple(rows)))).log_e >= math.log(1 / SHIPS.alpha)


def believes(rows: Sequence[Row]) -> bool:
    """Whether reports have a say."""
    return case_of(SHIPS, Ledger(rows=tuple(rows))).reports.joins


# -- level ---------------------------------------------------------------------------------------


def test_honest_log_probabilities_accuse_at_most_as_often_as_promised() -> None:
    """At the honest scale, looking after each of eight replies, at 1 in 20."""
    crossed = 0
    for seed in range(80):
        rows = rows_at(0.05, 8, seed=seed, tokens=4, logprob_scale=0.1)
        crossed += max(log_e(rows[:n]) for n in range(1, 9)) >= math.log(20)

    assert crossed <= 80 / 20 + 5


@pytest.mark.parametrize("habit", ["right", *HABITS])
def test_no_habit_of_reporting_accuses_an_honest_text(habit: str) -> None:
    """Two hundred audits of honest hosts, looked at after one reply and after two.

    Reports that have no say leave the evidence to the text, which is the same whatever the habit.
    """
    accused = 0
    for seed in range(200):
        rows = rows_at(0.05, 2, seed=seed, tokens=10, habit=habit)
        accused += any(believes(rows[:n]) and accuses(rows[:n]) for n in (1, 2))

    assert accused == 0


# -- power ---------------------------------------------------------------------------------------


def test_reported_logprobs_accuse_but_never_acquit() -> None:
    """Forged perfect log-probabilities do not make a noisy text consistent."""
    plan = make_plan(top_logprobs=5)
    forged = judge(rows_at(0.6, 12, seed=2, logprob_scale=0.001), plan)
    accused = judge(rows_at(0.2, 4, seed=2, logprob_scale=0.2), plan)

    assert forged.decision == "inconsistent"
    assert accused.decision == "inconsistent"
    assert only(accused, "reported log-probabilities").decision == "detected"


@pytest.mark.parametrize(("scale", "count"), [(0.2, 2), (0.15, 6)])
def test_right_reports_find_fine_rounding_sooner_than_the_text(scale: float, count: int) -> None:
    """Hosts of 8-bit and 6-bit-like noise, who report what they serve."""
    told = text = 0
    for seed in range(8):
        rows = rows_at(scale, count, seed=seed, tokens=45, habit="right")
        silent = [replace(row, logprob=None, reported=None, outranked=None) for row in rows]
        told, text = told + accuses(rows), text + accuses(silent)

    assert told >= 7
    assert text <= 4


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_of_one_reply_is_known_by_hand() -> None:
    """Two nats likelier at every scale above the honest one."""
    (row,) = rows_at(0.05, 1, seed=1)
    better = np.where(LOGPROB_SCALES > 0.1 * 1.001, 2.0, 0.0)

    assert log_e([replace(row, logprob=tuple(better.tolist()))]) == pytest.approx(2.0)
    assert log_e([row]) == 0.0


def test_reports_that_are_not_believed_lose_their_share_and_no_more() -> None:
    """An e-value of 0 in both checks that read them; what the text says stands."""
    rows = rows_at(0.05, 3, seed=1, habit="before")
    silent = [replace(row, logprob=None, reported=None, outranked=None) for row in rows]
    told, text = (combine(case_of(PLAN, Ledger(rows=tuple(some)))) for some in (rows, silent))
    single, none = (one.weighed[greedy_tokens.CHECK.name].log_e for one in (told, text))

    assert told.weighed[reported_logprobs.CHECK.name].log_e == (-math.inf,)
    assert text.weighed[reported_logprobs.CHECK.name].log_e == (0.0,)
    assert sum(row.outranked or 0 for row in rows) > 0
    assert (single, none) == ((-math.inf,), (0.0,))
    assert told.weighed["noise"] == text.weighed["noise"] or told.log_e < text.log_e


# -- one audit -----------------------------------------------------------------------------------


def test_forged_log_probabilities_contradict_the_replies(card: Path, tmp_path: Path) -> None:
    """They are those of the published weights; the text is not."""
    with host_with(f"{FAULT}+forges:logprobs") as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert report.decision == "inconsistent"
    (forged,) = [f for f in report.findings if f.aspect == "forged"]
    assert forged.decision == "detected"


@pytest.mark.parametrize("habit", HABITS)
def test_a_host_that_reports_so_is_consistent_and_told_so(
    habit: str, card: Path, tmp_path: Path
) -> None:
    """The verdict on the weights rests on the text; the summary says what is wrong beside it."""
    with host_with(f"reports:{habit}") as url:
        report = run(configure(url, card, tmp_path / "run"))
    found = on_reports(report)

    assert report.decision == "consistent"
    if not SAID[habit]:
        assert found is None
        return
    assert found is not None
    # where a reply before is shorter, its numbers end and right ones go on
    said = "" if habit == "another-reply" else SAID[habit]
    assert found.name.startswith(said)
    assert report.summary.endswith(f"; it reports {found.name}")
    assert not [f for f in report.findings if f.aspect in ("logprobs", "sampler", "forged")]


def test_other_weights_are_found_whatever_is_reported_of_them(card: Path, tmp_path: Path) -> None:
    """And both are said."""
    with host_with(f"{FAULT}+reports:given-zero") as url:
        report = run(configure(url, card, tmp_path / "run"))
    found = on_reports(report)

    assert report.decision == "inconsistent"
    assert found is not None
    assert found.name == SAID["given-zero"]


# -- what is said --------------------------------------------------------------------------------


def test_missing_logprobs_are_no_evidence() -> None:
    """The verdict rests on the text, and a note says so."""
    report = judge(rows_at(0.05, 20, seed=2), make_plan(top_logprobs=5))

    assert report.decision == "consistent"
    assert any("not used" in note for note in report.notes)


@pytest.mark.parametrize("habit", [habit for habit in HABITS if SAID[habit]])
def test_each_habit_is_named(habit: str) -> None:
    """By ten replies of a host that serves what was published."""
    found = on_reports(judge(rows_at(0.05, 10, seed=4, habit=habit), SHIPS))

    assert found is not None
    assert found.decision == "detected"
    assert found.name.startswith(SAID[habit])


@pytest.mark.parametrize("habit", ["given-zero", "before"])
def test_where_the_text_excludes_what_reports_accuse_the_report_says_so(habit: str) -> None:
    """As one sentence, in the finding, the note and the page's words; no machine sees a failure."""
    report = judge(rows_at(0.05, 10, seed=4, habit=habit), SHIPS)
    found = on_reports(report)

    assert report.decision == "consistent"
    assert report.summary.startswith("excluded: 4-bit-class rounding, another model; 10 replies")
    assert found is not None
    assert found.detail.startswith(
        "by their text the replies exclude 4-bit-class rounding and another model; "
        "the log-probabilities that it reports "
    )
    assert f"reported log-probabilities were not used: {found.detail}" in report.notes
    assert "<failure" not in render_junit(report)


def test_reports_that_only_the_text_contradicts_are_said_to_be_that() -> None:
    """They look like noise of a scale that the text excludes."""
    report = judge(rows_at(0.0, 12, seed=2, logprob_scale=0.8), PLAN)
    found = on_reports(report)

    assert report.decision == "consistent"
    assert found is not None
    assert found.name == "log-probabilities that its text does not bear out"


def test_doubtful_reports_are_neither_used_nor_named() -> None:
    """A note says that they were not."""
    rows = rows_at(0.05, 10, seed=3, habit="right")
    assert rows[0].reported is not None
    odd = replace(rows[0], reported=replace(rows[0].reported, apart=1))
    report = judge([odd, *rows[1:]], PLAN)

    assert (report.decision, on_reports(report)) == ("consistent", None)
    assert any("is not settled" in note for note in report.notes)
