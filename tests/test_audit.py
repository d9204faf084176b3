"""Whole audits over HTTP on a model small enough to follow: verdicts, files, kills, budgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes_engine import FakeEngine, FakeTokenizer, wordy_script
from fakes_host import Answer, FakeHost, chat, error
from simulate import make_calibration

from verifier.audit import audit
from verifier.checks.template.panel import PANEL_PROBES, read_prompts
from verifier.config import Prices, RunFile
from verifier.errors import ConfigError, EndpointError, ReferenceMismatch
from verifier.evidence.calibration import NoiseClass
from verifier.files.run_folder import (
    CAPABILITY_EXCHANGES,
    COUNTED,
    DEADLINE,
    EXCHANGES,
    LEDGER,
    PAGE,
    PANEL,
    PLAN,
    PROBES,
    PROMPTS,
    REPORT,
    RUN,
    SCORES,
    SENT,
    SHOWN_EXCHANGES,
    read_lines,
    write_json,
)
from verifier.host.collect import read_attempts, read_outcomes
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.plan import make_plan
from verifier.plan_file import read_plan, read_probes
from verifier.probes import load_pool
from verifier.progress import ALONE, Pace, Show
from verifier.records import GenerateRequest, Generation, ReplyScore, Report, ScoreRequest
from verifier.reference.cards import load_card
from verifier.reference.loaded import Reference, reference_loader
from verifier.reference.reader import Suspected
from verifier.reference.renderings.catalogue import catalogue, served
from verifier.report_file import report_from_json, report_to_json
from verifier.steps import ask, score, start, write_page
from verifier.verdict.decide import decide_folder

KEY = "sk-invented-5f2b9c1d"
FAULT = "int4-sym-g64"
QUIET = Show(tell=lambda _line: None, step=lambda _name, _done, _of: None)
CARD = {
    "name": "tiny",
    "model": "tiny",
    "publisher": "nobody",
    "licence": {"name": "none", "hosting": "allowed"},
    "precision": "float32",
    "layers": 2,
    "source": {"kind": "directory", "path": "weights"},
    "digests": {
        "rules": 2,
        "tensors_sha256": "0" * 64,
        "config_sha256": "0" * 64,
        "tokenizer_sha256": "0" * 64,
        "template_sha256": "0" * 64,
    },
    "bank": [FAULT, "fp8-channel"],
    "calibration_stacks": ["float32-batch1"],
    "held_out_stacks": [],
}


def make_engine(weights: str = "reference") -> FakeEngine:
    engine = FakeEngine(margin=3.5, noise={FAULT: 1.5, "fp8-channel": 1.5})
    engine.load_variant(weights)
    return engine


def load_reference() -> Reference:
    return Reference(engine=make_engine(), tokenizer=FakeTokenizer())


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A calibrated card of the tiny model."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CARD))
    calibration = make_calibration().model_dump(mode="json")
    write_json(tmp_path / "tiny.calibration.json", calibration)
    return path


@contextmanager
def host(
    weights: str = "reference",
    *,
    template: str = "reference",
    api_key: str | None = None,
    shows_prompts: bool = False,
) -> Iterator[str]:
    app = create_app(Host(
        engine=make_engine(weights), tokenizer=FakeTokenizer(), model="tiny", api_key=api_key,
        window_s=0.001, rendering=served(template, catalogue()), shows_prompts=shows_prompts,
    ))  # fmt: skip
    with running(app) as url:
        yield url


def configure(url: str, card: Path, out: Path, **changes: Any) -> RunFile:
    """A run file; `changes` go into its audit section, `endpoint` into that one."""
    endpoint = {"base_url": url, "model": "tiny", "max_attempts": 1} | changes.pop("endpoint", {})
    settings = {"max_tokens": 12, "seed": 5, "budget_completion_tokens": 1200} | changes
    policy = {"noise": ["4-bit-class rounding", "another model"]}
    return RunFile.model_validate(
        {
            "endpoint": endpoint,
            "reference": {"card": str(card)},
            "audit": {"policy": policy} | settings,
            "out": out,
        }
    )


def run(config: RunFile, *, key: str | None = None, show: Show = QUIET) -> Report:
    return audit(config, api_key=key, load_reference=load_reference, show=show)


def test_an_honest_host_ends_consistent_and_leaves_a_whole_run_folder(
    card: Path, tmp_path: Path
) -> None:
    """Every file of the folder is there, and the report is the one returned."""
    out = tmp_path / "run"
    with host() as url:
        report = run(configure(url, card, out))

    assert report.decision == "consistent"
    names = {RUN, PLAN, PROBES, SENT, EXCHANGES, SCORES, LEDGER, REPORT, PAGE}
    assert {path.name for path in out.iterdir()} == names
    assert report_to_json(report) == report_to_json(
        report_from_json(yaml.safe_load((out / REPORT).read_text()))
    )


def test_what_the_endpoint_can_do_is_found_out_first_and_reported(
    card: Path, tmp_path: Path
) -> None:
    """When the run file says so: on record, on the page, within the budget, and only once."""
    out = tmp_path / "run"
    with host() as url:
        config = configure(url, card, out, capabilities=True)
        report = run(config)
        run(config)

    assert report.decision == "consistent"
    assert dict(report.capabilities)["temperature 0 taken"] == "yes"
    assert "temperature 0 taken" in (out / PAGE).read_text(encoding="utf-8")
    assert [f.decision for f in report.findings if f.aspect == "samples"] == ["undecided"]
    asked = list(read_lines(out / CAPABILITY_EXCHANGES))
    assert len(asked) == 13
    assert report.usage.requests == len(_requests(out)) + len(asked)


def test_settings_of_the_template_go_with_every_probe(card: Path, tmp_path: Path) -> None:
    """To the endpoint and into our own rendering, so that a model can be asked not to think."""
    out = tmp_path / "run"
    with host() as url:
        run(configure(url, card, out, template_settings={"enable_thinking": False}))

    assert {p.settings for p in read_probes(out)} == {(("enable_thinking", False),)}
    asked = [r["chat_template_kwargs"] for r in _requests(out) if "chat_template_kwargs" in r]
    assert len(asked) == len(_requests(out))
    assert asked[0] == {"enable_thinking": False}


def test_settings_that_a_dialect_cannot_carry_are_refused(card: Path, tmp_path: Path) -> None:
    """The host would render another prompt than the reference."""
    settings = {"template_settings": {"enable_thinking": False}}
    config = configure(
        "http://127.0.0.1:9/v1", card, tmp_path, endpoint={"dialect": "messages"}, **settings
    )

    with pytest.raises(ConfigError, match="the dialect messages cannot carry them"):
        make_plan(config, load_card(str(card)), make_calibration(), load_pool())


def test_a_faulty_host_ends_inconsistent_with_the_build_named(card: Path, tmp_path: Path) -> None:
    """The bank is scored once the verdict is there, and the served build fits best."""
    with host(FAULT) as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert report.decision == "inconsistent"
    assert report.findings[-1].aspect == "cause"
    assert report.findings[-1].name == FAULT


def test_a_template_fault_is_named_with_advice_and_a_diff(card: Path, tmp_path: Path) -> None:
    """Not the weights: they are the published ones, and no build is accused."""
    out = tmp_path / "run"
    with host(template="generation-prompt-missing") as url:
        report = run(configure(url, card, out))

    (named,) = [f for f in report.findings if f.aspect in ("template", "cause")]
    assert report.decision == "inconsistent"
    assert (named.aspect, named.name) == ("template", "generation-prompt-missing")
    assert "pass add_generation_prompt" in named.detail
    assert "odds" in named.detail
    assert (report.noise_scale.estimate or 0) <= report.noise_scale.honest
    assert not any(f.aspect == "noise" and f.decision == "detected" for f in report.findings)
    page = (out / PAGE).read_text()
    assert "The prompt, as published and as served" in page
    assert "−" in page
    assert "&lt;turn&gt;assistant" in page
    asked = [p for p in read_probes(out, name=PANEL) if p.id in read_outcomes(out, max_attempts=1)]
    assert 0 < len(asked) <= 12
    assert decide_folder(out) == report
    for name in (SCORES, LEDGER):
        (out / name).unlink()
    score(out, load_reference(), show=QUIET)
    assert decide_folder(out) == report


def test_words_that_stand_for_unknown_ones_are_not_shown_as_served(
    card: Path, tmp_path: Path
) -> None:
    """The endpoint never wrote them."""
    with host(template="generation-prompt-missing") as url:
        run(configure(url, card, tmp_path / "run"))
    known = read_prompts(tmp_path / "run")
    assert known is not None
    write_json(tmp_path / "run" / PROMPTS, known | {"name": "system-injected"})

    assert read_prompts(tmp_path / "run") is None
    (tmp_path / "run" / PROMPTS).unlink()
    assert read_prompts(tmp_path / "run") is None


def test_a_template_fault_and_a_weights_fault_are_both_reported(card: Path, tmp_path: Path) -> None:
    """The noise is judged under the rendering that is served."""
    with host(FAULT, template="generation-prompt-missing") as url:
        report = run(configure(url, card, tmp_path / "run"))

    aspects = {f.aspect: f for f in report.findings if f.decision == "detected"}
    assert report.decision == "inconsistent"
    assert aspects["template"].name == "generation-prompt-missing"
    assert "noise" in aspects
    assert report.findings[-1].aspect == "cause"
    assert "generation-prompt-missing and noise" in report.summary


def test_bad_weights_after_the_right_template_are_no_template_fault(
    card: Path, tmp_path: Path
) -> None:
    """Template columns are scored, and none is accused."""
    out = tmp_path / "run"
    with host(FAULT) as url:
        report = run(configure(url, card, out))

    assert (out / PANEL).exists()
    assert not any(f.aspect == "template" for f in report.findings)
    assert "as published and as served" not in (out / PAGE).read_text()


def test_text_alone_gives_the_same_verdicts(card: Path, tmp_path: Path) -> None:
    """Without log-probabilities the texts are tokenized again."""
    with host() as honest, host(FAULT) as faulty:
        reports = [
            run(configure(url, card, tmp_path / name, top_logprobs=0))
            for name, url in (("honest", honest), ("faulty", faulty))
        ]

    assert [report.decision for report in reports] == ["consistent", "inconsistent"]
    assert all(row.get("logprobs") is None for row in _requests(tmp_path / "honest"))


def _requests(out: Path) -> list[dict[str, Any]]:
    return [yaml.safe_load(attempt.request) for attempt in read_attempts(out)]


class Killed(BaseException):
    """Stands for a signal: nothing in the program may catch it."""


@pytest.mark.parametrize("after", [1, 2, 3, 5, 9, 14])
def test_an_audit_killed_at_any_step_goes_on_and_repeats_nothing(
    card: Path, tmp_path: Path, after: int
) -> None:
    """What had arrived stays as it was, no probe is asked twice, and the verdict is the same."""
    out, steps = tmp_path / "run", 0

    def step(_name: str, _done: int, _of: int) -> None:
        nonlocal steps
        steps += 1
        if steps == after:
            raise Killed

    with host() as url:
        config = configure(url, card, out, endpoint={"concurrency": 1})
        with pytest.raises(Killed):
            run(config, show=Show(tell=lambda _line: None, step=step))
        before = (out / EXCHANGES).read_bytes() if (out / EXCHANGES).exists() else b""
        resumed = run(config)
        whole = run(configure(url, card, tmp_path / "whole", endpoint={"concurrency": 1}))

    asked = [attempt.probe_id for attempt in read_attempts(out)]
    assert (out / EXCHANGES).read_bytes().startswith(before)
    assert len(asked) == len(set(asked))
    assert resumed.findings == whole.findings
    assert resumed.noise_scale == whole.noise_scale


def test_a_finished_audit_is_not_asked_again(card: Path, tmp_path: Path) -> None:
    """The same command on a finished folder sends nothing and gives the same bytes."""
    out = tmp_path / "run"
    with host() as url:
        config = configure(url, card, out)
        run(config)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        run(config)

    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_every_step_can_be_redone_alone(card: Path, tmp_path: Path) -> None:
    """Collect, score, decide and report on the folder give what the audit gave."""
    out = tmp_path / "run"
    with host() as url:
        config = configure(url, card, out)
        start(config)
        assert ask(out, api_key=None, probes=14, show=QUIET) == 14
        score(out, load_reference(), show=QUIET)
        first = decide_folder(out)
        write_page(out)
    derived = (SCORES, LEDGER, REPORT, PAGE)
    before = {name: (out / name).read_bytes() for name in derived}
    for name in derived:
        (out / name).unlink()
    score(out, load_reference(), show=QUIET)
    second = decide_folder(out)
    write_page(out)

    assert first == second
    assert {name: (out / name).read_bytes() for name in derived} == before


def test_deciding_a_published_folder_gives_the_same_bytes(card: Path, tmp_path: Path) -> None:
    """Without the card, the calibration, the model or the endpoint."""
    out = tmp_path / "run"
    with host(FAULT) as url:
        run(configure(url, card, out))
    before = (out / REPORT).read_bytes()
    card.unlink()
    (tmp_path / "tiny.calibration.json").unlink()
    published = out.rename(tmp_path / "published")
    decide_folder(published)

    assert (published / REPORT).read_bytes() == before


def test_a_folder_of_another_run_is_refused(card: Path, tmp_path: Path) -> None:
    """Two runs are never mixed."""
    with host() as url:
        run(configure(url, card, tmp_path / "run"))
        with pytest.raises(ConfigError, match="holds another run"):
            run(configure(url, card, tmp_path / "run", seed=6))


def test_a_plan_that_was_killed_while_it_was_written_is_made_anew(
    card: Path, tmp_path: Path
) -> None:
    """What it left is no reason to refuse the same command."""
    out = tmp_path / "run"
    out.mkdir()
    for name in (RUN, PROBES, f"{PLAN}.partial"):
        (out / name).write_text("half")
    start(configure("http://127.0.0.1:1/v1", card, out))

    assert read_plan(out).card == "tiny"
    assert read_probes(out)


def test_a_ledger_without_its_engine_is_refused(card: Path, tmp_path: Path) -> None:
    """One line that says what to run."""
    out = tmp_path / "run"
    start(configure("http://127.0.0.1:1/v1", card, out))
    score(out, load_reference(), show=QUIET)
    ledger = yaml.safe_load((out / LEDGER).read_text())
    write_json(out / LEDGER, ledger | {"engine": "fake"})

    with pytest.raises(ConfigError, match=r"engine: input should be an object"):
        decide_folder(out)


def test_a_folder_of_something_else_is_refused(card: Path, tmp_path: Path) -> None:
    """No stranger's files are written over."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")

    with pytest.raises(ConfigError, match="no run folder"):
        run(configure("http://127.0.0.1:1/v1", card, tmp_path / "run"))


