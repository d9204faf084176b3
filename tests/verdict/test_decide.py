"""The decision: what each verdict needs."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import judge, routed_rows, rows_at
from simulate import case_of, decide, make_calibration, make_plan, replies, simulate_row

from verifier.checks.check import greedy_is_settled
from verifier.config import Policy
from verifier.evidence.calibration import Measured
from verifier.evidence.ledger import Ledger
from verifier.records import Failure, NotJudged, Outcome, Report
from verifier.verdict.decide import decided


def test_too_few_replies_are_never_consistent() -> None:
    """However clear the first replies are."""
    plan = make_plan(min_replies=10)

    assert judge(rows_at(0.0, 9, seed=1, tokens=60), plan).decision == "inconclusive"
    assert judge(rows_at(0.0, 10, seed=1, tokens=60), plan).decision == "consistent"


@pytest.mark.parametrize(
    "outcome",
    [
        Failure(probe_id="x", status=500, reason="boom", attempts=4),
        NotJudged(probe_id="x", reason="empty", prompt_tokens=3, completion_tokens=0),
    ],
    ids=["failures", "not judged"],
)
def test_a_host_that_leaves_most_probes_unanswered_is_never_consistent(outcome: Outcome) -> None:
    """What cannot be judged is no evidence of honesty."""
    rows = rows_at(0.0, 12, seed=1)
    few = {f"x{n}": outcome for n in range(12)}
    many = {f"x{n}": outcome for n in range(13)}

    assert judge(rows, more=few).decision == "consistent"
    report = judge(rows, more=many)
    assert report.decision == "inconclusive"
    assert any("most probes" in note for note in report.notes)


def test_no_reply_at_all_is_inconclusive_and_bounds_nothing() -> None:
    """Nothing scored means nothing said."""
    failure = Failure(probe_id="x", status=None, reason="refused", attempts=1)
    report = judge([], more={"x": failure})

    assert report.decision == "inconclusive"
    assert report.noise_scale.estimate is None
    assert {finding.decision for finding in report.findings} == {"undecided"}
    assert report.usage.failures == 1


def test_the_signature_holds_what_it_takes_to_recompute() -> None:
    """Versions, digests, seed and configuration."""
    signature = judge(rows_at(0.0, 1, seed=1)).signature

    assert {
        "versions", "engine", "card", "card_sha256", "tensors_sha256", "config_sha256",
        "tokenizer_sha256", "template_sha256", "pool_sha256", "seed", "configuration",
    } <= signature.keys()  # fmt: skip


# -- a part of the replies ---------------------------------------------------------------------


# -- nothing fits ------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "ready"), [(40, False), (160, True)])
def test_samples_wait_for_a_share_that_the_policy_bounds(count: int, ready: bool) -> None:
    """Else the greedy replies that exclude it would never be asked."""
    rng = np.random.default_rng(3)
    plan = make_plan(
        policy=Policy(noise=("4-bit-class rounding",), routed={"4-bit-class rounding": 0.05})
    )
    rows = [simulate_row(rng, f"p{n}", scale=0.02) for n in range(count)]
    _, case = decided(case_of(plan, Ledger(rows=tuple(rows)), outcomes=replies(rows)))

    assert greedy_is_settled(case) is ready


# -- what a certificate rests on -----------------------------------------------------------------


def test_a_consistent_verdict_says_what_it_leaves_open() -> None:
    """The shares of requests that its replies exclude, and how far they reach."""
    report = judge(rows_at(0.02, 12, seed=1))
    found = report.certificate
    assert found is not None
    shares = dict(found.shares)

    assert report.decision == "consistent"
    assert (found.replies, found.stop, found.positions, found.level) == (12, 10, 30, 0.999)
    # twelve good replies bound a share at best as (1 - share) ** 12 = 0.001 does
    assert 1 - 0.001 ** (1 / 12) <= shares["4-bit-class rounding"] <= 0.6
    (bound,) = [note for note in report.notes if "smaller shares stay open" in note]
    assert "of the requests went to 4-bit-class rounding or worse" in bound
    assert any("a number drawn from the seed" in note for note in report.notes)


@pytest.mark.parametrize(("scale", "count"), [(0.6, 12), (0.02, 4)])
def test_no_other_verdict_has_a_certificate(scale: float, count: int) -> None:
    """Neither an accusation nor an open one."""
    assert judge(rows_at(scale, count, seed=1)).certificate is None


def test_a_share_that_is_said_to_be_excluded_is_hardly_ever_served() -> None:
    """Level: a host that sends 30 % elsewhere, 60 times, at beta 0.05."""
    wrong = 0
    for seed in range(60):
        report = judge(routed_rows(0.3, 14, seed=seed), make_plan(alpha=1e-9, beta=0.05))
        found = report.certificate
        wrong += found is not None and dict(found.shares).get("4-bit-class rounding", 1) <= 0.3

    assert wrong <= 60 * 0.05 + 5


def test_a_coarser_reference_is_said_in_the_first_line_and_accuses_of_less() -> None:
    """Noise that its own rounding can make is held against nobody."""
    measured = Measured(engine="transformers", dtype="float32", top_logprobs=5)
    plan = make_plan(calibration=make_calibration(measured=measured))
    rows = tuple(rows_at(0.135, 60, seed=3, tokens=45))

    def said(dtype: str) -> Report:
        ledger = Ledger(rows=rows, engine={"engine": "vllm", "dtype": dtype})
        return decide(plan, ledger, outcomes=replies(list(rows)))

    fine, coarse = said("float32"), said("bfloat16")
    assert (fine.decision, coarse.decision) == ("inconsistent", "inconclusive")
    assert (
        "scored by a reference in bfloat16 (vllm), calibrated for one in float32" in coarse.summary
    )
    assert "noise up to 0.14 is held against nobody" in coarse.summary
