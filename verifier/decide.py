"""The decision: evidence to findings and a verdict. Pure arithmetic, no models, no network.

"Inconsistent" is said when the evidence against honest serving (`weigh`) reaches 1/alpha: its
false-alarm rate is at most alpha at every stopping time (Ville 1939). A departure is excluded or
detected at 1/beta, and "consistent" needs every one that the policy names excluded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from verifier.bank import VARIANTS
from verifier.bypass import UNKNOWN_RENDERING, Bypass, read_bypass
from verifier.bypass import describe as describe_bypass
from verifier.capabilities import Capabilities, read_capabilities
from verifier.capabilities import describe as describe_capabilities
from verifier.capabilities import judge as judge_capabilities
from verifier.collect import read_attempts, read_outcomes
from verifier.context import Context, read_context
from verifier.context import judge as judge_context
from verifier.control import judge_beside, read_control
from verifier.counting import Counting, judge_counting, read_counting
from verifier.counts import OFFSETS
from verifier.engines import NO_DISTRIBUTION
from verifier.errors import ConfigError
from verifier.folder import LEDGER, REPORT, read_json, write_json
from verifier.goodness import Fit, judge_fits
from verifier.ledger import SAMPLER, TEMPLATE, TEXT_SCALES, Ledger, ledger_from_json
from verifier.parameters import judge_parameters
from verifier.plan import CONTEXT_KIND, OUTPUT_KIND, Plan, cost_usd, read_plan
from verifier.quiet import describe as describe_quiet
from verifier.records import (
    REFERENCE,
    Attempt,
    Decision,
    Failure,
    Finding,
    NoiseScale,
    NotJudged,
    Outcome,
    Reply,
    Report,
    Status,
    Substitution,
    Usage,
)
from verifier.renderings.catalogue import entries_named
from verifier.repeats import REPEATS_SHARE, Repeat, weigh_repeats
from verifier.report import SCHEMA_VERSION, report_to_json
from verifier.sampling import UNNAMED, describe_sampler
from verifier.score import NO_TOKENS
from verifier.shown import Shown, read_shown
from verifier.shown import judge as judge_shown
from verifier.stats import Array, Interval, log_e_against_scales, log_e_value, log_mean_exp
from verifier.strata import NAMED_AT as STRATUM_AT
from verifier.substitution import log_e_against_routing, log_e_for_routing
from verifier.weigh import (
    ABOVE,
    SAMPLED_FROM,
    Evidence,
    build_totals,
    honest_scales,
    judge_completed,
    judge_part,
    judge_under,
    named_column,
    planned_samplers,
    read_rows,
    weigh,
    weigh_long,
)
from verifier.wording import BELONGS_AT, CAUSES, describe_percent, describe_replies, describe_share

#: More than this share of probes without a usable reply, and no verdict is "consistent".
MAX_UNUSABLE = 0.5

#: A build is named when its posterior probability reaches this.
NAMED_AT = 0.95

#: What noise is called beside the builds.
NO_BUILD = "noise of no known build"

#: Sampled replies of which none can be read, before it is said that none can.
MIN_SET_ASIDE = 8

#: Counts of prompt tokens that favour a fault by this factor are looked into.
SUSPECTED_AT = 20.0

#: Positions whose own log-probabilities contradict the reply, before it is said that they do.
FORGED_FROM = 3

#: Replies up to which a stratum is looked for once something is wrong.
MOST_FOR_STRATA = 48

#: Strata of which one says that requests *are* so.
_STATES = ("streamed", "not streamed", "short", "long", "late", "early")

#: The cause where no column fits as calibrated stacks fit theirs.
NOTHING_FITS = "not this model as published, and nothing else that we know"

#: The same, where its prompts are counted by another tokenizer.
ANOTHER_FAMILY = "a model of another family"

#: What long prompts and long replies are asked for.
_LONG = ("context", "ceiling")


def decide_folder(run: Path) -> Report:
    """Decide a run folder from its plan, ledger, exchanges and control, and write its report."""
    return publish(run, judge_folder(run))


def publish(run: Path, found: Report) -> Report:
    """Write what was found of a run's endpoint as it stands beside the control, if it has one."""
    control = read_control(run)
    report = found if control is None else judge_beside(found, control)
    write_json(run / REPORT, report_to_json(report))
    return report


def judge_folder(run: Path) -> Report:
    """What the evidence of a run folder says of its endpoint, whatever its control shows."""
    plan = read_plan(run)
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)
    raw = read_json(run / LEDGER)
    engine = raw.get("engine")
    if not isinstance(engine, dict):
        raise ConfigError(f"{run / LEDGER}: engine: expected an object; run `verifier score` again")
    return decide(
        plan,
        ledger_from_json(raw, where=str(run / LEDGER)),
        engine=engine,
        attempts=read_attempts(run),
        outcomes=outcomes,
        capabilities=read_capabilities(run),
        shown=read_shown(run),
        bypass=read_bypass(run, plan),
        beside=describe_quiet(run, plan),
        counting=read_counting(run),
        context=read_context(run, outcomes) if asks_long(plan) else None,
    )


