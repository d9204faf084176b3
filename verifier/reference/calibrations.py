"""Calibration files: each with its card, and refused where it was measured on other weights."""

from __future__ import annotations

from pathlib import Path

from verifier.errors import ReferenceMismatch
from verifier.evidence.calibration import Calibration
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.evidence.stacks import with_zone
from verifier.files.run_folder import make_folder, write_json
from verifier.files.stored import read_record
from verifier.reference.cards import (
    Card,
    card_folders,
    find_card,
    is_in_an_installation,
    load_card,
    own_folder,
)
from verifier.reference.defaults import obstacles_to_calibrating, obstacles_to_rendering


def calibration_path(name: str) -> Path:
    """Where the calibration of a card lies, or would lie: beside it, or among cards with names."""
    card = find_card(name)
    beside = card.with_name(f"{card.stem}.calibration.json")
    folders = card_folders() if card.parent in card_folders() else ()
    places = [folder / beside.name for folder in folders]
    return next((path for path in places if path.is_file()), beside)


def is_calibrated(name: str) -> bool:
    """Whether a calibration of a card is there."""
    return calibration_path(name).is_file()


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
    card = load_card(name)
    found = list(obstacles_to_rendering(card))
    if card.digests.tensors_sha256 is None:
        found.append("its weights are not pinned: `verifier reference pin` does, from a snapshot")
    return tuple(found)


def describe_calibrated(name: str) -> str:
    """Whether a card is calibrated, in words: else its audits are provisional, and what to do."""
    if is_calibrated(name):
        return "yes"
    return f"no, so audits are provisional; {how_to_calibrate(name, load_card(name))}"


def load_calibration(name: str, card: Card) -> Calibration:
    """The calibration of a card. Raises ReferenceMismatch when missing or for other weights."""
    path, advice = calibration_path(name), how_to_calibrate(name, card)
    if not path.is_file():
        raise ReferenceMismatch(f"reference: card {card.name!r} is not calibrated; {advice}")
    found = read_record(path, Calibration, advice=advice)
    if found.zone is None:  # from before there was a zone: its stacks say what it would be
        found = with_zone(found, TEXT_SCALES, LOGPROB_SCALES)
    if found.provisional is not None:
        raise ReferenceMismatch(
            f"{path}: of other cards, and measured on none of its own; {advice}"
        )
    pinned = card.digests.tensors_sha256
    if pinned is None and found.card != card.name:
        raise ReferenceMismatch(
            f"{path}: made for card {found.card!r}, and card {card.name!r} pins no weights that "
            f"would be the same; {advice}"
        )
    if pinned is not None and found.tensors_sha256 != pinned:
        raise ReferenceMismatch(
            f"{path}: made for weights {found.tensors_sha256[:12]}, but the card pins "
            f"{pinned[:12]}; {advice}"
        )
    return found


def write_calibration(name: str, calibration: Calibration) -> Path:
    """Write the calibration beside its card, or among a user's own for one of an installation."""
    card = find_card(name)
    folder = own_folder() if is_in_an_installation(card) else card.parent
    make_folder(folder)
    path = folder / f"{card.stem}.calibration.json"
    write_json(path, calibration.model_dump(mode="json"))
    return path
