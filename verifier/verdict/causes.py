"""The causes: the best name for replies that differ. Pure arithmetic.

Names are given once the verdict is there; none of them is the ground of a verdict. Template before
weights, a part of the replies before all, and what explains the replies before what is like them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from verifier.checks.request_strata import NAMED_AT as STRATUM_AT
from verifier.checks.request_strata import StrataEvidence, is_of
from verifier.checks.template.completions import UNKNOWN_RENDERING
from verifier.evidence.arrays import Array
from verifier.evidence.e_values import Interval, log_mean_exp
from verifier.evidence.goodness_of_fit import Fit, judge_fits
from verifier.evidence.ledger import SAMPLER, TEXT_SCALES, Ledger
from verifier.plan import Plan
from verifier.records import REFERENCE, Decision, Finding, NoiseScale, Status, Substitution
from verifier.reference.renderings.catalogue import entries_named
from verifier.reference.variants import VARIANTS
from verifier.verdict.departures import make_finding
from verifier.verdict.weigh import (
    ABOVE,
    SAMPLED_FROM,
    Evidence,
    honest_scales,
    judge_part,
    read_rows,
    weigh,
)
from verifier.wording import BELONGS_AT, describe_replies, describe_share

#: A build is named when its posterior probability reaches this.
NAMED_AT = 0.95

#: What noise is called beside the builds.
NO_BUILD = "noise of no known build"

#: Positions whose own log-probabilities contradict the reply, before it is said that they do.
FORGED_FROM = 3

#: Strata of which one says that requests *are* so.
_STATES = ("streamed", "not streamed", "short", "long", "late", "early")

#: The cause where no column fits as calibrated stacks fit theirs.
NOTHING_FITS = "not this model as published, and nothing else that we know"

#: The same, where its prompts are counted by another tokenizer.
ANOTHER_FAMILY = "a model of another family"


def template_causes(plan: Plan, evidence: Evidence, *, unknown_words: bool) -> list[Finding]:
    """The template fault by name, and what noise is left under it.

    None is told under a hidden prompt of unknown words: it looks like noise of the weights.
    """
    templates = evidence.templates
    assert templates is not None
    group = templates.group
    entries = entries_named(group)
    first = entries[group[0]]
    rest = [name for name in templates.ranked if name not in group]
    against = f", odds {_odds(templates.behind[rest[0]])} to 1 against {rest[0]}" if rest else ""
    told = f"{describe_replies(templates.scored)} and {templates.counted} counts of prompt tokens"
    detail = f"{first.summary}; fits {told}{against}. Advice: {first.advice}"
    if len(group) > 1:
        detail = f"these cannot be told apart; the likeliest: {detail}"
    found = [make_finding("template", "detected", " or ".join(group), templates.log_e, detail)]
    if unknown_words:
        return found
    return [*found, *_noise_left(plan, evidence, group[0])]


def unknown_cause(evidence: Evidence) -> Finding:
    """That chats are rendered or routed in a way that is not known."""
    assert evidence.interval is not None
    detail = (
        f"{describe_replies(evidence.rows)} to the same prompts, completed as text without the "
        f"endpoint's template, fit the published weights (noise scale "
        f"{evidence.interval.estimate:.2g}), and chats do not. Advice: compare the prompts that "
        "chats are rendered to, and what serves them, with the published"
    )
    return make_finding("template", "detected", UNKNOWN_RENDERING, None, detail)


def shown_causes(
    plan: Plan, evidence: Evidence, faults: Sequence[str], *, judged: bool
) -> list[Finding]:
    """The template fault that the endpoint's own prompts show, and what noise is left under it."""
    entry = entries_named(faults)[faults[0]]
    detail = f"{entry.summary}, as the prompts that the endpoint shows; advice: {entry.advice}"
    found = [make_finding("template", "detected", " or ".join(faults), None, detail)]
    return [*found, *(_noise_left(plan, evidence, faults[0]) if judged else ())]


def _noise_left(plan: Plan, evidence: Evidence, name: str) -> list[Finding]:
    """The weights' own fault under a named rendering; none where the noise left is honest."""
    honest = plan.calibration.text.honest_scale * ABOVE
    if evidence.interval is None or evidence.interval.lower <= honest:
        return []
    like = f"noise like {noise_scale(plan, evidence).equivalent}"
    detail = f"judged under {name}: no build was scored after that rendering"
    return [make_finding("cause", "undecided", like, None, detail)]


