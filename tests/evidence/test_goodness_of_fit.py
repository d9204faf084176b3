"""Goodness of fit: its level on hosts that a column describes, its power, and known answers.

The model of these tests is one whose likelihood is known in closed form: a reply is four numbers
from a normal distribution of mean 0, and scales up to 1 are honest.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from verifier.evidence.goodness_of_fit import Fit, judge_fits, log_e_of_misfit

Array = NDArray[np.float64]
SCALES: Array = 10.0 ** np.linspace(-1, 1, 41)
HONEST = SCALES <= 1.0 + 1e-9


def rows_at(scale: float, count: int, *, seed: int) -> Array:
    """Log density [n, S] of replies of that scale, under each."""
    replies = scale * np.random.default_rng(seed).normal(size=(count, 4))
    cells = -0.5 * (replies[:, :, None] / SCALES) ** 2 - np.log(SCALES) - 0.5 * np.log(2 * np.pi)
    return np.asarray(cells.sum(axis=1))


def fit_of(rows: Array) -> Fit:
    (found,) = judge_fits({"a": rows}, SCALES, HONEST, tokens=4 * len(rows))
    return found


def test_a_column_that_describes_the_host_rarely_fails() -> None:
    """At the edge of honest serving, looked at after every reply."""
    failed = 0
    for seed in range(200):
        rows = rows_at(1.0, 24, seed=seed)
        failed += any(fit_of(rows[:n]).fails(0.05) for n in range(1, 25))

    assert failed <= binom.ppf(0.999, 200, 0.05)


def test_a_column_that_does_not_describe_the_host_fails() -> None:
    """At twice the honest scale, within 25 replies nearly always."""
    assert sum(fit_of(rows_at(2.0, 25, seed=s)).fails(0.001) for s in range(40)) >= 38


def test_the_divergence_is_that_of_two_normals() -> None:
    """Per number log(1/3) + (9 - 1)/2 = 2.90 nats, from scale 3 to scale 1: Kullback-Leibler."""
    found = fit_of(rows_at(10**0.5, 4000, seed=1))  # of the grid; the nearest to 3

    assert found.divergence == pytest.approx(-math.log(10**0.5) + (10 - 1) / 2, rel=0.05)
    assert found.scale == pytest.approx(10**0.5)


def test_columns_come_best_first() -> None:
    """By the evidence against each, and honest serving of the best has nothing against it."""
    columns = {"bad": rows_at(5.0, 20, seed=1), "good": rows_at(0.5, 20, seed=1)}
    columns |= {"middling": rows_at(2.0, 20, seed=1)}
    found = judge_fits(columns, SCALES, HONEST, tokens=80)

    assert [fit.column for fit in found] == ["good", "middling", "bad"]
    assert found[0].divergence == 0
    assert found[0].log_e < 0


# -- a part of the replies ------------------------------------------------------------------------


def test_replies_that_one_honest_scale_describes_rarely_misfit() -> None:
    """Level of the bet on all and on a part, looked at after every reply."""
    failed = 0
    for seed in range(100):
        rows = rows_at(1.0, 16, seed=1000 + seed)
        failed += any(log_e_of_misfit(rows[:n], HONEST) >= math.log(20) for n in range(1, 17))

    assert failed <= binom.ppf(0.999, 100, 0.05)


def test_a_part_of_the_replies_that_misfits_shows() -> None:
    """Power: a quarter of the replies at three times the scale, where one scale for all is slow."""
    found = []
    for seed in range(40):
        rows = np.concatenate([rows_at(0.3, 15, seed=seed), rows_at(3.0, 5, seed=500 + seed)])
        found.append(log_e_of_misfit(rows, HONEST) >= math.log(20))

    assert sum(found) >= 38


def test_one_reply_has_the_misfit_written_out() -> None:
    """Half on one scale above for all rows, half on shares, cut at a factor of 1,000."""
    rows = rows_at(2.0, 1, seed=3)
    above, below = rows[0][~HONEST], rows[0][HONEST]
    whole = np.logaddexp.reduce(above) - math.log(len(above)) - below.max()
    ratio = math.exp(np.logaddexp.reduce(above) - math.log(len(above)) - below.max())
    found = log_e_of_misfit(rows, HONEST)

    shares = 2 * math.exp(found) - math.exp(whole)  # the mean of 1 - share + share x ratio
    assert 1 < shares < ratio
    assert log_e_of_misfit(rows[:0], HONEST) == 0.0
