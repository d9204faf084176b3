"""Whatever comes, a value comes back: a fixed sample of what the attacks try at length.

The sample is the same each time; `python -m tests.attacks --part fuzz` draws fresh ones.
"""

from __future__ import annotations

from typing import Any

import pytest
from fuzzing import PROPERTIES, Property
from hypothesis import HealthCheck, Phase, given, settings

PHASES = (Phase.explicit, Phase.generate)  # the script shrinks what it finds; CI need not


@pytest.mark.parametrize("asked", PROPERTIES, ids=lambda p: p.name.replace(" ", "-"))
def test_whatever_comes_is_a_value(asked: Property) -> None:
    """Each input of the sample holds what its property says."""

    @settings(
        derandomize=True, deadline=None, database=None, max_examples=asked.examples, phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(asked.inputs)
    def hold(drawn: Any) -> None:
        asked.check(drawn)

    hold()
