"""What honest serving and each known variant look like on one card's model.

The record that `calibrate` makes and every audit reads, tied to the weights it was measured on.
Where a card has none, one that is made of those of other cards stands for it, and says so.
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

    honest_scale: Scale  # sigma0, the floor: the largest scale of the stacks that were measured
    #: The largest scale that is held against nobody, see `stacks`; None: the floor.
    tolerated_scale: Scale | None = None
    spread: Annotated[float, Field(ge=0, le=10)]  # of replies around their stack's, in log scale
    learning_rate: Annotated[float, Field(ge=1e-3, le=10)]  # power of the likelihood

    @model_validator(mode="after")
    def _can_be_divided_by(self) -> Self:
        if 0 < self.spread < 1e-3:
            raise ValueError("spread: expected 0, or 0.001 and more")
        return self

    @model_validator(mode="after")
    def _tolerates_what_is_honest(self) -> Self:
        if self.tolerated < self.honest_scale:
            raise ValueError(
                f"tolerated_scale: {self.tolerated_scale:.3g} is below honest_scale, "
                f"{self.honest_scale:.3g}"
            )
        return self

    @property
    def tolerated(self) -> float:
        """The largest scale that is held against nobody: kappa times the floor."""
        return self.honest_scale if self.tolerated_scale is None else self.tolerated_scale


class Zone(_Record):
    """The zone of indifference above the floor, and what is known of stacks; see `stacks`."""

    kappa: Annotated[float, Field(ge=1, le=1e3)]  # the end of the zone, in floors: greedy text
    stacks: Count  # honest ones that were measured, held-out ones among them
    alike: Count  # those of them in the arithmetic that is noisiest: what `risk` rests on
    #: Chance that a new stack lies above the zone if logs of scales are normal; None: too few.
    risk: Share | None
    basis: str  # what the end of the zone rests on


class Machine(_Record):
    """The machine that a calibration was measured on."""

    processor: str
    cores: Count
    memory_gib: Annotated[float, Field(gt=0)]
    gpu: str | None = None  # None: it has none
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None  # of one


class Measured(_Record):
    """What a calibration was measured with: what moves its numbers."""

    engine: str
    dtype: str  # of the reference's arithmetic
    attention: str | None = None  # None: as the engine has it
    top_logprobs: Count  # alternatives named per token
    kinds: tuple[str, ...] = ()  # of probes; (): all
    versions: dict[str, str] = {}  # of the reference, by its own words; {}: not on record


class NoiseClass(_Record):
    """A class of departures, excluded once the scale is bounded below `scale`."""

    name: str
    scale: Annotated[float, Field(ge=1e-6, le=1)]
    basis: str  # what the scale rests on
    #: Where only a smaller scale excludes the class, as on a model that was not measured; None:
    #: `scale` does.
    excluded_below: Annotated[float, Field(ge=1e-6, le=1)] | None = None

    @model_validator(mode="after")
    def _is_excluded_below_its_scale(self) -> Self:
        if self.to_exclude > self.scale:
            raise ValueError(
                f"excluded_below: {self.to_exclude:.3g} is above scale {self.scale:.3g}"
            )
        return self

    @property
    def to_exclude(self) -> float:
        """The scale below which the noise must be bounded to exclude the class."""
        return self.scale if self.excluded_below is None else self.excluded_below


class BetCertificate(_Record):
    """What held-out honest replies make of the noise bet, see `certificate`; of one reading."""

    replies: Count
    stacks: tuple[str, ...]
    level: Share  # coverage of each stack's bound
    excess: Annotated[float, Field(ge=0, le=100)]  # d: the mean ratio is at most 1 + d, on each
    largest_honest_scale: Scale  # what the ratios were taken against
    spread: Annotated[float, Field(ge=0, le=10)]
    learning_rate: Annotated[float, Field(ge=1e-3, le=10)]


class Lender(_Record):
    """A card whose measured noise stands for that of another one."""

    card: str
    tensors_sha256: Sha256
    differs: tuple[str, ...] = ()  # how its model differs from the other one, as far as is known


class Provisional(_Record):
    """That a calibration was made of those of other cards, see `reference.provisional`."""

    lenders: Annotated[tuple[Lender, ...], Field(min_length=1)]
    #: How far above the noisiest measured stack the lenders tolerate noise on their own models, in
    #: floors: how much noisier than its control an honest endpoint may be.
    kappa: Annotated[float, Field(ge=1, le=1e3)]

    @property
    def lent_by(self) -> str:
        """The lenders, and how they differ, in words."""
        return " and ".join(
            f"{one.card} ({'; '.join(one.differs)})" if one.differs else one.card
            for one in self.lenders
        )


class Calibration(_Record):
    """What `verifier calibrate` measured for one card, or what stands for it provisionally."""

    schema_version: Version
    card: str
    tensors_sha256: Sha256
    seed: int
    max_tokens: Count
    level: Share  # coverage of every interval in this file
    versions: dict[str, str]
    text: Channel
    logprob: Channel
    zone: Zone | None = None  # None: none was derived
    measured: Measured | None = None  # None: not on record
    classes: tuple[NoiseClass, ...]
    stacks: tuple[Stack, ...]
    certificate: BetCertificate | None = None  # None: not measured
    provisional: Provisional | None = None  # None: measured on the card's own model
    machine: Machine | None = None  # None: not on record, or several

    @model_validator(mode="after")
    def _honest_scales_are_of_the_grids(self) -> Self:
        """Some scales of each grid must be honest and some not, or nothing can be told."""
        for name, channel, scales in (
            ("text", self.text, TEXT_SCALES),
            ("logprob", self.logprob, LOGPROB_SCALES),
        ):
            for what, scale in (
                ("honest_scale", channel.honest_scale), ("tolerated_scale", channel.tolerated),
            ):  # fmt: skip
                if not scales[0] * (1 - 1e-9) <= scale < scales[-1]:
                    raise ValueError(
                        f"{name}.{what}: {scale:.3g} is outside the scales from "
                        f"{scales[0]:.3g} to {scales[-1]:.3g}"
                    )
        return self
