"""The score step: replies of a run folder to likelihoods under each weights, and the ledger.

Reads probes and exchanges; appends to the scores and writes the ledger. Needs an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from verifier.evidence.ledger import (
    DEFAULT,
    FLOOR,
    SAMPLER,
    TEMPLATE,
    Ledger,
    Reported,
    Row,
    count_outranked,
    dropped_cells,
    ledger_to_json,
    logprob_cells,
    rare_cells,
    text_cells,
)
from verifier.evidence.reported import describe_reports
from verifier.evidence.samplers import SINGLE_TOKENS, Sampler, name_of
from verifier.files.run_folder import LEDGER, write_json
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
from verifier.scoring.places import describe_choices
from verifier.scoring.readings import published_ids, read_and_score, score_readings
from verifier.scoring.sampled_file import read_repeats, read_sampled
from verifier.scoring.score_file import CHUNK, ScoreBook, Scored, rounded
from verifier.scoring.spelling import MAX_READINGS, settle_spelling


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
    defaults: Mapping[str, Sampler] | None = None,
    thinking: Thinking | None = None,
    progress: Callable[[int, int], None] | None = None,
    book: ScoreBook | None = None,
) -> Ledger:
    """Score every reply that lacks a score under the reference or any of `weights`.

    `thinking` says how the model writes thoughts, which are scored with the reply. Those of
    `suspects` read prompts and replies in their own way.
    `templates` are renderings of `catalogue` under which the published weights score the replies
    too; with a catalogue the ledger also says how long every rendering of each prompt is.
    `penalties` are samplers under whose penalties they score the replies too, and `defaults` those
    that the publisher has for requests that say nothing. A `book` of the run folder saves reading
    its scores.

    The reference comes first: it decides how a text is read. Scores are appended as they come and
    nothing is scored twice; then the ledger is written anew and returned. It has a row for each
    scored reply of `every`, which is `probes` unless more are given, and a row without cells for
    each answer that is not judged and yet counts its prompt.
    """
    book = ScoreBook(run) if book is None else book
    book.refuse_others(outcomes)
    replies = [(p, o) for p in probes if isinstance(o := outcomes.get(p.id), Reply)]
    scorer = _Scorer(book=book, engine=engine, tokenizer=tokenizer, thinking=thinking)
    scorer.score_weights(replies, (REFERENCE, *weights), suspects or {}, progress)
    entries = catalogue or {}
    scorer.score_templates(replies, [entries[name] for name in templates if name != REFERENCE])
    scorer.score_penalties(replies, penalties or {}, kind=SAMPLER)
    scorer.score_penalties(replies, defaults or {}, kind=DEFAULT)
    ledger = build_ledger(
        probes if every is None else every,
        book,
        counts={name: o.prompt_tokens for name, o in outcomes.items() if isinstance(o, Reply)},
        unjudged={
            name: o for name, o in outcomes.items() if isinstance(o, NotJudged) and o.counts_prompt
        },
        lengths=lambda probe: _lengths(tuple(entries.values()), probe, tokenizer),
        tokenizer=tokenizer,
    )
    ledger = replace(
        ledger, sampled=read_sampled(run), repeats=read_repeats(run), engine=dict(engine.versions)
    )
    made = (ledger, ledger.engine)
    if made != book.written or not (run / LEDGER).exists():
        write_json(run / LEDGER, {**ledger_to_json(ledger), "engine": engine.versions})
        book.written = made
    return ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scorer:
    """Scores replies under one kind of column after another, a chunk at a time, into a book."""

    book: ScoreBook
    engine: Engine
    tokenizer: Reader
    thinking: Thinking | None

    def score_weights(
        self,
        replies: Sequence[tuple[Probe, Reply]],
        weights: Sequence[str],
        suspects: Mapping[str, Suspected],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Under the published weights, builds and suspects, as far as they lack it."""
        columns = dict.fromkeys(weights)
        todo = {name: [r for r in replies if not self.book.has(r[0].id, name)] for name in columns}
        total, finished = sum(map(len, todo.values())), 0
        for name, pairs in todo.items():
            if pairs:
                self.engine.load_variant(name)
            for chunk in _chunks(pairs):
                self._keep(self._score_weights(name, chunk, suspects.get(name)), chunk)
                finished += len(chunk)
                if progress:
                    progress(finished, total)
        self.engine.load_variant(REFERENCE)

    def _score_weights(
        self, name: str, chunk: Sequence[tuple[Probe, Reply]], suspect: Suspected | None
    ) -> Sequence[Scored]:
        if name == REFERENCE:
            return read_and_score(chunk, self.engine, self.tokenizer, self.thinking)
        read = [(probe, self.book.read_as(probe.id)) for probe, _ in chunk]
        judged = [pair for pair in read if not pair[1].unjudged]
        if suspect is None:
            return score_readings(judged, name, self.engine, self.tokenizer)
        return _score_suspect(name, suspect, judged, self.engine, self.tokenizer)

    def score_templates(
        self, replies: Sequence[tuple[Probe, Reply]], entries: Sequence[Rendering]
    ) -> None:
        """Under the published weights after other renderings of the prompts."""
        for chunk in _chunks(self._judged(replies) if entries else []):
            done = {
                (probe.id, name): scored
                for probe, _ in chunk for name, scored in self.book.by_probe[probe.id].items()
            }  # fmt: skip
            asked = [probe for probe, _ in chunk]
            found = _score_templates(asked, entries, done, self.engine, self.tokenizer)
            self._keep(found, chunk)

    def score_penalties(
        self, replies: Sequence[tuple[Probe, Reply]], penalties: Mapping[str, Sampler], *, kind: str
    ) -> None:
        """Under the published weights, as a host with a penalty would choose, into columns of a
        `kind`."""
        first = kind + next(iter(penalties), "")
        new = [r for r in self._judged(replies) if not self.book.has(r[0].id, first)]
        for chunk in _chunks(new if penalties else []):
            read = [(probe, self.book.read_as(probe.id)) for probe, _ in chunk]
            columns = {kind + name: sampler for name, sampler in penalties.items()}
            found = _score_penalties(read, columns, self.engine, self.tokenizer)
            self._keep(found, chunk)

    def _judged(self, replies: Sequence[tuple[Probe, Reply]]) -> list[tuple[Probe, Reply]]:
        return [(p, o) for p, o in replies if not self.book.read_as(p.id).unjudged]

    def _keep(self, found: Iterable[Scored], chunk: Sequence[tuple[Probe, Reply]]) -> None:
        by_id = {probe.id: reply for probe, reply in chunk}
        for scored in found:
            self.book.keep(scored, by_id[scored.probe_id])


