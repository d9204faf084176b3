"""Reports as evidence: which fault they show, and whether they speak of the weights at all.

Null of each fault: the reports of every reply are right, that is off by noise of some scale, each
reply of its own, whatever is served. The gains of a reply (`reported`) are log-likelihood ratios
against that, so their product over replies is an e-value, and so is a mixture of single replies
with weights fixed by their place: one finds a habit, the other what is done to one reply in many. A
fault is named at 1/level. Counts have no such null: no noise makes two values of one token.

Reports join the evidence on the weights where they show no fault, not even likelier than not, and a
scale that the text allows: at most the upper end of the text's confidence sequence, times the ratio
of the two channels' scales that calibrated stacks show. Where the text has no upper end yet it says
too little to bear anything out, or accuses by itself. Both are functions of what has been seen,
so an e-value times the indicator of joining still has a mean of at most 1 at every stopping time.
What is lost is only power, and of endpoints that report otherwise than they serve. A scale that is
too small for the text is no reason to leave reports out: they accuse and never acquit.
Pure arithmetic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import Interval, confidence_sequence
from verifier.evidence.ledger import LOGPROB_SCALES, Ledger, Reported
from verifier.evidence.noise import log_e_noise, read_rows
from verifier.evidence.reported import (
    AFTER,
    BEFORE,
    GIVEN,
    PENALIZED,
    PROBABILITIES,
    SCALED,
    UNEVEN,
    UNRELATED,
)

#: Room of one step of the grid of scales.
_STEP: Final = float(LOGPROB_SCALES[1] / LOGPROB_SCALES[0]) * (1 + 1e-9)

#: Error of rounding (nats, root mean square) that adds to noise what honest serving is measured by.
_ROUGH: Final = 0.025

#: Positions of a kind that no noise brings about, before it is said that it is there.
_SAID_FROM: Final = 2

#: Share of positions with copied alternatives that is more than what a shift leaves at an end.
_COPIES: Final = 0.25

_SLOPE_OF: Final = {1 / math.log(10): "of base 10", 1 / math.log(2): "of base 2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with what an endpoint reports of its tokens."""

    name: str  # as "it reports" goes on
    said: str  # as "the log-probabilities that it reports" goes on
    log_e: float | None  # against right reports of any noise; None: no noise does it
    replies: int  # in which it is seen
    of: int
    #: Whether other weights behind right reports cannot look so.
    of_reports: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """What the reports of all replies say, before any threshold on the weights."""

    rows: int  # replies with cells
    interval: (
        Interval | None
    )  # of the scale (nats) by which they differ from the published weights'
    log_e: float  # of noise above the honest scale, if they are to be believed
    joins: bool  # whether they are
    fault: Fault | None  # why not, where that is settled
    allowed: float | None  # the largest scale that the text allows; None: it does not say


def judge_reports(
    ledger: Ledger, text: Interval | None, calibration: Calibration, *, level: float
) -> Reports:
    """Whether reports are right, and join the evidence; `text` is what the text says of noise.

    `level` is the error rate of a name. Rows of older versions have no counts or gains, and are
    judged by their scale alone.
    """
    rows = read_rows(ledger.logprob(), LOGPROB_SCALES, calibration.logprob)
    interval = confidence_sequence(rows, LOGPROB_SCALES, level=1 - level)
    upper = None if text is None else text.upper
    allowed = None if upper is None else upper * channel_ratio(calibration) * _STEP
    found = [row.reported for row in ledger.rows if row.reported is not None]
    gains = {name: _log_e_gain([one.gains.get(name, 0.0) for one in found]) for name in _GAINS}
    fault = _find_fault(ledger, found, gains, level)
    borne_out = interval is None or (allowed is not None and interval.estimate <= allowed)
    if fault is None and interval is not None and allowed is not None and interval.lower > allowed:
        said = (
            f"differ from the published weights' by a scale of {interval.estimate:.2g}, where the "
            f"text allows {allowed:.2g} at most"
        )
        fault = Fault(
            name="log-probabilities that its text does not bear out", said=said, log_e=None,
            replies=len(rows), of=len(rows), of_reports=False,
        )  # fmt: skip
    right = fault is None and not _is_doubtful(found) and max(gains.values(), default=0.0) <= 0
    return Reports(
        rows=len(rows),
        interval=interval,
        log_e=log_e_noise(rows, LOGPROB_SCALES, calibration.logprob),
        joins=right and borne_out,
        fault=fault,
        allowed=allowed,
    )


