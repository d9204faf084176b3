"""Which template fault is named, and how much evidence a name needs."""

from __future__ import annotations

from typing import Final

from verifier.checks.template.evidence import TemplateEvidence
from verifier.evidence.calibration import Calibration
from verifier.evidence.ledger import TEMPLATE
from verifier.evidence.noise import ABOVE, SAMPLED_FROM
from verifier.reference.renderings.catalogue import entries_named

#: Share of the template columns in the evidence: what they say is never subtle.
TEMPLATE_SHARE: Final = 0.01

#: How much more evidence names a template fault beside weights that differ. On the embedded model a
#: 4-bit host after the right template reached 11.6 nats for a hidden prompt, where 11.5 suffice.
NOISY: Final = 2


def named_template(
    templates: TemplateEvidence, calibration: Calibration, *, needed: float
) -> str | None:
    """The template column that explains the replies; None unless a fault is detected.

    Its own share of the evidence must suffice for the verdict: `needed`, in nats. None where the
    noise left is that of another model: a model of half the layers fitted another family's template
    by 116 nats.
    """
    enough = needed_to_name(templates, calibration, needed=needed)
    if templates.scale >= SAMPLED_FROM or templates.log_e < enough:
        return None
    entries = entries_named(templates.ranked)
    if any(entries[name].kind == "valid" for name in templates.group):
        return None
    return templates.columns[templates.ranked[0]]


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
    return templates.scale > calibration.text.tolerated * ABOVE


def is_unknown(column: str | None) -> bool:
    """Whether a template column stands for a hidden prompt whose words are not known."""
    name = (column or "").removeprefix(TEMPLATE)
    return bool(name) and entries_named([name])[name].stands_for is not None
