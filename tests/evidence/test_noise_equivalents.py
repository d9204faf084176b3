"""What a noise scale is said to be like: what its interval shows, and no more."""

from __future__ import annotations

import pytest
from simulate import make_calibration

from verifier.evidence.calibration import Estimate, Stack
from verifier.evidence.e_values import Interval
from verifier.evidence.noise import noise_scale

SCALES = {
    "int8-channel": ("int8", 0.12), "fp8-channel": ("fp8", 0.2), "nf4-g64": ("4-bit", 0.6),
    "int4-sym-g64": ("4-bit", 0.7), "int3-g64": ("3-bit", 0.95), "drop-1": ("layers", 0.4),
}  # fmt: skip


def like(lower: float, estimate: float, upper: float | None, *, only: tuple[str, ...] = ()) -> str:
    stacks = tuple(
        Stack(
            name=name, role="variant", family=family, replies=8, tokens=240,
            text=Estimate(estimate=scale, lower=scale, upper=scale), logprob=None,
        )
        for name, (family, scale) in SCALES.items() if not only or name in only
    )  # fmt: skip
    interval = Interval(estimate=estimate, lower=lower, upper=upper)
    calibration = make_calibration(stacks=stacks)
    return noise_scale(interval, calibration, bank=[*SCALES], level=0.999).equivalent


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.05, 0.08, 0.3), "honest serving"),
        ((0.62, 0.65, 0.68), "4-bit rounding (int4-sym-g64)"),
        ((0.3, 0.4, 0.5), "between fp8 and 4-bit rounding; nearest nf4-g64, fp8-channel"),
        ((0.15, 0.22, 0.5), "between int8 and 4-bit rounding; nearest int8-channel, nf4-g64"),
        ((0.65, 0.8, 0.95), "between 4-bit and 3-bit rounding; nearest int4-sym-g64, int3-g64"),
        ((0.08, 0.13, 0.3), "between honest serving and 4-bit rounding; nearest int8-channel"),
        ((0.5, 0.7, None), "above fp8 rounding; nearest int4-sym-g64"),
        ((0.05, 0.3, None), "above honest serving; nearest fp8-channel"),
    ],
)  # fmt: skip
def test_an_interval_is_named_by_what_it_lies_between(
    interval: tuple[float, float, float | None], expected: str
) -> None:
    """By one class of rounding only if all of it lies within one."""
    assert like(*interval) == expected


def test_without_calibrated_roundings_nothing_is_named() -> None:
    """A dropped layer is no rounding."""
    assert like(0.3, 0.4, 0.5, only=("drop-1",)) == "unknown: no rounding is calibrated"
