"""The certificate's benchmark: stacks summed up, and what a calibration gets of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulate import make_calibration, make_plan, simulate_row

from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.evidence.ledger import Ledger
from verifier.lab.bench import certificate
from verifier.lab.bench.certificate import (
    LEVEL,
    REPLIES,
    certify,
    describe_bet,
    run_certificate_bench,
    sum_up_stack,
    tabulate_certificate,
)
from verifier.reference.calibrations import load_calibration
from verifier.reference.cards import load_card


def results_of(*scales: float, replies: int = 300) -> dict[str, Any]:
    """Results of simulated stacks, each of one scale."""
    plan, stacks = make_plan(), []
    for number, scale in enumerate(scales):
        rng = np.random.default_rng(number)
        rows = [simulate_row(rng, f"p{n}", scale=scale, tokens=15) for n in range(replies)]
        made = sum_up_stack(f"stack-{number}", plan, Ledger(rows=tuple(rows)))
        stacks.append(made | {"each": [[0, 10, "consistent", -4.0]]})
    return {"seed": 5, **describe_bet(plan.calibration), "stacks": stacks}


def test_a_stack_at_the_edge_of_the_null_has_a_mean_of_about_one_at_most() -> None:
    """And one below it less; the bound lies above the mean, and the tally holds every reply."""
    results = results_of(0.1, 0.03)
    edge, quiet = results["stacks"]

    assert quiet["mean"] < edge["mean"] <= 1.05
    assert edge["mean"] < edge["bound"] < edge["mean"] + 0.6
    assert sum(count for _, count in edge["tally"]) == edge["replies"] == 300


def test_a_stack_that_is_noisier_has_a_larger_bound() -> None:
    """Half as much again as the largest honest scale: its certificate pays for every reply."""
    (noisy,) = results_of(0.2)["stacks"]

    assert noisy["mean"] > 1.1


def test_the_calibration_gets_the_worst_of_the_stacks() -> None:
    """In the reading that was measured, and it can be read again."""
    results = results_of(0.1, 0.2)
    measured = certify(results)
    calibration = make_calibration(certificate=measured)

    assert measured.excess == pytest.approx(results["stacks"][1]["bound"] - 1)
    assert measured.replies == 600
    assert measured.stacks == ("stack-0", "stack-1")
    assert measured.level == LEVEL
    read = Calibration.model_validate_json(calibration.model_dump_json())
    assert read.certificate == measured


def test_quiet_stacks_cost_nothing() -> None:
    """A mean below 1 is not claimed to make alpha smaller."""
    results = results_of(0.05, 0.03)
    for stack in results["stacks"]:
        stack["bound"] = 0.9

    assert certify(results).excess == 0.0


def test_the_table_shows_each_stack() -> None:
    """With the bound at its level, and the audits of its replies."""
    made = tabulate_certificate(results_of(0.03))

    assert "mean at most (99%)" in made
    assert "| stack-0 | 300 |" in made
    assert made.endswith("| 1 | 0 |")


def test_enough_replies_are_planned() -> None:
    """Of stacks of the kinds that calibrations measure."""
    calibration = load_calibration(certificate.CARD, load_card(certificate.CARD))

    assert sum(REPLIES.values()) >= 5000
    assert set(REPLIES) <= {stack.name for stack in calibration.stacks}


def test_the_replies_of_the_calibration_are_not_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seed is refused before anything is asked."""
    card = load_card(certificate.CARD)
    monkeypatch.setattr(certificate, "fetch_measured", lambda **_given: (card, tmp_path))
    seed = load_calibration(certificate.CARD, card).seed

    with pytest.raises(ConfigError, match="that of the calibration"):
        run_certificate_bench(tmp_path, cache=tmp_path, seed=seed, tell=lambda _line: None)
