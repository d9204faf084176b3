"""Packs as files: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import host
from packs import record_tiny_pack, write_keys, write_tiny_pack
from safetensors.numpy import load, save

from verifier.errors import ConfigError
from verifier.reference.pack_file import MAX_PROBES, STEPS, TOP, _digest, read_pack
from verifier.reference.signing import read_private_key, read_public_key, sign


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pack that nobody signed."""
    return write_tiny_pack(tmp_path_factory.mktemp("pack"), questions=16, builds=("int4-sym-g64",))


def envelope(path: Path) -> dict[str, str]:
    """The metadata of a pack."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    found: dict[str, str] = json.loads(header["__metadata__"]["reference_pack"])
    return found


def rewritten(
    path: Path, to: Path, *, manifest: Callable[[dict[str, Any]], None] = lambda _m: None,
    tensors: Callable[[dict[str, Any]], None] = lambda _t: None, honest: bool = True,
    key: Any = None,
) -> Path:  # fmt: skip
    """A pack as somebody who edits it would write it; `honest` with the digests of its tensors."""
    every, told = dict(load(path.read_bytes())), json.loads(envelope(path)["manifest"])
    tensors(every)
    if honest:
        told["tensors"] = {name: _digest(one) for name, one in every.items()}
    manifest(told)
    text = json.dumps(told)
    signature, public = ("", "") if key is None else sign(text.encode(), key)
    made = {"manifest": text, "signature": signature, "public_key": public}
    to.write_bytes(save(every, metadata={"reference_pack": json.dumps(made)}))
    return to


def test_a_pack_is_read_back_as_it_was_made(pack: Path) -> None:
    """Questions, paths, counts and what the builds say."""
    found = read_pack(pack)

    assert (len(found.ordinary), len(found.panel)) == (14, 2)
    assert found.signed_by is None
    assert found.card.name == "tiny"
    assert all(found.paths[number, 0] is not None for number in range(16))
    assert any(rendering for _, rendering in found.paths)
    assert found.lengths(0)["reference"] == len(found.prompt(0))
    place = found.place(found.paths[0, 0], 0)
    assert len(place.tokens) == TOP
    assert np.exp(place.logprobs).sum() + np.exp(place.rest) == pytest.approx(1, abs=20 / STEPS)
    assert found.tensors["build_logprobs"].shape[1:] == (1, 2)


def test_the_same_pack_has_the_same_bytes(pack: Path, tmp_path: Path) -> None:
    """Made again, from nothing or from what a work folder holds."""
    again = write_tiny_pack(
        tmp_path, questions=16, builds=("int4-sym-g64",), work=pack.with_name("tiny.pack.work")
    )

    assert again.read_bytes() == pack.read_bytes()


@pytest.mark.parametrize("at", [0, 5, 300, 20_000, -1])
def test_a_pack_that_is_cut_is_refused(pack: Path, tmp_path: Path, at: int) -> None:
    """Wherever it was."""
    cut = tmp_path / "cut.pack"
    cut.write_bytes(pack.read_bytes()[:at])

    with pytest.raises(ConfigError, match=r"is cut|is no reference pack"):
        read_pack(cut)


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    """Another safetensors file, and a file of anything."""
    other, text = tmp_path / "other.pack", tmp_path / "text.pack"
    other.write_bytes(save({"weights": np.zeros(3, dtype=np.float32)}))
    text.write_text("hello, this is no pack at all")

    with pytest.raises(ConfigError, match="metadata have no reference_pack"):
        read_pack(other)
    with pytest.raises(ConfigError, match="is no reference pack"):
        read_pack(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_pack(tmp_path / "missing.pack")


def test_a_header_of_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    """The file says how long it is; nobody makes room for it."""
    path = tmp_path / "long.pack"
    path.write_bytes((2**31).to_bytes(8, "little") + b"{}")

    with pytest.raises(ConfigError, match="a header of 2,147,483,648 bytes"):
        read_pack(path)


def test_an_edited_tensor_is_found(pack: Path, tmp_path: Path) -> None:
    """Whoever leaves the manifest as it is."""

    def edit(tensors: dict[str, Any]) -> None:
        tensors["place_logprobs"] = tensors["place_logprobs"] + np.uint16(1)

    edited = rewritten(pack, tmp_path / "edited.pack", tensors=edit, honest=False)

    with pytest.raises(ConfigError, match="place_logprobs: is not what the manifest says"):
        read_pack(edited)


def test_a_signed_pack_is_held_to_its_key(pack: Path, tmp_path: Path) -> None:
    """Signed by the key that must have; by another; by nobody; and edited since."""
    key, private, public = write_keys(tmp_path, "maker")
    _, _, other = write_keys(tmp_path, "other")
    signed = rewritten(pack, tmp_path / "signed.pack", key=read_private_key(private))

    maker = read_public_key(public)
    assert read_pack(signed, key=maker).signed_by == key.public_key().public_bytes_raw().hex()
    with pytest.raises(ConfigError, match=r"not by .*, which must have"):
        read_pack(signed, key=read_public_key(other))
    with pytest.raises(ConfigError, match="is not signed, and a key was given"):
        read_pack(pack, key=maker)
    told = envelope(signed)
    told["manifest"] = told["manifest"].replace("2026-11-30", "2026-12-01")
    forged = tmp_path / "forged.pack"
    forged.write_bytes(
        save(dict(load(signed.read_bytes())), metadata={"reference_pack": json.dumps(told)})
    )
    with pytest.raises(ConfigError, match="its signature is not that of its manifest"):
        read_pack(forged)


def test_a_file_that_holds_no_key_is_refused(tmp_path: Path) -> None:
    """Nothing of it is shown."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("sk-secret")

    for read in (read_private_key, read_public_key):
        with pytest.raises(ConfigError, match=r"holds no .* Ed25519 key") as refused:
            read(wrong)
        assert "sk-secret" not in str(refused.value)


