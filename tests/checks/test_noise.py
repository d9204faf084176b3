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
from verifier.checks.check import beyond_reach, is_between, tells_no_more
from verifier.config import Policy
from verifier.evidence.calibration import BetCertificate, Channel, NoiseClass, Zone
from verifier.evidence.ledger import TEXT_SCALES, Ledger
from verifier.evidence.noise import honest_scales
from verifier.plan_file import Plan, batch_ends
from verifier.records import REFERENCE
from verifier.reference.calibrations import load_calibration
from verifier.reference.cards import load_card
from verifier.verdict.combine import combine
from verifier.verdict.decide import decided

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


def test_a_class_within_the_honest_floor_is_not_run_and_never_passed() -> None:
    """Nobody may call excluded what the card's floor hides: an honest host and one of that class
    look alike, and the policy names it."""
    plan = make_plan(policy=Policy(noise=("int8-class rounding", "4-bit-class rounding")))
    report = judge(rows_at(0.02, 20, seed=5), plan)

    assert only(report, "int8-class rounding").decision == "not run"
    assert only(report, "4-bit-class rounding").decision == "excluded"
    assert report.decision == "inconclusive"
    assert "names what was not judged here: int8-class rounding" in report.summary
    assert any("int8-class" in note for note in report.notes)


def test_a_policy_whose_every_class_is_within_the_floor_is_never_consistent() -> None:
    """A check that did not run is not passed."""
    plan = make_plan(policy=Policy(noise=("int8-class rounding",)))

    assert judge(rows_at(0.0, 20, seed=5), plan).decision == "inconclusive"


# -- the zone above the floor --------------------------------------------------------------------


def zoned(**changes: Any) -> Plan:
    """A plan whose calibration tolerates 1.6 times its floor of 0.1."""
    channel = Channel(honest_scale=0.1, tolerated_scale=0.16, spread=0.0, learning_rate=1.0)
    zone = Zone(kappa=1.6, stacks=6, alike=3, risk=0.013, basis="test")
    return make_plan(
        calibration=make_calibration(text=channel, logprob=channel, zone=zone), **changes
    )


def test_a_stack_in_the_zone_is_accused_by_no_throw_of_the_probes() -> None:
    """Under the calibration that ships, at 1.7 times the floor: 20 of 20 were accused once."""
    card = load_card("smollm2-135m-instruct")
    calibration = load_calibration(card.name, card)
    policy = Policy(noise=tuple(c.name for c in calibration.classes if c.scale > 0.1))
    plan = make_plan(calibration=calibration, policy=policy, bank=card.columns)
    accused = 0
    for seed in range(20):
        rows = rows_at(0.112, 126, seed=seed, tokens=45)
        accused += any(judge(rows[:n], plan).decision == "inconsistent" for n in (38, 78, 126))

    assert accused == 0


def test_noise_above_the_zone_is_accused_still() -> None:
    """Power: at 1.9 times the end of the zone."""
    found = [judge(rows_at(0.3, 40, seed=s), zoned()).decision for s in range(20)]

    assert found.count("inconsistent") >= 18


def test_noise_in_the_zone_is_neither_certified_nor_accused_and_the_report_says_why() -> None:
    """Shown above the floor, and every departure excluded: no verdict on such a stack."""
    report = judge(rows_at(0.14, 90, seed=4, tokens=45), zoned())

    assert report.decision == "inconclusive"
    assert all(f.decision == "excluded" for f in report.findings if f.aspect == "noise")
    assert report.summary.startswith("noise above what was calibrated (0.1), and not ")
    assert any("above what any measured stack reaches" in note for note in report.notes)


def test_nothing_more_is_asked_of_a_stack_in_the_zone() -> None:
    """Once its noise is shown to lie between floor and end, more replies change nothing."""
    case = case_of(zoned(), Ledger(rows=tuple(rows_at(0.13, 300, seed=4, tokens=45))))

    assert is_between(case)
    assert not is_between(case_of(zoned(), Ledger(rows=tuple(rows_at(0.05, 40, seed=4)))))
    assert not is_between(case_of(zoned(), Ledger(rows=())))


