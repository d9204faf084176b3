"""Pinning: digests are filled in, comments stay, and what is pinned is never overwritten."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from models import EMBEDDED

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.reference.cards import Card, find_card, load_card
from verifier.reference.digests import digests_of
from verifier.reference.pin import GENERATION_CONFIG, generation_defaults, pin_card
from verifier.reference.weights import check_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """\
# A card for tests.
name: tiny
model: someone/tiny
publisher: someone
licence:
  name: "MIT"  # as its page says
  hosting: allowed
  sha256: null
precision: float32
layers: 3

source:
  kind: hub
  repo: someone/tiny
  revision: null

# Filled by `verifier reference pin`.
digests:
  rules: null
  tensors_sha256: null  # of every tensor
  config_sha256: null
  tokenizer_sha256: null
  template_sha256: null

sampling: {temperature: 0.7}
bank:
  - int4-sym-g64
calibration_stacks: [float32-batch32]
held_out_stacks: []
"""


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CARD)
    return path


def pin(card: Path, weights: object, *, again: bool = False) -> dict[str, object]:
    """What was written, by key."""
    written = pin_card(str(card), str(weights), again=again, tell=lambda _line: None)
    return {key: value for key, (_, value) in written.items()}


def test_a_local_snapshot_fills_what_the_card_leaves_open(card: Path, tiny: Path) -> None:
    """And the weights pass the check that an audit makes."""
    found = digests_of(tiny)
    written = pin(card, tiny)

    digests = {f"digests.{key}": value for key, value in found}
    assert written == digests | {"takes_tools": False}
    assert load_card(str(card)).digests == found
    check_weights(load_card(str(card)), tiny)


def test_comments_quotes_and_order_of_a_card_stay(card: Path, tiny: Path) -> None:
    """Only the digests differ, and the white space before a comment that they move; what the card
    had no place for comes last."""
    digests = dict(digests_of(tiny))
    pin(card, tiny)

    expected = CARD
    for key, value in digests.items():
        expected = expected.replace(f"{key}: null", f"{key}: {value}")
    expected += "takes_tools: false\n"
    assert re.sub(" +#", " #", card.read_text()) == re.sub(" +#", " #", expected)


def test_pinning_again_changes_nothing(card: Path, tiny: Path) -> None:
    """The same snapshot agrees with itself."""
    pin(card, tiny)
    before = card.read_bytes()

    assert pin(card, tiny) == {}
    assert card.read_bytes() == before


def test_a_snapshot_that_differs_is_refused_whole(card: Path, tiny: Path, tmp_path: Path) -> None:
    """In one line that names the key; the card keeps every byte, open digests included."""
    card.write_text(CARD.replace("tensors_sha256: null", f"tensors_sha256: {'f' * 64}"))
    before = card.read_bytes()

    with pytest.raises(ReferenceMismatch) as refused:
        pin(card, tiny)
    message = str(refused.value)
    assert "digests.tensors_sha256 is" in message
    assert f"but {card} pins ffffffffffff…; nothing was written" in message
    assert "\n" not in message
    assert card.read_bytes() == before


OLDER = (
    "digests:\n  tensors_sha256: TENSORS\n"
    f"  tokenizer_sha256: {'a' * 64}\n  template_sha256: {'b' * 64}\n"
)


@pytest.fixture
def older(card: Path, tiny: Path) -> Path:
    """A card that was pinned by older rules to the very weights."""
    head, _, rest = CARD.partition("digests:\n")
    tensors = digests_of(tiny).tensors_sha256 or ""
    card.write_text(head + OLDER.replace("TENSORS", tensors) + rest[rest.index("\nsampling") :])
    return card


def test_a_card_pinned_by_older_rules_says_how_to_pin_it_again(older: Path, tiny: Path) -> None:
    """Where weights are checked, and where it is pinned without saying again: in one line."""
    for refuse in (lambda: check_weights(load_card(str(older)), tiny), lambda: pin(older, tiny)):
        with pytest.raises(ReferenceMismatch) as refused:
            refuse()
        assert str(refused.value) == (
            "card 'tiny' pins its tokenizer and template by older rules, which left out much of "
            "what is loaded; pin it again: `verifier reference pin CARD --weights DIR --again`"
        )


def test_pinning_again_gives_old_and_new_and_keeps_the_layout(older: Path, tiny: Path) -> None:
    """New keys come to their place, and the weights pass."""
    found = digests_of(tiny)
    written = pin_card(str(older), str(tiny), again=True, tell=lambda _line: None)

    assert written == {
        "digests.rules": (None, 2),
        "digests.config_sha256": (None, found.config_sha256),
        "digests.tokenizer_sha256": ("a" * 64, found.tokenizer_sha256),
        "digests.template_sha256": ("b" * 64, found.template_sha256),
        "takes_tools": (None, False),
    }
    expected = "digests:\n" + "".join(f"  {key}: {value}\n" for key, value in found)
    assert expected + "\nsampling" in older.read_text()
    check_weights(load_card(str(older)), tiny)
    assert pin(older, tiny, again=True) == {}


def test_pinning_again_refuses_other_tensors(older: Path, tiny: Path) -> None:
    """They are another model; the card keeps every byte."""
    tensors = digests_of(tiny).tensors_sha256 or ""
    older.write_text(older.read_text().replace(tensors, "f" * 64))
    before = older.read_bytes()

    with pytest.raises(ReferenceMismatch, match=r"digests\.tensors_sha256 is .* pins ffffffffffff"):
        pin(older, tiny, again=True)
    assert older.read_bytes() == before


@pytest.mark.parametrize("name", ["LICENSE", "LICENSE-MODEL", "LICENSE.txt"])
def test_the_text_of_a_licence_is_pinned_too(
    card: Path, tiny: Path, tmp_path: Path, name: str
) -> None:
    """Where it travels with the weights; another text later is refused."""
    weights = tmp_path / "weights"
    shutil.copytree(tiny, weights)
    (weights / name).write_text("Do as you please.")
    written = pin(card, weights)
    (weights / name).write_text("Ask first.")

    assert written["licence.sha256"] == hashlib.sha256(b"Do as you please.").hexdigest()
    with pytest.raises(ReferenceMismatch, match=r"licence\.sha256 is"):
        pin(card, weights)


def test_a_snapshot_of_the_hub_pins_its_commit(
    card: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch is resolved to the commit that it names today."""
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / COMMIT
    shutil.copytree(tiny, snapshot)
    asked: list[tuple[Any, ...]] = []

    def download(repo: str, *, revision: str, **_others: object) -> str:
        asked.append((repo, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    written = pin(card, "someone/tiny@main")

    assert asked == [("someone/tiny", "main")]
    assert written["source.revision"] == COMMIT
    assert load_card(str(card)).source.revision == COMMIT


@pytest.mark.parametrize("weights", ["no/such/dir", "tiny", "someone/tiny", "@main", "a b/c@d", ""])
def test_what_is_neither_a_directory_nor_a_revision_is_refused(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    """With the form that it takes."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="neither a directory nor REPO@REVISION") as refused:
        pin(card, weights or "''")
    assert "\n" not in str(refused.value)


def test_another_repository_is_refused(card: Path) -> None:
    """Before anything is downloaded."""
    with pytest.raises(ConfigError, match="someone/else is not the card's repository someone/tiny"):
        pin(card, "someone/else@main")


def test_an_unknown_card_lists_those_that_ship(tiny: Path) -> None:
    """As every command does."""
    with pytest.raises(ConfigError, match="no card 'no-such-model'; there are deepseek"):
        pin(Path("no-such-model"), tiny)


@pytest.mark.slow
def test_the_embedded_model_is_what_its_card_pins(embedded: Path, tmp_path: Path) -> None:
    """A card of it without digests is filled with the very ones that ship."""
    shipped = find_card(EMBEDDED).read_text()
    digests = load_card(EMBEDDED).digests
    opened = shipped
    for key, value in digests:
        opened = opened.replace(f"{key}: {value}", f"{key}: null")
    card = tmp_path / "opened.yaml"
    card.write_text(opened)

    assert opened != shipped
    filled = {f"digests.{key}": value for key, value in digests}
    assert pin(card, embedded) == filled | {"takes_tools": False}
    assert card.read_text() == shipped + "takes_tools: false\n"


@pytest.fixture
def published(tmp_path: Path, tiny: Path) -> Path:
    """A snapshot of its own, to add files to."""
    return Path(shutil.copytree(tiny, tmp_path / "published"))


def test_sampling_defaults_of_the_repository_are_filled_in(card: Path, published: Path) -> None:
    """What a server applies where a request says nothing; neutral values are none."""
    said = {
        "repetition_penalty": 1.1, "temperature": 0.2, "top_p": 0.8, "top_k": 20, "min_p": 0.0,
        "do_sample": True, "eos_token_id": [1, 2], "presence_penalty": 0,
    }  # fmt: skip
    (published / GENERATION_CONFIG).write_text(json.dumps(said))
    written = pin(card, published)

    assert {key: value for key, value in written.items() if key.startswith("sampling.")} == {
        "sampling.repetition_penalty": 1.1, "sampling.top_p": 0.8, "sampling.top_k": 20,
    }  # fmt: skip
    assert load_card(str(card)).sampling == {
        "temperature": 0.7, "repetition_penalty": 1.1, "top_p": 0.8, "top_k": 20,
    }  # fmt: skip
    assert pin(card, published) == {}


@pytest.mark.parametrize(
    ("template", "shows"), [("{{ tools | tojson }}", True), ("{{ messages }} my toolset", False)]
)
def test_whether_the_template_shows_tools_is_filled_in(
    card: Path, tiny: Path, tmp_path: Path, template: str, shows: bool
) -> None:
    """Once, and not where the card has said so; a card that says nothing keeps its digest."""
    weights = tmp_path / "weights"
    shutil.copytree(tiny, weights)
    (weights / "chat_template.jinja").write_text(template)
    before = load_card(str(card))

    assert pin_card(str(card), str(weights), tell=print)["takes_tools"] == (None, shows)
    pinned = load_card(str(card))
    assert pinned.takes_tools is shows
    assert "takes_tools" not in pin_card(str(card), str(weights), tell=print)
    assert pinned.digest != before.digest
    same = before.model_dump(mode="json") | {"takes_tools": None}
    assert Card.model_validate(same).digest == before.digest


def test_a_penalty_that_differs_from_the_cards_is_refused(card: Path, published: Path) -> None:
    """Honest hosts are held to it; nothing is written then."""
    card.write_text(CARD.replace("temperature: 0.7", "repetition_penalty: 1.05"))
    (published / GENERATION_CONFIG).write_text(json.dumps({"repetition_penalty": 1.1}))
    before = card.read_bytes()
    for again in (False, True):
        with pytest.raises(ReferenceMismatch, match=r"sampling.repetition_penalty is 1.1, but"):
            pin(card, published, again=again)

    assert card.read_bytes() == before


def test_a_card_without_sampling_gets_the_section(card: Path, published: Path) -> None:
    """And one whose repository says nothing stays without it."""
    card.write_text(CARD.replace("sampling: {temperature: 0.7}\n", ""))
    pin(card, published)
    assert load_card(str(card)).sampling == {}
    (published / GENERATION_CONFIG).write_text(json.dumps({"repetition_penalty": 1.1}))
    pin(card, published)

    assert load_card(str(card)).sampling == {"repetition_penalty": 1.1}
    assert generation_defaults(published) == {"repetition_penalty": 1.1}
