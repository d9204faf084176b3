"""Text completions beside chats: what they tell of the weights, and when they tell nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from audits import FAULT, QUIET, configure, load_reference, make_engine, run
from fakes_engine import FakeTokenizer
from simulate import decide, make_plan, make_reply, replies, simulate_row
from starlette.applications import Starlette

from verifier.checks.check import UNKNOWN_RENDERING
from verifier.checks.template.completions import (
    ROUNDS,
    Bypass,
    describe,
    judge_completions,
    to_complete,
)
from verifier.evidence.ledger import Ledger, Row
from verifier.files.run_folder import COMPLETIONS, EXCHANGES, PAGE, read_lines
from verifier.host.exchange import Problem
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.plan_file import Plan
from verifier.records import REFERENCE, Message, Probe, Report
from verifier.reference.renderings import changes
from verifier.reference.renderings.catalogue import PUBLISHED, Rendering
from verifier.steps import score
from verifier.verdict.decide import decide_folder

#: A way to render that no catalogue has.
ODD = Rendering(
    name="odd", summary="", advice="",
    change=partial(changes.each_content, change=lambda text: f"Sir, {text}"),
)  # fmt: skip
OTHER_WEIGHTS = "int3-g64"  # in no card's bank here
TRIALS = 300


def rows(
    rng: np.random.Generator, scale: float, *, count: int = 24, counted: int | None = 20
) -> list[Row]:
    """Completions of a host with noise of this scale, of prompts of 20 tokens."""
    return [
        replace(
            simulate_row(rng, f"p{n}", scale=scale),
            prompt_tokens=counted, rendered={REFERENCE: 20},
        )
        for n in range(count)
    ]  # fmt: skip


def judge(some: Sequence[Row], plan: Plan | None = None) -> Bypass:
    answers = [make_reply(row.probe_id, row.tokens) for row in some]
    return judge_completions(plan or make_plan(), Ledger(rows=tuple(some)), answers)


def looks(some: Sequence[Row]) -> list[Bypass]:
    """What is seen at each look of an audit."""
    return [judge(some[:size]) for size in ROUNDS]


def app(
    weights: str = REFERENCE, rendering: Rendering = PUBLISHED, *, as_chat: bool = False
) -> Starlette:
    return create_app(Host(
        engine=make_engine(weights), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001,
        rendering=rendering, completes_as_chat=as_chat,
    ))  # fmt: skip


def notes(report: Report) -> str:
    return " ".join(report.notes)


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "scale", "said", "error"), [(11, 0.3, "fits", "beta"), (12, 0.1, "differs", "alpha")]
)
def test_the_edge_of_a_class_rarely_fits_and_honest_noise_rarely_differs(
    seed: int, scale: float, said: str, error: str
) -> None:
    """The levels, at any of many looks: beta and alpha, here one in fifty to be seen."""
    rng, plan = np.random.default_rng(seed), make_plan(**{error: 0.02})
    wrong = 0
    for _ in range(TRIALS):
        some = rows(rng, scale)
        wrong += any(getattr(judge(some[:size], plan), said) for size in ROUNDS)

    assert wrong <= 0.02 * TRIALS + 3 * (0.02 * TRIALS) ** 0.5


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "said"), [(0.02, "fits"), (0.6, "differs")])
def test_published_and_bad_weights_are_told_within_few_replies(scale: float, said: str) -> None:
    """The power: nearly always within the replies that an audit asks for."""
    rng = np.random.default_rng(13)
    found = [any(getattr(one, said) for one in looks(rows(rng, scale))) for _ in range(40)]

    assert sum(found) >= 38


# -- known answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.02, 0.6])
def test_prompts_made_into_chats_tell_nothing(scale: float) -> None:
    """Their counts are off by more than honest accounting: neither fits nor differs."""
    found = judge(rows(np.random.default_rng(14), scale, counted=51))

    assert (found.fits, found.differs, found.turned, len(found.text)) == (False, False, 24, 0)
    assert "as if they had been made into chats" in describe(found)


@pytest.mark.parametrize(("counted", "said"), [(20, True), (21, True), (23, True), (None, False)])
def test_bad_weights_take_counts_that_agree(counted: int | None, said: bool) -> None:
    """Uncounted noise may be that of a chat; an accounting difference is none."""
    assert judge(rows(np.random.default_rng(15), 0.6, counted=counted)).differs is said


def test_published_weights_need_no_counts() -> None:
    """No chat looks like the text that was sent."""
    assert judge(rows(np.random.default_rng(16), 0.02, counted=None)).fits


def test_no_answer_is_told_with_its_reason() -> None:
    """And decides nothing."""
    refusal = Problem(status=404, reason="HTTP 404: no such route", retryable=False)
    found = judge_completions(make_plan(), Ledger(rows=()), [refusal])

    assert (found.fits, found.differs, found.settled) == (False, False, True)
    assert describe(found) == "text completions were not judged: HTTP 404: no such route"


def test_probes_are_the_first_of_the_plan_and_short() -> None:
    """The same prompts that chats were asked."""
    message = Message(role="user", content="Hi.")
    probes = tuple(
        Probe(id=f"p{n}", kind="x", messages=(message,), max_tokens=90) for n in range(40)
    )
    made = to_complete(probes, max_tokens=90)

    assert [probe.id for probe in made] == [f"p{n}" for n in range(ROUNDS[-1])]
    assert {probe.max_tokens for probe in made} == {48}


# -- one audit -----------------------------------------------------------------------------------


def test_an_unknown_rendering_is_told_from_bad_weights(card: Path, tmp_path: Path) -> None:
    """No build and no noise is accused, and the folder gives the same report again."""
    out = tmp_path / "run"
    with running(app(rendering=ODD)) as url:
        report = run(configure(url, card, out))

    assert report.decision == "inconsistent"
    (named,) = [f for f in report.findings if f.aspect in ("template", "cause")]
    assert named.name == UNKNOWN_RENDERING
    assert not any(f.aspect == "noise" and f.decision == "detected" for f in report.findings)
    assert "published prompts" in report.summary
    assert (report.noise_scale.estimate or 0) <= report.noise_scale.honest
    assert UNKNOWN_RENDERING in (out / PAGE).read_text()
    score(out, load_reference(), show=QUIET)
    assert decide_folder(out) == report


def test_bad_weights_show_in_completions_too(card: Path, tmp_path: Path) -> None:
    """The cause stays with the weights."""
    with running(app(OTHER_WEIGHTS)) as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert report.decision == "inconsistent"
    assert report.findings[-1].aspect == "cause"
    assert not any(f.aspect == "template" for f in report.findings)
    assert "differ from the published weights too" in notes(report)


def test_completions_that_are_chats_are_set_aside(card: Path, tmp_path: Path) -> None:
    """Silently: only the counts tell."""
    with running(app(rendering=ODD, as_chat=True)) as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert report.decision == "inconsistent"
    assert not any(f.name == UNKNOWN_RENDERING for f in report.findings)
    assert "as if they had been made into chats" in notes(report)


def test_a_host_without_completions_is_audited_all_the_same(card: Path, tmp_path: Path) -> None:
    """Its refusals are kept, told, and count as nothing."""
    host, out = app(rendering=ODD), tmp_path / "run"
    host.router.routes[:] = [r for r in host.routes if getattr(r, "path", "") != "/v1/completions"]
    with running(host) as url:
        report = run(configure(url, card, out))
        again = run(configure(url, card, out))

    assert report.decision == "inconsistent"
    assert "text completions were not judged: HTTP 404" in notes(report)
    assert report.usage.failures == 0
    asked = list(read_lines(out / COMPLETIONS / EXCHANGES))
    assert 0 < len(asked) <= ROUNDS[0]
    assert again == report


@pytest.mark.parametrize("weights", [REFERENCE, FAULT])
def test_no_completion_is_asked_for_without_need(card: Path, tmp_path: Path, weights: str) -> None:
    """An honest host, and one whose build has a name, cost nothing more."""
    out = tmp_path / "run"
    with running(app(weights)) as url:
        run(configure(url, card, out))

    assert not (out / COMPLETIONS).exists()


def test_completions_stay_within_the_budget(card: Path, tmp_path: Path) -> None:
    """What chats cost is not spent again."""
    for budget in (120, 150, 260):
        out = tmp_path / f"run{budget}"
        with running(app(rendering=ODD)) as url:
            report = run(configure(url, card, out, budget_completion_tokens=budget))
        assert report.usage.completion_tokens <= budget


# -- the decision --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.02, 0.8])
@pytest.mark.parametrize("completed", [0.02, 0.8])
def test_completions_decide_no_verdict(scale: float, completed: float) -> None:
    """They part the template from the weights, where chats differ."""
    rng = np.random.default_rng(17)
    chats = [simulate_row(rng, f"p{n}", scale=scale) for n in range(40)]
    plan, found = make_plan(), judge(rows(rng, completed))

    def decided(bypass: Bypass | None) -> Report:
        ledger = Ledger(rows=tuple(chats))
        return decide(plan, ledger, outcomes=replies(chats), completions=bypass)

    before, after = decided(None), decided(found)
    assert after.decision == before.decision
    named = [f.name for f in after.findings if f.aspect == "template"]
    noise = [f.decision for f in after.findings if f.aspect == "noise"]
    differ, fit = scale == 0.8, completed == 0.02
    assert named == ([UNKNOWN_RENDERING] if differ and fit else [])
    assert noise[0] == ("detected" if differ and not fit else "excluded")
    assert describe(found) in after.notes
    assert after.usage.requests == before.usage.requests + found.requests


def test_weights_that_differ_without_a_template_are_no_hidden_prompt() -> None:
    """Unknown words explain other weights as well as anything: none is claimed then."""
    rng = np.random.default_rng(18)
    rendered = {REFERENCE: 20, "system-injected": 30}
    chats = [
        replace(
            simulate_row(rng, f"p{n}", scale=0.5, builds=("template:system-injected",)),
            rendered=rendered,
        )
        for n in range(40)
    ]

    def said(bypass: Bypass | None) -> list[str]:
        report = decide(
            make_plan(), Ledger(rows=tuple(chats)),
            outcomes=replies(chats), completions=bypass,
        )  # fmt: skip
        return [f.aspect for f in report.findings if f.aspect in ("template", "cause")]

    assert said(None) == said(judge(rows(rng, 0.02))) == ["template"]
    assert said(judge(rows(rng, 0.6))) == ["cause"]


def test_noise_of_another_model_names_no_template() -> None:
    """Whatever fits least badly then is no explanation."""
    rng = np.random.default_rng(19)
    rendered = {REFERENCE: 20, "family-llama3": 30}
    column = "template:family-llama3"
    near, far = [], []
    for n in range(40):
        row = simulate_row(rng, f"p{n}", scale=1.0)
        fits = tuple(cell + 3.0 for cell in row.text[REFERENCE])  # at every scale alike
        far.append(replace(row, text=row.text | {column: fits}, rendered=rendered))
        row = simulate_row(rng, f"p{n}", scale=1.0, builds=(column,))
        near.append(replace(row, rendered=rendered))

    for some, named in ((near, ["family-llama3"]), (far, [])):
        report = decide(make_plan(), Ledger(rows=tuple(some)), outcomes=replies(some))
        assert report.decision == "inconsistent"
        assert [f.name for f in report.findings if f.aspect == "template"] == named
