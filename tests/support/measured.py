"""Calibrations of a card, as measured on machines of known noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from simulate import make_calibration

from verifier.evidence.calibration import (
    Calibration,
    Channel,
    Estimate,
    Measured,
    NoiseClass,
    Role,
    Stack,
)
from verifier.evidence.ledger import TEXT_SCALES

REFERENCE = Measured(engine="transformers", dtype="float32", top_logprobs=5)


def stack(name: str, scale: float, *, role: Role = "calibration") -> Stack:
    found = Estimate(estimate=scale, lower=0.9 * scale, upper=1.1 * scale)
    return Stack(
        name=name, role=role, family="fp8" if role == "variant" else None, replies=32, tokens=1000,
        text=found, logprob=found,
    )  # fmt: skip


def calibration(*scales: float, held_out: float | None = None, **changes: Any) -> Calibration:
    """Of bfloat16 stacks of these noise scales, with the floor above the largest."""
    at = int(np.searchsorted(TEXT_SCALES, 1.1 * max(scales)))
    channel = Channel(honest_scale=float(TEXT_SCALES[at]), spread=0.1, learning_rate=0.8)
    checks = [] if held_out is None else [stack("bfloat16-batch1", held_out, role="held out")]
    stacks = [stack(f"bfloat16-batch{n + 2}", scale) for n, scale in enumerate(scales)]
    given: dict[str, Any] = {
        "text": channel, "logprob": channel, "measured": REFERENCE,
        "stacks": (*stacks, *checks, stack("fp8-channel", 0.5, role="variant")),
        "classes": (NoiseClass(name="fp8-class rounding", scale=0.4, basis="test"),),
    }  # fmt: skip
    return make_calibration(**(given | changes))
