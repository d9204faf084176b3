"""Noise of the weights: greedy replies against each class of rounding that the policy names.

Null of the evidence: the published weights with logit noise of a scale at most the calibrated
honest one; the alternative is any scale above it, evenly (`e_values.log_e_value`). Each class is
excluded or detected by the confidence sequence of the scale, at the policy's beta and at every
stopping time. Asks the ordinary probes, in small batches.
"""

from __future__ import annotations

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
    Session,
    Weighed,
    make_finding,
    make_weighed,
)
from verifier.config import RunFile, resolve_policy
from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import log_e_against_scales
from verifier.evidence.ledger import TEXT_SCALES
from verifier.evidence.noise import ABOVE, log_e_noise
from verifier.plan_file import batch_ends, read_probes
from verifier.records import Finding
from verifier.reference.cards import Card

NOISE: Final = Aspect(
    name="noise", label="class of rounding", place=10, required=True, of_weights=True
)


def plan(config: RunFile, _card: Card, calibration: Calibration) -> Planned:
    """Refuses a class of noise that the card's calibration lacks."""
    _, policy = resolve_policy(config.audit.policy)
    known = [known.name for known in calibration.classes]
    for wanted in policy.noise:
        if wanted not in known:
            raise ConfigError(
                f"audit.policy: noise: the card's calibration has no class {wanted!r}; it has "
                f"{', '.join(known)}"
            )
    return Planned()


def weigh(case: Case, _kept: None) -> Weighed[float]:
    """Noise above the honest scale, of all ordinary replies: what other evidence is mixed to."""
    log_e = log_e_noise(case.text, TEXT_SCALES, case.plan.calibration.text)
    return Weighed(evidence=log_e, log_e=(log_e,))


def find(
    case: Case, _evidence: float, account: Account, _found: Sequence[Finding]
) -> list[Finding]:
    """Each class of the policy, by the confidence sequence of the noise scale.

    A class is excluded once every scale from its own upwards is outside the interval, detected
    once every scale below is.
    """
    return [_find_class(case, account, name) for name in case.plan.policy.noise]


def _find_class(case: Case, account: Account, name: str) -> Finding:
    (scale,) = (known.scale for known in case.plan.calibration.classes if known.name == name)
    honest = case.plan.calibration.text.honest_scale
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
    return make_weighed(
        case, NOISE, name,
        towards=log_e_against_scales(account.text, ~members),
        against=log_e_against_scales(account.text, members),
        excluded=f"the noise scale is below {scale:.2g}",
        detected=f"the noise scale is at least {scale:.2g}",
        undecided=f"the noise scale is not yet bounded below {scale:.2g}",
    )  # fmt: skip


def ask(session: Session, case: Case, _kept: None) -> bool:
    """Ask the next batch of ordinary probes, while they may still tell."""
    if case.report is not None and not session.wants_ordinary(case):
        return False
    settled = next(
        (n for n, probe in enumerate(case.probes) if probe.id not in case.outcomes),
        len(case.probes),
    )
    batches = enumerate(batch_ends(len(case.probes)), 1)
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
    ask={"ordinary": ask},
    asked=(Asked(probes=read_probes, planned=True, in_ledger=True),),
)
