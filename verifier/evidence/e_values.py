"""The statistics: likelihoods over a grid of scales in, e-values and confidence sequences out.

Knows numbers only: an array of log-likelihoods has shape [n replies, S scales], in nats. Replies
are the independent unit; nothing here sees a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.evidence.arrays import Array, log_sum_exp

#: Shares of its wealth that a bet on a mean above 1 puts at stake; small ones see small excesses.
_STAKES = (0.01, 0.03, 0.1, 0.3, 0.6)


def log_mean_exp(values: Array) -> float:
    """log of the mean of exp(values): a uniform mixture of likelihoods."""
    return float(np.logaddexp.reduce(values) - np.log(values.size))


def spread_rows(rows: Array, scales: Array, spread: float) -> Array:
    """Let every reply have its own scale, log-normal around the endpoint's.

    Row i, column s becomes log sum_j w_sj exp(rows[i, j]) with w_s a normal kernel of standard
    deviation `spread` in log scale, cut to the grid: again the likelihood of a proper model.
    Rounding shows more in some replies than in others, so one scale for all of them is too
    narrow a model and its intervals miss. `spread` is calibrated; 0 keeps one scale for all.
    """
    if spread == 0 or len(rows) == 0:
        return rows
    return log_sum_exp(rows[:, None, :] + spread_kernel(scales, spread)[None], axis=2)


def spread_kernel(scales: Array, spread: float) -> Array:
    """log w [S, S]: how the replies of an endpoint of each scale have theirs, see `spread_rows`.

    `spread` is above 0.
    """
    log_scales = np.log(scales)
    kernel = -0.5 * ((log_scales[:, None] - log_scales[None, :]) / spread) ** 2
    return np.asarray(kernel - log_sum_exp(kernel, axis=1)[:, None])


def log_e_value(alternative: Array, null: Array) -> float:
    """Log e-value of a composite null: mixture over the alternatives against the best null.

    `alternative` [A] and `null` [N] are total log-likelihoods of the same replies.
    Null: some member of `null` describes the replies. Under it the expectation of the e-value is
    at most 1 at every stopping time, so crossing 1/alpha ever has probability at most alpha
    (Ville 1939; Wasserman, Ramdas and Balakrishnan 2020, universal inference).
    """
    return log_mean_exp(alternative) - float(null.max())


def mix_log_e(weighted: list[tuple[float, float]]) -> float:
    """Log of the weighted mean of e-values, given (weight, log e) pairs: again an e-value.

    Valid whatever the dependence between them (Vovk and Wang 2021). Weights must be fixed before
    the data; they are normalised here.
    """
    if not weighted:
        return 0.0
    weights = np.array([w for w, _ in weighted], dtype=float)
    logs = np.array([log_e for _, log_e in weighted], dtype=float)
    most = float(logs.max())
    if not math.isfinite(most):
        return most
    return most + math.log(float(weights @ np.exp(logs - most)) / float(weights.sum()))


def e_bh(log_e: Sequence[float], level: float) -> tuple[int, ...]:
    """Which of K hypotheses the e-BH procedure rejects: their positions in `log_e`, ascending.

    Null of each: its own; under it the mean of exp(log_e) is at most 1. The k largest e-values
    are rejected, for the largest k of which the k-th is at least K / (level k). Assumes nothing
    of their dependence, and an e-process may be stopped at any stopping time. Controls the
    false-discovery rate, the mean share of true nulls among the rejected, at `level` (Wang and
    Ramdas 2022, "False discovery rate control with e-values"). Raises ValueError for a log
    e-value that is no number.
    """
    if any(math.isnan(value) for value in log_e):
        raise ValueError("a log e-value is no number")
    order = sorted(range(len(log_e)), key=lambda position: -log_e[position])
    needed = math.log(len(log_e)) - math.log(level) if log_e else 0.0
    enough = [k for k, n in enumerate(order, 1) if log_e[n] >= needed - math.log(k)]
    return tuple(sorted(order[: max(enough, default=0)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence sequence read at its stopping time."""

    estimate: float  # the scale of largest likelihood
    lower: float  # smallest scale of the grid not excluded
    upper: float | None  # largest; None when the top of the grid is not excluded


