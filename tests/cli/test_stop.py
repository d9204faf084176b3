"""Ctrl-C and SIGTERM: an end within three seconds, true words, and no process that is left."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from audits import write_run_file
from command_line import Finished, _plain_surroundings, call, faulty
from fakes_host import Answer, FakeHost, chat, error
from stubbed import Stopped, below, started, stop, wait_for

from verifier.files.run_folder import EXCHANGES, LEDGER, RUN
from verifier.host.collect import read_attempts
from verifier.lab.demo import HOSTS, kept_port

__all__ = ["_plain_surroundings", "faulty"]  # fixtures

#: Seconds from the signal to the end, at most.
SOON_S = 3.0

GOES_ON = "verifier: stopped; the same command goes on where this one was"
AGAIN = "verifier: stopped; run the same command again"

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def check(ended: Stopped, words: str, *, status: int = 130) -> None:
    """It ended soon, with these last words, and nothing of it is left."""
    assert ended.left == []
    assert ended.seconds < SOON_S
    assert ended.status == status, ended
    assert (ended.err.splitlines() or [""])[-1] == words, ended
    assert "Traceback" not in ended.err


def slow(host: FakeHost) -> dict[str, Any]:
    host.closing.wait(60)
    return chat()


#: What a host does that is waited for.
WAITS: dict[str, Callable[[FakeHost], Answer | dict[str, Any]]] = {
    "a slow host": slow,
    "a full minute": lambda _host: error(429, "slow down", **{"Retry-After": "50"}),
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("wait", WAITS)
def test_an_audit_that_waits_is_stopped(tmp_path: Path, wait: str, number: signal.Signals) -> None:
    """For a reply, or for a limit; it goes on with the same command."""
    with FakeHost(lambda _asked: WAITS[wait](host)) as host:
        run_file = write_run_file(tmp_path, host.url, endpoint={"max_attempts": 3})
        with started("reference", "audit", run_file, cwd=tmp_path) as process:
            wait_for(lambda: host.asked, process)
            check(stop(process, number), GOES_ON)


def test_a_terminal_that_is_closed_stops_too(tmp_path: Path) -> None:
    """As SIGTERM does."""
    with FakeHost(lambda _asked: slow(host)) as host:
        run_file = write_run_file(tmp_path, host.url)
        with started("reference", "collect", tmp_path / "run", cwd=tmp_path) as process:
            assert process.wait(60) == 2
        assert call("plan", run_file, XDG_STATE_HOME=str(tmp_path)).status == 0
        with started("reference", "collect", tmp_path / "run", cwd=tmp_path) as process:
            wait_for(lambda: host.asked, process)
            check(stop(process, signal.SIGHUP), GOES_ON)


def test_audits_side_by_side_are_stopped(tmp_path: Path) -> None:
    """All of them, also while their hosts are slow."""
    with FakeHost(lambda _asked: slow(host)) as host:
        one = {"base_url": host.url, "model": "tiny"}
        run_file = write_run_file(tmp_path, host.url, top={"targets": {"a": one, "b": dict(one)}})
        with started("reference", "audit", run_file, cwd=tmp_path) as process:
            wait_for(lambda: len(host.asked) >= 2, process)
            check(stop(process, signal.SIGTERM), GOES_ON)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_audit_that_scores_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """Also in the middle of a product that hears no signal; what was asked is kept."""
    with FakeHost(lambda _asked: chat()) as host:
        run_file = write_run_file(tmp_path, host.url)
        with started("busy-reference", "audit", run_file, cwd=tmp_path) as process:
            wait_for((tmp_path / "mark").exists, process)
            check(stop(process, number), GOES_ON)
        kept = (tmp_path / "run" / EXCHANGES).read_bytes()
        ended = call("audit", run_file, XDG_STATE_HOME=str(tmp_path))

    assert ended.status in (1, 3), ended.err
    assert (tmp_path / "run" / EXCHANGES).read_bytes().startswith(kept)
    asked = [attempt.probe_id for attempt in read_attempts(tmp_path / "run")]
    assert len(asked) == len(set(asked))


def test_a_second_time_it_is_stopped_at_once(tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice means it."""
    with FakeHost(lambda _asked: chat()) as host:
        run_file = write_run_file(tmp_path, host.url)
        with started("busy-reference", "audit", run_file, cwd=tmp_path) as process:
            wait_for((tmp_path / "mark").exists, process)
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)  # two that wait together are one
            ended = stop(process, signal.SIGINT)

    check(ended, GOES_ON)
    assert ended.seconds < 1.0


def test_an_audit_begun_anew_says_how_that_one_goes_on(tmp_path: Path) -> None:
    """The same command would begin another."""
    with FakeHost(lambda _asked: slow(host)) as host:
        run_file = write_run_file(tmp_path, host.url, top={"out": str(tmp_path / "a run")})
        with started("reference", "audit", "--again", run_file, cwd=tmp_path) as process:
            wait_for(lambda: host.asked, process)
            ended = stop(process, signal.SIGTERM)
        (folder,) = tmp_path.glob("a run-*")

    check(ended, f"verifier: stopped; `verifier audit '{folder}'` goes on where this one was")


