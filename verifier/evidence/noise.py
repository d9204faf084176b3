"""Noise of the logits: rows read as calibrated, honest scales, and what builds make of the rows.

Null wherever "honest" is said: the replies come from the published weights with logit noise of a
scale at most the tolerated one, which lies above the largest that was measured (`stacks`).
Assumptions: replies are independent, and the calibrated
model of a row holds (`e_values`). Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array, Mask
from verifier.evidence.calibration import Calibration, Channel, Stack
from verifier.evidence.e_values import Interval, log_e_value, spread_kernel, spread_rows
from verifier.evidence.ledger import TEXT_SCALES, Ledger
from verifier.records import NoiseScale

#: Scales are compared with room for their decimal form.
ABOVE: Final = 1 + 1e-9

#: From this noise scale on, sampling in spite of temperature 0 is as likely as bad weights.
SAMPLED_FROM: Final = 0.8


def read_rows(rows: Array, scales: Array, channel: Channel) -> Array:
    """Rows [n, S] as the calibration says they must be read: spread and tempered."""
    return channel.learning_rate * spread_rows(rows, scales, channel.spread)


def read_text(ledger: Ledger, column: str, channel: Channel) -> Array:
    """Rows [n, S] of the text channel under a column, read as calibrated."""
    return read_rows(ledger.text(column), TEXT_SCALES, channel)


def honest_scales(scales: Array, channel: Channel) -> Mask:
    """Which scales [S] of a grid honest serving may have: up to the end of the zone."""
    return np.asarray(scales <= channel.tolerated * ABOVE)


def log_e_noise(rows: Array, scales: Array, channel: Channel) -> float:
    """Log e-value of noise above what is tolerated against the best up to it; 0 without rows."""
    if len(rows) == 0:
        return 0.0
    totals, honest = rows.sum(axis=0), honest_scales(scales, channel)
    return log_e_value(totals[~honest], totals[honest])


def expected_differing(cells: Array, scale: float, channel: Channel) -> float:
    """How many tokens would differ from the weights' own choice on average, at a scale of noise.

    `cells` [n, S] are those of `differing_cells`; conditional on these replies, and on replies that
    spread around the scale as calibrated. The next scale of the grid is taken, the larger one.
    """
    at = min(int(np.searchsorted(TEXT_SCALES * ABOVE, scale)), len(TEXT_SCALES) - 1)
    totals = cells.sum(axis=0)
    if channel.spread == 0:
        return float(totals[at])
    return float(np.exp(spread_kernel(TEXT_SCALES, channel.spread)[at]) @ totals)


def build_rows(ledger: Ledger, name: str, channel: Channel) -> tuple[Array, Array] | None:
    """Rows [m, S] under a build and under the reference, of those scored under both."""
    rows = tuple(row for row in ledger.rows if name in row.text)
    if not rows:
        return None
    both = Ledger(rows=rows)
    return (
        read_rows(both.text(name), TEXT_SCALES, channel),
        read_rows(both.text(), TEXT_SCALES, channel),
    )


def noise_scale(
    interval: Interval | None, calibration: Calibration, *, bank: Sequence[str], level: float
) -> NoiseScale:
    """An interval of the noise scale at this coverage, beside what is known of the builds of a
    `bank`."""
    honest = calibration.text.honest_scale
    known = {s.name: s for s in calibration.stacks if s.name in bank and s.text is not None}
    scales = {name: stack.text.estimate for name, stack in known.items() if stack.text is not None}
    marks = sorted(scales.items(), key=lambda mark: (mark[1], mark[0]))
    upper = None if interval is None else interval.upper
    return NoiseScale(
        estimate=None if interval is None else round(interval.estimate, 6),
        lower=None if interval is None else round(interval.lower, 6),
        upper=None if upper is None else round(upper, 6),
        level=level,
        equivalent=_equivalent(interval, honest, marks, known) + _elsewhere(calibration, interval),
        honest=round(honest, 6),
        marks=tuple((name, round(scale, 6)) for name, scale in marks),
    )


def _equivalent(
    interval: Interval | None,
    honest: float,
    marks: Sequence[tuple[str, float]],
    known: dict[str, Stack],
) -> str:
    """What the interval is like on this model: one class of rounding, or what it lies between."""
    if interval is None:
        return "nothing scored"
    if interval.estimate <= honest * ABOVE:
        return "honest serving"
    roundings = {name: scale for name, scale in marks if known[name].family not in (None, "layers")}
    if not roundings:
        return "unknown: no rounding is calibrated"
    return _between(interval, roundings, {name: known[name].family for name in roundings})


def _elsewhere(calibration: Calibration, interval: Interval | None) -> str:
    """On which models, where that is none of the card's own."""
    if calibration.provisional is None or interval is None:
        return ""
    return f", as on {' and '.join(one.card for one in calibration.provisional.lenders)}"


def _between(
    interval: Interval, roundings: Mapping[str, float], family: Mapping[str, str | None]
) -> str:
    """The class of rounding that all of an interval lies within, else the two that it lies between.

    `roundings` are known builds with their scales, in ascending order.
    """
    upper = math.inf if interval.upper is None else interval.upper
    low = [name for name, scale in roundings.items() if scale <= interval.lower * ABOVE][-1:]
    high = [name for name, scale in roundings.items() if scale * ABOVE >= upper][:1]
    inside = [name for name, scale in roundings.items() if interval.lower < scale < upper]
    nearest = sorted(roundings, key=lambda name: abs(math.log(roundings[name] / interval.estimate)))
    if low and high and len({family[name] for name in (*low, *inside, *high)}) == 1:
        return f"{family[low[0]]} rounding ({nearest[0]})"
    below = family[low[0]] if low else "honest serving"
    if not high:
        return f"above {below}{' rounding' if low else ''}; nearest {nearest[0]}"
    ends = [family[name] for name in (*low, *high)]
    told = {next(name for name in nearest if family[name] == end) for end in ends if low}
    shown = ", ".join(name for name in nearest if name in (told or nearest[:1]))
    return f"between {below} and {family[high[0]]} rounding; nearest {shown}"
