"""What an endpoint reports of the tokens of one reply: counts and likelihoods of reporting faults.

Reports are right where they differ from the reference's by noise of the logits, of any scale: then
the endpoint reports what it serves, whatever that is. A fault of reporting is another way to come
by the same numbers: alternatives of the position before, logarithms of another base, a value of the
given token that does not belong to the others. Each has a density of its own for the numbers of a
reply, given which tokens are named, and its gain is the log of that against noise of the scale that
suits the reply best. The null is that best scale, so exp(gain) has a mean of at most 1 while the
reports of a reply are right and Student-t noise holds. Where a fault says in which order values
come, not which token has which, its density is shared out evenly among all orders.

What no noise brings about is counted instead: one and the same number for different tokens, two
numbers for one token, the very list of another position. Pure arithmetic; knows nothing of models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.ledger import (
    LOGPROB_DF,
    LOGPROB_SCALES,
    OUTRANKED_BY,
    Reported,
    centred,
    product,
)
from verifier.records import ReplyScore

#: Faults that are told by their likelihood.
BEFORE: Final = "before"  # alternatives of the position before
AFTER: Final = "after"  # of the position after
GIVEN: Final = "given"  # the given token's own value belongs to something else
SCALED: Final = "scaled"  # another base, or divided by a temperature
PENALIZED: Final = "penalized"  # after a penalty on tokens of the reply
UNRELATED: Final = "unrelated"  # as likely as at any other position
UNEVEN: Final = "uneven"  # every position with a scale of its own: no one noise fits

#: What is wrong where numbers from 0 to 1 are reported.
PROBABILITIES: Final = "probabilities, not their logarithms"

#: Nats by which a count must be beyond any rounding: two values of one token, or one that the
#: weights say otherwise.
_APART: Final = 0.01
_WRONG: Final = 0.1

#: Values below which one that comes again and again is a filler, and by how much it is wrong.
_FILLER: Final = -20.0
_FILLER_WRONG: Final = 2.0
_OFTEN: Final = 3

#: Scales of the right part of a fault: up to 1 where nothing else is estimated. A slope or penalty
#: is told from noise only while that is small: noise flattens the slope of the tokens it picks (of
#: the embedded model's fp8 builds to 0.97, of its 4-bit ones to 0.75).
_RIGHT: Final = LOGPROB_SCALES[LOGPROB_SCALES <= 1.0 + 1e-9]
_QUIET: Final = LOGPROB_SCALES[LOGPROB_SCALES <= 0.1 + 1e-9]

#: Slopes that are no rounding of 1, those of base 10 and base 2 among them.
_POWERS: Final = np.linspace(-1.6, 1.6, 100)
_SLOPES: Final = np.append(
    np.exp(_POWERS[np.abs(_POWERS) > 0.07]), [1 / math.log(10), 1 / math.log(2)]
)
_PENALTIES: Final = np.array([0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0])

#: Steps that decimals are rounded to, the coarsest first, and how many values, and how many that
#: differ, it takes to say so.
_STEPS: Final = (1.0, 0.5, 0.25, 0.2, 0.1, 0.05, 0.01)
_ENOUGH: Final = 8
_DISTINCT: Final = 2

#: Positions from which a reply's alternatives are its own.
_TELLING: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One position that names two known tokens or more, the given one first."""

    at: int
    told: Sequence[float]
    known: Sequence[float]  # what the weights say of the same
    ids: tuple[int, ...]
    own: float | None  # what is claimed of the given token among its alternatives

    @property
    def others(self) -> Sequence[float]:
        """What is told of all but the given token."""
        return self.told[1:]


def describe_reports(
    score: ReplyScore,
    *,
    reply_ids: Sequence[int],
    candidates: Sequence[Sequence[int]],
    reported: Sequence[Sequence[float]],
    own: Sequence[float | None] | None,
) -> Reported | None:
    """What is to be kept of the reports on one reply; None where no token has a value.

    `candidates` are the tokens named at each position, `reported` what is claimed for them, and
    `own` the given token's value among its alternatives. `score` has what the weights say of all.
    """
    told = [
        (t, values[0]) for t, (ids, values) in enumerate(zip(candidates, reported, strict=True))
        if ids and ids[0] == reply_ids[t]
    ]  # fmt: skip
    if not told or score.candidate_logprobs is None:
        return None
    places = [
        _Place(
            at=t, told=reported[t], known=score.candidate_logprobs[t],
            ids=tuple(candidates[t]), own=None if own is None else own[t],
        )
        for t, _ in told if len(candidates[t]) > 1
    ]  # fmt: skip
    step, rounding = _rounding([v for row in reported for v in row])
    listed = [p for p in places if p.own is not None]
    return Reported(
        given=len(told),
        named=len(places),
        alike=sum(_range(p.told) < 1e-9 and _range(p.known) > _WRONG for p in places),
        constant=_count_constant(told, score.logprobs),
        listed=len(listed),
        apart=sum(abs(p.told[0] - (p.own or 0.0)) > _APART for p in listed),
        copied=_count_copied(places),
        fillers=_count_fillers(places),
        misranked=sum(
            max(p.others) > p.told[0] + OUTRANKED_BY and score.ranks[p.at] == 1 for p in places
        ),
        step=step,
        rounding=round(rounding, 6),
        slope=_slope(places),
        gains=_gains(places, score, reply_ids) if places else {},
        digest=_digest(places),
    )


