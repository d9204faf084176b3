"""The best name for replies that differ, and none where nothing fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audits import FAULT, QUIET, configure, host, load_reference, run
from fakes_engine import FakeTokenizer
from hosts import judge, rows_at, under_a_build
from other_model import OtherModel, audit_other
from simulate import VOCABULARY, decide, make_calibration, make_plan, replies, simulate_row
from simulate import _score as score_of
from suspects import suspected_row, suspected_rows

from verifier.checks.cause import NOTHING_FITS
from verifier.checks.template.panel import PANEL_PROBES
from verifier.errors import ConfigError
from verifier.evidence.ledger import TEXT_SCALES, Ledger, Row, text_cells
from verifier.evidence.posterior import rank
from verifier.files.run_folder import REPORT, read_lines
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.progress import Show
from verifier.records import REFERENCE, Finding
from verifier.reference.reader import Suspected
from verifier.steps import score
from verifier.verdict.decide import decide_folder


def strange_rows(count: int, *, seed: int) -> list[Row]:
    """Replies of no column of the bank: as far from the build as from the weights."""
    rng = np.random.default_rng(seed)
    return [under_a_build(simulate_row(rng, f"p{n}", scale=1.5), rng, 1.5) for n in range(count)]


def cause(rows: Sequence[Row]) -> Finding:
    plan = make_plan(suspects={"sibling": "another size"})
    report = decide(plan, Ledger(rows=tuple(rows)), outcomes=replies(list(rows)))
    assert report.decision == "inconsistent"
    return report.findings[-1]


# -- level ---------------------------------------------------------------------------------------


def test_a_model_that_is_not_served_is_not_named() -> None:
    """Level: the host serves a third model, no nearer to the suspect than to the published one."""
    wrong = 0
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        rows = []
        for n in range(4):
            one = suspected_row(rng, f"p{n}", noise=1.0, near=0.0)
            shared = rng.normal(0, 1.5, (30, VOCABULARY))
            logits = [shared + rng.normal(0, 1.0, shared.shape) for _ in range(3)]
            chosen = logits[0].argmax(axis=1)
            text = {
                column: text_cells(score_of(own, chosen), range(30))
                for column, own in zip((REFERENCE, "sibling"), logits[1:], strict=True)
            }
            rows.append(Row(**{f: getattr(one, f) for f in Row.__slots__} | {"text": text}))
        wrong += cause(rows).decision == "detected"

    assert wrong <= 1


def test_a_model_near_the_one_served_is_not_said_to_be_it() -> None:
    """It explains the replies best, but not as honest serving of it would."""
    found = [cause(suspected_rows(seed, noise=2.5, near=0.6, count=6)) for seed in range(20)]

    assert not any(f.decision == "detected" for f in found)
    near = [f for f in found if f.name == "a model near sibling"]
    assert len(near) >= 15
    assert near[0].detail.startswith("the replies are nearest to sibling: another size; explains")
    assert "even so, noise of a scale of" in near[0].detail


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
    assert cause.name == "noise above fp8 rounding; nearest int4-sym-g64"


def test_replies_that_nothing_explains_are_said_to_be_so() -> None:
    """With the divergence in nats per token from the weights and from the nearest build."""
    (cause,) = [f for f in judge(strange_rows(12, seed=1)).findings if f.aspect == "cause"]

    assert (cause.name, cause.decision) == (NOTHING_FITS, "undecided")
    assert "nats per token from the published weights" in cause.detail
    assert "from the nearest build, int4-sym-g64" in cause.detail
    assert "sampling in spite of temperature 0" in cause.detail


def test_a_build_near_the_one_served_is_not_said_to_be_it() -> None:
    """The bank's builds are held to their fit as suspects are."""
    found = []
    for seed in range(20):
        rows = suspected_rows(seed, noise=2.5, near=0.6, count=6)
        rows = [
            replace(row, text={"int4-sym-g64" if k == "sibling" else k: v
                               for k, v in row.text.items()})
            for row in rows
        ]  # fmt: skip
        found.append(cause(rows))

    assert not any(f.decision == "detected" for f in found)
    near = [f for f in found if f.name == "a build near int4-sym-g64"]
    assert len(near) >= 15
    assert "; explains 6 replies better than " in near[0].detail
    assert "even so, noise of a scale of" in near[0].detail


# -- power ---------------------------------------------------------------------------------------


def test_the_model_that_is_served_is_named() -> None:
    """Power: in three or four replies of thirty tokens, nearly always, and in neutral words."""
    found = [cause(suspected_rows(seed, noise=2.0, near=0.05)) for seed in range(30)]

    named = [f for f in found if (f.decision, f.name) == ("detected", "sibling")]
    assert len(named) >= 28
    assert named[0].detail.startswith("the replies are those of sibling: another size; fits")


