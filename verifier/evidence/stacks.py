"""What the honest stacks that were measured say of one that was not: the zone above the floor.

A stack (engine, precision, kernels, batching) is the unit here: its replies say how noisy it is,
and nothing of the next stack. So nothing is held against a host up to kappa times the floor, where
the floor is the largest noise scale that measured stacks reach. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.calibration import (
    Calibration,
    Channel,
    Estimate,
    Measured,
    Stack,
    Zone,
)

#: The least kappa: two roundings as large as the largest that was measured, one on the other.
LEAST_KAPPA: Final = math.sqrt(2)

#: Coverage of the prediction for a new stack, where stacks are enough to tell.
COVERAGE: Final = 0.999

#: Fewer stacks say nothing of how far they spread.
_LEAST_STACKS: Final = 3

#: The largest scale that is ever tolerated: below the top of either grid.
_MOST: Final = 0.9

#: What a reference is called that is a trusted host's word.
TRUSTED: Final = "host"

#: Precisions in which the choice of kernels moves no score by what any host's rounding does.
_EXACT: Final = ("float64", "float32")

#: Precisions of arithmetic, the finest first; what is not among them is taken for the coarsest.
_PRECISIONS: Final = ("float64", "float32", "float16", "bfloat16")


def predict_above(scales: Sequence[float], scale: float) -> float | None:
    """The chance that a new stack's noise scale lies above `scale`; None for fewer than 3 stacks.

    Assumes that logs of the scales of stacks are independent draws of one normal distribution, of
    unknown mean and variance: then (log scale - mean) / (sd sqrt(1 + 1/K)) of a new one follows
    Student's t with K - 1 degrees of freedom (Geisser 1993, "Predictive inference", chapter 2).
    Each scale is an estimate, whose own error is in the variance too.
    """
    if len(scales) < _LEAST_STACKS:
        return None
    middle, width = _spread(scales)
    if width == 0:
        return 0.0 if scale >= max(scales) else 1.0
    return _student_above((math.log(scale) - middle) / width, len(scales) - 1)


def predict_scale(scales: Sequence[float], *, coverage: float = COVERAGE) -> float | None:
    """The scale that a new stack stays below with probability `coverage`; None for fewer than 3.

    Model and source are those of `predict_above`.
    """
    if len(scales) < _LEAST_STACKS:
        return None
    middle, width = _spread(scales)
    return math.exp(middle + _student_quantile(coverage, len(scales) - 1) * width)


def _spread(scales: Sequence[float]) -> tuple[float, float]:
    """Mean of the logs of scales, and the width of what they predict of one more."""
    logs = np.log(np.asarray(scales, dtype=float))
    return float(logs.mean()), float(logs.std(ddof=1)) * math.sqrt(1 + 1 / len(logs))


def _student_above(t: float, freedom: int) -> float:
    """P(T > t) of Student's t: half the regularized incomplete beta function of `freedom` / 2 and
    1/2 at freedom / (freedom + t^2), or the rest (Abramowitz and Stegun 1964, 26.7.1)."""
    from mpmath import betainc  # loaded with the first evidence: no refusal waits for it

    tail = float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)) / 2
    return tail if t >= 0 else 1 - tail


@cache
def _student_quantile(chance: float, freedom: int) -> float:
    """The t that Student's t stays below with this probability, above a half."""
    from mpmath import findroot

    def left(t: float) -> float:
        return _student_above(float(t), freedom) - (1 - chance)

    end = 1.0
    while left(end) > 0:
        end *= 2
    return float(findroot(left, (0, end), solver="bisect", maxsteps=100, verify=False))


