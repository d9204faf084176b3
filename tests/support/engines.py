"""Replies to be scored by real engines, and checkpoints under a variant; needs torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from models import EMBEDDED
from safetensors import safe_open
from safetensors.torch import save_file

from verifier.records import GenerateRequest, Generation, Message, ReplyScore, ScoreRequest
from verifier.reference.calibrations import calibration_path
from verifier.reference.cards import find_card
from verifier.reference.checkpoint import transformed
from verifier.reference.engines import Engine
from verifier.reference.layout import read_layout
from verifier.reference.renderings.catalogue import Rendering, catalogue
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import find_variant

#: Replies that leave the model in some doubt at most positions, by question.
REPLIES = {
    "Why is the sky blue?": (
        "Sunlight holds every colour, and air scatters the short waves of blue light far more "
        "than the long waves of red, so blue reaches our eyes from all over the sky."
    ),
    "Name three things to take on a hike.": (
        "Water, a map of the trail, and warm clothes: the weather in the hills changes quickly."
    ),
}


def score_replies(engine: Engine, tokenizer: Tokenizer) -> list[ReplyScore]:
    """What an engine says of these replies."""
    return engine.score(
        [
            ScoreRequest(
                prompt_ids=tokenizer.render([Message(role="user", content=question)]),
                reply_ids=tokenizer.encode(reply),
            )
            for question, reply in REPLIES.items()
        ]
    )


class Remembering:
    """An engine that computes nothing twice: audits with one seed ask and score much that is alike.

    What is drawn at random is not remembered.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        return self._recalled("score", requests, self._engine.score)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        if any(r.temperature or r.drop_best or r.rare for r in requests):
            return self._engine.generate(requests)
        return self._recalled("generate", requests, self._engine.generate)

    def _recalled(
        self, what: str, requests: Sequence[Any], ask: Callable[[Sequence[Any]], list[Any]]
    ) -> list[Any]:
        asked = [(what, self._engine.loaded, request) for request in requests]
        new = [one for one in dict.fromkeys(asked) if one not in self._known]
        if new:
            found = ask([request for _, _, request in new])
            self._known |= zip(new, found, strict=True)
        return [self._known[one] for one in asked]


Scores = Sequence[ReplyScore]


def save_transformed(weights: Path, name: str, directory: Path) -> None:
    """Write a checkpoint as it is under a variant, for a server to load."""
    shutil.copytree(weights, directory)
    config = transformers_config(weights)
    layout = read_layout(config)
    build = find_variant(name, layers=layout.layers).build
    assert build is not None
    for shard in directory.glob("*.safetensors"):
        streamed = transformed(tensors_of(weights / shard.name), build(layout), layout)
        save_file({s.name: s.tensor.contiguous() for s in streamed}, shard, {"format": "pt"})


def transformers_config(weights: Path) -> Any:
    """The configuration of a checkpoint."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(weights, local_files_only=True)


def tensors_of(shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file, by name."""
    with safe_open(shard, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
            yield key, tensors.get_tensor(key)


def furthest(one: Scores, other: Scores, field: str = "logprobs") -> float:
    """The largest absolute difference of one field over all positions."""
    pairs = zip(one, other, strict=True)
    return max(
        float(np.abs(np.subtract(getattr(a, field), getattr(b, field))).max()) for a, b in pairs
    )


def card_with_bank(tmp_path: Path, bank: list[str]) -> str:
    """The shipped card with a bank of a few, so that naming a cause takes seconds."""
    raw = yaml.safe_load(find_card(EMBEDDED).read_text())
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(raw | {"bank": bank}))
    shutil.copy(calibration_path(EMBEDDED), tmp_path / "card.calibration.json")
    return str(card)


#: Faults of the template that audits here look for: bad replies are scored under every one, and for
#: longest under those that change little. The demo looks for all.
SOUGHT = ("generation-prompt-missing", "system-injected", "no-template", "last-turn-only")


def few_renderings(*more: str) -> dict[str, Rendering]:
    """Every valid rendering, and the faults sought."""
    entries = catalogue().items()
    return {name: e for name, e in entries if e.kind == "valid" or name in (*SOUGHT, *more)}
