"""The evidence: plan and ledger to e-values against honest serving, before any threshold.

Null: the replies come from the published weights with logit noise of a scale at most the calibrated
honest one (and reported log-probabilities that differ by at most theirs). The evidence against it
is a mixture, with weights fixed in advance, of e-processes: noise above the honest scale, each
build that the policy names, the reported log-probabilities, a share of replies from something else
(`substitution`), single tokens (`single`), and, where they were scored, the template columns. In an
audit that asks for samples a share is their own (`sampling`). Assumptions: replies are independent,
and the calibrated model of a row holds (`stats`). Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verifier.checks.greedy_tokens import SINGLE_SHARE, SingleEvidence, weigh_single
from verifier.checks.length.evidence import (
    CONTEXT_SHARE,
    CeilingRow,
    LongRow,
    weigh_ceiling,
    weigh_context,
)
from verifier.checks.request_strata import STRATA_SHARE, StrataEvidence, weigh_strata
from verifier.checks.sampling.evidence import SAMPLER_SHARE, SamplerEvidence, weigh_samplers
from verifier.checks.sampling.stored_replies import REPEATS_SHARE, weigh_repeats
from verifier.checks.substitution import ShareEvidence, weigh_shares
from verifier.checks.template.evidence import TemplateEvidence, weigh_templates
from verifier.evidence.calibration import Channel
from verifier.evidence.e_values import (
    Interval,
    confidence_sequence,
    log_e_value,
    mix_log_e,
    spread_rows,
)
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES, Ledger, Row
from verifier.evidence.samplers import SINGLE_TOKENS, Sampler, kind_of, made, name_of
from verifier.plan import Plan
from verifier.records import REFERENCE
from verifier.reference.renderings.catalogue import entries_named

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Scales are compared with room for their decimal form.
ABOVE = 1 + 1e-9

#: Share of the template columns in the evidence: what they say is never subtle.
TEMPLATE_SHARE = 0.01

#: Share of the evidence that bets on a part of the replies.
PART_SHARE = 0.1


#: From this noise scale on, sampling in spite of temperature 0 is as likely as bad weights.
SAMPLED_FROM = 0.8

#: How much more evidence names a template fault beside weights that differ. On the embedded model a
#: 4-bit host after the right template reached 11.6 nats for a hidden prompt, where 11.5 suffice.
NOISY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the rows say, before any threshold."""

    rows: int
    text: Array  # [n, S], read as calibrated
    interval: Interval | None  # of the noise scale
    log_e_noise: float
    log_e_builds: dict[str, float]
    log_e_logprob: float
    logprob_rows: int
    logprob_interval: Interval | None
    shares: ShareEvidence | None  # of a part of the replies; None: judged by another measure
    templates: TemplateEvidence | None  # None: no other rendering is in the ledger
    samplers: SamplerEvidence | None  # None: the plan asks for no samples
    single: SingleEvidence
    strata: StrataEvidence | None  # None: all is asked in one way
    log_e_greedy: float  # of everything but the samples, against honest serving
    log_e: float  # of everything, against honest serving


