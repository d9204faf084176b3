"""Several endpoints side by side, and a control: none harms another, and what is said stands."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from audits import (
    FAULT,
    NOWHERE,
    QUIET,
    configure,
    host,
    host_with,
    load_reference,
    make_engine,
    run,
    write_run_file,
)
from command_line import call, with_fake_reference
from fakes_engine import FakeEngine, FakeTokenizer
from fakes_host import Asked, FakeHost, chat, error
from fleets import endpoint, make_folders, write_folder
from junitparser import JUnitXml
from reports import make_report, plain_finding
from rich.console import Console
from scipy.stats import binom
from simulate import case_of, make_plan, simulate_row

from verifier.config import Fleet, RunFile, load_fleet, load_run_file
from verifier.errors import ConfigError, EndpointError
from verifier.evidence.e_values import e_bh
from verifier.evidence.ledger import Ledger
from verifier.files.run_folder import (
    CONTROL,
    CONTROL_REPORT,
    ERRORS,
    EXCHANGES,
    FLEET,
    PAGE,
    REPORT,
    RUN,
    SUMMARY,
    read_json,
    working_in,
    write_json,
)
from verifier.fleet.side_by_side import Together, audit_beside_control, audit_targets, start_targets
from verifier.fleet.summary import read_reports, summarise, write_errors
from verifier.host.collect import read_attempts
from verifier.plan_file import read_plan, read_probes
from verifier.progress import Show
from verifier.records import Control, Report, Summary
from verifier.reference.loaded import Reference
from verifier.reports.junit import render_junits
from verifier.reports.markdown import render_summary
from verifier.reports.tables import print_summary
from verifier.verdict.combine import combine
from verifier.verdict.control import judge_beside
from verifier.verdict.decide import decide_folder

#: Run folders of a known truth.
VERDICTS = Path(__file__).parents[1] / "verdicts"


def make_fleet(card: Path, out: Path, **sections: Any) -> Fleet:
    """A run file of `targets` or an `endpoint`, and perhaps a `control`; `audit` changes that."""
    single = configure(NOWHERE, card, out).model_dump()
    changed = single["audit"] | sections.pop("audit", {})
    return Fleet.model_validate(
        {"reference": single["reference"], "audit": changed, "out": out} | sections
    )


def audit_all(fleet: Fleet, **changes: Any) -> Summary:
    names = fleet.every_run_file
    settings: dict[str, Any] = {
        "keys": dict.fromkeys(names), "load_reference": load_reference, "show": QUIET,
    }  # fmt: skip
    return audit_targets(fleet, **settings | changes)


def audit_one(fleet: Fleet, **changes: Any) -> Report:
    settings: dict[str, Any] = {
        "keys": dict.fromkeys(fleet.every_run_file), "load_reference": load_reference,
        "show": QUIET,
    }  # fmt: skip
    return audit_beside_control(fleet, **settings | changes)


def every_file(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- several targets ---------------------------------------------------------------------------


def test_a_dead_target_harms_no_other(card: Path, tmp_path: Path) -> None:
    """The verdicts of the others are those of audits alone; the dead one is on record, unjudged."""
    out = tmp_path / "hosts"
    with host() as honest, host(FAULT) as faulty:
        targets = {
            "honest": endpoint(honest), "dead": endpoint(NOWHERE), "int4": endpoint(faulty),
        }  # fmt: skip
        summary = audit_all(make_fleet(card, out, targets=targets))
        alone = run(configure(honest, card, tmp_path / "alone"))

    found = {target.name: target for target in summary.targets}
    assert [target.decision for target in summary.targets] == ["consistent", None, "inconsistent"]
    assert "cannot reach 127.0.0.1:1" in found["dead"].summary
    assert found["dead"].usage is not None
    assert found["dead"].usage.requests > 0
    assert found["dead"].log_e is None
    assert found["int4"].accusation == "stands"
    assert found["int4"].best_name == FAULT
    report = read_json(out / "honest" / REPORT)
    same = ("decision", "summary", "findings", "noise_scale", "usage")
    told = json.loads((tmp_path / "alone" / REPORT).read_text())
    assert {key: report[key] for key in same} == {key: told[key] for key in same}
    assert alone.control is None
    assert not (out / "dead" / REPORT).exists()


def test_each_run_folder_is_one_of_a_single_endpoint(card: Path, tmp_path: Path) -> None:
    """Its run file is taken by itself, and goes on with the same plan."""
    out = tmp_path / "hosts"
    with host() as honest, host() as other:
        fleet = make_fleet(
            card, out, targets={"a": endpoint(honest), "b": endpoint(other)}, audit={"seed": None}
        )
        audit_all(fleet)
        before = every_file(out)
        run(load_run_file(out / "a" / RUN))

    assert every_file(out) == before
    assert set(before) >= {FLEET, SUMMARY, ERRORS, f"a/{PAGE}", f"b/{PAGE}"}
    assert load_run_file(out / "a" / RUN).endpoint.base_url == honest
    assert read_plan(out / "a").seed == read_plan(out / "b").seed
    assert read_probes(out / "a") == read_probes(out / "b")
    decide_folder(out / "a")
    assert every_file(out) == before


def test_the_same_command_on_finished_targets_sends_nothing(card: Path, tmp_path: Path) -> None:
    """And every byte stays."""
    out = tmp_path / "hosts"
    with host() as one, host(FAULT) as two, host() as control:
        fleet = make_fleet(
            card, out, targets={"a": endpoint(one), "b": endpoint(two)},
            control=endpoint(control), audit={"seed": None},
        )  # fmt: skip
        audit_all(fleet)
        before = every_file(out)
        audit_all(fleet)

    assert every_file(out) == before


def test_the_summary_is_made_anew_from_the_folders(card: Path, tmp_path: Path) -> None:
    """The same bytes, elsewhere, without card, hosts and model."""
    out = tmp_path / "hosts"
    with host() as one, host(FAULT) as two, host() as control:
        targets = {"a": endpoint(one), "b": endpoint(two), "c": endpoint(NOWHERE)}
        audit_all(make_fleet(card, out, targets=targets, control=endpoint(control)))
    before = every_file(out)
    moved = out.rename(tmp_path / "published")
    card.unlink()
    (moved / SUMMARY).unlink()
    for name in ("a", "b", CONTROL):
        (moved / name / REPORT).unlink()
    summarise(moved)

    assert every_file(moved) == before


def test_other_targets_in_the_same_folder_are_refused(card: Path, tmp_path: Path) -> None:
    """So are files of something else; nothing is written over."""
    out = tmp_path / "hosts"
    start_targets(make_fleet(card, out, targets={"a": endpoint(NOWHERE)}))
    with pytest.raises(ConfigError, match="holds other targets"):
        start_targets(make_fleet(card, out, targets={"b": endpoint(NOWHERE)}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="exists and holds no"):
        start_targets(make_fleet(card, tmp_path / "mine", targets={"a": endpoint(NOWHERE)}))


def test_a_target_that_cannot_be_planned_is_on_record(card: Path, tmp_path: Path) -> None:
    """The others are audited; when none can be planned the reason is the operator's."""
    settings = {"template_settings": {"enable_thinking": False}}
    bad = endpoint(NOWHERE, dialect="messages")
    with host() as honest:
        targets = {"good": endpoint(honest), "bad": bad}
        summary = audit_all(make_fleet(card, tmp_path / "a", targets=targets, audit=settings))
    with pytest.raises(ConfigError, match="the dialect messages cannot carry them"):
        audit_all(make_fleet(card, tmp_path / "b", targets={"bad": bad}, audit=settings))

    assert [target.decision is None for target in summary.targets] == [False, True]
    assert "the dialect messages cannot carry them" in summary.targets[1].summary


