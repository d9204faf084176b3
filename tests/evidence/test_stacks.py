"""Stacks: what known ones say of a new one, the zone above the floor, and other references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulate import make_calibration

from verifier.evidence.calibration import Calibration, Channel, Estimate, Measured, Stack
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.evidence.stacks import (
    LEAST_KAPPA,
    TRUSTED,
    above_floor,
    end_of_zone,
    predict_above,
    predict_scale,
    read_beside,
    with_zone,
)


def stack(name: str, scale: float, *, role: Any = "calibration") -> Stack:
    """An honest stack of which both channels show this scale."""
    about = Estimate(estimate=scale, lower=scale * 0.9, upper=scale * 1.1)
    return Stack(name=name, role=role, replies=32, tokens=1400, text=about, logprob=about)


def calibration(*stacks: Stack, **changes: Any) -> Calibration:
    """One with these honest stacks beside the known variants."""
    made = make_calibration(**changes)
    return made.model_copy(update={"stacks": (*stacks, *made.stacks)})


# -- level: what is predicted of a new stack -------------------------------------------------------


@pytest.mark.parametrize("known", [3, 6])
def test_a_new_stack_stays_below_its_prediction_as_often_as_promised(known: int) -> None:
    """Stacks drawn from a log-normal family, 2,000 times, at 95 %."""
    rng = np.random.default_rng(known)
    below = 0
    for _ in range(2000):
        scales = np.exp(rng.normal(-3, 0.2, known + 1))
        predicted = predict_scale(list(scales[:-1]), coverage=0.95)
        assert predicted is not None
        below += scales[-1] <= predicted

    assert below >= 1900 - 4 * math.sqrt(2000 * 0.95 * 0.05)


# -- power -----------------------------------------------------------------------------------------


def test_more_stacks_predict_more_sharply() -> None:
    """Three say next to nothing at 99.9 %; a dozen of the same spread do."""
    few, many = [0.045, 0.05, 0.056], [0.045, 0.05, 0.056] * 4

    assert (predict_scale(few) or 0) > 0.5
    assert (predict_scale(many) or 1) < 0.08


# -- known answers ---------------------------------------------------------------------------------


def test_the_prediction_is_that_of_students_t() -> None:
    """Mean and spread of the logs by hand."""
    logs = np.log([0.045, 0.05, 0.056])
    width = logs.std(ddof=1) * math.sqrt(4 / 3)
    wanted = math.exp(logs.mean() + stats.t.ppf(0.9, 2) * width)

    assert predict_scale([0.045, 0.05, 0.056], coverage=0.9) == pytest.approx(wanted)
    assert predict_above([0.045, 0.05, 0.056], wanted) == pytest.approx(0.1)
    assert predict_above([0.05, 0.05], 0.1) is None
    assert predict_scale([0.05]) is None
    assert (predict_above([0.05] * 3, 0.05), predict_above([0.05] * 3, 0.04)) == (0.0, 1.0)


def test_the_zone_ends_at_the_root_of_two_floors_at_least() -> None:
    """Where stacks predict nothing, or less."""
    end, basis = end_of_zone(0.0708, [], [0.13, 0.3], TEXT_SCALES)

    assert 0.0708 * LEAST_KAPPA <= end <= 0.0708 * LEAST_KAPPA * 10**0.05
    assert "root of 2" in basis
    assert end_of_zone(0.0708, [0.05] * 5, [0.13], TEXT_SCALES)[0] == end


def test_the_zone_reaches_what_stacks_predict_and_at_most_half_way_to_a_fault() -> None:
    """Half way in log scale; a class within the least zone is none of it."""
    spread = [0.03, 0.06, 0.04, 0.055, 0.05]
    predicted = predict_scale(spread)
    assert predicted is not None
    assert 0.12 < predicted < 0.5
    far, said = end_of_zone(0.0708, spread, [0.08, 3.0], TEXT_SCALES)
    near, why = end_of_zone(0.0708, spread, [0.08, 0.3], TEXT_SCALES)

    assert predicted <= far <= predicted * 10**0.05
    assert "predicted from 5" in said
    assert math.sqrt(0.0708 * 0.3) <= near <= math.sqrt(0.0708 * 0.3) * 10**0.05
    assert "half way" in why


def test_the_zone_is_of_the_grid_and_never_all_of_it() -> None:
    """Something must be left to accuse of."""
    end, _ = end_of_zone(0.8, [], [], TEXT_SCALES)

    assert end == TEXT_SCALES[-2]


def test_a_calibration_says_its_zone_and_how_many_stacks_that_rests_on() -> None:
    """Those in the arithmetic of the noisiest speak for a new one."""
    found = with_zone(
        calibration(
            stack("float32-batch32", 0.01), stack("bfloat16-batch32", 0.09),
            stack("vllm-bfloat16-batch32", 0.08), stack("bfloat16-batch1", 0.085, role="held out"),
        ),
        TEXT_SCALES, LOGPROB_SCALES,
    )  # fmt: skip
    zone = found.zone
    assert zone is not None

    assert (zone.stacks, zone.alike) == (4, 3)
    assert found.text.tolerated == pytest.approx(found.text.honest_scale * zone.kappa)
    assert found.text.tolerated >= 0.1 * LEAST_KAPPA
    assert zone.risk == pytest.approx(predict_above([0.09, 0.08, 0.085], found.text.tolerated))
    assert found.logprob.tolerated >= 0.1 * LEAST_KAPPA


def test_a_held_out_stack_above_the_floor_is_named() -> None:
    """By its estimate, in either channel; the floor of these is 0.1."""
    quiet = stack("bfloat16-batch1", 0.09, role="held out")
    loud = stack("bfloat16-batch8", 0.11, role="held out")
    by_words = quiet.model_copy(update={"name": "float16-batch1", "logprob": loud.logprob})

    assert above_floor(calibration(quiet)) == ()
    assert above_floor(calibration(quiet, loud, by_words)) == ("bfloat16-batch8", "float16-batch1")
    assert above_floor(calibration(stack("bfloat16-batch2", 0.2))) == ()  # it is what set the floor


def test_a_floor_above_what_is_tolerated_is_refused() -> None:
    """It would accuse what was measured."""
    with pytest.raises(ValueError, match="tolerated_scale"):
        Channel(honest_scale=0.1, tolerated_scale=0.05, spread=0.0, learning_rate=1.0)


# -- another reference -----------------------------------------------------------------------------

MEASURED = Measured(engine="transformers", dtype="float32", top_logprobs=5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_reference_as_fine_as_the_calibrated_one_changes_nothing(dtype: str) -> None:
    """Whatever engine it is of."""
    made = calibration(measured=MEASURED)
    found = read_beside(made, {"engine": "vllm", "dtype": dtype})

    assert (found.why, found.calibration) == ("", made)


def test_a_coarser_reference_is_not_held_against_the_host() -> None:
    """Its own rounding is added to what is tolerated, as variances add."""
    made = calibration(stack("bfloat16-batch32", 0.06), measured=MEASURED)
    found = read_beside(made, {"engine": "vllm", "dtype": "bfloat16"})

    assert found.calibration.text.tolerated == pytest.approx(math.hypot(0.1, 0.066))
    assert found.calibration.logprob.tolerated == pytest.approx(math.hypot(0.1, 0.066))
    assert found.calibration.text.honest_scale == 0.1
    assert found.why == "scored by a reference in bfloat16 (vllm), calibrated for one in float32"


def test_a_reference_of_unknown_precision_is_taken_for_as_noisy_as_the_floor() -> None:
    """A server need not say what it computes in."""
    made = calibration(stack("bfloat16-batch32", 0.06), measured=MEASURED)
    found = read_beside(made, {"engine": "remote"})

    assert found.calibration.text.tolerated == pytest.approx(math.hypot(0.1, 0.1))
    assert "unknown precision" in found.why


def test_a_trusted_host_is_as_noisy_as_any_stack_and_so_is_who_is_held_to_it() -> None:
    """The noise of both is no noise above that of honest stacks, whatever is on record."""
    for made in (calibration(measured=MEASURED), calibration()):
        found = read_beside(made, {"engine": TRUSTED})

        assert found.calibration.text.honest_scale == pytest.approx(math.hypot(0.1, 0.1))
        assert found.calibration.text.tolerated >= found.calibration.text.honest_scale
        assert "trusted host" in found.why


@pytest.mark.parametrize(
    ("engine", "attention", "why"),
    [("transformers", "sdpa", ""), ("transformers", "eager", "(transformers, eager), calibrated"),
     ("vllm", "sdpa", "(vllm, sdpa), calibrated")],
)  # fmt: skip
def test_kernels_count_where_rounding_is_coarse(engine: str, attention: str, why: str) -> None:
    """Two references in bfloat16 differ by as much as two hosts do; two in float32 do not."""
    measured = Measured(engine="transformers", dtype="bfloat16", attention="sdpa", top_logprobs=5)
    made = calibration(stack("bfloat16-batch32", 0.06), measured=measured)
    found = read_beside(made, {"engine": engine, "dtype": "bfloat16", "attention": attention})
    fine = read_beside(made, {"engine": engine, "dtype": "float32", "attention": attention})

    assert why in found.why
    assert bool(found.why) == bool(why)
    assert (found.calibration.text.tolerated > 0.1) == bool(why)
    assert fine.why == ""


def test_nothing_is_said_where_nothing_is_on_record() -> None:
    """Of the calibration, or of what scored."""
    assert read_beside(calibration(), {"engine": "vllm", "dtype": "bfloat16"}).why == ""
    assert read_beside(calibration(measured=MEASURED), {}).why == ""
