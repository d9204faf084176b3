"""The scores file: what weights say of each reply, one line per reply and weights.

Every score carries the digest of the reply that was scored, so that it is held for no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger, Row
from verifier.files.run_folder import (
    COMPLETIONS,
    CONTEXT_SCORES,
    LEDGER,
    REPEATS,
    SAMPLED_SCORES,
    SCORES,
    append_line,
    read_lines,
)
from verifier.files.stored import read_rows
from verifier.records import (
    REFERENCE,
    Candidate,
    Count,
    NotJudged,
    Outcome,
    Reply,
    ReplyScore,
    fields_of,
)
from verifier.scoring.alignment import Aligned

#: Replies scored between two writes.
CHUNK = 16

#: Decimals kept of a log-probability: far below any noise, and half the bytes.
DECIMALS = 6

#: What is said of a reply that is set aside.
NO_SCORE = ReplyScore(
    logprobs=(), ranks=(), entropies=(), top_ids=(), top_logprobs=(), candidate_logprobs=None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One line of the scores: a reply as token ids, the weights, and what they say of it."""

    probe_id: str
    weights: str  # or a template column
    aligned: Aligned
    score: ReplyScore
    lost: Count = 0  # bytes of the text that a suspect cannot spell
    reply_sha256: str | None = None  # of the reply, see `digest_of`; None: not written down yet


def digest_of(answer: Reply | NotJudged) -> str:
    """SHA-256 of everything that is read of an answer."""
    read: list[object] = [answer.prompt_tokens, answer.completion_tokens]
    if isinstance(answer, NotJudged):
        read.append(answer.counts_prompt)
    else:
        rows = answer.logprobs
        claims = None if rows is None else [
            [_plain(row.chosen), *map(_plain, row.top)] for row in rows
        ]  # fmt: skip
        read += [answer.text, answer.thought, answer.token_ids, answer.finish_reason, claims]
    return sha256(json.dumps(read).encode()).hexdigest()


def _plain(one: Candidate) -> list[object]:
    return [one.token, None if one.bytes is None else one.bytes.hex(), one.logprob, one.token_id]


