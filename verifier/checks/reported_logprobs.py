"""What the endpoint says of its own tokens: log-probabilities that differ, or are of another reply.

Null of the evidence: the reported log-probabilities differ from the published weights' by at most
the calibrated honest scale. They can be forged, so they accuse and never acquit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
from verifier.evidence.e_values import Interval, confidence_sequence
from verifier.evidence.ledger import LOGPROB_SCALES
from verifier.evidence.noise import log_e_noise, read_rows
from verifier.records import Decision, Finding
from verifier.wording import describe_replies

LOGPROBS: Final = Aspect(name="logprobs", label="reported logprobs", place=40)
FORGED: Final = Aspect(
    name="forged", label="forged log-probabilities", place=160, role="remark",
    without_reference=True,  # its own words contradict each other
)  # fmt: skip

#: Positions whose own log-probabilities contradict the reply, before it is said that they do.
FORGED_FROM: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobEvidence:
    """What reported log-probabilities say, before any threshold."""

    log_e: float
    rows: int
    interval: Interval | None  # of the scale (nats) by which they differ


def weigh(case: Case, _kept: None) -> Weighed[LogprobEvidence]:
    """Differences above the honest scale, against the best scale up to it."""
    channel = case.plan.calibration.logprob
    rows = read_rows(case.ordinary.logprob(), LOGPROB_SCALES, channel)
    log_e = log_e_noise(rows, LOGPROB_SCALES, channel)
    evidence = LogprobEvidence(
        log_e=log_e, rows=len(rows),
        interval=confidence_sequence(rows, LOGPROB_SCALES, level=1 - case.plan.beta),
    )  # fmt: skip
    return Weighed(evidence=evidence, log_e=(log_e,) if case.plan.top_logprobs else ())


def find(
    case: Case, evidence: LogprobEvidence, account: Account, _found: Sequence[Finding]
) -> list[Finding]:
    """That they differ. After another rendering than the published one they say nothing."""
    plan = case.plan
    if not plan.top_logprobs or evidence.log_e < math.log(1 / plan.alpha):
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
    case: Case, _evidence: LogprobEvidence, account: Account, found: Sequence[Finding],
    decision: Decision,
) -> list[Finding]:  # fmt: skip
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
    case: Case, evidence: LogprobEvidence, account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """Whether the channel was used, and what it shows where it accuses nobody."""
    told = _remark(case, evidence, account)
    return [] if told is None else [Remark(text=told, at="evidence")]


def _remark(case: Case, evidence: LogprobEvidence, account: Account) -> str | None:
    if not case.plan.top_logprobs:
        return "log-probabilities were not asked for: that channel was not run"
    if evidence.rows == 0:
        if not len(account.text):
            return None
        rows = case.ledger.rows
        problems = Counter(row.logprob_problem for row in rows if row.logprob_problem)
        why = problems.most_common(1)[0][0] if problems else "none were returned"
        return f"reported log-probabilities were not used: {why}"
    if evidence.interval is not None and evidence.log_e <= 0:
        return (
            f"reported log-probabilities of {evidence.rows} replies agree with the published "
            f"weights (scale {evidence.interval.estimate:.2g}); they can be forged, so they count "
            "only against an endpoint"
        )
    return None


CHECK: Final = Check[None, LogprobEvidence](
    name="reported_logprobs",
    aspects=(LOGPROBS, FORGED),
    shares=lambda plan: (0.5,) if plan.top_logprobs else (),
    weigh=weigh,
    find=find,
    name_it=name_it,
    remarks=remarks,
)
