"""Which template fault is named, and how much evidence a name needs.

Two questions, apart. *Is there a fault?* The e-value of all faults against every valid rendering at
any noise (`evidence`). *Which?* The best of a catalogue is no name: a rendering is named where it
fits by itself. Null of its fit: the host renders so, serves the published weights with honest
noise, and counts what it renders but for one constant. Rejected at FIT_ERROR by the replies
(`goodness_of_fit.log_e_of_misfit`, at every stopping time), and by any count that is not its own.
Counts that deny a rendering are the end of it. Replies that deny it may be those of other weights
after it: then ENOUGH counts that agree must speak for it. What nothing fits is a rendering that is
not known, and what rests on fewer than SURE replies may be one. Assumes of a template outside the
catalogue that it leaves noise under the nearest entry, or counts that are not its own: that is
measured (`lab.bench.left_out`). Names decide no verdict, so FIT_ERROR bounds how often a true name
is withheld.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from verifier.checks.template.evidence import ENOUGH, Fitting, TemplateEvidence
from verifier.evidence.calibration import Calibration
from verifier.evidence.ledger import TEMPLATE
from verifier.evidence.noise import SAMPLED_FROM, honest_scales
from verifier.reference.renderings.catalogue import entries_named

#: Share of the template columns in the evidence: what they say is never subtle.
TEMPLATE_SHARE: Final = 0.01

#: How much more evidence names a template fault beside weights that differ. On the embedded model a
#: 4-bit host after the right template reached 11.6 nats for a hidden prompt, where 11.5 suffice.
NOISY: Final = 2

#: How often, at most, the replies withhold a name that is true.
FIT_ERROR: Final = 0.05

#: Replies that a name must rest on before it is said for sure: fewer fit a near twin as well.
SURE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What is to be said of a template fault that is there."""

    names: tuple[str, ...]  # that fit and cannot be told apart; (): no rendering that is known does
    nearest: str  # the first of them, or the likeliest of what does not fit
    column: str  # the ledger's column that speaks for it
    certain: bool  # False: what is named may be a rendering that is not known all the same


def named_template(
    templates: TemplateEvidence, calibration: Calibration, *, needed: float
) -> Named | None:
    """The rendering that explains the replies; None unless a fault is detected.

    Its own share of the evidence must suffice for the verdict: `needed`, in nats. None where the
    noise left is that of another model, unless counts say the same: a model of half the layers
    fitted another family's template by 116 nats.
    """
    group = templates.group
    entries = entries_named(group)
    far = templates.scale >= SAMPLED_FROM
    if templates.log_e < needed_to_name(templates, calibration, needed=needed):
        return None
    if far and (entries[group[0]].stands_for is not None or not counts_part(templates)):
        return None
    if any(entries[name].kind == "valid" for name in group):
        return None
    fitting = tuple(
        name for name in group
        if is_borne_out(templates.fits[name], hidden=entries[name].stands_for is not None)
    )  # fmt: skip
    first = (fitting or group)[0]
    counted = templates.fits[first].counts.of >= ENOUGH
    hidden = entries[first].stands_for is not None
    return Named(
        names=fitting,
        nearest=first,
        column=templates.columns[first],
        certain=templates.fits[first].replies >= SURE and (counted or not hidden),
    )


def counts_part(templates: TemplateEvidence) -> bool:
    """Whether the counts are those of the likeliest rendering, and of no valid one."""
    own = templates.counts[templates.ranked[0]]
    valid = (templates.counts[name] for name in templates.behind if name in templates.valid)
    return own.of >= ENOUGH and own.agrees and not any(one.agrees for one in valid)


def is_borne_out(fitting: Fitting, *, hidden: bool) -> bool:
    """Whether replies and counts allow that this is what the host renders.

    `hidden`: its words stand for some that nobody knows, so replies leave noise under it, and
    counts a constant of any size.
    """
    if not fitting.counts.agrees:
        return False
    return hidden or replies_fit(fitting) or fitting.counts.of >= ENOUGH


def replies_fit(fitting: Fitting) -> bool:
    """Whether enough replies are as honest serving under a rendering would make them."""
    return fitting.replies >= ENOUGH and fitting.misfit < math.log(1 / FIT_ERROR)


def needed_to_name(
    templates: TemplateEvidence, calibration: Calibration, *, needed: float
) -> float:
    """The evidence that names a template fault, in nats.

    Where noise beyond honest serving is left under the likeliest rendering, the weights are at
    fault too or instead, and their noise is not quite the model's: it may look like another prompt
    now and then. NOISY times the evidence is asked for there.
    """
    return needed * (NOISY if leaves_noise(templates, calibration) else 1)


def leaves_noise(templates: TemplateEvidence, calibration: Calibration) -> bool:
    """Whether noise beyond honest serving is left under the likeliest rendering."""
    return not may_be_honest(templates.scale, calibration)


def may_be_honest(scale: float, calibration: Calibration) -> bool:
    """Whether honest serving may have noise of this scale."""
    return bool(honest_scales(np.array([scale]), calibration.text)[0])


def is_unknown(column: str | None) -> bool:
    """Whether a template column stands for a hidden prompt whose words are not known."""
    name = (column or "").removeprefix(TEMPLATE)
    return bool(name) and entries_named([name])[name].stands_for is not None
