"""The sampler of an endpoint: e-values that keep their level, right names, whole audits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from audits import CARD, FAULT, QUIET, configure, host_with, load_reference, write_card
from fakes_engine import FakeEngine, FakeTokenizer, wordy_script
from samples import COLUMNS, HONEST, TOKENS, sample_rows, sampled_row, sampler_plan
from simulate import decide, replies, simulate_row

from verifier.audit import audit
from verifier.checks.sampling.evidence import (
    SamplerEvidence,
    describe_sampler,
    is_marked,
    weigh_samplers,
)
from verifier.config import RunFile
from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger, SampledRow, ledger_from_json, ledger_to_json
from verifier.evidence.samplers import (
    Sampler,
    changed,
    read_sampler,
)
from verifier.files.run_folder import (
    LEDGER,
    REPORT,
    SAMPLED,
    SAMPLED_SCORES,
    read_json,
    read_lines,
)
from verifier.host.collect import read_attempts, read_outcomes
from verifier.plan_file import read_probes
from verifier.records import Finding, Report
from verifier.reference.loaded import Reference
from verifier.steps import start
from verifier.verdict.decide import decide_folder


def weighed(rows: list[SampledRow], *, noise: float | None = 0.1) -> SamplerEvidence:
    return weigh_samplers(rows, COLUMNS, HONEST, noise=noise, level=0.999)


def judged(scale: float, sampler: Sampler, *, sampled: int = 60, noise: float = 0.0) -> Report:
    """The verdict on a host whose greedy replies have a noise scale."""
    rng = np.random.default_rng(5)
    rows = [simulate_row(rng, f"r{n}", scale=scale) for n in range(20)]
    ledger = Ledger(
        rows=tuple(rows), sampled=tuple(sample_rows(rng, sampler, sampled, noise=noise))
    )
    return decide(sampler_plan(), ledger, outcomes=replies(rows))


def of_sampler(report: Report) -> Finding:
    (found,) = [finding for finding in report.findings if finding.aspect == "sampler"]
    return found


def chanting(prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Two words over and over: what a penalty cannot bear."""
    return wordy_script(prompt_ids)[:2] * 5


def run(config: RunFile, reference: Any = load_reference) -> Report:
    return audit(config, api_key=None, load_reference=reference, show=QUIET)


def asking(url: str, card: Path, out: Path, **changes: Any) -> RunFile:
    settings = {"sampler": True, "budget_completion_tokens": 2000, "max_tokens": 24} | changes
    return configure(url, card, out, **settings)


class Narrow(FakeEngine):
    """Sees the largest log-probabilities only."""

    @property
    def scores_samplers(self) -> bool:
        return False

    def score_samplers(self, *_asked: Any) -> Any:
        raise AssertionError("asked for what it cannot do")


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.98, 1.0, 1.02])
def test_honest_samples_cross_at_most_as_often_as_they_may(temperature: float) -> None:
    """Looked at after every reply: at most alpha of honest hosts are ever accused (here 0.1)."""
    crossed, hosts, alpha = 0, 80, 0.1
    for seed in range(hosts):
        rows = sample_rows(np.random.default_rng([11, seed]), Sampler(temperature=temperature), 12)
        looks = [weighed(rows[:n]).log_e for n in range(1, len(rows) + 1)]
        crossed += max(looks) >= math.log(1 / alpha)

    assert crossed <= 13  # 8 expected at most: more than 13 has probability 0.03


