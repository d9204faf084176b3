"""How soon replies leave each other: the evidence of text alone, from a trusted host.

A trusted host's greedy replies are paths; a target's reply stays on one of them or leaves them all
at some place. No likelihood is known, so no noise scale is either. What is compared is a hazard:
how many replies leave, over how many tokens they were at risk of it. Pure arithmetic.

Unit: the prompt, drawn at random. The hazard of a host is E[left] / E[exposure] over the pool, both
within a window, so prompts and places may differ in theirs as they like: near-ties come where they
come. Within one reply at most one thing happens, at a stopping time, and its exposure is known.

What is honest is not what one host shows by repeating itself: that is one stack, and a stack that
repeats itself exactly bounds nothing. It comes from pairs of honest stacks that were measured, by
kind of model (`KINDS`). What a trusted host says is its word; what it serves is not checked here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.e_values import log_mean_exp

#: Places of a reply that are looked at: most replies of rounded weights leave within them.
WINDOW: Final = 16

#: How far above the noisiest pair that was measured nothing is held against a host: two roundings
#: as large as the largest, one on the other, as `stacks.LEAST_KAPPA`. A hazard grows as the noise.
KAPPA: Final = math.sqrt(2)

#: Hazards that a nuisance is taken over; between two neighbours the worse of both is taken.
_GRID: Final[Array] = np.append(0.0, 10.0 ** np.linspace(-4, 0, 161))

#: Shares of what may be lost at once that bets put at stake: they need no tuning, and the largest
#: leaves something whatever comes.
_STAKES: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """How one reply stands to the paths that are known of its prompt."""

    exposure: int  # places at which it could leave, that where it left among them
    left: bool

    def within(self, window: int) -> Leaving:
        """The same, seen up to so many places."""
        if self.exposure <= window:
            return self
        return Leaving(exposure=window, left=False)

    @property
    def told(self) -> int:
        """As one number: the exposure, below 0 where it left at the last of these places."""
        return -self.exposure if self.left else self.exposure


def leaving_of(told: int) -> Leaving:
    """What `Leaving.told` made, back again."""
    return Leaving(exposure=abs(told), left=told < 0)


def leave_paths(paths: Sequence[Sequence[object]], reply: Sequence[object]) -> Leaving:
    """Where a reply leaves all known paths, in tokens; in signs no measured hazard is known.

    It does not where it is on one of them until either ends: nothing is known beyond a path that
    was cut. A path or reply that ended of itself has a mark of that as its last entry. More paths
    let fewer replies leave, which only spares a target; nothing is called alike by more than one.
    """
    stayed, shared = [], [0]
    for path in paths:
        pairs = enumerate(zip(path, reply, strict=False))
        place = next((n for n, (one, other) in pairs if one != other), None)
        if place is None:
            stayed.append(min(len(path), len(reply)))
        else:
            shared.append(place + 1)
    if stayed:
        return Leaving(exposure=max(stayed), left=False).within(WINDOW)
    return Leaving(exposure=max(shared), left=bool(paths)).within(WINDOW)


def hazard_of(rows: Sequence[Leaving]) -> float:
    """How often replies leave, a token at risk; 0 where none was at risk."""
    exposed = sum(row.exposure for row in rows)
    return sum(row.left for row in rows) / exposed if exposed else 0.0


# -- one hazard ----------------------------------------------------------------------------------


def log_e_above(rows: Sequence[Leaving], honest: float) -> float:
    """Log e-value that replies leave more often than the hazard `honest`, a known number.

    Null: E[left - honest * exposure] <= 0 for each reply given those before it, whatever else its
    distribution is. The wealth of bets on a bounded mean, 1 + b (left - honest * exposure), with b
    so small that it stays positive, is then a supermartingale that starts at 1; so is a mixture of
    them, and it ever reaches 1/alpha with probability at most alpha (Ville 1939; Waudby-Smith and
    Ramdas 2024, "Estimating means of bounded random variables by betting").
    """
    return log_e_more(rows, (), kappa=1.0, floor=honest)


def log_e_below(rows: Sequence[Leaving], mark: float) -> float:
    """Log e-value that replies leave less often than the hazard `mark`: the mirror image.

    Null: E[left - mark * exposure] >= 0 for each reply given those before it.
    """
    left, exposed = _columns(rows, len(rows))
    gains = mark * exposed - left  # at least mark - 1: who leaves was at risk once
    bets = np.array([stake for stake in _STAKES if stake])[:, None]
    return log_mean_exp(np.log1p(bets * gains / max(1 - mark, 1e-9)).sum(axis=1))


# -- two hazards, both unknown ---------------------------------------------------------------------


def log_e_more(
    rows: Sequence[Leaving], others: Sequence[Leaving], *, kappa: float, floor: float = 0.0
) -> float:
    """Log e-value that `rows` leave more often than kappa times as `others` do, and than `floor`.

    Null: hazard of `rows` <= max(floor, kappa * hazard of `others`), neither of them known. The
    n-th of both are of one prompt and may depend on each other as they like; prompts are drawn
    independently, and what is null of one holds given those before it.

    Let h be that maximum. Where it is the floor, bets on left - h * exposure of `rows` alone keep
    their mean at most 1. Else the means of left - h * exposure of `rows` and of h * exposure -
    kappa * left of `others` are both at most 0, so bets on both at once do. The true h is not
    known: the least wealth over all h is below that of the true one, hence an e-process (universal
    inference over a nuisance: Wasserman, Ramdas and Balakrishnan 2020). Between two neighbours of a
    grid the worse end of each bet is taken, so nothing is lost to the grid but power.
    """
    count = max(len(rows), len(others))
    left, exposed = _columns(rows, count)
    if not others:
        return _wealth(left - floor * exposed, np.zeros(count), least=floor * WINDOW)
    other_left, other_exposed = _columns(others, count)
    found = [_wealth(left - floor * exposed, np.zeros(count), least=floor * WINDOW)]
    for low, high in pairwise(_GRID):
        if high > floor:
            gains = low * other_exposed / kappa - other_left
            found.append(_wealth(left - high * exposed, gains, least=high * WINDOW))
    return min(found)


def _wealth(gains: Array, others: Array, *, least: float) -> float:
    """Log of the mean wealth of bets on two sequences of gains, at least -`least` and -1 each."""
    one, two = (stakes.ravel() for stakes in np.meshgrid(_STAKES, _STAKES))
    fair = (one + two > 0) & (one + two < 1)  # together they cannot lose all
    bets = one[fair][:, None] / max(least, 1e-9), two[fair][:, None]
    return log_mean_exp(np.log1p(bets[0] * gains + bets[1] * others).sum(axis=1))


def _columns(rows: Sequence[Leaving], count: int) -> tuple[Array, Array]:
    """Whether they left, and their exposures [count], within the window; 0 beyond the last."""
    seen = [row.within(WINDOW) for row in rows]
    padding = [0.0] * (count - len(seen))
    return (
        np.array([float(row.left) for row in seen] + padding),
        np.array([float(row.exposure) for row in seen] + padding),
    )


# -- what honest stacks show -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What pairs of stacks of one kind of model showed: hazards within the window, a token."""

    model: str  # that was measured
    stacks: int  # honest ones: of so many a new one lies beyond all with a chance of 1 / (1 + them)
    honest: float  # of the two honest stacks that are the furthest apart
    upper: float  # what that may be at most, by its replies alone
    rounded: float  # what the mildest 4-bit build shows at least against an honest stack

    @property
    def tolerated(self) -> float:
        """The hazard that is held against nobody."""
        return KAPPA * self.upper

    @property
    def ratio(self) -> float:
        """How many times as often as two honest stacks a 4-bit host and one leave each other."""
        return self.rounded / self.upper


