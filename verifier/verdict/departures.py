"""The departures: what the evidence says of each that a policy names. Pure arithmetic.

Each is excluded or detected once an e-value against or towards it reaches 1/beta, else undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from verifier.checks.greedy_tokens import SINGLE_SHARE, SUSPICION
from verifier.checks.sampling.ask_and_score import NO_TOKENS
from verifier.checks.sampling.evidence import UNNAMED, describe_sampler
from verifier.checks.sampling.stored_replies import REPEATS_SHARE, weigh_repeats
from verifier.checks.substitution import log_e_against_routing, log_e_for_routing
from verifier.evidence.e_values import log_e_against_scales, log_e_value
from verifier.evidence.ledger import SAMPLER, TEMPLATE, TEXT_SCALES, Ledger, Repeat
from verifier.plan import Plan
from verifier.records import Finding, Status
from verifier.reference.engines import NO_DISTRIBUTION
from verifier.reference.renderings.catalogue import entries_named
from verifier.verdict.weigh import ABOVE, Evidence, build_totals, honest_scales, planned_samplers
from verifier.wording import describe_percent, describe_replies

#: The finding's name while it is not known how single tokens of greedy replies come about.
SINGLE: Final = "single tokens other than the likeliest, at temperature 0"

#: Sampled replies of which none can be read, before it is said that none can.
MIN_SET_ASIDE = 8


def is_unknown(column: str | None) -> bool:
    """Whether a template column stands for a hidden prompt whose words are not known."""
    name = (column or "").removeprefix(TEMPLATE)
    return bool(name) and entries_named([name])[name].stands_for is not None


def noise_findings(
    plan: Plan, evidence: Evidence, tokens: int, *, unknown_words: bool
) -> list[Finding]:
    """Each class of the policy, by the confidence sequence of the noise scale.

    A class is excluded once every scale from its own upwards is outside the interval, detected
    once every scale below is.
    """
    scales = {c.name: c.scale for c in plan.calibration.classes}
    honest, found = plan.calibration.text.honest_scale, []
    for name in plan.policy.noise:
        scale = scales[name]
        if unknown_words:  # what is left of them looks like noise of the weights
            detail = "the words of the hidden prompt are not known; send what the client sent first"
            found.append(make_finding("noise", "not run", name, None, detail))
            continue
        if scale <= honest * ABOVE:
            detail = (
                f"its scale {scale:.2g} is within honest serving ({honest:.2g}) on this card: "
                "greedy text cannot tell them apart"
            )
            found.append(make_finding("noise", "not run", name, None, detail))
            continue
        if evidence.rows == 0:
            found.append(make_finding("noise", "undecided", name, 0.0, "no reply was scored"))
            continue
        members = np.asarray(scale <= TEXT_SCALES * ABOVE)
        against = log_e_against_scales(evidence.text, members)
        towards = log_e_against_scales(evidence.text, ~members)
        found.append(
            _weighed(
                plan, "noise", name, towards=towards, against=against, tokens=tokens,
                excluded=f"the noise scale is below {scale:.2g}",
                detected=f"the noise scale is at least {scale:.2g}",
                undecided=f"the noise scale is not yet bounded below {scale:.2g}",
            )
        )  # fmt: skip
    return found


def build_findings(plan: Plan, ledger: Ledger, column: str | None, tokens: int) -> list[Finding]:
    """Each exact build of the policy, by its own column.

    Detected: it explains the replies better than the published weights with noise of any scale.
    Excluded: the published weights, served honestly, explain them better. Other builds of its
    kind stay open either way. Under another rendering than the published one no build is judged.
    """
    if column is not None:
        detail = "the replies are to another rendering of the prompts; mend the template first"
        if column.startswith(SAMPLER):
            detail = "the replies are made under a penalty; mend the sampler first"
        return [
            make_finding("weights", "not run", name, None, detail) for name in plan.policy.builds
        ]
    ledger = ledger.ordinary
    honest, found = honest_scales(TEXT_SCALES, plan.calibration.text), []
    for name in plan.policy.builds:
        totals = build_totals(plan, ledger, name)
        if totals is None:
            found.append(make_finding("weights", "undecided", name, 0.0, "no reply was scored"))
            continue
        build, reference = totals
        found.append(
            _weighed(
                plan, "weights", name, tokens=tokens,
                towards=log_e_value(build[honest], reference),
                against=log_e_value(reference[honest], build[honest]),
                excluded="the published weights explain the replies better than this build",
                detected="this build explains the replies better than the published weights",
                undecided="this build and the published weights explain the replies alike",
            )
        )  # fmt: skip
    return found


def routing_findings(plan: Plan, evidence: Evidence, tokens: int) -> list[Finding]:
    """Each share of requests of the policy, by the confidence sequence of the share.

    Excluded: neither this share nor a larger one fits, for a model of any noise from the class's
    own upwards. Detected: no smaller share fits.
    """
    scales = {c.name: c.scale for c in plan.calibration.classes}
    honest, found = honest_scales(TEXT_SCALES, plan.calibration.text), []
    for of, share in plan.policy.routed.items():
        name = f"{describe_percent(share)} of requests to {of} or worse"
        suspects = np.asarray(scales[of] <= TEXT_SCALES * ABOVE) & ~honest
        if evidence.shares is None:
            detail = "the replies are to another rendering of the prompts; mend the template first"
            found.append(make_finding("routing", "not run", name, None, detail))
            continue
        if scales[of] <= plan.calibration.text.honest_scale * ABOVE:
            detail = f"its scale {scales[of]:.2g} is within honest serving on this card"
            found.append(make_finding("routing", "not run", name, None, detail))
            continue
        if evidence.rows == 0:
            found.append(make_finding("routing", "undecided", name, 0.0, "no reply was scored"))
            continue
        shown = describe_percent(share)
        found.append(
            _weighed(
                plan, "routing", name, tokens=tokens,
                towards=log_e_for_routing(evidence.shares, share),
                against=log_e_against_routing(evidence.shares, suspects, honest, share),
                excluded=f"fewer than {shown} of the replies come from such a model",
                detected=f"{shown} or more of the replies come from something else",
                undecided=f"the share of other replies is not yet bounded below {shown}",
            )
        )  # fmt: skip
    return found


def sampler_finding(plan: Plan, evidence: Evidence, others: Sequence[Finding]) -> Finding:
    """Whether sampled replies are drawn as asked; a sampler is named once the greedy replies are
    quiet.

    Noise in the weights flattens distributions as a temperature does, so samples are not judged
    where the greedy replies leave open, or show, that other weights are served.
    """
    found, name = evidence.samplers, UNNAMED
    assert found is not None
    needed = math.log(1 / plan.beta)
    if evidence.log_e_greedy >= math.log(1 / plan.alpha):
        detail = "the greedy replies differ already; mend what they show first"
        return make_finding("sampler", "not run", name, None, detail)
    if found.set_aside and not found.rows:
        reason = max(found.set_aside, key=lambda why: found.set_aside[why])
        enough = sum(found.set_aside.values()) >= MIN_SET_ASIDE
        if not enough and reason not in (NO_DISTRIBUTION, NO_TOKENS):
            return make_finding("sampler", "undecided", name, 0.0, reason)
        return make_finding("sampler", "not run", name, None, reason)
    if not found.rows:
        return make_finding("sampler", "undecided", name, 0.0, "no sampled reply was scored")
    told = f"{describe_replies(found.rows)} sampled at temperature 1, {found.tokens} tokens"
    if found.log_e >= needed:
        if not greedy_is_quiet(others) or found.log_e_named < needed:
            detail = (
                f"{told}: they are not drawn as asked from the published weights; whether that is "
                "the sampler or the weights is open while the greedy replies leave noise possible"
            )
            return make_finding("sampler", "undecided", name, found.log_e, detail)
        said = describe_sampler(found, planned_samplers(plan))
        detail = f"{told}: so drawn rather than as asked; the greedy replies fit the weights"
        if said == UNNAMED:
            detail += f"; most like {' or '.join(found.names[:3])}"
        return make_finding("sampler", "detected", said, found.log_e_named, detail)
    interval = found.temperature
    assert interval is not None
    upper = "more" if interval.upper is None else f"{interval.upper:g}"
    within = f"{told}: temperature {interval.lower:g} to {upper}"
    if found.log_e_honest >= needed:
        return make_finding("sampler", "excluded", name, -found.log_e_honest, within)
    leading = found.log_e_honest
    more = math.ceil((needed - leading) * found.tokens / leading) if leading > 0 else None
    detail = f"{within}; {found.hardest} is not yet excluded"
    return make_finding("sampler", "undecided", name, -leading, detail, more)


def single_finding(plan: Plan, evidence: Evidence, others: Sequence[Finding]) -> Finding | None:
    """That greedy replies hold tokens which greedy decoding does not give; None: nothing to say.

    Not where the greedy replies leave noise of the weights open, or show it: that comes first.
    Suspected tokens keep an audit going: most often a few more replies settle what they were.
    """
    found = evidence.single
    log_e = min(found.log_e, found.log_e_named)
    if log_e < SUSPICION or not greedy_is_quiet(others):
        return None
    detail = "the greedy replies fit the weights, but for single tokens"
    if found.contradicted:
        detail += (
            f"; in {found.contradicted} of {describe_replies(found.told)} another token is given "
            "than the endpoint reports as the likeliest"
        )
    settled = log_e >= math.log(1 / (plan.alpha * SINGLE_SHARE))
    return make_finding("sampler", "detected" if settled else "undecided", SINGLE, log_e, detail)


def repeats_finding(plan: Plan, repeats: Sequence[Repeat], evidence: Evidence) -> Finding:
    """Whether samples come again more often than chance has it; other causes come first."""
    log_e, name = weigh_repeats(repeats), "replies from a store"
    again = [repeat for repeat in repeats if repeat.came_again]
    told = f"{len(again)} of {describe_replies(len(repeats))} to what was asked before came again"
    if log_e < math.log(1 / (plan.alpha * REPEATS_SHARE)):
        return make_finding("repeats", "undecided", name, log_e, told)
    other = evidence.samplers is not None and evidence.samplers.log_e >= math.log(1 / plan.beta)
    if evidence.log_e_greedy >= math.log(1 / plan.alpha) or other:
        detail = f"{told}; other weights or another sampler may be why: mend these first"
        return make_finding("repeats", "not run", name, None, detail)
    words = sum(repeat.otherwise for repeat in again)
    detail = f"{told} word by word at temperature 1, {words} of them asked in other words"
    return make_finding("repeats", "detected", name, log_e, detail)


def logprob_findings(plan: Plan, evidence: Evidence, column: str | None) -> list[Finding]:
    """What the endpoint says of its own tokens: it may accuse, never acquit: it can be forged.

    After another rendering than the published one it says nothing of the weights.
    """
    if not plan.top_logprobs or evidence.log_e_logprob < math.log(1 / plan.alpha):
        return []
    if column is not None:
        return []
    assert evidence.logprob_interval is not None
    scale = evidence.logprob_interval.estimate
    detail = (
        f"they differ from the published weights' by a scale of {scale:.2g}; honest serving "
        f"reaches {plan.calibration.logprob.honest_scale:.2g}"
    )
    name = "reported log-probabilities"
    return [make_finding("logprobs", "detected", name, evidence.log_e_logprob, detail)]


def _weighed(
    plan: Plan,
    aspect: str,
    name: str,
    *,
    towards: float,
    against: float,
    tokens: int,
    excluded: str,
    detected: str,
    undecided: str,
) -> Finding:
    """A finding from the log e-values towards and against a departure."""
    needed = math.log(1 / plan.beta)
    if against >= needed:
        return make_finding(aspect, "excluded", name, -against, excluded)
    if towards >= needed:
        return make_finding(aspect, "detected", name, towards, detected)
    leading = max(against, towards)
    more = math.ceil((needed - leading) * tokens / leading) if leading > 0 else None
    log_e = towards if towards > against else -against
    return make_finding(aspect, "undecided", name, log_e, undecided, more)


def make_finding(
    aspect: str,
    decision: Status,
    name: str,
    log_e: float | None,
    detail: str,
    tokens_needed: int | None = None,
) -> Finding:
    return Finding(
        aspect=aspect,
        decision=decision,
        name=name,
        log_e=None if log_e is None else round(log_e + 0.0, 4),
        detail=detail,
        tokens_needed=tokens_needed,
    )


def greedy_is_quiet(findings: Sequence[Finding]) -> bool:
    """Whether the greedy replies exclude every departure of the weights that could be judged."""
    judged = [
        f.decision for f in findings if f.aspect in ("noise", "weights") and f.decision != "not run"
    ]
    return bool(judged) and all(decision == "excluded" for decision in judged)
