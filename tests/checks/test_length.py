"""Long prompts and long replies: cut without a word, refused, or read and written whole."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from audits import QUIET, configure, write_card
from fakes_engine import FakeEngine, FakeTokenizer
from long_audits import asked_of, long_host, run_long, script
from simulate import decide, make_plan, replies, simulate_row

from verifier.audit import audit
from verifier.checks.length import findings as length
from verifier.checks.length.ask_and_score import Context, add_room
from verifier.checks.length.evidence import PLACES, CeilingRow, LongRow
from verifier.errors import ConfigError
from verifier.evidence.ledger import TEXT_SCALES, Ledger
from verifier.files.run_folder import CONTEXT, CONTEXT_SCORES, REPORT, read_lines
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.plan import forecast_run
from verifier.plan_file import read_plan, read_probes
from verifier.records import Finding, Report
from verifier.reference.loaded import Reference
from verifier.reference.renderings.catalogue import catalogue
from verifier.steps import score
from verifier.verdict.decide import decide_folder


def sure() -> Reference:
    """A reference that seldom ends where its script goes on, as trained models do."""
    return Reference(engine=FakeEngine(margin=12, script=script), tokenizer=FakeTokenizer())


def finding(report: Report, aspect: str) -> Finding:
    (found,) = [f for f in report.findings if f.aspect == aspect]
    return found


# -- one audit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "place", "least"),
    [
        ("front", "front of the prompt", 1),
        ("front-kept", "front of the message", 1),
        ("middle", "middle of the prompt", 1),
        ("end", "end of the prompt", 1),
        ("end-kept", "end of the message", 1),
        ("front-kept,hidden", "front of the message", 3),
        ("middle,hidden", "middle of the prompt", 3),
        ("end,hidden", "end of the prompt", 3),
    ],
)
def test_a_cut_is_named_with_its_place_and_window(
    card: Path, tmp_path: Path, fault: str, place: str, least: int
) -> None:
    """Whatever the endpoint counts, within eight requests, and the weights are not accused."""
    out = tmp_path / "run"
    with long_host(f"context:1700,{fault}") as url:
        report = run_long(configure(url, card, out, context=3000, budget_completion_tokens=1600))

    found = finding(report, "context")
    assert (report.decision, found.decision) == ("inconsistent", "detected")
    window = int(re.findall(r"[0-9]+", found.name)[0])
    assert window == 1700 if "hidden" not in fault else abs(window - 1700) <= 60
    assert place in found.detail
    assert ("own count" in found.detail) == ("hidden" not in fault)
    assert least <= len(read_probes(out, name=CONTEXT)) <= 8
    tried = [line["cut"].split("@") for line in read_lines(out / CONTEXT_SCORES) if "cut" in line]
    windows = {at: {window for place, window in tried if place == at} for at in PLACES}
    if "hidden" in fault:  # measured finely where it may be, and nowhere else
        assert windows[fault.removesuffix(",hidden")] > min(windows.values(), key=len)
    accused = [f for f in report.findings if f.aspect in ("cause", "noise", "template")]
    assert all(f.decision == "excluded" for f in accused)
    before = (out / REPORT).read_bytes()
    decide_folder(out)
    assert (out / REPORT).read_bytes() == before


def test_an_honest_host_reads_all_and_the_verdict_waits_for_it(card: Path, tmp_path: Path) -> None:
    """One long prompt tells; its price is in the plan."""
    out = tmp_path / "run"
    with long_host("none") as url:
        report = run_long(configure(url, card, out, context=3000, budget_completion_tokens=1600))

    assert (report.decision, finding(report, "context").decision) == ("consistent", "excluded")
    assert len(read_probes(out, name=CONTEXT)) == 1
    expected, most = forecast_run(out)
    assert expected.amount.prompt_tokens > 3000
    assert most.amount.prompt_tokens > 24_000
    assert length.CHECK.reserve(read_plan(out)).completion_tokens == 8 * 48


def test_a_refusal_that_names_its_limit_is_no_fault(card: Path, tmp_path: Path) -> None:
    """The endpoint is held to the limit that it names, and the report says which."""
    out = tmp_path / "run"
    with long_host("context:1700,refused") as url:
        report = run_long(configure(url, card, out, context=3000, budget_completion_tokens=1600))

    found = finding(report, "context")
    assert (report.decision, found.decision) == ("consistent", "excluded")
    assert "refuses prompts above 1700 tokens and says so" in found.detail
    assert report.usage.failures == 0


def test_a_ceiling_without_a_word_is_named(card: Path, tmp_path: Path) -> None:
    """The published weights go on where the reply ends, and "stop" is said of it."""
    with long_host("ceiling:90,hidden", margin=12) as url:
        config = configure(url, card, tmp_path / "run", output=200, budget_completion_tokens=800)
        report = audit(config, api_key=None, load_reference=sure, show=QUIET)

    found = finding(report, "ceiling")
    assert (report.decision, found.decision) == ("inconsistent", "detected")
    assert found.name == "replies cut at 90 tokens"


def test_a_ceiling_that_is_said_is_a_limit_and_no_fault(card: Path, tmp_path: Path) -> None:
    """As a refused prompt is; one reply is enough to know it."""
    out = tmp_path / "run"
    with long_host("ceiling:90") as url:
        report = run_long(configure(url, card, out, output=200, budget_completion_tokens=1600))

    found = finding(report, "ceiling")
    assert (report.decision, found.decision, found.log_e) == ("consistent", "not run", None)
    assert found.detail == (
        "the endpoint ends replies at 90 tokens and says so (length), as is honest"
    )
    assert any(found.detail in note for note in report.notes)
    assert len(read_probes(out, name=CONTEXT)) == 1


@pytest.mark.parametrize(
    ("said", "decision", "status"),
    [("length", "consistent", "not run"), ("stop", "inconsistent", "detected"),
     (None, "inconsistent", "detected")],
)  # fmt: skip
def test_half_of_what_was_asked_is_a_fault_without_a_word_alone(
    said: str | None, decision: str, status: str
) -> None:
    """Two replies of 1,024 of 2,048 tokens, at a place where the weights end with exp(-14)."""
    rng = np.random.default_rng(1)
    rows = [simulate_row(rng, f"p{n}", scale=0.05) for n in range(12)]
    end = tuple(-14.0 for _ in TEXT_SCALES)
    cut = tuple(
        CeilingRow(probe_id=name, asked=2048, tokens=1024, finish_reason=said, end=end)
        for name in ("output-1", "output-2")
    )
    report = decide(
        make_plan(output_tokens=2048), Ledger(rows=tuple(rows)), outcomes=replies(rows),
        length=Context(prompts=(), replies=cut, refusals=()),
    )  # fmt: skip
    found = finding(report, "ceiling")

    assert (report.decision, found.decision) == (decision, status)
    if status == "detected":
        assert found.log_e == pytest.approx(18.1, abs=0.1)


def test_long_replies_that_come_whole_are_no_fault(card: Path, tmp_path: Path) -> None:
    """One is enough."""
    with long_host("none") as url:
        config = configure(url, card, tmp_path / "run", output=200, budget_completion_tokens=1600)
        report = run_long(config)

    assert (report.decision, finding(report, "ceiling").decision) == ("consistent", "excluded")


def test_a_model_that_ends_early_itself_is_not_accused(card: Path, tmp_path: Path) -> None:
    """Its own end is likely under the published weights."""
    app = create_app(
        Host(engine=FakeEngine(margin=3.5), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001)
    )
    with running(app) as url:
        out = tmp_path / "run"
        report = run_long(configure(url, card, out, output=200, budget_completion_tokens=1600))

    assert (report.decision, finding(report, "ceiling").decision) == ("inconclusive", "undecided")


def test_weights_that_differ_are_no_cut(card: Path, tmp_path: Path) -> None:
    """Nothing long is asked then."""
    out = tmp_path / "run"
    with long_host("int4-sym-g64") as url:
        report = run_long(configure(url, card, out, context=3000, budget_completion_tokens=1600))

    assert (report.decision, finding(report, "context").decision) == ("inconsistent", "not run")
    assert read_probes(out, name=CONTEXT) == ()


def test_a_budget_that_cannot_pay_for_what_is_long_is_refused(card: Path, tmp_path: Path) -> None:
    """Before anything is sent."""
    config = configure("http://127.0.0.1:9/v1", card, tmp_path / "run", output=2000)

    with pytest.raises(ConfigError, match=r"audit.context and audit.output ask for; allow 4120"):
        run_long(config)


# -- what is kept, and said ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["front-kept,hidden", "middle"])
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an audit of a host that cuts prompts."""
    folder = tmp_path_factory.mktemp("audited")
    asked: dict[str, int] = {"context": 3000, "output": 64, "budget_completion_tokens": 1600}
    with long_host(f"context:1700,{request.param}") as url:
        run_long(configure(url, write_card(folder), folder / "run", **asked))
    return folder / "run"