def is_part(plan: Plan, evidence: Evidence) -> bool:
    """Whether some of the replies, and not all, come from something else."""
    shares = evidence.shares
    return shares is not None and shares.log_e_part >= math.log(1 / plan.beta)


def part_causes(
    plan: Plan, ledger: Ledger, evidence: Evidence, substitution: Substitution
) -> list[Finding]:
    """That a part of the replies comes from something else, how large, and its best name.

    The name is that of the replies that likelier than not belong to it.
    """
    assert evidence.shares is not None
    told = {name for name, chance in substitution.replies if chance >= BELONGS_AT}
    detail = (
        f"{describe_share(substitution)} of the replies come from something else: "
        f"{len(told)} of {describe_replies(len(substitution.replies))} so far"
    )
    log_e = evidence.shares.log_e_part
    found = [make_finding("substitution", "detected", "a part of the replies", log_e, detail)]
    rows = tuple(row for row in ledger.rows if row.probe_id in told)
    if rows:
        part = judge_part(plan, evidence, evidence.shares.belongs >= BELONGS_AT)
        found.append(name_cause(plan, Ledger(rows=rows), part))
    return found


def strata_causes(plan: Plan, evidence: Evidence) -> list[Finding]:
    """The way of asking whose replies alone differ, where one stands out."""
    strata = evidence.strata
    if strata is None or not strata.best or strata.log_e_apart <= 0:
        return []
    name = f"requests {strata.best}"
    if strata.best in _STATES:
        name = f"requests that are {strata.best}"
    told = f"{describe_replies(strata.replies)} asked so differ, others do not"
    chance = f"a random labelling parts them as well with probability {strata.p_value:.2g}"
    decision: Status = "detected" if stands_apart(plan, strata) else "undecided"
    return [make_finding("strata", decision, name, strata.log_e_apart, f"{told}; {chance}")]


def stands_apart(plan: Plan, strata: StrataEvidence) -> bool:
    """Whether the replies of one stratum differ, and no others."""
    return strata.p_value <= STRATUM_AT and strata.log_e_apart >= math.log(1 / plan.beta)


def cause_apart(plan: Plan, ledger: Ledger, evidence: Evidence, counted: Finding | None) -> Finding:
    """The best name of a cause: of the replies of a stratum, where it alone differs."""
    strata = evidence.strata
    if strata is not None and strata.best and stands_apart(plan, strata):
        scored = [row for row in ledger.rows if REFERENCE in row.text]
        apart = [is_of(row.strata, strata.best) for row in scored]
        evidence = judge_part(plan, evidence, np.array(apart))
        ledger = Ledger(rows=tuple(compress(scored, apart)))
    return name_cause(plan, ledger, evidence, counted)


def forged_findings(ledger: Ledger, decision: Decision) -> list[Finding]:
    """Reported log-probabilities that are not of what gave the reply."""
    told = [row for row in ledger.rows if row.outranked]
    count = sum(row.outranked or 0 for row in told)
    if decision != "inconsistent" or count < FORGED_FROM:
        return []
    detail = (
        f"at {count} positions of {describe_replies(len(told))} at temperature 0 another token is "
        "given than the endpoint reports as the likeliest: what it reports is not of what replies, "
        "or it samples all the same"
    )
    name = "log-probabilities of something else than the replies"
    return [make_finding("forged", "detected", name, None, detail)]


def is_rather_a_suspect(plan: Plan, ledger: Ledger, column: str) -> bool:
    """Whether a suspect, served honestly, explains the ordinary replies where a template does not.

    The template column comes first: only where a suspect leads it, at any noise, by 1/beta, and
    fits as calibrated stacks fit theirs (`name_cause`), are other weights what looked like another
    prompt.
    """
    rows = tuple(row for row in ledger.ordinary.rows if column in row.text)
    scored = Ledger(rows=rows)
    named = [name for name in plan.suspects if rows and all(name in row.text for row in rows)]
    if not named:
        return False
    channel = plan.calibration.text
    honest = honest_scales(TEXT_SCALES, channel)

    def totals(name: str) -> Array:
        return np.asarray(read_rows(scored.text(name), TEXT_SCALES, channel).sum(axis=0))

    cause = name_cause(plan, scored, weigh(plan, scored))
    if cause.decision != "detected" or cause.name not in named:
        return False
    lead = log_mean_exp(totals(cause.name)[honest]) - log_mean_exp(totals(column))
    return lead - math.log(len(named)) >= math.log(1 / plan.beta)


