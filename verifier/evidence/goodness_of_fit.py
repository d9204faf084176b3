"""Goodness of fit: whether a column explains the replies as well as calibrated stacks fit theirs.

Null for a column: the replies come from its weights, served honestly, that is with logit noise of a
scale up to the calibrated honest one, and read with the calibrated spread and rate. The e-value
against it is noise above that scale; its mean is at most 1 at every stopping time (`e_values`).
What calibrated stacks do is known by these three numbers alone: that an honest stack fits its own
column no worse is the bound that they give, and no sharper one is claimed. It names and never
decides.
Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from verifier.evidence.arrays import Array, Mask
from verifier.evidence.e_values import best_scale, log_e_value


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
