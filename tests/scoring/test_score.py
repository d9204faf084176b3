"""The score step with a model small enough to follow: order, resuming, reading texts, the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes_engine import EOS, TURN, WORDS, FakeEngine
from scored import (
    TOKENIZER,
    CountingEngine,
    generate,
    honest,
    make_probes,
    make_reply,
    outcomes_of,
    score,
)

from verifier.errors import ConfigError
from verifier.evidence.ledger import ledger_from_json, logprob_cells, text_cells
from verifier.files.run_folder import LEDGER, SCORES, read_json
from verifier.probes import PANEL_KIND
from verifier.records import (
    REFERENCE,
    Candidate,
    Failure,
    NotJudged,
    Outcome,
    Probe,
    ReplyScore,
    ReportedToken,
    ScoreRequest,
)
from verifier.reference.renderings.catalogue import catalogue, render_probe
from verifier.scoring.alignment import Aligned
from verifier.scoring.score import build_ledger
from verifier.scoring.score_file import (
    CHUNK,
    DECIMALS,
    ScoreBook,
    Scored,
    append_score,
    read_scores,
)
from verifier.scoring.spelling import MAX_READINGS

BUILD = "int4-sym-g64"
OTHER = "fp8-channel"
COUNTS = {f"p{n}": 9 for n in range(9)}
(SPACE,) = TOKENIZER.ids_of_bytes(b" ")


def no_lengths(_probe: Probe) -> dict[str, int]:
    """Without a catalogue no rendering has a length."""
    return {}


def book_of(run: Path, scores: Sequence[Scored]) -> ScoreBook:
    """The scores, in this order, as a book of a run folder."""
    run.mkdir()
    for scored in scores:
        append_score(run, scored)
    return ScoreBook(run)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / SCORES).read_text().splitlines()]


# -- order and repetition ----------------------------------------------------------------------


def test_scores_are_appended_reference_first_then_build_by_build(tmp_path: Path) -> None:
    """In the order of the probes within each weights, over more than one chunk."""
    probes = make_probes(CHUNK + 3)
    score(tmp_path, probes, outcomes_of(probes), weights=(BUILD, OTHER))

    found = [(line["weights"], line["probe_id"]) for line in lines(tmp_path)]
    assert found == [(w, p.id) for w in (REFERENCE, BUILD, OTHER) for p in probes]


def test_scores_are_those_of_the_weights_named(tmp_path: Path) -> None:
    """Each line holds what an engine with these weights says of the reply, rounded."""
    probes = make_probes(2)
    score(tmp_path, probes, outcomes_of(probes), weights=(BUILD,))
    engine = FakeEngine()

    for scored in read_scores(tmp_path):
        probe = next(p for p in probes if p.id == scored.probe_id)
        engine.load_variant(scored.weights)
        request = ScoreRequest(
            prompt_ids=TOKENIZER.render(probe.messages), reply_ids=scored.aligned.reply_ids
        )
        (expected,) = engine.score([request])
        assert scored.score.logprobs == tuple(round(v, DECIMALS) for v in expected.logprobs)
        assert scored.score.ranks == expected.ranks


def test_the_reference_is_in_place_afterwards(tmp_path: Path) -> None:
    """Whoever uses the engine next gets the published weights."""
    probes, engine = make_probes(1), CountingEngine()
    score(tmp_path, probes, outcomes_of(probes), engine=engine, weights=(BUILD,))

    assert engine.loaded == REFERENCE


def test_nothing_is_scored_twice(tmp_path: Path) -> None:
    """New replies, new weights and names given twice cost only what is new."""
    probes = make_probes(5)
    outcomes = outcomes_of(probes)
    first, second, third = CountingEngine(), CountingEngine(), CountingEngine()
    score(tmp_path, probes[:3], outcomes, engine=first)
    score(tmp_path, probes, outcomes, engine=second, weights=(BUILD, REFERENCE, BUILD))
    before = (tmp_path / SCORES).read_bytes()
    score(tmp_path, probes, outcomes, engine=third, weights=(BUILD,))

    assert [weights for weights, _ in first.scored] == [REFERENCE] * 3
    assert [weights for weights, _ in second.scored] == [REFERENCE] * 2 + [BUILD] * 5
    assert third.scored == []
    assert (tmp_path / SCORES).read_bytes() == before


def test_replies_only_are_scored(tmp_path: Path) -> None:
    """Neither failures, nor refusals, nor probes without an outcome."""
    probes, engine = make_probes(4), CountingEngine()
    outcomes: dict[str, Outcome] = {
        "p0": Failure(probe_id="p0", status=503, reason="busy", attempts=4),
        "p1": honest(probes[1]),
        "p2": NotJudged(probe_id="p2", reason="empty", prompt_tokens=3, completion_tokens=0),
    }
    ledger = score(tmp_path, probes, outcomes, engine=engine)

    assert [row.probe_id for row in ledger.rows] == ["p1"]
    assert len(engine.scored) == 1


def test_progress_counts_replies_under_every_weights(tmp_path: Path) -> None:
    """It rises to the total that it told from the start."""
    probes = make_probes(CHUNK + 1)
    told: list[tuple[int, int]] = []
    score(
        tmp_path, probes, outcomes_of(probes), weights=(BUILD,),
        progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip

    total = 2 * (CHUNK + 1)
    assert told == [(n, total) for n in (CHUNK, CHUNK + 1, 2 * CHUNK + 1, total)]


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_killed_scoring_goes_on_and_gives_the_same_bytes(tmp_path: Path, calls: int) -> None:
    """Also when the kill tore the last line."""
    probes = make_probes(CHUNK + 2)
    outcomes = outcomes_of(probes)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = score(whole, probes, outcomes, weights=(BUILD,))
    engine = CountingEngine()
    engine.stop_after = calls
    with pytest.raises(KeyboardInterrupt):
        score(killed, probes, outcomes, engine=engine, weights=(BUILD,))
    path = killed / SCORES
    if path.exists():
        path.write_bytes(path.read_bytes()[:-20])
    resumed = score(killed, probes, outcomes, weights=(BUILD,))

    assert resumed == expected
    assert path.read_bytes() == (whole / SCORES).read_bytes()
    assert (killed / LEDGER).read_bytes() == (whole / LEDGER).read_bytes()


# -- template columns --------------------------------------------------------------------------


CATALOGUE = catalogue()
MISSING, ADDED, SAME = "generation-prompt-missing", "space-added", "tools-dropped"


def test_a_template_column_is_scored_after_its_own_prompt(tmp_path: Path) -> None:
    """The published weights, the reading of the reference, another prompt; written as it comes."""
    probes, engine = make_probes(3), CountingEngine()
    ledger = score(
        tmp_path, probes, outcomes_of(probes), engine=engine, templates=(REFERENCE, MISSING),
        catalogue=CATALOGUE,
    )  # fmt: skip

    assert [line["weights"] for line in lines(tmp_path)] == [
        *[REFERENCE] * 3, *[f"template:{MISSING}"] * 3
    ]  # fmt: skip
    prompts = {request.prompt_ids for weights, request in engine.scored if weights == REFERENCE}
    for probe in probes:
        made = render_probe(CATALOGUE[MISSING], probe, TOKENIZER)
        assert made is not None
        assert made.ids in prompts
    for row in ledger.rows:
        assert row.text[f"template:{MISSING}"] != row.text[REFERENCE]


def test_a_rendering_that_changes_nothing_costs_nothing(tmp_path: Path) -> None:
    """Its cells are the reference's."""
    probes, engine = make_probes(2), CountingEngine()
    ledger = score(
        tmp_path, probes, outcomes_of(probes), engine=engine, templates=(SAME,), catalogue=CATALOGUE
    )

    assert len(engine.scored) == 2
    assert all(row.text[f"template:{SAME}"] == row.text[REFERENCE] for row in ledger.rows)


