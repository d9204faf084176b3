"""The decision: what each verdict needs."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import judge, rows_at
from simulate import case_of, make_plan, replies, simulate_row

from verifier.checks.check import greedy_is_settled
from verifier.config import Policy
from verifier.evidence.ledger import Ledger
from verifier.records import Failure, NotJudged, Outcome
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
