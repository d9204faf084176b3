"""Exact builds of the policy: told from the published weights, named, and left open."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audits import FAULT, configure, host, run, write_card
from hosts import judge, only, rows_at, under_a_build
from simulate import case_of, make_plan, simulate_row

from verifier.checks import builds
from verifier.config import AuditSection, Policy
from verifier.evidence.e_values import log_mean_exp
from verifier.evidence.ledger import TEXT_SCALES, Ledger, Row
from verifier.evidence.posterior import ENOUGH
from verifier.files.run_folder import PANEL, SCORES, read_lines
from verifier.lab.bench.precision import plan_audit
from verifier.records import REFERENCE

PLAN = make_plan(policy=Policy(noise=("another model",), builds=("int4-sym-g64",)))


def log_e(rows: Sequence[Row]) -> float:
    """The evidence for the one build of the policy."""
    (found,) = builds.CHECK.weigh(case_of(PLAN, Ledger(rows=tuple(rows))), None).log_e
    return float(found)


# -- level ---------------------------------------------------------------------------------------


def test_honest_replies_speak_for_a_build_at_most_as_often_as_promised() -> None:
    """At the edge of the null, looking after each of eight replies, at 1 in 20."""
    crossed = 0
    for seed in range(80):
        rng = np.random.default_rng([3, seed])
        rows = [
            under_a_build(simulate_row(rng, f"p{n}", scale=0.1, tokens=10), rng, 0.1)
            for n in range(8)
        ]
        crossed += max(log_e(rows[:n]) for n in range(1, 9)) >= math.log(20)

    assert crossed <= 80 / 20 + 5


# -- power ---------------------------------------------------------------------------------------


def test_a_build_that_is_served_is_detected_and_named() -> None:
    """Its own column explains the replies better than noise of any scale."""
    policy = Policy(noise=("4-bit-class rounding",), builds=("int4-sym-g64",))
    rows = rows_at(0.6, 4, seed=7, builds=("int4-sym-g64",))
    report = judge(rows, make_plan(policy=policy))
    (cause,) = [finding for finding in report.findings if finding.aspect == "cause"]

    assert report.decision == "inconsistent"
    (build, _) = [finding for finding in report.findings if finding.name == "int4-sym-g64"]
    assert (build.aspect, build.decision) == ("weights", "detected")
    assert (cause.name, cause.decision) == ("int4-sym-g64", "detected")


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_for_a_build_is_known_by_hand() -> None:
    """Three nats likelier under it, at every scale; nothing where it was not scored."""
    (row,) = rows_at(0.05, 1, seed=1)
    better = tuple(cell + 3 for cell in row.text[REFERENCE])
    scored = replace(row, text=row.text | {"int4-sym-g64": better})
    honest = np.array(row.text[REFERENCE])[TEXT_SCALES <= 0.1]

    assert log_e([scored]) == pytest.approx(3 + log_mean_exp(honest) - honest.max())
    assert log_e([row]) == 0.0


# -- one audit -----------------------------------------------------------------------------------


def test_an_audit_names_a_build_of_the_policy(card: Path, tmp_path: Path) -> None:
    """Scored with every reply, so that it is named as soon as the verdict is there."""
    policy = {"noise": ["another model"], "builds": [FAULT]}
    with host(FAULT) as url:
        report = run(configure(url, card, tmp_path / "run", policy=policy))

    assert report.decision == "inconsistent"
    assert [f.decision for f in report.findings if f.aspect == "weights"] == ["detected"]


def test_the_build_that_is_served_ends_the_search(card: Path, tmp_path: Path) -> None:
    """Found on the first replies and confirmed on more: no panel, no penalties, no other build."""
    out = tmp_path / "run"
    with host(FAULT) as url:
        report = run(configure(url, card, out))
    (cause,) = [f for f in report.findings if f.aspect == "cause"]
    columns = Counter(line["weights"] for line in read_lines(out / SCORES))

    assert (cause.name, cause.decision) == (FAULT, "detected")
    assert f"fits {ENOUGH} replies" in cause.detail
    assert not (out / PANEL).exists()
    assert columns[FAULT] == columns["reference"] == ENOUGH
    assert all(columns[name] <= builds.FIRST for name in columns.keys() - {FAULT, "reference"})


def test_a_build_outside_of_the_bank_is_sought_in_vain(tmp_path: Path) -> None:
    """No build of the bank is named, and the template is looked at."""
    out = tmp_path / "run"
    with host(FAULT) as url:
        report = run(configure(url, write_card(tmp_path, bank=["fp8-channel"]), out))

    assert [f.decision for f in report.findings if f.aspect == "cause"] == ["undecided"]
    assert (out / PANEL).exists()


# -- what is said --------------------------------------------------------------------------------


def test_a_build_that_is_not_served_is_excluded_without_excluding_its_class() -> None:
    """Only the bound on the noise scale may exclude a class."""
    policy = Policy(noise=("4-bit-class rounding",), builds=("int4-sym-g64",))
    rng = np.random.default_rng(3)
    honest = [simulate_row(rng, f"p{n}", scale=0.02) for n in range(6)]
    other = [simulate_row(rng, f"p{n}", scale=0.6) for n in range(6)]
    rows = [
        Row(
            probe_id=a.probe_id, tokens=a.tokens, left_out=0,
            text=a.text | {"int4-sym-g64": b.text["reference"]}, logprob=None,
            logprob_problem=None,
        )
        for a, b in zip(honest, other, strict=True)
    ]  # fmt: skip
    report = judge(rows, make_plan(policy=policy))

    assert only(report, "int4-sym-g64").decision == "excluded"
    assert "this build" in only(report, "int4-sym-g64").detail


def test_a_build_that_is_only_the_nearer_is_not_detected() -> None:
    """Noise beyond honest serving is left under it: what is served is a build near it."""
    policy = Policy(noise=("4-bit-class rounding",), builds=("int4-sym-g64",))
    rng = np.random.default_rng(5)
    rows = [under_a_build(simulate_row(rng, f"p{n}", scale=1.0), rng, 1.0) for n in range(8)]
    near = [
        replace(far, text=far.text | {"int4-sym-g64": simulate_row(rng, "x", scale=0.3).text[
            REFERENCE]})
        for far in rows
    ]  # fmt: skip
    report = judge(near, make_plan(policy=policy))
    (build,) = [finding for finding in report.findings if finding.aspect == "weights"]

    assert report.decision == "inconsistent"
    assert (build.name, build.decision) == ("int4-sym-g64", "undecided")
    assert "do not fit this build either" in build.detail
    assert (report.findings[-1].name, report.findings[-1].decision) == (
        "a build near int4-sym-g64", "undecided"
    )  # fmt: skip


# -- builds that are scored on cause -------------------------------------------------------------

SUSPECTED = make_plan(suspected=("int4-sym-g64",))


def test_a_suspected_build_counts_once_every_reply_is_scored_under_it() -> None:
    """A choice of replies would be no e-value; its share is lost until then."""
    rows = rows_at(0.3, 6, seed=3, builds=("int4-sym-g64",))
    some = [replace(row, text={REFERENCE: row.text[REFERENCE]}) for row in rows[:1]] + rows[1:]

    def weighed(rows: Sequence[Row]) -> float:
        (found,) = builds.CHECK.weigh(case_of(SUSPECTED, Ledger(rows=tuple(rows))), None).log_e
        return found

    assert weighed(rows) > 5
    assert weighed(some) == -math.inf


def test_a_build_told_slowly_by_noise_is_told_fast_by_its_own_column() -> None:
    """Half as noisy again as what is tolerated: the same three replies, with and without."""
    rows = rows_at(0.16, 3, seed=3, builds=("int4-sym-g64",))

    with_build = judge(rows, SUSPECTED).decision
    without = judge(rows, make_plan()).decision
    assert (with_build, without) == ("inconsistent", "inconclusive")


def test_honest_replies_pay_little_for_suspected_builds() -> None:
    """Level at the edge of the null, once they are looked at, over every look, at 1 in 20."""
    plan = make_plan(suspected=("int4-sym-g64",), alpha=0.05)
    accused = 0
    for seed in range(80):
        rng = np.random.default_rng([9, seed])
        rows = [
            under_a_build(simulate_row(rng, f"p{n}", scale=0.1, tokens=10), rng, 0.1)
            for n in range(8)
        ]
        accused += any(judge(rows[:n], plan).decision == "inconsistent" for n in range(1, 9))

    assert accused <= 80 / 20 + 5


def test_it_pays_to_look_closer_only_once_replies_are_noisier_than_measured_stacks() -> None:
    """At odds of 20 to 1."""
    quiet = case_of(SUSPECTED, Ledger(rows=tuple(rows_at(0.08, 40, seed=1))))
    loud = case_of(SUSPECTED, Ledger(rows=tuple(rows_at(0.2, 20, seed=1))))

    assert not builds.is_noisy(quiet)
    assert builds.is_noisy(loud)
    assert not builds.is_noisy(case_of(SUSPECTED, Ledger(rows=())))


def test_the_policy_standard_suspects_builds_of_fp8_on_the_card_that_ships() -> None:
    """Those of the classes that it names whose noise is little above what is tolerated."""
    found = plan_audit(AuditSection(policy="standard", seed=1))

    assert found.suspected == ("fp8-channel", "fp8-tensor")
    assert plan_audit(AuditSection(policy="screen", seed=1)).suspected == ()
    assert plan_audit(AuditSection(policy="strict", seed=1)).suspected == ()