def test_a_build_that_explains_the_replies_is_no_stranger() -> None:
    """However far it is from the weights: it fits as calibrated stacks do."""
    rng = np.random.default_rng(1)
    rows = [
        simulate_row(rng, f"p{n}", scale=1.5, builds=("int4-sym-g64",)) for n in range(12)
    ]  # fmt: skip
    (cause,) = [f for f in judge(rows).findings if f.aspect == "cause"]

    assert (cause.name, cause.decision) == ("int4-sym-g64", "detected")
    assert "even so" not in cause.detail


# -- known answer --------------------------------------------------------------------------------


def test_the_odds_of_a_name_are_known_by_hand() -> None:
    """Ten nats likelier under one of two columns: half of the prior is noise, a quarter each."""
    flat = (0.0,) * len(TEXT_SCALES)
    text = {REFERENCE: flat, "a": tuple(10.0 for _ in flat), "b": flat}
    row = replace(rows_at(0.05, 1, seed=1)[0], text=text)
    found = rank(Ledger(rows=(row,)), ["a", "b"], make_calibration().text)
    assert found is not None

    assert (found.column, found.second) == ("a", "")
    assert found.log_odds == pytest.approx(10 - math.log(2))


# -- one audit -----------------------------------------------------------------------------------


def test_a_faulty_host_ends_inconsistent_with_the_build_named(card: Path, tmp_path: Path) -> None:
    """The bank is scored once the verdict is there, and the served build fits best."""
    with host(FAULT) as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert report.decision == "inconsistent"
    assert report.findings[-1].aspect == "cause"
    assert report.findings[-1].name == FAULT


@pytest.mark.parametrize("suspected", [True, False])
def test_another_model_is_named_where_it_is_a_suspect(
    card: Path, tmp_path: Path, *, suspected: bool
) -> None:
    """In at most three ordinary replies; without it among the suspects nothing is."""
    out = tmp_path / "run"
    app = create_app(
        Host(
            engine=OtherModel(serves="other"),
            tokenizer=FakeTokenizer(),
            model="tiny",
            window_s=0.001,
        )
    )
    with running(app) as url:
        report = audit_other(url, card, out, suspected=suspected)
    before = (out / REPORT).read_bytes()
    again = decide_folder(out)

    assert report.decision == "inconsistent"
    cause = report.findings[-1]
    if suspected:
        assert report.usage.replies <= 3 + PANEL_PROBES  # no further search for a template
        assert (cause.decision, cause.name) == ("detected", "other")
        assert cause.detail.startswith("the replies are those of other: another size; fits")
        assert "other" in report.summary
    else:
        assert (cause.decision, cause.aspect) == ("undecided", "cause")
    assert again == report
    assert (out / REPORT).read_bytes() == before


def test_a_verdict_does_not_wait_for_a_suspect_that_cannot_be_had(
    card: Path, tmp_path: Path
) -> None:
    """A card's sibling is fetched when it is needed first; without it no name is given for sure."""

    def read() -> Suspected:
        raise ConfigError("someone/other@main: the hub cannot be reached")

    told: list[str] = []
    app = create_app(
        Host(
            engine=OtherModel(serves="other"),
            tokenizer=FakeTokenizer(),
            model="tiny",
            window_s=0.001,
        )
    )
    with running(app) as url:
        report = audit_other(
            url, card, tmp_path / "run", suspected=True, read=read,
            show=Show(tell=told.append, step=lambda *_: None),
        )  # fmt: skip
    cause = report.findings[-1]

    assert report.decision == "inconsistent"
    assert (cause.decision, cause.aspect) == ("undecided", "cause")
    assert cause.detail.endswith("; not compared with other")
    assert any("without the suspect other: someone/other@main" in line for line in told)


def test_a_sampler_near_the_one_served_is_not_said_to_be_it() -> None:
    """Samplers are held to their fit as builds are: an unknown prompt looked like rare tokens."""
    found = []
    for seed in range(20):
        rows = [
            replace(row, text={"sampler:rare token put in 0.005" if k == "sibling" else k: v
                               for k, v in row.text.items()})
            for row in suspected_rows(seed, noise=2.5, near=0.6, count=6)
        ]  # fmt: skip
        report = judge(rows)
        found += [f for f in report.findings if f.aspect == "sampler"]

    assert not any(f.decision == "detected" for f in found)
    near = [f for f in found if f.name == "a sampler near rare token put in 0.005"]
    assert len(near) >= 15
    assert "even so, noise of a scale of" in near[0].detail


def test_weights_are_not_taken_for_a_penalty(card: Path, tmp_path: Path) -> None:
    """Where all penalties are scored, none fits as the build does that is served."""
    out = tmp_path / "run"
    with host(FAULT) as url:
        run(configure(url, card, out))
    score(out, load_reference(), show=QUIET, builds=True, penalties=True)
    report = decide_folder(out)

    assert [f.name for f in report.findings if f.aspect == "cause"] == [FAULT]
    assert not [f for f in report.findings if f.aspect == "sampler"]
    names = {line["weights"] for line in read_lines(out / "scores.jsonl")}
    assert {"sampler:presence penalty 0.5", FAULT} <= names
