"""Replies of which only a share comes from something else: e-values, a share with its interval.

Knows numbers only. A row is the log-likelihood of one reply, the independent unit, under the honest
columns [n, H], which differ in the scale of their noise, and under a suspect [n]. The model of a
row is (1 - share) p_honest + share p_suspect, with one honest scale for all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from verifier.evidence.arrays import Array, Mask
from verifier.evidence.e_values import log_mean_exp

#: Shares that are tried: closer together where a share is small.
SHARES: Array = np.round(
    np.concatenate(
        [np.arange(0, 0.1, 0.005), np.arange(0.1, 0.5, 0.02), np.arange(0.5, 1.01, 0.05)]
    ),
    3,
)

#: One reply alone speaks for a suspect by this factor at most (see `log_e_against_honest`): less
#: than what a verdict at the usual alpha needs, so no single reply decides.
CAP = 1000.0

#: Nats beyond which a ratio is no larger for any share between 0 and 1: before numbers overflow.
_MOST = 600.0

#: Rows of which the likelihoods of all shares are held at once.
_AT_ONCE = 64

#: Weight of the share 0 in the bet against other shares: a host that mixes nothing is the commonest
#: and its upper bound should fall as fast as replies allow.
AT_ZERO = 0.5

#: Of the bet against a share under one honest scale: what is put on that very scale.
SAME_SCALE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The share of replies that a suspect made, with a confidence sequence at its stopping time."""

    estimate: float  # the share of largest likelihood
    lower: float
    upper: float
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What the rows say of one suspect."""

    ratios: Array  # [n, H] log p_suspect - log p_honest
    honest: Array  # [H] log p_honest of all rows
    curve: Array  # [E, H] log-likelihood of all rows at each share, less `honest`
    cut: Array  # [E, H] the same, of ratios cut at CAP


def mix(suspect: Array, honest: Array) -> Mixture:
    """The likelihood of every share, given rows under a suspect ([n] or [n, H]) and the honest."""
    suspect = suspect[:, None] if suspect.ndim == 1 else suspect
    ratios = suspect - honest
    curve = _curve(ratios)
    some_cut = ratios.size and ratios.max() > math.log(CAP)
    return Mixture(
        ratios=ratios,
        honest=honest.sum(axis=0),
        curve=curve,
        cut=_curve(np.minimum(ratios, math.log(CAP))) if some_cut else curve,
    )


def log_e_against_honest(mixture: Mixture) -> float:
    """Log e-value against "no reply comes from the suspect", by a bet on every share above 0.

    Null: all rows come from one of the honest columns. For each of them the bet
    prod (1 - share + share r), r = p_suspect / p_honest, is a nonnegative martingale under that
    column, whatever the suspect; so is its mean over shares, and the smallest over the honest
    columns is an e-process for all of them (Wasserman, Ramdas and Balakrishnan 2020). r is cut at
    CAP: its mean is at most 1 before, and so at most 1 after (Ramdas and Wang 2024, "Hypothesis
    testing with e-values", on truncation).
    """
    if len(mixture.ratios) == 0:
        return 0.0
    return float(_mean_over(mixture.cut, SHARES > 0).min())


def log_e_against_whole(mixture: Mixture, whole: Array) -> float:
    """Log e-value against "every reply comes from something else".

    `whole` are total log-likelihoods of the columns that explain all replies at once. Null: one of
    them describes the replies. A fixed mixture over shares between 0 and 1 and honest columns,
    over the best of them: universal inference again.
    """
    parts = _mean_over(mixture.curve, (SHARES > 0) & (SHARES < 1)) + mixture.honest
    return log_mean_exp(parts) - float(whole.max())


def log_e_against_shares(mixture: Mixture) -> Array:
    """Log e-value [E] against each share of the grid.

    Null for a share: rows come from that mixture, at some honest scale. Under one scale the bet on
    all shares (AT_ZERO of it on none at all), SAME_SCALE of it at this scale and the rest spread
    over all, divided by the likelihood of the share at this scale, is a test martingale (Robbins
    1970); the smallest over scales is an e-process for the share. The suspect's distribution is
    assumed known: where it is a stand-in, coverage is to be measured.

    Now and then an honest reply is very unlikely, for instance where its text is tokenized in
    another way than it was made. It should not move a bound alone, so r = p_suspect / p_honest is
    cut at CAP where that is fair. The ratio of a row, (1 - b + b r) / (1 - a + a r) for a bet b
    against a share a, rises with r when b > a, so that cutting can only lower its mean. When b is
    0 it falls: cutting at C raises its mean of 1 by at most P(r > C) / (1 - a + a C), and
    P(r > C) <= a + (1 - a) / C; the bet is divided by that for every row. Of bets at other scales
    it is fair too, since it takes away from a density, and needed against the share 0 alone.
    """
    curve, cut, honest = mixture.curve, mixture.cut, mixture.honest
    spread = np.full_like(curve, log_mean_exp(_mean_over(curve, SHARES >= 0) + honest) - honest)
    spread[0] = log_mean_exp(_mean_over(cut, SHARES >= 0) + honest) - honest
    shares, weights = SHARES[:, None], np.log(_PRIOR / _PRIOR.sum())[:, None]
    # of bets at this scale: on larger shares, on smaller ones and the share itself, and on none
    larger = np.logaddexp.accumulate((weights + cut)[:0:-1])[::-1] - cut[:-1]
    smaller = np.logaddexp.accumulate((weights + curve)[1:]) - curve[1:]
    raised = (shares + (1 - shares) / CAP) / (1 - shares + shares * CAP)
    none = weights[0] - cut - len(mixture.ratios) * np.log1p(raised)
    none[0] = weights[0]
    same = none
    same[:-1] = np.logaddexp(same[:-1], larger)
    same[1:] = np.logaddexp(same[1:], smaller)
    bet = np.logaddexp(math.log(SAME_SCALE) + same, math.log1p(-SAME_SCALE) + spread - curve)
    return np.asarray(bet.min(axis=1))


def estimate_share(mixture: Mixture, *, level: float) -> Share | None:
    """The share with an interval that holds the truth at every stopping time; None without rows."""
    if len(mixture.ratios) == 0:
        return None
    kept = np.flatnonzero(log_e_against_shares(mixture) < -math.log1p(-level))
    best = (mixture.curve + mixture.honest).max(axis=1).argmax()
    return Share(
        estimate=float(SHARES[best]),
        lower=float(SHARES[kept[0]]),
        upper=float(SHARES[kept[-1]]),
        level=level,
    )


def best_likelihood(mixture: Mixture) -> float:
    """Log-likelihood of all rows at the best share and honest column."""
    return float((mixture.curve + mixture.honest).max())


def log_e_against_at_least(mixtures: list[Mixture], share: float) -> float:
    """Log e-value against "this share of replies, or more, comes from one of the suspects"."""
    members = share - 1e-9 <= SHARES
    return min(float(log_e_against_shares(mixture)[members].min()) for mixture in mixtures)


def least_replies(share: float, *, error: float) -> int:
    """How many replies it takes at least to exclude a share: when none could be a suspect's."""
    bet = math.log(SAME_SCALE * AT_ZERO)
    return math.ceil((math.log(1 / error) - bet) / -math.log1p(-share))


def belongings(mixture: Mixture, share: float) -> Array:
    """The probability [n] of each reply to be the suspect's, at a share and its best scale."""
    if len(mixture.ratios) == 0 or share == 0:
        return np.zeros(len(mixture.ratios))
    at = int(np.flatnonzero(np.isclose(SHARES, share))[0])
    ratios = mixture.ratios[:, int((mixture.curve[at] + mixture.honest).argmax())]
    if share == 1:
        return np.ones(len(ratios))
    return np.asarray(
        1 / (1 + np.exp(np.minimum(math.log1p(-share) - math.log(share) - ratios, 700)))
    )


def _curve(ratios: Array) -> Array:
    """Log-likelihood [E, H] of all rows at each share, relative to the honest columns."""
    odds = np.exp(np.minimum(ratios, _MOST))
    between, part = SHARES[1:-1, None, None], np.zeros((len(SHARES) - 2, ratios.shape[1]))
    for at in range(0, len(odds), _AT_ONCE):
        part += np.log(1 - between + between * odds[at : at + _AT_ONCE]).sum(axis=1)
    return np.concatenate([np.zeros((1, ratios.shape[1])), part, ratios.sum(axis=0)[None]])


def _prior() -> Array:
    """AT_ZERO on no share at all; the rest as Beta(1/2, 1/2) would put it on the grid's cells."""
    edges = np.concatenate([[0.0], (SHARES[1:-1] + SHARES[2:]) / 2, [1.0]])
    cells = np.diff(2 / np.pi * np.arcsin(np.sqrt(edges)))
    return np.concatenate([[AT_ZERO], (1 - AT_ZERO) * cells])


_PRIOR = _prior()


def _mean_over(curve: Array, chosen: Mask) -> Array:
    """Log of the mean likelihood [H] over some shares of a curve, by their prior weights."""
    weights = _PRIOR[chosen] / _PRIOR[chosen].sum()
    top = curve[chosen].max(axis=0)
    means = np.einsum("e,eh->h", weights, np.exp(curve[chosen] - top))
    return np.asarray(np.log(means) + top)