class Digests:
    """The digest of every answer, computed once for each."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Reply | NotJudged, str]] = {}

    def __call__(self, answer: Reply | NotJudged) -> str:
        known = self._known.get(id(answer))
        if known is None or known[0] is not answer:
            known = self._known[id(answer)] = (answer, digest_of(answer))
        return known[1]


def refuse_others(
    kept: Iterable[tuple[str, str | None]],
    outcomes: Mapping[str, Outcome],
    *,
    where: Path,
    digest: Callable[[Reply | NotJudged], str] = digest_of,
) -> None:
    """Raise ConfigError unless every score is that of the answer which the run folder holds.

    `kept` gives the probe of each score and the digest that it carries, `where` the file.
    """
    digests: dict[str, str] = {}
    for probe_id, carried in kept:
        if carried is None:
            raise ConfigError(
                f"{where}: probe {probe_id[:80]}: made before scores carried digests of their "
                f"replies; run `verifier score --anew` on the run folder"
            )
        if probe_id not in digests:
            outcome = outcomes.get(probe_id)
            digests[probe_id] = "no answer"
            if isinstance(outcome, Reply | NotJudged):
                digests[probe_id] = digest(outcome)
        if digests[probe_id] != carried:
            raise ConfigError(
                f"{where}: probe {probe_id[:80]}: the score is not that of the reply in the "
                f"exchanges; run `verifier score --anew` on the run folder, or restore it from a "
                "copy"
            )


def scored_columns(run: Path) -> frozenset[str]:
    """The weights and columns of which a run folder has scores, by whatever version."""
    return frozenset(str(line.get("weights")) for line in read_lines(run / SCORES))


def forget_scores(run: Path) -> None:
    """Remove every score of a run folder, and its ledger.

    Raises ConfigError when the folder of text completions is a link.
    """
    completions = run / COMPLETIONS
    if completions.is_symlink():
        raise ConfigError(f"{completions}: is a link; a run folder holds plain files only")
    for name in (LEDGER, SCORES, SAMPLED_SCORES, REPEATS, CONTEXT_SCORES):
        (run / name).unlink(missing_ok=True)
    for name in (LEDGER, SCORES):
        (completions / name).unlink(missing_ok=True)


def rounded(score: ReplyScore) -> ReplyScore:
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


def append_score(run: Path, scored: Scored) -> None:
    """Add a score to the file of a run folder."""
    append_line(run / SCORES, _to_json(scored))


def read_scores(run: Path) -> list[Scored]:
    """Every score of a run folder, in the order of writing. Raises ConfigError for a bad line."""
    path, found = run / SCORES, []
    advice = "remove the file and run `verifier score` again"
    for number, scored in enumerate(read_rows(path, Scored, advice=advice), 1):
        uneven = _uneven(scored)
        if uneven is not None:
            raise ConfigError(f"{path}:{number}: {uneven}; {advice}")
        found.append(scored)
    return found


class ScoreBook:
    """The scores of a run folder: read once, and appended to as they come.

    What is made of the scores of a reply is kept until one more comes.
    """

    def __init__(
        self, run: Path, *, digest: Callable[[Reply | NotJudged], str] = digest_of
    ) -> None:
        """Raises ConfigError for a bad line."""
        self.run, self.digest = run, digest
        self.by_probe: dict[str, dict[str, Scored]] = {}
        self.rows: dict[str, Row] = {}  # by probe: the cells of its scores
        #: The ledger that the file of it holds, and what scored it; None: not known.
        self.written: tuple[Ledger, dict[str, str]] | None = None
        for scored in read_scores(run):
            self._add(scored)

    def _add(self, scored: Scored) -> None:
        self.by_probe.setdefault(scored.probe_id, {})[scored.weights] = scored
        self.rows.pop(scored.probe_id, None)

    def keep(self, scored: Scored, reply: Reply) -> None:
        """Add a score to the file, and to what is known."""
        scored = replace(scored, reply_sha256=self.digest(reply))
        append_score(self.run, scored)
        self._add(scored)

    def has(self, probe_id: str, weights: str) -> bool:
        """Whether a reply is scored under a column."""
        return weights in self.by_probe.get(probe_id, {})

    def read_as(self, probe_id: str) -> Aligned:
        """The token ids that a reply is read as, by the published weights."""
        return self.by_probe[probe_id][REFERENCE].aligned

    def refuse_others(self, outcomes: Mapping[str, Outcome]) -> None:
        """Raise ConfigError unless every score is that of the answer on record."""
        scores = (one for columns in self.by_probe.values() for one in columns.values())
        carried = ((one.probe_id, one.reply_sha256) for one in scores)
        refuse_others(carried, outcomes, where=self.run / SCORES, digest=self.digest)


def _to_json(scored: Scored) -> dict[str, Any]:
    aligned = fields_of(scored.aligned) | {"left_out": sorted(scored.aligned.left_out)}
    return {
        "probe_id": scored.probe_id,
        "weights": scored.weights,
        "aligned": aligned,
        "score": fields_of(scored.score),
        "reply_sha256": scored.reply_sha256,
    } | ({"lost": scored.lost} if scored.lost else {})


def _uneven(scored: Scored) -> str | None:
    """What has not one entry per token of the reply; None: everything has."""
    aligned, score = scored.aligned, scored.score
    parts = {
        "aligned.candidates": aligned.candidates,
        "aligned.reported": aligned.reported,
        "aligned.own": aligned.own,
        "score.logprobs": score.logprobs,
        "score.ranks": score.ranks,
        "score.entropies": score.entropies,
        "score.top_ids": score.top_ids,
        "score.top_logprobs": score.top_logprobs,
        "score.candidate_logprobs": score.candidate_logprobs,
    }
    tokens = len(aligned.reply_ids)
    for name, part in parts.items():
        if part is not None and len(part) != tokens:
            return f"{name}: has {len(part)} entries, the reply {tokens} tokens"
    if len(set(map(len, score.top_logprobs))) > 1:
        return "score.top_logprobs: of different lengths"
    for name, each in (("reported", aligned.reported), ("candidates", aligned.candidates)):
        named = aligned.candidates if name == "reported" else score.candidate_logprobs
        if each is not None and named is not None and [*map(len, each)] != [*map(len, named)]:
            return f"aligned.{name}: not as many at each position as were named"
    return None
