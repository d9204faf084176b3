"""How soon replies leave those of a trusted host of which texts alone are known.

Null: a reply leaves with a hazard, a token at risk, that is at most KAPPA times the largest of
three: the most that pairs of honest stacks of this kind of model were measured to show, what the
trusted host shows asked twice, and what it shows beside a second one. All but the first are
unknown, and bet on together (`evidence.hazards`, which has the assumptions and the source). No
likelihood is known, so no noise scale is; builds, templates and causes are not told apart. It
stands in the place of noise: what it says are the classes of the policy, as of 4-bit weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from verifier.checks.check import (
    Account,
    Aspect,
    Case,
    Check,
    Remark,
    Weighed,
    make_finding,
    make_weighed,
)
from verifier.evidence.calibration import Calibration
from verifier.evidence.hazards import (
    KAPPA,
    KINDS,
    Compared,
    Kind,
    Leaving,
    compare,
    leaving_of,
    log_e_above,
    log_e_alike,
)
from verifier.evidence.ledger import Left
from verifier.plan_file import Plan
from verifier.records import Finding
from verifier.reference.trusted import Trusted
from verifier.wording import describe_replies

LEAVING: Final = Aspect(
    name="leaving",
    label="how soon replies leave a trusted host's",
    place=15,
    required=True,
    of_policy=True,
    of_weights=True,
)
SOONER: Final = Aspect(name="sooner", label="sooner than honest hosts leave each other", place=12)

#: Share of the evidence: all but nothing of what noise has, which says nothing here.
SHARE: Final = 0.999

#: What it is called that a target leaves too soon.
TOO_SOON: Final = "leaves the trusted host's replies too soon"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the replies say, before any threshold."""

    found: Compared
    target: tuple[Leaving, ...]  # beside all that is known of their questions
    alone: tuple[Leaving, ...]  # beside the trusted host's first replies
    second: tuple[Leaving, ...]  # a second trusted host beside these; (): there is none
    kind: Kind
    trusted: Trusted


def mark_of(name: str, calibration: Calibration, kind: Kind) -> float:
    """The hazard that is held to be the least of a class: that of the mildest 4-bit build that was
    measured, and as much less as the class begins below the mildest one, for hazards grow as noise
    does. (fp8 weights, of a third of the noise of nf4, leave at two fifths of its hazard.)"""
    (scale,) = (known.scale for known in calibration.classes if known.name == name)
    mildest = min(
        (s.text.estimate for s in calibration.stacks if s.family == "4-bit" and s.text), default=0.0
    )
    return kind.rounded * min(1.0, scale / mildest if mildest else 1.0)


def is_told(name: str, calibration: Calibration, kind: Kind) -> bool:
    """Whether where replies leave tells a class from what is held against nobody."""
    known = any(one.name == name for one in calibration.classes)
    return not known or mark_of(name, calibration, kind) > kind.tolerated


def shares(plan: Plan) -> tuple[float, ...]:
    """All that noise has, where noise cannot speak."""
    return (SHARE,) if plan.by_texts else ()


def weigh(case: Case, _kept: None) -> Weighed[Evidence | None]:
    """The target beside the trusted host, the trusted host beside itself and beside a second."""
    trusted = case.plan.trusted
    if not case.plan.by_texts or trusted is None:
        return Weighed(evidence=None)
    rows = [row.left for row in case.ordinary.rows if row.left is not None]
    target, alone, itself = (
        _leavings(rows, name) for name in ("target", "alone", "itself")
    )  # fmt: skip
    kind = KINDS[trusted.kind]
    second = _leavings(rows, "second")
    found = compare(target, itself, kind=kind, second=second)
    evidence = Evidence(
        found=found, target=target, alone=alone, second=second, kind=kind, trusted=trusted
    )
    return Weighed(evidence=evidence, log_e=(found.log_e,))


def _leavings(rows: Sequence[Left], name: str) -> tuple[Leaving, ...]:
    told = (getattr(row, name) for row in rows)
    return tuple(leaving_of(one) for one in told if one is not None)


