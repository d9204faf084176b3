"""The verdict beside a control: what its replies guard against, and what stands in spite of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import NOWHERE
from fleets import write_folder
from reports import plain_finding
from simulate import (
    SHA,
    case_of,
    make_calibration,
    make_plan,
    replies,
    simulate_row,
)

from verifier.checks import ASPECTS
from verifier.checks.check import Case, above_floor
from verifier.config import Policy
from verifier.errors import ConfigError
from verifier.evidence.calibration import Channel, Lender, Provisional
from verifier.evidence.e_values import mix_log_e
from verifier.evidence.ledger import TEXT_SCALES, Ledger, Row
from verifier.files.run_folder import CONTROL_REPORT, read_json, write_json
from verifier.records import Control, Report
from verifier.verdict.control import (
    evidence_beside,
    judge_beside,
    narrowed,
    read_control,
    slack,
    stands_apart,
    waits_for_replies,
    with_replies,
    write_control,
)
from verifier.verdict.decide import decide_folder, decided

#: The floor of the calibration that ships.
FLOOR = Channel(honest_scale=0.0708, spread=0.0, learning_rate=1.0)
PLAN = make_plan(calibration=make_calibration(text=FLOOR))
NEEDED = math.log(1000)


@cache
def rows_of(
    scale: float, count: int, *, seed: int = 7, builds: tuple[str, ...] = ()
) -> tuple[Row, ...]:
    """Replies of a host of this noise scale, which truly serves `builds`."""
    rng = np.random.default_rng(seed)
    return tuple(simulate_row(rng, f"p{n}", scale=scale, builds=builds) for n in range(count))


def judged(rows: Sequence[Row], **at_hand: Any) -> tuple[Report, Case]:
    """The verdict on an endpoint alone."""
    case = case_of(PLAN, Ledger(rows=tuple(rows)), outcomes=replies(list(rows)), **at_hand)
    return decided(case)


def control_of(rows: Sequence[Row], finding: Any = None) -> Control:
    """A control with these replies; what was found of it is what they show, or as it is said."""
    report, case = judged(rows)
    control = Control(
        base_url=NOWHERE, model="m", finding=finding or report.decision, summary="as simulated",
        usage=report.usage,
    )  # fmt: skip
    return with_replies(control, case)


# -- beside a control that is consistent ---------------------------------------------------------


def test_a_floor_that_is_too_low_accuses_nobody_beside_a_control_that_is_as_noisy() -> None:
    """Both at 1.7 times the floor or more: the accusation does not stand with a voucher."""
    for scale in (0.12, 0.2):
        alone, case = judged(rows_of(scale, 120))
        beside = judge_beside(alone, control_of(rows_of(scale, 14, seed=1), "consistent"), case)

        if scale == 0.2:  # far above what is tolerated beside the floor
            assert alone.decision == "inconsistent"
        assert beside.decision != "inconsistent"
        assert not [f for f in beside.findings if f.decision == "detected"]


def test_what_is_withheld_says_why_and_what_was_needed() -> None:
    """Noise alone, a control as noisy, and how much evidence there is that they differ."""
    alone, case = judged(rows_of(0.2, 120))
    control = control_of(rows_of(0.2, 14, seed=1), "consistent")
    beside = judge_beside(alone, control, case)

    assert beside.summary.startswith(
        "nothing is held against the endpoint: it is not shown to be noisier than its control (log "
        "e -"
    )
    assert "6.9 is needed" in beside.summary
    assert "a floor that is too low would explain that" in beside.summary
    assert not [f for f in beside.findings if ASPECTS[f.aspect].role == "name"]
    assert beside.control is not None
    assert beside.control.noisier is not None
    assert beside.control.noisier < 0
    assert beside.control.text == ()
    assert evidence_beside(beside, control, case) < NEEDED


def test_four_bit_noise_stands_beside_a_quiet_control_after_two_replies() -> None:
    """The difference is shown as soon as the floor is passed."""
    alone, case = judged(rows_of(0.63, 2))
    control = control_of(rows_of(0.05, 10, seed=1))
    beside = judge_beside(alone, control, case)

    assert control.finding == "consistent"
    assert not stands_apart(alone, case)
    assert (beside.decision, beside.findings) == ("inconsistent", alone.findings)
    assert "noisier than its control, whatever the honest floor is" in beside.notes[-1]
    assert evidence_beside(beside, control, case) >= NEEDED


def test_a_build_by_its_own_column_needs_no_difference() -> None:
    """Nothing is said of the control's noise, though it is the endpoint's own."""
    alone, case = judged(rows_of(0.6, 3, builds=("int4-sym-g64",)))
    control = control_of(rows_of(0.6, 12, seed=1), "consistent")

    assert stands_apart(alone, case)
    assert replace(judge_beside(alone, control, case), control=None) == alone


def test_a_part_of_the_replies_needs_no_difference() -> None:
    """Most of them are quiet, and the rest are not: no floor makes such a mixture."""
    rows = (*rows_of(0.05, 40), *rows_of(0.9, 15, seed=2))
    rows = tuple(replace(row, probe_id=f"p{n}") for n, row in enumerate(rows))
    alone, case = judged(rows)

    assert alone.decision == "inconsistent"
    assert stands_apart(alone, case)


def test_an_honest_endpoint_is_as_it_is_alone() -> None:
    """Whatever its control does."""
    alone, case = judged(rows_of(0.05, 14))
    for scale in (0.05, 0.2):
        control = control_of(rows_of(scale, 14, seed=1), "consistent")
        assert replace(judge_beside(alone, control, case), control=None) == alone


def test_a_control_whose_replies_are_not_kept_is_said_to_guard_no_floor() -> None:
    """A folder of an older version: the verdict stands, with a note."""
    alone, case = judged(rows_of(0.63, 4))
    old = replace(control_of(rows_of(0.05, 10, seed=1)), text=(), replies=0)
    beside = judge_beside(alone, old, case)

    assert beside.decision == "inconsistent"
    assert beside.notes[-1].startswith("nothing is kept of the control's replies")


def test_an_undecided_control_is_compared_with_where_it_has_replies_enough() -> None:
    """Its noise is known then; one that broke off early vouches for nothing."""
    alone, case = judged(rows_of(0.2, 120))
    many = control_of(rows_of(0.2, 14, seed=1), "inconclusive")
    few = control_of(rows_of(0.2, 4, seed=1), "inconclusive")

    assert judge_beside(alone, many, case).decision == "inconclusive"
    assert judge_beside(alone, few, case).decision == "inconsistent"
    assert "vouches for nothing" in judge_beside(alone, few, case).notes[-1]


def test_replies_are_waited_for_where_they_may_tell_the_two_apart() -> None:
    """An accusation by noise alone, and a quiet control of few replies; nothing else."""
    alone, accused = judged(rows_of(0.25, 60))
    quiet = control_of(rows_of(0.1, 10, seed=1), "consistent")
    _, honest = judged(rows_of(0.05, 14))
    _, clear = judged(rows_of(0.63, 4))
    _, named = judged(rows_of(0.6, 3, builds=("int4-sym-g64",)))
    many = control_of(rows_of(0.2, 60, seed=1), "consistent")

    assert alone.decision == "inconsistent"
    assert waits_for_replies(quiet, accused)
    assert not any(waits_for_replies(quiet, case) for case in (honest, clear, named))
    assert not waits_for_replies(many, accused)
    assert not waits_for_replies(replace(quiet, finding="inconsistent"), accused)
    assert not waits_for_replies(replace(quiet, text=(), replies=0), accused)


# -- beside a control that differs, too ----------------------------------------------------------


def test_a_control_that_differs_by_far_less_withdraws_nothing() -> None:
    """Four-bit noise beside a control a little above the floor."""
    alone, case = judged(rows_of(0.63, 8))
    control = control_of(rows_of(0.12, 60, seed=1), "inconsistent")
    beside = judge_beside(alone, control, case)

    assert alone.decision == beside.decision == "inconsistent"
    assert beside.summary == alone.summary
    (four_bit,) = [f for f in beside.findings if f.name == "4-bit-class rounding"]
    assert four_bit.decision == "detected"
    assert "the control differs from the published weights too, by less" in beside.notes[-1]
    assert evidence_beside(beside, control, case) >= NEEDED


def test_what_the_control_may_be_itself_is_not_held_against_the_endpoint() -> None:
    """Beside a reference that is far off the two differ: that stands, a class of both does not."""
    alone, case = judged(rows_of(1.0, 60))
    control = control_of(rows_of(0.4, 60, seed=1))
    beside = judge_beside(alone, control, case)

    assert control.finding == "inconsistent"
    assert beside.decision == "inconsistent"
    assert beside.summary.startswith(
        "the endpoint differs from the published weights by more than its control does: log e "
    )
    assert not [f for f in beside.findings if f.name == "4-bit-class rounding"
                and f.decision == "detected"]  # fmt: skip


@pytest.mark.parametrize("kept", [True, False])
def test_a_control_that_differs_as_much_withdraws_every_accusation(kept: bool) -> None:
    """And so does one of which no replies are kept."""
    alone, case = judged(rows_of(0.63, 8))
    control = control_of(rows_of(0.63, 8, seed=1))
    beside = judge_beside(alone, control if kept else replace(control, text=()), case)

    assert control.finding == "inconsistent"
    assert beside.decision == "inconclusive"
    assert beside.summary.startswith("nothing is held against the endpoint: the control, too")
    assert not [f for f in beside.findings if f.decision == "detected"]
    assert evidence_beside(beside, control, case) < NEEDED


def test_what_the_endpoints_own_words_contradict_stays_detected() -> None:
    """Forged log-probabilities, samples, counts: no reference is needed for that."""
    alone, case = judged(rows_of(0.63, 8))
    held = [name for name, aspect in ASPECTS.items() if aspect.without_reference]
    found = tuple(replace(plain_finding("detected"), aspect=name) for name in held)
    control = control_of(rows_of(0.63, 8, seed=1))
    beside = judge_beside(replace(alone, findings=found), control, case)

    assert {"forged", "samples", "usage"} <= set(held)
    assert beside.findings == found


def test_before_the_control_is_judged_nothing_counts() -> None:
    """Neither in the report, nor among several."""
    alone, case = judged(rows_of(0.63, 8))
    control = replace(control_of(rows_of(0.05, 2)), finding="pending")

    assert judge_beside(alone, control, case).decision == "inconclusive"
    assert evidence_beside(alone, control, case) == 0
    assert evidence_beside(alone, None, case) == case.log_e


# -- under a provisional floor -------------------------------------------------------------------

#: A floor of 0.14, and tolerated up to 0.28, on no card's own stacks.
LENT = PLAN.model_copy(
    update={
        "calibrated": make_calibration(
            text=Channel(
                honest_scale=0.14, tolerated_scale=0.2818382931264455, spread=0.0, learning_rate=1.0
            ),
            provisional=Provisional(
                lenders=(Lender(card="other", tensors_sha256=SHA),), kappa=1.59
            ),
        ),
        "policy": Policy(noise=("another model",)),
    }
)
CONTROL_SAYS = "the floor is the noise of its control, times 1.6: "


def lent_beside(target: float, control: float, *, seed: int = 7, count: int = 46) -> Report:
    """The verdict on a host of one noise scale beside a control of another."""
    alone, case = decided(case_of(LENT, Ledger(rows=rows_of(target, count, seed=seed))))
    own, of_control = decided(
        case_of(LENT, Ledger(rows=rows_of(control, count, seed=seed + 1000)),
                outcomes=replies(list(rows_of(control, count, seed=seed + 1000))))
    )  # fmt: skip
    found = Control(base_url=NOWHERE, model="m", finding=own.decision, summary="", usage=own.usage)
    return judge_beside(alone, with_replies(found, of_control), case)


def test_a_control_narrows_a_provisional_floor_to_its_own_noise() -> None:
    """Power: four times the control's noise, and still finer than of 4 bits; alone no verdict."""
    alone, _ = decided(case_of(LENT, Ledger(rows=rows_of(0.25, 46))))
    beside = lent_beside(0.25, 0.06)

    assert alone.decision == "inconclusive"
    assert beside.decision == "inconsistent"
    assert beside.summary.startswith("provisional: nobody has calibrated tiny; " + CONTROL_SAYS)
    assert "noisier than its control, and than 0.14: evidence log e" in beside.summary
    assert beside.notes[-1].startswith("the accusation rests on the comparison with the control")


