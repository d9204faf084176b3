"""A tokenizer that reads chat templates, and an engine that prompts move a little each.

Of the fake engine two prompts have nothing in common. Of this one they have what their words have
in common, as a real model's: so a rendering near the one that is served leaves noise, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from fakes_engine import EOS, FakeEngine, FakeTokenizer
from jinja2.sandbox import ImmutableSandboxedEnvironment

from verifier.errors import RenderingError
from verifier.records import Prompt, ReplyScore, ScoreRequest
from verifier.reference.engines import TOP_K
from verifier.reference.renderings.catalogue import family_template

#: Directions in which prompts move the logits, and how far: what a template that is not the one
#: served leaves is like noise of a scale around a half.
_DIRECTIONS, _PULL, _ENDS = 24, 1.2, 0.3


@lru_cache(maxsize=256)
def _compiled(source: str) -> Any:
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)


class TemplateTokenizer(FakeTokenizer):
    """The fake tokenizer, published with ChatML."""

    @property
    def template(self) -> str:
        return family_template("chatml")

    def render_text(self, prompt: Prompt) -> str:
        try:
            return str(
                _compiled(prompt.template or self.template).render(
                    messages=[dict(message) for message in prompt.messages],
                    tools=[dict(tool) for tool in prompt.tools] or None, bos_token="<s>",
                    add_generation_prompt=prompt.generation_prompt,
                    strftime_now=lambda _form: "26 Jul 2024", **dict(prompt.settings),
                )
            )  # fmt: skip
        except Exception as error:
            raise RenderingError(str(error)) from error


class SoftEngine(FakeEngine):
    """The fake engine, with logits that depend on which pairs of tokens a prompt has."""

    def logprobs(self, prompt_ids: tuple[int, ...], reply_ids: Sequence[int]) -> np.ndarray:
        size = self._tokenizer.vocabulary_size
        logits = _near(len(reply_ids), tuple(reply_ids[-2:]), size) + _shift(prompt_ids, size)
        return logits - np.logaddexp.reduce(logits)

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        """All positions of a reply at once: many renderings are scored here."""
        return [self._score_at_once(request) for request in requests]

    def _score_at_once(self, request: ScoreRequest) -> ReplyScore:
        reply, size = request.reply_ids, self._tokenizer.vocabulary_size
        near = [_near(t, reply[max(0, t - 2) : t], size) for t in range(len(reply))]
        logits = np.array(near) + _shift(request.prompt_ids, size)
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        picked = logp[np.arange(len(reply)), list(reply)]
        top = -np.sort(-logp, axis=1)[:, :TOP_K]
        return ReplyScore(
            logprobs=tuple(picked.tolist()),
            ranks=tuple(((logp > picked[:, None]).sum(axis=1) + 1).tolist()),
            entropies=(0.0,) * len(reply),
            top_ids=tuple(logp.argmax(axis=1).tolist()),
            top_logprobs=tuple(map(tuple, top.tolist())),
            candidate_logprobs=None,
        )


@lru_cache(maxsize=1 << 14)
def _near(done: int, before: tuple[int, ...], size: int) -> np.ndarray:
    """What the last tokens alone make likely; a reply ends after a dozen."""
    found = np.random.default_rng([done, *map(int, before)]).normal(size=size)
    found[EOS] = 9.0 if done >= 12 else -9.0
    return found


@lru_cache(maxsize=1 << 14)
def _shift(prompt_ids: tuple[int, ...], size: int) -> np.ndarray:
    """How a prompt moves the logits."""
    found = _PULL * _directions(size) @ _place(prompt_ids, size)
    found[EOS] = 0.0
    return np.asarray(found)


@lru_cache(maxsize=1)
def _directions(size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(size, _DIRECTIONS))


@lru_cache(maxsize=1)
def _pairs(size: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(size, size, _DIRECTIONS))


def _place(prompt_ids: tuple[int, ...], size: int) -> np.ndarray:
    """Where a prompt stands: the mean of its pairs of tokens, and how it begins and ends."""
    ids = np.array([n for n in prompt_ids if n < size])
    pairs = _pairs(size)[ids[:-1], ids[1:]].sum(axis=0)
    ends = _end(tuple(ids[:3].tolist())) + _end(tuple(ids[-3:].tolist()))
    return np.asarray(pairs / np.linalg.norm(pairs) + _ENDS * ends)


@lru_cache(maxsize=1 << 12)
def _end(ids: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([3, *ids]).normal(size=_DIRECTIONS) / _DIRECTIONS**0.5
