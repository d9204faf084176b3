"""A certificate of the noise bet: what honest replies make of it, measured without a model.

The ratio of a reply is how much likelier noise above what is honest makes it than noise at the
largest honest scale, counted CAP-fold at most. Held-out honest replies bound its mean by 1 + d;
then an audit of n replies that accuses once the product of ratios reaches 1/alpha does so of an
honest host with probability at most alpha (1 + d)^n (Ville 1939), whatever the noise is made of.
Assumptions: the host's replies are drawn as the measured ones were, independently. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array, Mask
from verifier.evidence.e_values import log_mean_exp

#: One reply counts for so much at most, so that the mean is that of a bounded variable.
CAP: Final = 20.0

#: Steps of a tally of ratios; each is rounded up, which only raises their mean.
STEP: Final = 0.002

#: Shares of its wealth that an audit puts on the next reply, evenly; 1 is the product of ratios.
_STAKES: Final = np.array([0.1, 0.3, 0.6, 1.0])

#: No ratio is taken for less than exp of this, which a sum of logs would not survive.
_LEAST: Final = -30.0

#: Of the largest stake against a mean, so much is bet, evenly; the loss must stay below all.
_FRACTIONS: Final = np.array([0.3, 0.99])


def capped_ratios(rows: Array, honest: Mask) -> Array:
    """Log ratios [n] of rows [n, S], read as calibrated: each reply by itself.

    Above what is honest every scale counts evenly; below it the largest honest one alone, of which
    the calibrated model says that the mean is at most 1 (`evidence/README.md`).
    """
    above = np.logaddexp.reduce(rows[:, ~honest], axis=1) - np.log((~honest).sum())
    return np.asarray(np.minimum(above - rows[:, np.flatnonzero(honest)[-1]], math.log(CAP)))


def log_e_capped(ratios: Array) -> float:
    """Log of what an audit's bets on log ratios [n] have become: their mean over stakes.

    Null: each ratio has mean 1 + d at most, given all before it. Then the mean after n replies is
    at most (1 + d)^n, and divided by that it is an e-process.
    """
    growth = np.log1p(_STAKES[:, None] * np.expm1(np.maximum(ratios, _LEAST)))
    return log_mean_exp(growth.sum(axis=1))


def tally_ratios(ratios: Array) -> dict[float, int]:
    """How many ratios there are of each size, rounded up to a STEP."""
    sizes = np.minimum(np.ceil(np.exp(ratios) / STEP - 1e-9) * STEP, CAP).round(6)
    values, counts = np.unique(sizes, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def bound_mean(tally: Mapping[float, int], *, level: float) -> float:
    """What the mean of ratios between 0 and CAP is below, at this coverage and any stopping time.

    Null for each m: the mean, given all before, is m or more. Then a bet against it, of a fraction
    of 1 / (CAP - m) on every reply, never gains in the mean, and m is left out once the even
    mixture of bets has made 1 / (1 - level) of its stake (Waudby-Smith and Ramdas 2024, "Estimating
    means of bounded random variables by betting"). Gains rise with m, so what is left out is all
    above one value. CAP where nothing is left out.
    """
    values, counts = np.array(list(tally)), np.array(list(tally.values()), dtype=float)
    needed = -math.log1p(-level)

    def refuted(m: float) -> bool:
        bets = np.log1p(_FRACTIONS[:, None] * (m - values) / (CAP - m))
        return log_mean_exp(bets @ counts) >= needed

    low, high = 0.0, CAP
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def alpha_of(replies: int, *, excess: float, alpha: float) -> float:
    """How often at most honest replies bring the bet to 1/alpha, where their mean is 1 + excess."""
    return math.exp(min(0.0, math.log(alpha) + replies * math.log1p(excess)))
