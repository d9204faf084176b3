"""The properties of `fuzzing`, tried with fresh inputs for as long as asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fuzzing import PROPERTIES, Property
from hypothesis import HealthCheck, given, seed, settings

from attacks.lab import Lab, Tally

ROUND = 50  # inputs of one seed
SHRINKING_S = 20.0


def attack_at_random(lab: Lab) -> Iterator[Tally]:
    share = lab.size(1, 0) * lab.seconds / len(PROPERTIES) or 1.5
    for number, asked in enumerate(PROPERTIES):
        yield _try(asked, seconds=share, first=lab.seed + number * 10**6)


def _try(asked: Property, *, seconds: float, first: int) -> Tally:
    """Rounds of fresh inputs; one that does not hold is shrunk and kept with its round's seed."""
    tally = Tally(attack=f"at random: {asked.name}")
    until = time.monotonic() + seconds
    begun, rounds = time.monotonic(), 0
    while time.monotonic() < until:
        problem = _round(asked, tally, first + rounds, until)
        rounds += 1
        if problem is not None:
            tally.note(f"seed {first + rounds - 1}", problem)
            break  # the same fault would be found again
    tally.extra = {
        "seconds": round(time.monotonic() - begun, 1), "rounds": rounds, "first_seed": first,
        "crashes": tally.tried - tally.held,
    }  # fmt: skip
    return tally


def _round(asked: Property, tally: Tally, number: int, until: float) -> str | None:
    falling: dict[str, float] = {}  # inputs that did not hold and when, the smallest last

    @seed(number)
    @settings(
        deadline=None, database=None, max_examples=ROUND, suppress_health_check=list(HealthCheck)
    )
    @given(asked.inputs)
    def hold(drawn: Any) -> None:
        late = time.monotonic() > (min(falling.values()) + SHRINKING_S if falling else until)
        if late and repr(drawn) not in falling:
            return  # what is left of the round, or of shrinking
        began = time.monotonic()
        try:
            asked.check(drawn)
        except BaseException:
            falling.setdefault(repr(drawn), time.monotonic())
            raise
        if not falling:
            tally.note("", None, time.monotonic() - began)

    try:
        hold()
    except Exception as error:  # noqa: BLE001 - whatever comes is the finding
        return f"{type(error).__name__}: {error} with {list(falling)[-1:]}"
    return None
