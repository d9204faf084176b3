"""The decision: error rates on simulated hosts, and what each verdict needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulate import (
    case_of,
    decide,
    make_calibration,
    make_plan,
    make_reply,
    replies,
    simulate_row,
)

from verifier.checks.cause import NOTHING_FITS
from verifier.checks.check import greedy_is_settled
from verifier.config import Policy, Prices
from verifier.evidence.calibration import Channel
from verifier.evidence.ledger import Ledger, Row
from verifier.plan_file import Plan, batch_ends
from verifier.records import REFERENCE, Failure, Finding, NotJudged, Outcome, Report
from verifier.verdict.combine import combine
from verifier.verdict.decide import decided


def rows_at(scale: float, count: int, *, seed: int, **more: Any) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [simulate_row(rng, f"p{n:04}", scale=scale, **more) for n in range(count)]


def judge(
    rows: list[Row], plan: Plan | None = None, more: dict[str, Outcome] | None = None
) -> Report:
    return decide(
        plan or make_plan(),
        Ledger(rows=tuple(rows), engine={"engine": "simulated"}),
        outcomes=replies(rows) | (more or {}),
    )


def only(report: Report, name: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.name == name]
    return found


def test_honest_noise_is_rarely_called_inconsistent_at_any_of_many_looks() -> None:
    """At the edge of the null, looking after every batch keeps false alarms below alpha."""
    plan = make_plan(alpha=0.05)
    alarms = 0
    for seed in range(200):
        rows = rows_at(0.1, 22, seed=seed, tokens=15)
        ends = batch_ends(len(rows))
        alarms += any(judge(rows[:end], plan).decision == "inconsistent" for end in ends)

    assert alarms <= 20  # 200 x 0.05 = 10 expected at most; 20 is above its 99.9 % quantile


def test_consistent_is_rarely_said_of_a_host_at_the_edge_of_a_class() -> None:
    """At a class's own scale, looking after every batch keeps false exclusions below beta."""
    plan = make_plan(alpha=1e-9, beta=0.05)
    wrong = 0
    for seed in range(200):
        rows = rows_at(0.3, 22, seed=1000 + seed, tokens=15)
        ends = batch_ends(len(rows))
        wrong += any(judge(rows[:end], plan).decision == "consistent" for end in ends)

    assert wrong <= 20


def test_most_honest_hosts_end_consistent_within_twenty_replies() -> None:
    """Power of the certificate."""
    found = [judge(rows_at(0.05, 20, seed=s)).decision for s in range(40)]

    assert found.count("consistent") >= 38


def test_four_bit_noise_is_called_inconsistent_within_a_few_replies() -> None:
    """Power of the detection."""
    found = [judge(rows_at(0.6, 4, seed=s)).decision for s in range(40)]

    assert found.count("inconsistent") >= 38


def test_an_excluded_class_has_negative_evidence_and_a_detected_one_positive() -> None:
    """The sign of log e says which way it points."""
    honest, noisy = judge(rows_at(0.05, 20, seed=1)), judge(rows_at(0.6, 20, seed=1))

    assert only(honest, "4-bit-class rounding").decision == "excluded"
    assert (only(honest, "4-bit-class rounding").log_e or 0) < -6.9
    assert only(noisy, "4-bit-class rounding").decision == "detected"
    assert (only(noisy, "4-bit-class rounding").log_e or 0) > 6.9


def test_the_interval_of_the_noise_scale_holds_the_truth() -> None:
    """Coverage at the stopping time, on hosts of a known scale."""
    plan = make_plan(beta=0.05)
    missed = 0
    for seed in range(200):
        scale = judge(rows_at(0.2, 10, seed=seed, tokens=15), plan).noise_scale
        assert scale.lower is not None
        missed += not (scale.lower <= 0.2 and (scale.upper is None or scale.upper >= 0.2))

    assert missed <= 20


def test_an_undecided_class_says_how_many_more_tokens_it_needs() -> None:
    """Extrapolated from the evidence so far."""
    report = judge(rows_at(0.05, 1, seed=3, tokens=8))
    finding = only(report, "4-bit-class rounding")

    assert report.decision == "inconclusive"
    assert finding.decision == "undecided"
    assert finding.tokens_needed is not None
    assert 1 <= finding.tokens_needed < 1000


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


