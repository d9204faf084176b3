"""Which token ids a reply is: its text as the published weights would have written it.

A text has many spellings in tokens; the likeliest under the weights in place is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verifier.prompts import prompt_of
from verifier.records import REFERENCE, Probe, Reply, ReplyScore, ScoreRequest
from verifier.reference.cards import Thinking
from verifier.reference.engines import Engine
from verifier.reference.reader import Reader
from verifier.scoring.alignment import Aligned, set_aside
from verifier.scoring.reasoning import (
    WOULD_THINK,
    Reading,
    begins_to_think,
    differing_at,
    doubtful_seam,
    log_p_up_to,
    readings,
    settle,
)
from verifier.scoring.score_file import NO_SCORE, Scored, rounded
from verifier.scoring.spelling import cut_to, settle_spelling


def read_and_score(
    pairs: Sequence[tuple[Probe, Reply]],
    engine: Engine,
    tokenizer: Reader,
    thinking: Thinking | None,
) -> list[Scored]:
    """Replies as the weights in place read them, and their scores."""
    probes = [probe for probe, _ in pairs]

    def score(some: Sequence[int], texts: Sequence[Aligned]) -> list[Scored]:
        read = [(probes[i], aligned) for i, aligned in zip(some, texts, strict=True)]
        return score_readings(read, REFERENCE, engine, tokenizer)

    found = _spell_out(pairs, engine, tokenizer, thinking)
    return settle_spelling(found, [probe.max_tokens for probe in probes], score, tokenizer)


def _spell_out(
    pairs: Sequence[tuple[Probe, Reply]],
    engine: Engine,
    tokenizer: Reader,
    thinking: Thinking | None,
) -> list[Scored]:
    """The likeliest spelling of each reply, scored; of one that is set aside, why.

    Seams of a thought are settled one after another, for what is before one does not depend on it.
    """
    every = [
        [replace(r, aligned=cut_to(r.aligned, probe.max_tokens)) for r in found]
        for probe, reply in pairs
        for found in [readings(reply, probe, thinking, tokenizer)]
    ]
    best = [found[0] for found in every]
    scores = _score_judged(
        [(p, r) for (p, _), r in zip(pairs, best, strict=True)], engine, tokenizer
    )
    for seam in range(max((len(reading.white) for reading in best), default=0)):
        tried = [
            (i, other)
            for i, (reading, score) in enumerate(zip(best, scores, strict=True))
            if doubtful_seam(reading, score) == seam
            for other in differing_at(seam, reading, every[i])
        ]
        again = _score_judged([(pairs[i][0], r) for i, r in tried], engine, tokenizer)
        for (i, reading), score in zip(tried, again, strict=True):
            before = log_p_up_to(seam, best[i], scores[i])
            if log_p_up_to(seam, reading, score) > before:
                best[i], scores[i] = reading, score
    made = []
    for (probe, _), reading, score in zip(pairs, best, scores, strict=True):
        aligned = settle(reading, score, tokenizer)
        if thinking is not None and begins_to_think(probe, aligned, score, thinking, tokenizer):
            aligned, score = set_aside(WOULD_THINK), NO_SCORE
        made.append(Scored(probe_id=probe.id, weights=REFERENCE, aligned=aligned, score=score))
    return made


def _score_judged(
    pairs: Sequence[tuple[Probe, Reading]], engine: Engine, tokenizer: Reader
) -> list[ReplyScore]:
    """What the reference says of readings; of those set aside, nothing."""
    judged = [(probe, reading.aligned) for probe, reading in pairs if not reading.aligned.unjudged]
    scored = iter(score_readings(judged, REFERENCE, engine, tokenizer))
    return [NO_SCORE if reading.aligned.unjudged else next(scored).score for _, reading in pairs]


def score_readings(
    readings: Sequence[tuple[Probe, Aligned]], weights: str, engine: Engine, tokenizer: Reader
) -> list[Scored]:
    """Score readings under the weights in place, in the order given."""
    requests = [
        ScoreRequest(
            prompt_ids=published_ids(probe, tokenizer),
            reply_ids=aligned.reply_ids,
            candidates=aligned.candidates if weights == REFERENCE else None,
        )
        for probe, aligned in readings
    ]
    return [
        Scored(probe_id=probe.id, weights=weights, aligned=aligned, score=rounded(score))
        for (probe, aligned), score in zip(readings, engine.score(requests), strict=True)
    ]


def published_ids(probe: Probe, tokenizer: Reader) -> tuple[int, ...]:
    """The published prompt of a probe. Raises RenderingError when the template refuses it."""
    return tokenizer.encode_prompt(tokenizer.render_text(prompt_of(probe)))