def test_a_newer_schema_says_so_first(pack: Path, tmp_path: Path) -> None:
    """And not what else of it is unknown."""

    def newer(manifest: dict[str, Any]) -> None:
        manifest |= {"schema_version": 2, "more": 1}

    with pytest.raises(ConfigError, match="schema_version: this version reads 1, got 2"):
        read_pack(rewritten(pack, tmp_path / "newer.pack", manifest=newer))


def test_a_million_questions_are_refused(pack: Path, tmp_path: Path) -> None:
    """Before any of them is looked at."""

    def many(manifest: dict[str, Any]) -> None:
        manifest["questions"] = 1_000_000

    with pytest.raises(ConfigError, match=f"less than or equal to {MAX_PROBES}"):
        read_pack(rewritten(pack, tmp_path / "many.pack", manifest=many))


def test_questions_that_unpack_to_gigabytes_are_refused(pack: Path, tmp_path: Path) -> None:
    """A bomb of a few bytes."""
    import zlib

    def bomb(tensors: dict[str, Any]) -> None:
        packed = zlib.compress(b"\n" * 2**28, 9)
        tensors["questions"] = np.frombuffer(packed, dtype=np.uint8)

    with pytest.raises(ConfigError, match="questions: more than"):
        read_pack(rewritten(pack, tmp_path / "bomb.pack", tensors=bomb))


def _set(name: str, at: Any, value: int) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        changed = tensors[name].copy()
        changed[at] = value
        tensors[name] = changed

    return edit


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("token_starts", -1, 10**6),
        ("prompt_starts", 1, 10**6),
        ("path_starts", 1, 10**6),
        ("path_question", 0, 999),
        ("path_rendering", 0, 9999),
        ("path_parent", 0, 5),
        ("path_parent", 0, -7),
        ("path_token", 0, 10**6),
        ("place_tokens", (0, 0), 60_000),
        ("build_places", 0, 10**6),
    ],
)
def test_a_number_that_leads_nowhere_is_refused(
    pack: Path, tmp_path: Path, name: str, at: Any, value: int
) -> None:
    """However the digests fit: a pack may be made to."""
    edited = rewritten(pack, tmp_path / "odd.pack", tensors=_set(name, at, value))

    with pytest.raises(ConfigError, match="does not fit the rest of the pack"):
        read_pack(edited)


def test_tensors_of_other_forms_are_refused(pack: Path, tmp_path: Path) -> None:
    """Missing, unknown, of other numbers, of other dimensions."""

    def flat(tensors: dict[str, Any]) -> None:
        tensors["counts"] = tensors["counts"].ravel()

    def wide(tensors: dict[str, Any]) -> None:
        tensors["place_logprobs"] = tensors["place_logprobs"].astype(np.float64)

    def without(tensors: dict[str, Any]) -> None:
        del tensors["place_rest"]

    def more(tensors: dict[str, Any]) -> None:
        tensors["extra"] = np.zeros(1, dtype=np.uint8)

    for edit, said in (
        (flat, "counts: expected"),
        (wide, "place_logprobs: expected"),
        (without, "lacks the tensor place_rest"),
        (more, "unknown tensor 'extra'"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_pack(rewritten(pack, tmp_path / "form.pack", tensors=edit))


# -- of a trusted host -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pack of a host's texts."""
    with host() as url:
        return record_tiny_pack(tmp_path_factory.mktemp("said"), url, questions=8, wanted="texts")


def edit_manifest(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.__setitem__(name, value)


def edit_leaving(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.__setitem__("leaving", change(tensors["leaving"]))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"manifest": edit_manifest("trusted", None)}, "trusted: does not fit"),
        ({"manifest": edit_manifest("source", "scores")}, "unknown tensor 'leaving'"),
        ({"manifest": edit_manifest("source", "hearsay")}, "source"),
        ({"tensors": edit_leaving(lambda one: one[:-1])}, "leaving: does not fit"),
        ({"tensors": edit_leaving(lambda one: np.hstack([one, one]))}, "leaving: does not fit"),
        ({"tensors": edit_leaving(lambda one: one + np.int16(99))}, "leaving: does not fit"),
        ({"tensors": edit_leaving(lambda one: one.astype(np.int64))}, "leaving: expected int16"),
        ({"tensors": lambda tensors: tensors.pop("leaving")}, "lacks the tensor leaving"),
    ],
)
def test_a_pack_of_texts_that_does_not_fit_is_refused(
    texts: Path, tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    """Whoever writes the digests anew; what fits is read."""
    assert read_pack(rewritten(texts, tmp_path / "same.pack")).manifest.source == "texts"

    with pytest.raises(ConfigError, match=said):
        read_pack(rewritten(texts, tmp_path / "edited.pack", **how))


def test_a_pack_of_weights_has_no_host(pack: Path, tmp_path: Path, texts: Path) -> None:
    """One that says both is neither."""
    trusted = json.loads(envelope(texts)["manifest"])["trusted"]

    with pytest.raises(ConfigError, match="trusted: does not fit"):
        read_pack(
            rewritten(pack, tmp_path / "both.pack", manifest=edit_manifest("trusted", trusted))
        )