def test_a_defect_is_raised_once_the_others_are_done(card: Path, tmp_path: Path) -> None:
    """It is on record, and never a verdict."""
    out = tmp_path / "hosts"

    def step(name: str, _done: int, _of: int) -> None:
        if name.startswith("b: scoring"):
            raise ZeroDivisionError("a defect")

    with host() as one, host() as two:
        fleet = make_fleet(card, out, targets={"a": endpoint(one), "b": endpoint(two)})
        with pytest.raises(ZeroDivisionError):
            audit_all(fleet, show=Show(tell=lambda _line: None, step=step))

    a, b = read_json(out / SUMMARY)["targets"]
    assert a["decision"] == "consistent"
    assert (b["decision"], b["log_e"]) == (None, None)
    assert b["summary"] == "defect in the verifier (ZeroDivisionError: a defect)"


def test_an_interrupt_stops_all_and_the_same_command_goes_on(card: Path, tmp_path: Path) -> None:
    """Also where a host hangs; what had arrived stays, and no probe is asked twice."""
    out, hanging, ended = tmp_path / "hosts", threading.Event(), []

    def script(_asked: Asked) -> Any:
        if not hanging.is_set():
            hanging.set()
            slow.closing.wait(20)
        return error(500)

    def step(what: str, _done: int, _of: int) -> None:
        if what.startswith("a: ") and not ended:
            hanging.wait(20)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(1)  # in the middle of a step when the interrupt comes
            ended.append(what)

    with host() as one, FakeHost(script) as slow:
        targets = {"a": endpoint(one, concurrency=1), "b": endpoint(slow.url, concurrency=1)}
        fleet = make_fleet(card, out, targets=targets, audit={"budget_completion_tokens": 240})
        # a shell's background job starts with the signal ignored
        before_test = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                audit_all(fleet, show=Show(tell=lambda _line: None, step=step))
        finally:
            signal.signal(signal.SIGINT, before_test)
        left = not ended
        before = every_file(out)
        slow.closing.set()
        summary = audit_all(fleet)

    assert not left
    assert not before.keys() & {SUMMARY, f"b/{EXCHANGES}"}
    asked = [attempt.probe_id for attempt in read_attempts(out / "a")]
    assert len(asked) == len(set(asked))
    kept = before.get(f"a/{EXCHANGES}", b"")
    assert (out / "a" / EXCHANGES).read_bytes().startswith(kept)
    assert [target.decision for target in summary.targets] == ["consistent", "inconclusive"]


