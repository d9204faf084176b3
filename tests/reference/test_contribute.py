"""Calibrations of other machines, added to a card by a command: what changes, what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Ended, _plain_surroundings, call, write_nowhere
from fakes_card import CARD, write_card
from measured import REFERENCE, calibration

from verifier.cli.lab import _say_calibrated
from verifier.evidence.calibration import Calibration, Lender, NoiseClass, Provisional
from verifier.files.run_folder import write_json
from verifier.reference.calibrations import load_calibration, write_calibration
from verifier.reference.cards import load_card
from verifier.shipped import with_own_cards

__all__ = ["_plain_surroundings"]  # fixture

#: What two machines measured: the second is the noisier.
OWN = calibration(0.02, 0.03, held_out=0.02)
OTHER = calibration(0.05, 0.06, held_out=0.05)


def written(path: Path, found: Calibration | None = None, **changes: Any) -> Path:
    """The file of a calibration, as another machine would have written it."""
    write_json(path, (found or OTHER).model_copy(update=changes).model_dump(mode="json"))
    return path


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card with a comment and a calibration of its own."""
    path = write_card(tmp_path)
    path.write_text(f"# as it was written\n{path.read_text()}")
    write_calibration(str(path), OWN)
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The file of the other machine, called as the card's own."""
    (tmp_path / "theirs").mkdir()
    return written(tmp_path / "theirs" / "tiny.calibration.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def contribute(card: Path | str, given: Path, *more: object) -> Ended:
    return call("reference", "contribute", card, given, *more)


# -- what it does ------------------------------------------------------------------------------


def test_a_contributed_calibration_counts_from_then_on(card: Path, theirs: Path) -> None:
    """The card lists a copy by its digest, and keeps its comments; audits read both as one."""
    ended = contribute(card, theirs, "--name", "a100")
    found = load_card(str(card))
    copy = card.parent / found.calibrations[0].file
    pooled = load_calibration(str(card), found)

    assert ended.status == 0, ended.err
    assert card.read_text().startswith("# as it was written\n")
    assert copy.read_bytes() == theirs.read_bytes()
    assert [one.sha256 for one in found.calibrations] == [
        hashlib.sha256(theirs.read_bytes()).hexdigest()
    ]
    assert pooled.text.honest_scale == OTHER.text.honest_scale
    assert "bfloat16-batch2 (a100)" in [stack.name for stack in pooled.stacks]
    theirs.unlink()
    assert load_calibration(str(card), found) == pooled


def test_what_changed_of_the_floor_is_said(card: Path, theirs: Path) -> None:
    """Before and after: stacks, honest scale, and the end of the zone above it."""
    before = load_calibration(str(card), load_card(str(card)))
    ended = contribute(card, theirs)
    now = load_calibration(str(card), load_card(str(card)))
    assert before.zone is not None
    assert now.zone is not None

    lines = ended.out.splitlines()
    assert lines[0].startswith(f"contributed: {card.parent / 'contributed' / 'tiny'}/")
    assert f"card: {card}" in lines
    assert "honest stacks: 6 (was 3)" in lines
    assert (
        f"honest scale from text: {now.text.honest_scale:.2g} (was {before.text.honest_scale:.2g})"
    ) in lines
    assert (
        f"tolerated from text: up to {now.text.tolerated:.2g}, kappa {now.zone.kappa:.2g} "
        f"(was up to {before.text.tolerated:.2g}, kappa {before.zone.kappa:.2g})"
    ) in lines


def test_it_says_the_same_as_json(card: Path, theirs: Path) -> None:
    """And which classes the floor now hides."""
    ours = (NoiseClass(name="fp8-class rounding", scale=0.05, basis="test"),)
    write_calibration(str(card), OWN.model_copy(update={"classes": ours}))
    told = json.loads(contribute(card, theirs, "--json").out)
    listed = load_card(str(card)).calibrations[0]

    assert told["card"] == str(card)
    assert told["calibration"] == str(card.parent / listed.file)
    assert told["sha256"] == listed.sha256
    assert (told["before"]["stacks"], told["now"]["stacks"]) == (3, 6)
    assert told["now"]["honest_scale"] == {
        "text": OTHER.text.honest_scale, "logprob": OTHER.logprob.honest_scale,
    }  # fmt: skip
    assert told["before"]["hidden"] == []
    assert told["now"]["hidden"] == ["fp8-class rounding"]


def test_a_card_without_a_calibration_has_one_then(tmp_path: Path, theirs: Path) -> None:
    """Nobody need measure what somebody has: audits are provisional no more."""
    card = write_card(tmp_path)
    ended = contribute(card, theirs)
    told = load_calibration(str(card), load_card(str(card)))

    assert ended.status == 0, ended.err
    assert "honest stacks: 3" in ended.out.splitlines()
    assert "the card was not calibrated: its audits are provisional no more" in ended.out
    assert told.text.honest_scale == OTHER.text.honest_scale


def test_several_machines_contribute(card: Path, theirs: Path) -> None:
    """Each in a file of its own, listed in the order they came."""
    contribute(card, theirs)
    third = written(theirs.parent / "third.json", calibration(0.04))
    ended = contribute(card, third)
    found = load_card(str(card))

    assert ended.status == 0, ended.err
    assert len({one.file for one in found.calibrations}) == 2
    assert "honest stacks: 7 (was 6)" in ended.out.splitlines()
    assert len(load_calibration(str(card), found).stacks) == 8  # and one variant


def test_two_machines_of_one_name_in_two_folders_both_count(card: Path, theirs: Path) -> None:
    """What a stack is called decides nothing."""
    beside = written(card.parent / "a100.calibration.json", calibration(0.04))
    digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    write_card(card.parent, calibrations=[{"file": beside.name, "sha256": digest}])
    ended = contribute(card, theirs, "--name", "a100")

    assert "honest stacks: 7 (was 4)" in ended.out.splitlines()


def test_what_a_kill_left_is_gone_on_with(card: Path, theirs: Path) -> None:
    """A copy that no card lists yet."""
    contribute(card, theirs)
    write_card(card.parent)

    assert contribute(card, theirs).status == 0
    assert len(load_card(str(card)).calibrations) == 1


def test_a_list_that_is_empty_is_gone_on_with(card: Path, theirs: Path) -> None:
    """In whatever way YAML lets people write it."""
    card.write_text(card.read_text() + "calibrations: []\n")

    assert contribute(card, theirs).status == 0
    assert len(load_card(str(card)).calibrations) == 1
    assert "  - file: contributed/tiny/" in card.read_text()


def test_who_calibrates_is_told_how_it_counts_elsewhere(
    card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the machine where it was measured."""
    _say_calibrated(str(card), OTHER, as_json=False)

    said = f"verifier reference contribute {card} tiny.calibration.json"
    assert capsys.readouterr().out.splitlines()[1].endswith(said)


# -- a card of an installation -----------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cards of an installation: one card with its calibration and a template beside it."""
    package = tmp_path / "site-packages" / "verifier"
    cards = package / "_shipped" / "reference" / "cards"
    cards.mkdir(parents=True)
    text = yaml.safe_dump(CARD | {"valid_templates": {"other": "other.jinja"}})
    (cards / "tiny.yaml").write_text("# as it ships\n" + text)
    (cards / "other.jinja").write_text("{{ messages }}")
    written(cards / "tiny.calibration.json", OWN)
    monkeypatch.setattr("verifier.shipped._PACKAGE", package)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return cards


def test_an_installation_is_not_written_into(installed: Path, theirs: Path, tmp_path: Path) -> None:
    """Card and calibration go into the data folder, and count with the one that ships."""
    before, own = contents(installed), tmp_path / "data" / "verifier" / "cards"
    ended = contribute("tiny", theirs)

    assert ended.status == 0, ended.err
    assert contents(installed) == before
    assert (own / "tiny.yaml").read_text().startswith("# as it ships\n")
    assert (own / "other.jinja").read_text() == "{{ messages }}"
    assert "honest stacks: 6 (was 3)" in ended.out.splitlines()
    assert f"{own / 'tiny.yaml'}: stands for the one that ships" in ended.err
    with with_own_cards(own):
        found = load_calibration("tiny", load_card("tiny"))
    assert found.text.honest_scale == OTHER.text.honest_scale


# -- what is refused ---------------------------------------------------------------------------


def refused(card: Path, given: Path, *more: object) -> str:
    """The complaint about a contribution, which changed nothing."""
    before = contents(card.parent)
    ended = contribute(card, given, *more)

    assert ended.status == 2
    assert ended.out == ""
    assert contents(card.parent) == before
    return ended.complaint


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tensors_sha256": "2" * 64}, "made for weights 222222222222, but the card pins 0000"),
        ({"card": "other"}, "measured with another card (other, not tiny)"),
        ({"max_tokens": 64}, "measured with another longest reply (64, not 30)"),
        (
            {"measured": REFERENCE.model_copy(update={"dtype": "bfloat16"})},
            "measured with another reference (in bfloat16 (transformers), not in float32)",
        ),
        ({"schema_version": 9}, "schema_version: this version reads 1, got 9"),
        ({"stacks": OWN.stacks}, "the same measurement again"),
        ({"stacks": ()}, "it has no stack that sets a floor"),
        (
            {"provisional": Provisional(
                lenders=(Lender(card="other", tensors_sha256="1" * 64),), kappa=1.6
            )},
            "of other cards, and measured on none of its own",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_count_with_the_others_is_refused(
    card: Path, theirs: Path, changes: dict[str, Any], why: str
) -> None:
    """In one line that names the file, with nothing written."""
    said = refused(card, written(theirs, **changes))

    assert str(theirs) in said
    assert why in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stacks": ()}, "it has no stack that sets a floor"),
        (
            {"stacks": calibration(0.05, 0.06, held_out=0.3).stacks},
            "its stack bfloat16-batch1 was held out and is noisier than its own floor",
        ),
    ],
    ids=["no floor", "a floor too low"],
)
def test_one_that_would_stand_alone_is_held_to_the_same(
    tmp_path: Path, theirs: Path, changes: dict[str, Any], why: str
) -> None:
    """A card that has none is no reason to take what sets no floor."""
    assert why in refused(write_card(tmp_path), written(theirs, **changes))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not JSON"),
        (b"# notes", "not JSON"),
        (b"[]", "expected an object, got list"),
        (b"{}", "missing; every key is needed"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"schema_version": NaN}', "schema_version: "),
    ],
)
def test_what_is_no_calibration_is_refused(card: Path, theirs: Path, raw: bytes, why: str) -> None:
    """Whatever is in the file, in one line that says what to give."""
    theirs.write_bytes(raw)
    said = refused(card, theirs)

    assert said.startswith(f"{theirs}: ")
    assert why in said
    assert said.endswith("give what `verifier calibrate` wrote for this card's weights")


