"""The benchmark's arithmetic: audits replayed from a corpus, and how they are summed up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulate import decide, make_plan, make_reply, replies, simulate_row

from verifier.config import Policy
from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger, Row
from verifier.files.run_folder import read_json
from verifier.lab.bench.precision import (
    Audit,
    Figure,
    list_figures,
    replay,
    run_bench,
    sum_up,
    tabulate,
)
from verifier.lab.corpus import Stack
from verifier.plan_file import batch_ends
from verifier.records import Reply

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "smollm2-135m-instruct.benchmark.json"

TRUTH = 0.05  # an honest scale of the simulated model, on the grid of scales to 2 %


def make_rows(count: int, *, scale: float = TRUTH, tokens: int = 30) -> list[Row]:
    rng = np.random.default_rng(7)
    return [simulate_row(rng, f"p{n}", scale=scale, tokens=tokens) for n in range(count)]


def replayed(rows: list[Row], *, most: int = 100, **plan: Any) -> list[Audit]:
    return replay(make_plan(**plan), Ledger(rows=tuple(rows)), replies(rows), most=most)


def make_figure(**changes: Any) -> Figure:
    values: dict[str, Any] = {
        "part": "honest",
        "stack": Stack(dtype="float32", batch=32),
        "policy": "screen",
        "with_logprobs": False,
        "audits": 30,
    }
    return Figure(**values | changes)


# -- what is measured --------------------------------------------------------------------------


def test_every_figure_is_measured_once_with_and_without_logprobs() -> None:
    """At least 100 honest audits per channel, 40 of each fault, and fp8 under `standard`."""
    figures = list_figures()

    assert len({figure.name for figure in figures}) == len(figures)
    for with_logprobs in (True, False):
        some = [figure for figure in figures if figure.with_logprobs == with_logprobs]
        honest = [figure for figure in some if figure.part == "honest"]
        faults = [figure for figure in some if figure.part in ("faults", "fp8")]
        assert sum(figure.audits for figure in honest) >= 100
        assert {figure.stack.dtype for figure in honest} == {"float32", "bfloat16", "float16"}
        assert {figure.audits for figure in faults} == {40}
        assert {f.policy for f in some if f.part == "fp8"} == {"standard"}


def test_faults_in_and_out_of_the_bank_are_measured() -> None:
    """Every four-bit grouping, nf4, int3 and a dropped layer; and roundings no column has."""
    served = {figure.stack.weights for figure in list_figures() if figure.part == "faults"}
    groups = ("g64", "g96", "g192", "channel")

    assert {f"int4-{kind}-{group}" for kind in ("sym", "asym") for group in groups} < served
    assert {"nf4-g64", "int3-g64", "drop-1", "int4-asym-g48", "int4-rotated-g64"} < served


def test_causes_are_named_from_text_alone_in_and_out_of_the_bank() -> None:
    """Of a few faults: every reply is scored under the whole bank."""
    causes = [figure for figure in list_figures() if figure.part == "causes"]

    assert {figure.with_logprobs for figure in causes} == {False}
    assert {"int4-asym-g64", "int4-asym-g48"} <= {figure.stack.weights for figure in causes}


def test_figures_become_a_table_of_verdicts_and_one_of_names() -> None:
    """Counts, medians and names as they are in the results."""
    rows = make_rows(20)
    verdict = summed(replayed(rows))
    cause = summed(replayed(rows), part="causes") | {"named": {"int4-sym-g64": 3, "drop-1": 1}}
    lines = tabulate({"figures": [verdict, cause]}).splitlines()

    assert lines[2].startswith("| float32-batch32 | screen | text | 2 | 2 | 0 | 0 | 300 (300) |")
    assert lines[-1] == "| float32-batch32 | screen | 2 | int4-sym-g64 3, drop-1 1 |"


def test_an_unknown_part_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    """It would measure nothing, after hours or at once."""
    with pytest.raises(ConfigError, match="no part 'fp16'; there are honest, faults, fp8, causes"):
        run_bench(
            tmp_path / "out", cache=tmp_path / "cache", parts=("honest", "fp16"), seed=1,
            tell=lambda _line: None,
        )  # fmt: skip

    assert list(tmp_path.iterdir()) == []


# -- replaying ---------------------------------------------------------------------------------


def test_audits_are_disjoint_consecutive_slices() -> None:
    """No reply serves two audits of one figure, and none is passed over."""
    audits = replayed(make_rows(64))
    used = Counter(n for a in audits for n in range(a.first, a.first + a.replies))

    assert len(audits) >= 4
    assert set(used.values()) == {1}
    assert sorted(used) == list(range(len(used)))


def test_no_more_audits_are_replayed_than_asked_for() -> None:
    """The first ones, which later replies do not change."""
    rows = make_rows(64)

    assert replayed(rows, most=2) == replayed(rows)[:2] == replayed(rows[:40], most=2)


@pytest.mark.parametrize("scale", [TRUTH, 0.6], ids=["honest", "faulty"])
def test_an_audit_stops_at_the_first_look_that_decides(scale: float) -> None:
    """As a real one does: undecided at every look before, decided at this one."""
    rows = make_rows(64, scale=scale)
    plan, outcomes = make_plan(), replies(rows)

    for audit in replayed(rows):
        slices = [rows[audit.first : audit.first + end] for end in batch_ends(audit.replies)]
        looks = [decide(plan, Ledger(rows=tuple(some)), outcomes=outcomes) for some in slices]
        assert [look.decision for look in looks[:-1]] == ["inconclusive"] * (len(looks) - 1)
        assert looks[-1].decision == audit.decision != "inconclusive"
        assert looks[-1].noise_scale.upper == audit.upper
        assert audit.completion_tokens == 30 * audit.replies


def test_each_truth_gets_its_verdict() -> None:
    """A quiet host is consistent, a loud one inconsistent within few replies."""
    honest, faulty = replayed(make_rows(64)), replayed(make_rows(64, scale=0.6))

    assert {audit.decision for audit in honest} == {"consistent"}
    assert {audit.decision for audit in faulty} == {"inconsistent"}
    assert min(audit.log_e for audit in faulty) >= np.log(1000)


def test_an_audit_that_runs_out_of_replies_is_dropped() -> None:
    """It would be neither a verdict nor a lack of one."""
    rows = make_rows(64)
    first, second = replayed(rows, most=2)
    whole = first.replies + second.replies

    assert replayed(rows[:5]) == []
    assert replayed([]) == []
    assert replayed(rows[:whole]) == [first, second]
    assert replayed(rows[: whole - 1]) == [first]


def test_a_batch_that_the_corpus_cuts_short_is_no_look() -> None:
    """These replies decide from the twelfth on, but an audit looks after 10 and 14 only."""
    rows = make_rows(14, tokens=3)
    plan, twelve = make_plan(), Ledger(rows=tuple(rows[:12]))
    then = decide(plan, twelve, outcomes=replies(rows))

    assert then.decision == "consistent"
    assert replayed(rows[:12]) == replayed(rows[:13]) == []
    assert [audit.replies for audit in replayed(rows)] == [14]


def test_an_audit_whose_budget_ends_is_inconclusive_and_counts() -> None:
    """It asks what it can afford at full length, as a real one, then ends: 10 of 30 in 300."""
    audits = replayed(
        make_rows(25), beta=1e-9, alpha=1e-9, policy=Policy(noise=("int8-class rounding",)),
        budget_completion_tokens=329, calibration=_near(),
    )  # fmt: skip

    assert [audit.decision for audit in audits] == ["inconclusive"] * 2
    assert [audit.replies for audit in audits] == [10, 10]
    assert [audit.completion_tokens for audit in audits] == [300, 300]


def _near() -> Any:
    """A calibration whose int8 class lies just above the honest scale: hard to exclude."""
    calibration = make_plan().calibration
    return calibration.model_copy(
        update={"classes": (calibration.classes[0].model_copy(update={"scale": 0.101}),)}
    )


def test_a_reply_without_a_count_costs_its_full_length() -> None:
    """As in a real audit, where the budget must hold whatever the host says."""
    rows = make_rows(30, tokens=12)
    outcomes = replies(rows) | {
        f"p{n}": replace(_reply(f"p{n}"), completion_tokens=None) for n in range(0, 30, 2)
    }
    audit, *_ = replay(make_plan(), Ledger(rows=tuple(rows)), outcomes, most=1)

    assert audit.replies % 2 == 0
    assert audit.completion_tokens == audit.replies * (30 + 12) // 2


def _reply(name: str) -> Reply:
    return make_reply(name, 12)


# -- summing up --------------------------------------------------------------------------------


def make_audit(**changes: Any) -> Audit:
    values: dict[str, Any] = {
        "first": 0, "replies": 10, "completion_tokens": 300, "decision": "consistent",
        "log_e": -3.0, "lower": 0.0, "upper": 0.1,
    }  # fmt: skip
    return Audit(**values | changes)


def summed(audits: list[Audit], *, rows: list[Row] | None = None, **figure: Any) -> dict[str, Any]:
    ledger = Ledger(rows=tuple(rows or make_rows(40)))
    return sum_up(make_figure(**figure), make_plan(), audits, ledger, {"drop-1": 1})


def test_decisions_are_counted_each_by_itself() -> None:
    """Three decisions, and their sum is the number of audits."""
    decisions = ["consistent"] * 3 + ["inconsistent"] * 2 + ["inconclusive"]
    found = summed([make_audit(decision=decision) for decision in decisions])

    assert found["audits"] == 6
    assert found["decisions"] == {"consistent": 3, "inconsistent": 2, "inconclusive": 1}
    assert found["named"] == {"drop-1": 1}


def test_tokens_are_summed_up_by_median_tenth_and_most() -> None:
    """By hand, of 100, 200, 300, 400 and 1000: 90 % lies at 400 + 0.6 * 600."""
    audits = [make_audit(completion_tokens=n) for n in (400, 100, 1000, 300, 200)]

    assert summed(audits)["completion_tokens"] == {"median": 300.0, "p90": 760.0, "max": 1000}


def test_a_figure_without_audits_has_no_tokens() -> None:
    """None, not zero."""
    found = summed([])

    assert found["completion_tokens"] == {"median": None, "p90": None, "max": None}
    assert found["decisions"] == {"consistent": 0, "inconsistent": 0, "inconclusive": 0}
    assert found["noise_scale_covered"] == 0


def test_intervals_are_checked_against_the_scale_of_the_whole_corpus() -> None:
    """Both ends belong to the interval; an end that is not bounded excludes nothing."""
    rows = make_rows(200)
    truth = summed([], rows=rows)["noise_scale"]
    inside = [(0.0, truth), (truth, 1.0), (None, None), (truth / 2, None), (None, truth * 2)]
    outside = [(truth * 1.1, None), (None, truth * 0.9), (0.0, truth / 2), (truth * 2, 1.0)]

    def covered(intervals: list[tuple[float | None, float | None]]) -> int:
        audits = [make_audit(lower=lower, upper=upper) for lower, upper in intervals]
        return int(summed(audits, rows=rows)["noise_scale_covered"])

    assert truth == pytest.approx(TRUTH, rel=0.15)
    assert covered(inside) == len(inside)
    assert covered(outside) == 0


def test_replayed_intervals_cover_the_truth() -> None:
    """At 99.9 %, all of a handful of audits of a host that the model describes exactly."""
    rows = make_rows(200)
    audits = replayed(rows)
    found = summed(audits, rows=rows)

    assert found["noise_scale_covered"] == found["audits"] == len(audits) > 10


def test_a_figure_says_what_was_served_and_read() -> None:
    """Host, channel, policy and whether the bank knows the fault."""
    stack = Stack(dtype="bfloat16", batch=32, weights="int4-sym-g64")
    in_bank = summed([], part="faults", stack=stack)
    out_of_bank = summed(
        [], part="faults", stack=replace(stack, weights="int4-asym-g48"), with_logprobs=True
    )
    honest = summed([])

    assert in_bank["figure"] == "int4-sym-g64-bfloat16-batch32/screen/text"
    assert (in_bank["fault"], in_bank["in_bank"]) == ("int4-sym-g64", True)
    assert (out_of_bank["fault"], out_of_bank["in_bank"]) == ("int4-asym-g48", False)
    assert out_of_bank["channels"] == ["text", "logprob"]
    assert (honest["fault"], honest["in_bank"], honest["channels"]) == (None, False, ["text"])


def test_a_figure_can_be_summed_up_anew_from_its_audits() -> None:
    """Each audit is kept whole."""
    audits = replayed(make_rows(64))
    found = summed(audits)

    assert [Audit(**kept) for kept in found["each"]] == audits
    assert summed([Audit(**kept) for kept in found["each"]]) == found


# -- what is committed -------------------------------------------------------------------------


def test_the_page_shows_the_committed_results() -> None:
    """Figures are never written by hand."""
    results = read_json(RESULTS)

    assert results["figures"]
    assert tabulate(results) in RESULTS.with_name("README.md").read_text(encoding="utf-8")


def test_the_committed_results_can_be_summed_up_anew() -> None:
    """Counts and medians are those of the audits listed, and no reply serves two of a figure."""
    for figure in read_json(RESULTS)["figures"]:
        audits = figure["each"]
        decisions = Counter(audit["decision"] for audit in audits)
        tokens = [audit["completion_tokens"] for audit in audits]
        ends = [audit["first"] + audit["replies"] for audit in audits]

        assert figure["audits"] == len(audits)
        assert {k: v for k, v in figure["decisions"].items() if v} == dict(decisions)
        assert figure["completion_tokens"]["median"] == np.median(tokens)
        assert [audit["first"] for audit in audits] == [0, *ends[:-1]]
        assert ends[-1] <= figure["corpus_replies"]
