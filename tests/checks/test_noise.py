"""Noise of the weights: level and power at any look, known scales, and an audit of a build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import FAULT, configure, host, run
from hosts import judge, only, rows_at
from simulate import case_of, make_calibration, make_plan

from verifier.checks import noise
from verifier.config import Policy
from verifier.evidence.calibration import Certificate, Channel
from verifier.evidence.ledger import TEXT_SCALES, Ledger
from verifier.evidence.noise import honest_scales
from verifier.plan_file import Plan, batch_ends
from verifier.records import REFERENCE
from verifier.verdict.combine import combine

# -- level ---------------------------------------------------------------------------------------


def test_honest_noise_is_rarely_called_inconsistent_at_any_of_many_looks() -> None:
    """At the edge of the null, looking after every batch keeps false alarms below alpha."""
    plan = make_plan(alpha=0.05)
    alarms = 0
    for seed in range(200):
        rows = rows_at(0.1, 22, seed=seed, tokens=15)
        ends = batch_ends(len(rows))
        alarms += any(judge(rows[:end], plan).decision == "inconsistent" for end in ends)

    assert alarms <= 20  # 200 x 0.05 = 10 expected at most; 20 is above its 99.9 % quantile


def test_consistent_is_rarely_said_of_a_host_at_the_edge_of_a_class() -> None:
    """At a class's own scale, looking after every batch keeps false exclusions below beta."""
    plan = make_plan(alpha=1e-9, beta=0.05)
    wrong = 0
    for seed in range(200):
        rows = rows_at(0.3, 22, seed=1000 + seed, tokens=15)
        ends = batch_ends(len(rows))
        wrong += any(judge(rows[:end], plan).decision == "consistent" for end in ends)

    assert wrong <= 20


def test_the_interval_of_the_noise_scale_holds_the_truth() -> None:
    """Coverage at the stopping time, on hosts of a known scale."""
    plan = make_plan(beta=0.05)
    missed = 0
    for seed in range(200):
        scale = judge(rows_at(0.2, 10, seed=seed, tokens=15), plan).noise_scale
        assert scale.lower is not None
        missed += not (scale.lower <= 0.2 and (scale.upper is None or scale.upper >= 0.2))

    assert missed <= 20


# -- power ---------------------------------------------------------------------------------------


def test_most_honest_hosts_end_consistent_within_twenty_replies() -> None:
    """Power of the certificate."""
    found = [judge(rows_at(0.05, 20, seed=s)).decision for s in range(40)]

    assert found.count("consistent") >= 38


def test_four_bit_noise_is_called_inconsistent_within_a_few_replies() -> None:
    """Power of the detection."""
    found = [judge(rows_at(0.6, 4, seed=s)).decision for s in range(40)]

    assert found.count("inconsistent") >= 38


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_of_one_reply_is_known_by_hand() -> None:
    """One nat likelier at every scale above the honest one, and read at half the rate."""
    better = np.where(TEXT_SCALES > 0.1 * 1.001, 1.0, 0.0)
    row = replace(rows_at(0.05, 1, seed=1)[0], text={REFERENCE: tuple(better.tolist())})
    channel = Channel(honest_scale=0.1, spread=0.0, learning_rate=0.5)
    plan = make_plan(calibration=make_calibration(text=channel))

    assert noise.CHECK.weigh(case_of(plan, Ledger(rows=(row,))), None).log_e == pytest.approx(
        (0.5,)
    )


def test_an_excluded_class_has_negative_evidence_and_a_detected_one_positive() -> None:
    """The sign of log e says which way it points."""
    honest, noisy = judge(rows_at(0.05, 20, seed=1)), judge(rows_at(0.6, 20, seed=1))

    assert only(honest, "4-bit-class rounding").decision == "excluded"
    assert (only(honest, "4-bit-class rounding").log_e or 0) < -6.9
    assert only(noisy, "4-bit-class rounding").decision == "detected"
    assert (only(noisy, "4-bit-class rounding").log_e or 0) > 6.9


def test_spread_and_learning_rate_of_the_calibration_are_applied() -> None:
    """A tempered likelihood says less, and so does one that lets replies differ."""
    rows = tuple(rows_at(0.6, 3, seed=1))

    def read(spread: float, rate: float) -> float:
        channel = Channel(honest_scale=0.1, spread=spread, learning_rate=rate)
        plan = make_plan(calibration=make_calibration(text=channel))
        return combine(case_of(plan, Ledger(rows=rows))).log_e

    assert read(0.0, 0.5) == pytest.approx(0.5 * read(0.0, 1.0), rel=0.1)
    assert read(0.2, 1.0) < 0.9 * read(0.0, 1.0)