def test_a_rendering_that_is_refused_has_no_cell(tmp_path: Path) -> None:
    """The fake tokenizer reads no other template."""
    probes = make_probes(1)
    ledger = score(
        tmp_path, probes, outcomes_of(probes), templates=("family-llama3",), catalogue=CATALOGUE
    )

    assert set(ledger.rows[0].text) == {REFERENCE}
    assert "family-llama3" not in ledger.rows[0].rendered


def test_no_template_column_is_scored_twice(tmp_path: Path) -> None:
    """A later look scores what is new, and gives the same ledger when nothing is."""
    probes, outcomes = make_probes(2), outcomes_of(make_probes(2))
    first = score(tmp_path, probes, outcomes, templates=(MISSING,), catalogue=CATALOGUE)
    engine = CountingEngine()
    again = score(
        tmp_path, probes, outcomes, engine=engine, templates=(MISSING,), catalogue=CATALOGUE
    )

    assert engine.scored == []
    assert again == first


def test_rows_say_how_long_every_rendering_is_and_what_was_counted(tmp_path: Path) -> None:
    """Without any column scored: rendering needs no model."""
    probes = [replace(p, kind=PANEL_KIND) for p in make_probes(1)]
    (row,) = score(tmp_path, probes, outcomes_of(probes), catalogue=CATALOGUE).rows

    published = len(TOKENIZER.render(probes[0].messages))
    assert row.rendered[REFERENCE] == published
    assert row.rendered[ADDED] == published + len(probes[0].messages)
    assert row.prompt_tokens == 9
    assert row.panel