#: Of `reference/benchmarks/hazards.benchmark.json`, rounded away from a verdict. Small models have
#: more near-ties than large ones, so a larger model of a kind leaves more seldom, honest or not:
#: `tolerated` spares it all the more, and `rounded` must not be taken for its own 4-bit builds.
KINDS: Final = {
    "dense": Kind(model="smollm2-135m-instruct", stacks=6, honest=0.042, upper=0.057, rounded=0.18),
    "experts": Kind(model="experts", stacks=4, honest=0.054, upper=0.069, rounded=0.37),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What replies say of a target beside a trusted host, before any threshold."""

    target: float  # hazards, a token
    trusted: float  # of the trusted host beside itself, or beside a second one
    log_e: float  # that the target differs: null as in `compare`
    log_e_alike: float | None  # that it leaves less often than 4-bit builds; None: no mark for it


def compare(
    target: Sequence[Leaving],
    itself: Sequence[Leaving],
    *,
    kind: Kind,
    second: Sequence[Leaving] = (),
    same_model: bool = False,
) -> Compared:
    """Hold a target against a trusted host, whose replies leave `itself` asked again.

    Differs: its null is that the target's hazard is at most KAPPA times the largest of three: what
    was measured of the kind (its bound), what the trusted host shows asked twice, and what it shows
    beside a `second` trusted host. Alike is as in `log_e_alike`, where the target was read beside
    one path alone.
    """
    log_e = min(
        log_e_more(target, rows, kappa=KAPPA, floor=kind.tolerated) for rows in (itself, second)
    )
    return Compared(
        target=hazard_of([row.within(WINDOW) for row in target]),
        trusted=hazard_of([row.within(WINDOW) for row in (second or itself)]),
        log_e=log_e,
        log_e_alike=log_e_alike(target, kind=kind, second=second, same_model=same_model),
    )


def log_e_alike(
    alone: Sequence[Leaving],
    *,
    kind: Kind,
    second: Sequence[Leaving] = (),
    same_model: bool = False,
    share: float = 1.0,
) -> float | None:
    """Log e-value that a target is no 4-bit build, by its replies beside one path `alone`, as the
    pairs were read that were measured; None: there is no mark for it.

    Null: it leaves at least as often as the mildest 4-bit build that was measured, or as this
    `share` of that where a class has milder ones. The mark is the kind's own only for the
    `same_model`; for others it is the kind's ratio times what two trusted hosts show, and no more
    than the kind's own; without a second one there is none.
    """
    if same_model:
        return log_e_below(alone, share * kind.rounded)
    if not second:
        return None
    by_ratio = log_e_more(second, alone, kappa=1 / (share * kind.ratio))
    return min(by_ratio, log_e_below(alone, share * kind.rounded))
