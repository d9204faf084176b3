"""What is kept of one reply's reports: counts by hand, densities held to scipy's, their level."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import helmert
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_t
from scipy.stats import t as student_t

from verifier.evidence.ledger import LOGPROB_DF, LOGPROB_SCALES, Reported
from verifier.evidence.reported import (
    AFTER,
    BEFORE,
    GIVEN,
    PENALIZED,
    SCALED,
    UNEVEN,
    UNRELATED,
    describe_reports,
)
from verifier.records import ReplyScore

Array = NDArray[np.float64]

VOCABULARY, NAMED = 40, 5
FAULTS = (BEFORE, AFTER, GIVEN, SCALED, PENALIZED, UNRELATED, UNEVEN)


class Told:
    """A greedy reply of a reference, and what an endpoint reports of it: at first the truth."""

    def __init__(self, seed: int, *, tokens: int = 12, noise: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.known: Array = log_softmax(rng.normal(0, 2, (tokens, VOCABULARY)), axis=1)
        self.reply: list[int] = self.known.argmax(axis=1).tolist()
        self.ids: list[list[int]] = np.argsort(-self.known, axis=1)[:, :NAMED].tolist()
        self.values = [[float(self.known[t, n]) for n in ids] for t, ids in enumerate(self.ids)]
        if noise:
            drawn = multivariate_t(shape=np.eye(NAMED), df=LOGPROB_DF, seed=rng).rvs(tokens)
            self.values = (np.array(self.values) + noise * np.atleast_2d(drawn)).tolist()
        self.own: list[float | None] = [values[0] for values in self.values]

    def list_alternatives(self, t: int, ids: list[int], values: list[float]) -> None:
        """Beside the given token's own value put these, with another of its own if it is there."""
        named = dict(zip(ids, values, strict=True))
        given = self.reply[t]
        self.own[t] = named.pop(given, None)
        self.ids[t] = [given, *named]
        self.values[t] = [self.values[t][0], *named.values()]

    def score(self) -> ReplyScore:
        chosen = [float(self.known[t, n]) for t, n in enumerate(self.reply)]
        return ReplyScore(
            logprobs=tuple(chosen),
            ranks=tuple(int((self.known[t] > p).sum()) + 1 for t, p in enumerate(chosen)),
            entropies=(0.0,) * len(chosen),
            top_ids=tuple(self.known.argmax(axis=1).tolist()),
            top_logprobs=tuple(map(tuple, (-np.sort(-self.known, axis=1)[:, :20]).tolist())),
            candidate_logprobs=tuple(
                tuple(float(self.known[t, n]) for n in ids) for t, ids in enumerate(self.ids)
            ),
        )

    def found(self) -> Reported:
        made = describe_reports(
            self.score(), reply_ids=self.reply, candidates=self.ids, reported=self.values,
            own=self.own,
        )  # fmt: skip
        assert made is not None
        return made


def density(point: Any, scale: float) -> float:
    return float(multivariate_t.logpdf(point, shape=np.eye(len(point)) * scale**2, df=LOGPROB_DF))


def mean(logs: Any) -> float:
    return float(logsumexp(logs) - math.log(np.size(logs)))


# -- counts --------------------------------------------------------------------------------------


def test_right_reports_show_nothing() -> None:
    """Nothing that noise does not bring about, no step, and no fault likelier than noise."""
    found = Told(1, noise=0.05).found()

    assert (found.given, found.named, found.listed) == (12, 12, 12)
    assert (found.alike, found.constant, found.apart, found.copied) == (0, 0, 0, 0)
    assert (found.fillers, found.misranked, found.step) == (0, 0, None)
    assert found.slope == pytest.approx(1, abs=0.05)
    assert sorted(found.gains) == sorted(FAULTS)
    assert max(found.gains.values()) < 0


def test_a_row_by_hand() -> None:
    """Of three positions one has no alternatives, one two values for its token, one a zero."""
    told = Told(2, tokens=3)
    told.ids[0], told.values[0], told.own[0] = told.ids[0][:1], told.values[0][:1], None
    told.values[1][0] -= 0.5
    told.values[2][0] = told.own[2] = 0.0
    found = told.found()

    assert (found.given, found.named, found.listed, found.apart) == (3, 2, 2, 1)