def weigh(plan: Plan, ledger: Ledger) -> Evidence:
    """All evidence of a ledger against honest serving.

    Rows of a panel speak of templates alone: calibration knows ordinary probes.
    """
    names = {name for row in ledger.rows for name in row.rendered}
    templates = weigh_templates(ledger, entries_named(names), plan.calibration.text)
    ledger = ledger.ordinary
    text_channel, logprob_channel = plan.calibration.text, plan.calibration.logprob
    text = read_rows(ledger.text(), TEXT_SCALES, text_channel)
    logprob = read_rows(ledger.logprob(), LOGPROB_SCALES, logprob_channel)
    noise = _log_e_noise(text, TEXT_SCALES, text_channel)
    builds = {name: _log_e_build(plan, ledger, name) for name in plan.policy.builds}
    of_text = noise
    if builds:
        share = 0.5 / len(builds)
        of_text = mix_log_e([(0.5, noise), *((share, log_e) for log_e in builds.values())])
    of_logprob = _log_e_noise(logprob, LOGPROB_SCALES, logprob_channel)
    everything = mix_log_e([(0.5, of_text), (0.5, of_logprob)]) if plan.top_logprobs else of_text
    honest = honest_scales(TEXT_SCALES, text_channel)
    scored = {name: _build_rows(plan, ledger, name) for name in plan.policy.builds}
    known = {name: rows for name, rows in scored.items() if rows is not None}
    shares = weigh_shares(text, TEXT_SCALES, honest, known)
    everything = mix_log_e([(1 - PART_SHARE, everything), (PART_SHARE, shares.log_e)])
    single = _weigh_single(ledger, text_channel, honest)
    everything = mix_log_e([(1 - SINGLE_SHARE, everything), (SINGLE_SHARE, single.log_e)])
    everything += math.log1p(-TEMPLATE_SHARE)
    if templates is not None:
        weights = (1 - TEMPLATE_SHARE, TEMPLATE_SHARE)
        everything = mix_log_e(
            [(weights[0], everything - math.log(weights[0])), (weights[1], templates.log_e)]
        )
    strata = None
    if plan.varies:
        strata = weigh_strata(text, [row.strata for row in _scored(ledger)], honest, seed=plan.seed)
        everything = mix_log_e([(1 - STRATA_SHARE, everything), (STRATA_SHARE, strata.log_e)])
    level = 1 - plan.beta
    interval = confidence_sequence(text, TEXT_SCALES, level=level)
    samplers, of_greedy = None, everything
    if plan.samplers:
        samplers = weigh_samplers(
            ledger.sampled, planned_samplers(plan), plan.honest_samplers, level=level,
            noise=None if interval is None else interval.upper,
        )  # fmt: skip
        everything = mix_log_e(
            [
                (1 - SAMPLER_SHARE - REPEATS_SHARE, of_greedy),
                (SAMPLER_SHARE, samplers.log_e),
                (REPEATS_SHARE, weigh_repeats(ledger.repeats)),
            ]
        )
    return Evidence(
        rows=len(text),
        text=text,
        interval=interval,
        log_e_noise=noise,
        log_e_builds=builds,
        log_e_logprob=of_logprob,
        logprob_rows=len(logprob),
        logprob_interval=confidence_sequence(logprob, LOGPROB_SCALES, level=level),
        shares=shares,
        templates=templates,
        samplers=samplers,
        single=single,
        strata=strata,
        log_e_greedy=of_greedy,
        log_e=everything,
    )


def _scored(ledger: Ledger) -> list[Row]:
    """The rows of `Ledger.text`, in its order."""
    return [row for row in ledger.rows if REFERENCE in row.text]


def weigh_long(
    plan: Plan, log_e: float, prompts: Sequence[LongRow], replies: Sequence[CeilingRow]
) -> float:
    """The evidence `log_e` of everything else with that of long prompts and long replies."""
    parts = []
    if plan.context_tokens:
        found = weigh_context(prompts, tokens=plan.context_tokens, channel=plan.calibration.text)
        parts.append((CONTEXT_SHARE, 0.0 if found is None else found.log_e))
    if plan.output_tokens:
        parts.append((CONTEXT_SHARE, weigh_ceiling(replies, channel=plan.calibration.text)))
    return mix_log_e([(1 - CONTEXT_SHARE * len(parts), log_e), *parts])


def context_needed(plan: Plan) -> float:
    """The evidence of a cut or a ceiling, in nats, that suffices for the verdict by itself."""
    return math.log(1 / (plan.alpha * CONTEXT_SHARE))


def planned_samplers(plan: Plan) -> dict[str, Sampler]:
    """The samplers of a plan by name."""
    return {name: made(settings) for name, settings in plan.samplers.items()}


def named_column(plan: Plan, evidence: Evidence) -> str | None:
    """The template column that explains the replies; None unless a fault is detected.

    Its own share of the evidence must suffice for the verdict.
    """
    return None if evidence.templates is None else named_template(plan, evidence.templates)


def named_template(plan: Plan, templates: TemplateEvidence) -> str | None:
    """The same, of template evidence alone.

    None where the noise left is that of another model: a model of half the layers fitted another
    family's template by 116 nats.
    """
    if templates.scale >= SAMPLED_FROM or templates.log_e < needed_to_name(plan, templates):
        return None
    entries = entries_named(templates.ranked)
    if any(entries[name].kind == "valid" for name in templates.group):
        return None
    return templates.columns[templates.ranked[0]]