def decide(
    plan: Plan,
    ledger: Ledger,
    *,
    engine: Mapping[str, str],
    attempts: Sequence[Attempt],
    outcomes: Mapping[str, Outcome],
    capabilities: Capabilities | None = None,
    shown: Shown | None = None,
    bypass: Bypass | None = None,
    beside: Sequence[str] = (),
    counting: Counting | None = None,
    context: Context | None = None,
) -> Report:
    """The verdict on the rows of a ledger; `beside` it stands what a reader must know besides.

    What the endpoint can do is told beside it. Prompts that it shows decide no verdict; they name
    the fault once the replies have shown that there is one. So do its text completions, which tell
    a fault of its template from one of its weights.
    """
    evidence = weigh(plan, ledger)
    if context is not None:
        log_e = weigh_long(plan, evidence.log_e, context.prompts, context.replies)
        evidence = replace(evidence, log_e=log_e)
    usage = count_usage(plan, ledger, attempts, outcomes, (capabilities, shown, bypass))
    column = named_column(plan, evidence)
    if column is not None and is_rather_a_suspect(plan, ledger, column):
        column = None
    if bypass is not None and bypass.differs and _is_unknown(column):
        column = None  # other weights look like words that nobody knows
    template = column
    faults = () if shown is None or evidence.log_e < math.log(1 / plan.alpha) else shown.faults
    if column is None and faults:
        scored = {name for row in ledger.rows for name in row.text}
        column = next((TEMPLATE + name for name in faults if TEMPLATE + name in scored), None)
    penalty, judged = None, column
    if column is None and not faults and evidence.log_e >= math.log(1 / plan.alpha):
        penalty = _named_penalty(plan, ledger.ordinary)
    if column is not None:  # the template comes first: noise is judged under what was rendered
        evidence = judge_under(plan, ledger, evidence, column)
    elif penalty is not None:
        evidence = judge_under(plan, ledger.ordinary, evidence, penalty.column)
        judged = penalty.column
    unknown_words, unknown_rendering = _is_unknown(column), False
    if bypass is not None and evidence.log_e >= math.log(1 / plan.alpha):
        if bypass.fits:  # the weights, without the template
            evidence, unknown_words = judge_completed(plan, evidence, bypass.text), False
        if bypass.fits and judged is None and not faults:
            judged, unknown_rendering = TEMPLATE, True
    findings = [
        *_noise_findings(plan, evidence, usage.tokens_scored, unknown_words=unknown_words),
        *_build_findings(plan, ledger, judged, usage.tokens_scored),
        *_routing_findings(plan, evidence, usage.tokens_scored),
        *_logprob_findings(plan, evidence, judged),
    ]
    if penalty is not None:
        findings.append(_penalty_finding(penalty))
    elif evidence.samplers is not None:
        findings.append(_sampler_finding(plan, evidence, findings))
    if context is not None:
        differs = evidence.log_e_greedy >= math.log(1 / plan.alpha)
        findings += judge_context(plan, context, differs=differs)
    if ledger.repeats:
        findings.append(_repeats_finding(plan, ledger.repeats, evidence))
    decision = _conclude(plan, evidence, findings, usage)
    substitution = _substitution(plan, ledger.ordinary, evidence, decision)
    if shown is not None and shown.differs:  # decides nothing: it may be forged, or a slip
        findings.append(judge_shown(shown))
    if template is not None:
        findings += _template_causes(plan, evidence, unknown_words=unknown_words)
    elif faults:
        findings += _shown_causes(plan, evidence, faults, judged=column is not None)
    elif unknown_rendering:
        findings.append(_unknown_cause(evidence))
    elif decision == "inconsistent" and substitution is not None and _is_part(plan, evidence):
        findings += _part_causes(plan, ledger.ordinary, evidence, substitution)
    elif decision == "inconsistent" and seeks_cause(findings):
        counted = None if counting is None else judge_counting(counting, outcomes)
        findings += [] if counted is None else [counted]
        findings.append(_name_cause(plan, ledger.ordinary, evidence, counted))
    if decision == "inconsistent":
        findings += _strata_causes(plan, evidence)
    if penalty is None:  # which changes what is given, and not what is reported
        findings += _forged_findings(ledger.ordinary, decision)
    notes = [*beside, *_notes(plan, ledger, evidence, findings, usage, outcomes, decision)]
    if shown is not None and shown.prompts and not shown.differs:
        notes.append(
            f"{len(shown.prompts)} prompts that the endpoint shows are rendered as published; what "
            "is shown can be forged, so it acquits none"
        )
    notes += () if bypass is None else (describe_bypass(bypass),)
    samples = None if capabilities is None else judge_capabilities(capabilities)
    if samples is not None:  # seen beside the departures: it decides nothing
        findings.append(samples)
        if samples.decision == "detected":
            notes.append(f"{samples.name}: {samples.detail}")
    ignored = None if capabilities is None else judge_parameters(capabilities.parameters)
    if ignored is not None:  # decides nothing either: it says nothing of the weights
        findings.append(ignored)
        notes.append(f"parameters are taken and {ignored.name}: {ignored.detail}")
    scale = _noise_scale(plan, evidence)
    if unknown_words:
        scale = replace(scale, equivalent="unknown: what words the hidden prompt has")
    return Report(
        schema_version=SCHEMA_VERSION,
        decision=decision,
        summary=_summarise(
            decision, plan, evidence, findings, usage, why_not_judged(ledger, outcomes)
        ),
        findings=tuple(findings),
        noise_scale=scale,
        usage=usage,
        notes=tuple(notes),
        policy=plan.policy_name,
        alpha=plan.alpha,
        beta=plan.beta,
        signature=_signature(plan, engine),
        capabilities=() if capabilities is None else tuple(describe_capabilities(capabilities)),
        substitution=substitution,
    )


