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

from verifier.checks.capabilities.parameters import judge_parameters
from verifier.checks.capabilities.probe import Capabilities, read_capabilities
from verifier.checks.capabilities.probe import describe as describe_capabilities
from verifier.checks.capabilities.probe import judge as judge_capabilities
from verifier.checks.claimed_counts import judge_claimed, read_claimed
from verifier.checks.hidden_reasoning import describe as describe_quiet
from verifier.checks.length.ask_and_score import Context, read_context
from verifier.checks.length.ask_and_score import judge as judge_context
from verifier.checks.sampling.evidence import UNNAMED
from verifier.checks.template.completions import UNKNOWN_RENDERING, Bypass, read_bypass
from verifier.checks.template.completions import describe as describe_bypass
from verifier.checks.template.shown_prompts import Shown, read_shown
from verifier.checks.template.shown_prompts import judge as judge_shown
from verifier.checks.tokenizer import Counting, judge_counting, read_counting
from verifier.evidence.ledger import TEMPLATE, Ledger, read_ledger
from verifier.evidence.prompt_counts import OFFSETS
from verifier.files.run_folder import COMPLETIONS, DEADLINE, LEDGER, REPORT, write_json
from verifier.files.stored import read_record
from verifier.host.budget import OWN_END
from verifier.host.collect import read_attempts, read_outcomes, read_unanswered
from verifier.plan import CONTEXT_KIND, OUTPUT_KIND, Plan, cost_usd, read_plan
from verifier.records import (
    REFERENCE,
    Attempt,
    Decision,
    Failure,
    Finding,
    NotJudged,
    Outcome,
    Reply,
    Report,
    Request,
    Seconds,
    Status,
    Substitution,
    Usage,
)
from verifier.report_file import SCHEMA_VERSION, report_to_json
from verifier.scoring.score_file import refuse_others
from verifier.verdict.causes import (
    cause_apart,
    forged_findings,
    is_part,
    is_rather_a_suspect,
    named_penalty,
    noise_scale,
    part_causes,
    penalty_finding,
    shown_causes,
    strata_causes,
    template_causes,
    unknown_cause,
)
from verifier.verdict.control import judge_beside, read_control
from verifier.verdict.departures import (
    SINGLE,
    build_findings,
    greedy_is_quiet,
    is_unknown,
    logprob_findings,
    noise_findings,
    repeats_finding,
    routing_findings,
    sampler_finding,
    single_finding,
)
from verifier.verdict.weigh import (
    SAMPLED_FROM,
    Evidence,
    judge_completed,
    judge_under,
    named_column,
    weigh,
    weigh_long,
)
from verifier.wording import BELONGS_AT, CAUSES, describe_replies, describe_seconds

#: More than this share of probes without a usable reply, and no verdict is "consistent".
MAX_UNUSABLE = 0.5


#: Counts of prompt tokens that favour a fault by this factor are looked into.
SUSPECTED_AT = 20.0


#: Probes asked at least, and at most, to tell which way of asking it is, once something is wrong.
LEAST_FOR_STRATA = 16
MOST_FOR_STRATA = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the last command ended that came to no verdict: all that `deadline.json` holds."""

    deadline_s: Seconds


#: What long prompts and long replies are asked for.
_LONG = ("context", "ceiling")


def decide_folder(run: Path) -> Report:
    """Decide a run folder from its plan, ledger, exchanges and control, and write its report."""
    return publish(run, judge_folder(run))


def publish(run: Path, found: Report) -> Report:
    """Write what was found of a run's endpoint as it stands beside the control, if it has one."""
    report = _beside_control(run, found)
    write_json(run / REPORT, report_to_json(report))
    return report


def standing_of(run: Path) -> Report:
    """What `decide_folder` would write, with nothing written."""
    return _beside_control(run, judge_folder(run))


def _beside_control(run: Path, found: Report) -> Report:
    control = read_control(run)
    return found if control is None else judge_beside(found, control)


def judge_folder(run: Path) -> Report:
    """What the evidence of a run folder says of its endpoint, whatever its control shows."""
    plan = read_plan(run)
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)
    ledger = own_ledger(run, outcomes)
    return decide(
        plan,
        ledger,
        engine=ledger.engine,
        attempts=read_attempts(run),
        outcomes=outcomes,
        capabilities=read_capabilities(run),
        shown=read_shown(run),
        bypass=read_bypass(run, plan),
        beside=describe_quiet(run, plan),
        counting=read_counting(run),
        context=read_context(run, outcomes) if asks_long(plan) else None,
        deadline_s=read_deadline(run),
        unanswered=(*read_unanswered(run), *read_unanswered(run / COMPLETIONS)),
    )


