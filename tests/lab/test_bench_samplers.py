"""The benchmark of samplers: what counts as right, how audits are replayed, committed figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import sample_rows, sampler_plan
from simulate import replies, simulate_row

from verifier.evidence.ledger import Ledger
from verifier.evidence.samplers import Sampler
from verifier.files.run_folder import read_json
from verifier.lab.bench.samplers import (
    AUDITS,
    HOSTS,
    holds_truth,
    is_right,
    replay,
    sum_up,
    tabulate_samplers,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "samplers.benchmark.json"


def make_audit(fault: str, **changes: Any) -> dict[str, Any]:
    return {
        "fault": fault, "number": 0, "decision": "inconsistent", "sampler": "detected",
        "said": "temperature about 0.9 (0.8 to 1)", "log_e": 9.0, "greedy_tokens": 100,
        "sampled_tokens": 50, "temperature": [0.8, 1.0], "causes": [],
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("audit", "right", "held"),
    [
        (make_audit("sampler:temperature=0.9"), True, True),
        (make_audit("sampler:temperature=0.7"), True, False),
        (make_audit("sampler:top-k=40"), False, None),
        (make_audit("sampler:top-k=40", said="top-k about 30 (20 to 50)"), True, None),
        (make_audit("sampler:top-k=40", sampler="undecided"), False, None),
        (make_audit("none"), False, True),
        (make_audit("none", sampler="excluded", temperature=[1.02, None]), True, False),
        (make_audit("int4-asym-g64", sampler="not run", temperature=None), True, None),
    ],
)  # fmt: skip
def test_what_counts_as_right(audit: dict[str, Any], right: bool, held: bool | None) -> None:
    """A setting by its name; of an honest sampler nothing."""
    assert (is_right(audit), holds_truth(audit)) == (right, held)


def test_a_replay_asks_greedily_first_and_stops_when_the_sampler_is_named() -> None:
    """As an audit does; the same number gives the same audit."""
    rng = np.random.default_rng(3)
    rows = [simulate_row(rng, f"r{n}", scale=0.05) for n in range(24)]
    ledger = Ledger(rows=tuple(rows), sampled=tuple(sample_rows(rng, Sampler(temperature=0.6), 60)))
    one, same, other = (
        replay(
            sampler_plan(), ledger, replies(rows), fault="sampler:temperature=0.6", number=n, seed=1
        )
        for n in (0, 0, 1)
    )

    assert one == same
    assert one != other
    assert is_right(one)
    assert 300 <= one["greedy_tokens"] <= 24 * 30
    assert 0 < one["sampled_tokens"] < 60 * 20


def test_figures_are_counted_and_shown() -> None:
    """One row per host; an interval counts only where a temperature is the truth."""
    results = sum_up(
        [make_audit("sampler:temperature=0.9"), make_audit("sampler:top-k=40")], seed=1
    )
    table = tabulate_samplers(results)

    assert (
        "| sampler:temperature=0.9 | 1 | inconsistent 1 | detected 1 | 1 | 50 (150) | 1 of 1 |"
        in table
    )
    assert "| sampler:top-k=40 | 1 | inconsistent 1 | detected 1 | 0 | 50 (150) | - |" in table


def test_the_committed_figures_are_those_that_were_promised() -> None:
    """Temperature 0.9 in at most 4,000 tokens and as a temperature; honest hosts never flagged."""
    found = {figure["fault"]: figure for figure in read_json(RESULTS)["figures"]}

    assert tuple(found) == HOSTS
    assert all(figure["audits"] == AUDITS == 40 for figure in found.values())
    assert found["none"]["decisions"].get("inconsistent", 0) == 0
    assert found["sampler:temperature=0.9"]["median_tokens"] <= 4000
    assert all(figure["right"] == 40 for figure in found.values())
    assert found["sampler:temperature=0.9"]["interval_holds"] >= 39


def test_the_page_shows_the_committed_figures() -> None:
    """Figures are never written by hand."""
    table = tabulate_samplers(read_json(RESULTS))

    assert table in RESULTS.with_name("README.md").read_text(encoding="utf-8")