def test_a_reply_that_runs_on_is_read_with_its_control_tokens(tmp_path: Path) -> None:
    """They show in no text; put back, the reply is as likely as any."""
    engine = CountingEngine(script=lambda _ids: (258, 262, EOS, TURN, 259, 263))
    (probe,) = make_probes(1)
    text = TOKENIZER.decode((258, 262, 259, 263))
    name = "end-of-turn-ignored"
    (row,) = score(
        tmp_path, [probe], {probe.id: replace(honest(probe), text=text, finish_reason="length")},
        engine=engine, templates=(name,), catalogue=CATALOGUE,
    ).rows  # fmt: skip
    (column,) = [s for s in read_scores(tmp_path) if s.weights == f"template:{name}"]

    assert column.aligned.reply_ids == (258, 262, EOS, TURN, 259, 263)
    assert max(row.text[f"template:{name}"]) > max(row.text[REFERENCE])


def test_a_reply_that_ends_speaks_against_running_on(tmp_path: Path) -> None:
    """A host that ignores the end of the turn does not stop there."""
    probes = make_probes(1, max_tokens=40)
    name = "end-of-turn-ignored"
    (row,) = score(
        tmp_path, probes, outcomes_of(probes), templates=(name,), catalogue=CATALOGUE
    ).rows

    assert max(row.text[f"template:{name}"]) < max(row.text[REFERENCE]) - 5


# -- the ledger --------------------------------------------------------------------------------


def test_the_ledger_on_disk_is_the_one_returned(tmp_path: Path) -> None:
    """With the versions of the engine beside it."""
    probes = make_probes(3)
    ledger = score(tmp_path, probes, outcomes_of(probes, logprobs=True), weights=(BUILD,))
    raw = read_json(tmp_path / LEDGER)

    assert ledger_from_json(raw, "here") == ledger
    assert raw["engine"] == {"engine": "fake"}