def name_cause(
    plan: Plan, ledger: Ledger, evidence: Evidence, counted: Finding | None = None
) -> Finding:
    """The best name for an inconsistency: a build or suspect, or noise and what it is like.

    Where nothing fits, prompts that are `counted` as by another tokenizer tell another family from
    roundings that nobody knows.

    Posterior over one half "noise of no known build" and one half the builds, evenly.
    """
    known = (*plan.bank, *plan.suspects)
    builds = [name for name in known if any(name in row.text for row in ledger.rows)]
    unread = [name for name in plan.suspects if name not in builds]
    scale = noise_scale(plan, evidence)
    like = f"noise like {scale.equivalent}" if evidence.rows else "reported log-probabilities"
    named = _rank(plan, ledger, builds)
    if named is None:
        return make_finding("cause", "undecided", like, None, "no build was scored")
    best, second = named.column, named.second
    if named.stands_out:
        runner = second or NO_BUILD
        what = VARIANTS[best].summary if best in VARIANTS else "a checkpoint that the card names"
        what = plan.suspects.get(best, what)
        detail = (
            f"{what}; fits {describe_replies(named.replies)} better than {runner}, "
            f"odds {_odds(named.log_odds)} to 1"
        )
        (own,) = (fit for fit in named.fits if fit.column == best)
        if own.fails(plan.beta):
            detail += (
                f"; even so, noise of a scale of {own.scale:.2g} is left, {own.divergence:.2g} "
                "nats per token beyond honest serving of it"
            )
        if best in plan.suspects:  # to be near a model is not to be that model
            near = own.fails(plan.beta)
            replies = "the replies are nearest to" if near else "the replies are those of"
            detail = f"{replies} {best}: {detail}"
            if near:
                return make_finding("cause", "undecided", f"a model near {best}", None, detail)
        return make_finding("cause", "detected", best, named.log_odds, detail)
    detail = f"no build of the bank fits better; the nearest is {best or second}"
    if scale.estimate is not None and scale.estimate >= SAMPLED_FROM:
        if all(fit.fails(plan.beta) for fit in named.fits):
            away = {fit.column: f"{fit.divergence:.2g}" for fit in named.fits}
            nearest = next(fit.column for fit in named.fits if fit.column != REFERENCE)
            like = NOTHING_FITS if counted is None else f"{ANOTHER_FAMILY}: {counted.name}"
            detail = (
                f"{away[REFERENCE]} nats per token from the published weights and {away[nearest]} "
                f"from the nearest build, {nearest}, each beyond honest serving"
            )
        detail += "; another model, another prompt, or sampling in spite of temperature 0"
    if unread:
        detail += f"; not compared with {', '.join(unread)}"
    return make_finding("cause", "undecided", like, None, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """The likeliest of some columns and of noise; noise is the empty name."""

    column: str
    second: str
    log_odds: float  # of the first against the second
    stands_out: bool  # it is no noise, and its posterior reaches NAMED_AT
    scores: dict[str, float]  # of each column and of noise, in nats
    penalties: float  # posterior of all penalties together
    fits: tuple[Fit, ...]  # how well each column, and noise, fits at its best
    replies: int


def _rank(plan: Plan, ledger: Ledger, columns: Sequence[str]) -> _Named | None:
    """One half noise of any scale, one half the columns, evenly; None: no reply has them all."""
    shared = [row for row in ledger.rows if all(name in row.text for name in columns)]
    if not columns or not shared:
        return None
    channel, both = plan.calibration.text, Ledger(rows=tuple(shared))
    honest = honest_scales(TEXT_SCALES, channel)
    read = {
        name: read_rows(both.text(name), TEXT_SCALES, channel) for name in (REFERENCE, *columns)
    }
    scores = {"": log_mean_exp(read[REFERENCE].sum(axis=0)[~honest])}
    for name in columns:
        totals = read[name].sum(axis=0)
        scores[name] = log_mean_exp(totals[honest]) - math.log(len(columns))
    ranked = sorted(scores, key=lambda name: -scores[name])
    best, second = ranked[0], ranked[1]
    whole = float(np.logaddexp.reduce(list(scores.values())))
    posterior = {name: math.exp(score - whole) for name, score in scores.items()}
    return _Named(
        column=best,
        second=second,
        log_odds=scores[best] - scores[second],
        stands_out=best != "" and posterior[best] >= NAMED_AT,
        scores=scores,
        penalties=sum(p for name, p in posterior.items() if name.startswith(SAMPLER)),
        fits=tuple(judge_fits(read, TEXT_SCALES, honest, tokens=sum(row.tokens for row in shared))),
        replies=len(shared),
    )


def named_penalty(plan: Plan, ledger: Ledger) -> _Named | None:
    """The penalty that greedy replies were made under; None: noise or a build fits as well.

    Whichever penalty it is, all of them together must stand out from what is no penalty.
    """
    scored = dict.fromkeys(name for row in ledger.rows for name in row.text)
    penalties = [name for name in scored if name.startswith(SAMPLER)]
    found = _rank(plan, ledger, [*penalties, *(name for name in plan.bank if name in scored)])
    return found if found is not None and found.penalties >= NAMED_AT else None


def penalty_finding(named: _Named) -> Finding:
    """The sampler finding of a penalty on greedy replies, against all that is not of its kind."""
    kind = _kind(named.column)
    others = {name: score for name, score in named.scores.items() if _kind(name) != kind}
    second = max(others, key=lambda name: others[name])
    log_odds = named.scores[named.column] - others[second]
    alike = [
        name.rpartition(" ")[2] for name, score in named.scores.items()
        if _kind(name) == kind and score > named.scores[named.column] - math.log(20)
    ]  # fmt: skip
    among = f" ({' or '.join(sorted(alike, key=float))})" if len(alike) > 1 else ""
    runner = second.removeprefix(SAMPLER) or NO_BUILD
    detail = (
        f"in greedy replies; fits {describe_replies(named.replies)} better than {runner}, "
        f"odds {_odds(log_odds)} to 1"
    )
    name = named.column.removeprefix(SAMPLER) + among
    return make_finding("sampler", "detected", name, log_odds, detail)


def _kind(column: str) -> str:
    """A column's name without its setting."""
    return column.rpartition(" ")[0] if column.startswith(SAMPLER) else column


def _odds(log_odds: float) -> str:
    return f"{math.exp(log_odds):,.0f}" if log_odds < math.log(1e6) else "over a million"


def noise_scale(plan: Plan, evidence: Evidence) -> NoiseScale:
    honest = plan.calibration.text.honest_scale
    marks = sorted(
        (
            (stack.name, stack.text.estimate)
            for stack in plan.calibration.stacks
            if stack.name in plan.bank and stack.text is not None
        ),
        key=lambda mark: (mark[1], mark[0]),
    )
    interval = evidence.interval
    return NoiseScale(
        estimate=None if interval is None else round(interval.estimate, 6),
        lower=None if interval is None else round(interval.lower, 6),
        upper=None if interval is None or interval.upper is None else round(interval.upper, 6),
        level=1 - plan.beta,
        equivalent=_equivalent(interval, honest, marks),
        honest=round(honest, 6),
        marks=tuple((name, round(scale, 6)) for name, scale in marks),
    )


def _equivalent(
    interval: Interval | None, honest: float, marks: Sequence[tuple[str, float]]
) -> str:
    """What the estimate is like on this model, in the name of the nearest rounding."""
    if interval is None:
        return "nothing scored"
    if interval.estimate <= honest * ABOVE:
        return "honest serving"
    roundings = [m for m in marks if m[0] in VARIANTS and VARIANTS[m[0]].family != "layers"]
    if not roundings:
        return "unknown: no rounding is calibrated"
    nearest = min(roundings, key=lambda m: abs(math.log(m[1] / interval.estimate)))[0]
    return f"{VARIANTS[nearest].family} rounding ({nearest})"
