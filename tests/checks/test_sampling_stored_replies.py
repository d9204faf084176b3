"""Replies from a store: found by texts that come again, and honest ones seldom accused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audits import configure, host_with, make_engine, run
from fakes_engine import FakeTokenizer
from simulate import decide, make_plan, replies, simulate_row

from verifier.checks.sampling.ask_and_score import score_repeats
from verifier.checks.sampling.findings import wants_more
from verifier.checks.sampling.stored_replies import (
    LEAST_TOKEN,
    SLACK,
    asked_before,
    is_repeat,
    weigh_repeats,
)
from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger, Repeat, ledger_from_json, ledger_to_json
from verifier.files.run_folder import REPEATS, REPORT, SAMPLED, append_line
from verifier.plan_file import read_probes
from verifier.records import Finding, Message, Outcome, Probe, Reply, Report
from verifier.scoring.sampled_file import read_repeats
from verifier.verdict.decide import decide_folder


def repeat(came_again: bool, log_p: float) -> Repeat:
    return Repeat(probe_id="a~same", otherwise=False, came_again=came_again, log_p=log_p)


def otherwise(came_again: bool) -> Repeat:
    return replace(repeat(came_again, -40.0), probe_id="a~otherwise", otherwise=True)


def make_reply(probe_id: str, text: str) -> Reply:
    return Reply(
        probe_id=probe_id, text=text, finish_reason="length", prompt_tokens=None,
        completion_tokens=None, logprobs=None, logprobs_problem=None,
    )  # fmt: skip


def audited(card: Path, out: Path, fault: str, **changes: object) -> Report:
    """An audit of a host with a fault, that asks for samples too."""
    with host_with(fault) as url:
        settings = {"sampler": True, "budget_completion_tokens": 2400} | changes
        config = configure(url, card, out, **settings)
        return run(config)


def finding(report: Report, aspect: str) -> Finding:
    (found,) = [f for f in report.findings if f.aspect == aspect]
    return found


# -- level ---------------------------------------------------------------------------------------


def test_samples_that_are_drawn_anew_are_accused_at_most_at_the_rate_promised() -> None:
    """However likely texts are to come again, and at whichever look is worst."""
    rng = np.random.default_rng(1)
    accused, audits = 0, 4000
    for _ in range(audits):
        found: list[Repeat] = []
        worst = 0.0
        for _ in range(12):
            chance = float(rng.choice([0.9, 0.3, 0.03, 1e-4]))
            # as likely as SLACK allows
            found.append(repeat(bool(rng.random() < chance), math.log(chance) - SLACK))
            worst = max(worst, weigh_repeats(found))
        accused += worst >= math.log(20)

    assert accused <= audits * 0.05 + 3 * math.sqrt(audits * 0.05)


# -- power ---------------------------------------------------------------------------------------


def test_one_long_text_that_comes_again_is_enough() -> None:
    """Also among texts that were likely anyway."""
    likely = [repeat(True, 0.0)] * 5

    assert weigh_repeats(likely) == pytest.approx(0)
    assert weigh_repeats([*likely, repeat(True, -40.0)]) > math.log(1e6)


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_is_the_mixture_of_three_bets() -> None:
    """By hand: a tenth, half and nine tenths of the wealth at stake, on a chance of one in four."""
    lost = repeat(False, math.log(0.25) - SLACK)
    won = repeat(True, math.log(0.25) - SLACK)
    stakes = [0.75 * s for s in (0.1, 0.5, 0.9)]

    assert weigh_repeats([]) == pytest.approx(0)
    assert math.exp(weigh_repeats([lost])) == pytest.approx(sum(1 - s for s in stakes) / 3)
    assert math.exp(weigh_repeats([won])) == pytest.approx(sum(1 - s + 4 * s for s in stakes) / 3)


def test_texts_alone_tell_too(tmp_path: Path) -> None:
    """No token counts for less than the least: a text may have come by other tokens."""
    probe = Probe(
        id="p1", kind="code", max_tokens=20, temperature=1.0,
        messages=(Message(role="user", content="Go on."),),
    )  # fmt: skip
    again, other = replace(probe, id="p1~same"), replace(probe, id="p1~otherwise")
    words = "the model says more or less"
    outcomes: dict[str, Outcome] = {
        "p1": make_reply(probe.id, words),
        again.id: make_reply(again.id, words),
        other.id: make_reply(other.id, "no"),
    }

    for _ in range(2):  # nothing is scored twice
        score_repeats(
            tmp_path, (probe, again, other), outcomes, engine=make_engine(),
            tokenizer=FakeTokenizer(),
        )  # fmt: skip

    first, second = read_repeats(tmp_path)
    tokens = len(FakeTokenizer().encode(words)) - 1  # cut in mid-word: the last is not judged
    assert (first.came_again, first.otherwise) == (True, False)
    assert (second.came_again, second.otherwise) == (False, True)
    assert 0 > first.log_p >= LEAST_TOKEN * tokens
    assert second.log_p == first.log_p
    assert weigh_repeats([first]) > 2


def test_repeats_survive_the_ledger_file(tmp_path: Path) -> None:
    """And a line that is no repeat is refused."""
    ledger = Ledger(rows=(), repeats=(repeat(True, -3.5),))

    assert ledger_from_json(ledger_to_json(ledger), where="x") == ledger
    assert "repeats" not in ledger_to_json(Ledger(rows=()))
    append_line(tmp_path / REPEATS, {"probe_id": "a", "log_p": 1.0})
    with pytest.raises(ConfigError, match="remove the file and run `verifier score` again"):
        read_repeats(tmp_path)


# -- one audit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cache:same", "cache:alike"])
def test_a_store_is_found_by_the_first_questions_asked_again(
    card: Path, tmp_path: Path, fault: str
) -> None:
    """In the same words; the weights are not accused, and no more is asked then."""
    # the first question that is asked in other words is a long one: the host goes by its end
    report = audited(card, tmp_path / "run", fault, seed=8)

    found = finding(report, "repeats")
    assert (report.decision, found.decision) == ("inconsistent", "detected")
    assert report.summary.startswith("samples are not drawn anew")
    assert report.usage.completion_tokens < 1200  # no more is asked once it is found
    if fault == "cache:same":
        assert found.name == "the same reply to the same words"
        assert "0 of them asked in other words: a seed that is the same each time" in found.detail
    else:
        assert found.name == "replies from a store"
        assert "1 of them asked in other words: no seed does that" in found.detail
    assert not any(f.aspect == "cause" for f in report.findings)
    before = (tmp_path / "run" / REPORT).read_bytes()
    decide_folder(tmp_path / "run")
    assert (tmp_path / "run" / REPORT).read_bytes() == before


def test_a_seed_that_is_the_same_each_time_is_no_store(card: Path, tmp_path: Path) -> None:
    """It is not drawn anew either; to other words other replies come, and one of them is asked."""
    out = tmp_path / "run"
    report = audited(card, out, "seed:1")

    found = finding(report, "repeats")
    assert (report.decision, found.decision) == ("inconsistent", "detected")
    assert report.summary.startswith(
        "samples are not drawn anew (the same reply to the same words):"
    )
    assert "a seed that is the same each time explains it" in found.detail
    assert any(one.otherwise and not one.came_again for one in read_repeats(out))


def test_before_it_is_asked_in_other_words_neither_is_said() -> None:
    """More samples are asked then."""
    rng = np.random.default_rng(1)
    quiet = [simulate_row(rng, f"p{n}", scale=0.05) for n in range(12)]
    plan = make_plan(
        samplers={"temperature 1": {}, "top-k 4": {"top_k": 4}}, honest_samplers=("temperature 1",)
    )
    same = repeat(True, -40.0)
    for name, repeats in (
        ("replies that come again", [same]),
        ("replies that come again", [same, replace(otherwise(True), log_p=-4.0)]),
        ("the same reply to the same words", [same, otherwise(False)]),
        ("replies from a store", [same, otherwise(True)]),
    ):
        ledger = Ledger(rows=tuple(quiet), repeats=tuple(repeats))
        report = decide(plan, ledger, outcomes=replies(quiet))
        assert (report.decision, finding(report, "repeats").name) == ("inconsistent", name)
        more = wants_more(report.findings, report.decision)
        assert more == (name == "replies that come again")


def test_honest_samples_do_not_come_again(card: Path, tmp_path: Path) -> None:
    """Questions asked again say nothing of the sampler, and the verdict does not wait for more."""
    out = tmp_path / "run"
    report = audited(card, out, "none")

    assert finding(report, "repeats").decision == "undecided"
    assert finding(report, "repeats").detail.startswith("0 of ")
    probes = read_probes(out, name=SAMPLED)
    again = [probe for probe in probes if is_repeat(probe.id)]
    assert {asked_before(p.id) for p in again} < {p.id for p in probes}
    assert report.decision != "inconsistent"


def test_greedy_replies_to_who_asks_for_samples_are_the_samplers_fault(
    card: Path, tmp_path: Path
) -> None:
    """They come again for another reason."""
    report = audited(card, tmp_path / "run", "sampler:temperature=0.1")

    assert report.decision == "inconsistent"
    assert finding(report, "sampler").decision == "detected"
    assert finding(report, "repeats").decision == "not run"