# -- findings ----------------------------------------------------------------------------------


def _is_unknown(column: str | None) -> bool:
    """Whether a template column stands for a hidden prompt whose words are not known."""
    name = (column or "").removeprefix(TEMPLATE)
    return bool(name) and entries_named([name])[name].stands_for is not None


def _noise_findings(
    plan: Plan, evidence: Evidence, tokens: int, *, unknown_words: bool
) -> list[Finding]:
    """Each class of the policy, by the confidence sequence of the noise scale.

    A class is excluded once every scale from its own upwards is outside the interval, detected
    once every scale below is.
    """
    scales = {c.name: c.scale for c in plan.calibration.classes}
    honest, found = plan.calibration.text.honest_scale, []
    for name in plan.policy.noise:
        scale = scales[name]
        if unknown_words:  # what is left of them looks like noise of the weights
            detail = "the words of the hidden prompt are not known; send what the client sent first"
            found.append(_finding("noise", "not run", name, None, detail))
            continue
        if scale <= honest * ABOVE:
            detail = (
                f"its scale {scale:.2g} is within honest serving ({honest:.2g}) on this card: "
                "greedy text cannot tell them apart"
            )
            found.append(_finding("noise", "not run", name, None, detail))
            continue
        if evidence.rows == 0:
            found.append(_finding("noise", "undecided", name, 0.0, "no reply was scored"))
            continue
        members = np.asarray(scale <= TEXT_SCALES * ABOVE)
        against = log_e_against_scales(evidence.text, members)
        towards = log_e_against_scales(evidence.text, ~members)
        found.append(
            _weighed(
                plan, "noise", name, towards=towards, against=against, tokens=tokens,
                excluded=f"the noise scale is below {scale:.2g}",
                detected=f"the noise scale is at least {scale:.2g}",
                undecided=f"the noise scale is not yet bounded below {scale:.2g}",
            )
        )  # fmt: skip
    return found


def _build_findings(plan: Plan, ledger: Ledger, column: str | None, tokens: int) -> list[Finding]:
    """Each exact build of the policy, by its own column.

    Detected: it explains the replies better than the published weights with noise of any scale.
    Excluded: the published weights, served honestly, explain them better. Other builds of its
    kind stay open either way. Under another rendering than the published one no build is judged.
    """
    if column is not None:
        detail = "the replies are to another rendering of the prompts; mend the template first"
        if column.startswith(SAMPLER):
            detail = "the replies are made under a penalty; mend the sampler first"
        return [_finding("weights", "not run", name, None, detail) for name in plan.policy.builds]
    ledger = ledger.ordinary
    honest, found = honest_scales(TEXT_SCALES, plan.calibration.text), []
    for name in plan.policy.builds:
        totals = build_totals(plan, ledger, name)
        if totals is None:
            found.append(_finding("weights", "undecided", name, 0.0, "no reply was scored"))
            continue
        build, reference = totals
        found.append(
            _weighed(
                plan, "weights", name, tokens=tokens,
                towards=log_e_value(build[honest], reference),
                against=log_e_value(reference[honest], build[honest]),
                excluded="the published weights explain the replies better than this build",
                detected="this build explains the replies better than the published weights",
                undecided="this build and the published weights explain the replies alike",
            )
        )  # fmt: skip
    return found


def _routing_findings(plan: Plan, evidence: Evidence, tokens: int) -> list[Finding]:
    """Each share of requests of the policy, by the confidence sequence of the share.

    Excluded: neither this share nor a larger one fits, for a model of any noise from the class's
    own upwards. Detected: no smaller share fits.
    """
    scales = {c.name: c.scale for c in plan.calibration.classes}
    honest, found = honest_scales(TEXT_SCALES, plan.calibration.text), []
    for of, share in plan.policy.routed.items():
        name = f"{describe_percent(share)} of requests to {of} or worse"
        suspects = np.asarray(scales[of] <= TEXT_SCALES * ABOVE) & ~honest
        if evidence.shares is None:
            detail = "the replies are to another rendering of the prompts; mend the template first"
            found.append(_finding("routing", "not run", name, None, detail))
            continue
        if scales[of] <= plan.calibration.text.honest_scale * ABOVE:
            detail = f"its scale {scales[of]:.2g} is within honest serving on this card"
            found.append(_finding("routing", "not run", name, None, detail))
            continue
        if evidence.rows == 0:
            found.append(_finding("routing", "undecided", name, 0.0, "no reply was scored"))
            continue
        shown = describe_percent(share)
        found.append(
            _weighed(
                plan, "routing", name, tokens=tokens,
                towards=log_e_for_routing(evidence.shares, share),
                against=log_e_against_routing(evidence.shares, suspects, honest, share),
                excluded=f"fewer than {shown} of the replies come from such a model",
                detected=f"{shown} or more of the replies come from something else",
                undecided=f"the share of other replies is not yet bounded below {shown}",
            )
        )  # fmt: skip
    return found