# -- what no noise brings about ----------------------------------------------------------------


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _count_constant(told: Sequence[tuple[int, float]], known: Sequence[float]) -> int:
    """Positions of a value that a third of all have, where the weights say another."""
    ((common, count),) = Counter(value for _, value in told).most_common(1)
    wrong = sum(value == common and abs(known[t] - value) > _WRONG for t, value in told)
    return wrong if count > max(2, len(told) / 3) else 0


def _count_copied(places: Sequence[_Place]) -> int:
    """Positions with the very alternatives of one before or after that they suit better."""
    by_list: dict[tuple[tuple[int, float], ...], list[_Place]] = {}
    for place in places:
        by_list.setdefault(_alternatives(place), []).append(place)
    copies = 0
    for alternatives, alike in by_list.items():
        if len(alternatives) > 1 and len(alike) > 1:
            errors = [_error(place) for place in alike]
            copies += sum(error > max(3 * min(errors), _WRONG * 3) for error in errors)
    return copies


def _alternatives(place: _Place) -> tuple[tuple[int, float], ...]:
    """The list as it came: all but the given token, and that with its value in the list."""
    listed = () if place.own is None else ((place.ids[0], place.own),)
    return tuple(sorted((*zip(place.ids[1:], place.others, strict=True), *listed)))


def _error(place: _Place) -> float:
    """Root mean square by which the values of all but the given token are off, centred."""
    return math.sqrt(_square(_off(place)[1:]) / len(place.others))


def _count_fillers(places: Sequence[_Place]) -> int:
    """Positions with a value that comes again and again, far below what the weights say."""
    pairs = [
        (place.at, told, known) for place in places
        for told, known in zip(place.others, place.known[1:], strict=True)
        if told <= _FILLER and known - told > _FILLER_WRONG
    ]  # fmt: skip
    common = Counter(told for _, told, _ in pairs)
    return len({at for at, told, _ in pairs if common[told] >= _OFTEN})


def _rounding(values: Sequence[float]) -> tuple[float | None, float]:
    """The coarsest step that all values lie on, and the root mean square of its error.

    A step of 0 stands for bfloat16: 8 binary digits of each.
    """
    told = np.array([value for value in values if value])
    if len(told) < _ENOUGH or len(set(told.tolist())) < _DISTINCT:
        return None, 0.0
    for step in _STEPS:
        if np.abs(told / step - np.round(told / step)).max() < 1e-6 / step:
            return step, step / math.sqrt(12)
    mantissa, exponent = np.frexp(told)
    if np.abs(mantissa * 256 - np.round(mantissa * 256)).max() < 1e-3:
        steps = np.ldexp(1.0, exponent - 8)
        return 0.0, float(np.sqrt(np.mean(steps**2) / 12))
    return None, 0.0


def _digest(places: Sequence[_Place]) -> str | None:
    if len(places) < _TELLING:
        return None
    lists = [[[n, round(v, 6)] for n, v in _alternatives(place)] for place in places]
    return sha256(repr(lists).encode()).hexdigest()[:16]


# -- likelihoods -------------------------------------------------------------------------------


def _log_t(squares: Array, free: Array, scales: Array) -> Array:
    """log density [.., S] of a Student-t of `free` dimensions at a squared distance, whole."""
    df = LOGPROB_DF
    constant = _log_gamma((df + free) / 2) - math.lgamma(df / 2) - free / 2 * math.log(df * math.pi)
    far = np.log1p(squares[..., None] / (df * scales**2))
    return np.asarray(
        constant[..., None] - free[..., None] * np.log(scales) - (df + free[..., None]) / 2 * far
    )


def _log_gamma(values: Array) -> Array:
    """Of few different values."""
    different, places = np.unique(values, return_inverse=True)
    found = np.array([math.lgamma(value) for value in different.tolist()])
    return found[places].reshape(values.shape)


def _mean(logs: Array) -> float:
    """log of the mean of exp over everything."""
    return float(_means(logs.reshape(1, -1))[0])


def _means(logs: Array) -> Array:
    """log of the mean of exp over each row."""
    most = logs.max(axis=1)
    return np.asarray(most + np.log(np.exp(logs - most[:, None]).mean(axis=1)))


def _off(place: _Place) -> list[float]:
    """By how much what is told differs from what the weights say."""
    return [told - known for told, known in zip(place.told, place.known, strict=True)]


def _square(off: Sequence[float]) -> float:
    return product(around := centred(off), around)


