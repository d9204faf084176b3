"""How soon replies leave a trusted host's texts: level, power, and audits from its words alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import FAULT, NOWHERE, host
from packs import TOKENS, configure_packed, record_tiny_pack, run_packed
from simulate import make_plan

from verifier.checks.leaving import CHECK, mark_of
from verifier.errors import ConfigError
from verifier.evidence.hazards import KINDS, WINDOW, Leaving
from verifier.evidence.ledger import Ledger, Left, Row, read_ledger
from verifier.files.run_folder import REPORT
from verifier.plan_file import PackFacts, Plan
from verifier.records import Report
from verifier.reference.trusted import Trusted
from verifier.steps import start
from verifier.verdict.case import make_case
from verifier.verdict.decide import decide, decide_folder

KIND = KINDS["dense"]
DAY = "2026-11-30"


def planned(*, same_model: bool = True, second: bool = False, **changes: Any) -> Plan:
    """The plan of an audit from texts of a trusted host."""
    trusted = Trusted(
        host="trusted.example", model="m", first_asked=DAY, last_asked=DAY, questions=60,
        repeated=60, hazard=0.0, kind="dense", same_model=same_model,
        second_host="second.example" if second else None, second_model="m" if second else None,
    )  # fmt: skip
    facts = PackFacts(
        digest="0" * 64, signed_by=None, made_on=DAY, source="texts", questions=60, panel=0,
        tokens=17, trusted=trusted,
    )  # fmt: skip
    plan = make_plan(min_replies=10, **changes)
    policy = plan.policy.model_copy(update={"routed": {}})
    return plan.model_copy(update={"pack": facts, "policy": policy})


def leaves(rng: np.random.Generator, hazard: float) -> Leaving:
    place = int(rng.geometric(hazard)) if hazard else WINDOW + 1
    return Leaving(exposure=min(place, WINDOW), left=place <= WINDOW)


def rows(
    seed: int, target: float, *, itself: float = 0.0, second: float | None = None, count: int = 60
) -> tuple[Row, ...]:
    """Replies that leave with these hazards, a token."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        own = leaves(rng, target).told
        left = Left(
            target=own, alone=own, itself=leaves(rng, itself).told,
            second=None if second is None else leaves(rng, second).told,
        )  # fmt: skip
        found.append(
            Row(
                probe_id=f"p{n}", tokens=abs(own), left_out=0, text={}, logprob=None,
                logprob_problem=None, left=left,
            )
        )  # fmt: skip
    return tuple(found)


def judge(plan: Plan, some: Sequence[Row]) -> Report:
    return decide(make_case(plan, Ledger(rows=tuple(some), engine={"engine": "host"})))


# -- level ------------------------------------------------------------------------------------


def test_hosts_at_the_edge_of_what_is_honest_are_accused_rarely_enough() -> None:
    """Null: as far from the trusted host as is held against nobody, which repeats itself exactly.
    Looked at after every tenth reply, at alpha 0.05."""
    plan, accused = planned(alpha=0.05), 0
    for seed in range(60):
        some = rows(seed, KIND.tolerated)
        accused += any(
            CHECK.weigh(make_case(plan, Ledger(rows=some[:n])), None).log_e[0] >= math.log(20)
            for n in range(10, 61, 10)
        )

    assert accused <= 8  # 99.9 % of binomials of 60 at 0.05 are at most this


def test_measured_honest_hazards_are_never_accused() -> None:
    """100 targets as noisy as the noisiest pair of honest stacks, decided at 0.001; most of them
    are consistent within 60 replies."""
    said = [judge(planned(), rows(seed, KIND.honest)).decision for seed in range(100)]

    assert "inconsistent" not in said
    assert said.count("consistent") >= 60


def test_a_build_as_mild_as_its_class_begins_is_not_called_consistent() -> None:
    """Of half the noise of the mildest 4-bit build that was measured, and so of half its hazard."""
    plan = planned()
    mark = mark_of("4-bit-class rounding", plan.calibration, KIND)
    said = [judge(plan, rows(seed, mark, count=120)).decision for seed in range(40)]

    assert KIND.tolerated < mark < 0.6 * KIND.rounded
    assert "consistent" not in said


# -- power ------------------------------------------------------------------------------------


def test_4_bit_hosts_are_found_within_60_replies() -> None:
    """int4 leaves at 0.35 a token; its verdict names no noise scale and no cause."""
    found = [judge(planned(), rows(seed, 0.352)) for seed in range(40)]

    assert sum(report.decision == "inconsistent" for report in found) >= 38
    first = next(report for report in found if report.decision == "inconsistent")
    assert first.summary.startswith("the replies leave the trusted host's sooner")
    assert first.noise_scale.estimate is None
    assert not [f for f in first.findings if f.aspect in ("cause", "noise", "weights")]


