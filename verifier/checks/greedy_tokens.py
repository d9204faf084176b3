"""The evidence of single tokens: greedy replies in which some are passed over, or put in.

No noise of the weights does that: it flips near-ties. Two channels see it. One is the likelihood of
the reply with single tokens changed, beside the same logit noise. The other is what the endpoint
itself reports: at temperature 0 the token that it gives is the likeliest by its own words.

Null: honest logit noise, and at most GLITCHES of the replies have a token that is not the likeliest
by the endpoint's own words. Replies are independent. Both e-values are products over replies, so
their mixture is one at every stopping time. Words that are not believed (`Case.reports`) are no
evidence: their e-value times that indicator, which keeps a mean of at most 1. Pure arithmetic;
knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from verifier.checks.check import (
    SAMPLER,
    SINGLE,
    Account,
    Case,
    Check,
    Weighed,
    greedy_is_quiet,
    make_finding,
)
from verifier.evidence.arrays import Array, Mask
from verifier.evidence.e_values import log_e_value, log_mean_exp
from verifier.evidence.ledger import TEXT_SCALES
from verifier.evidence.noise import read_rows
from verifier.evidence.samplers import SINGLE_TOKENS, kind_of, name_of
from verifier.records import Finding, Status
from verifier.wording import describe_replies

#: Share of the evidence that bets on single tokens.
SINGLE_SHARE: Final = 0.03

#: Nats that one reply counts for at most, so that a token which was named wrongly, or a text that
#: was tokenized in another way, decides nothing alone.
SINGLE_MOST: Final = math.log(1000)

#: Share of an honest host's replies with a token that its own words contradict: of 21,768 replies
#: (778,026 tokens) of the embedded model's builds and renderings that report what they serve, none.
GLITCHES: Final = 0.005

#: Shares of such replies that the evidence bets on, evenly.
_BETS: Final = np.array([0.05, 0.1, 0.2, 0.4, 0.8])

#: Evidence from which an audit goes on instead of ending: an honest host reaches it one time in 20.
SUSPICION: Final = math.log(20)


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleEvidence:
    """What the rows say of single tokens, before any threshold."""

    log_e: float  # against honest serving
    log_e_named: float  # against the published weights with noise of any scale
    contradicted: int  # replies with a token that the endpoint's own words contradict
    told: int  # replies with such words


def weigh_single(
    columns: Mapping[str, tuple[Array, Array]],
    kinds: Mapping[str, str],
    honest: Mask,
    contradicted: Sequence[bool] | None,
) -> SingleEvidence:
    """The evidence of greedy replies.

    `columns` has cells [n, S] with single tokens changed, and without, as calibrated; columns of
    one of `kinds` share its weight evenly. `honest` are scales [S] of honest serving. Of replies
    whose endpoint reports on its tokens, `contradicted` says whether one is not the likeliest.
    None: what it reports is not believed, and its part of the evidence is lost.

    The evidence of a column is the least over the honest scales, at each a product of ratios whose
    means are at most 1; to bound them by SINGLE_MOST only lowers these.
    """
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for name, (changed, plain) in columns.items():
        if len(plain):
            gains = np.minimum(changed - plain, SINGLE_MOST).sum(axis=0)
            free = log_e_value(changed.sum(axis=0)[honest], plain.sum(axis=0))
            by_kind.setdefault(kinds[name], []).append((float(gains[honest].min()), free))
    found = [np.array([log_mean_exp(np.array(one)) for one in zip(*some, strict=True)])
             for some in by_kind.values()]  # fmt: skip
    own = -math.inf if contradicted is None else log_e_contradicted(contradicted)
    log_e, log_e_named = (
        log_mean_exp(np.array([*(one[at] for one in found), own])) for at in (0, 1)
    )
    told = contradicted or ()
    return SingleEvidence(
        log_e=log_e, log_e_named=log_e_named, contradicted=sum(told), told=len(told)
    )


def log_e_contradicted(contradicted: Sequence[bool]) -> float:
    """More replies than GLITCHES whose own log-probabilities contradict them; 0 without any."""
    count, told = sum(contradicted), len(contradicted)
    bets = count * np.log(_BETS / GLITCHES) + (told - count) * np.log((1 - _BETS) / (1 - GLITCHES))
    return log_mean_exp(bets)


# -- the check ---------------------------------------------------------------------------------


def weigh(case: Case, _kept: None) -> Weighed[SingleEvidence]:
    """Each way to change single tokens, and what the endpoint itself reports."""
    ledger, columns = case.ordinary, {}
    for name in map(name_of, SINGLE_TOKENS):
        changed, plain = (
            read_rows(some, TEXT_SCALES, case.plan.calibration.text) for some in ledger.single(name)
        )
        columns[name] = (changed, plain)
    kinds = {name_of(sampler): kind_of(sampler) for sampler in SINGLE_TOKENS}
    told = [row.outranked > 0 for row in ledger.rows if row.outranked is not None]
    single = weigh_single(columns, kinds, case.honest, told if case.reports.joins else None)
    named = min(single.log_e, single.log_e_named)
    return Weighed(evidence=single, log_e=(single.log_e,), at_any_noise=(named,))


def find(
    case: Case, single: SingleEvidence, account: Account, found: Sequence[Finding]
) -> list[Finding]:
    """That greedy replies hold tokens which greedy decoding does not give.

    Not where the greedy replies leave noise of the weights open, or show it: that comes first.
    Suspected tokens keep an audit going: most often a few more replies settle what they were.
    """
    log_e = min(single.log_e, single.log_e_named)
    if account.column is not None or log_e < SUSPICION or not greedy_is_quiet(case, found):
        return []
    detail = "the greedy replies fit the weights, but for single tokens"
    if single.contradicted:
        detail += (
            f"; in {single.contradicted} of {describe_replies(single.told)} another token is given "
            "than the endpoint reports as the likeliest"
        )
    (needed,) = case.needed[CHECK.name]
    decision: Status = "detected" if log_e >= needed else "undecided"
    return [make_finding(SAMPLER, decision, SINGLE, log_e, detail)]


CHECK: Final = Check[None, SingleEvidence](
    name="greedy_tokens",
    aspects=(replace(SAMPLER, place=55),),  # behind what is said of samples
    shares=lambda _plan: (SINGLE_SHARE,),
    weigh=weigh,
    find=find,
)
