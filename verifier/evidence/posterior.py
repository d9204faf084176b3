"""Which column explains rows best: a build, another model, a penalty, or noise of no known build.

Prior: one half noise of any scale above the honest one on the published weights, one half the
columns, evenly, each served honestly. To rank is to name, and never to decide. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.calibration import Channel
from verifier.evidence.e_values import confidence_sequence, log_mean_exp
from verifier.evidence.goodness_of_fit import Fit, judge_fits
from verifier.evidence.ledger import SAMPLER, TEXT_SCALES, Ledger
from verifier.evidence.noise import honest_scales, read_text
from verifier.records import REFERENCE

#: A column is named when its posterior probability reaches this.
NAMED_AT: Final = 0.95

#: Replies from which on a column may be ranked although others were scored on more.
ENOUGH: Final = 8

#: What noise is called beside the columns.
NO_BUILD: Final = "noise of no known build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The likeliest of some columns and of noise; noise is the empty name."""

    column: str
    second: str
    log_odds: float  # of the first against the second
    stands_out: bool  # it is no noise, and its posterior reaches NAMED_AT
    scores: dict[str, float]  # of each column and of noise, in nats
    penalties: float  # posterior of all penalties together
    fits: tuple[Fit, ...]  # how well each column, and noise, fits at its best
    replies: int

    @property
    def best_fit(self) -> Fit:
        """How well the likeliest column fits."""
        return next(fit for fit in self.fits if fit.column == self.column)


def rank(ledger: Ledger, columns: Sequence[str], channel: Channel) -> Ranked | None:
    """The columns of a ledger, ranked on the replies that have them all; None: no reply has."""
    shared = [row for row in ledger.rows if all(name in row.text for name in columns)]
    if not columns or not shared:
        return None
    both = Ledger(rows=tuple(shared))
    honest = honest_scales(TEXT_SCALES, channel)
    read = {name: read_text(both, name, channel) for name in (REFERENCE, *columns)}
    scores = {"": log_mean_exp(read[REFERENCE].sum(axis=0)[~honest])}
    for name in columns:
        totals = read[name].sum(axis=0)
        scores[name] = log_mean_exp(totals[honest]) - math.log(len(columns))
    ranked = sorted(scores, key=lambda name: -scores[name])
    best, second = ranked[0], ranked[1]
    whole = float(np.logaddexp.reduce(list(scores.values())))
    posterior = {name: math.exp(score - whole) for name, score in scores.items()}
    return Ranked(
        column=best,
        second=second,
        log_odds=scores[best] - scores[second],
        stands_out=best != "" and posterior[best] >= NAMED_AT,
        scores=scores,
        penalties=sum(p for name, p in posterior.items() if name.startswith(SAMPLER)),
        fits=tuple(judge_fits(read, TEXT_SCALES, honest, tokens=sum(row.tokens for row in shared))),
        replies=len(shared),
    )


def scored_among(ledger: Ledger, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that may be ranked: scored on as many rows as any, or on ENOUGH of them.

    One that fell behind early was scored no further, and must not keep the others to its rows.
    """
    counts = {name: sum(name in row.text for row in ledger.rows) for name in columns}
    least = min(ENOUGH, max(counts.values(), default=0))
    return [name for name, count in counts.items() if count and count >= least]


def leading_build(
    ledger: Ledger, columns: Sequence[str], channel: Channel, *, odds: float, error: float
) -> Ranked | None:
    """The build that leads noise of any scale, and all of `columns`, by `odds`, and fits.

    It fits where it is not rejected at `error`, and where the noise that is left under it is shown
    (at the same level) to be below what the published weights leave: few replies reject nothing.
    """
    known = scored_among(ledger, columns)
    found = rank(ledger, known, channel)
    if found is None or not found.stands_out or found.log_odds < math.log(odds):
        return None
    rows = Ledger(rows=tuple(row for row in ledger.rows if all(n in row.text for n in known)))
    left, before = (
        confidence_sequence(read_text(rows, name, channel), TEXT_SCALES, level=1 - error)
        for name in (found.column, REFERENCE)
    )
    assert left is not None
    assert before is not None
    quieter = left.upper is not None and left.upper < before.lower
    return None if found.best_fit.fails(error) or not quieter else found


def is_out(ledger: Ledger, column: str, channel: Channel, *, odds: float, error: float) -> bool:
    """Whether the rows scored under a column show it to be none that made them.

    Noise of no known build leads it by `odds`, and as what is served it is rejected at `error`.
    """
    rows = Ledger(rows=tuple(row for row in ledger.rows if column in row.text))
    found = rank(rows, (column,), channel)
    if found is None or found.column == column or found.log_odds < math.log(odds):
        return False
    return next(fit for fit in found.fits if fit.column == column).fails(error)


def rank_penalties(ledger: Ledger, bank: Sequence[str], channel: Channel) -> Ranked | None:
    """The penalty that greedy replies were made under; None: noise or a build fits as well.

    Whichever penalty it is, all of them together must stand out from what is no penalty.
    """
    scored = dict.fromkeys(name for row in ledger.rows for name in row.text)
    penalties = [name for name in scored if name.startswith(SAMPLER)]
    columns = scored_among(ledger, [*penalties, *bank]) if penalties else []
    found = rank(ledger, columns, channel)
    return found if found is not None and found.penalties >= NAMED_AT else None


def fits_as_honest(
    ledger: Ledger, columns: Sequence[str], channel: Channel, *, error: float
) -> bool:
    """Whether a penalty, or one of `columns`, explains replies better than noise of any scale does,
    and as well as calibrated stacks explain theirs."""
    found = [
        rank(ledger, scored_among(ledger, columns), channel),
        rank_penalties(ledger, scored_among(ledger, columns), channel),
    ]
    return any(
        one is not None and one.stands_out and not one.best_fit.fails(error) for one in found
    )


def is_rather_a_suspect(
    ledger: Ledger, column: str, channel: Channel,
    *, bank: Sequence[str], suspects: Sequence[str], error: float,
) -> bool:  # fmt: skip
    """Whether a suspect, served honestly, explains the ordinary replies where a template does not.

    The template `column` comes first: only where a suspect leads it, at any noise, by 1/error, and
    fits as calibrated stacks fit theirs, are other weights what looked like another prompt.
    """
    rows = tuple(row for row in ledger.ordinary.rows if column in row.text)
    scored = Ledger(rows=rows)
    named = [name for name in suspects if rows and all(name in row.text for row in rows)]
    if not named:
        return False
    honest = honest_scales(TEXT_SCALES, channel)

    def totals(name: str) -> Array:
        return np.asarray(read_text(scored, name, channel).sum(axis=0))

    found = rank(scored, scored_among(scored, (*bank, *suspects)), channel)
    if found is None or not found.stands_out or found.column not in named:
        return False
    if found.best_fit.fails(error):
        return False
    lead = log_mean_exp(totals(found.column)[honest]) - log_mean_exp(totals(column))
    return lead - math.log(len(named)) >= math.log(1 / error)
