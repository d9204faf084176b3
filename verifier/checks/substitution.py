"""Substitution: whether some of the replies come from something else, how many, and which.

Null: the published weights make every reply, at an honest noise scale. Suspects are each build that
the policy names, served with that same noise, and an unknown one: noise above the honest scale, of
a scale that every reply may have for itself, evenly over the grid (a mixture with a heavy tail).
Assumptions: which request goes to a substitute does not depend on the replies, and the calibrated
model of a row holds (`e_values`). How the unknown suspect's intervals cover the shares of real
substitutes is measured (`lab.bench.routing`), not assumed. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from verifier.checks.check import (
    Account,
    Aspect,
    Case,
    Check,
    Planned,
    Weighed,
    make_finding,
    make_weighed,
)
from verifier.config import RunFile, resolve_policy
from verifier.errors import ConfigError
from verifier.evidence.arrays import Array, Mask, log_sum_exp
from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import mix_log_e, spread_rows
from verifier.evidence.ledger import TEXT_SCALES
from verifier.evidence.mixture import (
    SHARES,
    Mixture,
    Share,
    belongings,
    best_likelihood,
    estimate_share,
    least_replies,
    log_e_against_at_least,
    log_e_against_honest,
    log_e_against_shares,
    log_e_against_whole,
    mix,
)
from verifier.evidence.noise import ABOVE, build_rows
from verifier.records import Decision, Finding, Substitution
from verifier.reference.cards import Card
from verifier.wording import BELONGS_AT, describe_percent, describe_replies, describe_share

ROUTING: Final = Aspect(
    name="routing", label="share of requests", place=30, required=True, of_policy=True, greedy=True
)
SUBSTITUTION: Final = Aspect(
    name="substitution", label="a part of the replies", place=120, role="name"
)

#: Share of the evidence that bets on a part of the replies.
PART_SHARE: Final = 0.1

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
    return np.asarray(log_sum_exp(rows, axis=1) - math.log(rows.shape[1]))


def _whole(
    text: Array, scales: Array, honest: Mask, suspect: str,
    builds: Mapping[str, tuple[Array, Array]],
) -> Array:  # fmt: skip
    """Total log-likelihoods of everything that explains all replies at once."""
    spread = [spread_rows(text, scales, value).sum(axis=0)[~honest] for value in (0.0, *WIDER)]
    own = [[_any_scale(text[:, ~honest]).sum()]]
    build = [] if suspect == UNKNOWN else [builds[suspect][0].sum(axis=0)]
    return np.concatenate([*spread, *own, *build])


# -- the check ---------------------------------------------------------------------------------


def plan(config: RunFile, _card: Card, calibration: Calibration | None) -> Planned:
    """Refuses a class of noise that is not calibrated, and shares that no budget excludes."""
    audit = config.audit
    _, policy = resolve_policy(audit.policy)
    known = [] if calibration is None else [known.name for known in calibration.classes]
    for wanted in policy.routed if calibration is not None else ():
        if wanted not in known:
            raise ConfigError(
                f"audit.policy: routed: the card's calibration has no class {wanted!r}; it has "
                f"{', '.join(known)}"
            )
    return Planned(problem=_too_small(config))


def _too_small(config: RunFile) -> str:
    """Which share that the policy names no audit of this budget excludes; "": none."""
    audit = config.audit
    for wanted, share in resolve_policy(audit.policy)[1].routed.items():
        replies = least_replies(share, error=audit.beta)
        if audit.budget_completion_tokens < replies * audit.max_tokens:
            return (
                f"audit.budget_completion_tokens: {audit.budget_completion_tokens} cannot exclude "
                f"that {share:g} of the requests meet {wanted}: that takes {replies} replies of "
                f"{audit.max_tokens} tokens at the very least; allow "
                f"{replies * audit.max_tokens} or, better, half as many again"
            )
    return ""


def weigh(case: Case, _kept: None) -> Weighed[ShareEvidence]:
    """The shares of the unknown suspect, and of each build that the policy names."""
    channel = case.plan.calibration.text
    scored = {n: build_rows(case.ordinary, n, channel) for n in case.plan.policy.builds}
    known = {name: rows for name, rows in scored.items() if rows is not None}
    shares = weigh_shares(case.text, TEXT_SCALES, case.honest, known)
    return Weighed(evidence=shares, log_e=(shares.log_e,), at_any_noise=(shares.log_e_part,))


def find(
    case: Case, shares: ShareEvidence, account: Account, _found: Sequence[Finding]
) -> list[Finding]:
    """Each share of requests of the policy, by the confidence sequence of the share.

    Excluded: neither this share nor a larger one fits, for a model of any noise from the class's
    own upwards. Detected: no smaller share fits.
    """
    return [
        _find_share(case, shares, account, of, share)
        for of, share in case.plan.policy.routed.items()
    ]


def _find_share(
    case: Case, shares: ShareEvidence, account: Account, of: str, share: float
) -> Finding:
    (scale,) = (known.scale for known in case.plan.calibration.classes if known.name == of)
    name = f"{describe_percent(share)} of requests to {of} or worse"
    if account.by != "published":
        detail = "the replies are to another rendering of the prompts; mend the template first"
        if account.by == "penalty":
            detail = "the replies are made under a penalty; mend the sampler first"
        return make_finding(ROUTING, "not run", name, None, detail)
    if scale <= case.plan.calibration.text.tolerated * ABOVE:
        detail = f"its scale {scale:.2g} is within honest serving on this card"
        return make_finding(ROUTING, "not run", name, None, detail)
    if len(account.text) == 0:
        return make_finding(ROUTING, "undecided", name, 0.0, "no reply was scored")
    suspects = np.asarray(scale <= TEXT_SCALES * ABOVE) & ~case.honest
    shown = describe_percent(share)
    return make_weighed(
        case, ROUTING, name,
        towards=log_e_for_routing(shares, share),
        against=log_e_against_routing(shares, suspects, case.honest, share),
        excluded=f"fewer than {shown} of the replies come from such a model",
        detected=f"{shown} or more of the replies come from something else",
        undecided=f"the share of other replies is not yet bounded below {shown}",
    )  # fmt: skip


def name_it(
    case: Case, shares: ShareEvidence, account: Account, _found: Sequence[Finding],
    decision: Decision,
) -> list[Finding]:  # fmt: skip
    """That a part of the replies comes from something else, and how large it is."""
    found = describe(case, shares, account, decision)
    if account.names != "part" or found is None:
        return []
    told = sum(chance >= BELONGS_AT for _, chance in found.replies)
    detail = (
        f"{describe_share(found)} of the replies come from something else: {told} of "
        f"{describe_replies(len(found.replies))} so far"
    )
    name = "a part of the replies"
    return [make_finding(SUBSTITUTION, "detected", name, shares.log_e_part, detail)]


def describe(
    case: Case, shares: ShareEvidence, account: Account, decision: Decision
) -> Substitution | None:
    """The share of replies from something else, where the policy asks or something is wrong."""
    if account.by != "published" or shares.share is None:
        return None
    if decision != "inconsistent" and not case.plan.policy.routed:
        return None
    return Substitution(
        suspect=shares.suspect,
        share=shares.share.estimate,
        lower=shares.share.lower,
        upper=shares.share.upper,
        level=shares.share.level,
        replies=tuple(
            (row.probe_id, round(float(chance), 4))
            for row, chance in zip(case.scored, shares.belongs, strict=True)
        ),
        suspects=tuple(
            (name, own.estimate, own.lower, own.upper) for name, own in shares.shares.items()
        ),
    )


def bound_shares(case: Case) -> tuple[tuple[str, float], ...]:
    """For each class of noise of the policy, the share of requests that it may have met at most.

    Of a model of that class or any noisier one, at the policy's beta and at every stopping time.
    Classes that honest stacks reach, and those of which no share is excluded, are left out.
    """
    plan, needed = case.plan, math.log(1 / case.plan.beta)
    scales = {known.name: known.scale for known in plan.calibration.classes}
    named = {*plan.policy.noise, *plan.policy.routed}
    lower = case.text[:, case.honest]
    each = {
        column: log_e_against_shares(mix(case.text[:, column], lower))
        for column in np.flatnonzero(~case.honest)
        if len(case.text)
    }
    found = []
    for name in sorted(named, key=lambda name: scales[name]):
        curves = [curve for at, curve in each.items() if TEXT_SCALES[at] * ABOVE >= scales[name]]
        if not curves or scales[name] <= plan.calibration.text.tolerated * ABOVE:
            continue
        against = np.minimum.accumulate(np.min(curves, axis=0)[::-1])[::-1]  # this share, or more
        excluded = np.flatnonzero((against >= needed) & (SHARES > 0))
        if len(excluded) and SHARES[excluded[0]] < 1:
            found.append((name, float(SHARES[excluded[0]])))
    return tuple(found)


def members(case: Case, shares: ShareEvidence) -> Mask | None:
    """The replies that likelier than not come from something else, where only a part of all does.

    None: no reply was scored, or it is not only some of them.
    """
    if shares.share is None or shares.log_e_part < math.log(1 / case.plan.beta):
        return None
    return np.asarray(shares.belongs.round(4) >= BELONGS_AT)


CHECK: Final = Check[None, ShareEvidence](
    name="substitution",
    aspects=(ROUTING, SUBSTITUTION),
    plan=plan,
    shares=lambda _plan: (PART_SHARE,),
    weigh=weigh,
    find=find,
    name_it=name_it,
)