def find(
    case: Case, evidence: Evidence | None, _account: Account, _found: Sequence[Finding]
) -> list[Finding]:
    """Each class of the policy, by the mark of 4-bit builds; and that it leaves too soon.

    A class is excluded once replies are shown to leave less often than the mildest 4-bit build
    does, detected once they are shown to leave as often. Where there is no mark neither is said.
    """
    if evidence is None:
        return []
    found = [_find_class(case, evidence, name) for name in case.plan.policy.noise]
    if evidence.found.log_e >= math.log(1 / case.plan.alpha):
        found.insert(
            0,
            make_finding(SOONER, "detected", TOO_SOON, evidence.found.log_e, _on_target(evidence)),
        )
    return found


def _on_target(evidence: Evidence) -> str:
    left, replies = sum(row.left for row in evidence.target), len(evidence.target)
    return (
        f"{left} of {describe_replies(replies)} left, {_percent(evidence.found.target)} a token, "
        "where honest hosts are held to leave each other by up to "
        f"{_percent(_tolerated(evidence))}"
    )


def _tolerated(evidence: Evidence) -> float:
    """The hazard that is held against nobody, as it looks."""
    return max(evidence.kind.tolerated, KAPPA * evidence.found.trusted)


def _find_class(case: Case, evidence: Evidence, name: str) -> Finding:
    kind, trusted = evidence.kind, evidence.trusted
    mark = mark_of(name, case.plan.calibration, kind)
    alike = log_e_alike(
        evidence.alone, kind=kind, second=evidence.second, same_model=trusted.same_model,
        share=mark / kind.rounded,
    )  # fmt: skip
    if alike is None:
        detail = (
            "how soon 4-bit builds of this model leave is not known, so no host is called "
            "consistent; record the pack with a second trusted host (--second)"
        )
        return make_finding(LEAVING, "not run", name, None, detail)
    if not evidence.target:
        return make_finding(LEAVING, "undecided", name, 0.0, "no reply was judged")
    told = f"the mildest of this class is held to ({_percent(mark)} a token)"
    as_often = log_e_above(evidence.alone, mark) if trusted.same_model else 0.0
    return make_weighed(
        case, LEAVING, name,
        towards=min(evidence.found.log_e, as_often),
        against=alike,
        excluded=f"replies leave less often than {told}",
        detected=f"replies leave at least as often as {told}",
        undecided=f"replies are not yet shown to leave less often than {told}",
    )  # fmt: skip


def remarks(
    case: Case, evidence: Evidence | None, _account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """What the verdict rests on, in numbers, and what is not known of honest hosts."""
    if evidence is None:
        return []
    trusted, kind = evidence.trusted, evidence.kind
    seen = (
        f"{trusted.host} asked twice repeated {trusted.repeated} of {trusted.questions} replies as "
        f"far as they were read, and left itself at {_percent(trusted.hazard)} a token"
    )
    if trusted.second_host is not None:
        seen += (
            f"; {trusted.second_host} leaves it at {_percent(evidence.found.trusted)} on the "
            "questions asked"
        )
    known = (
        f"alpha {case.plan.alpha:g} is that of a host that leaves it at no more than "
        f"{_percent(_tolerated(evidence))} a token: the root of 2 times the largest of what these "
        f"show and the {_percent(kind.upper)} that pairs of {kind.stacks} honest stacks of "
        f"{kind.model} reach at most; a new stack lies beyond all of them with a probability of up "
        f"to 1 in {kind.stacks + 1}, and other models of its kind were not measured"
    )
    return [Remark(text=seen, at="evidence"), Remark(text=known, at="evidence")]


def _percent(hazard: float) -> str:
    return f"{hazard:.1%}"


def headline(findings: Sequence[Finding]) -> str | None:
    """No likelihood is known, so no cause is sought."""
    if not any(f.aspect == SOONER.name for f in findings):
        return None
    return "the replies leave the trusted host's sooner than honest hosts leave each other"


CHECK: Final = Check[None, Evidence | None](
    name="leaving",
    aspects=(LEAVING, SOONER),
    shares=shares,
    weigh=weigh,
    find=find,
    remarks=remarks,
    headline=headline,
)