def test_one_reference_is_never_used_by_two_at_once(card: Path, tmp_path: Path) -> None:
    """Each scoring step has it alone: its weights change in place."""
    engine, busy, met = make_engine(), threading.Lock(), []
    plain, loads = engine.score, []

    def score(requests: Any) -> Any:
        if not busy.acquire(blocking=False):
            met.append(requests)
            return plain(requests)
        try:
            return plain(requests)
        finally:
            busy.release()

    engine.score = score  # type: ignore[method-assign]

    def load() -> Reference:
        loads.append(1)
        return Reference(engine=engine, tokenizer=FakeTokenizer())

    with ExitStack() as stack:
        urls = [stack.enter_context(host(FAULT if n == 1 else "reference")) for n in range(4)]
        targets = {f"t{n}": endpoint(url) for n, url in enumerate(urls)}
        summary = audit_all(
            make_fleet(card, tmp_path / "hosts", targets=targets), load_reference=load
        )

    assert (met, loads) == ([], [1])
    ended = [target.decision for target in summary.targets]
    assert ended == ["consistent", "inconsistent", "consistent", "consistent"]
    assert engine.loaded == "reference"


# -- a control ---------------------------------------------------------------------------------


def test_an_honest_control_changes_nothing(card: Path, tmp_path: Path) -> None:
    """But that the report names it."""
    for name, weights in (("honest", "reference"), ("faulty", FAULT)):
        with host(weights) as url, host() as trusted:
            alone = run(configure(url, card, tmp_path / name))
            fleet = make_fleet(
                card, tmp_path / f"{name}-beside", endpoint=endpoint(url), control=endpoint(trusted)
            )
            beside = audit_one(fleet)

        assert beside.control is not None
        assert beside.control.finding == "consistent"
        for key in ("decision", "summary", "findings", "noise_scale", "notes", "usage"):
            assert getattr(beside, key) == getattr(alone, key)
        page = (tmp_path / f"{name}-beside" / PAGE).read_text()
        assert f"tiny at {trusted}" in page


def test_noise_of_no_known_build_is_held_against_the_control(card: Path, tmp_path: Path) -> None:
    """Both are asked on until they are told apart, and the same command asks nothing more."""
    out, served = tmp_path / "run", FakeEngine(margin=3.5, noise={"nf4-g64": 0.5})
    served.load_variant("nf4-g64")
    with host_with("nf4-g64", served) as url, host() as trusted:
        alone = run(configure(url, card, tmp_path / "alone", top_logprobs=0))
        fleet = make_fleet(
            card, out, targets={"a": endpoint(url)}, control=endpoint(trusted),
            audit={"top_logprobs": 0},
        )  # fmt: skip
        audit_all(fleet)
        before = every_file(out)
        audit_all(fleet)
    report = decide_folder(out / "a")

    assert alone.decision == report.decision == "inconsistent"
    assert report.usage.replies > alone.usage.replies
    assert "the endpoint is noisier than its control" in report.notes[-1]
    assert every_file(out) == before


