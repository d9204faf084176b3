"""The benchmark of hosts that look right: what counts as found, and committed figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_junit import finding, make_report

from verifier.config import AuditSection
from verifier.files.run_folder import read_json
from verifier.lab.bench.tricks import (
    HOSTS,
    Trick,
    describe_audit,
    is_found,
    sum_up,
    tabulate_tricks,
)
from verifier.lab.testbed.faults import read_fault
from verifier.reference.cards import load_card
from verifier.reference.renderings.catalogue import catalogue

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "tricks.benchmark.json"


@pytest.mark.parametrize("trick", HOSTS, ids=lambda trick: trick.fault)
def test_every_host_can_be_served_and_asked(trick: Trick) -> None:
    """Its fault is one of the testbed, and its switches are those of a run file."""
    layers = load_card("smollm2-135m-instruct").layers
    read_fault(trick.fault, layers=layers, catalogue=catalogue())
    AuditSection(seed=1, **trick.settings)


def made(fault: str, wanted: str | None, *detected: str, number: int = 0) -> dict[str, Any]:
    report = replace(
        make_report("inconsistent"),
        findings=(
            finding("excluded"),
            *(replace(finding("detected"), aspect=aspect) for aspect in detected),
        ),
    )
    return describe_audit(Trick(fault=fault, aspect=wanted), number, report)


def test_an_audit_is_right_when_the_true_finding_is_there() -> None:
    """Of an honest host nothing may be; what is excluded or undecided is not detected."""
    assert is_found(made("none", None))
    assert not is_found(made("none", None, "strata"))
    assert is_found(made("cache:same", "repeats", "sampler", "repeats"))
    assert not is_found(made("cache:same", "repeats", "sampler"))


def test_hosts_have_a_row_each_with_all_that_was_detected() -> None:
    """Two findings of one aspect in one audit count once."""
    audits = [
        made("none", None),
        made("cache:same", "repeats", "repeats", "noise", "noise"),
        made("cache:same", "repeats", number=1),
    ]
    rows = tabulate_tricks(sum_up(audits, seed=3)).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

    assert [row[:2] + row[3:6] for row in cells] == [
        ["none", "1", "none", "1", "-"],
        ["cache:same", "2", "repeats", "1", "noise 1, repeats 1"],
    ]


def test_the_page_shows_the_committed_results() -> None:
    """Figures are never written by hand, and the same host is always asked the same way."""
    results = read_json(RESULTS)
    wanted = {trick.fault: trick.aspect for trick in HOSTS}

    assert tabulate_tricks(results) in RESULTS.with_name("README.md").read_text(encoding="utf-8")
    assert all(wanted[audit["fault"]] == audit["wanted"] for audit in results["each"])