def test_a_ledger_that_is_the_same_is_not_written_again(tmp_path: Path) -> None:
    """Of one book: a round that scored nothing new leaves the file, one that did replaces it."""
    probes, book = make_probes(3), ScoreBook(tmp_path)
    outcomes = outcomes_of(probes)

    def written(asked: Sequence[Probe]) -> int:
        score(tmp_path, asked, outcomes, book=book)
        return (tmp_path / LEDGER).stat().st_ino

    first = written(probes[:2])
    assert written(probes[:2]) == first
    assert written(probes) != first
    (tmp_path / LEDGER).unlink()
    written(probes)
    assert len(read_json(tmp_path / LEDGER)["rows"]) == 3


def test_the_ledger_is_a_function_of_the_scores_alone(tmp_path: Path) -> None:
    """Built anew from the file, in whatever order its lines are, it has the same rows."""
    probes = make_probes(4)
    ledger = score(tmp_path, probes, outcomes_of(probes, logprobs=True), weights=(BUILD,))
    scores = read_scores(tmp_path)

    for n, some in enumerate((scores, scores[::-1])):
        book = book_of(tmp_path / f"copy{n}", some)
        made = build_ledger(probes, book, counts=COUNTS, lengths=no_lengths, tokenizer=TOKENIZER)
        assert made == replace(ledger, engine={})


def test_rows_are_in_the_order_of_the_probes(tmp_path: Path) -> None:
    """`every` names the rows; what was scored before stays in."""
    probes = make_probes(4)
    outcomes = outcomes_of(probes)
    score(tmp_path, probes[2:], outcomes)
    few = score(tmp_path, probes[:1], outcomes)
    all_ = score(tmp_path, probes[:1], outcomes, every=probes)

    assert [row.probe_id for row in few.rows] == ["p0"]
    assert [row.probe_id for row in all_.rows] == ["p0", "p2", "p3"]


def test_a_score_without_its_reference_is_no_row(tmp_path: Path) -> None:
    """Builds are read against the reference, never alone."""
    probes = make_probes(1)
    alone = Scored(
        probe_id="p0", weights=BUILD, aligned=make_aligned(), score=make_score((-0.5,) * 2)
    )

    book = book_of(tmp_path / "run", [alone])
    assert (
        build_ledger(probes, book, counts=COUNTS, lengths=no_lengths, tokenizer=TOKENIZER).rows
        == ()
    )


def make_aligned(**changes: Any) -> Aligned:
    values: dict[str, Any] = {
        "reply_ids": (65, 66), "left_out": frozenset(), "by": "text", "candidates": None,
        "reported": None, "problem": "none were asked for",
    }  # fmt: skip
    return Aligned(**values | changes)


def make_score(logprobs: tuple[float, ...]) -> ReplyScore:
    return ReplyScore(
        logprobs=logprobs,
        ranks=(1,) * len(logprobs),
        entropies=(0.1,) * len(logprobs),
        top_ids=(65,) * len(logprobs),
        top_logprobs=((-0.1, -3.0),) * len(logprobs),
        candidate_logprobs=None,
    )


def test_positions_left_out_are_counted_and_not_scored(tmp_path: Path) -> None:
    """The cells are those of the positions that are kept."""
    numbers = make_score((-0.1, -9.0))
    scored = Scored(
        probe_id="p0",
        weights=REFERENCE,
        aligned=make_aligned(left_out=frozenset({1})),
        score=numbers,
    )
    book = book_of(tmp_path / "run", [scored])
    (row,) = build_ledger(
        make_probes(1), book, counts=COUNTS, lengths=no_lengths, tokenizer=TOKENIZER
    ).rows

    assert (row.tokens, row.left_out) == (1, 1)
    assert row.text[REFERENCE] == text_cells(numbers, [0])
    assert row.text[REFERENCE] != text_cells(numbers, [0, 1])