def test_a_class_within_the_honest_floor_is_not_run_and_does_not_block() -> None:
    """The report says where the card's floor hides a class."""
    plan = make_plan(policy=Policy(noise=("int8-class rounding", "4-bit-class rounding")))
    report = judge(rows_at(0.02, 20, seed=5), plan)

    assert only(report, "int8-class rounding").decision == "not run"
    assert report.decision == "consistent"
    assert any("int8-class" in note for note in report.notes)


def test_a_policy_whose_every_class_is_within_the_floor_is_never_consistent() -> None:
    """A check that did not run is not passed."""
    plan = make_plan(policy=Policy(noise=("int8-class rounding",)))

    assert judge(rows_at(0.0, 20, seed=5), plan).decision == "inconclusive"


def test_reported_logprobs_accuse_but_never_acquit() -> None:
    """Forged perfect log-probabilities do not make a noisy text consistent."""
    plan = make_plan(top_logprobs=5)
    forged = judge(rows_at(0.6, 12, seed=2, logprob_scale=0.001), plan)
    accused = judge(rows_at(0.0, 2, seed=2, logprob_scale=0.8), plan)

    assert forged.decision == "inconsistent"
    assert accused.decision == "inconsistent"
    assert only(accused, "reported log-probabilities").decision == "detected"


def test_missing_logprobs_are_no_evidence() -> None:
    """The verdict rests on the text, and a note says so."""
    report = judge(rows_at(0.05, 20, seed=2), make_plan(top_logprobs=5))

    assert report.decision == "consistent"
    assert any("not used" in note for note in report.notes)


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


def test_noise_of_no_known_build_is_named_by_what_it_is_like() -> None:
    """Nothing in the bank fits, and the report says so instead of guessing."""
    rows = rows_at(0.6, 6, seed=11)
    wrong = rows_at(0.9, 6, seed=12)
    rows = [
        Row(
            probe_id=a.probe_id, tokens=a.tokens, left_out=0,
            text=a.text | {"fp8-channel": b.text["reference"]}, logprob=None,
            logprob_problem=None,
        )
        for a, b in zip(rows, wrong, strict=True)
    ]  # fmt: skip
    report = judge(rows)
    cause = report.findings[-1]

    assert cause.aspect == "cause"
    assert cause.decision == "undecided"
    assert cause.name == "noise like 4-bit rounding (int4-sym-g64)"


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


def test_spread_and_learning_rate_of_the_calibration_are_applied() -> None:
    """A tempered likelihood says less, and so does one that lets replies differ."""
    rows = tuple(rows_at(0.6, 3, seed=1))

    def read(spread: float, rate: float) -> float:
        channel = Channel(honest_scale=0.1, spread=spread, learning_rate=rate)
        plan = make_plan(calibration=make_calibration(text=channel))
        return combine(case_of(plan, Ledger(rows=rows))).log_e

    assert read(0.0, 0.5) == pytest.approx(0.5 * read(0.0, 1.0), rel=0.1)
    assert read(0.2, 1.0) < 0.9 * read(0.0, 1.0)


def test_a_report_says_what_of_its_card_nobody_has_checked() -> None:
    """Whatever the verdict."""
    notes = ("nobody has checked what the card says of sampling",)
    report = judge(rows_at(0.0, 1, seed=1), make_plan(card_notes=notes))

    assert set(notes) <= set(report.notes)
    assert not set(notes) & set(judge(rows_at(0.0, 1, seed=1)).notes)


def test_the_signature_holds_what_it_takes_to_recompute() -> None:
    """Versions, digests, seed and configuration."""
    signature = judge(rows_at(0.0, 1, seed=1)).signature

    assert {
        "versions", "engine", "card", "card_sha256", "tensors_sha256", "config_sha256",
        "tokenizer_sha256", "template_sha256", "pool_sha256", "seed", "configuration",
    } <= signature.keys()  # fmt: skip


