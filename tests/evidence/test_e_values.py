"""The statistics: levels under the null, power on known alternatives, known answers.

The model of these tests is one whose likelihood is known in closed form: a reply is four numbers
from a normal distribution of mean 0, and its scale is their standard deviation.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, false_discovery_control, norm

from verifier.evidence.e_values import (
    Interval,
    best_scale,
    confidence_sequence,
    e_bh,
    fit_learning_rate,
    fit_reading,
    fit_spread,
    log_e_against_scales,
    log_e_value,
    log_mean_exp,
    mix_log_e,
    spread_rows,
)

Array = NDArray[np.float64]

#: 0.1 to 10 in steps of 12 %; 1 is among them.
SCALES: Array = 10.0 ** np.linspace(-1, 1, 41)
WORDS = 4  # numbers in a reply
LADDER = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6)


def rows_of(replies: Array) -> Array:
    """Log density [n, S] of replies [n, m] under independent normals of each scale."""
    cells = -0.5 * (replies[:, :, None] / SCALES) ** 2 - np.log(SCALES) - 0.5 * np.log(2 * np.pi)
    return cells.sum(axis=1)


def rows_at(scale: float, count: int, *, seed: int, spread: float = 0.0) -> Array:
    """Rows of replies whose own scales are log-normal around `scale`."""
    rng = np.random.default_rng(seed)
    own = scale * np.exp(spread * rng.normal(size=(count, 1)))
    return rows_of(own * rng.normal(size=(count, WORDS)))


def heavy_rows(count: int, *, seed: int) -> Array:
    """Rows of replies with Student-t tails (3 degrees of freedom), which no normal has."""
    return rows_of(np.random.default_rng(seed).standard_t(3, (count, WORDS)))


def most(trials: int, probability: float) -> float:
    """The 99.9 % quantile of the number of successes: what a kept level exceeds once in 1000."""
    return float(binom.ppf(0.999, trials, probability))


def missed(found: Interval | None, truth: float) -> bool:
    assert found is not None
    return found.lower > truth or (found.upper is not None and found.upper < truth)


# -- log_mean_exp, log_e_value, mix_log_e ------------------------------------------------------


def test_log_mean_exp_is_the_log_of_the_mean_likelihood() -> None:
    """log((1 + 2 + 6) / 3) = log 3, by hand; also where exp would overflow or vanish."""
    logs = np.log([1.0, 2.0, 6.0])

    assert log_mean_exp(logs) == pytest.approx(math.log(3))
    assert log_mean_exp(logs + 5000) == pytest.approx(math.log(3) + 5000)
    assert log_mean_exp(logs - 5000) == pytest.approx(math.log(3) - 5000)


@pytest.mark.parametrize("scale", [1.0, 0.5], ids=["at the edge", "inside"])
def test_the_e_value_of_a_composite_null_keeps_its_level_at_every_stopping_time(
    scale: float,
) -> None:
    """Looking after every reply, a true null is ever rejected no more often than alpha."""
    null = SCALES <= 1.0
    alarms = 0
    for seed in range(150):
        totals = rows_at(scale, 16, seed=seed).cumsum(axis=0)
        alarms += any(log_e_value(t[~null], t[null]) >= math.log(1 / 0.05) for t in totals)

    assert alarms <= most(150, 0.05)


def test_the_mean_of_the_e_value_is_at_most_one_under_its_null() -> None:
    """The property that gives the level (Ville 1939), on single replies at the edge."""
    null = SCALES <= 1.0
    e_values = np.exp([log_e_value(r[~null], r[null]) for r in rows_at(1.0, 1500, seed=1)])

    assert e_values.mean() <= 1 + 3 * e_values.std() / math.sqrt(len(e_values))


def test_the_e_value_finds_a_scale_above_its_null() -> None:
    """Power: at twice the null's largest scale, 25 replies suffice nearly always."""
    null = SCALES <= 1.0
    totals = [rows_at(2.0, 25, seed=seed).sum(axis=0) for seed in range(40)]

    assert sum(log_e_value(t[~null], t[null]) >= math.log(1000) for t in totals) >= 38