def test_the_budget_is_never_crossed(card: Path, tmp_path: Path) -> None:
    """Each request is counted at full length before it is sent."""
    near = NoiseClass(name="hardly above honest", scale=0.105, basis="test")
    calibration = make_calibration(classes=(near,)).model_dump(mode="json")
    write_json(tmp_path / "tiny.calibration.json", calibration)
    with host() as url:
        config = configure(
            url, card, tmp_path / "run", beta=1e-9, budget_completion_tokens=125,
            policy={"noise": [near.name]},
        )  # fmt: skip
        report = run(config)

    assert report.decision == "inconclusive"
    assert 125 - 12 < report.usage.completion_tokens <= 125
    assert any("budget of 125" in note for note in report.notes)
    assert all(f.tokens_needed for f in report.findings if f.decision == "undecided")


def test_a_host_that_fails_most_requests_ends_inconclusive(card: Path, tmp_path: Path) -> None:
    """It is asked no more once it fails twenty times in a row, and nothing is held against it."""

    def script(asked: Any) -> Any:
        return chat("") if asked.index == 0 else error(500, "boom")

    with FakeHost(script) as fake:
        config = configure(fake.url, card, tmp_path / "run", top_logprobs=0)
        report = run(config)

    assert report.decision == "inconclusive"
    assert report.usage.failures >= 20
    assert report.usage.requests < 40