@pytest.mark.parametrize("weights", ["reference", FAULT])
@pytest.mark.parametrize("several", [False, True])
def test_beside_an_inconsistent_control_nothing_is_called_inconsistent(
    card: Path,
    tmp_path: Path,
    weights: str,
    several: bool,
) -> None:
    """Not the verdict, no finding, no page; what was excluded stays excluded."""
    out = tmp_path / "run"
    with host(weights) as url, host(FAULT) as control:
        sections: dict[str, Any] = {"endpoint": endpoint(url)}
        if several:
            sections = {"targets": {"a": endpoint(url)}}
        fleet = make_fleet(card, out, control=endpoint(control), **sections)
        summary = audit_all(fleet) if several else None
        target = out / "a" if several else out
        report = audit_one(fleet) if not several else decide_folder(target)

    assert report.control is not None
    assert report.control.finding == "inconsistent"
    assert not [f for f in report.findings if f.decision == "detected"]
    assert report.decision == ("consistent" if weights == "reference" else "inconclusive")
    if weights == FAULT:
        assert report.summary.startswith("nothing is held against the endpoint: the control, too")
        assert any("the reference or its calibration is in doubt" in note for note in report.notes)
    if summary is not None:
        assert summary.targets[0].decision == report.decision
        assert summary.targets[0].accusation is None
    written = (target / REPORT).read_bytes()
    decide_folder(target)
    assert (target / REPORT).read_bytes() == written


def test_a_control_that_was_judged_is_not_in_doubt_again(card: Path, tmp_path: Path) -> None:
    """Going on with a finished run leaves its finding in place; one that failed is tried again."""
    out, seen = tmp_path / "run", []

    def step(_name: str, _done: int, _of: int) -> None:
        seen.append(read_json(out / CONTROL_REPORT)["finding"])

    with host(FAULT) as url, host() as control:
        fleet = make_fleet(card, out, endpoint=endpoint(url), control=endpoint(control))
        audit_one(fleet)
        audit_one(fleet, show=Show(tell=lambda _line: None, step=step))
        again, seen = seen, []
        write_json(out / CONTROL_REPORT, read_json(out / CONTROL_REPORT) | {"finding": "failed"})
        audit_one(fleet, show=Show(tell=lambda _line: None, step=step))

    assert set(again) == {"consistent"}
    assert set(seen) == {"pending"}
    assert read_json(out / CONTROL_REPORT)["finding"] == "consistent"


@pytest.mark.parametrize("weights", ["reference", FAULT])
def test_a_dead_control_vouches_for_nothing_and_the_verdict_stands(
    card: Path,
    tmp_path: Path,
    weights: str,
) -> None:
    """With a note that says so."""
    out = tmp_path / "run"
    with host(weights) as url:
        report = audit_one(make_fleet(card, out, endpoint=endpoint(url), control=endpoint(NOWHERE)))

    assert report.decision == ("consistent" if weights == "reference" else "inconsistent")
    assert any(
        note.startswith("the control vouches for nothing: failed: cannot reach")
        for note in report.notes
    )
    written = (out / REPORT).read_bytes()
    decide_folder(out)
    assert (out / REPORT).read_bytes() == written


def test_before_the_control_is_judged_nobody_is_accused(card: Path, tmp_path: Path) -> None:
    """A run that was killed in between says so, and the same command says what it found."""
    out = tmp_path / "run"

    with host(FAULT) as url, host() as control:
        fleet = make_fleet(card, out, endpoint=endpoint(url), control=endpoint(control))

        def step(name: str, _done: int, _of: int) -> None:
            if (out / REPORT).exists():
                decisions.add(read_json(out / REPORT)["decision"])

        decisions: set[str] = set()
        report = audit_one(fleet, show=Show(tell=lambda _line: None, step=step))
        pending = read_json(out / CONTROL_REPORT)

    assert decisions == {"inconclusive"}
    assert report.decision == "inconsistent"
    assert pending["finding"] == "consistent"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"finding": "guilty"}, "control.json: finding: "),
        ({"usage": {"requests": 1}}, "control.json: usage.replies: "),
        ({"more": 1}, "control.json: more: "),
        ({"summary": None}, "control.json: summary: "),
    ],
)
def test_a_damaged_finding_of_a_control_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    """By the key; no verdict is given without it."""
    write_folder(tmp_path / "run", scale=0.8, count=14)
    good = {
        "base_url": NOWHERE, "model": "m", "finding": "failed", "summary": "dead", "usage": None,
    }  # fmt: skip
    write_json(tmp_path / "run" / CONTROL_REPORT, good)
    assert decide_folder(tmp_path / "run").decision == "inconsistent"
    write_json(tmp_path / "run" / CONTROL_REPORT, good | changes)
    with pytest.raises(ConfigError) as refused:
        decide_folder(tmp_path / "run")

    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_samples_show_holds_whatever_the_control_says() -> None:
    """It needs no reference; a departure does."""
    control = Control(
        base_url=NOWHERE, model="m", finding="inconsistent", summary="it differs", usage=None
    )
    case = case_of(make_plan(), Ledger(rows=()))
    detected = plain_finding("detected")
    report = replace(
        make_report("inconsistent"),
        findings=(
            detected, replace(detected, aspect="samples"), replace(detected, aspect="template"),
            plain_finding("excluded"),
        ),
    )  # fmt: skip
    beside = judge_beside(report, control, case)

    assert [(f.aspect, f.decision) for f in beside.findings] == [
        ("noise", "undecided"), ("samples", "detected"), ("noise", "excluded"),
    ]  # fmt: skip
    assert beside.decision == "inconclusive"


