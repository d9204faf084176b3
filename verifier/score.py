"""The score step: replies of a run folder to likelihoods under each weights, and the ledger.

Reads probes and exchanges; appends to the scores and writes the ledger. Needs an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import Any

from verifier.align import (
    Aligned,
    align,
    keep_reading,
    read_past_end,
    reread,
    set_aside,
    spells_better,
)
from verifier.engines import NO_DISTRIBUTION, Engine
from verifier.errors import ConfigError
from verifier.folder import (
    LEDGER,
    REPEATS,
    SAMPLED_SCORES,
    SCORES,
    append_line,
    read_lines,
    write_json,
)
from verifier.ledger import (
    FLOOR,
    SAMPLER,
    TEMPLATE,
    Ledger,
    Row,
    SampledRow,
    count_outranked,
    dropped_cells,
    ledger_to_json,
    logprob_cells,
    rare_cells,
    repeat_from_json,
    sampled_row_from_json,
    text_cells,
)
from verifier.prompts import prompt_of
from verifier.records import (
    REFERENCE,
    NotJudged,
    Outcome,
    Probe,
    Reply,
    ReplyScore,
    SamplerRequest,
    ScoreRequest,
)
from verifier.reference import Thinking
from verifier.renderings.catalogue import Rendering, render_probe
from verifier.renderings.panel import PANEL_KIND
from verifier.repeats import LEAST_TOKEN, OTHERWISE, Repeat, asked_before, is_repeat
from verifier.samplers import SINGLE_TOKENS, Sampler, name_of
from verifier.strata import labels_of
from verifier.suspects import LOST, Respelled, Suspected, likelier, render_for, respell
from verifier.thoughts import (
    WOULD_THINK,
    Reader,
    Reading,
    begins_to_think,
    differing_at,
    doubtful_seam,
    log_p_up_to,
    readings,
    settle,
)

#: Replies scored between two writes.
CHUNK = 16

#: How often a text is read anew; what is still doubtful then is left out whole. A list of ten items
#: may need ten: of 48 greedy replies of up to 384 tokens five needed more than 4, one more than 8.
MAX_READINGS = 16

#: Why a sampled reply is set aside that came without its tokens.
NO_TOKENS = "the endpoint does not name the tokens of its replies"

#: What is said of a reply that is set aside.
NO_SCORE = ReplyScore(
    logprobs=(), ranks=(), entropies=(), top_ids=(), top_logprobs=(), candidate_logprobs=None
)

#: Decimals kept of a log-probability: far below any noise, and half the bytes.
DECIMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One line of the scores: a reply as token ids, the weights, and what they say of it."""

    probe_id: str
    weights: str  # or a template column
    aligned: Aligned
    score: ReplyScore
    lost: int = 0  # bytes of the text that a suspect cannot spell


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
    done = {(scored.probe_id, scored.weights): scored for scored in read_scores(run)}
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
                    _score(judged, name, engine, tokenizer)
                    if suspect is None
                    else _score_suspect(name, suspect, judged, engine, tokenizer)
                )
            for scored in found:
                done[scored.probe_id, name] = scored
                append_line(run / SCORES, _to_json(scored))
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
            done[scored.probe_id, scored.weights] = scored
            append_line(run / SCORES, _to_json(scored))
    new = [] if not penalties else [
        (probe, done[probe.id, REFERENCE].aligned) for probe, _ in replies
        if (probe.id, SAMPLER + next(iter(penalties))) not in done
    ]  # fmt: skip
    for start in range(0, len(new), CHUNK):
        some = new[start : start + CHUNK]
        for scored in _score_penalties(some, penalties or {}, engine, tokenizer):
            done[scored.probe_id, scored.weights] = scored
            append_line(run / SCORES, _to_json(scored))
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
            else _row_without_cells(probe.id, others[probe.id].reason),
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


def _row_without_cells(probe_id: str, why: str) -> Row:
    return Row(
        probe_id=probe_id, tokens=0, left_out=0, text={}, logprob=None, logprob_problem=None,
        unjudged=why,
    )  # fmt: skip


