"""What an endpoint says of its own tokens: it accuses, and never acquits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audits import FAULT, configure, host_with, run
from hosts import judge, only, rows_at
from simulate import case_of, make_plan

from verifier.checks import reported_logprobs
from verifier.evidence.ledger import LOGPROB_SCALES, Ledger, Row

PLAN = make_plan(top_logprobs=5)


def log_e(rows: Sequence[Row]) -> float:
    """What is said of the tokens, against honest serving."""
    case = case_of(PLAN, Ledger(rows=tuple(rows)))
    return float(reported_logprobs.CHECK.weigh(case, None).evidence.log_e)


# -- level ---------------------------------------------------------------------------------------


def test_honest_log_probabilities_accuse_at_most_as_often_as_promised() -> None:
    """At the honest scale, looking after each of eight replies, at 1 in 20."""
    crossed = 0
    for seed in range(80):
        rows = rows_at(0.05, 8, seed=seed, tokens=4, logprob_scale=0.1)
        crossed += max(log_e(rows[:n]) for n in range(1, 9)) >= math.log(20)

    assert crossed <= 80 / 20 + 5


# -- power ---------------------------------------------------------------------------------------


def test_reported_logprobs_accuse_but_never_acquit() -> None:
    """Forged perfect log-probabilities do not make a noisy text consistent."""
    plan = make_plan(top_logprobs=5)
    forged = judge(rows_at(0.6, 12, seed=2, logprob_scale=0.001), plan)
    accused = judge(rows_at(0.0, 2, seed=2, logprob_scale=0.8), plan)

    assert forged.decision == "inconsistent"
    assert accused.decision == "inconsistent"
    assert only(accused, "reported log-probabilities").decision == "detected"


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_of_one_reply_is_known_by_hand() -> None:
    """Two nats likelier at every scale above the honest one."""
    (row,) = rows_at(0.05, 1, seed=1)
    better = np.where(LOGPROB_SCALES > 0.1 * 1.001, 2.0, 0.0)

    assert log_e([replace(row, logprob=tuple(better.tolist()))]) == pytest.approx(2.0)
    assert log_e([row]) == 0.0


# -- one audit -----------------------------------------------------------------------------------


def test_forged_log_probabilities_contradict_the_replies(card: Path, tmp_path: Path) -> None:
    """They are those of the published weights; the text is not."""
    with host_with(f"{FAULT}+forges:logprobs") as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert report.decision == "inconsistent"
    (forged,) = [f for f in report.findings if f.aspect == "forged"]
    assert forged.decision == "detected"


# -- what is said --------------------------------------------------------------------------------


def test_missing_logprobs_are_no_evidence() -> None:
    """The verdict rests on the text, and a note says so."""
    report = judge(rows_at(0.05, 20, seed=2), make_plan(top_logprobs=5))

    assert report.decision == "consistent"
    assert any("not used" in note for note in report.notes)
