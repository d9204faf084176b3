"""The scores file: what weights say of each reply, one line per reply and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

from verifier.align import Aligned
from verifier.errors import ConfigError
from verifier.folder import SCORES, append_line, read_lines
from verifier.records import ReplyScore

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
