"""Chains: an audit goes on from the evidence of earlier ones, and says how many there were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import configure, host, run, write_card
from hosts import judge, rows_at
from simulate import case_of, make_plan, simulate_row

from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger, Row
from verifier.plan_file import read_plan
from verifier.records import After
from verifier.reference.cards import load_card
from verifier.verdict.chain import read_chain
from verifier.verdict.combine import combine

BEFORE = After(report_sha256="0" * 64, decisions=("inconclusive", "consistent"), log_e=5.0)


# -- level and power -------------------------------------------------------------------------------


def test_honest_audits_in_a_chain_keep_the_level_of_one() -> None:
    """Five audits at the edge of the null, each from where the last one stood, at 1 in 20."""
    accused = 0
    for seed in range(80):
        log_e = 0.0
        for number in range(5):
            rng = np.random.default_rng([seed, number])
            rows = [simulate_row(rng, f"p{n}", scale=0.1, tokens=15) for n in range(6)]
            after = After(report_sha256="0" * 64, decisions=("inconclusive",), log_e=log_e)
            report = judge(rows, make_plan(alpha=0.05, after=after))
            if report.decision == "inconsistent":
                accused += 1
                break
            log_e += _own(rows)

    assert accused <= 80 / 20 + 5


def _own(rows: list[Row]) -> float:
    return combine(case_of(make_plan(), Ledger(rows=tuple(rows)))).log_e


def test_a_host_that_passes_alone_is_found_by_its_chain() -> None:
    """What no audit reaches by itself, two reach together."""
    rows = rows_at(0.0, 1, seed=1)
    alone = judge(rows)
    chained = judge(rows, make_plan(after=After(
        report_sha256="0" * 64, decisions=("inconclusive",), log_e=20.0
    )))  # fmt: skip

    assert (alone.decision, chained.decision) == ("inconclusive", "inconsistent")


# -- what is said ----------------------------------------------------------------------------------


def test_a_report_says_how_many_came_before() -> None:
    """And how much of the evidence is theirs."""
    report = judge(rows_at(0.6, 6, seed=2), make_plan(after=BEFORE))

    assert "(5.0 of it from 2 earlier audits)" in report.summary
    (note,) = [note for note in report.notes if "came before" in note]
    assert "2 earlier audits of this endpoint came before (1 inconclusive, 1 consistent)" in note
    assert "log e 5.0, counts here" in note


# -- reading one -----------------------------------------------------------------------------------


def test_an_audit_goes_on_from_another(tmp_path: Path) -> None:
    """End to end: the second run's plan holds what the first one found."""
    with host() as base_url:
        config = configure(base_url, write_card(tmp_path), tmp_path / "first")
        first = run(config)
        later = config.model_copy(
            update={
                "out": tmp_path / "later",
                "audit": config.audit.model_copy(update={"seed": None, "after": config.out}),
            }
        )
        second = run(later)
    after = read_plan(later.out).after
    assert after is not None

    assert (first.decision, second.decision) == ("consistent", "consistent")
    assert after.decisions == ("consistent",)
    assert after.log_e < 0
    assert any("1 earlier audit of this endpoint came before" in note for note in second.notes)


def test_an_audit_of_something_else_or_of_the_same_probes_is_refused(tmp_path: Path) -> None:
    """Each in one line that says where and what."""
    with host() as base_url:
        config = configure(base_url, write_card(tmp_path), tmp_path / "first")
        run(config)
    card = load_card(config.reference.card)

    def refused(**changes: Any) -> str:
        with pytest.raises(ConfigError) as found:
            read_chain(config.out, config.model_copy(update=changes), card)
        return str(found.value)

    seed = read_plan(config.out).seed
    endpoint = config.endpoint.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    assert "endpoint.base_url was" in refused(endpoint=endpoint)
    other = config.endpoint.model_copy(update={"model": "another"})
    assert "endpoint.model was" in refused(endpoint=other)
    same = config.audit.model_copy(update={"seed": seed})
    assert f"asked the probes of seed {seed}" in refused(audit=same)
    with pytest.raises(ConfigError, match="nothing is scored there"):
        read_chain(tmp_path / "nowhere", config, card)


def test_a_chain_cannot_carry_more_than_a_number(tmp_path: Path) -> None:
    """What is kept of it is checked as all of a plan is."""
    with pytest.raises(ValueError, match="log_e"):
        make_plan(after={"report_sha256": "0", "decisions": ["consistent"], "log_e": math.nan})