@pytest.mark.parametrize(
    ("target", "control"), [(0.14, 0.01), (0.12, 0.08), (0.2, 0.13), (0.06, 0.06)]
)
def test_a_control_accuses_nobody_within_its_own_noise_or_the_floor(
    target: float, control: float
) -> None:
    """Level: at the end of the floor beside a control that is far quieter, and at 1.5 times it."""
    found = [lent_beside(target, control, seed=seed, count=30) for seed in range(5)]

    assert "inconsistent" not in {report.decision for report in found}


def test_noise_as_of_four_bits_takes_the_control_too() -> None:
    """Beside a quiet one it stands, beside one as noisy it does not."""
    stands, withheld = lent_beside(0.63, 0.05), lent_beside(0.63, 0.63)

    assert stands.decision == "inconsistent"
    assert CONTROL_SAYS in stands.summary
    assert withheld.decision == "inconclusive"
    assert withheld.summary.startswith("provisional: nobody has calibrated tiny; ")


def test_evidence_beside_a_control_is_shared_under_a_provisional_floor() -> None:
    """Half and half: the mean of two e-values; and both are asked on while it may tell."""
    _, case = decided(case_of(LENT, Ledger(rows=rows_of(0.25, 10))))
    report = case.report
    assert report is not None
    control = with_replies(
        Control(base_url=NOWHERE, model="m", finding="consistent", summary="", usage=None),
        decided(case_of(LENT, Ledger(rows=rows_of(0.06, 10, seed=3))))[1],
    )
    narrow = narrowed(control, case)
    assert narrow is not None

    assert evidence_beside(report, control, case) == pytest.approx(
        mix_log_e([(0.5, case.log_e), (0.5, narrow)])
    )
    assert narrowed(replace(control, finding="inconclusive"), case) is None
    assert narrowed(control, judged(rows_of(0.25, 10))[1]) is None
    assert slack(case) == 1.6
    if evidence_beside(report, control, case) < NEEDED:
        assert waits_for_replies(control, case) is (above_floor(case, case.interval))


