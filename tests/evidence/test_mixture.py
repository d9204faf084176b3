"""A share of the replies: levels under the null, power, coverage, and answers known by hand.

The model of these tests is one whose likelihood is known in closed form: a reply is four numbers
from a normal distribution of mean 0. Honest scales are 0.9 and 1, the suspect's is 4.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, binom

from verifier.evidence.mixture import (
    AT_ZERO,
    CAP,
    SAME_SCALE,
    SHARES,
    Mixture,
    belongings,
    estimate_share,
    least_replies,
    log_e_against_at_least,
    log_e_against_honest,
    log_e_against_shares,
    log_e_against_whole,
    mix,
)

Array = NDArray[np.float64]
HONEST = np.array([0.9, 1.0])
OTHER = 4.0
WORDS = 4


def densities(replies: Array, scales: Array) -> Array:
    """Log density [n, S] of replies [n, m] under independent normals of each scale."""
    cells = -0.5 * (replies[:, :, None] / scales) ** 2 - np.log(scales) - 0.5 * np.log(2 * np.pi)
    return np.asarray(cells.sum(axis=1))


def draw(count: int, share: float, *, seed: int, other: float = OTHER) -> tuple[Array, Array]:
    """Replies [n, m] of a routed host, and which of them the other model made."""
    rng = np.random.default_rng(seed)
    routed = rng.random(count) < share
    return rng.normal(size=(count, WORDS)) * np.where(routed, other, 1.0)[:, None], routed


def mixture_of(replies: Array) -> Mixture:
    return mix(densities(replies, np.array([OTHER]))[:, 0], densities(replies, HONEST))


def most(trials: int, probability: float) -> float:
    """The 99.9 % quantile of the number of successes: what a kept level exceeds once in 1000."""
    return float(binom.ppf(0.999, trials, probability))


# -- the bet against a share -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 150])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_bet_against_a_share_is_the_one_that_is_described(count: int, share: float) -> None:
    """Written out: of every bet against every share the ratio of all rows, cut where that is fair,
    by the weights of the bets."""
    mixture = mixture_of(draw(count, share, seed=3)[0])
    gains = np.empty((len(SHARES), len(SHARES), len(HONEST)))  # [share, bet, H]
    for a, b in np.ndindex(len(SHARES), len(SHARES)):
        curve = mixture.cut if b > a else mixture.curve
        gains[a, b] = curve[b] - curve[a]
        if b == 0 < a:
            raised = (SHARES[a] + (1 - SHARES[a]) / CAP) / (1 - SHARES[a] + SHARES[a] * CAP)
            gains[a, b] = -mixture.cut[a] - count * np.log1p(raised)
    edges = np.concatenate([[0.0], (SHARES[1:-1] + SHARES[2:]) / 2, [1.0]])
    prior = np.concatenate([[AT_ZERO], (1 - AT_ZERO) * beta(0.5, 0.5).cdf(edges[1:])])
    prior[1:] -= (1 - AT_ZERO) * beta(0.5, 0.5).cdf(edges[:-1])
    same = np.logaddexp.reduce(np.log(prior)[None, :, None] + gains, axis=1)
    totals = [
        np.logaddexp.reduce(np.log(prior)[:, None] + curve, axis=0) + mixture.honest
        for curve in (mixture.curve, mixture.cut)
    ]
    of_all, of_cut = (np.logaddexp.reduce(some) - np.log(len(HONEST)) for some in totals)
    spread = np.full(len(SHARES), of_all)
    spread[0] = of_cut
    rest = spread[:, None] - mixture.honest - mixture.curve
    expected = np.logaddexp(np.log(SAME_SCALE) + same, np.log1p(-SAME_SCALE) + rest).min(axis=1)

    assert log_e_against_shares(mixture) == pytest.approx(expected, rel=1e-9, abs=1e-9)


# -- against honest serving --------------------------------------------------------------------


def test_the_bet_on_a_share_keeps_its_level_at_every_stopping_time() -> None:
    """Honest replies, looked at after each: 1/alpha is ever reached no more often than alpha."""
    alarms = 0
    for seed in range(200):
        replies, _ = draw(30, 0.0, seed=seed)
        looks = [log_e_against_honest(mixture_of(replies[:n])) for n in range(1, 31)]
        alarms += max(looks) >= math.log(1 / 0.05)

    assert alarms <= most(200, 0.05)


def test_a_small_share_is_found() -> None:
    """Power: one reply in ten from the other model, nearly always within 80 replies."""
    found = [log_e_against_honest(mixture_of(draw(80, 0.1, seed=s)[0])) for s in range(40)]

    assert sum(log_e >= math.log(1000) for log_e in found) >= 36


def test_one_unlikely_reply_cannot_decide_alone() -> None:
    """A thousand nats are cut to CAP, and the bet on it is smaller still; a second one counts."""
    one = mix(np.array([1000.0]), np.zeros((1, 2)))
    two = mix(np.array([1000.0, 1000.0]), np.zeros((2, 2)))

    assert log_e_against_honest(one) < math.log(CAP) <= math.log(1000)
    assert log_e_against_honest(two) > math.log(1000)


def test_the_bet_of_one_reply_is_known_by_hand() -> None:
    """With likelihood ratio 3 it is 1 + 2 E[share] over the shares above 0: Beta(1/2, 1/2)'s half.

    The grid's cells lean a little, so the mean is 1/2 within 2 %.
    """
    found = log_e_against_honest(mix(np.array([math.log(3.0)]), np.zeros((1, 1))))

    assert math.exp(found) == pytest.approx(1 + 2 * beta(0.5, 0.5).mean(), rel=0.02)


def test_the_least_favourable_honest_scale_counts() -> None:
    """Replies that one honest column explains are held against nobody."""
    honest = np.array([[-50.0, 0.0]] * 20)

    assert log_e_against_honest(mix(np.full(20, -1.0), honest)) < 0


def test_nothing_is_said_without_replies() -> None:
    """No evidence, no interval."""
    empty = mix(np.zeros(0), np.zeros((0, 2)))

    assert log_e_against_honest(empty) == 0
    assert estimate_share(empty, level=0.95) is None
    assert len(belongings(empty, 0.5)) == 0


# -- part, not all -----------------------------------------------------------------------------


def whole_of(replies: Array) -> Array:
    return densities(replies, np.array([2.0, OTHER])).sum(axis=0)


def test_a_host_of_one_other_kind_is_rarely_told_to_be_two() -> None:
    """Level of "part, not all": every reply from a scale that explains all at once."""
    alarms = 0
    for seed in range(200):
        replies, _ = draw(25, 1.0, seed=seed, other=2.0)
        looks = [
            log_e_against_whole(mixture_of(replies[:n]), whole_of(replies[:n]))
            for n in range(1, 26)
        ]
        alarms += max(looks) >= math.log(1 / 0.05)

    assert alarms <= most(200, 0.05)


def test_a_host_of_two_kinds_is_told_to_be_two() -> None:
    """Power: three replies in ten from the other model, nearly always within 30 replies."""
    found = []
    for seed in range(40):
        replies, _ = draw(30, 0.3, seed=seed)
        found.append(log_e_against_whole(mixture_of(replies), whole_of(replies)))

    assert sum(log_e >= math.log(1000) for log_e in found) >= 36


# -- the share ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_interval_holds_the_share_at_every_stopping_time(share: float) -> None:
    """Looked at after every third reply, the truth is ever left out in 5 % of cases at most."""
    missed = 0
    for seed in range(150):
        replies, _ = draw(45, share, seed=seed)
        for n in range(3, 46, 3):
            found = estimate_share(mixture_of(replies[:n]), level=0.95)
            assert found is not None
            if not found.lower - 1e-9 <= share <= found.upper + 1e-9:
                missed += 1
                break

    assert missed <= most(150, 0.05)


def test_the_estimate_comes_near_the_share() -> None:
    """A thousand replies, and a standard error of 0.0145: within three of them and the grid."""
    found = estimate_share(mixture_of(draw(1000, 0.3, seed=7)[0]), level=0.95)

    assert found is not None
    assert abs(found.estimate - 0.3) < 0.06
    assert 0.2 < found.lower < 0.3 < found.upper < 0.4


def test_each_reply_is_told_whose_it_is() -> None:
    """By Bayes' rule: by hand for one reply, and right for nearly all of a routed host's."""
    odds = mix(np.array([math.log(9.0)]), np.zeros((1, 1)))
    replies, routed = draw(400, 0.3, seed=3)
    told = belongings(mixture_of(replies), 0.3)

    assert belongings(odds, 0.1)[0] == pytest.approx(0.9 / (0.9 + 0.9))
    assert ((told > 0.5) == routed).mean() > 0.95
    assert set(belongings(odds, 0.0)) == {0.0}
    assert set(belongings(odds, 1.0)) == {1.0}


def test_replies_that_cannot_be_the_suspects_exclude_a_share_as_fast_as_is_possible() -> None:
    """By hand: (1 - 0.05)^n falls below 0.45 / 1000 at n = 151, and not before."""

    def against(n: int) -> float:
        certain = mix(np.full(n, -1000.0), np.zeros((n, 1)))
        return log_e_against_at_least([certain], 0.05)

    assert least_replies(0.05, error=0.001) == 151
    assert pytest.approx(0.45) == AT_ZERO * SAME_SCALE
    # the rest of the bet, on shares above 0, is not quite lost
    assert against(151) >= math.log(1000)
    assert against(145) < math.log(1000)


def test_a_share_is_rarely_excluded_where_it_is_served() -> None:
    """Level of the exclusion, at the edge: looked at after every fifth reply."""
    wrong = 0
    for seed in range(150):
        replies, _ = draw(60, 0.2, seed=seed)
        looks = [log_e_against_at_least([mixture_of(replies[:n])], 0.2) for n in range(5, 61, 5)]
        wrong += max(looks) >= math.log(1 / 0.05)

    assert wrong <= most(150, 0.05)


def test_the_worst_of_several_suspects_counts() -> None:
    """A share is excluded for all of them or not at all."""
    far = mix(np.full(200, -1000.0), np.zeros((200, 1)))
    near = mix(np.zeros(200), np.zeros((200, 1)))

    assert log_e_against_at_least([far], 0.05) > math.log(1000)
    assert log_e_against_at_least([far, near], 0.05) <= 0


def test_shares_are_tried_from_none_to_all() -> None:
    """In order, the ones that policies and benchmarks name among them."""
    assert (SHARES[0], SHARES[-1]) == (0, 1)
    assert np.all(np.diff(SHARES) > 0)
    assert {0.05, 0.1, 0.3} <= set(SHARES)
    assert log_e_against_shares(mix(np.zeros(0), np.zeros((0, 2)))) == pytest.approx(0)


def test_one_unlikely_reply_moves_no_bound_alone() -> None:
    """Of 240 replies 239 speak clearly for honest serving and one as clearly against it."""
    suspect = np.full(240, -30.0)
    suspect[7] = 40.0
    mixture = mix(suspect, np.zeros((240, 2)))
    found = estimate_share(mixture, level=0.95)

    assert found is not None
    assert (found.lower, found.upper) <= (0.0, 0.04)
    assert log_e_against_at_least([mixture], 0.05) > math.log(1000)