def test_reported_log_probabilities_are_held_against_the_reference(tmp_path: Path) -> None:
    """The logprob channel of a row is that of what the host told and what the weights say."""
    probes = make_probes(1)
    ledger = score(tmp_path, probes, outcomes_of(probes, logprobs=True), weights=(BUILD,))
    (row,) = ledger.rows
    first, _ = read_scores(tmp_path)

    assert first.aligned.by == "bytes"
    assert first.aligned.reported is not None
    assert first.score.candidate_logprobs is not None
    assert row.logprob == logprob_cells(first.aligned.reported, first.score.candidate_logprobs)
    assert row.logprob_problem is None


def test_without_reported_log_probabilities_the_row_says_why(tmp_path: Path) -> None:
    """In the host's words, or in those of the request."""
    probes = make_probes(1)
    (row,) = score(tmp_path, probes, outcomes_of(probes)).rows

    assert row.logprob is None
    assert row.logprob_problem == "none were asked for"


def test_reported_log_probabilities_that_say_nothing_are_a_problem(tmp_path: Path) -> None:
    """Scaled values are no evidence; the text still is."""
    probe = make_probes(1)[0]
    reply = honest(probe, logprobs=True)
    assert reply.logprobs is not None

    def scaled(candidate: Candidate) -> Candidate:
        return Candidate(
            token=candidate.token, bytes=candidate.bytes, logprob=candidate.logprob * 3
        )

    told = tuple(
        ReportedToken(chosen=scaled(t.chosen), top=tuple(map(scaled, t.top)))
        for t in reply.logprobs
    )
    outcomes: dict[str, Outcome] = {
        probe.id: make_reply(probe, reply.text, logprobs=told, logprobs_problem=None)
    }
    (row,) = score(tmp_path, [probe], outcomes).rows

    assert row.logprob is None
    assert "scaled by about 3" in str(row.logprob_problem)
    assert any(row.text[REFERENCE])


def test_candidates_are_asked_of_the_reference_only(tmp_path: Path) -> None:
    """Other weights need no more than the reply itself."""
    probes, engine = make_probes(2), CountingEngine()
    outcomes = outcomes_of(probes, logprobs=True)
    score(tmp_path, probes, outcomes, engine=engine, weights=(BUILD,))

    assert all((r.candidates is None) == (w != REFERENCE) for w, r in engine.scored)
    assert [s.score.candidate_logprobs is None for s in read_scores(tmp_path)] == [
        False, False, True, True,
    ]  # fmt: skip


# -- reading texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("logprobs", [False, True], ids=["text", "logprobs"])
def test_a_host_that_sends_more_than_was_asked_is_cut(tmp_path: Path, logprobs: bool) -> None:
    """It can neither cost hours nor count for more."""
    (long,), (short,) = make_probes(1, max_tokens=16), make_probes(1, max_tokens=4)
    reply = honest(long, logprobs=logprobs)
    ledger = score(tmp_path, [short], {short.id: reply})
    (scored,) = read_scores(tmp_path)

    assert generate(long).token_ids[:4] == scored.aligned.reply_ids
    assert len(scored.score.logprobs) == 4
    assert ledger.rows[0].tokens + ledger.rows[0].left_out == 4
    if logprobs:
        assert scored.aligned.candidates is not None
        assert scored.aligned.reported is not None
        assert len(scored.aligned.candidates) == len(scored.aligned.reported) == 4


def test_a_reply_of_nothing_but_broken_characters_is_an_empty_row(tmp_path: Path) -> None:
    """Nothing can be read of it, so it says nothing: no token, no evidence, no crash."""
    (probe,) = make_probes(1)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, "\ufffdabc")}
    (row,) = score(tmp_path, [probe], outcomes).rows

    assert (row.tokens, row.left_out) == (0, 0)
    assert not any(row.text[REFERENCE])


