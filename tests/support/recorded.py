"""Replies that hosts of the embedded model gave once, kept so that they are not computed anew.

What a test asks that is not kept is computed. `RECORD=anew pytest -n 0 tests/test_embedded.py
tests/scoring/test_thinking_embedded.py` keeps what these ask and forgets the rest.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verifier.records import GenerateRequest, Generation

#: What was asked, of which weights in which precision, as the file's index has it.
Asked = tuple[str, GenerateRequest]


class Recorded:
    """Replies by what was asked; one that was asked for several times has several, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._anew = os.environ.get("RECORD") == "anew"
        self._kept: dict[Asked, list[Generation]] = defaultdict(list)
        if path.exists() and not self._anew:
            for asked, reply in _read(path):
                self._kept[asked].append(reply)

    def __iter__(self) -> Iterator[tuple[Asked, Generation]]:
        """All replies, with what was asked."""
        return ((asked, reply) for asked, replies in self._kept.items() for reply in replies)

    def find(self, asked: Asked, number: int) -> Generation | None:
        """The reply to what was asked for the `number`-th time, from 0; None: there is none."""
        replies = self._kept.get(asked, ())
        return replies[number] if number < len(replies) else None

    def keep(self, asked: Asked, number: int, reply: Generation) -> None:
        """Keep a reply that was given, where replies are recorded."""
        if self._anew and number == len(self._kept[asked]):
            self._kept[asked].append(reply)

    def save(self) -> None:
        """Write the file, where replies are recorded."""
        if self._anew:
            _write(self._path, list(self))


def _write(path: Path, kept: Sequence[tuple[Asked, Generation]]) -> None:
    index, flat = [], defaultdict(list)
    for (weights, request), reply in kept:
        settings = {k: v for k, v in asdict(request).items() if k != "prompt_ids"}
        widths = [len(row) for row in reply.top]
        index.append([
            weights, settings, reply.finish_reason, len(request.prompt_ids), len(reply.token_ids),
            widths,
        ])  # fmt: skip
        flat["prompts"] += request.prompt_ids
        flat["ids"] += reply.token_ids
        flat["logprobs"] += reply.logprobs
        flat["top_ids"] += [i for row in reply.top for i, _ in row]
        flat["top_logprobs"] += [value for row in reply.top for _, value in row]
    np.savez_compressed(
        path,
        index=np.frombuffer(json.dumps(index).encode(), np.uint8),
        **{n: np.array(v, np.float32 if "logprobs" in n else np.uint16) for n, v in flat.items()},
    )


def _read(path: Path) -> Iterator[tuple[Asked, Generation]]:
    with np.load(path) as file:
        index = json.loads(file["index"].tobytes())
        flat: dict[str, Iterator[Any]] = {
            name: iter(file[name].tolist()) for name in file.files if name != "index"
        }

    def take(name: str, count: int) -> tuple[Any, ...]:
        return tuple(next(flat[name]) for _ in range(count))

    for weights, settings, finish_reason, asked, given, widths in index:
        settings["stop"] = tuple(settings["stop"])
        settings["logit_bias"] = tuple(map(tuple, settings["logit_bias"]))
        request = GenerateRequest(prompt_ids=take("prompts", asked), **settings)
        reply = Generation(
            token_ids=take("ids", given),
            finish_reason=finish_reason,
            logprobs=take("logprobs", given),
            top=tuple(
                tuple(zip(take("top_ids", n), take("top_logprobs", n), strict=True)) for n in widths
            ),
        )
        yield (weights, request), reply
