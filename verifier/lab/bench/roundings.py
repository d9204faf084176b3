"""How noisy error-optimising builds are, as shares of the plain rounding of the same grid.

Such builds choose each rounding by calibration activations, as GPTQ and AWQ do. They are made and
served by `reference/recipes/error_optimising.py`; here are the arithmetic and the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.lab.bench.results import tabulate_rows

PART: Final = "roundings"

#: The rounding that the others are held against.
PLAIN: Final = "int4-asym-g64"

#: Coverage of the interval of a ratio, and the resamples that it is taken from.
LEVEL: Final = 0.95
RESAMPLES: Final = 4000


def peak_scales(totals: Array, scales: Array) -> Array:
    """The scale of largest likelihood [n] of each of `totals` [n, S], between the grid's points.

    A parabola in log scale, of which the grid is even, through the best point and its neighbours;
    the best point itself at either end.
    """
    best = totals.argmax(axis=1)
    at = best.clip(1, len(scales) - 2)
    before, middle, after = (
        np.take_along_axis(totals, (at + step)[:, None], axis=1)[:, 0] for step in (-1, 0, 1)
    )
    bend = before - 2 * middle + after
    inside = (best == at) & (bend < 0)
    shift = np.where(inside, 0.5 * (before - after) / np.where(inside, bend, 1.0), 0.0)
    return np.asarray(scales[best] * (scales[1] / scales[0]) ** shift)


def ratio_of_scales(
    rows: Array, plain: Array, scales: Array, *, seed: int
) -> tuple[float, float, float]:
    """How many times the noise of `plain` [n, S] that of `rows` [n, S] is, and its interval.

    Both answered the same probes, in this order. The interval is that of a paired bootstrap over
    probes, by percentiles (Efron 1979): approximate, and of these probes' population alone.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
    all_once = np.ones((1, len(rows)))
    found, ratios = (
        peak_scales(weights @ rows, scales) / peak_scales(weights @ plain, scales)
        for weights in (all_once, drawn)
    )
    tail = (1 - LEVEL) / 2
    return float(found[0]), float(np.quantile(ratios, tail)), float(np.quantile(ratios, 1 - tail))


def tabulate_roundings(results: Mapping[str, Any]) -> str:
    """Each build with its noise scale and its share of the plain rounding's."""
    head = (
        "build",
        "replies",
        "scale",
        f"of that of {PLAIN}",
        "error of the layers' outputs, in squares and in sample",
    )
    return tabulate_rows(
        head,
        (
            (
                one["build"],
                one["replies"],
                f"{one['scale']:.2g}",
                "1"
                if one["build"] == PLAIN
                else f"{one['ratio']:.2f} ({one['lower']:.2f} to {one['upper']:.2f})",
                f"{one['output_error']:.2g}",
            )
            for one in results["builds"]
        ),
    )
