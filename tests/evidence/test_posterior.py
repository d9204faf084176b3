"""Which build explains the replies, how soon it may be said, and which are out for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hosts import rows_at, under_a_build
from simulate import make_calibration, simulate_row

from verifier.evidence.ledger import Ledger, Row
from verifier.evidence.posterior import ENOUGH, Ranked, is_out, leading_build, scored_among
from verifier.records import REFERENCE

BUILD = "int4-sym-g64"
CHANNEL = make_calibration().text
LEVEL = {"odds": 1000.0, "error": 0.001}


def near_rows(count: int, *, seed: int, scale: float = 0.6, near: float = 0.6) -> list[Row]:
    """Replies of a build that shares no more with the one of the bank than its class."""
    rng = np.random.default_rng(seed)
    return [under_a_build(simulate_row(rng, f"p{n}", scale=scale), rng, near) for n in range(count)]


def leading(rows: Sequence[Row], **level: float) -> Ranked | None:
    return leading_build(Ledger(rows=tuple(rows)), (BUILD,), CHANNEL, **(LEVEL | level))


def out(rows: Sequence[Row]) -> bool:
    return is_out(Ledger(rows=tuple(rows)), BUILD, CHANNEL, **LEVEL)


def test_a_build_near_the_one_served_never_leads() -> None:
    """Level: however few or many replies are looked at."""
    for seed in range(40):
        rows = near_rows(12, seed=seed)
        assert not any(leading(rows[:n]) for n in range(1, 13))


def test_the_build_that_is_served_leads_on_a_few_replies() -> None:
    """Power; it is out in none of them."""
    led = 0
    for seed in range(40):
        rows = rows_at(0.6, 4, seed=seed, builds=(BUILD,))
        led += leading(rows) is not None
        assert not any(out(rows[:n]) for n in range(1, 5))

    assert led >= 38


def test_a_build_that_is_not_served_is_out_on_three_replies() -> None:
    """Power of the screening."""
    assert sum(out(near_rows(3, seed=seed)) for seed in range(40)) >= 38


def test_a_fit_that_is_not_shown_is_none() -> None:
    """One short reply rejects nothing; nor does it show that less noise is left."""
    (row,) = rows_at(0.6, 1, seed=3, builds=(BUILD,), tokens=6)

    assert leading([row]) is None
    assert leading([row], odds=1.0) is None


def test_a_column_that_fell_behind_is_ranked_no_more() -> None:
    """Known answer: scored on as many replies as any, or on enough of them."""

    def scored(**counts: int) -> Ledger:
        (row,) = rows_at(0.05, 1, seed=1)
        cells = row.text[REFERENCE]
        return Ledger(rows=tuple(
            replace(row, text={name: cells for name, count in counts.items() if n < count})
            for n in range(max(counts.values()))
        ))  # fmt: skip

    names = ("a", "b", "c")
    assert scored_among(scored(a=3, b=3), names) == ["a", "b"]
    assert scored_among(scored(a=3, b=ENOUGH), names) == ["b"]
    assert scored_among(scored(a=24, b=40, c=3), names) == ["a", "b"]