def test_the_e_value_grows_by_the_divergence_from_the_nearest_member_of_its_null() -> None:
    """Per number log(a/b) + (b²/a² - 1)/2 for b = 2, a = 1: Kullback-Leibler of two normals."""
    null = SCALES <= 1.0
    count = 4000
    totals = rows_at(2.0, count, seed=3).sum(axis=0)
    rate = log_e_value(totals[~null], totals[null]) / (count * WORDS)

    assert rate == pytest.approx(-math.log(2) + (4 - 1) / 2, rel=0.03)


def test_the_e_value_is_the_mean_alternative_over_the_best_null() -> None:
    """((2 + 4) / 2) / max(1, 6) = 1/2, by hand."""
    found = log_e_value(np.log([2.0, 4.0]), np.log([1.0, 6.0]))

    assert found == pytest.approx(math.log(0.5))


def test_a_mixture_of_dependent_e_values_keeps_their_level() -> None:
    """Three e-values of the very same replies, looked at time and again."""
    null = SCALES <= 1.0
    alarms = 0
    for seed in range(100):
        totals = rows_at(1.0, 24, seed=1000 + seed).cumsum(axis=0)[2::3]
        alarms += any(
            mix_log_e([(top, log_e_value(t[top == SCALES], t[null])) for top in SCALES[21:30:4]])
            >= math.log(1 / 0.1)
            for t in totals
        )

    assert alarms <= most(100, 0.1)


def test_a_mixture_loses_no_more_than_the_log_of_a_weight() -> None:
    """Power: one large e-value among worthless ones carries the mixture."""
    found = mix_log_e([(0.1, 50.0), (0.6, -400.0), (0.3, -1e6)])

    assert found == pytest.approx(50 + math.log(0.1))


def test_a_mixture_is_the_weighted_mean() -> None:
    """(1 x 2 + 3 x 6) / 4 = 5, by hand; weights need not sum to 1."""
    pairs = [(1.0, math.log(2)), (3.0, math.log(6))]

    assert mix_log_e(pairs) == pytest.approx(math.log(5))
    assert mix_log_e([(10 * w, e) for w, e in pairs]) == pytest.approx(math.log(5))


def test_a_mixture_of_nothing_is_no_evidence() -> None:
    """An e-value of 1."""
    assert mix_log_e([]) == 0.0


# -- spread_rows -------------------------------------------------------------------------------


def test_a_spread_of_zero_changes_nothing() -> None:
    """One scale for all replies."""
    rows = rows_at(1.0, 5, seed=1)

    np.testing.assert_array_equal(spread_rows(rows, SCALES, 0.0), rows)
    assert spread_rows(rows[:0], SCALES, 0.3).shape == (0, len(SCALES))


@pytest.mark.parametrize("spread", [0.05, 0.3, 2.0])
def test_spread_rows_are_still_the_logs_of_a_distribution(spread: float) -> None:
    """Over all four outcomes of a reply the probabilities sum to 1 at every scale."""
    rng = np.random.default_rng(2)
    outcomes = np.log(rng.dirichlet(np.ones(4), size=len(SCALES)).T)  # [4 outcomes, S]
    found = np.exp(spread_rows(outcomes, SCALES, spread))

    np.testing.assert_allclose(found.sum(axis=0), 1.0, rtol=1e-12)


def test_spread_rows_are_a_normal_mixture_over_the_log_of_the_scale() -> None:
    """Against the sum written out, with scipy's normal density for the weights."""
    rows, spread = rows_at(1.0, 3, seed=4), 0.25
    found = spread_rows(rows, SCALES, spread)
    for column in (0, 20, 33):
        weights = norm.pdf(np.log(SCALES), loc=math.log(SCALES[column]), scale=spread)
        for row in range(3):
            mixed = sum(w * math.exp(c) for w, c in zip(weights, rows[row], strict=True))
            expected = math.log(mixed / weights.sum())
            assert found[row, column] == pytest.approx(expected)


def test_intervals_of_spread_rows_keep_their_level_where_replies_differ_in_scale() -> None:
    """The same replies read with one scale for all miss far too often."""
    spread_misses = plain_misses = 0
    for seed in range(100):
        rows = rows_at(1.0, 60, seed=seed, spread=0.6)
        spread = confidence_sequence(spread_rows(rows, SCALES, 0.6), SCALES, level=0.9)
        spread_misses += missed(spread, 1.0)
        plain_misses += missed(confidence_sequence(rows, SCALES, level=0.9), 1.0)

    assert spread_misses <= most(100, 0.1)
    assert plain_misses > most(100, 0.1)


