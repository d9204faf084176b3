"""Replies of a host that serves the reference, to be scored by a model small enough to follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes_engine import EOS, FakeEngine, FakeTokenizer

from verifier.records import (
    Candidate,
    GenerateRequest,
    Generation,
    Message,
    Outcome,
    Probe,
    Reply,
    ReplyScore,
    ReportedToken,
    ScoreRequest,
)
from verifier.scoring.score import score_replies

TOKENIZER = FakeTokenizer()


class CountingEngine(FakeEngine):
    """Keeps every request it scored, with the weights in place."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.scored: list[tuple[str, ScoreRequest]] = []
        self.stop_after: int | None = None  # calls of `score` before the process is killed

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        if self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise KeyboardInterrupt
        self.scored += [(self.loaded, request) for request in requests]
        return super().score(requests)


def make_probes(count: int, max_tokens: int = 8) -> list[Probe]:
    """So many questions."""
    return [
        Probe(
            id=f"p{n}",
            kind="test",
            messages=(Message(role="user", content=f"question {n}"),),
            max_tokens=max_tokens,
        )
        for n in range(count)
    ]


def make_reply(probe: Probe, text: str, **changes: Any) -> Reply:
    """A reply of this text."""
    values: dict[str, Any] = {
        "probe_id": probe.id, "text": text, "finish_reason": "stop", "prompt_tokens": 9,
        "completion_tokens": 5, "logprobs": None, "logprobs_problem": "none were asked for",
    }  # fmt: skip
    return Reply(**values | changes)


def generate(probe: Probe) -> Generation:
    """What an honest host would say, with alternatives."""
    request = GenerateRequest(
        prompt_ids=TOKENIZER.render(probe.messages), max_tokens=probe.max_tokens, top_logprobs=3
    )
    return FakeEngine().generate([request])[0]


def honest(probe: Probe, *, logprobs: bool = False) -> Reply:
    """The reply of a host that serves the reference."""
    made = generate(probe)
    told = None
    if logprobs:
        told = tuple(
            ReportedToken(chosen=name(token, logprob), top=tuple(name(*pair) for pair in top))
            for token, logprob, top in zip(made.token_ids, made.logprobs, made.top, strict=True)
            if token != EOS
        )
    return make_reply(
        probe,
        TOKENIZER.decode(made.token_ids),
        finish_reason=made.finish_reason,
        logprobs=told,
    )


def name(token_id: int, logprob: float) -> Candidate:
    """A token as hosts name it."""
    raw = TOKENIZER.token_bytes(token_id)
    return Candidate(token=raw.decode("utf-8", "replace"), bytes=raw, logprob=logprob)


def outcomes_of(probes: Sequence[Probe], **settings: Any) -> dict[str, Outcome]:
    """What comes of them at such a host."""
    return {probe.id: honest(probe, **settings) for probe in probes}


def score(
    run: Path,
    probes: Sequence[Probe],
    outcomes: dict[str, Outcome],
    *,
    engine: FakeEngine | None = None,
    **settings: Any,
) -> Any:
    """Score replies in a run folder."""
    run.mkdir(exist_ok=True)
    return score_replies(
        run, probes, outcomes, engine=engine or CountingEngine(), tokenizer=TOKENIZER, **settings
    )
