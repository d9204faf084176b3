"""Habits of reporting: what each makes of three tokens, by hand."""

from __future__ import annotations

import math

import pytest

from verifier.lab.testbed.reporting import HABITS
from verifier.lab.testbed.wire import ShownToken


def shown(raw: bytes, *values: float) -> ShownToken:
    """A token with itself and others as its alternatives."""
    top = tuple(zip((raw, b"x", b"y"), values, strict=False))
    return ShownToken(raw=raw, start=0, logprob=values[0], top=top)


TOKENS = (shown(b"a", -0.25, -2.0), shown(b"b", -1.0, -1.5), shown(b"a", -0.5, -3.0))
EARLIER = (shown(b"c", -0.75, -4.0),)


def made(habit: str) -> list[tuple[float, list[float]]]:
    """Each token's own value, and those of its alternatives."""
    found = HABITS[habit][1](TOKENS, EARLIER)
    return [(token.logprob, [value for _, value in token.top]) for token in found]


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_changes_numbers_and_no_text(habit: str) -> None:
    """And says where it was seen, or that it was not."""
    said, change = HABITS[habit]
    found = change(TOKENS, EARLIER)

    assert [(token.raw, token.start) for token in found] == [(t.raw, t.start) for t in TOKENS]
    assert found != TOKENS or habit in ("bfloat16", "fillers")  # these numbers are short and few
    assert said.endswith(")") or ":" in said


@pytest.mark.parametrize(
    ("habit", "expected"),
    [
        ("zeros", [(-0.25, [-0.25, -2.0]), (0.0, []), (0.0, [])]),
        ("given-zero", [(0.0, [-0.25, -2.0]), (0.0, [-1.0, -1.5]), (0.0, [-0.5, -3.0])]),
        ("given-zero-in-both", [(0.0, [0.0, -2.0]), (0.0, [0.0, -1.5]), (0.0, [0.0, -3.0])]),
        ("one-hot", [(0.0, [0.0, -9999.0])] * 3),
        ("before", [(-0.25, [-0.25, -2.0]), (-1.0, [-0.25, -2.0]), (-0.5, [-1.0, -1.5])]),
        ("after", [(-0.25, [-1.0, -1.5]), (-1.0, [-0.5, -3.0]), (-0.5, [-0.5, -3.0])]),
        ("before-whole", [(-0.25, [-0.25, -2.0]), (-0.25, [-0.25, -2.0]), (-1.0, [-1.0, -1.5])]),
        ("chunks", [(-0.25, [-0.25, -2.0]), (-1.0, [-0.25, -2.0]), (-0.5, [-0.25, -2.0])]),
        ("another-reply", [(-0.75, [-0.75, -4.0]), (-1.0, [-1.0, -1.5]), (-0.5, [-0.5, -3.0])]),
        ("penalized", [(-0.25, [-0.25, -2.0]), (-1.0, [-1.0, -1.5]), (-1.5, [-1.5, -3.0])]),
        ("alike", [(-1.0, [-1.0, -1.0])] * 3),
    ],
)
def test_a_habit_by_hand(habit: str, expected: list[tuple[float, list[float]]]) -> None:
    """The third token is the first again."""
    assert made(habit) == expected


def test_scaled_habits_by_hand() -> None:
    """Bases change every number alike; a temperature is followed by what the values sum to."""
    (own, (_, other)), *_ = made("base10")
    assert (own, other) == pytest.approx((math.log10(math.exp(-0.25)), math.log10(math.exp(-2.0))))
    (own, (first, other)), *_ = made("temperature")
    assert own == first
    assert own - other == pytest.approx(1.75 / 0.7)
    assert made("probabilities")[0][0] == pytest.approx(math.exp(-0.25))
    assert made("rounded")[0][1] == [-0.2, -2.0]


def test_fillers_stand_from_the_third_alternative_on() -> None:
    """Two are left as they are."""
    (found,) = HABITS["fillers"][1]((shown(b"a", -0.25, -2.0, -7.0),), ())

    assert [value for _, value in found.top] == [-0.25, -2.0, -100.0]