def needed_to_name(plan: Plan, templates: TemplateEvidence) -> float:
    """The evidence that names a template fault, in nats.

    Where noise beyond honest serving is left under the likeliest rendering, the weights are at
    fault too or instead, and their noise is not quite the model's: it may look like another prompt
    now and then. NOISY times the evidence is asked for there.
    """
    needed = math.log(1 / (plan.alpha * TEMPLATE_SHARE))
    return needed * (NOISY if leaves_noise(plan, templates) else 1)


def leaves_noise(plan: Plan, templates: TemplateEvidence) -> bool:
    """Whether noise beyond honest serving is left under the likeliest rendering."""
    return templates.scale > plan.calibration.text.honest_scale * ABOVE


def judge_under(plan: Plan, ledger: Ledger, evidence: Evidence, column: str) -> Evidence:
    """The same evidence, with the noise judged under another rendering of the prompts."""
    text = read_rows(ledger.text(column), TEXT_SCALES, plan.calibration.text)
    return replace(_judge_rows(plan, evidence, text), shares=None)


def judge_part(plan: Plan, evidence: Evidence, members: Mask) -> Evidence:
    """The same evidence, with the noise judged of some of the replies [n] alone."""
    return _judge_rows(plan, evidence, evidence.text[members])


def judge_completed(plan: Plan, evidence: Evidence, text: Array) -> Evidence:
    """The same evidence, with the noise judged of text completions [n, S] instead of chats."""
    return replace(_judge_rows(plan, evidence, text), shares=None)


def _judge_rows(plan: Plan, evidence: Evidence, text: Array) -> Evidence:
    interval = confidence_sequence(text, TEXT_SCALES, level=1 - plan.beta)
    return replace(evidence, rows=len(text), text=text, interval=interval)


def read_rows(rows: Array, scales: Array, channel: Channel) -> Array:
    """Rows as the calibration says they must be read: spread and tempered."""
    return channel.learning_rate * spread_rows(rows, scales, channel.spread)


def honest_scales(scales: Array, channel: Channel) -> Mask:
    """Which scales [S] of a grid honest serving may have."""
    return np.asarray(scales <= channel.honest_scale * ABOVE)


def _log_e_noise(rows: Array, scales: Array, channel: Channel) -> float:
    """Noise above the honest scale against the best scale up to it; 0 without rows."""
    if len(rows) == 0:
        return 0.0
    totals, honest = rows.sum(axis=0), honest_scales(scales, channel)
    return log_e_value(totals[~honest], totals[honest])


def _weigh_single(ledger: Ledger, channel: Channel, honest: Mask) -> SingleEvidence:
    columns = {}
    for name in map(name_of, SINGLE_TOKENS):
        changed, plain = (read_rows(some, TEXT_SCALES, channel) for some in ledger.single(name))
        columns[name] = (changed, plain)
    kinds = {name_of(sampler): kind_of(sampler) for sampler in SINGLE_TOKENS}
    told = [row.outranked > 0 for row in ledger.rows if row.outranked is not None]
    return weigh_single(columns, kinds, honest, told)


def build_totals(plan: Plan, ledger: Ledger, name: str) -> tuple[Array, Array] | None:
    """Totals [S] under a build and under the reference, of the rows scored under both."""
    rows = _build_rows(plan, ledger, name)
    return None if rows is None else (rows[0].sum(axis=0), rows[1].sum(axis=0))


def _build_rows(plan: Plan, ledger: Ledger, name: str) -> tuple[Array, Array] | None:
    """Rows [m, S] under a build and under the reference, of those scored under both."""
    rows = [row for row in ledger.rows if name in row.text]
    if not rows:
        return None
    channel, both = plan.calibration.text, Ledger(rows=tuple(rows))
    return (
        read_rows(both.text(name), TEXT_SCALES, channel),
        read_rows(both.text(), TEXT_SCALES, channel),
    )


def _log_e_build(plan: Plan, ledger: Ledger, name: str) -> float:
    """A build, served honestly, against the published weights, served honestly."""
    totals = build_totals(plan, ledger, name)
    if totals is None:
        return 0.0
    honest = honest_scales(TEXT_SCALES, plan.calibration.text)
    return log_e_value(totals[0][honest], totals[1][honest])
