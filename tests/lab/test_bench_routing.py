"""The benchmark of routed hosts: how they are made, how audits are summed up, what is committed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from simulate import make_plan, make_reply, simulate_row

from verifier.config import Policy
from verifier.evidence.mixture import least_replies
from verifier.files.run_folder import read_json
from verifier.lab.bench.routing import (
    LINES,
    Corpus,
    Line,
    RoutedAudit,
    audit_routed,
    make_routing_plan,
    route,
    sum_up_routed,
    tabulate_routing,
)
from verifier.records import REFERENCE

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "routing.benchmark.json"


def corpus(scale: float, count: int, *, seed: int) -> Corpus:
    """Rows of one host; both hosts are asked the same probes."""
    rng = np.random.default_rng(seed)
    rows = [simulate_row(rng, f"p{n:04}", scale=scale, tokens=20) for n in range(count)]
    return Corpus(rows=rows, outcomes={r.probe_id: make_reply(r.probe_id, 20) for r in rows})


CORPORA = {REFERENCE: corpus(0.05, 300, seed=1), "drop-1": corpus(0.6, 120, seed=2)}


def test_a_routed_host_mixes_two_corpora_and_repeats_no_reply() -> None:
    """By chance, each reply with its own outcome, and the same again for the same seed."""
    honest, other = CORPORA[REFERENCE], CORPORA["drop-1"]
    made, routed = route(honest, other, 0.3, rng=np.random.default_rng(4))
    again, _ = route(honest, other, 0.3, rng=np.random.default_rng(4))
    texts = [row.text[REFERENCE] for row in made.rows]
    others = {row.text[REFERENCE] for row in other.rows}

    assert 0.2 < np.mean(routed) < 0.4
    assert [text in others for text in texts] == routed
    assert len(set(texts)) == len(texts) > 250
    assert list(made.outcomes) == [row.probe_id for row in made.rows]
    assert made.rows == again.rows


def test_audits_of_a_routed_host_find_it_and_cover_its_share() -> None:
    """Three in ten: nearly every audit, and nearly every interval; none of an honest host."""
    policy = Policy(noise=("another model",), routed={"4-bit-class rounding": 0.3})
    plan = make_plan(policy=policy)
    found = audit_routed(plan, CORPORA, Line(weights="drop-1", share=0.3, audits=12), seed=(1, 1))
    honest = audit_routed(plan, CORPORA, Line(weights=REFERENCE, share=0.0, audits=8), seed=(1, 0))

    assert sum(audit.decision == "inconsistent" for audit in found) >= 11
    assert sum(audit.lower <= 0.3 <= audit.upper for audit in found) >= 11
    assert [audit.decision for audit in honest] == ["consistent"] * 8


def test_a_line_is_summed_up_by_hand() -> None:
    """Replies and tokens of the audits that found it; coverage of all of them."""

    def audit(replies: int, decision: str, lower: float, upper: float) -> RoutedAudit:
        return RoutedAudit(
            replies=replies, routed=1, completion_tokens=40 * replies, decision=decision,
            log_e=9.0, estimate=0.1, lower=lower, upper=upper, later=(lower, upper / 2),
        )  # fmt: skip

    audits = [
        audit(10, "inconsistent", 0.0, 0.2), audit(20, "inconsistent", 0.05, 0.08),
        audit(90, "consistent", 0.0, 0.04),
    ]  # fmt: skip
    line = sum_up_routed(Line(weights="drop-1", share=0.05, audits=3), audits)
    table = tabulate_routing({"lines": [line]}).splitlines()

    assert line["decisions"] == {"consistent": 1, "inconsistent": 2, "inconclusive": 0}
    assert (line["covered"], line["covered_later"]) == (2, 1)
    assert (line["replies"]["median"], line["replies"]["max"]) == (15, 20)
    assert table[2].startswith("| drop-1 | 0.05 | 3 | 2 | 1 | 0 | 15 (19) | 600 (760) | 2 of 3 |")


def test_the_plan_of_the_benchmark_can_exclude_its_share() -> None:
    """The policy that ships, text alone, and a budget above the least."""
    plan = make_routing_plan(seed=1)
    least = least_replies(plan.policy.routed["4-bit-class rounding"], error=plan.beta)

    assert (plan.policy_name, plan.top_logprobs) == ("routing", 0)
    assert plan.budget_completion_tokens >= least * plan.max_tokens


# -- what is committed -------------------------------------------------------------------------


def test_the_page_shows_the_committed_results() -> None:
    """Figures are never written by hand."""
    page = RESULTS.with_name("README.md").read_text(encoding="utf-8")

    assert tabulate_routing(read_json(RESULTS)) in page


def test_the_committed_results_can_be_summed_up_anew() -> None:
    """From each audit that is listed."""
    results = read_json(RESULTS)

    assert len(results["lines"]) == len(LINES)
    for line, kept in zip(LINES, results["lines"], strict=True):
        audits = [RoutedAudit(**audit | {"later": tuple(audit["later"])}) for audit in kept["each"]]
        again = sum_up_routed(line, audits)
        assert {k: v for k, v in again.items() if k != "each"} == {
            k: v for k, v in kept.items() if k != "each"
        }
        assert Counter(a.decision for a in audits).total() == line.audits


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.weights}-{line.share:g}")
def test_the_committed_results_meet_what_was_asked_of_them(line: Line) -> None:
    """Nobody accused; 0.3 within 6,000 tokens, 0.05 within 150 replies, 90 % of shares covered."""
    (kept,) = [
        found for found in read_json(RESULTS)["lines"]
        if (found["weights"] or REFERENCE, found["share"]) == (line.weights, line.share)
    ]  # fmt: skip

    if line.share == 0:
        assert kept["decisions"]["inconsistent"] == 0
    else:
        assert kept["completion_tokens"]["median"] <= 6000
        assert kept["replies"]["median"] <= 150
    assert kept["covered"] >= 0.9 * line.audits
