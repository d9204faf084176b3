"""Whether reports join the evidence, and which fault they show: by hand, and at their level."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hosts import rows_at
from simulate import make_calibration

from verifier.evidence.calibration import Calibration, Estimate, Stack
from verifier.evidence.e_values import Interval
from verifier.evidence.ledger import Ledger, Reported, Row
from verifier.evidence.reported import (
    AFTER,
    BEFORE,
    GIVEN,
    PENALIZED,
    PROBABILITIES,
    SCALED,
    UNEVEN,
    UNRELATED,
)
from verifier.evidence.reporting import Reports, channel_ratio, judge_reports

CALIBRATION = make_calibration()
TEXT = Interval(estimate=0.05, lower=0.03, upper=0.1)
KINDS = (BEFORE, AFTER, GIVEN, SCALED, PENALIZED, UNRELATED, UNEVEN)
QUIET = dict.fromkeys(KINDS, -50.0)


def told(row: Row, **found: Any) -> Row:
    """A row of right reports, changed."""
    kept = {"given": 30, "named": 30, "listed": 30, "gains": QUIET} | found
    return replace(row, reported=Reported(**kept))


def judge(
    *found: dict[str, Any], scale: float = 0.05, text: Interval | None = TEXT, **more: Any
) -> Reports:
    """What is said of replies whose reports are off by `scale`, with these statistics each."""
    rows = rows_at(0.05, len(found), seed=1, logprob_scale=scale)
    made = tuple(told(row, **one) for row, one in zip(rows, found, strict=True))
    return judge_reports(
        Ledger(rows=tuple(replace(row, **more) for row in made)), text, CALIBRATION, level=0.001
    )


def named(reports: Reports) -> str:
    return "" if reports.fault is None else reports.fault.name


def gaining(**gains: float) -> dict[str, Any]:
    return {"gains": QUIET | gains}


# -- what joins ----------------------------------------------------------------------------------


def test_right_reports_of_a_scale_that_the_text_allows_join() -> None:
    """And show no fault."""
    found = judge({}, {}, {})

    assert found.joins
    assert (found.fault, found.rows) == (None, 3)
    assert found.allowed == pytest.approx(0.1 * 10 ** (1 / 20))


def test_rows_of_an_older_version_are_judged_by_their_scale_alone() -> None:
    """They have neither counts nor gains."""
    rows = tuple(rows_at(0.05, 3, seed=1, logprob_scale=0.05))
    loud = tuple(rows_at(0.05, 3, seed=1, logprob_scale=0.8))
    found, far = (
        judge_reports(Ledger(rows=some), TEXT, CALIBRATION, level=0.001) for some in (rows, loud)
    )

    assert found.joins
    assert not far.joins


@pytest.mark.parametrize("upper", [0.1, 0.3, 0.63, None])
def test_a_scale_beyond_what_the_text_allows_does_not_join(upper: float | None) -> None:
    """Nor any while the text has no upper end; a name waits until both intervals are apart."""
    text = Interval(estimate=0.05, lower=0.03, upper=upper)
    found = judge({}, {}, {}, scale=0.5, text=text)

    assert found.joins == (upper == 0.63)
    assert named(found) == (
        "log-probabilities that its text does not bear out" if upper in (0.1, 0.3) else ""
    )


def test_reports_beside_no_text_do_not_join() -> None:
    """There is nothing that bears them out."""
    assert not judge({}, {}, text=None).joins


def test_reports_that_are_quieter_than_the_text_join() -> None:
    """They accuse nobody, so nothing is lost by that."""
    found = judge({}, {}, scale=0.005, text=Interval(estimate=0.6, lower=0.5, upper=0.7))

    assert found.joins
    assert found.log_e < 0


def test_the_ratio_of_the_channels_is_that_of_bounded_stacks() -> None:
    """A stack at the top of the text's grid is left out, and so is one without reports."""

    def stack(text: float, logprob: float | None, *, upper: float | None) -> Stack:
        about = None if logprob is None else Estimate(estimate=logprob, lower=0.01, upper=9.0)
        return Stack(
            name="s", role="variant", replies=8, tokens=240, logprob=about,
            text=Estimate(estimate=text, lower=0.01, upper=upper),
        )  # fmt: skip

    def ratio(*stacks: Stack) -> float:
        return channel_ratio(
            Calibration.model_validate(CALIBRATION.model_dump() | {"stacks": stacks})
        )

    assert ratio(stack(0.2, 0.3, upper=0.4), stack(1.0, 3.2, upper=None)) == pytest.approx(1.5)
    assert ratio(stack(0.2, 0.1, upper=0.4), stack(0.2, None, upper=0.4)) == 1.0