def test_replies_that_differ_in_scale_are_more_likely_under_the_spread_model() -> None:
    """Power: by tens of nats over 60 replies."""
    rows = rows_at(1.0, 60, seed=5, spread=0.6)
    gain = spread_rows(rows, SCALES, 0.6).sum(axis=0).max() - rows.sum(axis=0).max()

    assert gain > 10


# -- confidence_sequence -----------------------------------------------------------------------


def test_the_confidence_sequence_misses_the_truth_at_any_of_many_looks_rarely_enough() -> None:
    """Sequences that ever miss, looking after every reply, are no more than 1 - level."""
    ever = 0
    for seed in range(150):
        rows = rows_at(1.0, 20, seed=2000 + seed)
        looks = (confidence_sequence(rows[:n], SCALES, level=0.9) for n in range(1, 21))
        ever += any(missed(found, 1.0) for found in looks)

    assert ever <= most(150, 0.1)


def test_the_confidence_sequence_closes_in_on_the_truth() -> None:
    """Power: 400 replies bound the scale to within 15 % at level 0.999."""
    for seed in range(10):
        found = confidence_sequence(rows_at(1.0, 400, seed=seed), SCALES, level=0.999)

        assert found is not None
        assert found.upper is not None
        assert 0.85 <= found.lower <= found.estimate <= found.upper <= 1.15


@pytest.mark.parametrize(
    ("level", "lower", "upper"),
    [(0.5, 1.0, 1.0), (0.9, 1.0, 2.0), (0.96, 1.0, 2.0), (0.98, 1.0, None)],
)
def test_a_scale_is_left_out_once_the_mixture_outweighs_it(
    level: float, lower: float, upper: float | None
) -> None:
    """By hand: the mean of 0.90, 0.09 and 0.01 is 1/3, so the ratios are 0.37, 3.7 and 33.3.

    They are held against 1 / (1 - level) = 2, 10, 25 and 50.
    """
    rows = np.log([[0.9, 0.3, 0.1], [1.0, 0.3, 0.1]])
    found = confidence_sequence(rows, np.array([1.0, 2.0, 4.0]), level=level)

    assert found == Interval(estimate=1.0, lower=lower, upper=upper)


def test_there_is_no_interval_without_replies() -> None:
    """Nothing seen, nothing said."""
    assert confidence_sequence(np.zeros((0, len(SCALES))), SCALES, level=0.9) is None


def test_replies_that_say_nothing_bound_nothing() -> None:
    """Equal likelihoods leave the whole grid, and no upper bound."""
    found = confidence_sequence(np.zeros((50, len(SCALES))), SCALES, level=0.5)

    assert found is not None
    assert (found.lower, found.upper) == (SCALES[0], None)


def test_the_top_of_the_grid_not_excluded_is_no_upper_bound() -> None:
    """A scale beyond the grid is bounded from below only."""
    found = confidence_sequence(rows_at(30.0, 40, seed=1), SCALES, level=0.99)

    assert found is not None
    assert found.upper is None
    assert found.lower > 5


def test_an_interval_of_higher_level_holds_every_interval_of_a_lower_one() -> None:
    """Nested in the level, whatever the replies."""
    for seed in range(20):
        rows = rows_at(1.5, 8, seed=seed)
        found = [confidence_sequence(rows, SCALES, level=x) for x in (0.5, 0.9, 0.99, 0.99999)]
        spans = [(f.lower, f.upper or math.inf) for f in found if f is not None]

        assert len(spans) == 4
        assert all(
            outer[0] <= inner[0] <= inner[1] <= outer[1]
            for inner, outer in itertools.pairwise(spans)
        )


# -- log_e_against_scales, best_scale ----------------------------------------------------------