def test_a_target_that_cannot_be_asked_is_the_operators(card: Path, tmp_path: Path) -> None:
    """Whatever its control says."""
    with host() as control, pytest.raises(EndpointError, match="cannot reach"):
        audit_one(
            make_fleet(
                card, tmp_path / "run", endpoint=endpoint(NOWHERE), control=endpoint(control)
            )
        )


def spans(run_: Path) -> list[tuple[datetime, datetime]]:
    """When each attempt was under way, to the millisecond."""
    found = []
    for attempt in read_attempts(run_):
        begun = datetime.fromisoformat(attempt.started_at)
        found.append((begun, begun + timedelta(seconds=attempt.elapsed_s, milliseconds=1)))
    return found


def test_the_control_is_asked_the_same_at_the_same_time(card: Path, tmp_path: Path) -> None:
    """Each of the two hosts answers a question only when the other has been asked it, too."""
    out, both = tmp_path / "run", threading.Barrier(2, timeout=20)

    def script(_asked: Asked) -> Any:
        both.wait()
        return chat("the model says more or less now")

    with FakeHost(script) as one, FakeHost(script) as two:
        fleet = make_fleet(
            card, out, endpoint=endpoint(one.url, concurrency=1),
            control=endpoint(two.url, concurrency=1), audit={"seed": None, "top_logprobs": 0},
        )  # fmt: skip
        audit_one(fleet)

    ours, theirs = read_attempts(out), read_attempts(out / CONTROL)
    assert not both.broken
    assert [attempt.request for attempt in ours] == [attempt.request for attempt in theirs]
    assert len(ours) >= 2
    for mine, other in zip(spans(out), spans(out / CONTROL), strict=True):
        assert mine[0] < other[1]
        assert other[0] < mine[1]


def in_threads(*steps: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=step) for step in steps]
    for thread in threads:
        thread.start()
    return threads


def test_the_control_is_never_ahead_and_one_target_is_enough() -> None:
    """It waits for the first target to come to a batch, and for no other."""
    together = Together(["a", "b", CONTROL])
    (waiting,) = in_threads(lambda: together.begin(CONTROL, 2))
    together.begin("a", 1)
    waiting.join(0.1)
    ahead = not waiting.is_alive()
    together.begin("a", 2)
    waiting.join(5)

    assert not ahead
    assert not waiting.is_alive()


