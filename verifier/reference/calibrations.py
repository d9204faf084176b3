"""Calibration files: each with its card, and refused where it was measured on other weights."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from verifier.errors import ReferenceMismatch
from verifier.evidence.calibration import Calibration
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.evidence.pooling import pool, why_not_pooled
from verifier.evidence.stacks import with_zone
from verifier.files.run_folder import make_folder, read_bytes, write_json
from verifier.files.stored import check
from verifier.files.strict_yaml import read_bounded
from verifier.reference.cards import (
    Card,
    Contributed,
    card_folders,
    find_card,
    is_in_an_installation,
    load_card,
    own_folder,
)
from verifier.reference.defaults import obstacles_to_calibrating, obstacles_to_rendering

#: Larger than any calibration: a few hundred stacks.
LARGEST: Final = 2**22

#: Folder beside a card for what is contributed to it, in one of its own.
CONTRIBUTED: Final = "contributed"

_SUFFIX: Final = ".calibration.json"


def calibration_path(name: str) -> Path:
    """Where the calibration of a card lies, or would lie: beside it, or among cards with names."""
    card = find_card(name)
    beside = card.with_name(f"{card.stem}{_SUFFIX}")
    folders = card_folders() if card.parent in card_folders() else ()
    places = [folder / beside.name for folder in folders]
    return next((path for path in places if path.is_file()), beside)


def is_calibrated(name: str) -> bool:
    """Whether a calibration of a card is there, its own or a contributed one."""
    return calibration_path(name).is_file() or bool(load_card(name).calibrations)


def how_to_calibrate(name: str, card: Card) -> str:
    """What to do about a calibration that is missing: nothing that cannot succeed."""
    against = obstacles_to_calibrating(card)
    if against:
        why = "; and ".join(against)
        return f"it cannot be calibrated yet: {why}"
    stacks = (*card.calibration_stacks, *card.held_out_stacks)
    where = "" if not any(one.startswith("vllm-") for one in stacks) else (
        " where vLLM is installed and the GPUs hold the weights"
    )  # fmt: skip
    return f"run `verifier calibrate {name}`{where}"


def obstacles(name: str) -> tuple[str, ...]:
    """What stands between a card and an audit today; (): nothing does, be it under a provisional
    floor."""
    return obstacles_to_rendering(load_card(name))


def describe_calibrated(name: str) -> str:
    """Whether a card is calibrated, in words: else its audits are provisional, and what to do."""
    if is_calibrated(name):
        return "yes"
    return f"no, so audits are provisional; {how_to_calibrate(name, load_card(name))}"


def load_calibration(name: str, card: Card) -> Calibration:
    """The calibration of a card: its own and contributed ones, as one.

    Raises ReferenceMismatch when there is none, and for one of other weights, of another reference,
    contributed twice or edited.
    """
    found = read_calibrations(name, card)
    if not found:
        advice = how_to_calibrate(name, card)
        raise ReferenceMismatch(f"reference: card {card.name!r} is not calibrated; {advice}")
    return pool_calibrations(found, card)


def read_calibrations(name: str, card: Card) -> dict[str, Calibration]:
    """The card's own calibration and those that it lists, by where they lie, own first; {}: none.

    Raises ReferenceMismatch for one of other weights, and for one that is not what the card lists.
    """
    path, found = calibration_path(name), dict[str, Calibration]()
    if path.is_file():
        advice = how_to_calibrate(name, card)
        found[str(path)] = read_calibration(read_bytes(path), card, where=str(path), advice=advice)
        _refuse_own(path, card)
    folder = find_card(name).parent
    return found | {str(one.file): _contributed(folder, one, card) for one in card.calibrations}


def pool_calibrations(found: Mapping[str, Calibration], card: Card) -> Calibration:
    """Calibrations of a card as one. Raises ReferenceMismatch for one that does not fit another."""
    (first, own), *others = found.items()
    seen = [(first, own)]
    for where, other in others:  # of one alone its own reading is kept
        for before, one in seen:
            why = why_not_pooled(one, other)
            if why is not None:
                raise ReferenceMismatch(
                    f"card {card.name}: calibrations: {where}: beside {before}: {why}; take it "
                    "out of the card"
                )
        seen.append((where, other))
    labelled: dict[str, Calibration] = {}
    for where, other in others:
        short = label_of(where, card)
        labelled[where if short in labelled else short] = other
    return pool(own, labelled)


def label_of(file: str, card: Card) -> str:
    """What the stacks of a contributed calibration are called by."""
    return file.removeprefix(f"{CONTRIBUTED}/{card.name}/").removesuffix(_SUFFIX)


def _contributed(folder: Path, listed: Contributed, card: Card) -> Calibration:
    """A contributed calibration that is what the card lists."""
    where = f"card {card.name}: calibrations: {listed.file}"
    raw = read_bounded(folder / listed.file, limit=LARGEST, below=folder)
    digest = sha256(raw).hexdigest()
    if digest != listed.sha256:
        raise ReferenceMismatch(
            f"{where}: is not what the card lists (sha256 {digest[:12]}, not "
            f"{listed.sha256[:12]}); restore it, or take it out of the card"
        )
    return read_calibration(raw, card, where=where, advice="take it out of the card")


def _refuse_own(path: Path, card: Card) -> None:
    """The card's own calibration must not be contributed to itself."""
    digest = sha256(path.read_bytes()).hexdigest()
    again = [one.file for one in card.calibrations if one.sha256 == digest]
    if again:
        raise ReferenceMismatch(
            f"card {card.name}: calibrations: {again[0]}: is the card's own calibration, {path}, "
            "again; take it out of the card"
        )


def read_calibration(raw: bytes, card: Card, *, where: str, advice: str) -> Calibration:
    """A calibration of this card's weights, with its zone."""
    found = check(raw, Calibration, where=where, advice=advice)
    if found.zone is None:  # from before there was a zone: its stacks say what it would be
        found = with_zone(found, TEXT_SCALES, LOGPROB_SCALES)
    if found.provisional is not None:
        raise ReferenceMismatch(
            f"{where}: of other cards, and measured on none of its own; {advice}"
        )
    pinned = card.digests.tensors_sha256
    if pinned is None and found.card != card.name:
        raise ReferenceMismatch(
            f"{where}: made for card {found.card!r}, and card {card.name!r} pins no weights that "
            f"would be the same; {advice}"
        )
    if pinned is not None and found.tensors_sha256 != pinned:
        raise ReferenceMismatch(
            f"{where}: made for weights {found.tensors_sha256[:12]}, but the card pins "
            f"{pinned[:12]}; {advice}"
        )
    return found


def write_calibration(name: str, calibration: Calibration) -> Path:
    """Write the calibration beside its card, or among a user's own for one of an installation."""
    card = find_card(name)
    folder = own_folder() if is_in_an_installation(card) else card.parent
    make_folder(folder)
    path = folder / f"{card.stem}{_SUFFIX}"
    write_json(path, calibration.model_dump(mode="json"))
    return path
