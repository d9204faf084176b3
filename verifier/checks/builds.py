"""Exact builds of the policy: each quantization by its own column of the ledger.

Null of the evidence of a build: the published weights, served honestly, make the replies; the
alternative is the build, served honestly. Assumptions as everywhere: replies are independent, and
the calibrated model of a row holds (`e_values`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from verifier.checks.check import (
    Account,
    Aspect,
    Case,
    Check,
    Planned,
    Session,
    Weighed,
    make_finding,
    make_weighed,
)
from verifier.config import RunFile, resolve_policy
from verifier.errors import ConfigError
from verifier.evidence.arrays import Array
from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import log_e_value
from verifier.evidence.ledger import SAMPLER
from verifier.evidence.noise import build_rows
from verifier.plan_file import Plan, read_probes
from verifier.records import Finding
from verifier.reference.cards import Card

WEIGHTS: Final = Aspect(
    name="weights", label="one exact build", place=20, required=True, of_weights=True
)

#: Totals [S] under a build and under the reference, of the rows scored under both, by build.
Totals = Mapping[str, tuple[Array, Array]]


def plan(config: RunFile, card: Card, _calibration: Calibration) -> Planned:
    """The builds of the policy; refuses one that the card's bank lacks."""
    name, policy = resolve_policy(config.audit.policy)
    builds = card.columns if policy.builds == ("all",) else policy.builds
    for wanted in builds:
        if wanted not in card.columns:
            raise ConfigError(
                f"audit.policy: builds: the card's bank has no {wanted!r}; it has "
                f"{', '.join(card.columns)}"
            )
    return Planned(
        fields={"policy_name": name, "policy": policy.model_copy(update={"builds": builds})}
    )


def shares(plan: Plan) -> tuple[float, ...]:
    """Half of the evidence of the greedy text, evenly."""
    builds = plan.policy.builds
    return tuple(0.5 / len(builds) for _ in builds)


def weigh(case: Case, _kept: None) -> Weighed[Totals]:
    """A build, served honestly, against the published weights, so served; 0 where unscored."""
    found, log_e = {}, []
    for name in case.plan.policy.builds:
        rows = build_rows(case.ordinary, name, case.plan.calibration.text)
        if rows is None:
            log_e.append(0.0)
            continue
        build, reference = (some.sum(axis=0) for some in rows)
        found[name] = (build, reference)
        log_e.append(log_e_value(build[case.honest], reference[case.honest]))
    return Weighed(evidence=found, log_e=tuple(log_e))


def find(case: Case, totals: Totals, account: Account, _found: Sequence[Finding]) -> list[Finding]:
    """Each exact build of the policy, by its own column.

    Detected: it explains the replies better than the published weights with noise of any scale.
    Not where they do not fit it by itself (`goodness_of_fit`). Excluded: the published weights,
    served honestly, explain them better. Other builds of its kind stay open either way. Under
    another rendering than the published one no build is judged.
    """
    builds = case.plan.policy.builds
    if account.column is not None:
        detail = "the replies are to another rendering of the prompts; mend the template first"
        if account.column.startswith(SAMPLER):
            detail = "the replies are made under a penalty; mend the sampler first"
        return [make_finding(WEIGHTS, "not run", name, None, detail) for name in builds]
    return [_find_build(case, name, totals.get(name)) for name in builds]


def _find_build(case: Case, name: str, totals: tuple[Array, Array] | None) -> Finding:
    if totals is None:
        return make_finding(WEIGHTS, "undecided", name, 0.0, "no reply was scored")
    build, reference = totals
    towards = log_e_value(build[case.honest], reference)
    needed = math.log(1 / case.plan.beta)
    misfit = log_e_value(build[~case.honest], build[case.honest])
    if towards >= needed and misfit >= needed:  # the nearest of two is not what is served
        detail = "nearer than the published weights, and the replies do not fit this build either"
        return make_finding(WEIGHTS, "undecided", name, towards, detail)
    return make_weighed(
        case, WEIGHTS, name,
        towards=towards,
        against=log_e_value(reference[case.honest], build[case.honest]),
        excluded="the published weights explain the replies better than this build",
        detected="this build explains the replies better than the published weights",
        undecided="this build and the published weights explain the replies alike",
    )  # fmt: skip


def score(session: Session) -> None:
    """Score the ordinary replies under the published weights, and under each build."""
    session.score_columns(read_probes(session.run), weights=session.plan.policy.builds)


CHECK: Final = Check[None, Totals](
    name="builds",
    aspects=(WEIGHTS,),
    plan=plan,
    shares=shares,
    weigh=weigh,
    find=find,
    score=score,
)