@pytest.mark.parametrize(
    "body",
    [
        b"<html>busy</html>",
        {"choices": []},
        {"choices": [{"message": {}}]},
        chat(""),
        chat(None, refusal="I cannot help with that."),
    ],
    ids=["not JSON", "no choice", "no content", "empty", "refusal"],
)
def test_a_host_that_never_answers_properly_earns_no_verdict(
    card: Path, tmp_path: Path, body: Any
) -> None:
    """Nothing scored, nothing claimed, everything kept."""
    with FakeHost(lambda _asked: Answer(body=body)) as fake:
        config = configure(
            fake.url, card, tmp_path / "run", top_logprobs=0, budget_completion_tokens=240
        )
        report = run(config)

    assert report.decision == "inconclusive"
    assert report.usage.replies == 0
    asked = read_attempts(tmp_path / "run")
    beside = read_attempts(tmp_path / "run", name=SHOWN_EXCHANGES)  # its counts are no template's
    assert len(asked) + len(beside) == report.usage.requests > 0
    assert report.usage.completion_tokens <= 240


def test_a_budget_in_dollars_bounds_what_is_asked_beside_the_probes(
    card: Path, tmp_path: Path
) -> None:
    """Finding out what the endpoint can do is paid for in advance like any probe."""
    with host() as url:
        config = configure(url, card, tmp_path / "run", capabilities=True, budget_usd=0.0006)
        config = config.model_copy(update={"prices": Prices(prompt=1.0, completion=2.0)})
        report = run(config)

    asked = list(read_lines(tmp_path / "run" / CAPABILITY_EXCHANGES))
    assert 0 < len(asked) < 10
    assert report.usage.cost_usd is not None
    assert report.usage.cost_usd <= 0.0006
    assert any("the budget does not pay" in found for _, found in report.capabilities)