class Fickle(CountingEngine):
    """Would have written a word as its space and its letters, another word at each reading.

    `words` says how often it changes its mind, `likelier` whether what it would have written is
    likelier as a whole, or only begins so.
    """

    def __init__(self, words: int, *, likelier: bool = True) -> None:
        super().__init__()
        self._left = words
        self._step = 0.001 if likelier else -0.001
        self._first = -1.0

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        found = super().score(requests)
        return [self._prefer(r, s) for r, s in zip(requests, found, strict=True)]

    def _prefer(self, request: ScoreRequest, score: ReplyScore) -> ReplyScore:
        top = list(request.reply_ids)
        # white space at the very beginning is what hosts trim, another matter
        for position, token in enumerate(request.reply_ids[1:], 1):
            if self._left and TOKENIZER.token_bytes(token)[:-1].startswith(b" "):
                self._left -= 1
                top[position] = SPACE
                break
        self._first += self._step
        logprobs = (self._first, *(0.0 for _ in top[1:]))
        pairs = zip(logprobs, score.top_logprobs, strict=True)
        best = tuple((value, *row[1:]) for value, row in pairs)  # nothing that surprises
        return replace(score, top_ids=tuple(top), logprobs=logprobs, top_logprobs=best)


def test_a_text_is_read_as_the_reference_would_have_written_it(tmp_path: Path) -> None:
    """Another spelling that the model prefers is taken, and its positions are left out."""
    (probe,) = make_probes(1, max_tokens=16)
    engine = Fickle(words=1)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, " model says")}
    (row,) = score(tmp_path, [probe], outcomes, engine=engine).rows
    (scored,) = read_scores(tmp_path)
    whole = b"".join(map(TOKENIZER.token_bytes, scored.aligned.reply_ids))

    assert len(engine.scored) == 2
    assert whole == b" model says"
    assert scored.aligned.reply_ids[1] == SPACE
    assert scored.aligned.left_out == {1, 2, 3, 4, 5}  # the space and the letters of "says"
    assert (row.tokens, row.left_out) == (2, 5)  # " model" and the end of turn


def test_a_spelling_that_only_begins_well_is_not_taken(tmp_path: Path) -> None:
    """The likelier one stands, and the word is left out: what follows is read after the truth."""
    (probe,) = make_probes(1, max_tokens=16)
    engine = Fickle(words=1, likelier=False)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, " model says")}
    (row,) = score(tmp_path, [probe], outcomes, engine=engine).rows
    (scored,) = read_scores(tmp_path)

    assert len(engine.scored) == 2
    assert scored.aligned.reply_ids == (*TOKENIZER.encode(" model says"), EOS)
    assert scored.aligned.left_out == {1}
    assert scored.score.logprobs[0] == -1.001
    assert (row.tokens, row.left_out) == (2, 1)