# -- which fault ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alike", "apart", "copied", "fillers", "misranked"])
def test_what_no_noise_brings_about_is_named_from_two_positions_on(kind: str) -> None:
    """One is enough not to be believed."""
    one, two = judge({kind: 1}, {}, {}), judge({kind: 1}, {kind: 1}, {})

    assert not one.joins
    assert not two.joins
    assert (one.fault is None, two.fault is None) == (True, False)
    assert two.fault is not None
    assert (two.fault.replies, two.fault.of, two.fault.log_e) == (2, 3, None)


def test_the_evidence_of_gains_by_hand() -> None:
    """Half on all replies together, half on single ones by their place."""
    found = judge(gaining(before=3.0), gaining(before=8.0))
    together, single = math.exp(11.0), math.exp(3.0) / 2 + math.exp(8.0) / 6

    assert named(found) == "log-probabilities of the position before"
    assert found.fault is not None
    assert found.fault.log_e is not None
    assert found.fault.log_e == pytest.approx(math.log((together + single) / 2))
    assert (found.fault.replies, found.fault.of) == (2, 2)


def test_one_reply_of_many_is_enough() -> None:
    """Of twenty that are right, the ninth."""
    found = judge(*[gaining(uneven=30.0) if n == 8 else {} for n in range(20)])

    assert named(found) == "log-probabilities of which only a part is right"
    assert found.fault is not None
    assert found.fault.replies == 1


def test_a_fault_that_is_likelier_than_noise_is_not_believed_and_not_named() -> None:
    """Until it is settled."""
    found = judge(gaining(after=1.5))

    assert (found.joins, found.fault) == (False, None)


def test_a_fault_that_does_not_lead_has_no_name() -> None:
    """Each is likelier than noise, and neither is likelier than the other."""
    found = judge(gaining(given=40.0, uneven=38.0))

    assert named(found) == "log-probabilities that no noise explains"


def test_two_values_of_the_token_given_are_what_is_said_of_a_value_that_fits_nothing() -> None:
    """The count says more than the likelihood."""
    found = judge(gaining(given=90.0) | {"apart": 9})

    assert named(found) == "two log-probabilities for the token that is given"


@pytest.mark.parametrize(
    ("slope", "says"),
    [
        (0.434, "a temperature of 2.3 or logarithms of base 10"),
        (1.44, "a temperature of 0.69 or logarithms of base 2"),
        (1.25, "a temperature of 0.8"),
    ],
)
def test_scaled_values_are_said_to_be_what_scales_so(slope: float, says: str) -> None:
    """By the slope that they show."""
    found = judge(gaining(scaled=90.0) | {"slope": slope})

    assert found.fault is not None
    assert found.fault.said.endswith(says)


@pytest.mark.parametrize(
    ("step", "rounding", "name"),
    [
        (0.1, 0.029, "log-probabilities rounded to steps of 0.1"),
        (0.0, 0.04, "log-probabilities rounded to bfloat16"),
        (0.0, 0.01, ""),
        (0.01, 0.003, ""),
        (None, 0.0, ""),
    ],
)
def test_rounding_is_a_fault_where_it_adds_to_the_noise(
    step: float | None, rounding: float, name: str
) -> None:
    """A fine one is none."""
    found = judge(*[{"step": step, "rounding": rounding}] * 3)

    assert named(found) == name
    assert found.joins == (not name)


def test_one_reply_off_the_grid_is_no_rounding() -> None:
    """The habit is the endpoint's."""
    found = judge({"step": 0.1, "rounding": 0.029}, {"step": None})

    assert found.joins


def test_the_numbers_of_another_reply_are_known_again() -> None:
    """Short replies have no digest, and are not taken for each other."""
    same, short = judge({"digest": "a"}, {"digest": "a"}, {"digest": "b"}), judge({}, {})

    assert named(same) == "log-probabilities of another reply"
    assert short.joins


def test_probabilities_are_named_by_the_reason_why_they_cannot_be_read() -> None:
    """They never come as far as a cell."""
    found = judge({}, {}, logprob=None, reported=None, logprob_problem=f"no {PROBABILITIES}")

    assert named(found) == "probabilities in the place of their logarithms"


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.05, 0.2])
def test_right_reports_are_believed_and_never_faulted(scale: float) -> None:
    """Looking after each of eight replies of 8-bit-like and honest hosts."""
    text = Interval(estimate=scale, lower=scale / 2, upper=scale * 2)
    for seed in range(10):
        rows = rows_at(scale, 8, seed=seed, tokens=20, habit="right")
        for n in range(1, 9):
            found = judge_reports(Ledger(rows=tuple(rows[:n])), text, CALIBRATION, level=0.001)
            assert found.joins
            assert found.fault is None


def test_rows_without_reports_are_nothing_to_believe_or_doubt() -> None:
    """Their tokens' ranks, where they are told, are judged as before."""
    found = judge_reports(
        Ledger(rows=tuple(rows_at(0.05, 2, seed=1))), TEXT, CALIBRATION, level=0.001
    )

    assert (found.rows, found.interval, found.joins, found.log_e) == (0, None, True, 0.0)
    assert np.isfinite(found.allowed or 0)