def test_an_unknown_model_is_the_operators_and_costs_no_verdict(card: Path, tmp_path: Path) -> None:
    """One line that names what the host does serve."""
    with host() as url, pytest.raises(EndpointError, match="it lists tiny"):
        run(configure(url, card, tmp_path / "run", endpoint={"model": "other"}))


def test_the_key_is_in_no_file_of_the_run_folder(card: Path, tmp_path: Path) -> None:
    """Neither after success nor after a refusal."""
    out = tmp_path / "run"
    with host(api_key=KEY) as url:
        config = configure(url, card, out, endpoint={"api_key_env": "SOME_KEY"})
        with pytest.raises(EndpointError, match="SOME_KEY") as refused:
            run(config, key="sk-wrong-000000000")
        report = run(config, key=KEY)

    assert report.decision == "consistent"
    assert KEY not in str(refused.value)
    for path in out.iterdir():
        written = path.read_bytes()
        assert KEY.encode() not in written
        assert b"sk-wrong-000000000" not in written
        assert b"SOME_KEY" in written or path.name not in (RUN, PLAN)


class Remote(FakeEngine):
    """An engine that knows the published weights only, as a server behind a URL does."""

    def can_load(self, name: str) -> bool:
        return name == "reference"


def remote_reference() -> Reference:
    return Reference(engine=Remote(margin=3.5), tokenizer=FakeTokenizer())