# -- in the run folder ---------------------------------------------------------------------------


def test_a_verdict_beside_a_control_is_decided_anew_from_its_folder(tmp_path: Path) -> None:
    """What the difference needs lies there; a report does not repeat it."""
    write_folder(tmp_path / "run", scale=0.8, count=14)
    write_control(tmp_path / "run", control_of(rows_of(0.05, 10)))
    report = decide_folder(tmp_path / "run")

    assert read_control(tmp_path / "run") == control_of(rows_of(0.05, 10))
    assert report.decision == "inconsistent"
    assert read_json(tmp_path / "run" / "report.json")["control"]["text"] == []
    assert len(read_json(tmp_path / "run" / CONTROL_REPORT)["text"]) == len(TEXT_SCALES)


@pytest.mark.parametrize("text", [[0.0] * 3, ["x"] * 41, [1e13] * 41])
def test_damaged_replies_of_a_control_are_refused(tmp_path: Path, text: list[Any]) -> None:
    """By the key."""
    write_folder(tmp_path / "run", scale=0.8, count=14)
    write_control(tmp_path / "run", control_of(rows_of(0.05, 10)))
    kept: Mapping[str, Any] = read_json(tmp_path / "run" / CONTROL_REPORT)
    write_json(tmp_path / "run" / CONTROL_REPORT, dict(kept) | {"text": text})

    with pytest.raises(ConfigError, match=r"control\.json: text"):
        decide_folder(tmp_path / "run")


def test_the_slack_is_that_of_the_calibration_where_that_is_more() -> None:
    """An honest stack may be as far above the floor as is tolerated."""
    _, case = judged(rows_of(0.05, 2))

    assert slack(case) >= 1.6
    assert PLAN.card_sha256 == SHA