@pytest.mark.parametrize(("change", "count"), [(0.009, 0), (0.011, 1)])
def test_two_values_of_one_token_differ_by_more_than_rounding(change: float, count: int) -> None:
    """A hundredth of a nat."""
    told = Told(3)
    told.own[4] = told.values[4][0] + change

    assert told.found().apart == count


def test_a_constant_is_counted_where_the_weights_say_otherwise() -> None:
    """An honest host is certain now and then: 0.0 where the weights are sure is no fault."""
    told, sure = Told(4), Told(4)
    for one in (told, sure):
        for t in range(12):
            one.values[t][0] = one.own[t] = 0.0
    sure.known = sure.known.copy()
    sure.known[np.arange(12), sure.reply] = -0.001
    wrong = sum(told.known[t, n] < -0.1 for t, n in enumerate(told.reply))

    assert told.found().constant == wrong > 5
    assert sure.found().constant == 0


def test_one_value_for_all_tokens_is_counted() -> None:
    """By position."""
    told = Told(5)
    told.values[2] = [-1.0] * NAMED
    told.own[2] = -1.0

    assert told.found().alike == 1


def test_copied_alternatives_are_counted_where_they_are_wrong() -> None:
    """Two positions hold the list of a third: it is that one's own."""
    told = Told(6)
    for t in (4, 5):
        told.list_alternatives(t, told.ids[3], told.values[3])

    assert told.found().copied == 2


@pytest.mark.parametrize(("filler", "count"), [(-100.0, 12), (-19.0, 0)])
def test_fillers_are_far_below_anything_likely(filler: float, count: int) -> None:
    """And the same again and again."""
    told = Told(7)
    for values in told.values:
        values[3:] = [filler] * 2

    assert told.found().fillers == count


@pytest.mark.parametrize(
    ("step", "error"), [(1.0, 0.2887), (0.1, 0.0289), (0.01, 0.0029)], ids=["1", "0.1", "0.01"]
)
def test_the_step_of_rounding_is_found_with_its_error(step: float, error: float) -> None:
    """That of numbers spread evenly over a step."""
    told = Told(8)
    told.values = [[round(v / step) * step for v in values] for values in told.values]

    assert told.found().step == step
    assert told.found().rounding == pytest.approx(error, abs=1e-4)


def test_half_precision_is_a_step_of_its_own() -> None:
    """Eight binary digits, so a step that grows with the number."""

    def rounded(value: float) -> float:
        mantissa, exponent = math.frexp(value)
        return math.ldexp(round(mantissa * 256), exponent - 8)

    told = Told(9)
    told.values = [[rounded(v) for v in values] for values in told.values]
    found = told.found()

    assert found.step == 0.0
    assert 0.001 < found.rounding < 0.02


def test_another_token_ranked_first_is_counted_where_the_weights_agree_with_the_text() -> None:
    """Half a nat above the token given."""
    told = Told(10)
    told.values[1][2] = told.values[1][0] + 0.6

    assert told.found().misranked == 1


def test_replies_are_told_apart_by_what_is_reported_with_them() -> None:
    """The same numbers have the same digest; a short reply has none."""
    assert Told(11).found().digest == Told(11).found().digest != Told(12).found().digest
    assert Told(11, tokens=3).found().digest is None


def test_nothing_told_is_nothing_kept() -> None:
    """Of a reply whose positions name no token."""
    told = Told(13, tokens=2)
    told.ids, told.values, told.own = [[], []], [[], []], [None, None]

    assert (
        describe_reports(
            told.score(), reply_ids=told.reply, candidates=told.ids, reported=told.values, own=None
        )
        is None
    )


# -- densities -----------------------------------------------------------------------------------