def channel_ratio(calibration: Calibration) -> float:
    """How much larger the scale of reports may be than that of the text, by calibrated stacks.

    Of stacks whose text scale is bounded: at the top of its grid it says too little. At least 1.
    """
    ratios = (
        one.logprob.estimate / one.text.estimate
        for one in calibration.stacks
        if one.logprob is not None and one.text is not None and one.text.upper is not None
        and one.text.estimate > 0
    )  # fmt: skip
    return max(1.0, *ratios, 1.0)


def _log_e_gain(gains: Sequence[float]) -> float:
    """Log e-value of a fault from the gains of replies: of all of them, and of single ones, evenly.

    Those of a single reply at place i have weight 1 / (i (i + 1)), all together at most 1.
    """
    if not gains:
        return 0.0
    places = np.arange(1, len(gains) + 1)
    single = np.logaddexp.reduce(np.array(gains) - np.log(places * (places + 1.0)))
    return float(np.logaddexp(math.fsum(gains), single)) - math.log(2)


def _is_doubtful(found: Sequence[Reported]) -> bool:
    """Whether any position is as no noise makes it, too few of them for a name."""
    return any(
        one.alike or one.constant > 1 or one.apart or one.copied or one.fillers or one.misranked
        for one in found
    )


def _find_fault(
    ledger: Ledger, found: Sequence[Reported], gains: dict[str, float], level: float
) -> Fault | None:
    """The first fault that is settled: what is exact before what is only likelier than noise."""
    named, copied = (sum(getattr(one, kind) for one in found) for kind in ("named", "copied"))
    return (
        _probabilities(ledger)
        or _rounded(found)
        or _counted(found, "alike")
        or _counted(found, "constant")
        or _counted(found, "fillers")
        or _twice(ledger)
        or (_counted(found, "copied") if copied > _COPIES * named else None)
        or _likeliest(found, gains, math.log(1 / level))
        or _counted(found, "copied")
        or _counted(found, "apart")
        or _counted(found, "misranked")
    )


def _likeliest(found: Sequence[Reported], gains: dict[str, float], needed: float) -> Fault | None:
    """The fault of most evidence, where that suffices; named where it leads by as much."""
    best, second = sorted(gains, key=lambda kind: -gains[kind])[:2]
    if gains[best] < needed:
        return None
    if gains[best] < gains[second] + needed:
        return _gained(found, UNKNOWN, best, gains[best])
    if best == GIVEN:
        apart = _counted(found, "apart")
        if apart is not None:
            return apart
    return _gained(found, _GAINS[best], best, gains[best])


#: What is said of each count and gain: as "it reports", and as "the log-probabilities that it
#: reports", go on.
_COUNTS: Final = {
    "alike": (
        "one log-probability for all tokens of a position",
        "are the same for all tokens of a position",
    ),
    "constant": (
        "one log-probability for whatever token is given",
        "are the same for whatever token is given",
    ),
    "fillers": (
        "fillers in the place of small log-probabilities",
        "have one number in the place of all small values",
    ),
    "copied": (
        "alternatives copied from other positions",
        "have alternatives that are copied from another position of the reply",
    ),
    "apart": (
        "two log-probabilities for the token that is given",
        "have two values for the token that is given, its own and another among its alternatives",
    ),
    "misranked": (
        "log-probabilities that rank other tokens first",
        "rank another token first where the one given is the likeliest by the published weights",
    ),
}
_GAINS: Final = {
    BEFORE: ("log-probabilities of the position before", "are those of the position before"),
    AFTER: ("log-probabilities of the position after", "are those of the position after"),
    GIVEN: (
        "a log-probability of the token given that does not go with its alternatives",
        "do not go together: the token given has one that its alternatives do not bear out",
    ),
    SCALED: ("scaled log-probabilities", "are scaled"),
    PENALIZED: (
        "log-probabilities after a penalty",
        "are lower for tokens that the reply holds already, as after a penalty",
    ),
    UNRELATED: (
        "log-probabilities of something else than its replies",
        "would suit any other position as well: they have nothing to do with the replies",
    ),
    UNEVEN: (
        "log-probabilities of which only a part is right",
        "are right at some positions and far off at others, as no noise makes them",
    ),
}