def test_builds_that_the_engine_cannot_load_are_refused_before_anything_is_asked(
    card: Path, tmp_path: Path
) -> None:
    """Nothing is spent on an audit that cannot be scored."""
    out = tmp_path / "run"
    policy = {"noise": ["another model"], "builds": [FAULT]}
    with host() as url, pytest.raises(ConfigError, match=f"builds: {FAULT} cannot be loaded by"):
        audit(
            configure(url, card, out, policy=policy), api_key=None, load_reference=remote_reference,
            show=QUIET,
        )  # fmt: skip

    assert not (out / EXCHANGES).exists()


def test_without_weights_variants_a_fault_is_found_and_left_unnamed(
    card: Path, tmp_path: Path
) -> None:
    """The noise scale needs the published weights alone."""
    with host(FAULT) as url:
        config = configure(url, card, tmp_path / "run")
        report = audit(config, api_key=None, load_reference=remote_reference, show=QUIET)

    assert report.decision == "inconsistent"
    assert report.findings[-1].detail == "no build was scored"


def test_a_card_without_a_calibration_is_refused(card: Path, tmp_path: Path) -> None:
    """The message says how to make one."""
    (tmp_path / "tiny.calibration.json").unlink()

    with pytest.raises(ReferenceMismatch, match="verifier calibrate"):
        run(configure("http://127.0.0.1:1/v1", card, tmp_path / "run"))


