"""Whole audits of a model that thinks, over HTTP, however the host reports its thoughts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from audits import CARD, FAULT, QUIET, configure
from fakes_thinker import THINKING, ThinkingEngine, ThinkingTokenizer
from simulate import make_calibration, make_plan, make_reply

from verifier.audit import audit
from verifier.checks.hidden_reasoning import hides_thoughts, turn_off
from verifier.evidence.ledger import Ledger, ledger_from_json
from verifier.files.run_folder import LEDGER, REPORT, write_json
from verifier.host.collect import read_attempts
from verifier.host.exchange import HIDDEN, UNSHOWN
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host, Thoughts
from verifier.lab.testbed.server import running
from verifier.plan_file import read_plan, read_probes
from verifier.records import Message, NotJudged, Outcome, Probe, Report
from verifier.reference.loaded import Reference
from verifier.report_file import report_to_json
from verifier.verdict.decide import decide_folder

Shown = Literal["apart", "inline", "stripped", "hidden"]


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A calibrated card of a model that thinks."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CARD | {"thinking": THINKING.model_dump()}))
    calibration = make_calibration().model_dump(mode="json")
    write_json(tmp_path / "tiny.calibration.json", calibration)
    return path


def make_engine(weights: str = "reference") -> ThinkingEngine:
    engine = ThinkingEngine(make_tokenizer(), margin=3.5, noise={FAULT: 1.5, "fp8-channel": 1.5})
    engine.load_variant(weights)
    return engine


def make_tokenizer() -> ThinkingTokenizer:
    return ThinkingTokenizer(control=True, inside=True)


@contextmanager
def host(shown: Shown, weights: str = "reference") -> Iterator[str]:
    app = create_app(Host(
        engine=make_engine(weights), tokenizer=make_tokenizer(), model="tiny", window_s=0.001,
        thoughts=Thoughts(tags=THINKING, shown=shown),
    ))  # fmt: skip
    with running(app) as url:
        yield url


def run(url: str, card: Path, out: Path, **changes: Any) -> Report:
    def load_reference() -> Reference:
        return Reference(engine=make_engine(), tokenizer=make_tokenizer())

    settings: dict[str, Any] = {"max_tokens": 40, "budget_completion_tokens": 2400} | changes
    return audit(
        configure(url, card, out, **settings), api_key=None, load_reference=load_reference,
        show=QUIET,
    )  # fmt: skip


def outcome_of(name: str, reason: str | None) -> Outcome:
    """An answer that was not judged, or one that was."""
    if reason is None:
        return make_reply(name)
    return NotJudged(probe_id=name, reason=reason, prompt_tokens=9, completion_tokens=9)


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "dialect"),
    [
        ("apart", "chat"),
        ("apart", "messages"),
        ("apart", "responses"),
        ("inline", "chat"),
        ("stripped", "chat"),
    ],
)
def test_an_honest_host_that_shows_its_thoughts_ends_consistent(
    card: Path, tmp_path: Path, shown: Shown, dialect: str
) -> None:
    """However it reports them; what it may have stripped is left out and counted."""
    with host(shown) as url:
        report = run(url, card, tmp_path / "run", endpoint={"dialect": dialect})

    assert report.decision == "consistent"
    assert report.usage.not_judged <= 2  # the model itself passes a closing tag over
    assert report_to_json(decide_folder(tmp_path / "run")) == report_to_json(report)


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "max_tokens"), [("apart", 8), ("stripped", 8), ("stripped", 40), ("inline", 40)]
)
def test_other_weights_are_found_from_thoughts(
    card: Path, tmp_path: Path, shown: Shown, max_tokens: int
) -> None:
    """Thoughts that the limit cuts off suffice, where they are told from answers."""
    with host(shown, FAULT) as url:
        report = run(url, card, tmp_path / "run", max_tokens=max_tokens)

    assert report.decision == "inconsistent"


def test_with_thinking_off_other_weights_are_found(card: Path, tmp_path: Path) -> None:
    """Where thoughts are hidden."""
    with host("hidden", FAULT) as url:
        report = run(url, card, tmp_path / "run")

    assert report.decision == "inconsistent"


# -- known answer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "hides"),
    [
        ([], False),
        ([f"{HIDDEN}, 5 tokens of it"], True),
        ([HIDDEN, UNSHOWN], True),
        ([HIDDEN, None], False),
        ([HIDDEN, "empty content"], False),
    ],
    ids=["nothing", "one", "all", "one shown", "one empty"],
)
def test_thoughts_are_hidden_where_every_answer_lacks_them(
    reasons: list[str | None], hides: bool
) -> None:
    """One that shows its thought, or has none for another reason, speaks against it."""
    plan = make_plan(thinking=THINKING, configuration={"endpoint": {"dialect": "chat"}})
    message = Message(role="user", content="Hi.")
    probes = tuple(Probe(id=f"p{n}", kind="x", messages=(message,), max_tokens=9) for n in range(6))
    outcomes = {f"p{n}": outcome_of(f"p{n}", reason) for n, reason in enumerate(reasons)}

    assert hides_thoughts(plan, probes, Ledger(rows=()), outcomes) is hides
    silent = make_plan(thinking=None)
    assert not hides_thoughts(silent, probes, Ledger(rows=()), outcomes)


# -- one audit -----------------------------------------------------------------------------------


def test_where_thoughts_are_hidden_the_rest_is_asked_with_thinking_off(
    card: Path, tmp_path: Path
) -> None:
    """The first answer is not judged; the others are, and the report says what of."""
    with host("hidden") as url:
        report = run(url, card, tmp_path / "run")

    assert report.decision == "consistent"
    assert report.usage.not_judged == 1
    assert any("asked with thinking off" in note for note in report.notes)
    settings = [dict(probe.settings) for probe in read_probes(tmp_path / "run")]
    assert settings[0] == {}
    assert settings[1] == {"enable_thinking": False}


def test_hidden_thoughts_of_a_model_without_a_switch_leave_the_counts(
    card: Path, tmp_path: Path
) -> None:
    """The report says so, accuses nobody, and what the host counts stands in the ledger."""
    text = yaml.safe_load(card.read_text())
    card.write_text(yaml.safe_dump(text | {"thinking": {"open": "<think>", "close": "</think>"}}))
    with host("hidden") as url:
        report = run(url, card, tmp_path / "run", budget_completion_tokens=600)

    assert report.decision == "inconclusive"
    assert "not testable by text: reasoning hidden" in report.summary
    assert any("counts of prompt tokens still speak" in note for note in report.notes)
    raw = yaml.safe_load((tmp_path / "run" / LEDGER).read_text())
    rows = ledger_from_json(raw, where="").rows
    assert len(rows) == report.usage.not_judged
    assert all(row.prompt_tokens == row.rendered["reference"] for row in rows)
    assert (tmp_path / "run" / REPORT).exists()


def test_thinking_is_turned_off_once(card: Path, tmp_path: Path) -> None:
    """Also where a kill came between turning it off and the next question."""
    out = tmp_path / "run"
    with host("hidden") as url:
        run(url, card, out, budget_completion_tokens=400)
    before = read_probes(out)

    asked = frozenset(attempt.probe_id for attempt in read_attempts(out))
    assert turn_off(out, read_plan(out), asked=asked) == before
    assert all(len(dict(p.settings)) == len(p.settings) for p in before)
