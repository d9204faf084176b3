"""Substitution: whether some of the replies come from something else, how many, and which.

Null: the published weights make every reply, at an honest noise scale. Suspects are each build that
the policy names, served with that same noise, and an unknown one: noise above the honest scale, of
a scale that every reply may have for itself, evenly over the grid (a mixture with a heavy tail).
Assumptions: which request goes to a substitute does not depend on the replies, and the calibrated
model of a row holds (`stats`). How the unknown suspect's intervals cover the shares of real
substitutes is measured (`bench_routing`), not assumed. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.evidence.e_values import mix_log_e, spread_rows
from verifier.evidence.mixture import (
    SHARES,
    Mixture,
    Share,
    belongings,
    best_likelihood,
    estimate_share,
    log_e_against_at_least,
    log_e_against_honest,
    log_e_against_shares,
    log_e_against_whole,
    mix,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: The name of the suspect of which only its noise is known.
UNKNOWN = "unknown"

#: Coverage of the interval of a share.
LEVEL = 0.95

#: A host of one kind may spread its replies further around its scale than any that was calibrated:
#: these spreads, in log scale, are no sign of two kinds.
WIDER = (0.3, 0.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareEvidence:
    """What the rows say of replies that come from something else, before any threshold."""

    suspect: str  # a build, or UNKNOWN
    share: Share | None  # None without rows
    shares: dict[str, Share]  # of every suspect of which all rows speak
    belongs: Array  # [n] probability of each reply to be the suspect's
    log_e: float  # against "none does"
    log_e_part: float  # against "none does" and against "all do": the smaller
    unknown: Mixture
    text: Array  # [n, S] under the published weights, as read


def weigh_shares(
    text: Array, scales: Array, honest: Mask, builds: Mapping[str, tuple[Array, Array]]
) -> ShareEvidence:
    """The evidence of rows [n, S]; `builds` are rows under a build and under the reference.

    Half of the bet is on the unknown suspect, the rest evenly on the builds.
    """
    unknown = mix(_any_scale(text[:, ~honest]), text[:, honest])
    found = {UNKNOWN: log_e_against_honest(unknown)}
    mixtures = {UNKNOWN: unknown}
    for name, (rows, reference) in builds.items():
        mixtures[name] = mix(rows[:, honest], reference[:, honest])
        found[name] = log_e_against_honest(mixtures[name])
    log_e = found[UNKNOWN]
    if builds:
        each = 0.5 / len(builds)
        log_e = mix_log_e([(0.5, log_e), *((each, found[name]) for name in builds)])
    complete = [n for n, m in mixtures.items() if len(m.ratios) == len(text)]
    suspect = max(complete, key=lambda name: best_likelihood(mixtures[name]))
    part = log_e
    if log_e > 0:
        whole = _whole(text, scales, honest, suspect, builds)
        chosen = math.log(len(complete))  # the price of choosing after the fact
        part = min(part, log_e_against_whole(mixtures[suspect], whole) - chosen)
    shares = {name: estimate_share(mixtures[name], level=LEVEL) for name in complete}
    share = shares[suspect]
    return ShareEvidence(
        suspect=suspect,
        share=share,
        shares={name: found for name, found in shares.items() if found is not None},
        belongs=belongings(mixtures[suspect], 0.0 if share is None else share.estimate),
        log_e=log_e,
        log_e_part=part,
        unknown=unknown,
        text=text,
    )


def log_e_against_routing(
    evidence: ShareEvidence, suspects: Mask, honest: Mask, share: float
) -> float:
    """Log e-value against "a share of replies, or more, comes from a model that noisy".

    Each of the scales `suspects` is a suspect of its own, and the smallest e-value counts: so the
    bound holds for a substitute of any one of these scales.
    """
    text = evidence.text
    if len(text) == 0:
        return 0.0
    mixtures = [mix(text[:, column], text[:, honest]) for column in np.flatnonzero(suspects)]
    return log_e_against_at_least(mixtures, share)


def log_e_for_routing(evidence: ShareEvidence, share: float) -> float:
    """Log e-value against "fewer than this share of the replies come from something else"."""
    fewer = share - 1e-9 > SHARES
    return float(log_e_against_shares(evidence.unknown)[fewer].min())


def _any_scale(rows: Array) -> Array:
    """Log-likelihood [n] of replies each of which has a scale of its own, evenly of [n, A]."""
    return np.asarray(np.logaddexp.reduce(rows, axis=1) - np.log(rows.shape[1]))


def _whole(
    text: Array, scales: Array, honest: Mask, suspect: str,
    builds: Mapping[str, tuple[Array, Array]],
) -> Array:  # fmt: skip
    """Total log-likelihoods of everything that explains all replies at once."""
    spread = [spread_rows(text, scales, value).sum(axis=0)[~honest] for value in (0.0, *WIDER)]
    own = [[_any_scale(text[:, ~honest]).sum()]]
    build = [] if suspect == UNKNOWN else [builds[suspect][0].sum(axis=0)]
    return np.concatenate([*spread, *own, *build])
