"""The ledger: log p(reply | hypothesis) in nats, one row per reply, one column per hypothesis.

A column is weights x scale: the weights that score the reply, and the scale of the noise on their
logits. A template column is the published weights after another rendering of the prompt. Two
channels fill cells: the greedy text, and the log-probabilities that the endpoint reports.
Everything downstream reads this and knows nothing of models or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import mul
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np

from verifier.errors import ConfigError
from verifier.evidence.arrays import Array, Mask, log_sum_exp
from verifier.evidence.hazards import WINDOW
from verifier.files.run_folder import LEDGER
from verifier.files.stored import check_value, read_record
from verifier.probes import OF_PACK
from verifier.records import (
    REFERENCE,
    Between,
    Count,
    Nats,
    Place,
    ReplyScore,
    Version,
    fields_of,
)

SCHEMA_VERSION = 1

#: Scales of the logit noise for greedy text. At 1 the column is sampling at temperature 1.
TEXT_SCALES: Array = 10.0 ** np.linspace(-2, 0, 41)

#: Scales of the difference between reported and reference log-probabilities (nats).
LOGPROB_SCALES: Array = 10.0 ** np.linspace(-2.5, 0.5, 61)

#: Share of a column's own distribution at scale 1 mixed into it, so that no single position can
#: contribute more than about log(1 / FLOOR) nats between two scales of the same weights.
FLOOR = 1e-3

#: Tokens that a rare one is drawn from; vocabularies have 30,000 to 260,000.
VOCABULARY = 100_000

#: How the name of a template column begins; the name of its rendering follows.
TEMPLATE = "template:"

#: How the name of a penalty's column of greedy replies begins; the sampler's name follows.
SAMPLER = "sampler:"

#: How the name of a column begins of greedy replies under a default of the publisher's.
DEFAULT = "default:"

#: By how much a token must be outranked, in nats: far more than any rounding.
OUTRANKED_BY = 0.5

#: Degrees of freedom of the Student-t of reported log-probabilities.
LOGPROB_DF = 4.0

#: Reported log-probabilities were processed (divided by a temperature, made one-hot), and say
#: nothing about the weights, when they correlate with the reference's above MIN_CORRELATION at a
#: slope further than MAX_SLOPE_ERROR from 1, or at a slope above MAX_SLOPE, which noise never
#: brings about. So were values that are all alike: a filler.
MIN_CORRELATION = 0.97
MAX_SLOPE_ERROR = 0.25
MAX_SLOPE = 2.0


TextCells = Annotated[tuple[Nats, ...], Between(len(TEXT_SCALES), len(TEXT_SCALES))]
Expected = Annotated[
    tuple[Annotated[float, Between(0, 1e9)], ...], Between(len(TEXT_SCALES), len(TEXT_SCALES))
]
LogprobCells = Annotated[tuple[Nats, ...], Between(len(LOGPROB_SCALES), len(LOGPROB_SCALES))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What is kept of the log-probabilities that an endpoint reports with one reply.

    Counts are of positions: such as no noise of logits brings about. `gains` are log-likelihood
    ratios, of each fault that reports may have against noise of any scale. See `reported`.
    """

    given: Count  # with a value for the token that is given
    named: Count  # that name another known token beside it
    alike: Count = 0  # of one value for all tokens, where the weights part them
    constant: Count = 0  # of the reply's commonest value for whatever is given, and wrongly
    listed: Count = 0  # where the token given is among the alternatives
    apart: Count = 0  # of these, where it has another value there
    copied: Count = 0  # with the very alternatives of another position, and wrongly
    fillers: Count = 0  # with alternatives that share one value far below what the weights say
    misranked: Count = 0  # where another token outranks the one that text and weights agree on
    step: Annotated[float, Between(-1, 1e6)] | None = None  # of rounding; 0: bfloat16; None: none
    rounding: Annotated[float, Between(0, 1e6)] = 0.0  # the error that this makes, root mean square
    slope: Annotated[float, Between(-1e6, 1e6)] = 1.0  # of what is reported on what the weights say
    gains: dict[str, Nats] = field(default_factory=dict)  # fault -> nats
    digest: str | None = None  # of all alternatives; None: too few to tell replies apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """How the tokens of one reply stand to a column's own choices: for readers, never judged."""

    differing: Count  # tokens that are not the likeliest
    expected: Expected  # how many would be on average, per TEXT_SCALES, see `differing_cells`
    worst: Place | None  # the least likely of them; None: there is none