def _sampler_finding(plan: Plan, evidence: Evidence, others: Sequence[Finding]) -> Finding:
    """Whether sampled replies are drawn as asked; a sampler is named once the greedy replies are
    quiet.

    Noise in the weights flattens distributions as a temperature does, so samples are not judged
    where the greedy replies leave open, or show, that other weights are served.
    """
    found, name = evidence.samplers, UNNAMED
    assert found is not None
    needed = math.log(1 / plan.beta)
    if evidence.log_e_greedy >= math.log(1 / plan.alpha):
        detail = "the greedy replies differ already; mend what they show first"
        return _finding("sampler", "not run", name, None, detail)
    if found.set_aside and not found.rows:
        reason = max(found.set_aside, key=lambda why: found.set_aside[why])
        enough = sum(found.set_aside.values()) >= MIN_SET_ASIDE
        if not enough and reason not in (NO_DISTRIBUTION, NO_TOKENS):
            return _finding("sampler", "undecided", name, 0.0, reason)
        return _finding("sampler", "not run", name, None, reason)
    if not found.rows:
        return _finding("sampler", "undecided", name, 0.0, "no sampled reply was scored")
    told = f"{describe_replies(found.rows)} sampled at temperature 1, {found.tokens} tokens"
    if found.log_e >= needed:
        if not greedy_is_quiet(others) or found.log_e_named < needed:
            detail = (
                f"{told}: they are not drawn as asked from the published weights; whether that is "
                "the sampler or the weights is open while the greedy replies leave noise possible"
            )
            return _finding("sampler", "undecided", name, found.log_e, detail)
        said = describe_sampler(found, planned_samplers(plan))
        detail = f"{told}: so drawn rather than as asked; the greedy replies fit the weights"
        if said == UNNAMED:
            detail += f"; most like {' or '.join(found.names[:3])}"
        return _finding("sampler", "detected", said, found.log_e_named, detail)
    interval = found.temperature
    assert interval is not None
    upper = "more" if interval.upper is None else f"{interval.upper:g}"
    within = f"{told}: temperature {interval.lower:g} to {upper}"
    if found.log_e_honest >= needed:
        return _finding("sampler", "excluded", name, -found.log_e_honest, within)
    leading = found.log_e_honest
    more = math.ceil((needed - leading) * found.tokens / leading) if leading > 0 else None
    detail = f"{within}; {found.hardest} is not yet excluded"
    return _finding("sampler", "undecided", name, -leading, detail, more)


def _repeats_finding(plan: Plan, repeats: Sequence[Repeat], evidence: Evidence) -> Finding:
    """Whether samples come again more often than chance has it; other causes come first."""
    log_e, name = weigh_repeats(repeats), "replies from a store"
    again = [repeat for repeat in repeats if repeat.came_again]
    told = f"{len(again)} of {describe_replies(len(repeats))} to what was asked before came again"
    if log_e < math.log(1 / (plan.alpha * REPEATS_SHARE)):
        return _finding("repeats", "undecided", name, log_e, told)
    other = evidence.samplers is not None and evidence.samplers.log_e >= math.log(1 / plan.beta)
    if evidence.log_e_greedy >= math.log(1 / plan.alpha) or other:
        detail = f"{told}; other weights or another sampler may be why: mend these first"
        return _finding("repeats", "not run", name, None, detail)
    words = sum(repeat.otherwise for repeat in again)
    detail = f"{told} word by word at temperature 1, {words} of them asked in other words"
    return _finding("repeats", "detected", name, log_e, detail)


def greedy_is_quiet(findings: Sequence[Finding]) -> bool:
    """Whether the greedy replies exclude every departure of the weights that could be judged."""
    judged = [
        f.decision for f in findings if f.aspect in ("noise", "weights") and f.decision != "not run"
    ]
    return bool(judged) and all(decision == "excluded" for decision in judged)


def seeks_cause(findings: Sequence[Finding]) -> bool:
    """Whether a name for an inconsistency is to be sought among noise and builds: not where it is
    the samples that differ, nor where a penalty or a cut is named."""
    return not any(
        (f.aspect == "sampler" and f.decision in ("detected", "undecided"))
        or (f.aspect in (*_LONG, "repeats") and f.decision == "detected")
        for f in findings
    )


def is_far(report: Report) -> bool:
    """Whether greedy replies are as far from the published weights as another model's would be."""
    estimate = report.noise_scale.estimate
    return estimate is not None and estimate >= SAMPLED_FROM


def asks_long(plan: Plan) -> bool:
    """Whether long prompts or long replies are asked for."""
    return bool(plan.context_tokens or plan.output_tokens)


def waits_for_long(plan: Plan, report: Report) -> bool:
    """Whether only what long prompts and replies say is open: they are asked last."""
    waiting = [f.aspect for f in report.findings if f.decision == "undecided"]
    return (
        asks_long(plan) and bool(waiting) and set(waiting) <= {*_LONG}
        and may_be_sampled(plan, report)
    )  # fmt: skip


def may_be_sampled(plan: Plan, report: Report) -> bool:
    """Whether samples can be judged: the greedy replies are many enough, and exclude all else."""
    routed = all(f.decision != "undecided" for f in report.findings if f.aspect == "routing")
    enough = report.usage.replies >= plan.min_replies
    return greedy_is_quiet(report.findings) and routed and enough


