"""What a reader must know beside the verdict, in the order in which it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from verifier.checks import CHECKS
from verifier.checks.check import Account, Case, Remark
from verifier.records import Certificate, Decision, Failure, Finding, Usage
from verifier.verdict.combine import Combined
from verifier.verdict.usage import has_own_finding, why_not_judged
from verifier.wording import describe_audits, describe_percent, describe_replies

#: More than this share of probes without a usable reply, and no verdict is "consistent".
MAX_UNUSABLE: Final = 0.5


def take_notes(
    case: Case, combined: Combined, account: Account, findings: Sequence[Finding],
    usage: Usage, decision: Decision, certificate: Certificate | None,
) -> list[str]:  # fmt: skip
    """The remarks of every check, each in its place among what holds for all."""
    remarks = [
        remark for check in CHECKS
        for remark in check.remarks(case, combined.of(check), account, findings)
    ]  # fmt: skip
    unjudged = {n: why for n, why in why_not_judged(case).items() if not has_own_finding(n)}
    return [
        *_at("first", remarks),
        *_on_certificate(case, certificate),
        *(f"{f.name} was not judged: {f.detail}" for f in findings if f.decision == "not run"),
        *case.plan.card_notes,
        *_at("evidence", remarks),
        *_on_answers(case, unjudged),
        *(_at("answers", remarks) if unjudged else ()),
        *_on_budget(case, usage, decision),
        *_on_chain(case),
        *_at("beside", remarks),
        *_at("last", remarks),
        *_on_unanswered(case),
    ]


def _on_certificate(case: Case, found: Certificate | None) -> list[str]:
    """How much of the traffic a consistent verdict leaves open, and what it looked at."""
    if found is None:
        return []
    level = describe_percent(found.level)
    bounds = [
        f"fewer than {describe_percent(share)} of the requests went to {of} or worse"
        for of, share in found.shares
    ]
    kinds = f"probes of kind {', '.join(found.kinds)}" if found.kinds else "probes of every kind"
    rests = (
        f"the verdict rests on {describe_replies(found.replies)} of up to {found.positions} tokens "
        f"to {kinds}, and speaks of nothing later or other"
    )
    notes = [rests]
    if bounds:
        notes.append(f"{', and '.join(bounds)}, each at {level}; smaller shares stay open")
    if case.plan.configuration.get("audit", {}).get("min_replies") is None:
        notes.append(
            f"no verdict was to be given before {found.stop} replies, a number drawn from the "
            "seed, so that no endpoint knows when to stop caring"
        )
    return notes


def _at(place: str, remarks: Sequence[Remark]) -> list[str]:
    return [remark.text for remark in remarks if remark.at == place]


def _on_answers(case: Case, unjudged: Mapping[str, str]) -> list[str]:
    """Probes without an answer, and answers that say nothing."""
    notes = []
    outcomes = {name: o for name, o in case.outcomes.items() if not has_own_finding(name)}
    failures = [o for o in outcomes.values() if isinstance(o, Failure)]
    if failures:
        common = Counter(failure.reason for failure in failures).most_common(1)[0][0]
        notes.append(f"{len(failures)} probes failed, most often: {common}")
    if unjudged:
        common = Counter(unjudged.values()).most_common(1)[0][0]
        notes.append(f"{len(unjudged)} answers say nothing about the weights, most often: {common}")
    return notes


def _on_budget(case: Case, usage: Usage, decision: Decision) -> list[str]:
    """Tokens left out, and why there is no verdict."""
    notes, plan = [], case.plan
    if usage.tokens_left_out:
        notes.append(
            f"{usage.tokens_left_out} of {usage.tokens_left_out + usage.tokens_scored} tokens "
            "were left out: the text does not tell which tokens they were"
        )
    if decision == "inconclusive":
        if usage.completion_tokens + plan.max_tokens > plan.budget_completion_tokens:
            notes.append(
                f"the budget of {plan.budget_completion_tokens} completion tokens ended first"
            )
        unusable = usage.failures + usage.not_judged
        if unusable > MAX_UNUSABLE * max(1, unusable + usage.replies):
            notes.append("most probes got no usable reply, so no endpoint is called consistent")
    return notes


def _on_chain(case: Case) -> list[str]:
    """How many audits came before this one, and what they said."""
    after = case.plan.after
    if after is None:
        return []
    told = ", ".join(f"{n} {name}" for name, n in Counter(after.decisions).items())
    note = (
        f"{describe_audits(after)} of this endpoint came before ({told}); their evidence against "
        f"honest serving, log e {after.log_e:.1f}, counts here"
    )
    return [note]


def _on_unanswered(case: Case) -> list[str]:
    """Requests that may have been billed."""
    if not case.unanswered:
        return []
    prompt = sum(one.prompt_tokens for one in case.unanswered)
    completion = sum(one.max_tokens for one in case.unanswered)
    note = (
        f"{len(case.unanswered)} requests have no answer on record, as the audit was stopped while "
        f"they were under way; they may have been billed: {prompt:,} prompt and {completion:,} "
        "completion tokens at most, which count against the budget and are not in what is reported "
        "as spent"
    )
    return [note]