def test_capabilities_are_stopped(tmp_path: Path) -> None:
    """What was found out is kept."""
    with FakeHost(lambda _asked: slow(host)) as host:
        run_file = write_run_file(tmp_path, host.url)
        with started("reference", "capabilities", run_file, cwd=tmp_path) as process:
            wait_for(lambda: host.asked, process)
            check(stop(process, signal.SIGTERM), GOES_ON)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_demo_is_stopped_with_its_host(tmp_path: Path, number: signal.Signals) -> None:
    """While the host is in the middle of a product; only the command itself is told."""
    with started("reference,busy-children", "demo", cwd=tmp_path) as process:
        wait_for((tmp_path / "mark").exists, process)
        assert below(process.pid)
        check(stop(process, number), GOES_ON)


def test_a_benchmark_is_stopped_with_its_host(tmp_path: Path) -> None:
    """As the demo is."""
    arguments = ("bench", tmp_path / "bench", "--part", "tricks", "--audits", "1")
    with started("reference,busy-children", *arguments, cwd=tmp_path) as process:
        wait_for((tmp_path / "mark").exists, process)
        assert below(process.pid)
        check(stop(process, signal.SIGTERM), GOES_ON)


def test_a_calibration_is_stopped(tmp_path: Path) -> None:
    """While the host in its own process is in the middle of a product."""
    arguments = ("calibrate", "smollm2-135m-instruct", "--out", tmp_path / "work")
    with started("calibration", *arguments, cwd=tmp_path) as process:
        wait_for((tmp_path / "mark").exists, process)
        check(stop(process, signal.SIGTERM), GOES_ON)


def test_a_panel_is_stopped_with_the_process_of_templates(tmp_path: Path) -> None:
    """Nothing of it is kept, and nothing else is said."""
    arguments = ("panel", "smollm2-135m-instruct", "--seed", "1")
    with started("panel", *arguments, cwd=tmp_path) as process:
        wait_for((tmp_path / "mark").exists, process)
        assert below(process.pid)
        check(stop(process, signal.SIGTERM), AGAIN)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stubs", ["host", "busy-host"])
def test_a_testbed_host_ends_well_by_being_stopped(
    tmp_path: Path, stubs: str, number: signal.Signals
) -> None:
    """Idle or in the middle of a batch: with status 0 and no word."""
    with FakeHost(lambda _asked: chat()), started(stubs, "testbed", "serve", cwd=tmp_path) as host:
        assert host.stdout is not None
        url = host.stdout.readline().split()[-1]
        if stubs == "busy-host":
            run_file = write_run_file(tmp_path, url, endpoint={"model": "smollm2-135m-instruct"})
            with started("reference", "audit", run_file, cwd=tmp_path):
                wait_for((tmp_path / "mark").exists, host)
                check(stop(host, number), "", status=0)
        else:
            check(stop(host, number), "", status=0)


@pytest.mark.slow
def test_a_demo_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """What is on disk is not asked again; what is finished asks nobody, and loads nothing."""
    folders = [tmp_path / "runs" / "demo" / name for name in HOSTS]
    with started("reference,children", "demo", cwd=tmp_path) as process:
        wait_for((folders[1] / EXCHANGES).exists, process)
        first = stop(process, signal.SIGTERM)
    kept = [(folder / EXCHANGES).read_bytes() for folder in folders]
    with started("reference,children", "demo", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=120)

    check(first, GOES_ON)
    assert process.returncode == 0, err
    assert "== the honest host ==" in out
    assert "nobody was asked: runs/demo/honest is finished" in err
    for folder, before in zip(folders, kept, strict=True):
        assert (folder / EXCHANGES).read_bytes().startswith(before)
        asked = [attempt.probe_id for attempt in read_attempts(folder)]
        assert len(asked) == len(set(asked))
    assert (folders[0] / EXCHANGES).read_bytes() == kept[0]


def test_a_demo_that_is_finished_asks_nobody(
    faulty: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And loads nothing: it shows its verdicts, and says since when they stand."""
    for name in HOSTS:
        shutil.copytree(faulty.folder, tmp_path / "runs" / "demo" / name)
    monkeypatch.setattr("verifier.reference.loaded.reference_loader", lambda *_, **__: pytest.fail)
    ended = call("demo")

    assert ended.status == 0
    assert ended.err.count("nobody was asked: runs/demo/") == 2
    assert ended.out.count("\nINCONSISTENT") == 2


def test_a_demo_asks_the_host_on_that_it_began_with(faulty: Finished, tmp_path: Path) -> None:
    """By its port, since the host is a part of the run; a new folder has none yet."""
    asked = yaml.safe_load((faulty.folder / RUN).read_text())["endpoint"]["base_url"]

    assert f":{kept_port(faulty.folder)}/" in asked
    assert kept_port(tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_the_embedded_model_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """The demo as it is, with an engine in it and one in its host."""
    with started("", "demo", cwd=tmp_path) as process:
        wait_for((tmp_path / "runs" / "demo" / "honest" / LEDGER).exists, process, within_s=300)
        assert below(process.pid)
        check(stop(process, number), GOES_ON)
