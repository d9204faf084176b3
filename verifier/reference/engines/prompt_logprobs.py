"""Scores from prompt log-probabilities, the one thing that every vLLM can be asked for.

A vLLM, in this process or behind HTTP, gives the true token's log-probability and rank and the k
largest at every position of a prompt. This module says what to ask and what the answers mean; how
they are asked for is the engine's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.errors import ConfigError
from verifier.evidence.samplers import Sampler
from verifier.records import ReplyScore, SamplerRequest, ScoreRequest
from verifier.reference.engines import NO_DISTRIBUTION, TOP_K

#: How many of the largest to ask for when the endpoint named tokens outside the TOP_K largest.
WIDE_K = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Token ids to teacher-force, the k largest wanted, and further ids wanted at each position."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    k: int
    candidates: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Log-probabilities (nats) at the T positions of a reply."""

    logprobs: NDArray[np.float64]  # [T], of the reply's own tokens
    ranks: NDArray[np.int64]  # [T], 1 is the most likely
    top_ids: NDArray[np.int64]  # [T, k]
    top_logprobs: NDArray[np.float64]  # [T, k], descending
    candidates: tuple[tuple[float, ...], ...] | None = None  # where the engine gives them itself


Ask = Callable[[Sequence[Question]], list[Answer]]


class WithoutDistributions:
    """The part of an engine on vLLM: the largest log-probabilities, never a whole distribution."""

    @property
    def scores_samplers(self) -> bool:
        return False

    def score_samplers(
        self,
        requests: Sequence[SamplerRequest],  # noqa: ARG002 - the protocol's
        samplers: Sequence[Sampler],  # noqa: ARG002
    ) -> list[tuple[float, ...]]:
        raise ConfigError(NO_DISTRIBUTION)

    def score_penalized(
        self,
        requests: Sequence[ScoreRequest],  # noqa: ARG002
        samplers: Sequence[Sampler],  # noqa: ARG002
    ) -> list[tuple[ReplyScore, ...]]:
        raise ConfigError(NO_DISTRIBUTION)


def score(requests: Sequence[ScoreRequest], *, ask: Ask, widest: int) -> list[ReplyScore]:
    """Score replies with what `ask` returns, in the order given.

    `widest` is the largest k that may be asked for. Candidates that `ask` did not give are read
    from the k largest; those that lie further down are asked for one by one, as the true token
    after the beginning of the reply. So every value is exact, whatever the vocabulary's size, and
    no position's whole distribution is ever held.
    """
    todo = [r for r in requests if r.reply_ids]
    asked = [
        Question(
            prompt_ids=r.prompt_ids,
            reply_ids=r.reply_ids,
            k=TOP_K,
            candidates=r.candidates if r.candidates and any(r.candidates) else None,
        )
        for r in todo
    ]
    answers = dict(zip(map(id, todo), ask(asked), strict=True))
    named = {id(r): answers[id(r)].candidates for r in todo}
    lacking = [r for r in todo if r.candidates is not None and named[id(r)] is None]
    for request, values in zip(
        lacking, _named(lacking, [answers[id(r)] for r in lacking], ask, widest), strict=True
    ):
        named[id(request)] = values
    return [
        _reply_score(answers[id(r)], named[id(r)]) if r.reply_ids else _empty(r) for r in requests
    ]


def chunks(
    questions: Sequence[Question], *, values: int, most: int | None = None
) -> Iterator[list[Question]]:
    """Questions of one k in calls of at most `most`, which return at most `values` values each.

    One question that returns more than that is a call of its own.
    """
    chunk: list[Question] = []
    total = 0
    for question in questions:
        size = (len(question.prompt_ids) + len(question.reply_ids)) * (question.k + 1)
        full = total + size > values or len(chunk) == most
        if chunk and (full or chunk[0].k != question.k):
            yield chunk
            chunk, total = [], 0
        chunk.append(question)
        total += size
    if chunk:
        yield chunk


def _named(
    requests: Sequence[ScoreRequest], answers: Sequence[Answer], ask: Ask, widest: int
) -> Iterator[tuple[tuple[float, ...], ...]]:
    """The candidates' log-probabilities of each request."""
    known = [_lookup(answer) for answer in answers]
    short = [n for n, r in enumerate(requests) if any(_missing(r, known[n]))]
    if short and widest > TOP_K:
        wide = ask(
            [
                Question(
                    prompt_ids=requests[n].prompt_ids,
                    reply_ids=requests[n].reply_ids,
                    k=min(widest, WIDE_K),
                )
                for n in short
            ]
        )
        for n, answer in zip(short, wide, strict=True):
            for near, further in zip(known[n], _lookup(answer), strict=True):
                near.update({i: v for i, v in further.items() if i not in near})
    single = [(n, t, i) for n in short for t, i in _missing(requests[n], known[n])]
    found = ask(
        [
            Question(
                prompt_ids=requests[n].prompt_ids + requests[n].reply_ids[:t], reply_ids=(i,), k=0
            )
            for n, t, i in single
        ]
    )
    for (n, t, i), answer in zip(single, found, strict=True):
        known[n][t][i] = float(answer.logprobs[0])
    for request, at in zip(requests, known, strict=True):
        assert request.candidates is not None
        yield tuple(
            tuple(here[i] for i in ids) for here, ids in zip(at, request.candidates, strict=True)
        )


def _lookup(answer: Answer) -> list[dict[int, float]]:
    """Every log-probability that an answer gives, by position and id."""
    return [
        dict(zip(ids, values, strict=True))
        for ids, values in zip(answer.top_ids.tolist(), answer.top_logprobs.tolist(), strict=True)
    ]


def _missing(request: ScoreRequest, known: Sequence[dict[int, float]]) -> Iterator[tuple[int, int]]:
    """Positions and ids of candidates whose log-probability is not known, each once."""
    for t, ids in enumerate(request.candidates or ()):
        yield from ((t, i) for i in dict.fromkeys(ids) if i not in known[t])


def _reply_score(answer: Answer, candidates: tuple[tuple[float, ...], ...] | None) -> ReplyScore:
    return ReplyScore(
        logprobs=tuple(answer.logprobs.tolist()),
        ranks=tuple(answer.ranks.tolist()),
        entropies=tuple(least_entropy(answer.top_logprobs).tolist()),
        top_ids=tuple(answer.top_ids[:, 0].tolist()),
        top_logprobs=tuple(map(tuple, answer.top_logprobs.tolist())),
        candidate_logprobs=candidates,
    )


def _empty(request: ScoreRequest) -> ReplyScore:
    return ReplyScore(
        logprobs=(), ranks=(), entropies=(), top_ids=(), top_logprobs=(),
        candidate_logprobs=None if request.candidates is None else (),
    )  # fmt: skip


def least_entropy(top: NDArray[np.float64]) -> NDArray[np.float64]:
    """A lower bound [T] of the entropy (nats) from the k largest log-probabilities [T, k].

    The remaining mass r is made of probabilities of at most the k-th largest, p_k, so it adds at
    least r * log(1 / p_k). Exact when r is 0.
    """
    rest = np.clip(1 - np.exp(top).sum(axis=1), 0, None)
    return np.asarray(-(np.exp(top) * top).sum(axis=1) - rest * top[:, -1])