def test_a_file_that_is_none_is_refused(card: Path, tmp_path: Path) -> None:
    """Missing, a folder, or far too large."""
    (tmp_path / "huge.json").write_bytes(b" " * (2**22 + 1))
    (tmp_path / "folder").mkdir()

    assert "No such file" in refused(card, tmp_path / "none.json")
    assert "is no plain file" in refused(card, tmp_path / "folder")
    assert "larger than" in refused(card, tmp_path / "huge.json")


def test_no_calibration_counts_twice(card: Path, theirs: Path) -> None:
    """Neither again, nor under another name, nor the card's own."""
    contribute(card, theirs)
    listed = load_card(str(card)).calibrations[0].file

    assert f"is contributed already, as {listed}" in refused(card, theirs)
    assert "is contributed already" in refused(card, theirs, "--name", "again")
    assert "is the card's own" in refused(card, card.parent / "tiny.calibration.json")
    assert "the same measurement again" in refused(card, written(theirs, seed=9))


def test_a_listed_calibration_that_was_edited_is_said_first(card: Path, theirs: Path) -> None:
    """What counts already must be what was contributed, before anything counts with it."""
    contribute(card, theirs)
    copy = card.parent / load_card(str(card)).calibrations[0].file
    written(copy, seed=2)
    third = written(theirs.parent / "third.json", calibration(0.04))

    assert f"{copy.name}: is not what the card lists" in refused(card, third)