def _row(columns: Mapping[str, Scored]) -> Row:
    reference = columns[REFERENCE]
    aligned = reference.aligned
    if aligned.unjudged:
        return _row_without_cells(reference.probe_id, aligned.unjudged)
    logprob, problem = None, aligned.problem
    if aligned.reported is not None and reference.score.candidate_logprobs is not None:
        cells = logprob_cells(aligned.reported, reference.score.candidate_logprobs)
        logprob, problem = (None, cells) if isinstance(cells, str) else (cells, None)
    single = _single_token_cells(reference)
    return Row(
        probe_id=reference.probe_id,
        tokens=len(_kept(aligned)),
        left_out=len(aligned.reply_ids) - len(_kept(aligned)),
        text={
            name: tuple(
                cell - scored.lost * LOST
                for cell in text_cells(scored.score, _kept(scored.aligned))
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
    )


def is_sampler(column: str) -> bool:
    """Whether a column is that of greedy replies which a sampler has changed."""
    return column.startswith(SAMPLER)


def _single_token_cells(scored: Scored) -> dict[Sampler, tuple[float, ...]]:
    """Cells of the samplers that drop single tokens or put them in.

    A text that is tokenized again in another way than it came shows unlikely tokens at an honest
    host too; seldom one that is the next likeliest.
    """
    kept = _kept(scored.aligned)
    return {
        sampler: dropped_cells(scored.score, kept, sampler.drop_best)
        if sampler.drop_best
        else rare_cells(scored.score, kept, sampler.rare)
        for sampler in SINGLE_TOKENS
    }


def _kept(aligned: Aligned) -> list[int]:
    return [t for t in range(len(aligned.reply_ids)) if t not in aligned.left_out]


# -- reading a text as token ids ---------------------------------------------------------------


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
        return _score(read, REFERENCE, engine, tokenizer)

    found = _spell_out(pairs, engine, tokenizer, thinking)
    return _settle(found, [probe.max_tokens for probe in probes], score, tokenizer)


def _settle(
    found: list[Scored],
    limits: Sequence[int],
    score: Callable[[Sequence[int], Sequence[Aligned]], list[Scored]],
    tokenizer: Reader,
) -> list[Scored]:
    """Read texts anew until the weights in place prefer no other tokens for them.

    `score` scores readings of the replies with the numbers it is given.
    """
    doubtful = [
        i for i, scored in enumerate(found)
        if scored.aligned.by == "text" and not scored.aligned.unjudged
    ]  # fmt: skip
    for reading in range(MAX_READINGS + 1):
        better = {i: reread(found[i].aligned, found[i].score, tokenizer) for i in doubtful}
        changed = {i: _cut(a, limits[i]) for i, a in better.items() if a is not None}
        if reading == MAX_READINGS:
            changed = {i: _left_out_whole(aligned) for i, aligned in changed.items()}
        again = score(list(changed), list(changed.values()))
        for i, scored in zip(changed, again, strict=True):
            before = found[i]
            if reading == MAX_READINGS or spells_better(
                scored.aligned, scored.score, before.aligned, before.score, tokenizer
            ):
                found[i] = scored
            else:
                kept = keep_reading(before.aligned, scored.aligned, tokenizer)
                found[i] = replace(before, aligned=kept)
        doubtful = list(changed)
    return found


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
        [replace(r, aligned=_cut(r.aligned, probe.max_tokens)) for r in found]
        for probe, reply in pairs
        for found in [readings(reply, probe, thinking, tokenizer)]
    ]
    best = [found[0] for found in every]
    scores = _score_readings(
        [(p, r) for (p, _), r in zip(pairs, best, strict=True)], engine, tokenizer
    )
    for seam in range(max((len(reading.white) for reading in best), default=0)):
        tried = [
            (i, other)
            for i, (reading, score) in enumerate(zip(best, scores, strict=True))
            if doubtful_seam(reading, score) == seam
            for other in differing_at(seam, reading, every[i])
        ]
        again = _score_readings([(pairs[i][0], r) for i, r in tried], engine, tokenizer)
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


def _score_readings(
    pairs: Sequence[tuple[Probe, Reading]], engine: Engine, tokenizer: Reader
) -> list[ReplyScore]:
    """What the reference says of readings; of those set aside, nothing."""
    judged = [(probe, reading.aligned) for probe, reading in pairs if not reading.aligned.unjudged]
    scored = iter(_score(judged, REFERENCE, engine, tokenizer))
    return [NO_SCORE if reading.aligned.unjudged else next(scored).score for _, reading in pairs]


def _cut(aligned: Aligned, limit: int) -> Aligned:
    """No more than was asked for: a host that ignores max_tokens must not cost hours."""
    return replace(
        aligned,
        reply_ids=aligned.reply_ids[:limit],
        left_out=frozenset(t for t in aligned.left_out if t < limit),
        candidates=None if aligned.candidates is None else aligned.candidates[:limit],
        reported=None if aligned.reported is None else aligned.reported[:limit],
    )


def _left_out_whole(aligned: Aligned) -> Aligned:
    return replace(aligned, left_out=frozenset(range(len(aligned.reply_ids))))


def _score(
    readings: Sequence[tuple[Probe, Aligned]], weights: str, engine: Engine, tokenizer: Reader
) -> list[Scored]:
    """Score readings under the weights in place, in the order given."""
    requests = [
        ScoreRequest(
            prompt_ids=_prompt_ids(probe, tokenizer),
            reply_ids=aligned.reply_ids,
            candidates=aligned.candidates if weights == REFERENCE else None,
        )
        for probe, aligned in readings
    ]
    return [
        Scored(probe_id=probe.id, weights=weights, aligned=aligned, score=_rounded(score))
        for (probe, aligned), score in zip(readings, engine.score(requests), strict=True)
    ]


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
                probe_id=asked[i][0].id, weights=name, aligned=aligned, score=_rounded(made),
                lost=respelled[i].lost,
            )
            for i, aligned, made in zip(some, texts, engine.score(requests), strict=True)
        ]  # fmt: skip

    found = score(range(len(asked)), [read.aligned for read in respelled])
    if suspect.same:
        return _settle(found, [probe.max_tokens for probe, _, _ in asked], score, tokenizer)
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
        ScoreRequest(prompt_ids=_prompt_ids(probe, tokenizer), reply_ids=aligned.reply_ids)
        for probe, aligned in readings
    ]
    scores = engine.score_penalized(requests, tuple(penalties.values()))
    return [
        Scored(
            probe_id=probe.id, weights=SAMPLER + name, score=_rounded(score),
            aligned=replace(aligned, candidates=None, reported=None),
        )
        for (probe, aligned), each in zip(readings, scores, strict=True)
        for name, score in zip(penalties, each, strict=True)
    ]  # fmt: skip


