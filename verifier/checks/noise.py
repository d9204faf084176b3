"""Noise of the weights: greedy replies against each class of rounding that the policy names.

Null of the evidence: the published weights with logit noise of a scale at most the tolerated one,
which lies above the largest that any measured stack reaches (`evidence.stacks`); the alternative is
any scale above it, evenly (`e_values.log_e_value`). Between the two scales nothing is held against
a host and nothing is certified. Each class is
excluded or detected by the confidence sequence of the scale, at the policy's beta and at every
stopping time. Asks the ordinary probes, in small batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from verifier.checks.check import (
    Account,
    Asked,
    Aspect,
    Case,
    Check,
    Planned,
    Remark,
    Session,
    Weighed,
    above_floor,
    is_between,
    make_finding,
    make_weighed,
    panel_is_quiet,
)
from verifier.config import RunFile, resolve_policy
from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.evidence.certificate import CAP, alpha_of, capped_ratios, log_e_capped
from verifier.evidence.e_values import log_e_against_scales
from verifier.evidence.ledger import TEXT_SCALES
from verifier.evidence.noise import ABOVE, log_e_noise
from verifier.plan_file import batch_ends, read_probes
from verifier.records import Finding
from verifier.reference.cards import Card
from verifier.wording import describe_replies

#: Nats beyond which evidence is told no further.
_MOST: Final = 600.0

NOISE: Final = Aspect(
    name="noise",
    label="class of rounding",
    place=10,
    required=True,
    of_policy=True,
    of_weights=True,
)


def plan(config: RunFile, _card: Card, calibration: Calibration | None) -> Planned:
    """Refuses a class of noise that the card's calibration lacks."""
    _, policy = resolve_policy(config.audit.policy)
    known = [] if calibration is None else [known.name for known in calibration.classes]
    for wanted in policy.noise if calibration is not None else ():
        if wanted not in known:
            raise ConfigError(
                f"audit.policy: noise: the card's calibration has no class {wanted!r}; it has "
                f"{', '.join(known)}"
            )
    return Planned()


def weigh(case: Case, _kept: None) -> Weighed[float]:
    """Noise above what is tolerated, of all ordinary replies: what other evidence is mixed to."""
    log_e = log_e_noise(case.text, TEXT_SCALES, case.plan.calibration.text)
    return Weighed(evidence=log_e, log_e=(log_e,))


def find(
    case: Case, _evidence: float, account: Account, _found: Sequence[Finding]
) -> list[Finding]:
    """Each class of the policy, by the confidence sequence of the noise scale.

    A class is excluded once every scale from its own upwards is outside the interval, detected
    once every scale below is. Under a provisional floor it is excluded further below. Where no
    likelihood is known it says nothing.
    """
    if case.plan.by_texts:
        return []
    return [_find_class(case, account, name) for name in case.plan.policy.noise]


def _find_class(case: Case, account: Account, name: str) -> Finding:
    (known,) = (known for known in case.plan.calibration.classes if known.name == name)
    scale, channel = known.scale, case.plan.calibration.text
    honest, tolerated = channel.honest_scale, channel.tolerated
    if account.unknown_words:  # what is left of them looks like noise of the weights
        detail = "the words of the hidden prompt are not known; send what the client sent first"
        if account.nearest is not None:
            detail = "how chats are rendered is not known; mend the template first"
        return make_finding(NOISE, "not run", name, None, detail)
    if scale <= honest * ABOVE:
        detail = (
            f"its scale {scale:.2g} is within honest serving ({honest:.2g}) on this card: "
            "greedy text cannot tell them apart"
        )
        return make_finding(NOISE, "not run", name, None, detail)
    if len(account.text) == 0:
        return make_finding(NOISE, "undecided", name, 0.0, "no reply was scored")
    members = np.asarray(scale <= TEXT_SCALES * ABOVE)
    towards = log_e_against_scales(account.text, ~members)
    detected = f"the noise scale is at least {scale:.2g}"
    if scale <= tolerated * ABOVE and towards >= math.log(1 / case.plan.beta):
        detail = f"{detected}, which an honest stack may reach: up to {tolerated:.2g} is tolerated"
        return make_finding(NOISE, "undecided", name, towards, detail)
    return make_weighed(
        case, NOISE, name,
        towards=towards,
        against=log_e_against_scales(
            account.text, np.asarray(known.to_exclude <= TEXT_SCALES * ABOVE)
        ),
        excluded=f"the noise scale is below {known.to_exclude:.2g}",
        detected=detected,
        undecided=f"the noise scale is not yet bounded below {known.to_exclude:.2g}",
    )  # fmt: skip


