"""Calibrations of one card, measured on several machines, as one.

A stack is the unit: the floor is set by the calibration stacks of all, the zone above it by how far
all of them spread, and held-out stacks of all check it. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from verifier.evidence.calibration import Calibration, Channel, NoiseClass, Stack
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.evidence.stacks import above_floor, describe_reference, same_reference, with_zone

#: What two calibrations must have in common beside the reference, and how to call it.
_ALIKE: Final = {
    "card": "card", "tensors_sha256": "weights", "max_tokens": "longest reply",
    "level": "coverage of intervals",
}  # fmt: skip


def why_not_pooled(own: Calibration, other: Calibration) -> str | None:
    """Why a calibration cannot be taken beside another, in words; None: it can."""
    for name, called in _ALIKE.items():
        mine, theirs = getattr(own, name), getattr(other, name)
        if mine != theirs:
            return f"measured with another {called} ({_short(theirs)}, not {_short(mine)})"
    if not same_reference(own.measured, other.measured):
        mine, theirs = (describe_reference(one.measured) for one in (own, other))
        return f"measured with another reference ({theirs}, not {mine})"
    if other.stacks == own.stacks:
        return "the same measurement again"
    return why_no_floor(other)


def why_no_floor(found: Calibration) -> str | None:
    """Why a calibration sets no floor, be it alone, in words; None: it does."""
    noisier = above_floor(found)
    if noisier:
        return f"its stack {noisier[0]} was held out and is noisier than its own floor"
    if not any(stack.role == "calibration" for stack in found.stacks):
        return "it has no stack that sets a floor"
    return None


def _short(value: object) -> str:
    return str(value)[:40]


def pool(own: Calibration, others: Mapping[str, Calibration]) -> Calibration:
    """One calibration of several by their names, none of which `why_not_pooled` refuses.

    The floor of a channel is the largest of theirs. Replies are read with the widest spread and the
    lowest learning rate, which keep the level on the stacks of each; so is a class excluded below
    the lowest of their scales, and a variant as mild as any saw it.
    """
    if not others:
        return own
    every = (own, *others.values())
    stacks = [stack for stack in own.stacks if stack.role != "variant"]
    for label, one in others.items():
        stacks += [
            stack.model_copy(update={"name": f"{stack.name} ({label})"})
            for stack in one.stacks if stack.role != "variant"
        ]  # fmt: skip
    pooled = own.model_copy(
        update={
            "text": _widest([one.text for one in every]),
            "logprob": _widest([one.logprob for one in every]),
            "classes": _mildest_classes(every),
            "stacks": (*stacks, *_mildest_variants(every)),
            "certificate": None,  # it is of one reading, and of the stacks of one machine
            "machine": None,
        }
    )
    return with_zone(pooled, TEXT_SCALES, LOGPROB_SCALES)


def _widest(channels: Sequence[Channel]) -> Channel:
    return Channel(
        honest_scale=max(one.honest_scale for one in channels),
        spread=max(one.spread for one in channels),
        learning_rate=min(one.learning_rate for one in channels),
    )


def _mildest_classes(every: Sequence[Calibration]) -> tuple[NoiseClass, ...]:
    found: dict[str, NoiseClass] = {}
    for named in (named for one in every for named in one.classes):
        known = found.get(named.name)
        if known is None or named.scale < known.scale:
            found[named.name] = named
    return tuple(found.values())


def _mildest_variants(every: Sequence[Calibration]) -> tuple[Stack, ...]:
    found: dict[str, Stack] = {}
    for stack in (stack for one in every for stack in one.stacks if stack.role == "variant"):
        known = found.get(stack.name)
        if known is None or _mildness(stack) < _mildness(known):
            found[stack.name] = stack
    return tuple(found.values())


def _mildness(stack: Stack) -> float:
    return float("inf") if stack.text is None else stack.text.estimate