def _prompt_ids(probe: Probe, tokenizer: Reader) -> tuple[int, ...]:
    """The published prompt of a probe. Raises RenderingError when the template refuses it."""
    return tokenizer.encode_prompt(tokenizer.render_text(prompt_of(probe)))


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
        published = ScoreRequest(prompt_ids=_prompt_ids(probe, tokenizer), reply_ids=ids)
        known[published] = replace(reference.score, candidate_logprobs=None)
        for entry in entries:
            made = render_probe(entry, probe, tokenizer)
            if made is not None and (probe.id, TEMPLATE + entry.name) not in done:
                request = ScoreRequest(prompt_ids=made.ids, reply_ids=ids)
                wanted.append((entry, probe, request))
    new = list(dict.fromkeys(request for _, _, request in wanted if request not in known))
    known |= dict(zip(new, map(_rounded, engine.score(new)), strict=True))
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
        score = _rounded(raw)
    return aligned, score


# -- sampled replies ---------------------------------------------------------------------------


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
    done = {row.probe_id for row in read_sampled(run)}
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
        aligned_replies = [
            _cut(readings(reply, probe, thinking, tokenizer)[0].aligned, probe.max_tokens)
            for probe, reply in chunk
        ]
        problems = [_why_not(aligned, engine) for aligned in aligned_replies]
        requests = [
            SamplerRequest(
                prompt_ids=_prompt_ids(probe, tokenizer),
                reply_ids=aligned.reply_ids,
                kept=tuple(_kept(aligned)),
            )
            for (probe, _), aligned, problem in zip(chunk, aligned_replies, problems, strict=True)
            if problem is None
        ]
        scored = iter(engine.score_samplers(requests, tuple(samplers.values())) if requests else ())
        for (probe, _), aligned, problem in zip(chunk, aligned_replies, problems, strict=True):
            cells = (
                {n: round(v, DECIMALS) for n, v in zip(samplers, next(scored), strict=True)}
                if problem is None
                else {}
            )
            kept = len(_kept(aligned)) if problem is None else 0
            row = SampledRow(
                probe_id=probe.id, tokens=kept, left_out=len(aligned.reply_ids) - kept,
                cells=cells, problem=problem,
            )  # fmt: skip
            append_line(run / SAMPLED_SCORES, asdict(row))
        if progress:
            progress(start + len(chunk), len(replies))


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
    done = {repeat.probe_id for repeat in read_repeats(run)}
    earlier: dict[str, dict[str, Reply]] = {}
    for probe in probes:
        outcome = outcomes.get(probe.id)
        if not isinstance(outcome, Reply):
            continue
        before = earlier.setdefault(asked_before(probe.id), {})
        if before and probe.id not in done:
            engine.load_variant(REFERENCE)
            ids = _prompt_ids(probe, tokenizer)
            read = [_cut(align(reply, tokenizer), probe.max_tokens) for reply in before.values()]
            scores = engine.score(
                [ScoreRequest(prompt_ids=ids, reply_ids=aligned.reply_ids) for aligned in read]
            )
            each = [
                sum(max(score.logprobs[t], LEAST_TOKEN) for t in _kept(aligned))
                for score, aligned in zip(scores, read, strict=True)
            ]
            log_p = max(each) + math.log(sum(math.exp(value - max(each)) for value in each))
            repeat = Repeat(
                probe_id=probe.id, otherwise=probe.id.endswith(OTHERWISE),
                came_again=outcome.text in before, log_p=min(0.0, round(log_p, DECIMALS)),
            )  # fmt: skip
            append_line(run / REPEATS, asdict(repeat))
        before.setdefault(outcome.text, outcome)


