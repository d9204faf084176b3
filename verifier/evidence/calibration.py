"""What honest serving and each known variant look like on one card's model.

The record that `calibrate` makes and every audit reads, tied to the weights it was measured on.
Where it lies is told by `reference.calibrations`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.records import Count, Scale, Share, Version

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Role = Literal["calibration", "held out", "variant"]

#: Version of the calibration file.
CALIBRATION_SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Estimate(_Record):
    """A scale with its interval; `upper` None: not bounded."""

    estimate: Scale
    lower: Scale
    upper: Scale | None


class Stack(_Record):
    """What one honest stack or one variant measured."""

    name: str
    role: Role
    family: str | None = None  # of a variant
    replies: Count
    tokens: Count
    text: Estimate | None
    logprob: Estimate | None


class Channel(_Record):
    """How the rows of one channel are read; see `e_values`."""

    honest_scale: Scale  # sigma0: the largest scale of honest serving
    spread: Annotated[float, Field(ge=0, le=10)]  # of replies around their stack's, in log scale
    learning_rate: Annotated[float, Field(ge=1e-3, le=10)]  # power of the likelihood

    @model_validator(mode="after")
    def _can_be_divided_by(self) -> Self:
        if 0 < self.spread < 1e-3:
            raise ValueError("spread: expected 0, or 0.001 and more")
        return self


class NoiseClass(_Record):
    """A class of departures, excluded once the scale is bounded below `scale`."""

    name: str
    scale: Annotated[float, Field(ge=1e-6, le=1)]
    basis: str  # what the scale rests on


class Certificate(_Record):
    """What held-out honest replies make of the noise bet, see `certificate`; of one reading."""

    replies: Count
    stacks: tuple[str, ...]
    level: Share  # coverage of each stack's bound
    excess: Annotated[float, Field(ge=0, le=100)]  # d: the mean ratio is at most 1 + d, on each
    largest_honest_scale: Scale  # what the ratios were taken against
    spread: Annotated[float, Field(ge=0, le=10)]
    learning_rate: Annotated[float, Field(ge=1e-3, le=10)]


class Calibration(_Record):
    """What `verifier calibrate` measured for one card."""

    schema_version: Version
    card: str
    tensors_sha256: Sha256
    seed: int
    max_tokens: Count
    level: Share  # coverage of every interval in this file
    versions: dict[str, str]
    text: Channel
    logprob: Channel
    classes: tuple[NoiseClass, ...]
    stacks: tuple[Stack, ...]
    certificate: Certificate | None = None  # None: not measured

    @model_validator(mode="after")
    def _honest_scales_are_of_the_grids(self) -> Self:
        """Some scales of each grid must be honest and some not, or nothing can be told."""
        for name, channel, scales in (
            ("text", self.text, TEXT_SCALES),
            ("logprob", self.logprob, LOGPROB_SCALES),
        ):
            if not scales[0] * (1 - 1e-9) <= channel.honest_scale < scales[-1]:
                raise ValueError(
                    f"{name}.honest_scale: {channel.honest_scale:.3g} is outside the scales from "
                    f"{scales[0]:.3g} to {scales[-1]:.3g}"
                )
        return self
