"""Exact builds of the policy: each quantization by its own column of the ledger.

Null of the evidence of a build: the published weights, served honestly, make the replies; the
alternative is the build, served honestly. Assumptions as everywhere: replies are independent, and
the calibrated model of a row holds (`e_values`). Builds that noise alone tells slowly are scored on
cause, once the replies are noisier than measured stacks: a build's e-value times whether it was
looked at is an e-value still, so its share stands in the plan and is lost while nobody looks.

Where replies differ, the build that is served is sought first: to find it costs a few forward
passes, and everything else that may be the cause costs many.
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
from verifier.evidence.e_values import best_scale, log_e_against_scales, log_e_value
from verifier.evidence.ledger import SAMPLER, TEXT_SCALES, Ledger
from verifier.evidence.noise import ABOVE, build_rows, read_text
from verifier.evidence.posterior import ENOUGH, leading_build
from verifier.plan_file import Plan, read_probes
from verifier.records import REFERENCE, Finding
from verifier.reference.cards import Card

WEIGHTS: Final = Aspect(
    name="weights",
    label="one exact build",
    place=20,
    required=True,
    of_policy=True,
    of_weights=True,
)

#: A build is told slowly by noise alone where its scale is up to so many times what is tolerated.
SLOW: Final = 2.5

#: Share of the evidence that bets on builds scored on cause, together.
SUSPECTED_SHARE: Final = 0.25

#: Odds of noise above the measured stacks from which it pays to look closer.
LOOKED_AT: Final = 20.0

#: Replies on which builds are sought first, and how many times apart their noise may lie.
FIRST: Final = 3
LIKE: Final = 2.0

#: Totals [S] under a build and under the reference, of the rows scored under both, by build.
Totals = Mapping[str, tuple[Array, Array]]


def plan(config: RunFile, card: Card, calibration: Calibration | None) -> Planned:
    """The builds of the policy; refuses one that the card's bank lacks."""
    name, policy = resolve_policy(config.audit.policy)
    builds = card.columns if policy.builds == ("all",) else policy.builds
    for wanted in builds:
        if wanted not in card.columns:
            raise ConfigError(
                f"audit.policy: builds: the card's bank has no {wanted!r}; it has "
                f"{', '.join(card.columns)}"
            )
    suspected = () if calibration is None else _suspected(card, calibration, policy, builds)
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


def seek(session: Session, case: Case, _kept: None) -> bool:
    """Look for the build that is served, the likeliest by its noise first, until one fits.

    Each is scored on the first replies; one that leads there is asked for more, and is the cause
    where it explains these too. A name, and never the ground of a verdict.
    """
    sought = case.decision == "inconsistent" and case.seeks_cause and not case.template_is_all
    if not sought or case.build is not None or not session.finish("builds sought"):
        return False
    plan, first, more = case.plan, case.probes[:FIRST], case.probes[:ENOUGH]
    session.ask(first)
    ledger = session.score_columns(first)
    names = [name for name in _by_likeness(case, ledger) if session.reference.engine.can_load(name)]
    for name in names:
        if _leads(session.score_columns(first, weights=(name,)), name, plan):
            session.ask(more)
            if _leads(session.score_columns(more, weights=(name,)), name, plan):
                break
    return True


def _by_likeness(case: Case, ledger: Ledger) -> list[str]:
    """The builds of the bank whose own noise is like that of the replies, the likest first."""
    assert case.report is not None
    rows = read_text(ledger.ordinary, REFERENCE, case.plan.calibration.text)
    found = best_scale(rows, TEXT_SCALES) if len(rows) else 0.0
    if not found:
        return []
    off = {
        name: abs(math.log(scale / found)) for name, scale in case.report.noise_scale.marks if scale
    }
    return sorted((name for name in off if off[name] <= math.log(LIKE)), key=lambda n: off[n])


def _leads(ledger: Ledger, name: str, plan: Plan) -> bool:
    """Whether a build explains the ordinary replies that were scored under it."""
    rows = Ledger(rows=tuple(row for row in ledger.ordinary.rows if name in row.text))
    channel = plan.calibration.text
    found = leading_build(rows, (name,), channel, odds=1 / plan.alpha, error=plan.beta)
    return found is not None


def ask(session: Session, case: Case, kept: None) -> bool:
    """Score the builds that there is cause to score; those of a pack are columns already."""
    if session.pack is not None:
        return False
    return look_closer(session, case, kept) or seek(session, case, kept)


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
    ask={"ordinary": ask},
    score=score,
)