def test_a_mark_of_the_same_model_or_a_second_host_is_needed_to_be_consistent() -> None:
    """Without either it is inconclusive, and says why."""
    some = rows(3, 0.03, second=0.06, count=120)

    assert judge(planned(), some).decision == "consistent"
    assert judge(planned(same_model=False, second=True), some).decision == "consistent"
    alone = judge(planned(same_model=False), rows(3, 0.03, count=120))
    assert alone.decision == "inconclusive"
    assert "was not judged" in alone.summary
    assert "second trusted host (--second)" in " ".join(alone.notes)


def test_few_replies_are_never_consistent() -> None:
    """Fewer than the stopping point, however alike."""
    assert judge(planned(), rows(3, 0.0, count=9)).decision == "inconclusive"


def test_a_second_host_that_is_as_far_excuses_a_target() -> None:
    """It shows that honest hosts of this model leave each other so."""
    plan = planned(same_model=False, second=True)

    assert judge(plan, rows(5, 0.4, second=0.02, count=90)).decision == "inconsistent"
    assert judge(plan, rows(5, 0.4, second=0.4, count=90)).decision == "inconclusive"


# -- known answer -----------------------------------------------------------------------------


def test_what_is_said_is_counted_from_the_rows() -> None:
    """39 of 40 left at once: 39 in 39 + 16 tokens at risk."""
    at_once = Left(target=-1, alone=-1, itself=WINDOW)
    stayed = Left(target=WINDOW, alone=WINDOW, itself=WINDOW)
    some = [
        Row(
            probe_id=f"p{n}", tokens=1, left_out=0, text={}, logprob=None, logprob_problem=None,
            left=at_once if n else stayed,
        )
        for n in range(40)
    ]  # fmt: skip

    report = judge(planned(), some)

    (sooner,) = [f for f in report.findings if f.aspect == "sooner"]
    assert sooner.detail.startswith("39 of 40 replies left, 70.9% a token, where honest hosts")
    assert f"up to {KIND.tolerated:.1%}" in sooner.detail


# -- one audit --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of what a host of the tiny model said, as text alone."""
    with host() as url:
        return record_tiny_pack(
            tmp_path_factory.mktemp("texts"), url, wanted="texts", same_model=True, tokens=24
        )


def test_an_honest_host_is_consistent_by_texts_alone(texts: Path, tmp_path: Path) -> None:
    """Whose word it is, and what it can hide, is said first."""
    run = tmp_path / "run"
    with host() as url:
        report = run_packed(configure_packed(url, texts, run, max_tokens=17))

    assert report.decision == "consistent"
    assert {f.aspect for f in report.findings if f.decision == "excluded"} == {"leaving"}
    assert "on trust" in report.notes[0]
    assert "127.0.0.1" in report.notes[0]
    assert "this audit cannot see it" in report.notes[0]
    assert all(row.left for row in read_ledger(run).rows if row.unjudged is None)
    before = (run / REPORT).read_bytes()
    decide_folder(run)
    assert (run / REPORT).read_bytes() == before


def test_a_host_with_other_weights_is_inconsistent_by_texts_alone(
    texts: Path, tmp_path: Path
) -> None:
    """Within the questions that the pack has."""
    with host(FAULT) as url:
        report = run_packed(configure_packed(url, texts, tmp_path / "run", max_tokens=17))

    assert report.decision == "inconsistent"
    assert next(f.aspect for f in report.findings if f.decision == "detected") == "sooner"


@pytest.mark.parametrize("milder", [(), ("int8-class rounding",)])
def test_texts_serve_a_policy_that_names_nothing_milder_than_4_bits(
    texts: Path, tmp_path: Path, milder: tuple[str, ...]
) -> None:
    """Shares of requests are not run; what is milder is refused before anything is asked."""
    coarse = "4-bit-class rounding"
    policy = {"noise": [*milder, coarse], "routed": {coarse: 0.75}}
    config = configure_packed(
        NOWHERE,
        texts,
        tmp_path / "run",
        policy=policy,
        max_tokens=17,
        budget_completion_tokens=6000,
    )

    if milder:
        with pytest.raises(ConfigError, match="int8-class rounding: of the pack's host texts"):
            start(config)
        return
    plan = start(config)
    assert plan.policy.routed == {}
    assert plan.pack is not None
    assert plan.pack.beyond == ("a share of requests to 4-bit-class rounding",)
    assert plan.max_tokens == min(17, plan.pack.tokens) > TOKENS