def test_evidence_against_scales_agrees_with_the_confidence_sequence() -> None:
    """All scales from one upwards are rejected exactly where the interval ends below it."""
    level, needed, ends = 0.95, math.log(1 / 0.05), set()
    for seed in range(20):
        rows = rows_at(1.0, 6, seed=seed)
        found = confidence_sequence(rows, SCALES, level=level)
        assert found is not None
        upper = math.inf if found.upper is None else found.upper
        for scale in SCALES[::4]:
            above = log_e_against_scales(rows, scale <= SCALES)
            below = log_e_against_scales(rows, scale >= SCALES)
            assert (above >= needed) == (upper < scale)
            assert (below >= needed) == (found.lower > scale)
            ends |= {above >= needed, below >= needed}

    assert ends == {True, False}


def test_evidence_against_scales_is_the_mixture_over_their_best() -> None:
    """By hand: the mean of 0.90, 0.09 and 0.01 is 1/3; the best of the last two is 0.09."""
    rows = np.log([[0.9, 0.3, 0.1], [1.0, 0.3, 0.1]])
    found = log_e_against_scales(rows, np.array([False, True, True]))

    assert found == pytest.approx(math.log(1 / 3 / 0.09))


def test_evidence_against_scales_keeps_its_level() -> None:
    """Scales among which the truth lies are ever rejected no more often than beta."""
    members = SCALES >= 1.0
    wrong = 0
    for seed in range(100):
        rows = rows_at(1.0, 16, seed=3000 + seed)
        looks = (log_e_against_scales(rows[:n], members) for n in range(1, 17))
        wrong += any(log_e >= math.log(1 / 0.1) for log_e in looks)

    assert wrong <= most(100, 0.1)


def test_evidence_against_scales_excludes_those_twice_the_truth() -> None:
    """Power: within 25 replies nearly always."""
    members = SCALES >= 2.0
    found = [log_e_against_scales(rows_at(1.0, 25, seed=s), members) for s in range(40)]

    assert sum(log_e >= math.log(1000) for log_e in found) >= 38


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_best_scale_is_the_maximum_of_the_likelihood(scale: float) -> None:
    """For normal numbers the root mean square, in closed form, to the nearest point of the grid."""
    replies = np.random.default_rng(8).normal(0, scale, (50, WORDS))
    expected = math.sqrt((replies**2).mean())

    assert best_scale(rows_of(replies), SCALES) == pytest.approx(expected, rel=0.07)


# -- fit_spread --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "among"), [(0.0, {0.0, 0.1}), (0.3, {0.2, 0.3, 0.4}), (0.6, {0.4, 0.6})]
)
def test_the_spread_of_known_stacks_is_recovered(truth: float, among: set[float]) -> None:
    """To within a step of the ladder, from 120 replies."""
    found = {fit_spread([rows_at(1.0, 120, seed=s, spread=truth)], SCALES, LADDER) for s in (1, 2)}

    assert found <= among


def test_stacks_that_differ_in_scale_need_no_spread() -> None:
    """Each stack has its own best scale: only replies of one stack are compared."""
    stacks = [rows_at(0.3, 80, seed=1), rows_at(3.0, 80, seed=2)]

    assert fit_spread(stacks, SCALES, LADDER) <= 0.1
    assert fit_spread([np.concatenate(stacks)], SCALES, LADDER) == 0.6


def test_the_fitted_spread_has_the_largest_likelihood_of_the_ladder() -> None:
    """Against the mixture written out with scipy's normal density."""
    stacks = [rows_at(s, 15, seed=n, spread=0.4) for n, s in enumerate((0.5, 2.0))]
    totals = []
    for spread in LADDER[1:]:
        weights = norm.pdf(np.log(SCALES)[:, None], np.log(SCALES)[None, :], spread)  # [S, S]
        weights /= weights.sum(axis=0)  # column s holds the mixture around scale s
        totals.append(sum(np.log(np.exp(rows) @ weights).sum(axis=0).max() for rows in stacks))

    assert fit_spread(stacks, SCALES, LADDER[1:]) == LADDER[1:][int(np.argmax(totals))]


# -- fit_learning_rate -------------------------------------------------------------------------

RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)

#: Two replies, two scales: the second scale is twice as likely in one, a quarter in the other.
TWO = np.log([[1.0, 2.0], [1.0, 0.25]])


