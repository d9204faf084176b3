"""Goodness of fit: whether a column explains the replies as well as calibrated stacks fit theirs.

Null for a column: the replies come from its weights, served honestly, that is with logit noise of a
scale up to the calibrated honest one, and read with the calibrated spread and rate. The e-value
against it is noise above that scale; its mean is at most 1 at every stopping time (`e_values`).
What calibrated stacks do is known by these three numbers alone: that an honest stack fits its own
column no worse is the bound that they give, and no sharper one is claimed. It names and never
decides. Where a column may be right for some of the replies and wrong for others, as a template is
that differs in one place, half of the bet is on such a part (`log_e_of_misfit`).
Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from verifier.evidence.arrays import Array, Mask
from verifier.evidence.e_values import best_scale, log_e_value, mix_log_e
from verifier.evidence.mixture import log_e_against_honest, mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well one column explains the replies."""

    column: str
    scale: float  # of the noise that is left under it
    log_e: float  # against this column, served honestly
    divergence: float  # nats per token by which honest serving of it falls short of that noise

    def fails(self, error: float) -> bool:
        """Whether it fits worse than calibrated stacks do, at this error rate."""
        return self.log_e >= math.log(1 / error)


def log_e_of_misfit(rows: Array, honest: Mask) -> float:
    """Log e-value against "one honest scale describes all rows [n, S]".

    Half of the bet is on one scale above the honest for all rows, half on a share of them, each
    with such a scale of its own (`mixture.log_e_against_honest`): a mean of e-values, so its mean
    is at most 1 at every stopping time (Vovk and Wang 2021). 0 without rows.
    """
    if len(rows) == 0:
        return 0.0
    totals, other = rows.sum(axis=0), rows[:, ~honest]
    each = np.logaddexp.reduce(other, axis=1) - math.log(other.shape[1])
    part = log_e_against_honest(mix(each, rows[:, honest]))
    return mix_log_e([(0.5, log_e_value(totals[~honest], totals[honest])), (0.5, part)])


def judge_fits(
    columns: Mapping[str, Array], scales: Array, honest: Mask, *, tokens: int
) -> list[Fit]:
    """The fit of each column, best first; `columns` are rows [n, S] of the same `tokens`."""
    found = []
    for name, rows in columns.items():
        totals = rows.sum(axis=0)
        short = float(totals.max() - totals[honest].max())
        found.append(
            Fit(
                column=name,
                scale=best_scale(rows, scales),
                log_e=log_e_value(totals[~honest], totals[honest]),
                divergence=short / max(1, tokens),
            )
        )
    return sorted(found, key=lambda fit: fit.log_e)