def test_the_interval_covers_the_temperature() -> None:
    """A sequence at level 0.9 misses at most a tenth of hosts, whenever it is read."""
    missed = 0
    for seed in range(100):
        rows = sample_rows(np.random.default_rng([12, seed]), Sampler(temperature=0.9), 8)
        looks = [
            weigh_samplers(rows[:n], COLUMNS, HONEST, noise=0.1, level=0.9).temperature
            for n in range(1, 9)
        ]
        missed += any(
            i is not None and (i.lower > 0.9 or (i.upper is not None and i.upper < 0.9))
            for i in looks
        )

    assert missed <= 16


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("temperature=0.7", "temperature about 0.7"),
        ("temperature=1.4", "temperature about 1."),
        ("top-k=10", "top-k about 10"),
        ("top-p=0.8", "top-p about 0."),
        ("min-p=0.1", "min-p about 0."),
        ("repetition-penalty=1.3", "repetition penalty about 1."),
        ("frequency-penalty=1", "frequency penalty about "),
        ("rare=0.02", "rare token put in about 0.0"),
    ],
)  # fmt: skip
def test_a_sampler_is_found_and_named(setting: str, said: str) -> None:
    """With enough replies, in most of ten hosts; a name may stand in a group, never be another."""
    sampler = Sampler(**read_sampler(setting))  # type: ignore[arg-type]
    (name,) = changed(sampler)
    right = 0
    for seed in range(10):
        found = weighed(sample_rows(np.random.default_rng([13, seed]), sampler, 100))
        named = found.log_e_named >= math.log(1000)
        right += named and describe_sampler(found, COLUMNS).startswith(said)
        if named:
            assert any(name in changed(COLUMNS[other]) for other in found.names)

    assert right >= 7


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_by_hand() -> None:
    """Kinds weigh evenly, and so do the members of a kind; the best honest one stands against."""
    samplers = {
        "temperature 1": Sampler(), "temperature 0.98": Sampler(temperature=0.98),
        "temperature 0.5": Sampler(temperature=0.5), "temperature 2": Sampler(temperature=2.0),
        "top-k 40": Sampler(top_k=40),
    }  # fmt: skip
    totals = dict(zip(samplers, (-10.0, -9.0, -5.0, -30.0, -4.0), strict=True))
    found = weigh_samplers(
        [sampled_row("a", {n: v / 2 for n, v in totals.items()})] * 2, samplers,
        ("temperature 1", "temperature 0.98"), noise=0.0, level=0.999,
    )  # fmt: skip
    others = 0.25 * math.exp(-5) + 0.25 * math.exp(-30) + 0.5 * math.exp(-4)
    honest = 0.5 * math.exp(-10) + 0.5 * math.exp(-9)

    assert found.log_e == pytest.approx(math.log(others) + 9)
    assert (found.log_e_honest, found.hardest) == (pytest.approx(math.log(honest) + 4), "top-k 40")
    assert (found.rows, found.tokens) == (2, 2 * TOKENS)


def test_noise_that_is_still_possible_may_look_like_a_higher_temperature() -> None:
    """So such temperatures stand among the honest when a sampler is named; unbounded noise: all."""
    rows = sample_rows(np.random.default_rng(1), Sampler(temperature=1.3), 60)
    quiet, noisy, unbounded = (weighed(rows, noise=noise) for noise in (0.1, 0.9, None))

    assert quiet.log_e == noisy.log_e == unbounded.log_e > 20
    assert quiet.log_e_named > 20
    assert noisy.log_e_named < 0
    assert unbounded.log_e_named < 0


def test_marks_lie_outwards() -> None:
    """From the mark on, in any of the settings."""
    assert is_marked(Sampler(temperature=0.9))
    assert is_marked(Sampler(top_k=40))
    assert is_marked(Sampler(top_p=0.99, temperature=0.6))
    assert not is_marked(Sampler(temperature=0.92))
    assert not is_marked(Sampler(top_k=100))
    assert not is_marked(Sampler(rare=0.01))


def test_no_rows_are_no_evidence() -> None:
    """For or against; why rows were set aside is counted."""
    found = weighed([sampled_row("a", {}, "no tokens named")] * 2)

    assert (found.rows, found.log_e, found.log_e_honest) == (0, 0.0, 0.0)
    assert found.set_aside == {"no tokens named": 2}


# -- the verdict ---------------------------------------------------------------------------------


def test_a_host_that_samples_as_asked_is_consistent() -> None:
    """Every marked sampler is excluded, and so is every class of noise."""
    report = judged(0.05, Sampler(), sampled=150)

    assert (report.decision, of_sampler(report).decision) == ("consistent", "excluded")


def test_without_samples_a_plan_that_asks_for_them_is_not_consistent() -> None:
    """A check that has not run is never passed."""
    report = judged(0.05, Sampler(), sampled=0)

    assert (report.decision, of_sampler(report).decision) == ("inconclusive", "undecided")


def test_another_temperature_is_the_sampler_and_not_the_weights() -> None:
    """It is named, nothing is said of rounding, and the summary says so."""
    report = judged(0.05, Sampler(temperature=0.7))
    finding = of_sampler(report)

    assert (report.decision, finding.decision) == ("inconsistent", "detected")
    assert finding.name.startswith("temperature about 0.")
    assert finding.name.endswith(")")
    assert not [f for f in report.findings if f.aspect == "cause"]
    assert report.summary.startswith("the replies are not sampled as asked (temperature about 0.")


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=0.8)])
def test_where_the_weights_differ_no_sampler_is_accused(sampler: Sampler) -> None:
    """Noise flattens what is sampled; the greedy replies come first."""
    report = judged(0.7, sampler, noise=0.7)
    finding = of_sampler(report)

    assert (report.decision, finding.decision) == ("inconsistent", "not run")
    assert [f for f in report.findings if f.aspect == "cause"]


