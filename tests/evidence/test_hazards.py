"""Two hazards: the level at every look, power, and answers by hand.

A prompt here has a hazard of its own, and a reply leaves at each place with that chance; so replies
are overdispersed, as near-ties make them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from scipy.stats import binom

from verifier.evidence.hazards import (
    KAPPA,
    KINDS,
    WINDOW,
    Kind,
    Leaving,
    compare,
    hazard_of,
    leave_paths,
    log_e_above,
    log_e_below,
    log_e_more,
)

KIND = Kind(model="toy", stacks=6, honest=0.04, upper=0.06, rounded=0.2)
STAYED = Leaving(exposure=WINDOW, left=False)

Draw = Callable[[np.random.Generator], float]


def even(hazard: float) -> Draw:
    """Prompts that are all alike."""
    return lambda _rng: hazard


def uneven(hazard: float) -> Draw:
    """One prompt of four with hardly a near-tie, the others with so many that the hazard of all,
    by the tokens at risk, is this; found by bisection."""
    quiet, low, high = hazard / 10, hazard, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        left, exposed = np.average([_means(middle), _means(quiet)], axis=0, weights=[3, 1])
        low, high = (middle, high) if left / exposed < hazard else (low, middle)
    assert low < 1 - 1e-6
    return lambda rng: low if rng.random() < 3 / 4 else quiet


def _means(hazard: float) -> tuple[float, float]:
    """How often a reply leaves, and at how many places it is at risk, on average."""
    left = 1 - (1 - hazard) ** WINDOW
    return left, left / hazard


def leave(rng: np.random.Generator, hazard: float) -> Leaving:
    place = int(rng.geometric(hazard)) if hazard else WINDOW + 1
    return Leaving(exposure=min(place, WINDOW), left=place <= WINDOW)


def replies(rng: np.random.Generator, draw: Draw, count: int) -> list[Leaving]:
    return [leave(rng, draw(rng)) for _ in range(count)]


def most(trials: int, probability: float) -> float:
    """The 99.9 % quantile of the number of successes: what a kept level exceeds once in 1000."""
    return float(binom.ppf(0.999, trials, probability))


# -- where a reply leaves ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "reply", "exposure", "left"),
    [
        (["abcdef"], "abcdef", 6, False),
        (["abcdef"], "abxdef", 3, True),
        (["abcdef", "abxyz!"], "abxdef", 4, True),  # off the one at 3, off the other at 4
        (["abcdef", "xbcdef"], "abcd", 4, False),  # cut: it is still on the first
        (["abc", "abcxyz"], "abcdef", 3, False),  # nothing is known beyond the cut path
        (["ab."], "ab!", 3, True),  # one ended of itself, and the other went on
        (["abcdef"], "", 0, False),
        ([], "abc", 0, False),
        (["a" * 40], "a" * 20 + "b" * 20, WINDOW, False),
    ],
)
def test_a_reply_leaves_where_it_is_on_no_known_path(
    paths: list[str], reply: str, exposure: int, left: bool
) -> None:
    """By hand, in signs; tokens are compared alike."""
    assert leave_paths(paths, reply) == Leaving(exposure=exposure, left=left)
    assert leave_paths([[*map(ord, p)] for p in paths], [*map(ord, reply)]) == Leaving(
        exposure=exposure, left=left
    )


def test_a_hazard_is_replies_that_left_by_tokens_at_risk() -> None:
    """2 of 3 left in 1 + 4 + 16 tokens; of nothing it is 0."""
    rows = [Leaving(exposure=1, left=True), Leaving(exposure=4, left=True), STAYED]

    assert hazard_of(rows) == pytest.approx(2 / 21)
    assert hazard_of([]) == 0.0


# -- known answers -----------------------------------------------------------------------------


def test_the_e_value_of_one_reply_is_the_mean_of_its_bets() -> None:
    """Left at once, against a hazard of 0.1: each bet wins its stake x (1 - 0.1) / (0.1 x 16). The
    stakes are pairs below 1 together, of which the second bets on nothing here."""
    stakes = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
    fair = [one for one in stakes for two in stakes if 0 < one + two < 1]
    wealth = sum(1 + one * 0.9 / 1.6 for one in fair) / len(fair)
    at_once = Leaving(exposure=1, left=True)

    assert log_e_above([at_once], 0.1) == pytest.approx(math.log(wealth))


def test_the_mirror_image_of_one_reply_is_the_mean_of_its_bets() -> None:
    """Stayed for 16 tokens, against a mark of 0.2: each bet wins its stake x 3.2 / 0.8."""
    wealth = sum(1 + stake * 4 for stake in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)) / 7

    assert log_e_below([STAYED], 0.2) == pytest.approx(math.log(wealth))


def test_nothing_is_no_evidence() -> None:
    """An e-value of 1, of each kind."""
    found = log_e_above([], 0.1), log_e_below([], 0.1), log_e_more([], [], kappa=1.0, floor=0.1)

    assert found == pytest.approx((0.0, 0.0, 0.0))


# -- the mean of the e-value, by enumeration ------------------------------------------------------


def outcomes(hazards: Sequence[float]) -> Iterator[tuple[float, Leaving]]:
    """All that one reply can do, with its chance, where prompts have these hazards alike often."""
    for place in range(1, WINDOW + 1):
        chance = np.mean([h * (1 - h) ** (place - 1) for h in hazards])
        yield float(chance), Leaving(exposure=place, left=True)
    yield float(np.mean([(1 - h) ** WINDOW for h in hazards])), STAYED


def pooled(hazards: Sequence[float]) -> float:
    found = list(outcomes(hazards))
    left = sum(chance * row.left for chance, row in found)
    return left / sum(chance * row.exposure for chance, row in found)


@pytest.mark.parametrize("hazards", [(0.1,), (0.0, 0.0, 0.9), (0.02, 0.5)])
def test_the_mean_of_the_e_value_is_one_however_prompts_differ(hazards: tuple[float, ...]) -> None:
    """Over all pairs of replies there can be, at the very edge of the null, in both directions."""
    edge = pooled(hazards)
    means = np.zeros(2)
    for (p, one), (q, other) in itertools.product(list(outcomes(hazards)), repeat=2):
        for n, log_e in enumerate((log_e_above, log_e_below)):
            means[n] += p * q * math.exp(log_e([one, other], edge))

    assert means == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("coupled", [False, True], ids=["apart", "the same near-ties"])
@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_the_mean_of_two_unknown_hazards_is_at_most_one(chance: float, coupled: bool) -> None:
    """Two hosts of one hazard, over all that three prompts can show: replies leave at once or not
    at all, both at one place or each for itself."""
    at_once = Leaving(exposure=1, left=True)
    each = [(chance, at_once), (1 - chance, STAYED)]
    joint = (
        [(p, row, row) for p, row in each]
        if coupled
        else [(p * q, a, b) for (p, a), (q, b) in itertools.product(each, repeat=2)]
    )
    for count in (1, 2, 3):
        mean = 0.0
        for prompts in itertools.product(joint, repeat=count):
            rows, others = [a for _, a, _ in prompts], [b for *_, b in prompts]
            weight = math.prod(p for p, *_ in prompts)
            mean += weight * math.exp(log_e_more(rows, others, kappa=1.0))

        assert mean <= 1 + 1e-9


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [even(0.1), uneven(0.1)], ids=["even", "uneven"])
def test_a_hazard_at_the_edge_is_called_larger_rarely_enough_at_any_look(draw: Draw) -> None:
    """Against the number itself, looking after every fifth reply; and called smaller as rarely."""
    above = below = 0
    for seed in range(200):
        rows = replies(np.random.default_rng(seed), draw, 60)
        looks = [rows[:n] for n in range(5, 61, 5)]
        above += any(log_e_above(some, 0.1) >= math.log(20) for some in looks)
        below += any(log_e_below(some, 0.1) >= math.log(20) for some in looks)

    assert above <= most(200, 0.05)
    assert below <= most(200, 0.05)


def plug_in(rows: Sequence[Leaving], others: Sequence[Leaving], **_: float) -> float:
    """What must not be done: the other's hazard taken for what it looks like."""
    return log_e_above(rows, max(hazard_of(others), 1e-3))


