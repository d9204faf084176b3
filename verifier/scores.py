"""The scores file: what weights say of each reply, one line per reply and weights.

Every score carries the digest of the reply that was scored, so that it is held for no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from operator import index
from pathlib import Path
from typing import Any

from verifier.align import Aligned
from verifier.errors import ConfigError
from verifier.folder import (
    COMPLETIONS,
    CONTEXT_SCORES,
    LEDGER,
    REPEATS,
    SAMPLED_SCORES,
    SCORES,
    append_line,
    read_lines,
)
from verifier.records import Candidate, NotJudged, Outcome, Reply, ReplyScore

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
    lost: int = 0  # bytes of the text that a suspect cannot spell
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


def refuse_others(
    kept: Iterable[tuple[str, str | None]], outcomes: Mapping[str, Outcome], *, where: Path
) -> None:
    """Raise ConfigError unless every score is that of the answer which the run folder holds.

    `kept` gives the probe of each score and the digest that it carries, `where` the file.
    """
    digests: dict[str, str] = {}
    for probe_id, digest in kept:
        if digest is None:
            raise ConfigError(
                f"{where}: probe {probe_id[:80]}: made before scores carried digests of their "
                f"replies; run `verifier score --anew` on the run folder"
            )
        if probe_id not in digests:
            outcome = outcomes.get(probe_id)
            digests[probe_id] = "no answer"
            if isinstance(outcome, Reply | NotJudged):
                digests[probe_id] = digest_of(outcome)
        if digests[probe_id] != digest:
            raise ConfigError(
                f"{where}: probe {probe_id[:80]}: the score is not that of the reply in the "
                f"exchanges; run `verifier score --anew` on the run folder, or restore it from a "
                "copy"
            )


def read_digest(value: Mapping[str, Any]) -> str | None:
    """The digest that a score carries. Raises TypeError for what is none."""
    found = value.get("reply_sha256")
    if not isinstance(found, str | None):
        raise TypeError("reply_sha256 is no text")
    return found


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
    path = run / SCORES
    return [_from_json(value, f"{path}:{n}") for n, value in enumerate(read_lines(path), 1)]


def _to_json(scored: Scored) -> dict[str, Any]:
    aligned = asdict(scored.aligned) | {"left_out": sorted(scored.aligned.left_out)}
    return {
        "probe_id": scored.probe_id,
        "weights": scored.weights,
        "aligned": aligned,
        "score": asdict(scored.score),
        "reply_sha256": scored.reply_sha256,
    } | ({"lost": scored.lost} if scored.lost else {})


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
            reply_sha256=read_digest(value),
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