def test_a_calibration_of_other_weights_is_refused(card: Path, tmp_path: Path) -> None:
    """It would say nothing of these."""
    other = make_calibration(tensors_sha256="1" * 64).model_dump(mode="json")
    write_json(tmp_path / "tiny.calibration.json", other)

    with pytest.raises(ReferenceMismatch, match="made for weights 111111111111"):
        run(configure("http://127.0.0.1:1/v1", card, tmp_path / "run"))


def test_the_seed_is_drawn_when_none_is_given_and_the_report_reveals_it(
    card: Path, tmp_path: Path
) -> None:
    """Two runs ask different probes; each report holds its seed."""
    plans = [
        start(configure("http://127.0.0.1:1/v1", card, tmp_path / name, seed=None))
        for name in ("one", "two")
    ]

    assert plans[0].seed != plans[1].seed
    assert read_probes(tmp_path / "one") != read_probes(tmp_path / "two")
    assert read_plan(tmp_path / "one") == plans[0]


def test_replies_of_a_host_that_ignores_max_tokens_are_scored_no_further(
    card: Path, tmp_path: Path
) -> None:
    """It can neither cost hours nor count for more than was asked."""
    with FakeHost(lambda _asked: chat("the model says more " * 500)) as fake:
        config = configure(
            fake.url, card, tmp_path / "run", top_logprobs=0, budget_completion_tokens=120
        )
        report = run(config)

    assert report.usage.tokens_scored <= 12 * report.usage.replies


def test_outcomes_are_those_of_the_exchanges(card: Path, tmp_path: Path) -> None:
    """The folder alone tells what came of each probe."""
    with host() as url:
        report = run(configure(url, card, tmp_path / "run"))
    outcomes = read_outcomes(tmp_path / "run", max_attempts=1)

    assert len(outcomes) == report.usage.replies


# -- other models ------------------------------------------------------------------------------


class OtherModel(FakeEngine):
    """An engine whose column `other` is a model of another script, loaded by its name."""

    def __init__(self, *, serves: str = "reference") -> None:
        super().__init__(margin=4.5)
        self._other = FakeEngine(margin=4.5, script=lambda ids: wordy_script((*ids, 7)))
        self.column = serves

    def can_load(self, name: str) -> bool:
        return name == "other" or super().can_load(name)

    def load_variant(self, name: str) -> None:
        self.column = name
        if name != "other":
            super().load_variant(name)

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        return (self._other if self.column == "other" else super()).score(requests)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        return (self._other if self.column == "other" else super()).generate(requests)


def audit_other(
    url: str, card: Path, out: Path, *, suspected: bool, show: Show = QUIET,
    read: Callable[[], Suspected] = lambda: Suspected(tokenizer=FakeTokenizer(), same=True),
) -> Report:  # fmt: skip
    config = configure(url, card, out)
    if suspected:
        suspects = [{"name": "other", "path": ".", "relation": "another size"}]
        raw = config.model_dump() | {"reference": {"card": str(card), "suspects": suspects}}
        config = RunFile.model_validate(raw)

    def load() -> Reference:
        suspects = {"other": read}
        return Reference(engine=OtherModel(), tokenizer=FakeTokenizer(), suspects=suspects)

    return audit(config, api_key=None, load_reference=load, show=show)


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