def test_the_gains_are_those_of_scipys_densities() -> None:
    """Two positions by slow and obvious forms: noise, its scale by position, and a shift."""
    told = Told(14, tokens=2, noise=0.3)
    basis = helmert(NAMED)
    points = [
        basis @ (np.array(values) - told.known[t, told.ids[t]])
        for t, values in enumerate(told.values)
    ]
    noise = np.array([[density(p, s) for s in LOGPROB_SCALES] for p in points])  # [2, S]
    best = noise.sum(axis=0).max()
    found = told.found().gains

    assert found[UNEVEN] == pytest.approx(sum(mean(row) for row in noise) - best, abs=0.01)
    # of a shift: position 0 has none before it, so its alternatives are right there
    right = LOGPROB_SCALES[LOGPROB_SCALES <= 1 + 1e-9]
    alternatives, given = np.zeros(len(right)), 0.0
    for t, values in enumerate(told.values):
        others = np.array(values[1:])
        own_rank = int((others > values[0]).sum())
        ranked = -np.sort(-told.known[0])
        centre = np.array(told.known[t, told.ids[t][1:]])
        if t:
            centre[np.argsort(-others)] = np.delete(ranked, own_rank)[: NAMED - 1]
        point = helmert(NAMED - 1) @ (others - centre)
        alternatives += [density(point, s) for s in right]
        off = values[0] - others.mean() - (told.known[t, told.ids[t][0]] - centre.mean())
        off *= math.sqrt((NAMED - 1) / NAMED)
        given += mean([student_t.logpdf(off, LOGPROB_DF, scale=s) for s in LOGPROB_SCALES])
    shifted = mean(alternatives) + given - math.log(math.factorial(NAMED))

    assert found[BEFORE] == pytest.approx(shifted - best, abs=0.01)


@pytest.mark.parametrize("noise", [0.02, 0.2, 1.0])
def test_right_reports_are_given_a_fault_at_most_as_often_as_promised(noise: float) -> None:
    """The mean of exp(gain) is at most 1; on replies of three positions gains are largest."""
    found = [Told(seed, tokens=3, noise=noise).found().gains for seed in range(100)]
    for fault in FAULTS:
        gains = np.array([one[fault] for one in found])
        assert np.exp(gains).mean() <= 1
        assert (gains >= math.log(20)).mean() <= 1 / 20


@pytest.mark.parametrize("noise", [0.02, 0.2])
@pytest.mark.parametrize("fault", [BEFORE, AFTER, GIVEN, SCALED, UNRELATED, UNEVEN])
def test_each_fault_is_found_in_one_reply(fault: str, noise: float) -> None:
    """Power: it is the likeliest of all, and over a million times as likely as noise."""
    told, right = Told(20, tokens=30, noise=noise), Told(20, tokens=30, noise=noise)
    other = Told(21, tokens=30)
    for t in range(30):
        if fault in (BEFORE, AFTER):
            there = min(max(t + (1 if fault == AFTER else -1), 0), 29)
            told.list_alternatives(t, right.ids[there], right.values[there])
        elif fault == UNRELATED:
            told.list_alternatives(t, other.ids[t], other.values[t])
        elif fault == GIVEN:
            told.values[t][0] = told.own[t] = -6 - 0.1 * t
        elif fault == SCALED:
            told.values[t] = [1.3 * v for v in Told(20, tokens=30, noise=0.02).values[t]]
        elif fault == UNEVEN and t % 2:
            told.values[t] = (np.array(told.values[t]) + 3 * np.cos(np.arange(5) * t)).tolist()
    gains = told.found().gains

    assert max(gains, key=lambda name: gains[name]) == fault
    assert gains[fault] > math.log(1e6)


def test_a_penalty_is_told_by_the_tokens_that_came_before() -> None:
    """All that the reply holds already are lowered by half a nat."""
    told = Told(22, tokens=30, noise=0.02)
    for t, ids in enumerate(told.ids):
        seen = set(told.reply[:t])
        told.values[t] = [v - 0.5 * (n in seen) for n, v in zip(ids, told.values[t], strict=True)]
        told.own[t] = told.values[t][0]
    gains = told.found().gains

    assert max(gains, key=lambda name: gains[name]) == PENALIZED
    assert gains[PENALIZED] > math.log(1e6)


def test_a_list_that_is_too_short_says_nothing_of_a_neighbour() -> None:
    """An engine that names fewer tokens than the endpoint: the position is held to its own."""
    told = Told(23, noise=0.05)
    score = replace(told.score(), top_logprobs=((-0.5,),) * 12)
    found = describe_reports(
        score, reply_ids=told.reply, candidates=told.ids, reported=told.values, own=told.own
    )

    assert found is not None
    assert found.gains[BEFORE] == found.gains[AFTER] == found.gains[GIVEN]