def test_a_target_waits_for_the_control_and_no_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once the control is there, gone, or too slow; never for another target."""
    for free in (lambda t: t.begin(CONTROL, 1), lambda t: t.end(CONTROL), lambda t: t.stop()):
        together = Together(["a", "b", CONTROL])
        (waiting,) = in_threads(lambda t=together: t.begin("a", 1))  # type: ignore[misc]
        waiting.join(0.1)
        assert waiting.is_alive()
        free(together)
        waiting.join(5)
        assert not waiting.is_alive()
    monkeypatch.setattr("verifier.fleet.side_by_side.PATIENCE_S", 0.05)
    Together(["a", CONTROL]).begin("a", 1)
    Together(["a", "b"]).begin("a", 9)


def test_the_control_goes_on_alone_when_all_targets_are_done() -> None:
    """Its verdict is still wanted."""
    together = Together(["a", CONTROL])
    together.end("a")
    together.begin(CONTROL, 40)


def test_nobody_waits_beyond_the_deadline() -> None:
    """Neither the control for a target, nor a target for the control."""
    together = Together(["a", CONTROL], ends_at=time.monotonic() + 0.2)
    begun = time.monotonic()
    together.begin(CONTROL, 5)
    together.begin("a", 6)

    assert 0.1 < time.monotonic() - begun < 10


def test_a_target_that_another_process_works_in_is_left_alone(
    card: Path,
    tmp_path: Path,
) -> None:
    """Before anything is asked or written there."""
    with FakeHost(lambda _asked: chat()) as host:
        fleet = make_fleet(card, tmp_path / "hosts", targets={"a": endpoint(host.url)})
        start_targets(fleet)
        with (
            working_in(fleet.out / "a"),
            pytest.raises(ConfigError, match=r"another verifier .* is at work in it"),
        ):
            audit_all(fleet)

        assert host.asked == []


def test_run_files_come_back_from_their_dump(card: Path, tmp_path: Path) -> None:
    """With targets, prices of their own, and a control."""
    prices = {"prompt": 1.0, "completion": 2.0}
    fleet = make_fleet(
        card, tmp_path / "hosts", targets={"a": endpoint(NOWHERE, prices=prices)},
        control=endpoint(NOWHERE), prices={"prompt": 3.0, "completion": 4.0},
    )  # fmt: skip
    start_targets(fleet)
    kept = load_fleet(tmp_path / "hosts" / FLEET)

    assert kept == fleet
    assert [plan.prices.prompt for plan in map(read_plan, (kept.out / "a", kept.out / CONTROL))
            if plan.prices] == [1.0, 3.0]  # fmt: skip
    assert isinstance(kept.run_files["a"], RunFile)
    assert yaml.safe_load((kept.out / "a" / RUN).read_text())["endpoint"].get("prices") is None


# -- which accusations stand -------------------------------------------------------------------


#: A host whose evidence ends just above the 6.9 that one endpoint needs (`simulate`, seed 7).
WEAK = (0.13, 12)


def test_an_accusation_must_stand_among_all_targets(tmp_path: Path) -> None:
    """Weak evidence against one of many is said to hold for that one alone, everywhere."""
    honest = {f"h{n}": (0.05, 14) for n in range(5)}
    make_folders(tmp_path / "many", {"weak": WEAK, "clear": (0.8, 14)} | honest)
    make_folders(tmp_path / "one", {"weak": WEAK})
    many, one = summarise(tmp_path / "many"), summarise(tmp_path / "one")

    found = {target.name: target for target in many.targets}
    assert found["weak"].decision == one.targets[0].decision == "inconsistent"
    assert (
        (found["weak"].log_e or 0)
        < many.log_e_needed
        == pytest.approx(math.log(7 / 0.002), abs=1e-4)
    )
    assert found["weak"].accusation == "does not stand"
    assert found["clear"].accusation == one.targets[0].accusation == "stands"
    assert many.summary.endswith(
        "stands among them at a false-discovery rate of 0.001: clear; inconsistent alone, but not "
        "among so many: weak"
    )
    said = "this holds for the endpoint alone, but does not stand among 7 targets"
    shown = io.StringIO()
    print_summary(many, Console(file=shown, width=80))
    assert said in " ".join(shown.getvalue().split())
    assert said in render_summary(many)
    suites = JUnitXml.fromstring(
        render_junits(many, read_reports(tmp_path / "many", many)).encode()
    )
    assert [suite.name for suite in suites] == list(found)
    assert said in next(iter(suites)).tostring().decode()


def test_what_was_not_judged_is_no_evidence_but_counts_as_a_target(tmp_path: Path) -> None:
    """A failed target neither accuses nor makes it easier to accuse the others."""
    out = tmp_path / "hosts"
    make_folders(out, {"weak": WEAK, "dead": (0.8, 14), "gone": (0.8, 14)})
    write_errors(out, {"dead": "cannot reach it", "gone": "no such model"})
    summary = summarise(out)

    assert [target.decision for target in summary.targets] == ["inconsistent", None, None]
    assert [target.log_e for target in summary.targets][1:] == [None, None]
    assert summary.targets[0].accusation == "does not stand"
    assert summary.summary.startswith("3 targets: 1 inconsistent, 2 not judged")


def test_no_accusation_stands_while_the_control_is_in_doubt(tmp_path: Path) -> None:
    """Its evidence is shown and not counted."""
    out = tmp_path / "hosts"
    make_folders(out, {"a": (0.8, 14), "b": (0.05, 14)}, control=endpoint(NOWHERE))
    pending = summarise(out)
    write_folder(out / CONTROL, scale=0.8, count=14)
    doubted = summarise(out)
    write_folder(out / CONTROL, scale=0.05, count=14)
    vouched = summarise(out)

    for summary in (pending, doubted):
        assert [t.decision for t in summary.targets] == ["inconclusive", "consistent"]
        assert [t.accusation for t in summary.targets] == [None, None]
        assert (summary.targets[0].log_e or 0) > 20
        assert summary.log_e_needed == pytest.approx(math.log(2 / 0.001), abs=1e-4)
    assert [t.decision for t in vouched.targets] == ["inconsistent", "consistent"]
    assert vouched.targets[0].accusation == "stands"
    assert vouched.control is not None
    assert vouched.control.decision == "consistent"


def test_what_is_long_counts_among_several_as_it_does_alone(tmp_path: Path) -> None:
    """A cut prompt or reply is all that is wrong: its evidence is in the summary, and stands."""
    out, cut = tmp_path / "hosts", VERDICTS / "folders" / "long-is-cut"
    make_folders(out, {"a": (0.05, 14), "cut": (0.05, 1)})
    shutil.rmtree(out / "cut")
    shutil.copytree(cut, out / "cut")
    honest, found = summarise(out).targets
    report = json.loads((out / "cut" / REPORT).read_text())

    assert (honest.decision, found.decision) == ("consistent", "inconsistent")
    assert found.accusation == "stands"
    assert found.log_e is not None
    assert f"evidence log e {found.log_e:.1f}, " in report["summary"]


@pytest.mark.parametrize("count", [3, 8])
def test_accusations_that_stand_are_seldom_false(tmp_path: Path, count: int) -> None:
    """Hosts at the edge of honest serving, at a level that simulation can see."""
    trials, alpha, wrong = 60, 0.1, 0
    rng = np.random.default_rng(21)
    plan = make_plan(alpha=alpha)

    def honest(rng: np.random.Generator) -> Ledger:
        return Ledger(rows=tuple(simulate_row(rng, f"p{n}", scale=0.1) for n in range(10)))

    for _ in range(trials):
        log_e = [
            combine(case_of(plan, ledger)).log_e for ledger in (honest(rng) for _ in range(count))
        ]
        wrong += bool(e_bh(log_e, alpha))

    assert wrong <= float(binom.ppf(0.999, trials, alpha))


def test_a_strangers_folder_leads_nowhere_else(tmp_path: Path) -> None:
    """A run folder that is a link, and names that leave the folder, are refused unread."""
    out = tmp_path / "hosts"
    make_folders(out, {"a": (0.05, 14)})
    (out / "a").rename(tmp_path / "elsewhere")
    (out / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        summarise(out)
    (out / FLEET).write_text((out / FLEET).read_text().replace("  a:", "  ../elsewhere:"))
    with pytest.raises(ConfigError, match="cannot name a folder"):
        summarise(out)

    assert not (tmp_path / "elsewhere" / REPORT).exists()


# -- the command line --------------------------------------------------------------------------


def write_targets(folder: Path, **sections: Any) -> Path:
    """A run file of the tiny card; `sections` beside reference and audit."""
    path = write_run_file(folder, NOWHERE)
    content = yaml.safe_load(path.read_text())
    del content["endpoint"]
    path.write_text(yaml.safe_dump(content | sections, sort_keys=False))
    return path


def test_the_command_line_audits_targets_and_sums_them_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worst news first; JSON is the file to the byte; the rest comes from the folder."""
    with_fake_reference(monkeypatch)
    out = tmp_path / "run"
    with host() as honest, host(FAULT) as faulty, host() as trusted:
        targets = {"good": endpoint(honest), "bad": endpoint(faulty), "off": endpoint(NOWHERE)}
        path = write_targets(tmp_path, targets=targets, control=endpoint(trusted))
        planned = call("plan", path)
        ended = call("audit", path, "--json")
    said = call("summary", out, "--junit", tmp_path / "j.xml", "--markdown", tmp_path / "s.md")

    assert planned.status == 0
    assert [line for line in planned.out.splitlines() if line.startswith("==")] == [
        "== good ==", "== bad ==", "== off ==", "== control ==", "== in all ==",
    ]  # fmt: skip
    amounts = re.findall(r"at most: ([\d,]+) requests.* USD ([\d.]+)", planned.out)
    assert int(amounts[-1][0].replace(",", "")) == sum(int(n) for n, _ in amounts[:-1])
    total = sum(float(usd) for _, usd in amounts[:-1])
    assert float(amounts[-1][1]) == pytest.approx(total, abs=3e-4)  # each is rounded
    assert ended.status == said.status == 1
    assert ended.out.encode() == (out / SUMMARY).read_bytes()
    assert "not judged" in said.out
    assert "the same command" not in said.out
    xml = JUnitXml.fromstring((tmp_path / "j.xml").read_bytes())
    assert [suite.name for suite in xml] == ["good", "bad", "off"]
    assert (tmp_path / "s.md").read_text().startswith("## 3 targets: 1 inconsistent, 1 not judged")