class Writing(CountingEngine):
    """Has written these tokens, each with -0.5 nats; what does not begin as they do it gives -9.

    After a beginning of theirs it would go on as they do, and after `lured` as that does.
    """

    def __init__(self, written: tuple[int, ...], *, lured: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._ways = (lured, written)
        self._written = written

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        found = super().score(requests)
        return [self._prefer(r.reply_ids, s) for r, s in zip(requests, found, strict=True)]

    def _prefer(self, ids: tuple[int, ...], score: ReplyScore) -> ReplyScore:
        top, logprobs = list(ids), []
        for t, token in enumerate(ids):
            for way in self._ways:
                if way[:t] == ids[:t] and t < len(way):
                    top[t] = way[t]
                    break
            logprobs.append(-0.5 if self._written[: t + 1] == (*ids[:t], token) else -9.0)
        return replace(score, top_ids=tuple(top), logprobs=tuple(logprobs))


class Runner(CountingEngine):
    """Would have written white space as one token, and says that two are nearly as likely."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        found = super().score(requests)
        return [self._judge(r, s) for r, s in zip(requests, found, strict=True)]

    def _judge(self, request: ScoreRequest, score: ReplyScore) -> ReplyScore:
        ids = request.reply_ids
        logprobs = [-0.1] * len(ids)
        for t, token in enumerate(ids):
            if TOKENIZER.token_bytes(token) == b" " and t + 3 < len(ids):
                logprobs[t : t + 2] = [-0.7, -6.0]  # nobody goes on so after half of a word
        named = None
        if request.candidates is not None:
            named = tuple(
                tuple(-0.8 if len(TOKENIZER.token_bytes(i)) > 1 else -20.0 for i in some)
                for some in request.candidates
            )
        return replace(
            score, top_ids=ids, logprobs=tuple(logprobs), candidate_logprobs=named,
            top_logprobs=tuple((-0.1, *row[1:]) for row in score.top_logprobs),
        )  # fmt: skip


def test_a_second_likeliest_spelling_is_tried_before_a_token_that_surprises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host chose it of two near ones, and went on as it would. Read otherwise, its next token
    is one that no honest machine chooses."""
    (probe,) = make_probes(1, max_tokens=32)
    plain, letters = TOKENIZER.encode, (*TOKENIZER.encode(" "), *b"of")

    def encode(text: str) -> tuple[int, ...]:
        """As a tokenizer that never writes " of" as its model may."""
        before, word, after = text.partition(" of")
        return (*plain(before), *letters, *plain(after)) if word else plain(text)

    monkeypatch.setattr(TOKENIZER, "encode", encode)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, " is of the")}
    (row,) = score(tmp_path, [probe], outcomes, engine=Runner()).rows
    (scored,) = read_scores(tmp_path)

    assert scored.aligned.reply_ids == (*plain(" is of the"), EOS)
    assert scored.aligned.left_out == {1}
    assert scored.score.candidate_logprobs is None
    assert row.tokens == 3
    assert min(scored.score.logprobs) == -0.1


def test_a_word_of_which_several_pieces_are_doubtful_is_read_to_its_end(tmp_path: Path) -> None:
    """No piece alone is likelier: each is written after the one before it."""
    (probe,) = make_probes(1, max_tokens=32)
    letters = TOKENIZER.encode(" ") + tuple(b"the")
    written = (*TOKENIZER.encode(" is"), *letters, *TOKENIZER.encode(" of"), EOS)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, " is the of")}
    (row,) = score(tmp_path, [probe], outcomes, engine=Writing(written)).rows
    (scored,) = read_scores(tmp_path)

    assert scored.aligned.reply_ids == written
    assert scored.aligned.left_out == {1, 2, 3, 4}
    assert (row.tokens, row.left_out) == (3, 4)


def test_pieces_that_lead_nowhere_leave_the_reading_as_it_was(tmp_path: Path) -> None:
    """The model would have begun the word otherwise, twice over, and never gone on so."""
    (probe,) = make_probes(1, max_tokens=32)
    written = (*TOKENIZER.encode(" is the of"), EOS)
    lured = (*TOKENIZER.encode(" is"), *TOKENIZER.encode(" "), *b"t")
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, " is the of")}
    (row,) = score(tmp_path, [probe], outcomes, engine=Writing(written, lured=lured)).rows
    (scored,) = read_scores(tmp_path)

    assert scored.aligned.reply_ids == written
    assert scored.aligned.left_out == {1}
    assert row.tokens == 3


def test_a_text_that_stays_doubtful_is_left_out_whole(tmp_path: Path) -> None:
    """After MAX_READINGS readings nothing of it counts; it is not read for ever."""
    (probe,) = make_probes(1, max_tokens=256)
    text = "".join(WORDS[:16] * 3)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, text)}
    engine = Fickle(words=1000)
    (row,) = score(tmp_path, [probe], outcomes, engine=engine).rows

    assert len(engine.scored) == 1 + MAX_READINGS
    assert row.tokens == 0
    assert row.left_out == len(read_scores(tmp_path)[0].aligned.reply_ids)
    assert not any(row.text[REFERENCE])


