"""Several endpoints side by side, and a control: none harms another, and what is said stands."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes_engine import FakeTokenizer
from fakes_host import Asked, FakeHost, chat, error
from test_audit import (  # noqa: F401 - a fixture
    FAULT,
    QUIET,
    card,
    configure,
    host,
    load_reference,
    make_engine,
    run,
)

from verifier.audit import Reference, Show
from verifier.collect import read_attempts
from verifier.config import Fleet, RunFile, load_fleet, load_run_file
from verifier.decide import decide_folder
from verifier.errors import ConfigError, EndpointError
from verifier.fleet import audit_beside_control, audit_targets, start_targets
from verifier.folder import (
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
)
from verifier.plan import read_plan, read_probes
from verifier.records import Report, Summary
from verifier.summary import summarise

NOWHERE = "http://127.0.0.1:1/v1"  # port 1 of the loopback refuses connections


def endpoint(url: str, **changes: Any) -> dict[str, Any]:
    return {"base_url": url, "model": "tiny", "max_attempts": 1} | changes


def make_fleet(card: Path, out: Path, **sections: Any) -> Fleet:  # noqa: F811
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


def test_a_dead_target_harms_no_other(card: Path, tmp_path: Path) -> None:  # noqa: F811
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
    assert found["dead"].log_e is None
    assert found["int4"].accusation == "stands"
    assert found["int4"].best_name == FAULT
    report = read_json(out / "honest" / REPORT)
    same = ("decision", "summary", "findings", "noise_scale", "usage")
    told = json.loads((tmp_path / "alone" / REPORT).read_text())
    assert {key: report[key] for key in same} == {key: told[key] for key in same}
    assert alone.control is None
    assert not (out / "dead" / REPORT).exists()


def test_each_run_folder_is_one_of_a_single_endpoint(card: Path, tmp_path: Path) -> None:  # noqa: F811
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


def test_the_same_command_on_finished_targets_sends_nothing(card: Path, tmp_path: Path) -> None:  # noqa: F811
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


def test_the_summary_is_made_anew_from_the_folders(card: Path, tmp_path: Path) -> None:  # noqa: F811
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


def test_other_targets_in_the_same_folder_are_refused(card: Path, tmp_path: Path) -> None:  # noqa: F811
    """So are files of something else; nothing is written over."""
    out = tmp_path / "hosts"
    start_targets(make_fleet(card, out, targets={"a": endpoint(NOWHERE)}))
    with pytest.raises(ConfigError, match="holds other targets"):
        start_targets(make_fleet(card, out, targets={"b": endpoint(NOWHERE)}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="exists and holds no"):
        start_targets(make_fleet(card, tmp_path / "mine", targets={"a": endpoint(NOWHERE)}))


def test_a_target_that_cannot_be_planned_is_on_record(card: Path, tmp_path: Path) -> None:  # noqa: F811
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


def test_a_defect_is_raised_once_the_others_are_done(card: Path, tmp_path: Path) -> None:  # noqa: F811
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


def test_an_interrupt_stops_all_and_the_same_command_goes_on(card: Path, tmp_path: Path) -> None:  # noqa: F811
    """Also where a host hangs; what had arrived stays, and no probe is asked twice."""
    out, hanging = tmp_path / "hosts", threading.Event()

    def script(_asked: Asked) -> Any:
        if not hanging.is_set():
            hanging.set()
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            slow.closing.wait(20)
        return error(500)

    with host() as one, FakeHost(script) as slow:
        targets = {"a": endpoint(one, concurrency=1), "b": endpoint(slow.url, concurrency=1)}
        fleet = make_fleet(card, out, targets=targets, audit={"budget_completion_tokens": 240})
        with pytest.raises(KeyboardInterrupt):
            audit_all(fleet)
        left = [t.name for t in threading.enumerate() if t.name in targets]
        before = every_file(out)
        slow.closing.set()
        summary = audit_all(fleet)

    assert left == []
    assert not before.keys() & {SUMMARY, f"b/{EXCHANGES}"}
    asked = [attempt.probe_id for attempt in read_attempts(out / "a")]
    assert len(asked) == len(set(asked))
    kept = before.get(f"a/{EXCHANGES}", b"")
    assert (out / "a" / EXCHANGES).read_bytes().startswith(kept)
    assert [target.decision for target in summary.targets] == ["consistent", "inconclusive"]


def test_one_reference_is_never_used_by_two_at_once(card: Path, tmp_path: Path) -> None:  # noqa: F811
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


def test_an_honest_control_changes_nothing(card: Path, tmp_path: Path) -> None:  # noqa: F811
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


@pytest.mark.parametrize("weights", ["reference", FAULT])
@pytest.mark.parametrize("several", [False, True])
def test_beside_an_inconsistent_control_nothing_is_called_inconsistent(
    card: Path,  # noqa: F811
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


@pytest.mark.parametrize("weights", ["reference", FAULT])
def test_a_dead_control_vouches_for_nothing_and_the_verdict_stands(
    card: Path,  # noqa: F811
    tmp_path: Path,
    weights: str,
) -> None:
    """With a note that says so."""
    out = tmp_path / "run"
    with host(weights) as url:
        report = audit_one(
            make_fleet(card, out, endpoint=endpoint(url), control=endpoint(NOWHERE))
        )

    assert report.decision == ("consistent" if weights == "reference" else "inconsistent")
    assert any(
        note.startswith("the control vouches for nothing: failed: cannot reach")
        for note in report.notes
    )
    written = (out / REPORT).read_bytes()
    decide_folder(out)
    assert (out / REPORT).read_bytes() == written


def test_before_the_control_is_judged_nobody_is_accused(card: Path, tmp_path: Path) -> None:  # noqa: F811
    """A run that was killed in between says so, and the same command says what it found."""
    out = tmp_path / "run"

    def tell(line: str) -> None:
        if "detected" in line:
            raise KeyError(line)

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


def test_a_target_that_cannot_be_asked_is_the_operators(card: Path, tmp_path: Path) -> None:  # noqa: F811
    """Whatever its control says."""
    with host() as control, pytest.raises(EndpointError, match="cannot reach"):
        audit_one(
            make_fleet(
                card, tmp_path / "run", endpoint=endpoint(NOWHERE), control=endpoint(control)
            )
        )


def spans(run_: Path) -> list[tuple[datetime, datetime]]:
    found = []
    for attempt in read_attempts(run_):
        begun = datetime.fromisoformat(attempt.started_at)
        found.append((begun, begun + timedelta(seconds=attempt.elapsed_s)))
    return found


def test_the_control_is_asked_the_same_at_the_same_time(card: Path, tmp_path: Path) -> None:  # noqa: F811
    """The same probes in the same order, and neither is a batch ahead of the other."""
    out = tmp_path / "run"

    def slow(asked: Asked) -> Any:
        threading.Event().wait(0.05)
        return chat("the model says more or less now")

    with FakeHost(slow) as one, FakeHost(slow) as two:
        fleet = make_fleet(
            card, out, endpoint=endpoint(one.url), control=endpoint(two.url),
            audit={"seed": None, "top_logprobs": 0, "budget_completion_tokens": 240},
        )  # fmt: skip
        audit_one(fleet)

    ours, theirs = read_attempts(out), read_attempts(out / CONTROL)
    assert [a.probe_id for a in ours][:2] == [a.probe_id for a in theirs][:2]
    shared = min(len(ours), len(theirs))
    assert shared >= 1
    for mine, other in list(zip(spans(out), spans(out / CONTROL), strict=False))[:2]:
        assert mine[0] < other[1]
        assert other[0] < mine[1]


def test_run_files_come_back_from_their_dump(card: Path, tmp_path: Path) -> None:  # noqa: F811
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