def test_a_sampler_is_not_named_before_the_greedy_replies_are_quiet() -> None:
    """Two greedy replies exclude nothing yet, whatever the samples say."""
    rng = np.random.default_rng(5)
    rows = [simulate_row(rng, "r0", scale=0.25, tokens=4)]
    ledger = Ledger(rows=tuple(rows), sampled=tuple(sample_rows(rng, Sampler(temperature=0.7), 40)))
    report = decide(sampler_plan(), ledger, outcomes=replies(rows))

    assert of_sampler(report).decision == "undecided"
    assert of_sampler(report).log_e > 20  # type: ignore[operator]


def test_sampled_rows_survive_the_ledger_file() -> None:
    """And a ledger without any is as it always was."""
    ledger = Ledger(
        rows=(), sampled=(sampled_row("a", {"top-k 40": -1.5}), sampled_row("b", {}, "no"))
    )

    assert ledger_from_json(ledger_to_json(ledger), where="x") == ledger
    assert "sampled" not in ledger_to_json(Ledger(rows=()))


# -- one audit -----------------------------------------------------------------------------------


def test_an_honest_host_is_consistent_in_how_it_samples(card: Path, tmp_path: Path) -> None:
    """Asked outright for temperature 1 and top_p 1, after the greedy replies, in the budget."""
    out = tmp_path / "run"
    with host_with("none") as url:
        report = run(asking(url, card, out, beta=0.05))
    asked = [yaml.safe_load(line["request"]) for line in read_lines(out / "exchanges.jsonl")]
    sampled = [request for request in asked if request["temperature"]]

    assert (report.decision, of_sampler(report).decision) == ("consistent", "excluded")
    assert {(r["temperature"], r["top_p"]) for r in sampled} == {(1.0, 1)}
    assert asked[-1] in sampled
    assert asked[0] not in sampled
    assert report.usage.completion_tokens <= 2000
    assert not {p.id for p in read_probes(out)} & {p.id for p in read_probes(out, name=SAMPLED)}
    before = (out / REPORT).read_bytes()
    decide_folder(out)
    assert (out / REPORT).read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "said"), [("temperature=0.6", "temperature about 0."), ("top-k=10", "top-k about ")]
)
def test_a_forced_sampler_is_named(card: Path, tmp_path: Path, setting: str, said: str) -> None:
    """With its estimated setting, and no build is scored."""
    out = tmp_path / "run"
    with host_with(f"sampler:{setting}") as url:
        report = run(asking(url, card, out))

    assert (report.decision, of_sampler(report).decision) == ("inconsistent", "detected")
    assert of_sampler(report).name.startswith(said)
    assert {line["weights"] for line in read_lines(out / "scores.jsonl")} == {"reference"}


def test_a_host_with_other_weights_is_asked_for_no_samples(card: Path, tmp_path: Path) -> None:
    """They could not be judged."""
    out = tmp_path / "run"
    with host_with(FAULT) as url:
        report = run(asking(url, card, out))

    assert (report.decision, of_sampler(report).decision) == ("inconsistent", "not run")
    assert not (out / SAMPLED_SCORES).exists()


def test_an_engine_without_whole_distributions_says_not_run(card: Path, tmp_path: Path) -> None:
    """With the reason, for one reply, and the verdict on the weights stands."""
    out = tmp_path / "run"
    narrow = Reference(engine=Narrow(margin=3.5), tokenizer=FakeTokenizer())
    with host_with("none") as url:
        report = run(asking(url, card, out), lambda: narrow)

    assert (report.decision, of_sampler(report).decision) == ("consistent", "not run")
    assert "whole distributions" in of_sampler(report).detail
    assert len(list(read_lines(out / SAMPLED_SCORES))) == 1
    assert any("whole distributions" in note for note in report.notes)


def test_replies_whose_tokens_are_not_named_are_not_judged(card: Path, tmp_path: Path) -> None:
    """A sampled text does not tell which tokens it came by."""
    out = tmp_path / "run"
    with host_with("none") as url:
        report = run(asking(url, card, out, top_logprobs=0))

    assert (report.decision, of_sampler(report).decision) == ("consistent", "not run")
    assert "does not name the tokens" in of_sampler(report).detail


def test_published_defaults_are_no_fault_where_nothing_was_asked(
    card: Path, tmp_path: Path
) -> None:
    """A host that applies the card's top-k may do so; without the card's word it may not."""
    with host_with("sampler:top-k=40") as url:
        silent = run(asking(url, card, tmp_path / "silent"))
        card.write_text(yaml.safe_dump(CARD | {"sampling": {"temperature": 0.7, "top_k": 40}}))
        allowed = run(asking(url, card, tmp_path / "allowed"))

    assert silent.decision == "inconsistent"
    assert allowed.decision != "inconsistent"