def wants_samples(report: Report) -> bool:
    """Whether more samples may decide: none is decided, or what was found has no name yet."""
    unnamed = any(f.aspect == "sampler" and f.name == UNNAMED for f in report.findings)
    return report.decision == "inconclusive" or (report.decision == "inconsistent" and unnamed)


def _logprob_findings(plan: Plan, evidence: Evidence, column: str | None) -> list[Finding]:
    """What the endpoint says of its own tokens: it may accuse, never acquit: it can be forged.

    After another rendering than the published one it says nothing of the weights.
    """
    if not plan.top_logprobs or evidence.log_e_logprob < math.log(1 / plan.alpha):
        return []
    if column is not None:
        return []
    assert evidence.logprob_interval is not None
    scale = evidence.logprob_interval.estimate
    detail = (
        f"they differ from the published weights' by a scale of {scale:.2g}; honest serving "
        f"reaches {plan.calibration.logprob.honest_scale:.2g}"
    )
    name = "reported log-probabilities"
    return [_finding("logprobs", "detected", name, evidence.log_e_logprob, detail)]


def _weighed(
    plan: Plan,
    aspect: str,
    name: str,
    *,
    towards: float,
    against: float,
    tokens: int,
    excluded: str,
    detected: str,
    undecided: str,
) -> Finding:
    """A finding from the log e-values towards and against a departure."""
    needed = math.log(1 / plan.beta)
    if against >= needed:
        return _finding(aspect, "excluded", name, -against, excluded)
    if towards >= needed:
        return _finding(aspect, "detected", name, towards, detected)
    leading = max(against, towards)
    more = math.ceil((needed - leading) * tokens / leading) if leading > 0 else None
    log_e = towards if towards > against else -against
    return _finding(aspect, "undecided", name, log_e, undecided, more)


def _finding(
    aspect: str,
    decision: Status,
    name: str,
    log_e: float | None,
    detail: str,
    tokens_needed: int | None = None,
) -> Finding:
    return Finding(
        aspect=aspect,
        decision=decision,
        name=name,
        log_e=None if log_e is None else round(log_e + 0.0, 4),
        detail=detail,
        tokens_needed=tokens_needed,
    )


# -- the cause ---------------------------------------------------------------------------------


def _template_causes(plan: Plan, evidence: Evidence, *, unknown_words: bool) -> list[Finding]:
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
    found = [_finding("template", "detected", " or ".join(group), templates.log_e, detail)]
    if unknown_words:
        return found
    return [*found, *_noise_left(plan, evidence, group[0])]


def _unknown_cause(evidence: Evidence) -> Finding:
    """That chats are rendered or routed in a way that is not known."""
    assert evidence.interval is not None
    detail = (
        f"{describe_replies(evidence.rows)} to the same prompts, completed as text without the "
        f"endpoint's template, fit the published weights (noise scale "
        f"{evidence.interval.estimate:.2g}), and chats do not. Advice: compare the prompts that "
        "chats are rendered to, and what serves them, with the published"
    )
    return _finding("template", "detected", UNKNOWN_RENDERING, None, detail)


def _shown_causes(
    plan: Plan, evidence: Evidence, faults: Sequence[str], *, judged: bool
) -> list[Finding]:
    """The template fault that the endpoint's own prompts show, and what noise is left under it."""
    entry = entries_named(faults)[faults[0]]
    detail = f"{entry.summary}, as the prompts that the endpoint shows; advice: {entry.advice}"
    found = [_finding("template", "detected", " or ".join(faults), None, detail)]
    return [*found, *(_noise_left(plan, evidence, faults[0]) if judged else ())]


def _noise_left(plan: Plan, evidence: Evidence, name: str) -> list[Finding]:
    """The weights' own fault under a named rendering; none where the noise left is honest."""
    honest = plan.calibration.text.honest_scale * ABOVE
    if evidence.interval is None or evidence.interval.lower <= honest:
        return []
    like = f"noise like {_noise_scale(plan, evidence).equivalent}"
    detail = f"judged under {name}: no build was scored after that rendering"
    return [_finding("cause", "undecided", like, None, detail)]


def _is_part(plan: Plan, evidence: Evidence) -> bool:
    """Whether some of the replies, and not all, come from something else."""
    shares = evidence.shares
    return shares is not None and shares.log_e_part >= math.log(1 / plan.beta)


