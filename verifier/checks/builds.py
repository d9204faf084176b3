"""Exact builds of the policy: each quantization by its own column of the ledger.

Null of the evidence of a build: the published weights, served honestly, make the replies; the
alternative is the build, served honestly. Assumptions as everywhere: replies are independent, and
the calibrated model of a row holds (`e_values`). Builds that noise alone tells slowly are scored on
cause, once the replies are noisier than measured stacks: a build's e-value times whether it was
looked at is an e-value still, so its share stands in the plan and is lost while nobody looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

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
from verifier.config import Policy, RunFile, resolve_policy
from verifier.errors import ConfigError
from verifier.evidence.arrays import Array
from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import log_e_against_scales, log_e_value
from verifier.evidence.ledger import SAMPLER, TEXT_SCALES
from verifier.evidence.noise import ABOVE, build_rows
from verifier.plan_file import Plan, read_probes
from verifier.records import Finding
from verifier.reference.cards import Card

WEIGHTS: Final = Aspect(
    name="weights", label="one exact build", place=20, required=True, of_weights=True
)

#: A build is told slowly by noise alone where its scale is up to so many times what is tolerated.
SLOW: Final = 2.5

#: Share of the evidence that bets on builds scored on cause, together.
SUSPECTED_SHARE: Final = 0.25

#: Odds of noise above the measured stacks from which it pays to look closer.
LOOKED_AT: Final = 20.0

#: Totals [S] under a build and under the reference, of the rows scored under both, by build.
Totals = Mapping[str, tuple[Array, Array]]


def plan(config: RunFile, card: Card, calibration: Calibration) -> Planned:
    """The builds of the policy; refuses one that the card's bank lacks."""
    name, policy = resolve_policy(config.audit.policy)
    builds = card.columns if policy.builds == ("all",) else policy.builds
    for wanted in builds:
        if wanted not in card.columns:
            raise ConfigError(
                f"audit.policy: builds: the card's bank has no {wanted!r}; it has "
                f"{', '.join(card.columns)}"
            )
    suspected = _suspected(card, calibration, policy, builds)
    return Planned(
        fields={
            "policy_name": name,
            "policy": policy.model_copy(update={"builds": builds}),
            "suspected": suspected,
        }
    )


def _suspected(
    card: Card, calibration: Calibration, policy: Policy, builds: Sequence[str]
) -> tuple[str, ...]:
    """Builds of the classes that a policy names whose noise is little above what is tolerated."""
    end = calibration.text.tolerated
    named = [known.scale for known in calibration.classes if known.name in policy.noise]
    scales = {s.name: s.text.estimate for s in calibration.stacks if s.role == "variant" and s.text}
    return tuple(
        name for name in card.columns
        if name not in builds and end < scales.get(name, 0.0) <= SLOW * end
        and any(scale <= scales[name] for scale in named)
    )  # fmt: skip


def shares(plan: Plan) -> tuple[float, ...]:
    """Half of the evidence of the greedy text, evenly; of those scored on cause a quarter."""
    builds, suspected = plan.policy.builds, plan.suspected
    return (
        *(0.5 / len(builds) for _ in builds),
        *(SUSPECTED_SHARE / len(suspected) for _ in suspected),
    )


def weigh(case: Case, _kept: None) -> Weighed[Totals]:
    """A build, served honestly, against the published weights, so served; 0 where unscored."""
    found, log_e, at_any_noise = {}, [], []
    for name in case.plan.policy.builds:
        rows = build_rows(case.ordinary, name, case.plan.calibration.text)
        if rows is None:
            log_e.append(0.0)
            at_any_noise.append(0.0)
            continue
        build, reference = (some.sum(axis=0) for some in rows)
        found[name] = (build, reference)
        log_e.append(log_e_value(build[case.honest], reference[case.honest]))
        at_any_noise.append(log_e_value(build[case.honest], reference))
    suspected = [_weigh_suspected(case, name) for name in case.plan.suspected]
    return Weighed(
        evidence=found,
        log_e=(*log_e, *(one for one, _ in suspected)),
        at_any_noise=(*at_any_noise, *(one for _, one in suspected)),
    )


def _weigh_suspected(case: Case, name: str) -> tuple[float, float]:
    """A build that is scored on cause: by every reply, or not at all, so that none is chosen.

    Against honest noise, and against noise of any scale.
    """
    rows = build_rows(case.ordinary, name, case.plan.calibration.text)
    if rows is None or len(rows[0]) < len(case.scored):
        return -math.inf, -math.inf
    build, reference = (some.sum(axis=0) for some in rows)
    served = build[case.honest]
    return log_e_value(served, reference[case.honest]), log_e_value(served, reference)


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


def is_noisy(case: Case) -> bool:
    """Whether the replies look noisier than any measured stack, so that it pays to look closer."""
    measured = np.asarray(case.plan.calibration.text.honest_scale * ABOVE >= TEXT_SCALES)
    return len(case.text) > 0 and log_e_against_scales(case.text, measured) >= math.log(LOOKED_AT)


def look_closer(session: Session, case: Case, _kept: None) -> bool:
    """Score the ordinary replies under the builds that noise tells slowly, once there is cause."""
    engine = session.reference.engine
    names = [name for name in case.plan.suspected if engine.can_load(name)]
    lacking = any(name not in row.text for row in case.scored for name in names)
    if case.decision != "inconclusive" or not lacking or not is_noisy(case):
        return False
    session.score_columns(read_probes(session.run), weights=names)
    return True


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
    ask={"ordinary": look_closer},
    score=score,
)
