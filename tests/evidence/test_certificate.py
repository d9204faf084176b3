"""The certificate of the noise bet: a bound on the mean of honest ratios, and what follows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulate import make_calibration
from worlds import chances_of, enumerate_process, make_world, worst_stop

from verifier.evidence.certificate import (
    CAP,
    STEP,
    alpha_of,
    bound_mean,
    capped_ratios,
    log_e_capped,
    tally_ratios,
)
from verifier.evidence.ledger import TEXT_SCALES
from verifier.evidence.noise import honest_scales, read_rows
from verifier.records import REFERENCE

HONEST = honest_scales(TEXT_SCALES, make_calibration().text)


# -- level -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [0.0, 0.002, 0.02])
def test_the_bound_holds_the_mean(tail: float) -> None:
    """At 9 in 10, of ratios some of which are the largest that there can be; 300 collections."""
    rng = np.random.default_rng(3)
    body = rng.gamma(4, 0.2, size=(300, 400)).clip(0, CAP)
    large = rng.random(body.shape) < tail
    ratios = np.where(large, CAP, body)
    mean = (1 - tail) * 0.8 + tail * CAP
    missed = sum(bound_mean(tally_ratios(np.log(one)), level=0.9) < mean for one in ratios)

    assert missed <= 300 * 0.1 + 3 * math.sqrt(300 * 0.1 * 0.9)


def test_it_holds_however_long_one_collects() -> None:
    """Looked at after every hundred replies, with the mean at the bound of each look."""
    rng, missed = np.random.default_rng(4), 0
    for _ in range(100):
        ratios = np.where(rng.random(1000) < 0.05, CAP, rng.gamma(4, 0.1, 1000))
        looks = range(100, 1001, 100)
        bounds = [bound_mean(tally_ratios(np.log(ratios[:n])), level=0.9) for n in looks]
        missed += min(bounds) < 0.05 * CAP + 0.95 * 0.4

    assert missed <= 100 * 0.1 + 3 * math.sqrt(100 * 0.1 * 0.9)


def test_honest_ratios_have_a_mean_of_one_at_most_under_the_model() -> None:
    """And the bet on them at every stopping time, in worlds that are enumerated."""
    for seed, width, spread in ((0, 1.0, 0.0), (1, 0.3, 0.15)):
        world = make_world(seed, replies=2, width=width)
        channel = make_calibration().text.model_copy(update={"spread": spread})

        def read(rows: np.ndarray, channel=channel) -> np.ndarray:  # type: ignore[no-untyped-def]
            return read_rows(rows, TEXT_SCALES, channel)

        def weigh(rows: tuple, read=read) -> list[float]:  # type: ignore[no-untyped-def, type-arg]
            cells = np.array([row.text[REFERENCE] for row in rows]).reshape(-1, len(TEXT_SCALES))
            return [log_e_capped(capped_ratios(read(cells), HONEST))]

        process = enumerate_process(world, weigh)
        for how in (lambda rows: rows, read):
            truths = chances_of(world, REFERENCE, read=how)[HONEST, 0]
            assert worst_stop(process, truths).max() <= 1 + 1e-9


def test_an_audit_crosses_as_seldom_as_the_certificate_says() -> None:
    """Where honest ratios have a mean above 1, as it was bounded: 40 replies, alpha 1 in 20."""
    rng, excess = np.random.default_rng(8), 0.02
    ratios = np.log(rng.gamma(2, 0.51, size=(2000, 40)))
    assert np.exp(ratios).mean() == pytest.approx(1 + excess, abs=0.01)
    crossed = sum(
        any(log_e_capped(one[:n]) >= math.log(20) for n in range(1, 41)) for one in ratios
    )

    assert crossed / 2000 <= alpha_of(40, excess=excess, alpha=0.05)


# -- power -------------------------------------------------------------------------------------


def test_a_thousand_quiet_replies_bound_the_mean_near_itself() -> None:
    """As many as one stack gives: the bound falls by what CAP costs, and no further."""
    rng = np.random.default_rng(5)
    ratios = rng.normal(0.93, 0.14, 1400).clip(0.01, CAP)
    bound = bound_mean(tally_ratios(np.log(ratios)), level=0.99)

    assert 0.93 < bound < 1.01


def test_noise_above_what_is_honest_is_seen_under_the_cap() -> None:
    """Rows far better at scale 0.6: three replies of 20 each reach 1,000."""
    rows = np.where(TEXT_SCALES > 0.5, 0.0, -30.0)[None].repeat(4, axis=0)
    ratios = capped_ratios(rows, HONEST)

    np.testing.assert_allclose(ratios, math.log(CAP))
    assert log_e_capped(ratios) >= math.log(1000)


# -- known answer ------------------------------------------------------------------------------


def test_the_bound_is_that_of_the_bets_one_by_one() -> None:
    """Wealth against a mean, reply by reply: at the bound it is 1 / (1 - level)."""
    values = [0.5, 0.9, 1.4, 0.2, 3.0, 0.8] * 60
    found = bound_mean(tally_ratios(np.log(values)), level=0.95)

    def wealth(m: float) -> float:
        total = 0.0
        for fraction in (0.3, 0.99):
            product = 1.0
            for value in values:
                product *= 1 + fraction * (m - value) / (CAP - m)
            total += product / 2
        return total

    assert wealth(found) == pytest.approx(20, rel=1e-3)


def test_a_bet_on_one_reply_by_hand() -> None:
    """Stakes 0.1, 0.3, 0.6 and 1 on a ratio of 3."""
    assert math.exp(log_e_capped(np.log([3.0]))) == pytest.approx((1.2 + 1.6 + 2.2 + 3) / 4)
    assert log_e_capped(np.array([])) == 0
    assert math.exp(log_e_capped(np.array([-800.0]))) == pytest.approx(0.5, abs=1e-9)


def test_a_tally_rounds_up() -> None:
    """So that a bound from it is one of the ratios."""
    assert tally_ratios(np.log([0.0101, 0.012, 0.0119, 19.9999])) == {0.012: 3, 20.0: 1}
    assert STEP == 0.002


def test_alpha_grows_with_the_replies() -> None:
    """By d each, and never beyond 1."""
    assert alpha_of(10, excess=0.001, alpha=0.001) == pytest.approx(0.001 * 1.001**10)
    assert alpha_of(10**6, excess=0.1, alpha=0.001) == 1.0


def test_nothing_is_bounded_by_nothing() -> None:
    """Without replies, and where all are as large as can be."""
    assert bound_mean({}, level=0.99) == pytest.approx(CAP)
    assert bound_mean({CAP: 1000}, level=0.99) == pytest.approx(CAP)