#: Said of numbers that suit several faults better than noise, and none of them best.
UNKNOWN: Final = (
    "log-probabilities that no noise explains",
    "are off as no noise of what is served makes them",
)

#: Faults that other weights behind right reports come near to: what they give is unlikely by the
#: published ones, and likely by their own.
_LIKE_OTHER_WEIGHTS: Final = (GIVEN, SCALED, PENALIZED, UNRELATED, UNEVEN)


def _counted(found: Sequence[Reported], kind: str) -> Fault | None:
    counts = [getattr(one, kind) for one in found]
    if sum(counts) < _SAID_FROM:
        return None
    name, said = _COUNTS[kind]
    return _fault(name, said, [count > 0 for count in counts])


def _gained(found: Sequence[Reported], words: tuple[str, str], kind: str, log_e: float) -> Fault:
    seen = [one for one in found if one.gains.get(kind, 0.0) > 0]
    name, said = words
    if words == _GAINS[SCALED]:
        slope = float(np.median([one.slope for one in seen or found]))
        name = f"log-probabilities scaled by about {slope:.2f}"
        bases = [f" or logarithms {b}" for x, b in _SLOPE_OF.items() if abs(slope / x - 1) < 0.03]
        said = f"are scaled by about {slope:.2f}, as by a temperature of {1 / slope:.2g}"
        said += "".join(bases)
    return Fault(
        name=name, said=said, log_e=log_e, replies=len(seen), of=len(found),
        of_reports=kind not in _LIKE_OTHER_WEIGHTS and words != UNKNOWN,
    )  # fmt: skip


def _fault(name: str, said: str, seen: Sequence[bool]) -> Fault:
    return Fault(name=name, said=said, log_e=None, replies=sum(seen), of=len(seen))


def _rounded(found: Sequence[Reported]) -> Fault | None:
    """Steps that every reply keeps to which has values enough to tell."""
    seen = [one for one in found if one.named]
    if not seen or any(one.step is None for one in seen):
        return None
    error = math.sqrt(sum(one.rounding**2 for one in seen) / len(seen))
    if error <= _ROUGH:
        return None
    step = min(one.step or 0.0 for one in seen)
    to = f"steps of {step:g}" if step else "bfloat16"
    name, said = f"log-probabilities rounded to {to}", f"are rounded to {to}"
    return _fault(name, said, [True] * len(seen))


def _twice(ledger: Ledger) -> Fault | None:
    """The same numbers with two replies."""
    digests = [row.reported.digest for row in ledger.rows if row.reported is not None]
    times = Counter(digest for digest in digests if digest is not None)
    seen = [digest is not None and times[digest] > 1 for digest in digests]
    if not any(seen):
        return None
    return _fault(
        "log-probabilities of another reply", "are, to the last digit, those of another reply", seen
    )


def _probabilities(ledger: Ledger) -> Fault | None:
    seen = [PROBABILITIES in (row.logprob_problem or "") for row in ledger.rows]
    if sum(seen) < _SAID_FROM:
        return None
    return _fault(
        "probabilities in the place of their logarithms", "are probabilities, not their logarithms",
        seen,
    )  # fmt: skip