def test_replies_of_the_model_itself_keep_the_full_learning_rate() -> None:
    """Level: power 1 is turned down with probability at most 1/20."""
    found = [fit_learning_rate([rows_at(1.0, 64, seed=s)], ladder=RATES) for s in range(40)]

    assert found.count(1.0) >= 40 - most(40, 0.05)


def test_heavier_tails_than_the_model_has_cost_learning_rate() -> None:
    """Power: Student-t replies read as normal ones need a power below 1."""
    found = [fit_learning_rate([heavy_rows(400, seed=s)], ladder=RATES) for s in range(10)]

    assert all(rate < 1.0 for rate in found)


def test_a_tempered_likelihood_keeps_its_level_where_the_plain_one_does_not() -> None:
    """What the learning rate is for: new heavy-tailed replies at the best scale of the fit."""
    known = heavy_rows(4000, seed=1)
    rate = fit_learning_rate([known], ladder=RATES)
    null, needed = best_scale(known, SCALES) >= SCALES, math.log(1 / 0.01)
    plain = tempered = 0
    for seed in range(100):
        totals = heavy_rows(24, seed=10_000 + seed).cumsum(axis=0)[3::4]
        plain += any(log_e_value(t[~null], t[null]) >= needed for t in totals)
        tempered += any(log_e_value(rate * t[~null], rate * t[null]) >= needed for t in totals)

    assert plain > most(100, 0.01)
    assert tempered <= most(100, 0.01)


def test_the_largest_learning_rate_is_a_golden_ratio() -> None:
    """u + u^-2 = 2 for u = 2^rate gives u = (1 + sqrt 5) / 2, so the rate is 0.6942, by hand."""
    edge = math.log2((1 + math.sqrt(5)) / 2)
    many = np.tile(TWO, (100_000, 1))

    assert fit_learning_rate([many], ladder=(1.0, edge + 0.02, edge - 1e-6)) == edge - 1e-6


def test_the_bets_are_those_of_the_formula() -> None:
    """Slow but obvious: each stake's wealth, reply by reply."""
    ratios = [2.0, 0.25] * 30
    wealth = [math.prod(1 + s * (r - 1) for r in ratios) for s in (0.01, 0.03, 0.1, 0.3, 0.6)]
    won = math.fsum(wealth) / 5
    rows = np.tile(TWO, (30, 1))

    assert fit_learning_rate([rows], ladder=(1.0, 0.1), evidence=won * 1.001) == 1.0
    assert fit_learning_rate([rows], ladder=(1.0, 0.1), evidence=won * 0.999) == 0.1


def test_one_extreme_reply_costs_learning_rate() -> None:
    """A model that is 30 nats off for one reply of 128 does not keep its level."""
    rows = rows_at(1.0, 128, seed=5)
    surprise = np.zeros_like(rows[:1])
    surprise[0, -1] = 30.0  # best explained by a scale far from the truth
    rows = np.concatenate([rows, surprise])

    assert fit_learning_rate([rows], ladder=RATES) < 0.5


def test_every_stack_must_agree_to_the_learning_rate() -> None:
    """The least well described stack decides."""
    good, bad = np.zeros((2, 2)), np.tile(TWO, (500, 1))

    assert fit_learning_rate([good], ladder=(1.0, 0.5)) == 1.0
    assert fit_learning_rate([good, bad, good], ladder=(1.0, 0.5)) == 0.5


def test_no_learning_rate_will_do_is_an_error() -> None:
    """Never a rate that was not tested."""
    with pytest.raises(ValueError, match=r"no learning rate in \(1\.0, 0\.8\)"):
        fit_learning_rate([np.tile(TWO, (5000, 1))], ladder=(1.0, 0.8))


def test_the_reading_is_the_widest_rate_and_then_the_likeliest_spread() -> None:
    """Replies of unequal scales keep the full rate once the spread lets them differ."""
    rng = np.random.default_rng(3)
    rows = np.concatenate(
        [rows_at(float(np.exp(rng.normal(0, 0.5))), 1, seed=n) for n in range(300)]
    )
    spread, rate = fit_reading([rows], SCALES, spreads=LADDER, rates=RATES)
    allowed = [
        s for s in LADDER
        if fit_learning_rate([spread_rows(rows, SCALES, s)], ladder=(*RATES, 0.0)) == rate
    ]  # fmt: skip

    assert rate == 1.0 > fit_learning_rate([rows], ladder=RATES)
    assert spread == fit_spread([rows], SCALES, tuple(allowed)) > 0


