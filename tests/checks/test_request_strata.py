"""Hosts that look at how they are asked: found, named, and honest or random ones not misnamed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from audits import FAULT, configure, host_with, run
from scipy.stats import binom
from simulate import decide, make_calibration, make_plan, replies, simulate_row

from verifier.checks.request_strata import MOST, vary, weigh_strata
from verifier.evidence.ledger import TEXT_SCALES, Ledger, Row, count_outranked
from verifier.evidence.noise import honest_scales
from verifier.files.run_folder import REPORT
from verifier.host.collect import read_attempts
from verifier.plan_file import batch_ends, read_probes
from verifier.probes import SHORT_TOKENS, STRATA, labels_of
from verifier.records import Message, Probe, Report
from verifier.verdict.decide import decide_folder

HONEST = honest_scales(TEXT_SCALES, make_calibration().text)
PROBES = tuple(
    Probe(
        id=f"p{n:04d}", kind="code", max_tokens=30, messages=(Message(role="user", content="Hi"),)
    )
    for n in range(60)
)
VARIED = vary(PROBES, seed=3, logprobs=True)
LABELS = [labels_of(probe, n) for n, probe in enumerate(VARIED)]


def rows_of(
    rng: np.random.Generator, *, noisy: str = "", share: float = 0.0, scale: float = 0.5
) -> list[Row]:
    """Replies of a host that makes noise in one stratum, or in a share of replies at random."""
    found = []
    for n, labels in enumerate(LABELS):
        at = scale if noisy in labels or rng.random() < share else 0.05
        tokens = SHORT_TOKENS if "short" in labels else 20
        row = simulate_row(rng, f"p{n:04d}", scale=at, tokens=tokens)
        found.append(Row(**{f: getattr(row, f) for f in row.__slots__} | {"strata": labels}))
    return found


def weigh(rows: list[Row]) -> tuple[float, float, float, str]:
    found = weigh_strata(
        Ledger(rows=tuple(rows)).text(), [row.strata for row in rows], HONEST, seed=1
    )
    return found.log_e, found.log_e_apart, found.p_value, found.best


def audited(card: Path, out: Path, fault: str) -> Report:
    with host_with(fault) as url:
        one_by_one = {"concurrency": 1}  # who comes first is then no matter of luck
        return run(configure(url, card, out, vary=True, max_tokens=20, endpoint=one_by_one))


# -- level ---------------------------------------------------------------------------------------


def test_honest_replies_are_accused_and_named_at_most_at_the_rate_promised() -> None:
    """The e-value at 1 in 20, the permutation at 1 in 100."""
    rng = np.random.default_rng(6)
    found = [weigh(rows_of(rng, scale=0.05)) for _ in range(60)]

    assert sum(log_e >= math.log(20) for log_e, _, _, _ in found) <= 60 / 20 + 5
    assert sum(apart >= math.log(20) for _, apart, _, _ in found) <= 60 / 20 + 5
    assert sum(p_value <= 0.01 for _, _, p_value, _ in found) <= 4


def test_replies_that_differ_at_random_name_no_stratum() -> None:
    """A router that does not look at how it is asked."""
    rng = np.random.default_rng(7)
    found = [weigh(rows_of(rng, share=0.4)) for _ in range(40)]

    assert sum(p <= 0.01 and apart >= math.log(1000) for _, apart, p, _ in found) <= 2


def test_a_stratum_is_named_at_most_at_the_rate_promised_over_all_looks() -> None:
    """A router at random, looked at after every batch; at 1 in 5, where a simulation can see it."""
    rng = np.random.default_rng(9)
    named, audits = 0, 40
    for _ in range(audits):
        rows = rows_of(rng, share=0.4)
        looks = [n for n in batch_ends(len(rows)) if n <= MOST + 8]
        named += any(weigh(rows[:n])[2] <= 0.2 for n in looks)

    assert named <= float(binom.ppf(0.999, audits, 0.2))


def test_between_two_looks_nothing_changes() -> None:
    """What came since the last one, and after them all, is not looked at."""
    rows = rows_of(np.random.default_rng(5), noisy="streamed")
    told = {n: weigh(rows[:n])[2] for n in (14, 22, 29, 46, 60)}

    assert told[14] == 1
    assert told[22] == told[29]
    assert told[46] == told[60]


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["without log-probabilities", "streamed"])
def test_a_stratum_that_differs_is_found_and_named(label: str) -> None:
    """Among sixty replies."""
    log_e, apart, p_value, best = weigh(rows_of(np.random.default_rng(5), noisy=label))

    assert best == label
    assert log_e > math.log(1000)
    assert apart > math.log(1000)
    assert p_value == pytest.approx(5 / 1000)  # none of 999 labellings, at one of five looks


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_of_strata_is_the_mixture_over_both_sides() -> None:
    """By hand: two replies, a nat and two likelier at every scale that is not honest."""
    better = np.where(HONEST, 0.0, 1.0)
    rows = np.array([2 * better, 0 * better])
    found = weigh_strata(rows, [("streamed",), ()], HONEST, seed=1)
    # streamed 2; not streamed 0; of the others one side is empty, the other all of them: 0 and 2
    each = [2.0, 0.0, *[0.0, 2.0] * 3]

    assert found.log_e == pytest.approx(np.logaddexp.reduce(each) - math.log(8))
    # apart: 2 + 0 - 2 for streamed, 0 + 0 - 2 for the others
    assert found.log_e_apart == pytest.approx(np.logaddexp.reduce([0.0, -2.0]) - math.log(8))
    assert found.best == "streamed"


def test_outranked_tokens_are_counted_beyond_rounding() -> None:
    """The given token comes first."""
    assert count_outranked([(-1.0, -0.9), (-2.0, -0.1, -5.0), (-0.1, -3.0), (-4.0,), ()]) == 1
    assert count_outranked([(-4.0,), ()]) is None


# -- one audit -----------------------------------------------------------------------------------


def test_an_honest_host_is_consistent_however_it_is_asked(card: Path, tmp_path: Path) -> None:
    """Requests differ as planned."""
    report = audited(card, tmp_path / "run", "none")
    attempts = read_attempts(tmp_path / "run")

    assert report.decision == "consistent"
    assert len({'"logprobs":true' in a.request for a in attempts}) == 2
    assert len({'"stream":true' in a.request for a in attempts}) == 2
    assert {p.max_tokens for p in read_probes(tmp_path / "run")} == {20, SHORT_TOKENS}


@pytest.mark.parametrize(
    ("spared", "named"),
    [
        ("logprobs", "requests without log-probabilities"),
        ("streams", "requests that are not streamed"),
        ("short", "requests that are long"),
        ("first", "requests that are late"),
    ],
)
def test_a_host_that_spares_some_ways_of_asking_is_found(
    card: Path, tmp_path: Path, spared: str, named: str
) -> None:
    """By name, though the first wrong reply decides the verdict."""
    report = audited(card, tmp_path / "run", f"{FAULT}+spares:{spared}")

    assert report.decision == "inconsistent"
    found = [f.name for f in report.findings if f.aspect == "strata" and f.decision == "detected"]
    assert found == [named]
    (said,) = [f.detail for f in report.findings if f.aspect == "strata"]
    assert ("not drawn at random" in said) == (spared == "first")
    assert [f.name for f in report.findings if f.aspect == "cause"] == [FAULT]
    before = (tmp_path / "run" / REPORT).read_bytes()
    decide_folder(tmp_path / "run")
    assert (tmp_path / "run" / REPORT).read_bytes() == before


def test_weights_behind_a_retuned_temperature_are_told_by_greedy_text(
    card: Path, tmp_path: Path
) -> None:
    """Which no temperature changes."""
    plain = audited(card, tmp_path / "plain", FAULT)
    tuned = audited(card, tmp_path / "tuned", f"{FAULT}+sampler:temperature=0.8")

    assert (plain.decision, tuned.decision) == ("inconsistent", "inconsistent")
    assert plain.usage.completion_tokens == tuned.usage.completion_tokens
    assert plain.noise_scale == tuned.noise_scale


# -- what is planned, and said -------------------------------------------------------------------


def test_ways_of_asking_are_drawn_at_random_and_by_the_seed() -> None:
    """About half without log-probabilities, half streamed, a quarter short; the first are early."""
    assert vary(PROBES, seed=3, logprobs=True) == VARIED
    assert vary(PROBES, seed=4, logprobs=True) != VARIED
    assert all(probe.logprobs for probe in vary(PROBES, seed=3, logprobs=False))
    counts = {label: sum(label in labels for labels in LABELS) for label in STRATA}
    assert 20 < counts["without log-probabilities"] < 40
    assert 20 < counts["streamed"] < 40
    assert 7 < counts["short"] < 25
    assert counts["late"] == 52


def test_a_report_names_the_stratum() -> None:
    """And without a plan that varies nothing is said of strata."""
    rows = rows_of(np.random.default_rng(8), noisy="streamed")
    plans = [make_plan(varies=varies) for varies in (True, False)]
    varied, plain = (
        decide(plan, Ledger(rows=tuple(rows)), outcomes=replies(rows)) for plan in plans
    )

    assert varied.decision == "inconsistent"
    (named,) = [f for f in varied.findings if f.aspect == "strata"]
    assert named.name == "requests that are streamed"
    assert not any(f.aspect == "strata" for f in plain.findings)
