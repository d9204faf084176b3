"""What honest serving and each known variant look like on one card's model.

The record that `calibrate` makes and every audit reads. It lies beside its card and is tied to the
weights it was measured on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from verifier.config import validated
from verifier.errors import ReferenceMismatch
from verifier.folder import read_json, write_json
from verifier.reference import Card, find_card

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Role = Literal["calibration", "held out", "variant"]

#: Version of the calibration file.
CALIBRATION_SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Record):
    """A scale with its interval; `upper` None: not bounded."""

    estimate: float
    lower: float
    upper: float | None


class Stack(_Record):
    """What one honest stack or one variant measured."""

    name: str
    role: Role
    family: str | None = None  # of a variant
    replies: int
    tokens: int
    text: Estimate | None
    logprob: Estimate | None


class Channel(_Record):
    """How the rows of one channel are read; see `stats`."""

    honest_scale: float  # sigma0: the largest scale of honest serving
    spread: float  # of replies around their stack's scale, in log scale
    learning_rate: float  # power of the likelihood


class NoiseClass(_Record):
    """A class of departures, excluded once the scale is bounded below `scale`."""

    name: str
    scale: float
    basis: str  # what the scale rests on


class Calibration(_Record):
    """What `verifier calibrate` measured for one card."""

    schema_version: int
    card: str
    tensors_sha256: Sha256
    seed: int
    max_tokens: int
    level: float  # coverage of every interval in this file
    versions: dict[str, str]
    text: Channel
    logprob: Channel
    classes: tuple[NoiseClass, ...]
    stacks: tuple[Stack, ...]


def calibration_path(name: str) -> Path:
    """Where the calibration of a card lies: beside the card."""
    card = find_card(name)
    return card.with_name(f"{card.stem}.calibration.json")


def load_calibration(name: str, card: Card) -> Calibration:
    """The calibration of a card. Raises ReferenceMismatch when missing or for other weights."""
    path = calibration_path(name)
    advice = f"run `verifier calibrate {name}`"
    if not path.is_file():
        raise ReferenceMismatch(f"{path}: card {card.name!r} is not calibrated; {advice}")
    raw = read_json(path)
    if raw.get("schema_version") != CALIBRATION_SCHEMA:
        raise ReferenceMismatch(
            f"{path}: calibration schema {raw.get('schema_version')!r}, expected "
            f"{CALIBRATION_SCHEMA}; {advice}"
        )
    found = validated(Calibration, raw, where=str(path))
    pinned = card.digests.tensors_sha256
    if pinned is not None and found.tensors_sha256 != pinned:
        raise ReferenceMismatch(
            f"{path}: made for weights {found.tensors_sha256[:12]}, but the card pins "
            f"{pinned[:12]}; {advice}"
        )
    return found


def write_calibration(name: str, calibration: Calibration) -> Path:
    """Write the calibration beside its card."""
    path = calibration_path(name)
    write_json(path, calibration.model_dump(mode="json"))
    return path