def _gains(
    places: Sequence[_Place], score: ReplyScore, reply_ids: Sequence[int]
) -> dict[str, float]:
    """The log-likelihood of each fault against noise of the best scale."""
    whole = np.array([_square(_off(p)) for p in places])
    free = np.array([len(p.told) - 1.0 for p in places])
    noise = _log_t(whole, free, LOGPROB_SCALES)  # [P, S]
    best = float(noise.sum(axis=0).max())
    top = score.top_logprobs
    profile = np.mean(np.array(top), axis=0).tolist()

    def by_rank(place: _Place, values: Sequence[float] | None) -> Sequence[float] | None:
        return None if values is None else _by_rank(place, values)

    def neighbour(place: _Place, step: int) -> Sequence[float] | None:
        there = place.at + step
        return top[there] if 0 <= there < len(top) else None

    found = {
        BEFORE: _elsewhere(places, lambda p: by_rank(p, neighbour(p, -1))),
        AFTER: _elsewhere(places, lambda p: by_rank(p, neighbour(p, 1))),
        UNRELATED: _elsewhere(places, lambda p: by_rank(p, profile), scales=LOGPROB_SCALES),
        GIVEN: _elsewhere(places, lambda _: None),
        SCALED: _scaled(places, free),
        PENALIZED: _penalized(places, free, reply_ids),
        UNEVEN: float(_means(noise).sum()),
    }
    return {name: round(value - best, 2) for name, value in found.items()}


def _by_rank(place: _Place, values: Sequence[float]) -> Sequence[float] | None:
    """What stands in a sorted list of values for each alternative, the given token's own left out.

    None where the list is too short.
    """
    others = place.others
    if place.own is not None:
        rank = sum(value > place.own for value in others)
        values = (*values[:rank], *values[rank + 1 :])
    if len(values) < len(others):
        return None
    ranked = sorted(range(len(others)), key=lambda n: -others[n])
    centre = dict(zip(ranked, values, strict=False))
    return [centre[n] for n in range(len(others))]


def _elsewhere(
    places: Sequence[_Place],
    centre_of: Callable[[_Place], Sequence[float] | None],
    *,
    scales: Array = _RIGHT,
) -> float:
    """Alternatives that lie around `centre_of` them with one noise, the given token anywhere.

    Where there is no such centre they are right, and only the given token may lie anywhere.
    """
    squares, dimensions, given, orders = [], [], [], 0.0
    for place in places:
        centre, others = centre_of(place), place.others
        size = len(others)
        if centre is not None:
            orders += math.lgamma(size + 2)
        else:
            centre = place.known[1:]
        off = [told - there for told, there in zip(others, centre, strict=True)]
        squares.append(_square(off))
        dimensions.append(size - 1.0)
        own = place.told[0] - place.known[0] - sum(off) / size
        given.append(own**2 * size / (size + 1))
    alternatives = _log_t(np.array(squares), np.array(dimensions), scales).sum(axis=0)
    alone = _log_t(np.array(given), np.ones(len(given)), LOGPROB_SCALES)
    return _mean(alternatives) + float(_means(alone).sum()) - orders


def _moments(places: Sequence[_Place]) -> tuple[Array, Array, Array]:
    """Sums of squares of what is told, of what is known, and of both, centred, by position."""
    pairs = [(centred(p.told), centred(p.known)) for p in places]
    return (
        np.array([product(told, told) for told, _ in pairs]),
        np.array([product(known, known) for _, known in pairs]),
        np.array([product(told, known) for told, known in pairs]),
    )


def _slope(places: Sequence[_Place]) -> float:
    """Of what is told on what is known; 1 where nothing tells."""
    if not places:
        return 1.0
    _, known, both = _moments(places)
    return round(float(both.sum() / max(known.sum(), 1e-12)), 4)


def _scaled(places: Sequence[_Place], free: Array) -> float:
    """All values multiplied, with little noise beside."""
    told, known, both = _moments(places)
    squares = told - 2 * np.outer(_SLOPES, both) + np.outer(_SLOPES**2, known)  # [slopes, P]
    return _mean(_log_t(np.maximum(squares, 0.0), np.tile(free, (len(_SLOPES), 1)), _QUIET).sum(1))


def _penalized(places: Sequence[_Place], free: Array, reply_ids: Sequence[int]) -> float:
    """Tokens that the reply holds already are lowered, with little noise beside."""
    off, seen = [], []
    for place in places:
        earlier = set(reply_ids[: place.at])
        off.append(centred(_off(place)))
        seen.append(centred([float(n in earlier) for n in place.ids]))
    whole = np.array([product(o, o) for o in off])
    both = np.array([product(o, s) for o, s in zip(off, seen, strict=True)])
    masks = np.array([product(s, s) for s in seen])
    squares = whole + 2 * np.outer(_PENALTIES, both) + np.outer(_PENALTIES**2, masks)
    return _mean(
        _log_t(np.maximum(squares, 0.0), np.tile(free, (len(_PENALTIES), 1)), _QUIET).sum(1)
    )