@pytest.mark.parametrize("left", [0, 1, 2, 3, 5])
def test_scores_of_long_prompts_that_are_lost_are_made_again(
    audited: Path, tmp_path: Path, left: int
) -> None:
    """All of them or some, without asking: the same lines, and the same report."""
    out = tmp_path / "run"
    shutil.copytree(audited, out)
    scores, report = out / CONTEXT_SCORES, out / REPORT
    before, said = scores.read_bytes().splitlines(keepends=True), report.read_bytes()
    assert len(before) > 5

    scores.write_bytes(b"".join(before[:left]))
    score(out, asked_of(), show=QUIET)
    decide_folder(out)

    assert sorted(scores.read_bytes().splitlines(keepends=True)) == sorted(before)
    assert report.read_bytes() == said


@pytest.mark.parametrize(
    "line", ['{"probe_id":"context-1"}', '{"probe_id":"context-1","cut":"front@9","cells":[]}']
)
def test_malformed_scores_of_long_prompts_are_refused(
    card: Path, tmp_path: Path, line: str
) -> None:
    """In one line that names the file."""
    out = tmp_path / "run"
    with long_host("none") as url:
        run_long(configure(url, card, out, context=3000, budget_completion_tokens=1600))
    (out / CONTEXT_SCORES).write_text(line + "\n")

    with pytest.raises(ConfigError, match=r"context_scores\.jsonl:\d+: .*remove the file"):
        score(out, asked_of(), show=QUIET)