def test_a_text_settled_at_the_last_reading_counts(tmp_path: Path) -> None:
    """Exactly MAX_READINGS other spellings are still read."""
    (probe,) = make_probes(1, max_tokens=256)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, "".join(WORDS[:16] * 3))}
    engine = Fickle(words=MAX_READINGS)
    (row,) = score(tmp_path, [probe], outcomes, engine=engine).rows

    assert len(engine.scored) == 1 + MAX_READINGS
    assert row.tokens > 0


def test_tokens_that_the_host_named_are_not_read_anew(tmp_path: Path) -> None:
    """They were observed; the model's preference does not matter."""
    (probe,) = make_probes(1)
    engine = Fickle(words=1000)
    outcomes: dict[str, Outcome] = {probe.id: honest(probe, logprobs=True)}
    (row,) = score(tmp_path, [probe], outcomes, engine=engine).rows

    assert len(engine.scored) == 1
    assert row.left_out == 0


def test_builds_score_the_reading_of_the_reference(tmp_path: Path) -> None:
    """One reply is one sequence of ids in every column, also after a kill between them."""
    (probe,) = make_probes(1)
    outcomes: dict[str, Outcome] = {probe.id: make_reply(probe, " model says")}
    score(tmp_path, [probe], outcomes, engine=Fickle(words=1))
    score(tmp_path, [probe], outcomes, weights=(BUILD,))
    first, second = read_scores(tmp_path)

    assert first.aligned == second.aligned
    assert len(second.score.logprobs) == len(first.aligned.reply_ids)


# -- the scores file ---------------------------------------------------------------------------


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    """What is read is what was computed with: resuming changes no number."""
    probes = make_probes(2)
    score(tmp_path, probes, outcomes_of(probes, logprobs=True), weights=(BUILD,))
    once = read_scores(tmp_path)

    for scored, line in zip(once, lines(tmp_path), strict=True):
        assert list(scored.score.logprobs) == line["score"]["logprobs"]
        assert all(isinstance(v, int) for v in scored.score.ranks)
    assert read_scores(tmp_path) == once


def test_a_folder_without_scores_has_none(tmp_path: Path) -> None:
    """Nothing scored yet is no error."""
    assert read_scores(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.pop("aligned"),
        lambda line: line.pop("weights"),
        lambda line: line["score"].pop("ranks"),
        lambda line: line.__setitem__("score", None),
        lambda line: line.__setitem__("aligned", [1, 2]),
        lambda line: line["aligned"].__setitem__("colour", "red"),
        lambda line: line["aligned"].__setitem__("reply_ids", "ab"),
        lambda line: line["aligned"].__setitem__("left_out", 3),
        lambda line: line["score"].update(logprobs=["a" for _ in line["score"]["ranks"]]),
        lambda line: line["score"]["logprobs"].pop(),
        lambda line: line["score"]["top_logprobs"].pop(),
        lambda line: line["score"]["top_logprobs"][0].pop(),
        lambda line: line["score"]["top_ids"].__setitem__(0, 1.5),
        lambda line: line["score"].__setitem__("candidate_logprobs", [[0.5]]),
    ],
    ids=[
        "no reading", "no weights", "no ranks", "no score", "reading is a list", "unknown field",
        "ids are text", "left_out is a number", "log-probabilities are text", "one position less",
        "one top row less", "uneven top row", "broken id", "candidates of another length",
    ],
)  # fmt: skip
def test_a_malformed_line_is_refused_with_its_place(tmp_path: Path, change: Any) -> None:
    """The message names file and line, and says what to do."""
    probes = make_probes(2)
    score(tmp_path, probes, outcomes_of(probes))
    first, second = lines(tmp_path)
    change(second)
    (tmp_path / SCORES).write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")

    with pytest.raises(
        ConfigError, match=r"remove the file and run `verifier score` again"
    ) as refused:
        read_scores(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / SCORES}:2:")
    assert "\n" not in str(refused.value)
