"""The decision: evidence to findings and a verdict. Pure arithmetic, no models, no network.

"Inconsistent" is said when the evidence against honest serving (`combine`) reaches 1/alpha: its
false-alarm rate is at most alpha at every stopping time (Ville 1939). A departure is excluded or
detected at 1/beta, and "consistent" needs every one that the policy names excluded. Noise that is
above what any measured stack reaches, and below what is held against anyone, earns neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from verifier.checks import CHECKS, PLACES, substitution
from verifier.checks.capabilities.findings import CHECK as CAPABILITIES
from verifier.checks.capabilities.probe import describe as describe_capabilities
from verifier.checks.check import (
    Account,
    Case,
    Check,
    above_floor,
    greedy_is_quiet,
    is_between,
    panel_is_quiet,
    scale_of,
)
from verifier.evidence.noise import expected_differing
from verifier.files.run_folder import REPORT, write_json
from verifier.records import (
    REFERENCE,
    Certificate,
    Decision,
    Evidence,
    Finding,
    NoiseScale,
    Report,
    Usage,
)
from verifier.report_file import SCHEMA_VERSION, report_to_json
from verifier.verdict.case import provisionally, read_case
from verifier.verdict.combine import Combined, combine
from verifier.verdict.control import judge_beside, read_control
from verifier.verdict.explain import explain, headline
from verifier.verdict.notes import MAX_UNUSABLE, take_notes
from verifier.verdict.usage import count_usage, when_asked, why_not_judged
from verifier.wording import describe_audits, describe_replies, describe_seconds

#: Places at which replies leave the published weights that a report holds.
SHOWN_PLACES: Final = 5

_Found = list[tuple[int, Finding]]  # by its place in the report


def decide_folder(run: Path) -> Report:
    """Decide a run folder from its plan, ledger, exchanges and control, and write its report."""
    return judge_folder(run)[0]


def judge_folder(run: Path, *, writes: bool = True) -> tuple[Report, Case]:
    """The same, and the case, whatever its control shows; nothing is written without `writes`."""
    found, case = decided(read_case(run))
    return (publish if writes else _beside_control)(run, found, case), case


def publish(run: Path, found: Report, case: Case) -> Report:
    """Write what was found of a run's endpoint as it stands beside the control, if it has one."""
    report = _beside_control(run, found, case)
    write_json(run / REPORT, report_to_json(report))
    return report


def _beside_control(run: Path, found: Report, case: Case) -> Report:
    control = read_control(run)
    return found if control is None else judge_beside(found, control, case)


def decide(case: Case) -> Report:
    """The verdict on a case, whatever its control shows."""
    return decided(case)[0]


def decided(case: Case) -> tuple[Report, Case]:
    """The verdict, and the case with it: what is asked next follows from that."""
    combined = combine(case)
    account, usage = explain(case, combined), count_usage(case)
    found = _find(case, combined, account)
    decision = _conclude(case, account, [f for _, f in found], usage)
    if headline([f for _, f in found]) is not None and account.names == "weights":
        account = replace(account, names=None)
    found = _name(case, combined, account, found, decision)
    findings = tuple(finding for _, finding in found)
    if decision == "consistent" and _names_a_fault(case, findings):
        decision = "inconclusive"  # no certificate beside a fault that is named
    certificate = _certificate(case, decision)
    report = Report(
        schema_version=SCHEMA_VERSION,
        decision=decision,
        summary=provisionally(case.plan)
        + _summarise(case, combined, account, findings, usage, decision)
        + _beside(case, findings),
        findings=findings,
        noise_scale=_noise_scale(case, account),
        usage=usage,
        notes=tuple(take_notes(case, combined, account, findings, usage, decision, certificate)),
        policy=case.plan.policy_name,
        alpha=case.plan.alpha,
        beta=case.plan.beta,
        signature=_signature(case),
        capabilities=_capabilities(case),
        substitution=substitution.describe(
            case, combined.of(substitution.CHECK), account, decision
        ),
        certificate=certificate,
        asked=when_asked(case.attempts),
        evidence=_evidence(case, combined),
    )
    report = _at_deadline(case, report)
    sought = headline(findings) is None
    case = replace(
        case, report=report, log_e=combined.log_e, log_e_any_noise=combined.log_e_any_noise,
        seeks_cause=sought,
    )  # fmt: skip
    return report, case