# -- one audit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "decision"),
    [("reference", "excluded"), (FAULT, "detected")],
    ids=["as is", "4-bit"],
)
def test_an_audit_tells_the_class_of_what_is_served(
    card: Path, tmp_path: Path, weights: str, decision: str
) -> None:
    """Over HTTP, of the published weights and of a build."""
    with host(weights) as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert only(report, "4-bit-class rounding").decision == decision


# -- what is said --------------------------------------------------------------------------------


def test_an_undecided_class_says_how_many_more_tokens_it_needs() -> None:
    """Extrapolated from the evidence so far."""
    report = judge(rows_at(0.05, 1, seed=3, tokens=8))
    finding = only(report, "4-bit-class rounding")

    assert report.decision == "inconclusive"
    assert finding.decision == "undecided"
    assert finding.tokens_needed is not None
    assert 1 <= finding.tokens_needed < 1000


def test_a_class_within_the_honest_floor_is_not_run_and_does_not_block() -> None:
    """The report says where the card's floor hides a class."""
    plan = make_plan(policy=Policy(noise=("int8-class rounding", "4-bit-class rounding")))
    report = judge(rows_at(0.02, 20, seed=5), plan)

    assert only(report, "int8-class rounding").decision == "not run"
    assert report.decision == "consistent"
    assert any("int8-class" in note for note in report.notes)


def test_a_policy_whose_every_class_is_within_the_floor_is_never_consistent() -> None:
    """A check that did not run is not passed."""
    plan = make_plan(policy=Policy(noise=("int8-class rounding",)))

    assert judge(rows_at(0.0, 20, seed=5), plan).decision == "inconclusive"


def with_certificate(**changes: Any) -> Plan:
    """A plan whose calibration holds what honest replies made of the bet."""
    calibration = make_calibration()
    largest = float(TEXT_SCALES[honest_scales(TEXT_SCALES, calibration.text)][-1])
    values: dict[str, Any] = {
        "replies": 5200, "stacks": ("a", "b"), "level": 0.99, "excess": 0.001,
        "largest_honest_scale": largest, "spread": 0.0, "learning_rate": 1.0,
    }  # fmt: skip
    measured = Certificate(**values | changes)
    return make_plan(calibration=make_calibration(certificate=measured))


def test_an_accusation_says_how_often_honest_replies_were_measured_to_come_so_far() -> None:
    """By the certificate of the calibration, whatever the noise is made of."""
    rows = rows_at(0.6, 8, seed=2)
    report = judge(rows, with_certificate())
    (note,) = [note for note in report.notes if "the bet on noise was measured" in note]

    assert report.decision == "inconsistent"
    assert "5,200 honest replies of 2 stacks" in note
    assert "counted 20-fold at most: its mean is at most 1.001 (99%)" in note
    assert "8 replies of such a stack bring it to 1,000 with probability at most 0.001," in note
    brought, _, chance = note.partition("and to ")[2].partition(", as these do, with at most ")
    assert float(chance.partition(". ")[0]) == pytest.approx(1.001**8 / float(brought), rel=0.05)
    assert float(brought) > 1000


def test_so_much_evidence_that_no_number_holds_it_is_told_too() -> None:
    """As far as it is: 300 replies, each counted for all that it may be."""
    rows = rows_at(0.9, 300, seed=3, tokens=8)

    assert any("the bet on noise was measured" in n for n in judge(rows, with_certificate()).notes)


@pytest.mark.parametrize(
    ("scale", "plan"),
    [
        (0.6, make_plan()),
        (0.6, with_certificate(largest_honest_scale=0.0501187)),
        (0.6, with_certificate(spread=0.3)),
        (0.6, with_certificate().model_copy(update={"max_tokens": 31})),
        (0.05, with_certificate()),
    ],
    ids=["none", "another floor", "another reading", "other lengths", "no accusation"],
)
def test_nothing_is_said_of_a_bet_that_was_not_measured(scale: float, plan: Plan) -> None:
    """A certificate is of one reading, of one length of replies, and for an accusation."""
    notes = judge(rows_at(scale, 8, seed=2), plan).notes

    assert not any("the bet on noise was measured" in note for note in notes)
