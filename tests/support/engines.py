"""Replies to be scored by real engines, and checkpoints under a variant; needs torch."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from models import EMBEDDED
from recorded import Recorded
from safetensors import safe_open
from safetensors.torch import save_file

from verifier.config import RunFile
from verifier.plan import make_plan
from verifier.probes import load_pool
from verifier.records import GenerateRequest, Generation, Message, ReplyScore, ScoreRequest
from verifier.reference.calibrations import calibration_path, load_calibration
from verifier.reference.cards import find_card, load_card
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

    Prompts that are `coming` are answered together with one before them: sixteen replies at once
    take little longer than four. What is drawn at random is given out once. Replies that are
    `recorded` of these weights in this precision are computed never.
    """

    def __init__(
        self,
        engine: Any,
        *,
        coming: Sequence[tuple[int, ...]] = (),
        recorded: Recorded | None = None,
    ) -> None:
        self._engine = engine
        self._recorded = recorded
        self._coming = tuple(coming)
        self._scored: dict[Any, ReplyScore] = {}
        self._made: dict[Any, list[Generation]] = defaultdict(list)
        self._given: Counter[Any] = Counter()  # how many of the drawn ones

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        asked = [(self._engine.loaded, request) for request in requests]
        new = [one for one in dict.fromkeys(asked) if one not in self._scored]
        if new:
            found = self._engine.score([request for _, request in new])
            self._scored |= zip(new, found, strict=True)
        return [self._scored[one] for one in asked]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        asked = [(self._engine.loaded, request) for request in requests]
        at: list[tuple[Any, int]] = []
        for one in asked:
            at.append((one, self._given[one]))
            self._given[one] += _is_drawn(one[1])
        self._recall(at)
        new = self._lacking(at)
        if new:
            new += self._lacking(self._ahead(new[-1]))[: max(0, 16 - len(new))]
            made = self._engine.generate([request for _, request in new])
            for one, generation in zip(new, made, strict=True):
                self._made[one].append(generation)
        if self._recorded is not None:
            for one, n in at:
                self._recorded.keep(one, n, self._made[one][n])
        return [self._made[one][n] for one, n in at]

    def _recall(self, places: Sequence[tuple[Any, int]]) -> None:
        """Fill places of lists with what is recorded."""
        for one, n in places if self._recorded is not None else ():
            while n >= len(self._made[one]):
                reply = self._recorded.find(one, len(self._made[one]))
                if reply is None:
                    break
                self._made[one].append(reply)

    def _lacking(self, places: Sequence[tuple[Any, int]]) -> list[Any]:
        """What must be made so that each of these places of lists is filled."""
        return [one for one, n in dict.fromkeys(places) if n >= len(self._made[one])]

    def _ahead(self, last: tuple[Any, GenerateRequest]) -> list[tuple[Any, int]]:
        """The same asked of the prompts that come after this one, as often as they come."""
        loaded, request = last
        if request.prompt_ids not in self._coming:
            return []
        first = self._coming.index(request.prompt_ids)
        seen: Counter[Any] = Counter()
        places = []
        for ids in self._coming[first:]:
            one = (loaded, replace(request, prompt_ids=ids))
            places.append((one, seen[one]))
            seen[one] += _is_drawn(request)
        return places[1:]


def _is_drawn(request: GenerateRequest) -> bool:
    return bool(request.temperature or request.drop_best or request.rare)


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


def prompts_of(tokenizer: Tokenizer, **audit: Any) -> list[tuple[int, ...]]:
    """The prompts of an audit of the embedded model with these settings, as they are rendered."""
    config = RunFile.model_validate(
        {
            "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": EMBEDDED},
            "reference": {"card": EMBEDDED},
            "audit": audit,
            "out": "run",
        }
    )
    card = load_card(EMBEDDED)
    _, probes, further = make_plan(config, card, load_calibration(EMBEDDED, card), load_pool())
    return [tokenizer.render(p.messages) for p in (*probes, *chain(*further.values()))]


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
