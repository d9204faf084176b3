"""Calibrations: kept beside their card, and refused when they are of other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes_card import write_card
from simulate import make_calibration

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.evidence.stacks import with_zone
from verifier.files.run_folder import write_json
from verifier.reference.calibrations import load_calibration, write_calibration
from verifier.reference.cards import load_card


def test_a_calibration_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """It lies beside its card."""
    name = str(write_card(tmp_path))
    made = with_zone(make_calibration(), TEXT_SCALES, LOGPROB_SCALES)
    path = write_calibration(name, made)

    assert path == tmp_path / "tiny.calibration.json"
    assert load_calibration(name, load_card(name)) == made


def test_a_missing_calibration_says_how_to_make_one(tmp_path: Path) -> None:
    """The command is there to copy."""
    name = str(write_card(tmp_path))

    with pytest.raises(ReferenceMismatch, match=f"run `verifier calibrate {name}`"):
        load_calibration(name, load_card(name))


def test_a_calibration_of_other_weights_is_refused(tmp_path: Path) -> None:
    """Both digests are shown."""
    name = str(write_card(tmp_path))
    write_calibration(name, make_calibration(tensors_sha256="1" * 64))

    with pytest.raises(ReferenceMismatch, match=r"weights 111111111111.*pins 000000000000"):
        load_calibration(name, load_card(name))


def test_a_card_that_pins_no_weights_takes_what_was_measured(tmp_path: Path) -> None:
    """There is nothing to compare; the report says that the card pins nothing."""
    digests = {"tensors_sha256": None, "tokenizer_sha256": None, "template_sha256": None}
    name = str(write_card(tmp_path, digests=digests))
    write_calibration(name, make_calibration(tensors_sha256="1" * 64))

    assert load_calibration(name, load_card(name)).tensors_sha256 == "1" * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schema_version": 2},
            "schema_version: this version reads 1, got 2; run `verifier calibrate",
        ),
        ({"text": None}, "text"),
        ({"sigma": 0.1}, "sigma: unknown key"),
    ],
    ids=["another schema", "no channel", "unknown key"],
)
def test_a_calibration_that_cannot_be_read_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """No verdict rests on half of one."""
    name = str(write_card(tmp_path))
    raw = make_calibration().model_dump(mode="json") | changes
    write_json(tmp_path / "tiny.calibration.json", raw)

    with pytest.raises((ConfigError, ReferenceMismatch), match=message):
        load_calibration(name, load_card(name))


def test_a_calibration_that_is_not_json_is_refused(tmp_path: Path) -> None:
    """A file cut short is named."""
    name = str(write_card(tmp_path))
    (tmp_path / "tiny.calibration.json").write_text('{"schema_version": 1,')

    with pytest.raises(ConfigError, match=r"tiny\.calibration\.json: not JSON"):
        load_calibration(name, load_card(name))