def remarks(
    case: Case, _evidence: float, account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """What the error rates are conditional on, and what lies outside of what was calibrated."""
    if case.plan.by_texts:
        return []
    rests = (_on_lenders(case), _on_stacks(case), _on_domain(case))
    found = [Remark(text=text) for text in rests if text]
    if above_floor(case, account.interval) and not account.differs and account.by == "published":
        channel = case.plan.calibration.text
        lent = case.plan.calibration.provisional is not None
        reaches = "is known to reach on this model" if lent else "reaches"
        text = (
            f"the noise is above what any measured stack {reaches} ({channel.honest_scale:.2g}), "
            f"and nothing up to {channel.tolerated:.2g} is held against a host"
        )
        if is_between(case):
            needed = "this stack among those that the calibration measures"
            text += f": a verdict would need {'a calibration' if lent else needed}"
        found.insert(0, Remark(text=text, at="evidence"))
    if not account.differs and account.by == "published" and not panel_is_quiet(case):
        text = (
            "replies to the probes that tell templates apart are noisier than honest serving, so "
            "no endpoint is called consistent"
        )
        found.insert(0, Remark(text=text, at="evidence"))
    return [*_on_the_bet(case, account), *found]


def _on_stacks(case: Case) -> str:
    """The two errors of an accusation, apart: of replies given the stack, and of stacks."""
    zone, channel = case.plan.calibration.zone, case.plan.calibration.text
    if zone is None:
        return ""
    told = (
        f"alpha {case.plan.alpha:g} is that of an honest stack whose noise stays within "
        f"{channel.tolerated:.2g}, {zone.kappa:.2g} times the largest that {zone.stacks} measured "
        f"stacks reach; of stacks no more is known"
    )
    if zone.stacks:
        told += (
            ": a new one is noisier than all of them with a probability of up to 1 in "
            f"{zone.stacks + 1}"
        )
    if zone.risk is not None:
        told += (
            f", and noisier than is tolerated with {zone.risk:.2g}, if logs of scales are normal "
            f"({zone.alike} stacks of its arithmetic)"
        )
    return told


def _on_lenders(case: Case) -> str:
    """What a provisional floor can say, and what it cannot."""
    found, channel = case.plan.calibration.provisional, case.plan.calibration.text
    if found is None:
        return ""
    return (
        f"nobody has calibrated this card, so alpha {case.plan.alpha:g} is that of a host whose "
        f"noise stays within {channel.tolerated:.2g}, where noise as of 4-bit weights begins on "
        f"{found.lent_by}: nothing milder is held against a host by its noise, and classes are "
        "excluded, and shares bounded, as far as this model is like those"
    )


def _on_domain(case: Case) -> str:
    """What this audit asks that no stack was measured on."""
    asked, measured = case.plan.max_tokens, case.plan.calibration.max_tokens
    if asked <= measured:
        return ""
    return (
        f"replies of up to {asked} tokens were asked for, and stacks measured on {measured}: of "
        "what comes later nothing is known but that"
    )


def _on_the_bet(case: Case, account: Account) -> list[Remark]:
    """Beside an accusation: how often honest replies bring the bet so far, by measure alone."""
    plan, channel = case.plan, case.plan.calibration.text
    measured, replies = plan.calibration.certificate, len(case.text)
    judged = account.differs and account.by == "published"
    if measured is None or not replies or not judged:
        return []
    reading = (float(TEXT_SCALES[case.honest][-1]), channel.spread, channel.learning_rate)
    of = (measured.largest_honest_scale, measured.spread, measured.learning_rate)
    if not np.allclose(reading, of) or plan.max_tokens != plan.calibration.max_tokens:
        return []  # the bet of these replies is not the one that was measured
    brought = math.exp(min(log_e_capped(capped_ratios(case.text, case.honest)), _MOST))
    alpha, chance = (
        alpha_of(replies, excess=measured.excess, alpha=one) for one in (plan.alpha, 1 / brought)
    )
    text = (
        f"the bet on noise was measured without a model of it, on {measured.replies:,} honest "
        f"replies of {len(measured.stacks)} stacks that were held out from the calibration, each "
        f"counted {CAP:g}-fold at most: its mean is at most {1 + measured.excess:.4g} "
        f"({measured.level:.0%}). So {describe_replies(replies)} of such a stack bring it to "
        f"{1 / plan.alpha:,.0f} with probability at most {alpha:.2g}, and to {brought:.3g}, as "
        f"these do, with at most {chance:.2g}. The verdict rests on evidence that is not cut so"
    )
    return [Remark(text=text, at="evidence")]


def ask(session: Session, case: Case, _kept: None) -> bool:
    """Ask the next batch of ordinary probes, while they may still tell."""
    if case.report is not None and not session.wants_ordinary(case):
        return False
    settled = next(
        (n for n, probe in enumerate(case.probes) if probe.id not in case.outcomes),
        len(case.probes),
    )
    ends = batch_ends(len(case.probes), stop=case.plan.min_replies)
    batches = enumerate(ends, 1)
    number, end = next(((n, end) for n, end in batches if end > settled), (0, 0))
    if not number or not session.finish(f"batch {number}"):
        return False  # all are asked, or the budget did not pay for the rest of a batch
    session.pace.begin(number)
    goes_on = session.ask(case.probes[:end])
    session.score()
    if not goes_on:
        session.finish(f"batch {number + 1}")
    return True


CHECK: Final = Check[None, float](
    name="noise",
    aspects=(NOISE,),
    plan=plan,
    shares=lambda _plan: (1.0,),
    weigh=weigh,
    find=find,
    remarks=remarks,
    ask={"ordinary": ask},
    asked=(Asked(probes=read_probes, planned=True, in_ledger=True),),
)
