"""Replies of simulated hosts, and the verdict on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from simulate import decide, make_plan, replies, simulate_row

from verifier.evidence.ledger import Ledger, Row
from verifier.plan_file import Plan
from verifier.records import REFERENCE, Finding, Outcome, Report


def rows_at(scale: float, count: int, *, seed: int, **more: Any) -> list[Row]:
    """Replies of a host with noise of this scale."""
    rng = np.random.default_rng(seed)
    return [simulate_row(rng, f"p{n:04}", scale=scale, **more) for n in range(count)]


def judge(
    rows: list[Row], plan: Plan | None = None, more: dict[str, Outcome] | None = None
) -> Report:
    """The verdict on such replies."""
    return decide(
        plan or make_plan(),
        Ledger(rows=tuple(rows), engine={"engine": "simulated"}),
        outcomes=replies(rows) | (more or {}),
    )


def only(report: Report, name: str) -> Finding:
    """The one finding of this name."""
    (found,) = [finding for finding in report.findings if finding.name == name]
    return found


def routed_rows(share: float, count: int, *, seed: int, scale: float = 0.6) -> list[Row]:
    """Replies of a host that sends each request to a build with a chance of `share`."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        own = scale if rng.random() < share else 0.05
        builds = ("int4-sym-g64",) if own == scale else ()
        row = simulate_row(rng, f"p{n:04}", scale=own, builds=builds)
        rows.append(row if builds else under_a_build(row, rng))
    return rows


def under_a_build(row: Row, rng: np.random.Generator, scale: float = 0.6) -> Row:
    """The same reply, unlike the build by as much as the build is unlike the weights."""
    other = simulate_row(rng, row.probe_id, scale=scale)
    return replace(row, text=row.text | {"int4-sym-g64": other.text[REFERENCE]})