# -- findings ----------------------------------------------------------------------------------


def _find(case: Case, combined: Combined, account: Account) -> _Found:
    """The departures of every check, in the order of the report."""
    found: _Found = []
    for check in CHECKS:
        earlier = [finding for _, finding in found]
        found += _placed(check, check.find(case, combined.of(check), account, earlier))
    return sorted(found, key=lambda one: one[0])


def _name(
    case: Case, combined: Combined, account: Account, found: _Found, decision: Decision
) -> _Found:
    """The same with names and remarks."""
    found = list(found)
    for check in CHECKS:
        earlier = [finding for _, finding in found]
        named = check.name_it(case, combined.of(check), account, earlier, decision)
        found += _placed(check, named)
    return sorted(found, key=lambda one: one[0])


def _placed(check: Check[object, object], findings: Sequence[Finding]) -> _Found:
    return [(PLACES[check.name, finding.aspect], finding) for finding in findings]


def _conclude(case: Case, account: Account, findings: Sequence[Finding], usage: Usage) -> Decision:
    if account.differs:
        return "inconsistent"
    required = [
        f for f in findings
        if case.aspects[f.aspect].of_policy
        or (case.aspects[f.aspect].required and f.decision != "not run")
    ]  # fmt: skip
    settled = usage.replies + usage.failures + usage.not_judged
    earned = (
        required
        and all(finding.decision == "excluded" for finding in required)
        and greedy_is_quiet(case, findings)
        and case.judged >= case.plan.min_replies
        and not above_floor(case, account.interval)
        and panel_is_quiet(case)
        and usage.failures + usage.not_judged <= MAX_UNUSABLE * settled
        and not any(f.decision == "detected" for f in findings)
    )
    return "consistent" if earned else "inconclusive"


def _names_a_fault(case: Case, findings: Sequence[Finding]) -> bool:
    return any(f.decision == "detected" and case.aspects[f.aspect].role == "name" for f in findings)


# -- the report --------------------------------------------------------------------------------


def _summarise(
    case: Case, combined: Combined, account: Account, findings: Sequence[Finding], usage: Usage,
    decision: Decision,
) -> str:  # fmt: skip
    replies = f"{describe_replies(usage.replies)}, {usage.completion_tokens} completion tokens"
    if case.reference:
        end = case.plan.calibration.text.tolerated
        replies += f"; {case.reference}: noise up to {end:.2g} is held against nobody"
    if decision == "inconsistent":
        needed = math.log(1 / case.plan.alpha)
        differ = headline(findings) or _differ(case, findings)
        evidence = f"evidence log e {combined.log_e:.1f}{_of_chain(case)}"
        return f"{differ}: {evidence}, {needed:.1f} was needed; {replies}"
    if decision == "consistent":
        names = [f.name for f in findings if f.decision == "excluded"]
        return f"excluded: {', '.join(names)}; {replies}"
    opened = [f.name for f in findings if f.decision == "undecided"]
    between = is_between(case)
    if account.by == "published" and (between or (above_floor(case, case.interval) and not opened)):
        channel, shown = case.plan.calibration.text, "not" if between else "not shown to be"
        lent = case.plan.calibration.provisional is not None
        known = "is known of honest stacks" if lent else "was calibrated"
        return (
            f"noise above what {known} ({channel.honest_scale:.2g}), and {shown} above what "
            f"is tolerated ({channel.tolerated:.2g}): no verdict on such a stack; {replies}"
        )
    if usage.replies == 0:
        said = f"no reply could be scored: {usage.failures} failed, {usage.not_judged} not judged"
        common = Counter(why_not_judged(case).values()).most_common(1)
        return f"{said}; {common[0][0]}" if common else said
    if opened:
        return f"still open: {', '.join(opened)}; {replies}"
    return f"{_lacking(case, findings)}; {replies}"