def end_of_zone(
    floor: float, alike: Sequence[float], classes: Sequence[float], scales: Array
) -> tuple[float, str]:
    """The largest scale [of a grid] that is held against nobody, and what that rests on.

    At least LEAST_KAPPA times the floor. Beyond, as far as a new stack is predicted from those
    `alike`, but no further than half way (in log scale) from the floor to the mildest of `classes`
    that lies above the least end. Rounded up to the grid, whose last scale it never is.
    """
    least = LEAST_KAPPA * floor
    predicted = predict_scale(alike)
    above = [scale for scale in classes if scale > least]
    half_way = math.sqrt(floor * min(above)) if above else math.inf
    end, basis = least, "the root of 2 times the floor: two roundings as large as the largest known"
    if predicted is not None and min(predicted, half_way) > least:
        end = min(predicted, half_way)
        basis = f"{COVERAGE:.1%} of new stacks, predicted from {len(alike)}"
        if half_way < predicted:
            basis = "half way from the floor to the mildest known fault"
    at = int(np.searchsorted(scales, end * (1 - 1e-9)))
    return float(scales[min(at, len(scales) - 2)]), basis


def with_zone(calibration: Calibration, text_scales: Array, logprob_scales: Array) -> Calibration:
    """A calibration with the zone of both channels, from the stacks and classes that it holds."""
    honest = [stack for stack in calibration.stacks if stack.role != "variant"]
    alike = _noisiest_alike(honest)
    known = [s for s in calibration.stacks if s.role == "variant"]
    text, basis = end_of_zone(
        calibration.text.honest_scale, [s.text.estimate for s in alike if s.text],
        [c.scale for c in calibration.classes], text_scales,
    )  # fmt: skip
    logprob, _ = end_of_zone(
        calibration.logprob.honest_scale, [s.logprob.estimate for s in alike if s.logprob],
        [s.logprob.estimate for s in known if s.logprob], logprob_scales,
    )  # fmt: skip
    zone = Zone(
        kappa=text / calibration.text.honest_scale,
        stacks=len(honest),
        alike=len(alike),
        risk=predict_above([s.text.estimate for s in alike if s.text], text),
        basis=basis,
    )
    return calibration.model_copy(
        update={
            "text": calibration.text.model_copy(update={"tolerated_scale": text}),
            "logprob": calibration.logprob.model_copy(update={"tolerated_scale": logprob}),
            "zone": zone,
        }
    )


def above_floor(calibration: Calibration) -> tuple[str, ...]:
    """The held-out stacks whose noise scale is estimated above the floor, of either channel."""
    held_out = [stack for stack in calibration.stacks if stack.role == "held out"]
    return tuple(
        stack.name for stack in held_out
        if _is_above(stack.text, calibration.text) or _is_above(stack.logprob, calibration.logprob)
    )  # fmt: skip


def hidden_classes(calibration: Calibration) -> tuple[str, ...]:
    """The classes of departures that lie within honest serving, so that no audit can tell them."""
    floor = calibration.text.honest_scale
    return tuple(c.name for c in calibration.classes if c.scale <= floor * (1 + 1e-9))


def _is_above(found: Estimate | None, channel: Channel) -> bool:
    return found is not None and found.estimate > channel.honest_scale * (1 + 1e-9)


def _noisiest_alike(stacks: Sequence[Stack]) -> list[Stack]:
    """The honest stacks in the arithmetic of the noisiest: those that a new stack is like."""
    told = [stack for stack in stacks if stack.text is not None]
    if not told:
        return []
    noisiest = max(told, key=lambda stack: stack.text.estimate if stack.text else 0.0)
    return [stack for stack in told if _dtype(stack.name) == _dtype(noisiest.name)]


def _dtype(name: str) -> str | None:
    """The precision in a stack's name."""
    words = name.partition(" (")[0].split("-")  # whose it is stands behind it
    return next((dtype for dtype in _PRECISIONS if dtype in words), None)


def chance_above_all(stacks: int) -> float:
    """The chance that a new stack is noisier than all of so many: 1 in one more than they are.

    Assumes only that it and they are exchangeable: none is special before it is measured.
    """
    return 1 / (stacks + 1)