def _part_causes(
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
    found = [_finding("substitution", "detected", "a part of the replies", log_e, detail)]
    rows = tuple(row for row in ledger.rows if row.probe_id in told)
    if rows:
        part = judge_part(plan, evidence, evidence.shares.belongs >= BELONGS_AT)
        found.append(_name_cause(plan, Ledger(rows=rows), part))
    return found


def _strata_causes(plan: Plan, evidence: Evidence) -> list[Finding]:
    """The way of asking whose replies alone differ, where one stands out."""
    strata = evidence.strata
    if strata is None or not strata.best or strata.log_e_apart <= 0:
        return []
    name = f"requests {strata.best}"
    if strata.best in _STATES:
        name = f"requests that are {strata.best}"
    told = f"{describe_replies(strata.replies)} asked so differ, others do not"
    chance = f"a random labelling parts them as well with probability {strata.p_value:.2g}"
    named = strata.p_value <= STRATUM_AT and strata.log_e_apart >= math.log(1 / plan.beta)
    decision: Status = "detected" if named else "undecided"
    return [_finding("strata", decision, name, strata.log_e_apart, f"{told}; {chance}")]


def wants_stratum(report: Report) -> bool:
    """Whether more replies may tell which way of asking it is whose replies differ."""
    opened = any(f.aspect == "strata" and f.decision == "undecided" for f in report.findings)
    return opened and report.usage.replies < MOST_FOR_STRATA


def _forged_findings(ledger: Ledger, decision: Decision) -> list[Finding]:
    """Reported log-probabilities that are not of what gave the reply."""
    told = [row for row in ledger.rows if row.outranked]
    count = sum(row.outranked for row in told)
    if decision != "inconsistent" or count < FORGED_FROM:
        return []
    detail = (
        f"at {count} positions of {describe_replies(len(told))} at temperature 0 another token is "
        "given than the endpoint reports as the likeliest: what it reports is not of what replies, "
        "or it samples all the same"
    )
    name = "log-probabilities of something else than the replies"
    return [_finding("forged", "detected", name, None, detail)]


def _substitution(
    plan: Plan, ledger: Ledger, evidence: Evidence, decision: Decision
) -> Substitution | None:
    """The share of replies from something else, where the policy asks or something is wrong."""
    shares = evidence.shares
    if shares is None or shares.share is None:
        return None
    if decision != "inconsistent" and not plan.policy.routed:
        return None
    ids = [row.probe_id for row in ledger.rows if REFERENCE in row.text]
    return Substitution(
        suspect=shares.suspect,
        share=shares.share.estimate,
        lower=shares.share.lower,
        upper=shares.share.upper,
        level=shares.share.level,
        replies=tuple(
            (probe_id, round(float(chance), 4))
            for probe_id, chance in zip(ids, shares.belongs, strict=True)
        ),
        suspects=tuple(
            (name, own.estimate, own.lower, own.upper) for name, own in shares.shares.items()
        ),
    )


def suspicious(run: Path) -> frozenset[str]:
    """The probes whose replies come from something else, where only a part of all do."""
    plan = read_plan(run)
    ledger = ledger_from_json(read_json(run / LEDGER), where=str(run / LEDGER)).ordinary
    evidence = weigh(plan, ledger)
    found = _substitution(plan, ledger, evidence, "inconsistent")
    if found is None or not _is_part(plan, evidence):
        return frozenset()
    return frozenset(name for name, chance in found.replies if chance >= BELONGS_AT)


def names_template(report: Report) -> bool:
    """Whether a report names a template fault of the catalogue."""
    return any(f.aspect == "template" and f.name != UNKNOWN_RENDERING for f in report.findings)


def wants_completions(report: Report) -> bool:
    """Whether text completions may tell a fault of the template from one of the weights.

    Not where all replies have a cause by name, or the weights fit under a named rendering.
    """
    named = any(f.aspect in ("substitution", "cause") and f.decision == "detected"
                for f in report.findings)  # fmt: skip
    return (
        report.decision == "inconsistent"
        and seeks_cause(report.findings)
        and not named
        and not greedy_is_quiet(report.findings)
    )


def is_rather_a_suspect(plan: Plan, ledger: Ledger, column: str) -> bool:
    """Whether a suspect, served honestly, explains the ordinary replies where a template does not.

    The template column comes first: only where a suspect leads it, at any noise, by 1/beta, and
    fits as calibrated stacks fit theirs (`_name_cause`), are other weights what looked like another
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

    cause = _name_cause(plan, scored, weigh(plan, scored))
    if cause.decision != "detected" or cause.name not in named:
        return False
    lead = log_mean_exp(totals(cause.name)[honest]) - log_mean_exp(totals(column))
    return lead - math.log(len(named)) >= math.log(1 / plan.beta)


def suspects_template(run: Path) -> bool:
    """Whether it pays to score template columns: evidence is rising, or the counts disagree."""
    plan = read_plan(run)
    ledger = ledger_from_json(read_json(run / LEDGER), where=str(run / LEDGER))
    evidence = weigh(plan, ledger)
    templates = evidence.templates
    # one count without a reply may be a filler, which only a second shows
    tells = templates is not None and (evidence.rows > 0 or templates.counted > 1)
    counted = templates.log_e if templates is not None and tells else 0.0
    return evidence.log_e >= math.log(1 / plan.alpha) / 2 or counted >= math.log(SUSPECTED_AT)


def _name_cause(
    plan: Plan, ledger: Ledger, evidence: Evidence, counted: Finding | None = None
) -> Finding:
    """The best name for an inconsistency: a build or suspect, or noise and what it is like.

    Where nothing fits, prompts that are `counted` as by another tokenizer tell another family from
    roundings that nobody knows.

    Posterior over one half "noise of no known build" and one half the builds, evenly.
    """
    known = (*plan.bank, *plan.suspects)
    builds = [name for name in known if any(name in row.text for row in ledger.rows)]
    scale = _noise_scale(plan, evidence)
    like = f"noise like {scale.equivalent}" if evidence.rows else "reported log-probabilities"
    named = _rank(plan, ledger, builds)
    if named is None:
        return _finding("cause", "undecided", like, None, "no build was scored")
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
                return _finding("cause", "undecided", f"a model near {best}", None, detail)
        return _finding("cause", "detected", best, named.log_odds, detail)
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
    return _finding("cause", "undecided", like, None, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """The likeliest of some columns and of noise; noise is the empty name."""

    column: str
    second: str
    log_odds: float  # of the first against the second
    stands_out: bool  # it is no noise, and its posterior reaches NAMED_AT
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
        penalties=sum(p for name, p in posterior.items() if name.startswith(SAMPLER)),
        fits=tuple(judge_fits(read, TEXT_SCALES, honest, tokens=sum(row.tokens for row in shared))),
        replies=len(shared),
    )


def _named_penalty(plan: Plan, ledger: Ledger) -> _Named | None:
    """The penalty that greedy replies were made under; None: noise or a build fits as well.

    Whichever penalty it is, all of them together must stand out from what is no penalty.
    """
    scored = dict.fromkeys(name for row in ledger.rows for name in row.text)
    penalties = [name for name in scored if name.startswith(SAMPLER)]
    found = _rank(plan, ledger, [*penalties, *(name for name in plan.bank if name in scored)])
    return found if found is not None and found.penalties >= NAMED_AT else None


def _penalty_finding(named: _Named) -> Finding:
    runner = named.second.removeprefix(SAMPLER) or NO_BUILD
    detail = (
        f"in greedy replies; fits {describe_replies(named.replies)} better than {runner}, "
        f"odds {_odds(named.log_odds)} to 1"
    )
    name = named.column.removeprefix(SAMPLER)
    return _finding("sampler", "detected", name, named.log_odds, detail)


def _odds(log_odds: float) -> str:
    return f"{math.exp(log_odds):,.0f}" if log_odds < math.log(1e6) else "over a million"


# -- the verdict -------------------------------------------------------------------------------


def _conclude(
    plan: Plan, evidence: Evidence, findings: Sequence[Finding], usage: Usage
) -> Decision:
    if evidence.log_e >= math.log(1 / plan.alpha):
        return "inconsistent"
    aspects = ("noise", "weights", "routing", "sampler", *_LONG)
    required = [f for f in findings if f.aspect in aspects and f.decision != "not run"]
    settled = usage.replies + usage.failures + usage.not_judged
    earned = (
        required
        and all(finding.decision == "excluded" for finding in required)
        and greedy_is_quiet(findings)
        and usage.replies >= plan.min_replies
        and usage.failures + usage.not_judged <= MAX_UNUSABLE * settled
    )
    return "consistent" if earned else "inconclusive"


def _summarise(
    decision: Decision,
    plan: Plan,
    evidence: Evidence,
    findings: Sequence[Finding],
    usage: Usage,
    unjudged: Mapping[str, str],
) -> str:
    replies = f"{describe_replies(usage.replies)}, {usage.completion_tokens} completion tokens"
    if decision == "inconsistent":
        causes = [f for f in findings if f.aspect in CAUSES]
        named = " and ".join(
            f.name for f in causes if f.aspect != "strata" or f.decision == "detected"
        )
        what = "prompts" if any(f.aspect == "template" for f in findings) else "weights"
        differ = f"the replies differ from the published {what} ({named})"
        if not seeks_cause(findings):
            named = " and ".join(f.name for f in findings if f.aspect == "sampler")
            differ = f"the replies are not sampled as asked ({named})"
        if any(f.aspect == "repeats" and f.decision == "detected" for f in findings):
            differ = "samples are not drawn anew (replies from a store)"
        cuts = [f for f in findings if f.aspect in _LONG and f.decision == "detected"]
        if cuts:
            named = " and ".join(f.name for f in cuts)
            differ = f"what is long is cut without a word ({named})"
        return (
            f"{differ}: evidence log e "
            f"{evidence.log_e:.1f}, {math.log(1 / plan.alpha):.1f} was needed; {replies}"
        )
    if decision == "consistent":
        names = [f.name for f in findings if f.decision == "excluded"]
        return f"excluded: {', '.join(names)}; {replies}"
    opened = [f.name for f in findings if f.decision == "undecided"]
    if usage.replies == 0:
        said = f"no reply could be scored: {usage.failures} failed, {usage.not_judged} not judged"
        common = Counter(unjudged.values()).most_common(1)
        return f"{said}; {common[0][0]}" if common else said
    if opened:
        return f"still open: {', '.join(opened)}; {replies}"
    return f"too few probes were answered for a verdict; {replies}"


def _noise_scale(plan: Plan, evidence: Evidence) -> NoiseScale:
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


def _notes(
    plan: Plan,
    ledger: Ledger,
    evidence: Evidence,
    findings: Sequence[Finding],
    usage: Usage,
    outcomes: Mapping[str, Outcome],
    decision: Decision,
) -> list[str]:
    """What a reader must know beside the verdict."""
    notes = [f"{f.name} was not judged: {f.detail}" for f in findings if f.decision == "not run"]
    notes.extend(plan.card_notes)
    if not plan.top_logprobs:
        notes.append("log-probabilities were not asked for: that channel was not run")
    elif evidence.logprob_rows == 0 and evidence.rows:
        problems = Counter(row.logprob_problem for row in ledger.rows if row.logprob_problem)
        why = problems.most_common(1)[0][0] if problems else "none were returned"
        notes.append(f"reported log-probabilities were not used: {why}")
    elif evidence.logprob_interval is not None and evidence.log_e_logprob <= 0:
        notes.append(
            f"reported log-probabilities of {evidence.logprob_rows} replies agree with the "
            f"published weights (scale {evidence.logprob_interval.estimate:.2g}); they can be "
            "forged, so they count only against an endpoint"
        )
    templates = evidence.templates
    if templates is not None and templates.accounting.of:
        counts = templates.accounting
        if counts.offset in OFFSETS and counts.offset and counts.matched == counts.of:
            notes.append(
                f"the endpoint counts {counts.offset:+d} prompt tokens on every request against "
                "what the published template renders: an accounting difference"
            )
    outcomes = {name: o for name, o in outcomes.items() if not _is_long(name)}
    failures = [o for o in outcomes.values() if isinstance(o, Failure)]
    if failures:
        common = Counter(failure.reason for failure in failures).most_common(1)[0][0]
        notes.append(f"{len(failures)} probes failed, most often: {common}")
    unjudged = why_not_judged(ledger, outcomes)
    if unjudged:
        common = Counter(unjudged.values()).most_common(1)[0][0]
        notes.append(f"{len(unjudged)} answers say nothing about the weights, most often: {common}")
    if unjudged and templates is not None and templates.counted:
        counts = templates.accounting
        notes.append(
            "their counts of prompt tokens still speak of the template: of all counts "
            f"{counts.matched} in {counts.of} are those of the published one"
        )
    if usage.tokens_left_out:
        notes.append(
            f"{usage.tokens_left_out} of {usage.tokens_left_out + usage.tokens_scored} tokens "
            "were left out: the text does not tell which tokens they were"
        )
    if decision == "inconclusive":
        spent = usage.completion_tokens + plan.max_tokens > plan.budget_completion_tokens
        if spent:
            notes.append(
                f"the budget of {plan.budget_completion_tokens} completion tokens ended first"
            )
        unusable = usage.failures + usage.not_judged
        if unusable > MAX_UNUSABLE * max(1, unusable + usage.replies):
            notes.append("most probes got no usable reply, so no endpoint is called consistent")
    return notes


def why_not_judged(ledger: Ledger, outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Why an answer says nothing about the weights, by probe: as it came, or once it was read."""
    found = {row.probe_id: row.unjudged for row in ledger.rows if row.unjudged is not None}
    return found | {o.probe_id: o.reason for o in outcomes.values() if isinstance(o, NotJudged)}


def _is_long(probe_id: str) -> bool:
    """Whether a probe asks for what is long: its own finding says what came of it."""
    return probe_id.startswith((CONTEXT_KIND, OUTPUT_KIND))


def count_usage(
    plan: Plan,
    ledger: Ledger,
    attempts: Sequence[Attempt],
    outcomes: Mapping[str, Outcome],
    beside: Sequence[Capabilities | Shown | Bypass | None] = (),
) -> Usage:
    """What was asked and spent; `beside` is what was asked for other ends than scoring.

    Where the endpoint does not count tokens, ours are counted.
    """
    ours = {row.probe_id: row.tokens + row.left_out for row in ledger.rows}
    ours |= {row.probe_id: row.tokens + row.left_out for row in ledger.sampled}
    answers = [o for o in outcomes.values() if isinstance(o, Reply | NotJudged)]
    prompt = sum(answer.prompt_tokens or 0 for answer in answers)
    completion = sum(
        ours.get(answer.probe_id, 0)
        if answer.completion_tokens is None
        else answer.completion_tokens
        for answer in answers
    )
    set_aside = [
        row for row in ledger.rows
        if row.unjudged is not None and isinstance(outcomes.get(row.probe_id), Reply)
    ]  # fmt: skip
    others = [record for record in beside if record is not None]
    prompt += sum(record.prompt_tokens for record in others)
    completion += sum(record.completion_tokens for record in others)
    return Usage(
        requests=len(attempts) + sum(record.requests for record in others),
        replies=sum(row.unjudged is None for row in ledger.rows),
        failures=sum(isinstance(o, Failure) and not _is_long(n) for n, o in outcomes.items()),
        not_judged=sum(isinstance(o, NotJudged) and not _is_long(n) for n, o in outcomes.items())
        + len(set_aside),
        prompt_tokens=prompt,
        completion_tokens=completion,
        tokens_scored=sum(row.tokens for row in ledger.rows),
        tokens_left_out=sum(row.left_out for row in ledger.rows),
        cost_usd=cost_usd(plan.prices, prompt_tokens=prompt, completion_tokens=completion),
    )


def _signature(plan: Plan, engine: Mapping[str, str]) -> dict[str, object]:
    """Everything that two verdicts must share to be comparable, and what it takes to redo one."""
    return {
        "versions": dict(plan.versions),
        "engine": dict(engine),
        "card": plan.card,
        "card_sha256": plan.card_sha256,
        "tensors_sha256": plan.tensors_sha256,
        "tokenizer_sha256": plan.tokenizer_sha256,
        "template_sha256": plan.template_sha256,
        "pool_sha256": plan.pool_sha256,
        "pool_size": plan.pool_size,
        "seed": plan.seed,
        "configuration": plan.configuration,
    }
