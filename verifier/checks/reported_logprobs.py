"""What the endpoint says of its own tokens: log-probabilities that differ, or that are not right.

What a host reports is not what it serves. Null of the evidence on the weights: the reported
log-probabilities differ from the published weights' by at most the calibrated honest scale. It
counts only while the reports show no fault of reporting and no more noise than the text allows
(`evidence.reporting`): the e-value times that indicator has a mean of at most 1 at every stopping
time, and the share is lost where it is 0. A fault of reporting is a remark of its own, told at beta
where it has an error rate, and leaves the verdict on the weights to the text. Reports can be
forged, so they accuse and never acquit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from verifier.checks.check import (
    SINGLE,
    Account,
    Aspect,
    Case,
    Check,
    Remark,
    Weighed,
    make_finding,
)
from verifier.evidence.reporting import Fault, Reports
from verifier.records import Decision, Finding
from verifier.wording import describe_replies

LOGPROBS: Final = Aspect(name="logprobs", label="reported logprobs", place=40)
FORGED: Final = Aspect(
    name="forged", label="forged log-probabilities", place=160, role="remark",
    without_reference=True,  # its own words contradict each other
)  # fmt: skip
REPORTS: Final = Aspect(
    name="reports", label="what it reports of its tokens", place=162, role="remark",
    said="it reports",
)  # fmt: skip

#: Positions whose own log-probabilities contradict the reply, before it is said that they do.
FORGED_FROM: Final = 3


def weigh(case: Case, _kept: None) -> Weighed[Reports]:
    """Differences above the honest scale, against the best scale up to it, if they are believed."""
    reports = case.reports
    log_e = reports.log_e if reports.joins else -math.inf
    return Weighed(evidence=reports, log_e=(log_e,) if case.plan.top_logprobs else ())


def find(
    case: Case, evidence: Reports, account: Account, _found: Sequence[Finding]
) -> list[Finding]:
    """That they differ. After another rendering than the published one they say nothing."""
    plan = case.plan
    if not plan.top_logprobs or not evidence.joins or evidence.log_e < math.log(1 / plan.alpha):
        return []
    if account.column is not None:
        return []
    assert evidence.interval is not None
    detail = (
        f"they differ from the published weights' by a scale of {evidence.interval.estimate:.2g}; "
        f"honest serving reaches {plan.calibration.logprob.honest_scale:.2g}"
    )
    name = "reported log-probabilities"
    return [make_finding(LOGPROBS, "detected", name, evidence.log_e, detail)]


def name_it(
    case: Case, reports: Reports, account: Account, found: Sequence[Finding], decision: Decision
) -> list[Finding]:
    """What is wrong with the reports; or that they are not of what gave the reply.

    Where the replies differ, other weights explain what only looks unlike the published ones.
    """
    fault = reports.fault
    if fault is not None and (fault.of_reports or not account.differs):
        detail = _describe(case, reports, fault, found)
        return [make_finding(REPORTS, "detected", fault.name, fault.log_e, detail)]
    return _find_forged(case, account, found, decision)


def _describe(case: Case, reports: Reports, fault: Fault, found: Sequence[Finding]) -> str:
    """The fault in a sentence; where the text excludes what the reports accuse, that it does."""
    said = (
        f"the log-probabilities that it reports {fault.said} "
        f"({fault.replies} of {describe_replies(fault.of)})"
    )
    excluded = [f.name for f in found if f.aspect == "noise" and f.decision == "excluded"]
    if reports.log_e < math.log(1 / case.plan.alpha) or not excluded:
        return said
    return f"by their text the replies exclude {' and '.join(excluded)}; {said}"


def _find_forged(
    case: Case, account: Account, found: Sequence[Finding], decision: Decision
) -> list[Finding]:
    """Reported log-probabilities that are not of what gave the reply.

    Not where a penalty or single tokens change what is given, and not what is reported.
    """
    told = [row for row in case.ordinary.rows if row.outranked]
    count = sum(row.outranked or 0 for row in told)
    changed = account.penalty is not None or any(f.name == SINGLE for f in found)
    if decision != "inconsistent" or count < FORGED_FROM or changed:
        return []
    detail = (
        f"at {count} positions of {describe_replies(len(told))} at temperature 0 another token is "
        "given than the endpoint reports as the likeliest: what it reports is not of what replies, "
        "or it samples all the same"
    )
    name = "log-probabilities of something else than the replies"
    return [make_finding(FORGED, "detected", name, None, detail)]


def remarks(
    case: Case, reports: Reports, account: Account, found: Sequence[Finding]
) -> list[Remark]:
    """Whether the channel was used, and what it shows where it accuses nobody."""
    told = _remark(case, reports, account, found)
    return [] if told is None else [Remark(text=told, at="evidence")]


def _remark(case: Case, reports: Reports, account: Account, found: Sequence[Finding]) -> str | None:
    if not case.plan.top_logprobs:
        return "log-probabilities were not asked for: that channel was not run"
    unused = "reported log-probabilities were not used"
    told = next((f.detail for f in found if f.aspect == REPORTS.name), None)
    if told is not None:
        return f"{unused}: {told}"
    if reports.rows == 0:
        if not len(account.text):
            return None
        rows = case.ledger.rows
        problems = Counter(row.logprob_problem for row in rows if row.logprob_problem)
        why = problems.most_common(1)[0][0] if problems else "none were returned"
        return f"{unused}: {why}"
    if not reports.joins:
        return f"{unused}: {_why_not(reports)}"
    if reports.interval is not None and reports.log_e <= 0:
        return (
            f"reported log-probabilities of {reports.rows} replies agree with the published "
            f"weights (scale {reports.interval.estimate:.2g}); they can be forged, so they count "
            "only against an endpoint"
        )
    return None


def _why_not(reports: Reports) -> str:
    """Why reports without a settled fault have no say."""
    if reports.allowed is None:
        return "the text does not bound its noise, so it does not bear them out"
    scale = 0.0 if reports.interval is None else reports.interval.estimate
    if scale > reports.allowed:
        return (
            f"they differ from the published weights' by a scale of {scale:.2g}, and the text "
            f"bears out {reports.allowed:.2g} at most"
        )
    return "it is not settled whether they are right"


CHECK: Final = Check[None, Reports](
    name="reported_logprobs",
    aspects=(LOGPROBS, FORGED, REPORTS),
    shares=lambda plan: (0.5,) if plan.top_logprobs else (),
    weigh=weigh,
    find=find,
    name_it=name_it,
    remarks=remarks,
)