def test_no_reading_will_do_is_an_error() -> None:
    """Whatever the spread."""
    rows = np.tile([[0.0, 1.0], [0.0, -1.2]], (5000, 1))

    with pytest.raises(ValueError, match="no learning rate"):
        fit_reading([rows], np.array([1.0, 1e9]), spreads=(0.0, 0.1), rates=(1.0,))


def test_a_likelihood_ratio_too_large_for_a_number_turns_a_learning_rate_down() -> None:
    """Overflow is a mean above 1, not a warning."""
    rows = np.array([[0.0, 1000.0], [0.0, -1000.5]])

    with pytest.raises(ValueError, match="no learning rate"):
        fit_learning_rate([rows], ladder=(1.0,))


# -- many hypotheses ---------------------------------------------------------------------------


def test_e_bh_keeps_its_level_when_every_e_value_is_the_same() -> None:
    """The hardest dependence: all are 1/level at once, as seldom as a mean of 1 allows."""
    level, trials, count = 0.1, 2000, 6
    struck = np.random.default_rng(11).random(trials) < level * 0.999
    rejections = [
        e_bh([math.log(1.001 / level) if hit else -50.0] * count, level) for hit in struck
    ]
    false = sum(bool(rejected) for rejected in rejections)

    assert false <= most(trials, level)
    assert false > 0.8 * level * trials  # at its level, not by being idle


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
def test_e_bh_keeps_its_level_beside_true_discoveries(shared: float) -> None:
    """Likelihood ratios that share their noise, stopped when they cross: the mean share of false
    rejections stays below the level, and most true ones are found."""
    rng, level, trials = np.random.default_rng(5), 0.1, 400
    wrong, found = [], []
    for _ in range(trials):
        noise = math.sqrt(shared) * rng.normal(size=(1, 12)) + math.sqrt(1 - shared) * rng.normal(
            size=(8, 12)
        )
        noise[:3] += 1.0  # three of eight are what the alternative says
        log_e = (noise - 0.5).cumsum(axis=1)
        crossed = log_e >= math.log(8 / level)
        stop = np.where(crossed.any(axis=1), crossed.argmax(axis=1), 11)
        rejected = e_bh(log_e[range(8), stop].tolist(), level)
        wrong.append(sum(n >= 3 for n in rejected) / max(1, len(rejected)))
        found.append(sum(n < 3 for n in rejected) / 3)

    assert np.mean(wrong) <= level
    assert np.mean(found) > 0.6


@pytest.mark.parametrize(
    ("e", "rejected"),
    [
        ((60.0, 1.0, 26.0, 0.5, 15.0), (0, 2)),  # 50, 25, 16.7, 12.5 and 10 are needed
        ((12.0, 12.0, 12.0), (0, 1, 2)),  # none reaches 30 alone, all reach 10 together
        ((29.0, 1.0, 1.0), ()),
        ((11.0,), (0,)),
        ((), ()),
        ((math.inf, 0.0), (0,)),
    ],
)
def test_e_bh_worked_by_hand(e: tuple[float, ...], rejected: tuple[int, ...]) -> None:
    """Level 0.1."""
    with np.errstate(divide="ignore"):
        assert e_bh(np.log(np.array(e, dtype=float)).tolist(), 0.1) == rejected


def test_e_bh_is_the_benjamini_hochberg_procedure_on_reciprocals() -> None:
    """Wang and Ramdas (2022), section 4; the procedure on p-values is scipy's."""
    rng = np.random.default_rng(9)
    for _ in range(200):
        e = np.exp(rng.normal(1.5, 2.0, size=int(rng.integers(1, 12))))
        adjusted = false_discovery_control(np.minimum(1.0, 1 / e), method="bh")

        assert e_bh(np.log(e).tolist(), 0.2) == tuple(np.flatnonzero(adjusted <= 0.2).tolist())


def test_e_bh_takes_no_unknown_for_a_number() -> None:
    """Not a number is no evidence either way."""
    with pytest.raises(ValueError, match="no number"):
        e_bh([0.0, math.nan], 0.1)
