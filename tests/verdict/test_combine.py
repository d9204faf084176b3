"""All evidence as one e-value: the fold over the checks, their shares, and what each must reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hosts import rows_at, under_a_build
from simulate import case_of, make_plan, simulate_row

from verifier.checks import CHECKS
from verifier.checks.check import Case
from verifier.checks.template.naming import TEMPLATE_SHARE
from verifier.config import Policy
from verifier.evidence.ledger import Ledger
from verifier.verdict.combine import Combined, combine, needed


def by_hand(case: Case, combined: Combined, *, greedy: bool = False) -> float:
    """The fold as it is defined: each check takes its shares of all before it."""
    total = 0.0
    for check in CHECKS:
        shares = check.shares(case.plan)
        if shares and not (greedy and check.ask.keys() & {"sampled", "long"}):
            parts = [(1 - sum(shares)) * math.exp(total)]
            log_e = combined.weighed[check.name].log_e
            parts += [s * math.exp(one) for s, one in zip(shares, log_e, strict=True)]
            total = math.log(sum(parts))
    return total


@pytest.mark.parametrize("scale", [0.05, 0.2])
def test_the_evidence_is_the_fold_over_the_checks(scale: float) -> None:
    """Whatever is planned; what was not asked yet says nothing."""
    policy = Policy(noise=("another model",), builds=("int4-sym-g64",))
    plan = make_plan(policy=policy, top_logprobs=5, varies=True, context_tokens=900)
    rows = tuple(rows_at(scale, 4, seed=1, builds=("int4-sym-g64",), logprob_scale=0.05))
    case = case_of(plan, Ledger(rows=rows))
    combined = combine(case)

    assert combined.log_e == pytest.approx(by_hand(case, combined))
    assert combined.log_e_greedy == pytest.approx(by_hand(case, combined, greedy=True))


def test_a_mixture_of_honest_evidence_keeps_its_level() -> None:
    """With every check of the greedy replies in it, at 1 in 20 and at any of eight looks."""
    policy = Policy(noise=("another model",), builds=("int4-sym-g64",))
    plan, crossed = make_plan(policy=policy, top_logprobs=5), 0
    for seed in range(60):
        rng = np.random.default_rng([4, seed])
        rows = [
            under_a_build(simulate_row(rng, f"p{n}", scale=0.1, tokens=8, logprob_scale=0.1), rng)
            for n in range(8)
        ]
        looks = [combine(case_of(plan, Ledger(rows=tuple(rows[:n])))).log_e for n in range(1, 9)]
        crossed += max(looks) >= math.log(20)

    assert crossed <= 60 / 20 + 4


def test_shares_are_fixed_in_the_plan_and_leave_something_to_all_before() -> None:
    """Noise, the first, has all; builds have half of it, evenly, and no check more than half."""
    policy = Policy(noise=(), builds=("int4-sym-g64", "fp8-channel"))
    plan = make_plan(policy=policy, top_logprobs=5, varies=True, output_tokens=100)
    shares = {check.name: check.shares(plan) for check in CHECKS}

    first, *others = [name for name, some in shares.items() if some]
    assert (first, shares[first]) == ("noise", (1.0,))
    assert shares["builds"] == (0.25, 0.25)
    assert all(0 < sum(shares[name]) <= 0.5 for name in others)
    bare = make_plan(policy=Policy(noise=("another model",)))
    assert [c.name for c in CHECKS if c.shares(bare)] == [
        "noise", "substitution", "greedy_tokens", "template",
    ]  # fmt: skip


def test_what_a_share_must_reach_suffices_for_the_verdict() -> None:
    """Alone, where all else says nothing at all: 1/alpha of its share."""
    plan = make_plan(alpha=0.01)
    (least,) = needed(plan)["template"]

    assert least == pytest.approx(math.log(1 / (0.01 * TEMPLATE_SHARE)))
    assert needed(plan)["tokenizer"] == ()
    assert math.log(TEMPLATE_SHARE) + least == pytest.approx(math.log(1 / plan.alpha))


def test_what_is_asked_on_cause_has_its_share_reserved() -> None:
    """Before the data: where no template was scored, its part of the wealth is lost."""
    (row,) = rows_at(0.05, 1, seed=1)
    combined = combine(case_of(make_plan(), Ledger(rows=(row,))))

    assert combined.weighed["template"].log_e == (-math.inf,)
    assert math.isfinite(combined.log_e)
