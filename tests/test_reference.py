"""Cards: what they say, what they refuse, and what a reader must know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes_card import CARD, write_card
from simulate import SHA

from verifier.errors import ConfigError
from verifier.reference import list_cards, load_card


def test_every_shipped_card_loads() -> None:
    """Under the name of its file."""
    assert list_cards()
    for name in list_cards():
        assert load_card(name).name == name


def test_a_card_is_found_by_its_path(tmp_path: Path) -> None:
    """A relative directory of weights is taken from where the card lies."""
    card = load_card(str(write_card(tmp_path)))

    assert card.model == "someone/tiny"
    assert card.source.kind == "directory"
    assert card.source.path == tmp_path / "weights"


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere.yaml", "../x/y", "", "a\nb"])
def test_an_unknown_card_lists_those_that_ship(name: str) -> None:
    """And says that a path will do too."""
    with pytest.raises(ConfigError, match=r"smollm2-135m-instruct.*path") as refused:
        load_card(name)

    assert repr(name) in str(refused.value)


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    """A slip of the pen is an error, not a default."""
    path = write_card(tmp_path, license="MIT")

    with pytest.raises(ConfigError, match=r"license: unknown key; known are .*licence") as refused:
        load_card(str(path))
    assert str(path) in str(refused.value)


def test_an_unknown_key_inside_a_section_is_refused(tmp_path: Path) -> None:
    """It is named with its section."""
    path = write_card(tmp_path, digests=CARD["digests"] | {"config_sha256": SHA})

    with pytest.raises(ConfigError, match=r"digests\.config_sha256: unknown key"):
        load_card(str(path))


@pytest.mark.parametrize("key", [key for key in CARD if key != "name"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    """Nothing that a verdict rests on has a default."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in CARD.items() if k != key}))

    with pytest.raises(ConfigError, match=f"{key}: missing; add it"):
        load_card(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "Tiny Model"),
        ("name", "../tiny"),
        ("layers", 0),
        ("digests", CARD["digests"] | {"tensors_sha256": "abc"}),
        ("source", {"kind": "torrent", "path": "x"}),
        ("bank", "int4-sym-g64"),
        ("sampling", {"temperature": "warm"}),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path: Path, key: str, value: Any) -> None:
    """The message says where it is."""
    path = write_card(tmp_path, **{key: value})

    with pytest.raises(ConfigError, match=rf"tiny\.yaml: {key}"):
        load_card(str(path))


@pytest.mark.parametrize(
    "content", [b"name: [", b"\xff\xfe", b"- 1\n- 2", b"", b"name: x\n\tmodel: y"], ids=repr
)
def test_a_file_that_is_no_card_is_one_line(tmp_path: Path, content: bytes) -> None:
    """It names the file, whatever is in it."""
    path = tmp_path / "tiny.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as refused:
        load_card(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_digest_of_a_card_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    """Two copies of one run folder are of the same card."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    assert (
        load_card(str(write_card(tmp_path / "a"))).digest
        == load_card(str(write_card(tmp_path / "b"))).digest
    )


def test_the_digest_of_a_card_is_that_of_what_it_says(tmp_path: Path) -> None:
    """Comments and the order of keys change nothing; any value does."""
    first = load_card(str(write_card(tmp_path))).digest
    path = tmp_path / "tiny.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(dict(reversed(CARD.items())), sort_keys=False))
    again = load_card(str(path)).digest
    other = load_card(str(write_card(tmp_path, publisher="someone else"))).digest

    assert first == again != other
