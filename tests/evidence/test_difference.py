"""Whether one endpoint is noisier than another: level, power and known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from simulate import VOCABULARY, _score, simulate_row

from verifier.evidence.arrays import Array
from verifier.evidence.difference import log_e_noisier, within
from verifier.evidence.ledger import TEXT_SCALES, text_cells

RATIO = 1.6
TOKENS = 20


def drawn(rng: np.random.Generator, scale: float, count: int) -> Array:
    """Rows [n, S] of a host of this noise scale."""
    rows = [simulate_row(rng, f"p{n}", scale=scale, tokens=TOKENS) for n in range(count)]
    return np.array([row.text["reference"] for row in rows])


def beside_a_reference_that_is_off(
    rng: np.random.Generator, off: float, scale: float, count: int
) -> tuple[Array, Array]:
    """Rows of two hosts of this scale, asked the same, of which the reference is off by as much."""
    found: tuple[list[tuple[float, ...]], ...] = ([], [])
    for _ in range(count):
        true = rng.normal(0, 2, (TOKENS, VOCABULARY))
        reference = true + rng.gumbel(0, off, true.shape)
        for rows in found:
            chosen = (true + rng.gumbel(0, scale, true.shape)).argmax(axis=1)
            rows.append(text_cells(_score(reference, chosen), range(TOKENS)))
    return np.array(found[0]), np.array(found[1])


def highest(target: Array, control: Array, *, ratio: float = RATIO) -> float:
    """The largest evidence at any of the looks of an audit that goes on whatever it sees."""
    looks = [n for n in (1, 2, 4, 6, 10, 14, 22, 30) if n <= len(target)]
    return max(
        log_e_noisier(
            target[:n].sum(axis=0), control[:n].sum(axis=0), TEXT_SCALES, ratio=ratio
        )
        for n in looks
    )  # fmt: skip


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(lambda rng: (drawn(rng, 0.3, 14), drawn(rng, 0.3, 14)), id="alike"),
        pytest.param(lambda rng: (drawn(rng, 0.48, 14), drawn(rng, 0.3, 14)), id="at-the-edge"),
        pytest.param(lambda rng: (drawn(rng, 0.1, 14), drawn(rng, 0.6, 14)), id="quieter"),
        pytest.param(
            lambda rng: beside_a_reference_that_is_off(rng, 0.4, 0.1, 14), id="one-error-in-common"
        ),
    ],
)
def test_an_endpoint_as_noisy_as_its_control_is_called_noisier_at_most_at_the_rate_promised(
    pair: Callable[[np.random.Generator], tuple[Array, Array]],
) -> None:
    """At 1 in 20, at the worst of all looks; also where the reference is what is off."""
    rng = np.random.default_rng(3)
    called = sum(highest(*pair(rng)) >= math.log(20) for _ in range(60))

    assert called <= 60 / 20 + 5


def test_one_text_from_both_is_never_evidence() -> None:
    """Every pair beyond has its mirror image within."""
    rng = np.random.default_rng(4)
    for scale in (0.02, 0.2, 0.9):
        rows = drawn(rng, scale, 6)
        assert highest(rows, rows) <= 0


# -- power ---------------------------------------------------------------------------------------


def test_a_noisier_endpoint_is_told_by_few_replies() -> None:
    """Four-bit noise beside a control that is above the honest floor itself, at 1 in 1,000."""
    rng = np.random.default_rng(5)
    found = [highest(drawn(rng, 0.63, 6), drawn(rng, 0.12, 14)[:6]) for _ in range(20)]

    assert sum(log_e >= math.log(1000) for log_e in found) >= 18


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_is_the_mixture_beyond_against_the_best_pair_within() -> None:
    """By hand: three scales a factor of two apart, and at most twice the control's allowed."""
    scales = np.array([0.1, 0.2, 0.4])
    target, control = np.array([-9.0, -5.0, -1.0]), np.array([-2.0, -3.0, -7.0])
    # beyond: the target at 0.4, the control at 0.1. Within at best: at 0.4 and 0.2
    assert within(scales, 2.0).sum() == 8
    assert log_e_noisier(target, control, scales, ratio=2.0) == pytest.approx(-3.0 - -4.0)
    # beyond without slack: that, 0.2 over 0.1 and 0.4 over 0.2; within at best 0.2 over 0.2
    beyond = np.logaddexp.reduce([-3.0, -7.0, -4.0]) - math.log(3)
    assert log_e_noisier(target, control, scales, ratio=1.0) == pytest.approx(beyond - -8.0)


def test_without_replies_there_is_no_evidence() -> None:
    """Nor where every pair is allowed."""
    nothing = np.zeros(len(TEXT_SCALES))

    assert log_e_noisier(nothing, nothing, TEXT_SCALES, ratio=RATIO) == pytest.approx(0)
    assert log_e_noisier(nothing + 3, nothing, TEXT_SCALES, ratio=1000.0) == 0