def same_reference(one: Measured | None, other: Measured | None) -> bool:
    """Whether two calibrations were measured with references whose scores may be taken together.

    Kernels count where rounding is coarse. What is not on record is the same as nothing.
    """
    if one is None or other is None:
        return False
    alike = (one.dtype, one.top_logprobs, one.kinds) == (
        other.dtype, other.top_logprobs, other.kinds,
    )  # fmt: skip
    return alike and describe_reference(one) == describe_reference(other)


def describe_reference(measured: Measured | None) -> str:
    """How a calibration's reference computes, in words."""
    if measured is None:
        return "not on record"
    return _computes(dict(_kernels(measured)), measured.dtype)


# -- another reference than the calibrated ---------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A calibration as it holds for another reference than the one it was made with."""

    calibration: Calibration
    why: str  # in words; "": it is the reference it was made with, or a finer one


def read_beside(calibration: Calibration, engine: Mapping[str, str]) -> Beside:
    """What a calibration says where scores come from this engine (by its own words).

    The scale of noise between host and reference grows with the reference's own rounding: of a
    reference in coarser arithmetic than the calibrated one, or of unknown arithmetic, or in 16 bits
    with other kernels than the calibrated one, what that arithmetic was measured to make (else the
    floor) is added to what is tolerated, as variances add. So nothing is held against a host that
    the reference's rounding can make.

    A trusted host is a stack like those that were measured, and honest ones leave it by the noise
    of both: it is added to the floor too, so that they are not taken to be noisier than any.
    """
    if engine.get("engine") == TRUSTED:
        return _beside_trusted(calibration)
    measured = calibration.measured
    if measured is None or not engine:
        return Beside(calibration=calibration, why="")
    dtype = engine.get("dtype")
    told, other = _computes(engine, dtype), _computes(dict(_kernels(measured)), measured.dtype)
    same = dtype in _EXACT or told == other
    if dtype is not None and _rank(dtype) <= _rank(measured.dtype) and same:
        return Beside(calibration=calibration, why="")
    why = f"scored by a reference {told}, calibrated for one {other}"

    own = [s for s in calibration.stacks if s.role != "variant" and _dtype(s.name) == dtype]
    text = _widen(calibration.text, [s.text for s in own])
    logprob = _widen(calibration.logprob, [s.logprob for s in own])
    updated = calibration.model_copy(update={"text": text, "logprob": logprob})
    return Beside(calibration=updated, why=why)


def _beside_trusted(calibration: Calibration) -> Beside:
    def both(channel: Channel) -> Channel:
        floor = min(math.hypot(channel.honest_scale, channel.honest_scale), _MOST)
        return _widen(channel, []).model_copy(update={"honest_scale": floor})

    text, logprob = both(calibration.text), both(calibration.logprob)
    updated = calibration.model_copy(update={"text": text, "logprob": logprob})
    return Beside(
        calibration=updated, why="held to what a trusted host said, rounded in its own way"
    )


def _kernels(measured: Measured) -> list[tuple[str, str]]:
    known = [("engine", measured.engine)]
    return known if measured.attention is None else [*known, ("attention", measured.attention)]


def _computes(engine: Mapping[str, str], dtype: str | None) -> str:
    """How a reference computes, in words: kernels count where rounding is coarse."""
    if dtype is None:
        return "of unknown precision"
    if dtype in _EXACT:
        return f"in {dtype}"
    kernels = [engine[name] for name in ("engine", "attention") if name in engine]
    return f"in {dtype} ({', '.join(kernels)})" if kernels else f"in {dtype}"


def _widen(channel: Channel, own: Sequence[Estimate | None]) -> Channel:
    """A channel that also tolerates the rounding that these stacks of a precision show."""
    uppers = [found.upper for found in own if found is not None and found.upper is not None]
    wider = math.hypot(channel.tolerated, max(uppers, default=channel.honest_scale))
    return channel.model_copy(update={"tolerated_scale": min(wider, _MOST)})


def _rank(dtype: str) -> int:
    return _PRECISIONS.index(dtype) if dtype in _PRECISIONS else len(_PRECISIONS)