def read_repeats(run: Path) -> tuple[Repeat, ...]:
    """The repeats of a run folder. Raises ConfigError for a bad line."""
    path, found = run / REPEATS, []
    for number, line in enumerate(read_lines(path), 1):
        try:
            found.append(repeat_from_json(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}:{number}: malformed repeat ({error!r}); remove the file and run "
                "`verifier score` again"
            ) from error
    return tuple(found)


def _why_not(aligned: Aligned, engine: Engine) -> str | None:
    """Why a sampled reply is not scored; None: it is."""
    if not engine.scores_samplers:
        return NO_DISTRIBUTION
    if aligned.by == "text":
        return aligned.unjudged or aligned.problem or NO_TOKENS
    return None


def read_sampled(run: Path) -> tuple[SampledRow, ...]:
    """The sampled rows of a run folder, as they were scored. Raises ConfigError for a bad line."""
    path, found = run / SAMPLED_SCORES, []
    for number, line in enumerate(read_lines(path), 1):
        try:
            found.append(sampled_row_from_json(line))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path}:{number}: malformed score ({error!r}); remove the file and run "
                "`verifier score` again"
            ) from error
    return tuple(found)


# -- the scores file ---------------------------------------------------------------------------


def _rounded(score: ReplyScore) -> ReplyScore:
    """As it will be read back, so that a resumed run computes with the same numbers."""

    def rows(values: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(round(v, DECIMALS) for v in row) for row in values)

    candidates = score.candidate_logprobs
    return replace(
        score,
        logprobs=tuple(round(v, DECIMALS) for v in score.logprobs),
        entropies=tuple(round(v, DECIMALS) for v in score.entropies),
        top_logprobs=rows(score.top_logprobs),
        candidate_logprobs=None if candidates is None else rows(candidates),
    )


def _to_json(scored: Scored) -> dict[str, Any]:
    aligned = asdict(scored.aligned) | {"left_out": sorted(scored.aligned.left_out)}
    return {
        "probe_id": scored.probe_id,
        "weights": scored.weights,
        "aligned": aligned,
        "score": asdict(scored.score),
    } | ({"lost": scored.lost} if scored.lost else {})


def read_scores(run: Path) -> list[Scored]:
    """Every score of a run folder, in the order of writing. Raises ConfigError for a bad line."""
    path = run / SCORES
    return [_from_json(value, f"{path}:{n}") for n, value in enumerate(read_lines(path), 1)]


def _from_json(value: Mapping[str, Any], where: str) -> Scored:
    try:
        aligned, score = value["aligned"], value["score"]
        scored = Scored(
            probe_id=str(value["probe_id"]),
            weights=str(value["weights"]),
            aligned=Aligned(
                **aligned
                | {
                    "reply_ids": _ids(aligned["reply_ids"]),
                    "left_out": frozenset(_ids(aligned["left_out"])),
                    "candidates": _rows(aligned["candidates"], _ids),
                    "reported": _rows(aligned["reported"], _numbers),
                }
            ),
            score=ReplyScore(
                logprobs=_numbers(score["logprobs"]),
                ranks=_ids(score["ranks"]),
                entropies=_numbers(score["entropies"]),
                top_ids=_ids(score["top_ids"]),
                top_logprobs=tuple(map(_numbers, score["top_logprobs"])),
                candidate_logprobs=_rows(score["candidate_logprobs"], _numbers),
            ),
            lost=index(value.get("lost", 0)),
        )
        _refuse_uneven(scored)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: malformed score ({error!r}); remove the file and run `verifier score` again"
        ) from error
    return scored


def _refuse_uneven(scored: Scored) -> None:
    """Raise ValueError unless every part has one entry per token of the reply."""
    aligned, score = scored.aligned, scored.score
    if not isinstance(aligned.unjudged, str | None):
        raise ValueError("unjudged is no text")
    parts = (
        aligned.candidates, aligned.reported, score.logprobs, score.ranks, score.entropies,
        score.top_ids, score.top_logprobs, score.candidate_logprobs,
    )  # fmt: skip
    if any(part is not None and len(part) != len(aligned.reply_ids) for part in parts):
        raise ValueError("parts of different lengths")
    if len(set(map(len, score.top_logprobs))) > 1:
        raise ValueError("top_logprobs of different lengths")


def _ids(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(index, values))


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _rows(rows: Any, read: Callable[[Sequence[Any]], Any]) -> Any:
    return None if rows is None else tuple(map(read, rows))