def test_tokenizers_are_told_apart_by_counts_only_of_a_host_that_is_far_off(
    card: Path, tmp_path: Path
) -> None:
    """A few requests of one token, kept in the folder, asked once; an honest host is not asked."""
    asked = {}
    for name in ("other", "reference"):
        out = tmp_path / name
        app = create_app(
            Host(
                engine=OtherModel(serves=name),
                tokenizer=FakeTokenizer(),
                model="tiny",
                window_s=0.001,
            )
        )
        with running(app) as url:
            report = audit_other(url, card, out, suspected=True)
            audit_other(url, card, out, suspected=True)
        outcomes = read_outcomes(out, max_attempts=1)
        asked[name] = sum(outcome.startswith("k0") for outcome in outcomes)
        counted = [n for n in read_attempts(out) if n.probe_id.startswith("k0")]
        assert len(counted) == asked[name]
        assert report.usage.requests >= len(read_attempts(out))

    assert (tmp_path / "other" / COUNTED).exists()
    assert not (tmp_path / "reference" / COUNTED).exists()
    assert asked == {"other": 8, "reference": 0}


def test_a_suspect_that_cannot_be_had_is_said_before_anything_is_asked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is missing, a repository that cannot be reached; nothing is loaded yet."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    unpinned = dict.fromkeys(("tensors_sha256", "tokenizer_sha256", "template_sha256"))
    card = tmp_path / "tiny.yaml"
    card.write_text(yaml.safe_dump(CARD | {"digests": unpinned}))
    for where, complaint in (
        ({"path": str(tmp_path / "nowhere")}, "reference.suspects: other: no directory"),
        ({"repo": "someone/other"}, "someone/other@newest: "),
    ):
        config = RunFile.model_validate(
            {
                "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "tiny"},
                "reference": {
                    "card": str(card), "engine": "transformers", "weights": tiny,
                    "suspects": [{"name": "other"} | where],
                },
                "out": tmp_path / "run",
            }
        )  # fmt: skip
        with pytest.raises(ConfigError, match=complaint):
            reference_loader(config, cache=tmp_path, show=QUIET)()


# -- the deadline ---------------------------------------------------------------------------------


def nearly_late(left_s: float) -> Pace:
    """The pace of a command that began so long ago that its deadline comes in `left_s` seconds."""
    return replace(ALONE, began=time.monotonic() - 21_600 + left_s)


def test_the_deadline_ends_an_audit_that_only_waits(card: Path, tmp_path: Path) -> None:
    """A host that always says "wait" is given up; the same command goes on later."""
    out = tmp_path / "run"
    with FakeHost(lambda _asked: error(429, retry_after="60")) as busy:
        config = configure(busy.url, card, out)
        patient = config.endpoint.model_copy(update={"max_attempts": 8})
        config = config.model_copy(update={"endpoint": patient})
        begun = time.monotonic()
        report = audit(
            config, api_key=None, load_reference=load_reference, show=QUIET, pace=nearly_late(1.5)
        )

    assert time.monotonic() - begun < 10
    assert report.decision == "inconclusive"
    assert report.summary.startswith("the deadline of 6 h came first; ")
    assert any("the same command goes on" in note for note in report.notes)
    before = (out / REPORT).read_bytes()
    assert decide_folder(out) == report
    assert (out / REPORT).read_bytes() == before


def test_an_audit_goes_on_after_its_deadline(card: Path, tmp_path: Path) -> None:
    """What had come is kept, and nothing of the deadline stays once there is a verdict."""
    out = tmp_path / "run"
    with host() as url:
        config = configure(url, card, out)
        first = audit(
            config, api_key=None, load_reference=load_reference, show=QUIET, pace=nearly_late(0)
        )
        kept = (out / DEADLINE).exists()
        second = run(config)

    assert (first.decision, second.decision) == ("inconclusive", "consistent")
    assert kept
    assert not (out / DEADLINE).exists()


def test_another_deadline_is_the_same_run(card: Path, tmp_path: Path) -> None:
    """How long a command may take says nothing of what it does."""
    out = tmp_path / "run"
    config = configure("http://127.0.0.1:1/v1", card, out)
    start(config)
    longer = config.audit.model_copy(update={"deadline": 43_200.0})

    assert start(config.model_copy(update={"audit": longer})) == read_plan(out)