# -- a part of the replies ---------------------------------------------------------------------


def routed_rows(share: float, count: int, *, seed: int, scale: float = 0.6) -> list[Row]:
    """Replies of a host that sends each request to a build with a chance of `share`."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        own = scale if rng.random() < share else 0.05
        builds = ("int4-sym-g64",) if own == scale else ()
        row = simulate_row(rng, f"p{n:04}", scale=own, builds=builds)
        # honest replies under the build: unlike them by as much as the build is unlike the weights
        rows.append(row if builds else _under_a_build(row, rng))
    return rows


def _under_a_build(row: Row, rng: np.random.Generator, scale: float = 0.6) -> Row:
    other = simulate_row(rng, row.probe_id, scale=scale)
    return replace(row, text=row.text | {"int4-sym-g64": other.text[REFERENCE]})


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


def test_a_build_of_the_policy_is_a_suspect_with_a_share_of_its_own() -> None:
    """Beside the unknown one; the build that was served is the suspect, and its share is right."""
    policy = Policy(noise=("another model",), builds=("int4-sym-g64",))
    found = judge(routed_rows(0.3, 40, seed=1), make_plan(policy=policy)).substitution

    assert found is not None
    assert found.suspect == "int4-sym-g64"
    assert [name for name, *_ in found.suspects] == ["unknown", "int4-sym-g64"]
    assert all(lower <= 0.3 <= upper for _, _, lower, upper in found.suspects)


@pytest.mark.parametrize("scale", [0.2, 0.6])
def test_nothing_is_said_of_parts_where_one_cause_explains_everything(scale: float) -> None:
    """Every reply from one other host, mild or not: the noise is the finding."""
    for seed in range(30):
        report = judge(rows_at(scale, 30, seed=seed))

        assert not any(finding.aspect == "substitution" for finding in report.findings)


def test_an_honest_host_has_no_share() -> None:
    """The policy does not ask for one."""
    assert judge(rows_at(0.05, 20, seed=1)).substitution is None


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


def test_a_share_within_honest_serving_is_not_run() -> None:
    """Text cannot tell such a model from an honest one, however it is routed."""
    plan = make_plan(policy=Policy(noise=("another model",), routed={"int8-class rounding": 0.5}))
    report = judge(rows_at(0.05, 12, seed=1), plan)

    assert only(report, "50 % of requests to int8-class rounding or worse").decision == "not run"


def test_a_routed_host_is_found_sooner_by_its_parts() -> None:
    """One request in ten: of 20 hosts most are found within 60 replies."""
    found = [judge(routed_rows(0.1, 60, seed=s)).decision for s in range(20)]

    assert found.count("inconsistent") >= 15


# -- nothing fits ------------------------------------------------------------------------------


def strange_rows(count: int, *, seed: int) -> list[Row]:
    """Replies of no column of the bank: as far from the build as from the weights."""
    rng = np.random.default_rng(seed)
    return [_under_a_build(simulate_row(rng, f"p{n}", scale=1.5), rng, 1.5) for n in range(count)]


def test_replies_that_nothing_explains_are_said_to_be_so() -> None:
    """With the divergence in nats per token from the weights and from the nearest build."""
    (cause,) = [f for f in judge(strange_rows(12, seed=1)).findings if f.aspect == "cause"]

    assert (cause.name, cause.decision) == (NOTHING_FITS, "undecided")
    assert "nats per token from the published weights" in cause.detail
    assert "from the nearest build, int4-sym-g64" in cause.detail
    assert "sampling in spite of temperature 0" in cause.detail


def test_a_build_that_explains_the_replies_is_no_stranger() -> None:
    """However far it is from the weights: it fits as calibrated stacks do."""
    rng = np.random.default_rng(1)
    rows = [
        simulate_row(rng, f"p{n}", scale=1.5, builds=("int4-sym-g64",)) for n in range(12)
    ]  # fmt: skip
    (cause,) = [f for f in judge(rows).findings if f.aspect == "cause"]

    assert (cause.name, cause.decision) == ("int4-sym-g64", "detected")
    assert "even so" not in cause.detail


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