@pytest.mark.parametrize(
    ("weights", "dead", "status"),
    [((), 1, 3), (("reference",), 0, 0), (("reference",), 1, 3), (("reference", FAULT), 0, 1)],
)
def test_the_exit_status_is_the_worst_news(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: tuple[str, ...],
    dead: int,
    status: int,
) -> None:
    """1 for any inconsistent target, else 3 for any that is not judged, else 0."""
    with_fake_reference(monkeypatch)
    with ExitStack() as stack:
        urls = [stack.enter_context(host(name)) for name in weights] + [NOWHERE] * dead
        targets = {f"t{n}": endpoint(url) for n, url in enumerate(urls)}
        ended = call("audit", write_targets(tmp_path, targets=targets))

    assert ended.status == status
    assert call("summary", tmp_path / "run").status == status


def test_a_control_may_be_named_by_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finding and what it cost are shown."""
    with_fake_reference(monkeypatch)
    with host(FAULT) as url, host(FAULT) as trusted:
        path = write_run_file(tmp_path, url)
        missing = call("audit", path, "--control", trusted)
        ended = call("audit", path, "--control", trusted, "--control-model", "tiny")
    again = call("decide", tmp_path / "run")

    assert missing.status == 2
    assert "control.model: missing" in missing.complaint
    assert ended.status == again.status == 3
    assert "INCONCLUSIVE" in ended.out
    words = " ".join(ended.out.split())
    assert "Control inconsistent: the replies differ" in words
    assert "Control spent" in words


@pytest.mark.parametrize(
    ("sections", "arguments", "complaint"),
    [
        ({}, (), "give endpoint or targets, exactly one"),
        ({"targets": {}}, (), "targets: names no endpoint"),
        ({"targets": {"a": {"model": "m"}}}, (), "targets.a.base_url: missing"),
        ({"targets": {"a": endpoint(NOWHERE), "A": endpoint(NOWHERE)}}, (), "differ in case alone"),
        ({"targets": {"Control": endpoint(NOWHERE)}}, (), "names something else in the folder"),
        ({"targets": {"summary.json": endpoint(NOWHERE)}}, (), "names something else"),
        ({"targets": {"targets.yaml.partial": endpoint(NOWHERE)}}, (), "names something else"),
        ({"targets": {"../a": endpoint(NOWHERE)}}, (), "cannot name a folder"),
        ({"targets": {".a": endpoint(NOWHERE)}}, (), "cannot name a folder"),
        ({"targets": {"a": endpoint(NOWHERE)}}, ("--model", "m"), "names several targets"),
        ({"targets": {"a": endpoint(NOWHERE, api_key_env="SOME_KEY")}}, (), "SOME_KEY is not set"),
    ],
)
def test_a_run_file_of_targets_that_cannot_be_is_refused(
    tmp_path: Path, sections: dict[str, Any], arguments: tuple[str, ...], complaint: str
) -> None:
    """In one line, before anything is written."""
    ended = call("audit", write_targets(tmp_path, **sections), *arguments)

    assert ended.status == 2
    assert complaint in ended.complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("section", ["targets", "control"])
def test_commands_of_one_endpoint_say_so(tmp_path: Path, section: str) -> None:
    """And what to give them instead."""
    sections = {
        "targets": {"targets": {"a": endpoint(NOWHERE)}},
        "control": {"endpoint": endpoint(NOWHERE), "control": endpoint(NOWHERE)},
    }
    ended = call("capabilities", write_targets(tmp_path, **sections[section]))

    assert ended.status == 2
    assert f"{section}: this command takes one endpoint" in ended.complaint


def test_steps_of_one_run_folder_do_not_take_that_of_many(tmp_path: Path) -> None:
    """They say what does."""
    make_folders(tmp_path / "hosts", {"a": (0.05, 14)})
    for command in ("decide", "report", "score", "collect"):
        ended = call(command, tmp_path / "hosts")
        assert ended.status == 2
        assert "run `verifier summary`" in ended.complaint


def test_a_folder_without_targets_has_no_summary(tmp_path: Path) -> None:
    """One line that says what makes one."""
    assert "holds no targets.yaml" in call("summary", tmp_path).complaint
