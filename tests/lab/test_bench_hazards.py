"""Measured pairs: how replies leave each other by hand, and what the kept results are good for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verifier.evidence.hazards import KINDS, Leaving, hazard_of
from verifier.files.run_folder import read_json
from verifier.lab.bench.hazards import (
    Spoken,
    bound_hazard,
    honest_hazard,
    least_hazard,
    measure_pairs,
    pair_stacks,
    replay,
    tabulate_hazards,
)

RESULTS = Path(__file__).resolve().parents[2] / "reference/benchmarks/hazards.benchmark.json"

#: Three stacks' replies to three prompts; 0 ends a turn.
STACKS = (
    Spoken(name="a", role="honest", replies=((1, 2, 3, 4), (5, 6, 0), (7, 8, 9, 1))),
    Spoken(name="b", role="honest", replies=((1, 2, 3, 4), (5, 6, 0), (7, 8, 1, 9))),
    Spoken(name="c", role="4-bit", replies=((2, 2, 3, 4), (5, 0), (7, 8, 9, 1))),
)
TOY: dict[str, Any] = {
    "name": "toy",
    "pairs": pair_stacks(STACKS),
    "replayed": [{"target": "honest", "audits": 20, "differs": [], "alike": [8, 12, 12]}],
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {model["name"]: model for model in read_json(RESULTS)["models"]}


def test_pairs_are_of_honest_stacks_or_of_a_build_and_each_of_them() -> None:
    """By hand: of honest ones 1 reply left in 4 + 3 + 3 tokens; of the build 2 in 1 + 2 + 4."""
    (honest,) = measure_pairs(TOY, role="honest").values()
    built = measure_pairs(TOY, role="4-bit")

    assert [pair["leaving"] for pair in TOY["pairs"]] == [[4, 3, -3], [-1, -2, 4], [-1, -2, -3]]
    assert honest[2] == Leaving(exposure=3, left=True)
    assert hazard_of(honest) == pytest.approx(1 / 10)
    assert list(built) == ["a and c", "b and c"]
    assert hazard_of(built["a and c"]) == pytest.approx(2 / 7)
    assert honest_hazard(TOY) > 1 / 10
    assert least_hazard(TOY, role="4-bit") < 2 / 7
    told = tabulate_hazards({"models": [TOY]})
    assert "| toy | honest | 1 | most | a and b | 1 | 10 | 10.00%" in told
    assert "| toy | honest | 20 | 0 | - | 3 | 12 (12) |" in told


def test_bounds_of_a_hazard_cover_it_as_often_as_they_say() -> None:
    """Replies of 40 in 64 draws from a hazard of 0.05 and prompts that differ; and of none left."""
    rng, missed = np.random.default_rng(1), 0
    own = rng.choice([0.0, 0.15], size=4000)
    places = np.where(own > 0, rng.geometric(np.maximum(own, 1e-9)), 17)
    rows = [Leaving(exposure=min(int(p), 16), left=p <= 16) for p in places]
    truth = hazard_of(rows)
    for start in range(0, 4000, 40):
        low, high = bound_hazard(rows[start : start + 40])
        missed += not low <= truth <= high
    stayed = [Leaving(exposure=16, left=False)] * 64

    assert missed <= 14  # of 100, where 5 are meant: the 99.9 % quantile
    assert bound_hazard(stayed) == (0.0, pytest.approx(-math.log(0.025) / 1024))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_said_of_a_kind_is_what_was_measured(models: dict[str, Any], name: str) -> None:
    """Rounded away from a verdict, in the last digit."""
    kind, model = KINDS[name], models[name]
    honest = measure_pairs(model, role="honest").values()

    assert kind.stacks * (kind.stacks - 1) / 2 == len(honest)
    assert 0 <= kind.honest - max(map(hazard_of, honest)) < 0.001
    assert 0 <= kind.upper - honest_hazard(model) < 0.001
    assert 0 <= least_hazard(model, role="4-bit") - kind.rounded < 0.01


@pytest.mark.parametrize("name", KINDS)
def test_measured_hosts_are_judged_rightly_within_60_replies(
    models: dict[str, Any], name: str
) -> None:
    """As kept: no honest target is told apart, nearly all are called alike, no 4-bit one is; and of
    4-bit integers 38 of 40 are found. And so it comes out again."""
    kept = {one["target"]: one for one in models[name]["replayed"]}
    again = {one["target"]: one for one in replay(_few(models[name]), seed=3)}

    assert kept["honest"]["differs"] == again["honest"]["differs"] == []
    for found in (kept, again):
        assert len(found["honest"]["alike"]) >= 0.95 * found["honest"]["audits"]
        for target, one in found.items():
            if "4" in target:
                assert one["alike"] == []
            if target.startswith("int4"):
                assert len(one["differs"]) >= 38 / 40 * one["audits"]


def _few(model: dict[str, Any]) -> dict[str, Any]:
    """Without most of the pairs, so that it takes a moment."""
    kept = [
        p for p in model["pairs"] if "float32-batch16" in p["stacks"] and "fp8" not in p["role"]
    ]
    return model | {"pairs": kept}