def test_a_name_is_given_once(card: Path, theirs: Path) -> None:
    """And is one that a file may have."""
    contribute(card, theirs, "--name", "a100")
    third = written(theirs.parent / "third.json", calibration(0.04))

    assert "give another --name" in refused(card, third, "--name", "a100")
    for name in ("../up", "A100", "", "a b", ".hidden", "x" * 200):
        assert "--name" in refused(card, third, "--name", name), name


def test_an_unknown_card_is_refused(theirs: Path, tmp_path: Path) -> None:
    """As everywhere."""
    before = contents(tmp_path)
    ended = contribute("nosuch", theirs)

    assert ended.status == 2
    assert ended.complaint.startswith("reference: no card 'nosuch'; there are")
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_left_as_it_was(card: Path, theirs: Path) -> None:
    """Even where folders could be made in it."""
    with pytest.MonkeyPatch.context() as patched:
        write_nowhere(patched)
        said = refused(card, theirs)

    assert "Read-only file system" in said


def test_a_card_that_cannot_be_written_leaves_no_copy(
    card: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when it comes to the card: what was copied before is taken away."""
    from verifier.reference import cards

    def full(path: Path, _text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cards, "write_whole", full)

    assert "No space left on device" in refused(card, theirs)


def test_a_folder_of_contributions_that_is_a_link_is_refused(
    card: Path, theirs: Path, tmp_path: Path
) -> None:
    """What the card would list could not be read again."""
    (tmp_path / "elsewhere").mkdir()
    (card.parent / "contributed").symlink_to(tmp_path / "elsewhere")

    assert "is a link" in refused(card, theirs)