def confidence_sequence(rows: Array, scales: Array, *, level: float) -> Interval | None:
    """Interval for the scale, valid at any stopping time; None without replies.

    A scale is left out once the uniform mixture over the grid has 1 / (1 - level) times its
    likelihood. Null for each scale s: the replies come from the model at s; then the ratio is a
    test martingale and s is ever left out with probability at most 1 - level (Robbins 1970).
    `rows` are [n, S] and already spread and tempered.
    """
    if len(rows) == 0:
        return None
    totals = rows.sum(axis=0)
    evidence = log_mean_exp(totals) - totals
    kept = np.flatnonzero(evidence < -np.log1p(-level))
    top_kept = bool(kept[-1] == len(scales) - 1)
    return Interval(
        estimate=float(scales[totals.argmax()]),
        lower=float(scales[kept[0]]),
        upper=None if top_kept else float(scales[kept[-1]]),
    )


def log_e_against_scales(rows: Array, members: NDArray[np.bool_]) -> float:
    """Log e-value against "the scale is one of `members`" (a mask [S] over the grid).

    The mixture is over the whole grid, so this is the same evidence as the confidence sequence.
    """
    totals = rows.sum(axis=0)
    return log_e_value(totals, totals[members])


def best_scale(rows: Array, scales: Array) -> float:
    """The scale of largest total likelihood."""
    return float(scales[rows.sum(axis=0).argmax()])


def fit_spread(stacks: list[Array], scales: Array, ladder: tuple[float, ...]) -> float:
    """The `spread` of largest total likelihood over known stacks, each at its own best scale."""
    totals = [
        sum(float(spread_rows(rows, scales, value).sum(axis=0).max()) for rows in stacks)
        for value in ladder
    ]
    return ladder[int(np.argmax(totals))]


def fit_learning_rate(
    stacks: list[Array], *, ladder: tuple[float, ...], evidence: float = 20.0
) -> float:
    """The largest power of the likelihood at which e-values keep their level on known stacks.

    For a stack with best scale s* the mean over replies of (p_s / p_s*)^eta must not exceed 1 for
    any s (the central condition: Grünwald and Mehta 2020, "Fast rates for general unbounded loss
    functions"). Gumbel noise is a model; where real errors are heavier, eta < 1 pays for it. A
    power is turned down once a bet on a mean above 1 has multiplied its stake by `evidence`: under
    a mean of at most 1 that happens with probability at most 1 / evidence, per stack and scale,
    and one reply that is extreme enough will do (Waudby-Smith and Ramdas 2024, "Estimating means of
    bounded random variables by betting"). Raises ValueError when no power of the ladder
    (descending) will do.
    """
    for eta in ladder:
        if all(_winnings(rows, eta) < evidence for rows in stacks):
            return eta
    raise ValueError(f"no learning rate in {ladder} keeps the level on the calibration stacks")


def fit_reading(
    stacks: list[Array], scales: Array, *, spreads: tuple[float, ...], rates: tuple[float, ...]
) -> tuple[float, float]:
    """How rows are to be read: spread and learning rate.

    The rate is the largest at which e-values keep their level under some spread, the spread the
    likeliest of those that allow it. Raises ValueError when no pair will do.
    """
    allowed: dict[float, list[float]] = {}
    for spread in spreads:
        read = [spread_rows(rows, scales, spread) for rows in stacks]
        with suppress(ValueError):  # too narrow a spread may allow no rate at all
            allowed.setdefault(fit_learning_rate(read, ladder=rates), []).append(spread)
    if not allowed:
        raise ValueError(f"no learning rate in {rates} keeps the level on the calibration stacks")
    rate = max(allowed)
    return fit_spread(stacks, scales, tuple(allowed[rate])), rate


def _winnings(rows: Array, eta: float) -> float:
    """The most that any scale's bets win: mean over stakes of prod(1 + stake (ratio - 1))."""
    best = rows[:, [int(rows.sum(axis=0).argmax())]]
    log_ratios = eta * (rows - best)  # [n, S]
    # log(1 - stake + stake * ratio), for ratios of any size
    logs = np.array(
        [np.logaddexp(np.log1p(-s), np.log(s) + log_ratios).sum(axis=0) for s in _STAKES]
    )  # [stakes, S]
    return float(np.exp(np.minimum(log_sum_exp(logs, axis=0) - np.log(len(_STAKES)), 700.0)).max())