def test_a_run_without_long_prompts_has_no_such_scores(card: Path, tmp_path: Path) -> None:
    """Nothing is scored where nothing was asked."""
    out = tmp_path / "run"
    with long_host("none") as url:
        run_long(configure(url, card, out, budget_completion_tokens=1600))
    score(out, asked_of(), show=QUIET)

    assert not (out / CONTEXT_SCORES).exists()


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((900,), "those of 900 tokens and more do not fit the published weights; no cut"),
        ((900, 500), "do not fit the published weights, those of 500 do; no cut"),
    ],
)
def test_long_prompts_that_nothing_explains_stay_undecided(
    lengths: tuple[int, ...], said: str
) -> None:
    """What does not fit is said, and what does, where something was read whole."""
    much, little = (np.linspace(*ends, len(TEXT_SCALES)) for ends in ((-90, -40), (-1, -20)))
    rows = tuple(
        LongRow(
            probe_id=f"context-{length}", length=length, counted=None,
            whole=tuple(little if length == 500 else much),
            cuts={f"{place}@{mark}": tuple(much) for place in PLACES for mark in (450, 810)},
        )
        for length in lengths
    )  # fmt: skip
    brought = Context(prompts=rows, replies=(), refusals=())
    report = decide(make_plan(context_tokens=900), Ledger(rows=()), length=brought)
    found = finding(report, "context")

    assert found.decision == "undecided"
    assert said in found.detail


def test_a_register_never_runs_out_of_names() -> None:
    """However long: three words make 15,625 of them."""
    rooms: dict[str, str] = {}
    rng = random.Random(1)  # noqa: S311 - no secret here
    for _ in range(100_000):
        add_room(rooms, rng)

    assert len(rooms) > 50_000


@pytest.mark.parametrize("fault", ["context:0,front", "context:9,back", "ceiling:x", "context:9"])
def test_tricks_that_are_none_are_refused(fault: str) -> None:
    """With those that are there."""
    with pytest.raises(ConfigError, match="cannot be read; give it as in"):
        read_fault(fault, layers=2, catalogue=catalogue())
