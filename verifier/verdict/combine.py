"""All evidence: the checks' e-values, mixed by their shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifier.checks import CHECKS
from verifier.checks.check import Case, Check, Weighed
from verifier.evidence.defaults import cost_of_choice
from verifier.evidence.e_values import mix_log_e
from verifier.plan_file import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The evidence of every check, by its name, and of all together against honest serving."""

    weighed: Mapping[str, Weighed[Any]]
    log_e_greedy: float  # of everything but samples and what is long
    log_e: float
    log_e_any_noise: float  # of what holds against the published weights with noise of any scale

    def of(self, check: Check[Any, Any]) -> Any:
        """What one check found, before any threshold."""
        return self.weighed[check.name].evidence


def combine(case: Case) -> Combined:
    """Weigh a case, and mix what every check says.

    Null: the endpoint serves the published weights honestly. Each check takes its shares, fixed in
    the plan, of the mixture of all before it; a weighted mean of e-values is one, whatever the
    dependence between them (Vovk and Wang 2021), and stays one at every stopping time. So does its
    product with that of earlier audits of the endpoint, whose probes were drawn anew: the chain.
    Where the publisher has defaults for what no request says, the choice among them is paid for
    (`defaults`).
    """
    weighed = {check.name: check.weigh(case, case.kept[check.name]) for check in CHECKS}
    total = greedy = 0.0
    any_noise = -math.inf
    for check in CHECKS:
        shares, log_e = check.shares(case.plan), weighed[check.name].log_e
        total = _mix(total, shares, log_e)
        greedy = _mix(greedy, shares, log_e) if _is_greedy(check) else greedy
        apart = weighed[check.name].at_any_noise or (-math.inf,) * len(shares)
        any_noise = _mix(any_noise, shares, apart)
    before = 0.0 if case.plan.after is None else case.plan.after.log_e
    cost = cost_of_choice([*case.plan.greedy_defaults])
    return Combined(
        weighed=weighed, log_e_greedy=before + greedy - cost, log_e=before + total - cost,
        log_e_any_noise=any_noise - cost,
    )  # fmt: skip


def _mix(total: float, shares: Sequence[float], log_e: Sequence[float]) -> float:
    """The evidence so far and a check's, by its shares; the first has all of it."""
    if not shares:
        return total
    rest = 1 - sum(shares)
    parts = list(zip(shares, log_e, strict=True))
    return mix_log_e([(rest, total), *parts] if rest > 0 else parts)


def _is_greedy(check: Check[Any, Any]) -> bool:
    """Whether what it asks comes with the ordinary probes, or it asks nothing."""
    return not check.ask.keys() & {"sampled", "long"}


def needed(plan: Plan) -> dict[str, tuple[float, ...]]:
    """The evidence (nats) that each share of a check must reach to decide the verdict alone.

    Of its share of the mixture so far, later checks leave only a part: `1/(alpha x what is left)`.
    """
    left, found = 1.0, {}
    cost = cost_of_choice([*plan.greedy_defaults])
    for check in reversed(CHECKS):
        shares = check.shares(plan)
        found[check.name] = tuple(
            math.log(1 / (plan.alpha * share * left)) + cost for share in shares
        )
        left *= max(0.0, 1 - sum(shares))
    return found
