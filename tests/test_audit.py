"""Whole audits over HTTP on a model small enough to follow: verdicts, files, kills, budgets."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from audits import CARD, FAULT, KEY, QUIET, configure, host, load_reference, requests_of, run
from fakes_engine import FakeEngine, FakeTokenizer
from fakes_host import Answer, FakeHost, chat, error
from simulate import make_calibration

from verifier.audit import audit
from verifier.config import Prices, RunFile
from verifier.errors import ConfigError, EndpointError, ReferenceMismatch
from verifier.evidence.calibration import NoiseClass
from verifier.files.run_folder import (
    CAPABILITY_EXCHANGES,
    DEADLINE,
    EXCHANGES,
    FINISHED,
    LEDGER,
    PAGE,
    PLAN,
    PROBES,
    REPORT,
    RUN,
    SCORES,
    SENT,
    SHOWN_EXCHANGES,
    read_lines,
    write_json,
)
from verifier.host.collect import read_attempts, read_outcomes
from verifier.plan import make_plan
from verifier.plan_file import read_plan, read_probes
from verifier.probes import load_pool
from verifier.progress import ALONE, Pace, Show
from verifier.reference.cards import load_card
from verifier.reference.loaded import Reference, reference_loader
from verifier.report_file import report_from_json, report_to_json
from verifier.steps import ask, score, start, write_page
from verifier.verdict.decide import decide_folder


def test_an_honest_host_ends_consistent_and_leaves_a_whole_run_folder(
    card: Path, tmp_path: Path
) -> None:
    """Every file of the folder is there, and the report is the one returned."""
    out = tmp_path / "run"
    with host() as url:
        report = run(configure(url, card, out))

    assert report.decision == "consistent"
    names = {RUN, PLAN, PROBES, SENT, EXCHANGES, SCORES, LEDGER, REPORT, PAGE, FINISHED}
    assert {path.name for path in out.iterdir()} == names
    assert report_to_json(report) == report_to_json(
        report_from_json(yaml.safe_load((out / REPORT).read_text()))
    )


def test_settings_of_the_template_go_with_every_probe(card: Path, tmp_path: Path) -> None:
    """To the endpoint and into our own rendering, so that a model can be asked not to think."""
    out = tmp_path / "run"
    with host() as url:
        run(configure(url, card, out, template_settings={"enable_thinking": False}))

    assert {p.settings for p in read_probes(out)} == {(("enable_thinking", False),)}
    asked = [r["chat_template_kwargs"] for r in requests_of(out) if "chat_template_kwargs" in r]
    assert len(asked) == len(requests_of(out))
    assert asked[0] == {"enable_thinking": False}


def test_settings_that_a_dialect_cannot_carry_are_refused(card: Path, tmp_path: Path) -> None:
    """The host would render another prompt than the reference."""
    settings = {"template_settings": {"enable_thinking": False}}
    config = configure(
        "http://127.0.0.1:9/v1", card, tmp_path, endpoint={"dialect": "messages"}, **settings
    )

    with pytest.raises(ConfigError, match="the dialect messages cannot carry them"):
        make_plan(config, load_card(str(card)), make_calibration(), load_pool())


def test_text_alone_gives_the_same_verdicts(card: Path, tmp_path: Path) -> None:
    """Without log-probabilities the texts are tokenized again."""
    with host() as honest, host(FAULT) as faulty:
        reports = [
            run(configure(url, card, tmp_path / name, top_logprobs=0))
            for name, url in (("honest", honest), ("faulty", faulty))
        ]

    assert [report.decision for report in reports] == ["consistent", "inconsistent"]
    assert all(row.get("logprobs") is None for row in requests_of(tmp_path / "honest"))


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


def test_a_card_without_a_calibration_is_audited_provisionally(card: Path, tmp_path: Path) -> None:
    """And where no card can lend its noise, it is refused with how to make one."""
    (tmp_path / "tiny.calibration.json").unlink()
    with host() as url:
        report = run(configure(url, card, tmp_path / "lent"))
    with pytest.MonkeyPatch.context() as alone:
        alone.setattr("verifier.reference.provisional.list_cards", list)
        with pytest.raises(
            ReferenceMismatch, match=r"no card at hand is whose.*verifier calibrate"
        ):
            run(configure(url, card, tmp_path / "run"))

    assert report.decision == "consistent"
    assert report.summary.startswith("provisional: nobody has calibrated tiny; ")
    assert not (tmp_path / "run").exists()


def test_a_calibration_of_other_weights_is_refused(card: Path, tmp_path: Path) -> None:
    """It would say nothing of these."""
    other = make_calibration(tensors_sha256="1" * 64).model_dump(mode="json")
    write_json(tmp_path / "tiny.calibration.json", other)

    with pytest.raises(ReferenceMismatch, match="made for weights 111111111111"):
        run(configure("http://127.0.0.1:1/v1", card, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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
