"""Sampled replies to their likelihoods under each sampler, and repeated ones to their chances.

Appends to files of the run folder. Needs an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from verifier.checks.sampling.stored_replies import LEAST_TOKEN, OTHERWISE, asked_before, is_repeat
from verifier.evidence.ledger import Repeat, SampledRow
from verifier.evidence.samplers import Sampler
from verifier.files.run_folder import REPEATS, SAMPLED_SCORES, append_line
from verifier.records import REFERENCE, Outcome, Probe, Reply, SamplerRequest, ScoreRequest
from verifier.reference.cards import Thinking
from verifier.reference.engines import NO_DISTRIBUTION, Engine
from verifier.reference.reader import Reader
from verifier.scoring.alignment import Aligned, align
from verifier.scoring.readings import published_ids
from verifier.scoring.reasoning import readings
from verifier.scoring.sampled_file import read_repeats, read_sampled
from verifier.scoring.score_file import CHUNK, DECIMALS, digest_of, refuse_others
from verifier.scoring.spelling import cut_to

#: Why a sampled reply is set aside that came without its tokens.
NO_TOKENS = "the endpoint does not name the tokens of its replies"


def score_sampled(
    run: Path,
    probes: Sequence[Probe],
    outcomes: Mapping[str, Outcome],
    *,
    engine: Engine,
    tokenizer: Reader,
    samplers: Mapping[str, Sampler],
    thinking: Thinking | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Score every sampled reply that lacks it under every sampler; `score_replies` then writes the
    ledger.

    Only replies whose tokens the endpoint names are read. A sampled text may have come by other
    tokens than its usual ones, and leaving those places out would leave out the unlikely ones.
    """
    before = read_sampled(run)
    carried = ((row.probe_id, row.reply_sha256) for row in before)
    refuse_others(carried, outcomes, where=run / SAMPLED_SCORES)
    done = {row.probe_id for row in before}
    replies = [
        (probe, outcome)
        for probe in probes
        if probe.id not in done
        and not is_repeat(probe.id)
        and isinstance(outcome := outcomes.get(probe.id), Reply)
    ]
    if replies and engine.scores_samplers:
        engine.load_variant(REFERENCE)
    for start in range(0, len(replies), CHUNK):
        chunk = replies[start : start + CHUNK]
        for row in _score_chunk(chunk, engine, tokenizer, samplers, thinking):
            append_line(run / SAMPLED_SCORES, asdict(row))
        if progress:
            progress(start + len(chunk), len(replies))


def _score_chunk(
    chunk: Sequence[tuple[Probe, Reply]],
    engine: Engine,
    tokenizer: Reader,
    samplers: Mapping[str, Sampler],
    thinking: Thinking | None,
) -> Iterator[SampledRow]:
    """Rows of some replies: their cells, or why they are set aside."""
    read = [
        cut_to(readings(reply, probe, thinking, tokenizer)[0].aligned, probe.max_tokens)
        for probe, reply in chunk
    ]
    problems = [_why_not(aligned, engine) for aligned in read]
    requests = [
        SamplerRequest(
            prompt_ids=published_ids(probe, tokenizer),
            reply_ids=aligned.reply_ids,
            kept=tuple(aligned.kept),
        )
        for (probe, _), aligned, problem in zip(chunk, read, problems, strict=True)
        if problem is None
    ]
    scored = iter(engine.score_samplers(requests, tuple(samplers.values())) if requests else ())
    for (probe, reply), aligned, problem in zip(chunk, read, problems, strict=True):
        cells: dict[str, float] = {}
        if problem is None:
            found = zip(samplers, next(scored), strict=True)
            cells = {name: round(value, DECIMALS) for name, value in found}
        kept = len(aligned.kept) if problem is None else 0
        yield SampledRow(
            probe_id=probe.id, tokens=kept, left_out=len(aligned.reply_ids) - kept, cells=cells,
            problem=problem, reply_sha256=digest_of(reply),
        )  # fmt: skip


def _why_not(aligned: Aligned, engine: Engine) -> str | None:
    """Why a sampled reply is not scored; None: it is."""
    if not engine.scores_samplers:
        return NO_DISTRIBUTION
    if aligned.by == "text":
        return aligned.unjudged or aligned.problem or NO_TOKENS
    return None


def score_repeats(
    run: Path,
    probes: Sequence[Probe],
    outcomes: Mapping[str, Outcome],
    *,
    engine: Engine,
    tokenizer: Reader,
) -> None:
    """Score every reply to what was asked before by how likely it was to come again;
    `score_replies` then writes the ledger.

    The earlier texts are scored after the words of the later question.
    """
    known = read_repeats(run)
    refuse_others(((r.probe_id, r.reply_sha256) for r in known), outcomes, where=run / REPEATS)
    done = {repeat.probe_id for repeat in known}
    earlier: dict[str, dict[str, Reply]] = {}
    for probe in probes:
        outcome = outcomes.get(probe.id)
        if not isinstance(outcome, Reply):
            continue
        before = earlier.setdefault(asked_before(probe.id), {})
        if before and probe.id not in done:
            engine.load_variant(REFERENCE)
            ids = published_ids(probe, tokenizer)
            read = [cut_to(align(reply, tokenizer), probe.max_tokens) for reply in before.values()]
            scores = engine.score(
                [ScoreRequest(prompt_ids=ids, reply_ids=aligned.reply_ids) for aligned in read]
            )
            each = [
                sum(max(score.logprobs[t], LEAST_TOKEN) for t in aligned.kept)
                for score, aligned in zip(scores, read, strict=True)
            ]
            log_p = max(each) + math.log(sum(math.exp(value - max(each)) for value in each))
            repeat = Repeat(
                probe_id=probe.id, otherwise=probe.id.endswith(OTHERWISE),
                came_again=outcome.text in before, log_p=min(0.0, round(log_p, DECIMALS)),
                reply_sha256=digest_of(outcome),
            )  # fmt: skip
            append_line(run / REPEATS, asdict(repeat))
        before.setdefault(outcome.text, outcome)
