"""The evidence of long prompts and long replies: whether a host cuts them, where, and to what.

Null: the host reads each prompt whole, renders it as published, and ends a reply only where the
published model does, where it was asked to, or where it says that it has a limit (finish_reason
"length"), with logit noise of any scale of the grid. The
alternative of a cut is a mixture over places and windows with equal weights fixed in advance, noise
free; cuts that were never scored add nothing, so choosing what to score by what was seen loses
power, never the level. The alternative of a ceiling is a reply that ends at some length below the
one asked for, each as likely. Both are likelihood ratios against the *best* noise of the null, so
their means are at most 1 at every stopping time (Ville 1939; `stats.log_e_value`). Assumptions:
replies are independent, and a row under noise follows the ledger's model. Pure arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.calibration import Channel
from verifier.evidence.e_values import log_mean_exp, spread_rows
from verifier.evidence.ledger import TEXT_SCALES

#: Where a prompt is cut. Of a kept template only what the user said is cut.
Place = Literal["front", "front-kept", "middle", "end", "end-kept"]
PLACES: Final[tuple[Place, ...]] = get_args(Place)

#: What each place means, in words.
PLACE_WORDS: Final[Mapping[str, str]] = {
    "front": "the front of the prompt is cut, its template included",
    "front-kept": "the front of the message is cut",
    "middle": "the middle of the prompt is cut",
    "end": "the end of the prompt is cut, its template included",
    "end-kept": "the end of the message is cut",
}

#: Long prompts asked at most.
REQUESTS: Final = 8

#: Long replies asked for at most.
LONG_REPLIES: Final = 2

#: Full-length prompts that fit, after which an endpoint is asked no more.
FULL: Final = 5

#: Windows, as shares of the prompt, that must be excluded before a context counts as whole.
MARKS: Final = (0.9, 0.5)

#: Nats by which a reply tells that its prompt was read whole, where that guides what is asked next.
TELLING: Final = math.log(20)

#: A window is measured once it is known to so many tokens, or so large a share of what was asked.
NARROW: Final = 24
NARROW_SHARE: Final = 0.02

#: A count of prompt tokens so far below the rendered length hints at a cut.
SHORT: Final = 16

#: Tokens of a reply to a long prompt.
CONTEXT_TOKENS: Final = 48

#: Share of the evidence of an audit that asks about its context; a ceiling gets as much.
CONTEXT_SHARE: Final = 0.02

#: Replies that are cut at one ceiling are read as so many tokens more or less.
SAME: Final = 2

#: A cut so many nats behind the best under one prompt is scored on no other.
BEHIND: Final = 15.0

#: What is said of a reply that a limit ended: the one asked for or, where it is shorter, another.
LIMITED: Final = "length"

#: No e-value counts for less: mixed with others, what is lost would be lost anyway.
_LEAST: Final = 1e-6

#: A reply is at full length from this share of the tokens asked for: token counts differ a little.
WHOLE: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One way to cut prompts."""

    place: Place
    window: int  # tokens of a prompt that are read

    @property
    def name(self) -> str:
        return f"{self.place}@{self.window}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRow:
    """A long prompt's reply: its cells read whole, and under the cuts that were scored."""

    probe_id: str
    length: int  # tokens of the prompt as published
    counted: int | None  # as the endpoint counts; None: it did not
    whole: tuple[float, ...]  # log p per TEXT_SCALES
    cuts: Mapping[str, tuple[float, ...]]  # by the name of a cut


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingRow:
    """A reply that was to be long."""

    probe_id: str
    asked: int  # tokens
    tokens: int  # of its text, as the reference reads it
    finish_reason: str | None
    end: tuple[float, ...] | None  # log p of ending there, per TEXT_SCALES; None: at full length

    @property
    def is_limited(self) -> bool:
        """Whether the endpoint says that a limit of its own ended it, as a refused prompt does."""
        return self.end is not None and self.finish_reason == LIMITED


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextEvidence:
    """What long prompts say, before any threshold."""

    rows: int
    longest: int  # tokens of the longest prompt
    log_e: float  # of a cut, against the whole prompt at any noise
    log_e_whole: float  # of the whole prompt, noise free, against the cut hardest to exclude
    best: Cut | None  # the likeliest
    windows: tuple[int, int] | None  # the least and the largest window near the likeliest's place
    counted: tuple[int, int] | None  # (rendered, as counted) of a prompt that counts too short