def read_deadline(run: Path) -> float | None:
    """The deadline (seconds) at which the last command of a run folder ended; None: at none.

    Raises ConfigError for what is no such time.
    """
    if not (run / DEADLINE).exists():
        return None
    return read_record(run / DEADLINE, Ended, advice="remove it, and audit again").deadline_s


def own_ledger(run: Path, outcomes: Mapping[str, Outcome]) -> Ledger:
    """The ledger of a run folder. Raises ConfigError when a row is not that of its answer."""
    ledger = read_ledger(run)
    carried = [(row.probe_id, row.reply_sha256) for row in ledger.rows]
    carried += [(row.probe_id, row.reply_sha256) for row in ledger.sampled]
    carried += [(one.probe_id, one.reply_sha256) for one in ledger.repeats]
    refuse_others(carried, outcomes, where=run / LEDGER)
    return ledger


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
    unanswered: Sequence[Request] = (),
    deadline_s: float | None = None,
) -> Report:
    """The verdict on the rows of a ledger; `beside` it stands what a reader must know besides.

    What the endpoint can do is told beside it. Prompts that it shows decide no verdict; they name
    the fault once the replies have shown that there is one. So do its text completions, which tell
    a fault of its template from one of its weights. `deadline_s` is given where it came first.
    """
    evidence = weigh(plan, ledger)
    if context is not None:
        log_e = weigh_long(plan, evidence.log_e, context.prompts, context.replies)
        evidence = replace(evidence, log_e=log_e)
    others = (capabilities, shown, bypass)
    usage = count_usage(plan, ledger, attempts, outcomes, others, unanswered)
    column = named_column(plan, evidence)
    if column is not None and is_rather_a_suspect(plan, ledger, column):
        column = None
    if bypass is not None and bypass.differs and is_unknown(column):
        column = None  # other weights look like words that nobody knows
    template = column
    faults = () if shown is None or evidence.log_e < math.log(1 / plan.alpha) else shown.faults
    if column is None and faults:
        scored = {name for row in ledger.rows for name in row.text}
        column = next((TEMPLATE + name for name in faults if TEMPLATE + name in scored), None)
    penalty, judged = None, column
    if column is None and not faults and evidence.log_e >= math.log(1 / plan.alpha):
        penalty = named_penalty(plan, ledger.ordinary)
    if column is not None:  # the template comes first: noise is judged under what was rendered
        evidence = judge_under(plan, ledger, evidence, column)
    elif penalty is not None:
        evidence = judge_under(plan, ledger.ordinary, evidence, penalty.column)
        judged = penalty.column
    unknown_words, unknown_rendering = is_unknown(column), False
    if bypass is not None and evidence.log_e >= math.log(1 / plan.alpha):
        if bypass.fits:  # the weights, without the template
            evidence, unknown_words = judge_completed(plan, evidence, bypass.text), False
        if bypass.fits and judged is None and not faults:
            judged, unknown_rendering = TEMPLATE, True
    findings = [
        *noise_findings(plan, evidence, usage.tokens_scored, unknown_words=unknown_words),
        *build_findings(plan, ledger, judged, usage.tokens_scored),
        *routing_findings(plan, evidence, usage.tokens_scored),
        *logprob_findings(plan, evidence, judged),
    ]
    single = None if judged else single_finding(plan, evidence, findings)
    if penalty is not None:
        findings.append(penalty_finding(penalty))
    elif evidence.samplers is not None:
        findings.append(sampler_finding(plan, evidence, findings))
    findings += [] if single is None else [single]
    if context is not None:
        differs = evidence.log_e_greedy >= math.log(1 / plan.alpha)
        findings += judge_context(plan, context, differs=differs)
    if ledger.repeats:
        findings.append(repeats_finding(plan, ledger.repeats, evidence))
    decision = _conclude(plan, evidence, findings, usage)
    substitution = _substitution(plan, ledger.ordinary, evidence, decision)
    if shown is not None and shown.differs:  # decides nothing: it may be forged, or a slip
        findings.append(judge_shown(shown))
    if template is not None:
        findings += template_causes(plan, evidence, unknown_words=unknown_words)
    elif faults:
        findings += shown_causes(plan, evidence, faults, judged=column is not None)
    elif unknown_rendering:
        findings.append(unknown_cause(evidence))
    elif decision == "inconsistent" and substitution is not None and is_part(plan, evidence):
        findings += part_causes(plan, ledger.ordinary, evidence, substitution)
    elif decision == "inconsistent" and seeks_cause(findings):
        counted = None if counting is None else judge_counting(counting, outcomes)
        findings += [] if counted is None else [counted]
        findings.append(cause_apart(plan, ledger.ordinary, evidence, counted))
    if decision == "inconsistent":
        findings += strata_causes(plan, evidence)
    if penalty is None and single is None:  # which change what is given, not what is reported
        findings += forged_findings(ledger.ordinary, decision)
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
    claimed = judge_claimed(read_claimed(attempts, outcomes))
    if claimed is not None:  # nor does this
        findings.append(claimed)
        notes.append(f"{claimed.name}: {claimed.detail}")
    if unanswered:
        notes.append(
            f"{len(unanswered)} requests have no answer on record, as the audit was stopped while "
            "they were under way; they may have been billed: "
            f"{sum(one.prompt_tokens for one in unanswered):,} prompt and "
            f"{sum(one.max_tokens for one in unanswered):,} completion tokens at most, which count "
            "against the budget and are not in what is reported as spent"
        )
    scale = noise_scale(plan, evidence)
    if unknown_words:
        scale = replace(scale, equivalent="unknown: what words the hidden prompt has")
    summary = _summarise(
        decision, plan, evidence, findings, usage, why_not_judged(ledger, outcomes)
    )
    if deadline_s is not None and decision == "inconclusive":
        came = f"the deadline of {describe_seconds(deadline_s)} came first"
        summary = f"{came}; {summary}"
        notes.append(f"{came} (audit.deadline): the same command goes on")
    return Report(
        schema_version=SCHEMA_VERSION,
        decision=decision,
        summary=summary,
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
    return (
        greedy_is_quiet(report.findings) and routed and enough
        and not finds_single(report, "undecided")
    )  # fmt: skip


def finds_single(report: Report, decision: Status) -> bool:
    """Whether single tokens of greedy replies are suspected (undecided), or detected."""
    return any(f.name == SINGLE and f.decision == decision for f in report.findings)


def wants_samples(report: Report) -> bool:
    """Whether more samples may decide: none is decided, or what was found has no name yet."""
    named = any(
        (f.aspect == "repeats" and f.decision == "detected")
        or (f.aspect == "sampler" and f.name != UNNAMED)
        for f in report.findings
    )  # fmt: skip
    return report.decision == "inconclusive" or (report.decision == "inconsistent" and not named)


def wants_stratum(plan: Plan, report: Report, *, asked: int) -> bool:
    """Whether more replies may tell which way of asking it is whose replies differ."""
    if not plan.varies or report.decision != "inconsistent":
        return False
    found = [f.decision for f in report.findings if f.aspect == "strata"]
    most = MOST_FOR_STRATA if "undecided" in found else LEAST_FOR_STRATA
    return "detected" not in found and asked < most


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
    ledger = read_ledger(run).ordinary
    evidence = weigh(plan, ledger)
    found = _substitution(plan, ledger, evidence, "inconsistent")
    if found is None or not is_part(plan, evidence):
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


def suspects_template(run: Path) -> bool:
    """Whether it pays to score template columns: evidence is rising, or the counts disagree."""
    plan = read_plan(run)
    ledger = read_ledger(run)
    evidence = weigh(plan, ledger)
    templates = evidence.templates
    # one count without a reply may be a filler, which only a second shows
    tells = templates is not None and (evidence.rows > 0 or templates.counted > 1)
    counted = templates.log_e if templates is not None and tells else 0.0
    return evidence.log_e >= math.log(1 / plan.alpha) / 2 or counted >= math.log(SUSPECTED_AT)


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
    unanswered: Sequence[Request] = (),
) -> Usage:
    """What was asked and spent; `beside` is what was asked for other ends than scoring.

    Where the endpoint does not count tokens, ours are counted, and where it counts what cannot be,
    what was asked. Requests that are `unanswered` were sent, so they count as requests.
    """
    ours = {row.probe_id: row.tokens + row.left_out for row in ledger.rows}
    ours |= {row.probe_id: row.tokens + row.left_out for row in ledger.sampled}
    claims = read_claimed(attempts, outcomes)
    prompt = sum(claim.believed_prompt or 0 for claim in claims.values())
    completion = 0
    for probe_id, claim in claims.items():
        counted, own = claim.believed_completion, ours.get(probe_id, 0)
        # an endpoint need not count the end of a turn
        completion += own if counted is None else max(counted, own - OWN_END)
    set_aside = [
        row for row in ledger.rows
        if row.unjudged is not None and isinstance(outcomes.get(row.probe_id), Reply)
    ]  # fmt: skip
    others = [record for record in beside if record is not None]
    prompt += sum(record.prompt_tokens for record in others)
    completion += sum(record.completion_tokens for record in others)
    return Usage(
        requests=len(attempts) + len(unanswered) + sum(record.requests for record in others),
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
        "config_sha256": plan.config_sha256,
        "tokenizer_sha256": plan.tokenizer_sha256,
        "template_sha256": plan.template_sha256,
        "pool_sha256": plan.pool_sha256,
        "pool_size": plan.pool_size,
        "seed": plan.seed,
        "configuration": plan.configuration,
    }
