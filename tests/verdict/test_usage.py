"""What was asked and spent: as the endpoint counts, as far as that can be, and as it came."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hosts import judge, rows_at
from simulate import case_of, make_plan, make_reply, replies

from verifier.checks.template.shown_prompts import Shown
from verifier.config import Prices
from verifier.evidence.ledger import Ledger
from verifier.records import Failure, NotJudged, Outcome
from verifier.verdict.usage import count_usage, why_not_judged


def test_usage_falls_back_to_our_count_and_prices_give_a_cost() -> None:
    """A host that counts nothing is counted by its tokens."""
    rows = rows_at(0.0, 2, seed=1)
    silent = make_reply("p0000")
    silent = type(silent)(
        probe_id="p0000", text="words", finish_reason="length", prompt_tokens=None,
        completion_tokens=None, logprobs=None, logprobs_problem=None,
    )  # fmt: skip
    plan = make_plan(prices=Prices(prompt=1.0, completion=2.0))
    usage = judge(rows, plan, {"p0000": silent}).usage

    assert usage.completion_tokens == 60
    assert usage.prompt_tokens == 20
    assert usage.cost_usd == pytest.approx((20 * 1 + 60 * 2) / 1e6)


def test_what_checks_asked_beside_counts_too() -> None:
    """Requests and tokens of shown prompts, on top of those of the replies."""
    rows = rows_at(0.0, 2, seed=1)
    plan, outcomes = make_plan(), replies(rows)
    shown = Shown(prompts=(), requests=3, prompt_tokens=50, completion_tokens=4)
    ledger = Ledger(rows=tuple(rows))
    without = count_usage(case_of(plan, ledger, outcomes=outcomes))
    beside = count_usage(case_of(plan, ledger, outcomes=outcomes, shown=shown))

    assert beside.requests - without.requests == 3
    assert beside.prompt_tokens - without.prompt_tokens == 50
    assert beside.completion_tokens - without.completion_tokens == 4
    assert beside.replies == without.replies == 2


def test_outcomes_of_long_probes_are_no_failures() -> None:
    """A finding of their own says what came of them."""
    failures: dict[str, Outcome] = {
        name: Failure(probe_id=name, status=400, reason="too long", attempts=1)
        for name in ("context-1", "output-1", "p1")
    }

    assert count_usage(case_of(make_plan(), Ledger(rows=()), outcomes=failures)).failures == 1


def test_a_reply_that_could_not_be_read_says_why() -> None:
    """As it came, or once it was scored."""
    row = replace(rows_at(0.0, 1, seed=1)[0], unjudged="no such tokens", text={}, logprob=None)
    outcomes: dict[str, Outcome] = {
        "p0000": make_reply("p0000"),
        "p1": NotJudged(probe_id="p1", reason="empty", prompt_tokens=3, completion_tokens=0),
    }
    case = case_of(make_plan(), Ledger(rows=(row,)), outcomes=outcomes)

    assert why_not_judged(case) == {"p0000": "no such tokens", "p1": "empty"}
    assert (count_usage(case).replies, count_usage(case).not_judged) == (0, 2)
