"""How noisy one build is beside another: the ratio of their scales, and its interval."""

from __future__ import annotations

import numpy as np

from verifier.evidence.ledger import TEXT_SCALES
from verifier.lab.bench.roundings import peak_scales, ratio_of_scales, tabulate_roundings


def rows_around(scale: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows [n, S] whose likelihoods peak around a scale, a little off in each."""
    off = rng.normal(0, 0.2, count)
    away = np.log(TEXT_SCALES)[None] - np.log(scale) - off[:, None]
    return -8 * away**2


# -- level -------------------------------------------------------------------------------------


def test_the_interval_holds_the_ratio() -> None:
    """At 95 %, less what a bootstrap of 40 lacks: 100 pairs of builds."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng([7, seed])
        _, lower, upper = ratio_of_scales(
            rows_around(0.3, 40, rng), rows_around(0.6, 40, rng), TEXT_SCALES, seed=seed
        )
        held += lower <= 0.5 <= upper

    assert held >= 86


# -- power -------------------------------------------------------------------------------------


def test_half_the_noise_is_told_from_as_much() -> None:
    """By 40 replies."""
    rng = np.random.default_rng(2)
    _, _, upper = ratio_of_scales(
        rows_around(0.3, 40, rng), rows_around(0.6, 40, rng), TEXT_SCALES, seed=1
    )

    assert upper < 0.7


# -- known answer ------------------------------------------------------------------------------


def test_the_peak_of_a_parabola_lies_between_the_points() -> None:
    """And at the ends of the grid on a point."""
    at = np.log(0.33)

    totals = np.array([-((np.log(TEXT_SCALES) - at) ** 2), TEXT_SCALES, -TEXT_SCALES])

    np.testing.assert_allclose(peak_scales(totals, TEXT_SCALES), [0.33, 1.0, 0.01])


def test_a_build_is_as_noisy_as_itself() -> None:
    """In every resample, since these are paired."""
    rows = rows_around(0.5, 10, np.random.default_rng(1))

    assert ratio_of_scales(rows, rows, TEXT_SCALES, seed=1) == (1.0, 1.0, 1.0)


def test_the_table_shows_each_build() -> None:
    """The plain one without an interval of its own."""
    one = {"replies": 48, "scale": 0.6, "output_error": 0.01}
    made = tabulate_roundings(
        {
            "builds": [
                one | {"build": "int4-asym-g64", "ratio": 1.0, "lower": 1.0, "upper": 1.0},
                one | {"build": "gptq-asym-g64", "ratio": 0.8, "lower": 0.7, "upper": 0.9},
            ]
        }
    )

    assert "| int4-asym-g64 | 48 | 0.6 | 1 | 0.01 |" in made
    assert "| gptq-asym-g64 | 48 | 0.6 | 0.80 (0.70 to 0.90) | 0.01 |" in made