def _lacking(case: Case, findings: Sequence[Finding]) -> str:
    """What an audit in which nothing is open lacks for a verdict."""
    hidden = [f for f in findings if case.aspects[f.aspect].of_policy and f.decision == "not run"]
    if hidden:
        return f"the policy names what was not judged here: {', '.join(f.name for f in hidden)}"
    return "too few probes were answered for a verdict"


def _of_chain(case: Case) -> str:
    """How much of the evidence is that of earlier audits."""
    after = case.plan.after
    return "" if after is None else f" ({after.log_e:.1f} of it from {describe_audits(after)})"


def _certificate(case: Case, decision: Decision) -> Certificate | None:
    """What a consistent verdict rests on."""
    if decision != "consistent":
        return None
    plan = case.plan
    kinds = plan.configuration.get("audit", {}).get("kinds")
    return Certificate(
        shares=substitution.bound_shares(case),
        level=1 - plan.beta,
        replies=case.judged,
        stop=plan.min_replies,
        positions=plan.max_tokens,
        kinds=tuple(kinds or ()),
    )


def _evidence(case: Case, combined: Combined) -> Evidence | None:
    """What the ordinary replies look like under the published weights; None: scored without it."""
    found = [row.choices[REFERENCE] for row in case.scored if REFERENCE in row.choices]
    if not found or len(found) < len(case.scored):
        return None
    channel = case.plan.calibration.text
    cells = np.array([one.expected for one in found], dtype=float)
    places = (one.worst for one in found if one.worst is not None)
    return Evidence(
        log_e=math.floor(combined.log_e * 1e4) / 1e4,
        tokens=sum(row.tokens for row in case.scored),
        differing=sum(one.differing for one in found),
        honest=round(expected_differing(cells, channel.honest_scale, channel), 2),
        tolerated=round(expected_differing(cells, channel.tolerated, channel), 2),
        worst=tuple(
            sorted(places, key=lambda p: p.log_p_served - p.log_p_published)[:SHOWN_PLACES]
        ),
    )


def _beside(case: Case, findings: Sequence[Finding]) -> str:
    """What a summary says whatever the verdict, as it goes on."""
    found = ((case.aspects[f.aspect].said, f) for f in findings if f.decision == "detected")
    return "".join(f"; {said} {finding.name}" for said, finding in found if said)


def _differ(case: Case, findings: Sequence[Finding]) -> str:
    """What the replies differ in, by every name that is given."""
    names = [f for f in findings if case.aspects[f.aspect].role == "name"]
    told = [f.name for f in names if f.aspect != "strata" or f.decision == "detected"]
    named = " and ".join(  # what another name says too is said once
        name for n, name in enumerate(told) if not any(name in o for o in told[n + 1 :])
    )
    what = "prompts" if any(f.aspect == "template" for f in names) else "weights"
    return f"the replies differ from the published {what} ({named})"


def _noise_scale(case: Case, account: Account) -> NoiseScale:
    scale = scale_of(case, account.interval)
    if case.plan.by_texts:
        return replace(scale, equivalent="not known: of a trusted host texts alone are known")
    if account.unknown_words:
        what = "what words the hidden prompt has"
        if account.nearest is not None:
            what = "how chats are rendered"
        return replace(scale, equivalent=f"unknown: {what}")
    return scale


def _capabilities(case: Case) -> tuple[tuple[str, str], ...]:
    kept = case.kept[CAPABILITIES.name]
    return () if kept is None else tuple(describe_capabilities(kept))


def _at_deadline(case: Case, report: Report) -> Report:
    """The report of an audit that came to no verdict before its deadline."""
    if case.deadline_s is None or report.decision != "inconclusive":
        return report
    came = f"the deadline of {describe_seconds(case.deadline_s)} came first"
    note = f"{came} (audit.deadline): the same command goes on"
    return replace(report, summary=f"{came}; {report.summary}", notes=(*report.notes, note))


def _signature(case: Case) -> dict[str, object]:
    """Everything that two verdicts must share to be comparable, and what it takes to redo one."""
    plan = case.plan
    lent = plan.calibrated.provisional if plan.calibrated is not None else None
    return {
        **({} if lent is None else {"provisional": lent.model_dump(mode="json")}),
        "versions": dict(plan.versions),
        "engine": dict(case.ledger.engine),
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
