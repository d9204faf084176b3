"""A part of the replies from something else: its share, its replies, and how it is bounded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from audits import FAULT, configure, host_with, run
from hosts import judge, only, routed_rows, rows_at
from simulate import make_plan

from verifier.checks import substitution
from verifier.config import Policy
from verifier.evidence.ledger import TEXT_SCALES
from verifier.plan_file import batch_ends

# -- level ---------------------------------------------------------------------------------------


def test_a_share_is_rarely_excluded_at_the_edge_of_its_class() -> None:
    """Three requests in ten to a host at the class's own scale, at every look from 10 replies."""
    policy = Policy(noise=(), routed={"4-bit-class rounding": 0.3})
    plan = make_plan(alpha=1e-9, beta=0.05, policy=policy)
    wrong = 0
    for seed in range(60):
        rows = routed_rows(0.3, 22, seed=seed, scale=0.3)
        ends = [end for end in batch_ends(len(rows)) if end >= plan.min_replies]
        wrong += any(judge(rows[:end], plan).decision == "consistent" for end in ends)

    assert wrong <= 9  # 60 x 0.05 = 3 expected at most; 9 is above its 99.9 % quantile


@pytest.mark.parametrize("scale", [0.2, 0.6])
def test_nothing_is_said_of_parts_where_one_cause_explains_everything(scale: float) -> None:
    """Every reply from one other host, mild or not: the noise is the finding."""
    for seed in range(30):
        report = judge(rows_at(scale, 30, seed=seed))

        assert not any(finding.aspect == "substitution" for finding in report.findings)


# -- power ---------------------------------------------------------------------------------------


def test_a_routed_host_is_found_sooner_by_its_parts() -> None:
    """One request in ten: of 20 hosts most are found within 60 replies."""
    found = [judge(routed_rows(0.1, 60, seed=s)).decision for s in range(20)]

    assert found.count("inconsistent") >= 15


def test_a_part_of_the_replies_is_named_with_its_share() -> None:
    """Three in ten from a build of the bank: the share, its interval, the replies and the build."""
    rows = routed_rows(0.3, 40, seed=1)
    report = judge(rows)
    aspects = {finding.aspect: finding for finding in report.findings}
    found = report.substitution

    assert report.decision == "inconsistent"
    assert aspects["substitution"].detail.startswith("about ")
    assert aspects["cause"].name == "int4-sym-g64"
    assert "a part of the replies and int4-sym-g64" in report.summary
    assert found is not None
    assert found.lower <= 0.3 <= found.upper
    told = {name for name, chance in found.replies if chance >= 0.5}
    assert 6 <= len(told) <= 18
    assert f"{len(told)} of 40 replies so far" in aspects["substitution"].detail


def test_a_small_share_is_excluded_only_with_replies_enough() -> None:
    """The policy asks for it: open after 60 replies, excluded after 260, with its upper bound."""
    policy = Policy(noise=("another model",), routed={"4-bit-class rounding": 0.05})
    plan = make_plan(policy=policy)
    rows = rows_at(0.05, 260, seed=4)
    early, late = judge(rows[:60], plan), judge(rows, plan)
    name = "5 % of requests to 4-bit-class rounding or worse"

    assert (early.decision, only(early, name).decision) == ("inconclusive", "undecided")
    assert (only(early, name).tokens_needed or 0) > 1000
    assert (late.decision, only(late, name).decision) == ("consistent", "excluded")
    assert late.substitution is not None
    assert late.substitution.upper < 0.05


# -- known answer --------------------------------------------------------------------------------


def test_the_share_of_two_replies_is_known_by_hand() -> None:
    """One is thrice as likely from something else, of whatever noise; one says nothing."""
    honest = TEXT_SCALES <= 0.1
    text = np.array([np.where(honest, 0.0, math.log(3.0)), np.zeros(len(TEXT_SCALES))])
    found = substitution.weigh_shares(text, TEXT_SCALES, honest, {})
    share = found.share
    assert share is not None

    assert found.suspect == substitution.UNKNOWN
    assert found.belongs[0] == pytest.approx(
        3 * share.estimate / (1 + 2 * share.estimate), abs=1e-9
    )
    assert found.belongs[1] == pytest.approx(share.estimate, abs=1e-9)


# -- one audit -----------------------------------------------------------------------------------


def test_an_audit_finds_the_part_of_the_replies_that_is_another_models(
    card: Path, tmp_path: Path
) -> None:
    """A host that serves the published weights to the first who ask."""
    with host_with(f"{FAULT}+spares:first") as url:
        config = configure(url, card, tmp_path / "run", endpoint={"concurrency": 1})
        report = run(config)

    assert report.decision == "inconsistent"
    assert report.substitution is not None
    told = [chance >= 0.5 for _, chance in report.substitution.replies]
    assert not any(told[:8])
    assert any(told[8:])


# -- what is said --------------------------------------------------------------------------------


def test_a_build_of_the_policy_is_a_suspect_with_a_share_of_its_own() -> None:
    """Beside the unknown one; the build that was served is the suspect, and its share is right."""
    policy = Policy(noise=("another model",), builds=("int4-sym-g64",))
    found = judge(routed_rows(0.3, 40, seed=1), make_plan(policy=policy)).substitution

    assert found is not None
    assert found.suspect == "int4-sym-g64"
    assert [name for name, *_ in found.suspects] == ["unknown", "int4-sym-g64"]
    assert all(lower <= 0.3 <= upper for _, _, lower, upper in found.suspects)


def test_an_honest_host_has_no_share() -> None:
    """The policy does not ask for one."""
    assert judge(rows_at(0.05, 20, seed=1)).substitution is None


def test_a_share_within_honest_serving_is_not_run() -> None:
    """Text cannot tell such a model from an honest one, however it is routed."""
    plan = make_plan(policy=Policy(noise=("another model",), routed={"int8-class rounding": 0.5}))
    report = judge(rows_at(0.05, 12, seed=1), plan)

    assert only(report, "50 % of requests to int8-class rounding or worse").decision == "not run"


def test_a_share_is_not_judged_under_a_penalty_and_the_sampler_is_to_be_mended() -> None:
    """Not the template: the replies tell which."""
    penalty = "sampler:repetition penalty 1.1"
    policy = Policy(noise=("4-bit-class rounding",), routed={"4-bit-class rounding": 0.3})
    report = judge(rows_at(0.6, 12, seed=3, builds=(penalty,)), make_plan(policy=policy))
    (share,) = [finding for finding in report.findings if finding.aspect == "routing"]

    assert any(f.aspect == "sampler" and f.decision == "detected" for f in report.findings)
    assert share.decision == "not run"
    assert share.detail == "the replies are made under a penalty; mend the sampler first"