def read_cut(name: str) -> Cut:
    """A cut by its name. Raises ValueError for a name that is none."""
    place, _, window = name.partition("@")
    found: Place | None = next((p for p in PLACES if p == place), None)
    if found is None or not window.isascii() or not window.isdigit():
        raise ValueError(f"no cut {name!r}")
    return Cut(place=found, window=int(window))


def cut(ids: Sequence[int], how: Cut, *, head: int, tail: int) -> tuple[int, ...]:
    """A prompt as a host reads it that cuts what is too long.

    `head` and `tail` are how many ids of the template stand before and after the user's words.
    """
    ids, window = tuple(ids), how.window
    if len(ids) <= window:
        return ids
    match how.place:
        case "front":
            return ids[len(ids) - window :]
        case "front-kept":
            return ids[:head] + ids[len(ids) - max(tail, window - head) :]
        case "middle":
            return ids[: window // 2] + ids[len(ids) - (window - window // 2) :]
        case "end":
            return ids[:window]
        case "end-kept":
            return ids[: max(head, window - tail)] + ids[len(ids) - tail :]


def weigh_context(
    rows: Sequence[LongRow], *, tokens: int, channel: Channel
) -> ContextEvidence | None:
    """The evidence of long prompts, at most `tokens` long; None without any."""
    if not rows:
        return None
    whole = _totals([row.whole for row in rows], channel)
    scored = {
        name: _totals([_under(row, name) for row in rows], channel)
        for name in dict.fromkeys(name for row in rows for name in row.cuts)
        if all(row.length <= read_cut(name).window or name in row.cuts for row in rows)
    }
    each = {name: log_mean_exp(totals) for name, totals in scored.items()}
    log_e, best, windows = -math.inf, None, None
    if each:
        mixed = float(np.logaddexp.reduce(list(each.values())))
        log_e = mixed - math.log(len(PLACES) * tokens) - float(whole.max())
        best = read_cut(max(each, key=lambda name: each[name]))
        windows = _windows(each, best)
    hardest = max((float(totals.max()) for totals in scored.values()), default=None)
    longest = max(row.length for row in rows)
    short = [row for row in rows if row.counted is not None and row.counted < row.length - SHORT]
    return ContextEvidence(
        rows=len(rows),
        longest=longest,
        log_e=max(log_e, math.log(_LEAST)),
        log_e_whole=0.0 if hardest is None else log_mean_exp(whole) - hardest,
        best=best,
        windows=windows,
        counted=None if not short else (short[0].length, short[0].counted or 0),
    )


def _windows(each: Mapping[str, float], best: Cut) -> tuple[int, int]:
    """The windows that the likeliest place leaves: those near the best, and up to what is not.

    Between two windows that were scored nothing is known.
    """
    tried = {read_cut(name).window: value for name, value in each.items()
             if read_cut(name).place == best.place}  # fmt: skip
    near = [window for window, value in tried.items() if value >= tried[best.window] - math.log(20)]
    below = [window for window in tried if window < min(near)]
    above = [window for window in tried if window > max(near)]
    return (
        max(below) + 1 if below else min(near),
        min(above) - 1 if above else max(near),
    )


def weigh_ceiling(rows: Sequence[CeilingRow], *, channel: Channel) -> float:
    """Log e-value that replies end below the length asked for, where the model does not end them.

    The alternative: the first ends at any length, each as likely, without a word of a limit; of the
    next, half end within SAME tokens of it, and half at any length again. One at full length ends
    the bet, and so does one that is said to be cut at a limit: neither can be of the alternative.
    """
    log_e = 0.0
    for row in rows:
        if row.end is None or row.is_limited:
            return math.log(_LEAST)
        chance = 1 / row.asked
        if row is not rows[0]:
            close = abs(row.tokens - rows[0].tokens) <= SAME
            chance = 0.5 * chance + (0.5 / (2 * SAME + 1) if close else 0.0)
        log_e += math.log(chance) - channel.learning_rate * max(row.end)
    return log_e


def fits(row: LongRow, channel: Channel) -> bool:
    """Whether a reply is likelier to the whole prompt with little noise than with much.

    Of long prompts honest arithmetic makes more noise than calibration knows; another prompt's
    reply looks like samples, scale 1. Between them is the middle, on a logarithmic scale. It guides
    what is asked next, and decides nothing.
    """
    totals = _totals([row.whole], channel)
    little = np.asarray(TEXT_SCALES <= math.sqrt(channel.honest_scale))  # noqa: SIM300
    return log_mean_exp(totals[little]) >= log_mean_exp(totals[~little])


def tells(row: LongRow, channel: Channel) -> bool:
    """Whether a reply depends on all of its prompt: likelier to it than under any cut that was
    scored, by TELLING, at any noise of the cut. A reply that fits and does not is no measure."""
    cuts = [cells for name, cells in row.cuts.items() if read_cut(name).window < row.length]
    if not cuts:
        return False
    whole = log_mean_exp(_totals([row.whole], channel))
    return whole - max(float(_totals([cells], channel).max()) for cells in cuts) >= TELLING


def bracket(rows: Sequence[LongRow], channel: Channel) -> tuple[int, int | None]:
    """The longest prompt that is read whole, and the shortest that is not; None: all may be."""
    misfit = [row.length for row in rows if not fits(row, channel)]
    above = min(misfit, default=None)
    whole = [row.length for row in rows if fits(row, channel) and tells(row, channel)]
    return max((n for n in whole if above is None or n < above), default=0), above


def next_length(
    rows: Sequence[LongRow], *, tokens: int, channel: Channel, needed: float, excluded: float
) -> int | None:
    """How long the next prompt is to be; None: no more are needed, or bear asking.

    `needed` is the evidence that names a cut, `excluded` the evidence that excludes them.
    """
    evidence = weigh_context(rows, tokens=tokens, channel=channel)
    if evidence is None:
        return tokens
    if len(rows) >= REQUESTS or evidence.log_e >= needed or evidence.log_e_whole >= excluded:
        return None
    low, high = bracket(rows, channel)
    if high is None:
        return tokens if len(rows) < FULL else None
    return None if high - low <= narrow(tokens) else (low + high) // 2


def narrow(tokens: int) -> int:
    """How closely a window is measured."""
    return max(NARROW, int(NARROW_SHARE * tokens))


def near_best(cuts: Sequence[Cut], row: LongRow) -> list[Cut]:
    """The cuts that may yet be the likeliest after one prompt.

    A prompt that a cut was not scored on, because it is too short for it, was read whole there.
    """
    each = {how: max(row.cuts.get(how.name, row.whole)) for how in cuts}
    best = max(each.values(), default=0.0)
    return [how for how, value in each.items() if value >= best - BEHIND]


_LIMIT: Final = re.compile(
    r"(?:context|length|maximum|limit|window|at most)\D{0,60}?(\d[\d,_]{2,9})", re.IGNORECASE
)


def limit_said(reason: str) -> int | None:
    """The window that a refusal names; None when it names none."""
    found = _LIMIT.search(reason)
    return None if found is None else int(re.sub(r"\D", "", found[1]))


def _under(row: LongRow, name: str) -> tuple[float, ...]:
    return row.whole if row.length <= read_cut(name).window else row.cuts[name]


def _totals(cells: Sequence[Sequence[float]], channel: Channel) -> Array:
    rows = np.array(cells, dtype=float)
    read = channel.learning_rate * spread_rows(rows, TEXT_SCALES, channel.spread)
    return np.asarray(read.sum(axis=0))