@pytest.mark.parametrize("draw", [even(0.05), uneven(0.05)], ids=["even", "uneven"])
def test_hosts_alike_are_told_apart_rarely_enough_at_any_look(draw: Draw) -> None:
    """Both hazards unknown and the same, and little known of one of them. To take the hazard that
    is seen for the true one fails."""
    alarms = {log_e_more: 0, plug_in: 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows, others = replies(rng, draw, 48), replies(rng, draw, 4)
        for test in alarms:
            alarms[test] += any(
                test(rows[:n], others, kappa=1.0) >= math.log(20) for n in range(8, 49, 8)
            )

    assert alarms[log_e_more] <= most(100, 0.05)
    assert alarms[plug_in] > most(100, 0.05)


def test_a_trusted_host_that_repeats_itself_exactly_bounds_nothing() -> None:
    """An honest target as far from it as honest stacks are is accused no more often than alpha."""
    alarms = 0
    for seed in range(100):
        target = replies(np.random.default_rng(seed), uneven(KIND.tolerated), 60)
        itself = [STAYED] * 60
        alarms += any(
            compare(target[:n], itself[:n], kind=KIND).log_e >= math.log(20) for n in (20, 40, 60)
        )

    assert alarms <= most(100, 0.05)


def test_a_trusted_host_that_is_noisy_excuses_a_target_that_is_as_noisy() -> None:
    """Beyond what was measured of the kind: it shows that this model has more near-ties."""
    noisy, rng = 2.5 * KIND.tolerated, np.random.default_rng(5)
    target, itself = replies(rng, even(noisy), 80), replies(rng, even(noisy), 80)

    assert compare(target, [STAYED] * 80, kind=KIND).log_e > math.log(1000)
    assert compare(target, itself, kind=KIND).log_e < 0
    assert compare(target, [STAYED] * 80, kind=KIND, second=itself).log_e < 0


# -- power ---------------------------------------------------------------------------------------


def test_a_target_that_leaves_much_sooner_is_found_within_60_replies() -> None:
    """As 4-bit weights do: 0.36 a token, beside a host that repeats itself, and one that hardly
    does; and honest ones are not."""
    found, honest = 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        itself = replies(rng, even(0.02 * (seed % 2)), 60)
        found += compare(replies(rng, even(0.36), 60), itself, kind=KIND).log_e > math.log(1000)
        honest += compare(replies(rng, uneven(0.04), 60), itself, kind=KIND).log_e > math.log(1000)

    assert found >= 38
    assert honest == 0


def test_a_target_that_leaves_seldom_is_called_alike_and_a_rounded_one_is_not() -> None:
    """For the model that was measured by its own mark, else by two trusted hosts, else never."""
    rng = np.random.default_rng(3)
    honest, rounded = replies(rng, uneven(0.03), 100), replies(rng, even(0.3), 100)
    second = replies(rng, even(0.08), 100)
    itself = [STAYED] * 100

    own = compare(honest, itself, kind=KIND, same_model=True)
    assert own.log_e_alike is not None
    assert own.log_e_alike > math.log(1000)
    assert compare(honest, itself, kind=KIND).log_e_alike is None
    by_two = compare(honest, itself, kind=KIND, second=second).log_e_alike
    assert by_two is not None
    assert by_two > math.log(1000)
    for more in ({"same_model": True}, {"second": second}):
        not_alike = compare(rounded, itself, kind=KIND, **more).log_e_alike  # type: ignore[arg-type]
        assert not_alike is not None
        assert not_alike < 0


def test_what_is_held_against_nobody_lies_above_every_measured_pair() -> None:
    """And below what 4-bit builds show, or nothing could be found."""
    for kind in KINDS.values():
        assert kind.honest < kind.upper < kind.tolerated == KAPPA * kind.upper < kind.rounded