def _chunks(pairs: Sequence[tuple[Probe, Reply]]) -> Iterator[Sequence[tuple[Probe, Reply]]]:
    """So many replies at a time as are scored between two writes."""
    for start in range(0, len(pairs), CHUNK):
        yield pairs[start : start + CHUNK]


def build_ledger(
    probes: Sequence[Probe],
    book: ScoreBook,
    *,
    counts: Mapping[str, int | None],
    lengths: Callable[[Probe], dict[str, int]],
    tokenizer: Reader,
    unjudged: Mapping[str, NotJudged] | None = None,
) -> Ledger:
    """Cells of every scored reply, in the order of `probes`; those known to the book are not
    computed again.

    `counts` are the prompt tokens that the endpoint reported, `lengths` what renderings make.
    `unjudged` are answers of which no text is judged: their counts alone speak.
    """
    others = unjudged or {}
    rows = []
    for number, probe in enumerate(probes):
        columns, other = book.by_probe.get(probe.id, {}), others.get(probe.id)
        if REFERENCE in columns:
            if probe.id not in book.rows:
                book.rows[probe.id] = _row(columns, probe, tokenizer)
            row, counted = book.rows[probe.id], counts.get(probe.id)
        elif other is not None:
            row = _row_without_cells(probe.id, other.reason, book.digest(other))
            counted = other.prompt_tokens
        else:
            continue
        rows.append(
            replace(
                row, prompt_tokens=counted, rendered=lengths(probe),
                panel=probe.kind == PANEL_KIND, strata=labels_of(probe, number),
            )
        )  # fmt: skip
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


def _row(columns: Mapping[str, Scored], probe: Probe, tokenizer: Reader) -> Row:
    reference = columns[REFERENCE]
    aligned = reference.aligned
    if aligned.unjudged:
        return _row_without_cells(reference.probe_id, aligned.unjudged, reference.reply_sha256)
    logprob, problem = None, aligned.problem
    if aligned.reported is not None and reference.score.candidate_logprobs is not None:
        cells = logprob_cells(aligned.reported, reference.score.candidate_logprobs)
        logprob, problem = (None, cells) if isinstance(cells, str) else (cells, None)
    elif aligned.reported is not None and reference.score.few:
        problem = "the reference knows few alternatives, and not what the endpoint names"
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
        reported=_describe_reports(reference),
        choices={
            name: describe_choices(scored, probe, tokenizer)
            for name, scored in columns.items()
            if name == REFERENCE or name.startswith(DEFAULT)
        },
        reply_sha256=reference.reply_sha256,
    )


def _describe_reports(reference: Scored) -> Reported | None:
    """What is kept of the log-probabilities that came with a reply."""
    aligned = reference.aligned
    if aligned.reported is None or aligned.candidates is None:
        return None
    return describe_reports(
        reference.score, reply_ids=aligned.reply_ids, candidates=aligned.candidates,
        reported=aligned.reported, own=aligned.own,
    )  # fmt: skip


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
        Respelled(aligned=aligned.without_reports(), lost=0)
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
    """Greedy replies under the published weights, as a host with a penalty would choose, by the
    names of their columns."""
    requests = [
        ScoreRequest(prompt_ids=published_ids(probe, tokenizer), reply_ids=aligned.reply_ids)
        for probe, aligned in readings
    ]
    scores = engine.score_penalized(requests, tuple(penalties.values()))
    return [
        Scored(
            probe_id=probe.id, weights=name, score=rounded(score),
            aligned=aligned.without_reports(),
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
        aligned = aligned.without_reports()
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