def test_the_sampler_is_only_looked_at_where_the_run_file_says_so(
    card: Path, tmp_path: Path
) -> None:
    """Nothing of it is planned, asked or shown otherwise."""
    out = tmp_path / "run"
    start(configure("http://127.0.0.1:9/v1", card, out))

    assert not (out / SAMPLED).exists()
    assert read_json(out / "plan.json")["samplers"] == {}
    assert read_outcomes(out, max_attempts=1) == {}
    assert not (out / LEDGER).exists()


@pytest.mark.parametrize("setting", ["presence-penalty=1.5", "frequency-penalty=1.5"])
def test_a_penalty_on_greedy_replies_is_named_and_no_noise(
    card: Path, tmp_path: Path, setting: str
) -> None:
    """Also by an audit that asks for no samples: it is never taken for rounding."""
    out = tmp_path / "run"
    engine = FakeEngine(script=chanting, margin=4.5)
    reference = Reference(engine=FakeEngine(script=chanting, margin=4.5), tokenizer=FakeTokenizer())
    with host_with(f"sampler:{setting}", engine) as url:
        report = run(configure(url, card, out), lambda: reference)
    finding = of_sampler(report)

    assert (report.decision, finding.decision) == ("inconsistent", "detected")
    assert finding.name.startswith(setting.replace("-", " ").replace("=", " "))
    assert not [f for f in report.findings if f.aspect == "cause" or f.decision == "detected"][1:]
    assert report.summary.startswith("the replies are not sampled as asked")
    before = (out / REPORT).read_bytes()
    decide_folder(out)
    assert (out / REPORT).read_bytes() == before


# -- the publisher's defaults, where no request says otherwise -----------------------------------


def chanted(card: Path, out: Path, fault: str, engine: Any = None, **endpoint: Any) -> Report:
    """An audit of a host of a model that says two words over and over."""
    reference = Reference(
        engine=engine or FakeEngine(script=chanting, margin=4.5), tokenizer=FakeTokenizer()
    )
    host = FakeEngine(script=chanting, margin=4.5, noise={FAULT: 1.5})
    with host_with(fault, host) as url:
        return run(configure(url, card, out, endpoint=endpoint), lambda: reference)


@pytest.mark.parametrize("served", [True, False])
def test_a_host_with_the_publishers_default_penalty_is_consistent(
    tmp_path: Path, served: bool
) -> None:
    """Whether it applies it to greedy requests or not; the report says which."""
    card, out = write_card(tmp_path, sampling={"presence_penalty": 1.5}), tmp_path / "run"
    report = chanted(card, out, "sampler:presence-penalty=1.5" if served else "none")

    assert report.decision == "consistent"
    assert not [f for f in report.findings if f.decision == "detected"]
    told = [note for note in report.notes if "the publisher's default presence penalty 1.5" in note]
    assert len(told) == served
    before = (out / REPORT).read_bytes()
    decide_folder(out)
    assert (out / REPORT).read_bytes() == before


def test_a_penalty_that_the_card_does_not_have_is_found_and_named(tmp_path: Path) -> None:
    """Another one than the publisher's is no default."""
    card = write_card(tmp_path, sampling={"presence_penalty": 0.2})
    report = chanted(card, tmp_path / "run", "sampler:presence-penalty=1.5")
    finding = of_sampler(report)

    assert (report.decision, finding.decision) == ("inconsistent", "detected")
    assert finding.name.startswith("presence penalty 1.5")


def test_other_weights_behind_a_default_penalty_are_found(tmp_path: Path) -> None:
    """It explains no rounding."""
    card = write_card(tmp_path, sampling={"presence_penalty": 1.5})
    report = chanted(card, tmp_path / "run", f"{FAULT}+sampler:presence-penalty=1.5")

    assert report.decision == "inconsistent"
    assert not [f for f in report.findings if f.aspect == "sampler"]


def test_an_engine_that_cannot_score_a_default_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    """Unless the run file sends the neutral value: then no host has that choice."""
    card = write_card(tmp_path, sampling={"presence_penalty": 1.5})
    narrow = Narrow(script=chanting, margin=4.5)
    with pytest.raises(ConfigError, match=r"presence penalty 1.5.*endpoint.extra_body"):
        chanted(card, tmp_path / "a", "none", narrow)
    report = chanted(
        card, tmp_path / "b", "none", narrow, extra_body={"presence_penalty": 0.0}
    )  # fmt: skip

    assert report.decision == "consistent"
    assert not read_attempts(tmp_path / "a")
    assert all(
        json.loads(a.request)["presence_penalty"] == 0 for a in read_attempts(tmp_path / "b")
    )
