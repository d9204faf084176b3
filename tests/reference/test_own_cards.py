"""A user's own cards: what is pinned or calibrated is never written into an installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from audits import CARD
from command_line import _plain_surroundings, call
from simulate import make_calibration

from verifier.errors import ConfigError
from verifier.files.run_folder import write_json
from verifier.reference.calibrations import calibration_path, load_calibration, write_calibration
from verifier.reference.cards import (
    find_card,
    list_cards,
    load_card,
    place_to_write,
    shadowing,
    write_card,
)
from verifier.reference.digests import digests_of
from verifier.shipped import with_own_cards

__all__ = ["_plain_surroundings"]  # fixture


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cards of an installation: one card, which is not pinned."""
    package = tmp_path / "site-packages" / "verifier"
    cards = package / "_shipped" / "reference" / "cards"
    cards.mkdir(parents=True)
    unpinned = dict.fromkeys(CARD["digests"])
    text = yaml.safe_dump(
        CARD | {"layers": 3, "digests": unpinned, "valid_templates": {"other": "other.jinja"}}
    )
    (cards / "tiny.yaml").write_text("# as it ships\n" + text)
    (cards / "other.jinja").write_text("{{ messages }}")
    monkeypatch.setattr("verifier.shipped._PACKAGE", package)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return cards


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pinning_writes_into_the_data_folder(installed: Path, tiny: Path, tmp_path: Path) -> None:
    """The installation stays as it is; the copy is found from then on, and said to be."""
    before = contents(installed)
    ended = call("reference", "pin", "tiny", "--weights", tiny)
    own = tmp_path / "data" / "verifier" / "cards"
    shown = call("reference", "show", "tiny", "--json")
    listed = call("reference", "list")

    assert ended.status == 0, ended.err
    assert contents(installed) == before
    assert (own / "tiny.yaml").read_text().startswith("# as it ships\n")
    assert (own / "other.jinja").read_text() == "{{ messages }}"
    said = f"{own / 'tiny.yaml'}: stands for the one that ships; remove it to go back to that"
    assert said in ended.err
    assert shown.err == f"{said}\n"
    assert json.loads(shown.out)["digests"] == digests_of(tiny).model_dump()
    assert f"Yours: {own / 'tiny.yaml'}" in listed.out
    assert call("reference", "pin", "tiny", "--weights", tiny).out.startswith("nothing to fill")


def test_a_calibration_is_written_into_the_data_folder(installed: Path, tmp_path: Path) -> None:
    """And read from there, before one that ships."""
    before, own = contents(installed), tmp_path / "own"
    with with_own_cards(own):
        assert calibration_path("tiny") == installed / "tiny.calibration.json"
        path = write_calibration("tiny", make_calibration())

        assert path == calibration_path("tiny") == own / "tiny.calibration.json"
        assert load_calibration("tiny", load_card("tiny")).stacks == make_calibration().stacks
        assert shadowing("tiny") == ()
    assert contents(installed) == before


def test_a_calibration_that_ships_serves_a_card_that_was_pinned_here(
    installed: Path, tmp_path: Path
) -> None:
    """To pin a card loses nothing; its digests are held against each other all the same."""
    write_json(installed / "tiny.calibration.json", make_calibration().model_dump(mode="json"))
    with with_own_cards(tmp_path / "own"):
        write_card("tiny", find_card("tiny").read_text())

        assert find_card("tiny") == tmp_path / "own" / "tiny.yaml"
        assert calibration_path("tiny") == installed / "tiny.calibration.json"
        assert shadowing("tiny") == (tmp_path / "own" / "tiny.yaml",)


def test_a_card_of_ones_own_is_found_by_its_name(installed: Path, tmp_path: Path) -> None:
    """Also where none of that name ships: it stands for nothing then."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.yaml").write_text(yaml.safe_dump(CARD | {"name": "mine", "model": "me/mine"}))
    with with_own_cards(own):
        assert list_cards() == ["mine", "tiny"]
        assert find_card("me/mine") == own / "mine.yaml"
        assert shadowing("mine") == ()
    assert list_cards() == ["tiny"]


def test_an_installation_is_not_written_where_nobody_named_a_folder(installed: Path) -> None:
    """As a library, too."""
    before = contents(installed)
    with pytest.raises(ConfigError, match="name a folder"):
        write_card("tiny", find_card("tiny").read_text())
    with pytest.raises(ConfigError, match="name a folder"):
        write_calibration("tiny", make_calibration())
    assert contents(installed) == before


def test_a_checkout_is_where_its_cards_are_pinned(tmp_path: Path) -> None:
    """There they are made, and published from."""
    with with_own_cards(tmp_path / "own"):
        path = find_card("qwen3-8b")

        assert place_to_write("qwen3-8b") == path
    assert not (tmp_path / "own").exists()


def test_a_data_folder_that_cannot_be_written_is_said(
    installed: Path, tiny: Path, tmp_path: Path
) -> None:
    """In one line, with nothing written anywhere."""
    before = contents(installed)
    (tmp_path / "data").write_text("a file")
    ended = call("reference", "pin", "tiny", "--weights", tiny)

    assert ended.status == 2
    assert str(tmp_path / "data") in ended.complaint
    assert contents(installed) == before
