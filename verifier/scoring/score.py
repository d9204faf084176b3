"""The score step: replies of a run folder to likelihoods under each weights, and the ledger.

Reads probes and exchanges; appends to the scores and writes the ledger. Needs an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from verifier.checks.sampling.ask_and_score import read_repeats, read_sampled
from verifier.evidence.ledger import (
    FLOOR,
    SAMPLER,
    TEMPLATE,
    Ledger,
    Row,
    count_outranked,
    dropped_cells,
    ledger_to_json,
    logprob_cells,
    rare_cells,
    text_cells,
)
from verifier.evidence.samplers import SINGLE_TOKENS, Sampler, name_of
from verifier.files.run_folder import LEDGER, SCORES, write_json
from verifier.probes import PANEL_KIND, labels_of
from verifier.records import (
    REFERENCE,
    NotJudged,
    Outcome,
    Probe,
    Reply,
    ReplyScore,
    ScoreRequest,
)
from verifier.reference.cards import Thinking
from verifier.reference.engines import Engine
from verifier.reference.reader import Reader, Suspected
from verifier.reference.renderings.catalogue import Rendering, render_probe
from verifier.scoring.alignment import Aligned, read_past_end
from verifier.scoring.other_models import LOST, Respelled, likelier, render_for, respell
from verifier.scoring.readings import (
    MAX_READINGS,
    published_ids,
    read_and_score,
    score_readings,
    settle_spelling,
)
from verifier.scoring.score_file import (
    CHUNK,
    Scored,
    append_score,
    digest_of,
    read_scores,
    refuse_others,
    rounded,
)


def score_replies(
    run: Path,
    probes: Sequence[Probe],
    outcomes: Mapping[str, Outcome],
    *,
    engine: Engine,
    tokenizer: Reader,
    weights: Sequence[str] = (),
    suspects: Mapping[str, Suspected] | None = None,
    templates: Sequence[str] = (),
    catalogue: Mapping[str, Rendering] | None = None,
    every: Sequence[Probe] | None = None,
    penalties: Mapping[str, Sampler] | None = None,
    thinking: Thinking | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ledger:
    """Score every reply that lacks a score under the reference or any of `weights`.

    `thinking` says how the model writes thoughts, which are scored with the reply. Those of
    `suspects` read prompts and replies in their own way.
    `templates` are renderings of `catalogue` under which the published weights score the replies
    too; with a catalogue the ledger also says how long every rendering of each prompt is.
    `penalties` are samplers under whose penalties they score the replies too.

    The reference comes first: it decides how a text is read. Scores are appended as they come and
    nothing is scored twice; then the ledger is written anew and returned. It has a row for each
    scored reply of `every`, which is `probes` unless more are given, and a row without cells for
    each answer that is not judged and yet counts its prompt.
    """
    before = read_scores(run)
    refuse_others(((s.probe_id, s.reply_sha256) for s in before), outcomes, where=run / SCORES)
    done = {(scored.probe_id, scored.weights): scored for scored in before}
    digests = {p.id: digest_of(o) for p in probes if isinstance(o := outcomes.get(p.id), Reply)}

    def keep(scored: Scored) -> None:
        scored = replace(scored, reply_sha256=digests[scored.probe_id])
        done[scored.probe_id, scored.weights] = scored
        append_score(run, scored)

    replies = [(p, o) for p in probes if isinstance(o := outcomes.get(p.id), Reply)]
    columns = tuple(dict.fromkeys((REFERENCE, *weights)))
    todo = {name: [pair for pair in replies if (pair[0].id, name) not in done] for name in columns}
    total, finished = sum(map(len, todo.values())), 0
    for name, pairs in todo.items():
        if not pairs:
            continue
        engine.load_variant(name)
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            suspect = (suspects or {}).get(name)
            if name == REFERENCE:
                found = read_and_score(chunk, engine, tokenizer, thinking)
            else:
                read = [(p, done[p.id, REFERENCE].aligned) for p, _ in chunk]
                judged = [pair for pair in read if not pair[1].unjudged]
                found = (
                    score_readings(judged, name, engine, tokenizer)
                    if suspect is None
                    else _score_suspect(name, suspect, judged, engine, tokenizer)
                )
            for scored in found:
                keep(scored)
            finished += len(chunk)
            if progress:
                progress(finished, total)
    engine.load_variant(REFERENCE)
    replies = [(p, o) for p, o in replies if not done[p.id, REFERENCE].aligned.unjudged]
    entries = catalogue or {}
    missing = [entries[name] for name in templates if name != REFERENCE]
    for start in range(0, len(replies) if missing else 0, CHUNK):
        asked = [probe for probe, _ in replies[start : start + CHUNK]]
        for scored in _score_templates(asked, missing, done, engine, tokenizer):
            keep(scored)
    new = [] if not penalties else [
        (probe, done[probe.id, REFERENCE].aligned) for probe, _ in replies
        if (probe.id, SAMPLER + next(iter(penalties))) not in done
    ]  # fmt: skip
    for start in range(0, len(new), CHUNK):
        some = new[start : start + CHUNK]
        for scored in _score_penalties(some, penalties or {}, engine, tokenizer):
            keep(scored)
    ledger = build_ledger(
        probes if every is None else every,
        list(done.values()),
        counts={name: o.prompt_tokens for name, o in outcomes.items() if isinstance(o, Reply)},
        unjudged={
            name: o for name, o in outcomes.items() if isinstance(o, NotJudged) and o.counts_prompt
        },
        lengths=lambda probe: _lengths(tuple(entries.values()), probe, tokenizer),
    )
    ledger = replace(ledger, sampled=read_sampled(run), repeats=read_repeats(run))
    write_json(run / LEDGER, {**ledger_to_json(ledger), "engine": engine.versions})
    return ledger


def build_ledger(
    probes: Sequence[Probe],
    scores: Sequence[Scored],
    *,
    counts: Mapping[str, int | None],
    lengths: Callable[[Probe], dict[str, int]],
    unjudged: Mapping[str, NotJudged] | None = None,
) -> Ledger:
    """Cells of every scored reply, in the order of `probes`. A function of its arguments alone.

    `counts` are the prompt tokens that the endpoint reported, `lengths` what renderings make.
    `unjudged` are answers of which no text is judged: their counts alone speak.
    """
    others = unjudged or {}
    by_probe: dict[str, dict[str, Scored]] = {}
    for scored in scores:
        by_probe.setdefault(scored.probe_id, {})[scored.weights] = scored
    rows = [
        replace(
            _row(by_probe[probe.id])
            if probe.id in by_probe
            else _row_without_cells(probe.id, others[probe.id].reason, digest_of(others[probe.id])),
            prompt_tokens=counts.get(probe.id)
            if probe.id in by_probe
            else others[probe.id].prompt_tokens,
            rendered=lengths(probe),
            panel=probe.kind == PANEL_KIND,
            strata=labels_of(probe, number),
        )
        for number, probe in enumerate(probes)
        if REFERENCE in by_probe.get(probe.id, {}) or probe.id in others
    ]
    return Ledger(rows=tuple(rows))


@lru_cache(maxsize=4096)
def _lengths(entries: tuple[Rendering, ...], probe: Probe, tokenizer: Reader) -> dict[str, int]:
    """Prompt tokens of a probe under every rendering that does not refuse it."""
    found = {entry.name: render_probe(entry, probe, tokenizer) for entry in entries}
    return {name: len(made.ids) for name, made in found.items() if made is not None}


def _row_without_cells(probe_id: str, why: str, digest: str | None) -> Row:
    return Row(
        probe_id=probe_id, tokens=0, left_out=0, text={}, logprob=None, logprob_problem=None,
        unjudged=why, reply_sha256=digest,
    )  # fmt: skip


def _row(columns: Mapping[str, Scored]) -> Row:
    reference = columns[REFERENCE]
    aligned = reference.aligned
    if aligned.unjudged:
        return _row_without_cells(reference.probe_id, aligned.unjudged, reference.reply_sha256)
    logprob, problem = None, aligned.problem
    if aligned.reported is not None and reference.score.candidate_logprobs is not None:
        cells = logprob_cells(aligned.reported, reference.score.candidate_logprobs)
        logprob, problem = (None, cells) if isinstance(cells, str) else (cells, None)
    single = _single_token_cells(reference)
    return Row(
        probe_id=reference.probe_id,
        tokens=len(aligned.kept),
        left_out=len(aligned.reply_ids) - len(aligned.kept),
        text={
            name: tuple(
                cell - scored.lost * LOST for cell in text_cells(scored.score, scored.aligned.kept)
            )
            for name, scored in columns.items()
        }
        | (
            {SAMPLER + name_of(sampler): cells for sampler, cells in single.items()}
            if any(map(is_sampler, columns))
            else {}
        ),
        logprob=logprob,
        logprob_problem=problem,
        single={
            name_of(sampler): cells
            for sampler, cells in single.items()
            if sampler.drop_best or aligned.by == "bytes"
        },
        outranked=None if aligned.reported is None else count_outranked(aligned.reported),
        reply_sha256=reference.reply_sha256,
    )


def is_sampler(column: str) -> bool:
    """Whether a column is that of greedy replies which a sampler has changed."""
    return column.startswith(SAMPLER)


def _single_token_cells(scored: Scored) -> dict[Sampler, tuple[float, ...]]:
    """Cells of the samplers that drop single tokens or put them in.

    A text that is tokenized again in another way than it came shows unlikely tokens at an honest
    host too; seldom one that is the next likeliest.
    """
    kept = scored.aligned.kept
    return {
        sampler: dropped_cells(scored.score, kept, sampler.drop_best)
        if sampler.drop_best
        else rare_cells(scored.score, kept, sampler.rare)
        for sampler in SINGLE_TOKENS
    }


# -- suspects and penalties --------------------------------------------------------------------


def _score_suspect(
    name: str,
    suspect: Suspected,
    readings: Sequence[tuple[Probe, Aligned]],
    engine: Engine,
    tokenizer: Reader,
) -> list[Scored]:
    """Replies under another model, as it renders the prompts and spells the texts.

    With the reference's tokenizer it reads doubtful places in its own way, as the reference does.
    With another one of two spellings the likelier is kept, whole.
    """
    rendered = [(p, aligned, render_for(suspect, p, tokenizer)) for p, aligned in readings]
    asked = [(probe, ids, aligned) for probe, aligned, ids in rendered if ids is not None]
    respelled = [
        Respelled(aligned=replace(aligned, candidates=None, reported=None), lost=0)
        if suspect.same
        else respell(aligned, tokenizer, suspect)
        for _, _, aligned in asked
    ]

    def score(some: Sequence[int], texts: Sequence[Aligned]) -> list[Scored]:
        requests = [
            ScoreRequest(prompt_ids=asked[i][1], reply_ids=aligned.reply_ids)
            for i, aligned in zip(some, texts, strict=True)
        ]
        return [
            Scored(
                probe_id=asked[i][0].id, weights=name, aligned=aligned, score=rounded(made),
                lost=respelled[i].lost,
            )
            for i, aligned, made in zip(some, texts, engine.score(requests), strict=True)
        ]  # fmt: skip

    found = score(range(len(asked)), [read.aligned for read in respelled])
    if suspect.same:
        return settle_spelling(found, [probe.max_tokens for probe, _, _ in asked], score, tokenizer)
    doubtful = list(range(len(asked)))
    for _ in range(MAX_READINGS):
        others = {i: likelier(found[i].aligned, found[i].score, suspect) for i in doubtful}
        changed = {i: aligned for i, aligned in others.items() if aligned is not None}
        again = score(list(changed), list(changed.values()))
        doubtful = []
        for i, scored in zip(changed, again, strict=True):
            if sum(scored.score.logprobs) > sum(found[i].score.logprobs):
                found[i] = scored
                doubtful.append(i)
    return found


def _score_penalties(
    readings: Sequence[tuple[Probe, Aligned]],
    penalties: Mapping[str, Sampler],
    engine: Engine,
    tokenizer: Reader,
) -> list[Scored]:
    """Greedy replies under the published weights, as a host with a penalty would choose."""
    requests = [
        ScoreRequest(prompt_ids=published_ids(probe, tokenizer), reply_ids=aligned.reply_ids)
        for probe, aligned in readings
    ]
    scores = engine.score_penalized(requests, tuple(penalties.values()))
    return [
        Scored(
            probe_id=probe.id, weights=SAMPLER + name, score=rounded(score),
            aligned=replace(aligned, candidates=None, reported=None),
        )
        for (probe, aligned), each in zip(readings, scores, strict=True)
        for name, score in zip(penalties, each, strict=True)
    ]  # fmt: skip


# -- template columns --------------------------------------------------------------------------


def _score_templates(
    probes: Sequence[Probe],
    entries: Sequence[Rendering],
    done: Mapping[tuple[str, str], Scored],
    engine: Engine,
    tokenizer: Reader,
) -> list[Scored]:
    """Replies under template columns that they lack, as the reference read them.

    Prompts that renderings share are scored once. A rendering that refuses a probe has no score.
    """
    wanted: list[tuple[Rendering, Probe, ScoreRequest]] = []
    known: dict[ScoreRequest, ReplyScore] = {}
    for probe in probes:
        reference = done[probe.id, REFERENCE]
        ids = reference.aligned.reply_ids
        published = ScoreRequest(prompt_ids=published_ids(probe, tokenizer), reply_ids=ids)
        known[published] = replace(reference.score, candidate_logprobs=None)
        for entry in entries:
            made = render_probe(entry, probe, tokenizer)
            if made is not None and (probe.id, TEMPLATE + entry.name) not in done:
                request = ScoreRequest(prompt_ids=made.ids, reply_ids=ids)
                wanted.append((entry, probe, request))
    new = list(dict.fromkeys(request for _, _, request in wanted if request not in known))
    known |= dict(zip(new, map(rounded, engine.score(new)), strict=True))
    found = []
    for entry, probe, request in wanted:
        aligned, score = done[probe.id, REFERENCE].aligned, known[request]
        aligned = replace(aligned, candidates=None, reported=None)
        if entry.past_end:
            aligned, score = _run_past_end(request, aligned, score, engine, tokenizer)
        column = TEMPLATE + entry.name
        found.append(Scored(probe_id=probe.id, weights=column, aligned=aligned, score=score))
    return found


def _run_past_end(
    request: ScoreRequest,
    aligned: Aligned,
    score: ReplyScore,
    engine: Engine,
    tokenizer: Reader,
) -> tuple[Aligned, ReplyScore]:
    """A reply as one that ran on past its end; one that ended there speaks against it."""
    if aligned.reply_ids and aligned.reply_ids[-1] == tokenizer.eos_id:
        return aligned, replace(score, logprobs=(*score.logprobs[:-1], math.log(FLOOR)))
    for _ in range(MAX_READINGS):
        longer = read_past_end(aligned, score, tokenizer)
        if longer is None:
            break
        aligned = longer
        (raw,) = engine.score([replace(request, reply_ids=aligned.reply_ids)])
        score = rounded(raw)
    return aligned, score