def test_nothing_more_is_asked_where_the_card_hides_what_alone_is_open() -> None:
    """A class within the floor, and shares of one within what is tolerated: told before, and no
    reply changes it."""
    channel = zoned().calibration.text
    classes = tuple(
        NoiseClass(name=name, scale=scale, basis="test")
        for name, scale in (("mild", 0.09), ("middling", 0.13), ("coarse", 0.4))
    )

    def planned(**policy: Any) -> Plan:
        made = make_calibration(text=channel, classes=classes)
        return make_plan(policy=Policy(**policy), calibration=made)

    hides = planned(noise=("mild", "coarse"), routed={"middling": 0.9})
    able = planned(noise=("middling", "coarse"), routed={"coarse": 0.9})
    cases = {}
    for name, plan in (("hides", hides), ("able", able)):
        for replies in (1, 40):
            rows = Ledger(rows=tuple(rows_at(0.02, replies, seed=2, tokens=4)))
            cases[name, replies] = decided(case_of(plan, rows))[1]

    assert beyond_reach(hides) == ("mild", "shares of middling")
    assert beyond_reach(able) == ()
    assert tells_no_more(cases["hides", 40])
    assert not tells_no_more(cases["hides", 1])  # the coarse class is open yet
    assert not tells_no_more(cases["able", 1])


def test_a_class_within_the_zone_is_excluded_or_open_and_never_detected() -> None:
    """An honest stack may be as noisy as its builds."""
    mild = (NoiseClass(name="mild", scale=0.13, basis="test"),)
    channel = zoned().calibration.text
    plan = make_plan(
        policy=Policy(noise=("mild",)), calibration=make_calibration(text=channel, classes=mild)
    )
    loud, quiet = judge(rows_at(0.155, 200, seed=2), plan), judge(rows_at(0.02, 40, seed=2), plan)

    assert only(loud, "mild").decision == "undecided"
    assert "an honest stack may reach" in only(loud, "mild").detail
    assert only(quiet, "mild").decision == "excluded"


def test_both_errors_are_told_apart() -> None:
    """That of replies given a stack, and what is known of stacks."""
    (told,) = [note for note in judge(rows_at(0.05, 12, seed=1), zoned()).notes if "alpha" in note]

    assert "stays within 0.16, 1.6 times the largest that 6 measured stacks reach" in told
    assert "up to 1 in 7" in told
    assert "with 0.013, if logs of scales are normal (3 stacks of its arithmetic)" in told


def test_replies_longer_than_any_that_was_calibrated_are_said_to_be() -> None:
    """Of their later tokens nothing was measured."""
    notes = judge(rows_at(0.05, 12, seed=1), make_plan(max_tokens=200)).notes

    assert any("up to 200 tokens were asked for, and stacks measured on 30" in n for n in notes)
    assert not any("stacks measured on" in n for n in judge(rows_at(0.05, 12, seed=1)).notes)


def test_a_certificate_is_refused_while_replies_of_the_panel_are_noisy() -> None:
    """They are replies too: 12 of 4-bit noise beside ten good ones."""
    rows = rows_at(0.0, 10, seed=1, tokens=60)
    panel = [replace(row, panel=True) for row in rows_at(0.7, 12, seed=2, tokens=60)]
    panel = [replace(row, probe_id=f"t{n}") for n, row in enumerate(panel)]
    calm = [replace(row, text=rows[0].text) for row in panel]

    assert judge([*rows, *calm]).decision == "consistent"
    report = judge([*rows, *panel])
    assert report.decision == "inconclusive"
    assert any("tell templates apart are noisier" in note for note in report.notes)


@pytest.mark.parametrize(("ordinary", "panel"), [(2, 8), (1, 9), (9, 4)])
def test_replies_of_the_panel_are_none_that_a_verdict_rests_on(ordinary: int, panel: int) -> None:
    """`min_replies` counts what the evidence is of."""
    rows = rows_at(0.0, ordinary + panel, seed=1, tokens=60)
    rows[ordinary:] = [replace(row, panel=True) for row in rows[ordinary:]]

    assert judge(rows).decision == "inconclusive"


# -- what honest replies were measured to make of the bet ----------------------------------------


def with_certificate(**changes: Any) -> Plan:
    """A plan whose calibration holds what honest replies made of the bet."""
    calibration = make_calibration()
    largest = float(TEXT_SCALES[honest_scales(TEXT_SCALES, calibration.text)][-1])
    values: dict[str, Any] = {
        "replies": 5200, "stacks": ("a", "b"), "level": 0.99, "excess": 0.001,
        "largest_honest_scale": largest, "spread": 0.0, "learning_rate": 1.0,
    }  # fmt: skip
    measured = BetCertificate(**values | changes)
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


def test_noise_that_may_still_be_above_the_zone_is_not_said_to_lie_in_it() -> None:
    """Shown above the floor, and not yet bounded: what is open is said."""
    report = judge(rows_at(0.25, 3, seed=0), zoned())

    assert report.decision == "inconclusive"
    assert (report.noise_scale.lower or 0) > 0.1
    assert report.noise_scale.upper is None or report.noise_scale.upper > 0.16
    assert report.summary.startswith("still open: 4-bit-class rounding")