#: Tokens at risk, below 0 where it was left at the last of them, see `hazards.Leaving.told`.
Told = Annotated[int, Between(-WINDOW, WINDOW)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """How one reply stands to the replies of a trusted host, where no likelihood is known.

    Every one is of this question: the n-th of each are read beside each other.
    """

    target: Told  # beside every path that is known of the question
    alone: Told  # beside the trusted host's first reply
    itself: Told  # the trusted host asked again, beside its first reply
    second: Told | None = None  # another trusted host beside that; None: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The cells of one reply."""

    probe_id: str
    tokens: Count  # completion tokens scored
    left_out: Count  # completion tokens left out as ambiguous
    text: dict[str, TextCells]  # weights or template column -> log p per TEXT_SCALES
    logprob: LogprobCells | None  # reference weights, per scale of LOGPROB_SCALES
    logprob_problem: str | None  # why `logprob` is None
    prompt_tokens: Count | None = None  # as the endpoint counts; None: it did not
    rendered: dict[str, Count] = field(default_factory=dict)  # rendering -> prompt tokens it makes
    panel: bool = False  # asked to tell templates apart, and read for nothing else
    unjudged: str | None = None  # why it has no cells and speaks by its count alone
    strata: tuple[str, ...] = ()  # how it was asked, see `labels_of`
    single: dict[str, TextCells] = field(default_factory=dict)  # sampler of single tokens
    outranked: Count | None = None  # tokens not the likeliest by its own words; None: untold
    reported: Reported | None = None  # None: nothing was, or an older version's row
    choices: dict[str, Choices] = field(default_factory=dict)  # column; {}: an older version's row
    reply_sha256: str | None = None  # of the answer, see `digest_of`; None: an older version's row
    left: Left | None = None  # None: likelihoods are known


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRow:
    """The cells of one reply that was sampled at temperature 1: a section of its own."""

    probe_id: str
    tokens: Count  # completion tokens scored
    left_out: Count
    cells: dict[str, Nats]  # sampler -> log p; {}: not scored
    problem: str | None  # why not
    reply_sha256: str | None = None  # as that of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A reply to a question that was asked before."""

    probe_id: str
    otherwise: bool  # whether it was asked in other words
    came_again: bool  # whether it is the text of an earlier reply
    log_p: Annotated[
        float, Between(-1e12, 0)
    ]  # published log-probability of the earlier texts together, before SLACK
    reply_sha256: str | None = None  # of the reply, see `digest_of`; None: an older version's line


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All rows, in the order in which the probes were planned; and those of sampled replies."""

    rows: tuple[Row, ...]
    sampled: tuple[SampledRow, ...] = ()
    repeats: tuple[Repeat, ...] = ()  # of sampled replies, against earlier ones
    engine: dict[str, str] = field(default_factory=dict, compare=False)  # what scored, by its words

    @property
    def ordinary(self) -> Ledger:
        """The rows of ordinary probes: what calibration speaks of, and a verdict rests on. Not of
        questions that a host may know: what it serves to these it may serve to nobody else."""
        fresh = (row for row in self.with_known.rows if not OF_PACK.keys() & {*row.strata})
        return replace(self, rows=tuple(fresh))

    @property
    def with_known(self) -> Ledger:
        """The same with questions that a host may know."""
        rows = tuple(row for row in self.rows if not row.panel and row.unjudged is None)
        return replace(self, rows=rows)

    def text(self, weights: str = REFERENCE) -> Array:
        """Cells [n, S] of the text channel under `weights`, of the rows scored under them."""
        found = [row.text[weights] for row in self.rows if weights in row.text]
        return np.array(found, dtype=float).reshape(len(found), len(TEXT_SCALES))

    def single(self, sampler: str) -> tuple[Array, Array]:
        """Cells [n, S] with single tokens changed, and without, of the rows that have them."""
        rows = [row for row in self.rows if sampler in row.single and REFERENCE in row.text]
        found = np.array([row.single[sampler] for row in rows], dtype=float)
        return found.reshape(len(rows), len(TEXT_SCALES)), replace(self, rows=tuple(rows)).text()

    def logprob(self) -> Array:
        """Cells [m, S] of the logprob channel, of the rows that have it."""
        found = [row.logprob for row in self.rows if row.logprob is not None]
        return np.array(found, dtype=float).reshape(len(found), len(LOGPROB_SCALES))


def text_cells(score: ReplyScore, kept: Sequence[int]) -> tuple[float, ...]:
    """log p of a greedy reply at every scale, from the positions `kept`.

    With Gumbel noise of scale s on the logits z, the likeliest token has probability
    softmax(z / s)[y]. The k largest log-probabilities give its normaliser for s <= 1: the
    remaining mass r contributes at most r * exp(l_k (1/s - 1)) with l_k the k-th largest, and that
    bound is used. It is exact at s = 1 and negligible below s = 0.25; between, it lowers the
    likelihood of a column: on the embedded model by at most 0.002 nats per token at s = 0.32 and
    0.03 at 0.63 to 0.8, which the margins of the classes (`variants`) exceed by far.

    From few of the largest that bound is no good: it lowers the scales that honest hosts have too,
    and the ratio of a scale of no such loss (1 is one) to them has a mean above 1. A score of `few`
    is therefore judged by p(token | it is among the k named), which needs no more than they; a
    token beyond them says nothing at any scale. Null: noise of scale s, whatever it is. Which k are
    named is settled by what came before the token, so the mean of the ratio of two scales is
    p(among) * 1 + p(beyond) * 1 = 1 at each token, in either direction: products of such are
    martingales (Cox 1975, "Partial likelihood"). It costs power against hosts whose tokens are
    seldom among the k.
    """
    at = list(kept)
    if not at:
        return tuple(0.0 for _ in TEXT_SCALES)
    return tuple(float(v) for v in _positions(score, at).sum(axis=0))


def dropped_cells(score: ReplyScore, kept: Sequence[int], share: float) -> tuple[float, ...]:
    """log p of a greedy reply in which the likeliest token is passed over with probability `share`.

    The next likeliest under the same noise then takes its place, wherever the margin is large too;
    noise of the weights flips near-ties.
    """
    at = list(kept)
    if not at:
        return tuple(0.0 for _ in TEXT_SCALES)
    chosen = np.array(score.logprobs)[at][:, None]  # [T, 1]
    first = np.array(score.ranks)[at][:, None] == 1
    inverse = 1 / TEXT_SCALES
    top = np.array([score.top_logprobs[t] for t in at])[:, 1:]  # [T, k - 1]
    normaliser = log_sum_exp(top[:, :, None] * inverse, axis=1)  # [T, S]
    second = np.where(first, -np.inf, np.minimum(chosen * inverse - normaliser, 0.0))
    mixed = np.logaddexp(np.log1p(-share) + _positions(score, at), np.log(share) + second)
    return tuple(float(v) for v in np.where(_speaks(score, at), mixed, 0.0).sum(axis=0))


def rare_cells(score: ReplyScore, kept: Sequence[int], share: float) -> tuple[float, ...]:
    """log p of a greedy reply in which any token at all is put in with probability `share`."""
    at = list(kept)
    if not at:
        return tuple(0.0 for _ in TEXT_SCALES)
    any_token = np.log(share / VOCABULARY)
    mixed = np.logaddexp(np.log1p(-share) + _positions(score, at), any_token)
    return tuple(float(v) for v in np.where(_speaks(score, at), mixed, 0.0).sum(axis=0))


def differing_cells(score: ReplyScore, kept: Sequence[int]) -> tuple[float, ...]:
    """How many of the positions `kept` would not have the likeliest token, on average, per scale.

    Conditional on this very reply: each position after what was said before it, under noise of that
    scale as `text_cells` has it.
    """
    first = tuple(row[0] for row in score.top_logprobs)
    likeliest = replace(score, logprobs=first, ranks=(1,) * len(first))
    at = list(kept)
    if not at:
        return tuple(0.0 for _ in TEXT_SCALES)
    return tuple(float(v) for v in (1 - np.exp(_positions(likeliest, at))).sum(axis=0))


def event_cells(
    top: Sequence[float], rest: float, members: Sequence[int], *, few: bool = False
) -> Array:
    """log p [S] that one token of a greedy reply is among some of the k likeliest, at every scale.

    `top` are the k largest log-probabilities and `rest` that of all other tokens together;
    `members` are places in `top`; (): the token is none of them. As `text_cells` has it, the
    others are one outcome whose share at a scale is that of its bound, so that the k + 1 outcomes
    have one distribution at each scale, which sums to 1 where `top` and `rest` do. The bound makes
    "none of the k" as likely as it can be.

    Of `few`, which need not be the largest, a token is judged by p(it | it is one of those that are
    named), and one beyond them says nothing.
    """
    some, others = np.array([top]), np.array([rest])
    if few:
        inside = np.array([[bool(members)]])
        chosen = some[:, list(members)] if members else some
        each = [_among_named(one, some, inside)[0] for one in chosen.T]
        return np.asarray(
            np.minimum(log_sum_exp(np.array(each), axis=0), 0.0) if members else each[0]
        )
    normaliser, tail = _normaliser(some, others)
    if members:
        chosen = some[0, list(members)]  # [m]
        whole = log_sum_exp(chosen[:, None] * (1 / TEXT_SCALES), axis=0)
        share = log_sum_exp(chosen, axis=0)
    else:
        whole, share = tail[0], others[0]
    log_p = np.minimum(whole - normaliser[0], 0.0)
    return np.asarray(np.logaddexp(np.log1p(-FLOOR) + log_p, np.log(FLOOR) + share))


def _positions(score: ReplyScore, at: Sequence[int]) -> Array:
    """log p [T, S] of each token of a greedy reply, see `text_cells`."""
    chosen = np.array(score.logprobs)[list(at)]  # [T]
    top = np.array([score.top_logprobs[t] for t in at])  # [T, k]
    if score.few:
        return _among_named(chosen, top, _speaks(score, at))
    rest = np.log(np.clip(1 - np.exp(top).sum(axis=1), 1e-30, None))  # [T]
    normaliser, _ = _normaliser(top, rest)
    log_p = np.minimum(chosen[:, None] * (1 / TEXT_SCALES) - normaliser, 0.0)
    return np.asarray(np.logaddexp(np.log1p(-FLOOR) + log_p, np.log(FLOOR) + chosen[:, None]))


def _normaliser(top: Array, rest: Array) -> tuple[Array, Array]:
    """log of the sum over all tokens [T, S], of the k largest `top` [T, k] and a bound on the mass
    of the `rest` [T]; and that bound [T, S]."""
    inverse = 1 / TEXT_SCALES  # [S]
    tail = rest[:, None] + top[:, -1:] * (inverse - 1)  # [T, S]
    scaled = top[:, :, None] * inverse  # [T, k, S]
    return np.logaddexp(log_sum_exp(scaled, axis=1), tail), tail


def _among_named(chosen: Array, top: Array, named: Mask) -> Array:
    """log p [T, S] of each token given that it is one of the k named; 0 of one that is not.

    The share of the distribution at scale 1 is FLOOR of all of it, so less of what is named.
    """
    share = FLOOR * np.exp(top).sum(axis=1)[:, None]
    share = share / (1 - FLOOR + share)
    scaled = top[:, :, None] / TEXT_SCALES
    log_p = np.minimum(chosen[:, None] / TEXT_SCALES - log_sum_exp(scaled, axis=1), 0.0)
    sampled = np.minimum(chosen - log_sum_exp(top, axis=1), 0.0)[:, None]
    mixed = np.logaddexp(np.log1p(-share) + log_p, np.log(share) + sampled)
    return np.asarray(np.where(named, mixed, 0.0))


def _speaks(score: ReplyScore, at: Sequence[int]) -> Mask:
    """Which tokens [T, 1] say something: all, or of a score of `few` those among the named."""
    return np.array([[not score.few or score.ranks[t] <= len(score.top_logprobs[t])] for t in at])


def logprob_cells(
    reported: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> tuple[float, ...] | str:
    """log density of reported log-probabilities at every scale; or why they say nothing.

    At each position the differences of the named tokens are centred (a shift of all logits
    changes nothing) and follow a (k-1)-dimensional Student-t with LOGPROB_DF degrees of freedom:
    heavy tails, one common factor per position. Positions that name fewer than two known tokens
    are passed over.
    """
    pairs = [pair for pair in zip(reported, reference, strict=True) if len(pair[0]) >= 2]
    if not pairs:
        return "fewer than two tokens named at every position"
    problem = _processed(pairs)
    if problem:
        return problem
    off = [[t - k for t, k in zip(told, known, strict=True)] for told, known in pairs]
    squares = np.array([product(c, c) for c in map(centred, off)])[:, None]
    df, free = LOGPROB_DF, np.array([len(told) - 1.0 for told, _ in pairs])[:, None]
    far = np.log1p(squares / (df * LOGPROB_SCALES**2))  # [n, S]
    log_p = -(free * np.log(LOGPROB_SCALES) + (df + free) / 2 * far).sum(axis=0)
    return tuple(log_p.tolist())


def count_outranked(reported: Sequence[Sequence[float]]) -> int | None:
    """Positions at which the token that was given is not the likeliest by the endpoint's own words.

    The given token comes first. At temperature 0 it is the likeliest, but for rounding. None where
    no other token is told of.
    """
    if not any(len(told) > 1 for told in reported):
        return None
    return sum(len(told) > 1 and max(told) > told[0] + OUTRANKED_BY for told in reported)


def centred(values: Sequence[float]) -> list[float]:
    """Values less their mean. Of the few of one position, arrays would take ten times as long."""
    mean = sum(values) / len(values)
    return [value - mean for value in values]


def product(one: Sequence[float], other: Sequence[float]) -> float:
    """The inner product of the values of one position."""
    total: float = sum(map(mul, one, other))
    return total


def _processed(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> str | None:
    """Whether the reported values were rescaled: in step with the reference's, at another slope.

    Other weights add noise, which also flattens the slope, but then they are out of step.
    """
    told = np.array([value for told, _ in pairs for value in centred(told)])
    known = np.array([value for _, known in pairs for value in centred(known)])
    if np.abs(told).max() < 1e-9:
        return "reported log-probabilities are all alike, so not the model's own"
    shared, square = float(told @ known), float(known @ known)
    slope = shared / max(square, 1e-12)
    correlation = shared / max(float(np.sqrt((told @ told) * square)), 1e-12)
    in_step = correlation > MIN_CORRELATION and abs(slope - 1) > MAX_SLOPE_ERROR
    if slope > MAX_SLOPE or in_step:
        return f"reported log-probabilities are scaled by about {slope:.2f}, so not the model's own"
    return None


def ledger_to_json(ledger: Ledger) -> dict[str, Any]:
    """The wire form of a ledger."""
    return {
        "schema_version": SCHEMA_VERSION,
        "text_scales": [float(s) for s in TEXT_SCALES],
        "logprob_scales": [float(s) for s in LOGPROB_SCALES],
        "rows": [_row_to_json(row) for row in ledger.rows],
        **({"sampled": [fields_of(row) for row in ledger.sampled]} if ledger.sampled else {}),
        **({"repeats": [fields_of(one) for one in ledger.repeats]} if ledger.repeats else {}),
    }


def _row_to_json(row: Row) -> dict[str, Any]:
    choices = {
        column: fields_of(one) | {"worst": None if one.worst is None else fields_of(one.worst)}
        for column, one in row.choices.items()
    }
    reported = None if row.reported is None else fields_of(row.reported)
    left = None if row.left is None else fields_of(row.left)
    return fields_of(row) | {"reported": reported, "choices": choices, "left": left}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFile:
    """All that `ledger.json` holds."""

    schema_version: Version
    text_scales: tuple[float, ...]
    logprob_scales: tuple[float, ...]
    rows: tuple[Row, ...]
    sampled: tuple[SampledRow, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    engine: dict[str, str] | None = None


_ADVICE: Final = "run `verifier score` again"


def read_ledger(run: Path) -> Ledger:
    """The ledger of a run folder.

    Raises ConfigError when there is none, when it is malformed or of other scales.
    """
    path = run / LEDGER
    found = read_record(path, LedgerFile, advice=_ADVICE)
    if found.engine is None:
        raise ConfigError(f"{path}: engine: missing; {_ADVICE}")
    return _ledger(found, where=str(path))


def ledger_from_json(value: dict[str, Any], where: str) -> Ledger:
    """What `ledger_to_json` made, back again. Raises ConfigError as `read_ledger` does."""
    return _ledger(check_value(value, LedgerFile, where=where, advice=_ADVICE), where=where)


def _ledger(found: LedgerFile, *, where: str) -> Ledger:
    for name, told, scales in (
        ("text_scales", found.text_scales, TEXT_SCALES),
        ("logprob_scales", found.logprob_scales, LOGPROB_SCALES),
    ):
        # but for the last digits of another machine
        if len(told) != len(scales) or not np.allclose(np.array(told), scales, rtol=1e-9, atol=0):
            raise ConfigError(
                f"{where}: {name} are not the {len(scales)} from {scales[0]:.3g} to "
                f"{scales[-1]:.3g} of this version; {_ADVICE}"
            )
    for number, row in enumerate(found.rows):
        for name, part in (("text", row.text), ("rendered", row.rendered)):
            if part and REFERENCE not in part:
                raise ConfigError(f"{where}: rows[{number}].{name}.{REFERENCE}: missing; {_ADVICE}")
    return Ledger(
        rows=found.rows, sampled=found.sampled, repeats=found.repeats, engine=found.engine or {}
    )
