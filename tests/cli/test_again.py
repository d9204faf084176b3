"""Whose verdict from when: a finished audit says that nobody was asked, and how to ask anew."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from audits import FAULT, NOWHERE, host, load_reference, write_run_file
from command_line import Finished, _plain_surroundings, call, faulty, honest, write_nowhere

from verifier.files.finished import finished_with
from verifier.files.run_folder import (
    EXCHANGES,
    FINISHED,
    FLEET,
    PAGE,
    PLAN,
    REPORT,
    RUN,
    SUMMARY,
    write_json,
)
from verifier.reference.loaded import Reference

__all__ = ["_plain_surroundings", "faulty", "honest"]  # fixtures

MOMENT = datetime(2026, 11, 29, 22, 30, 5, tzinfo=UTC)
STAMP = "2026-11-29T223005Z"


@pytest.fixture
def at_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is always the same second."""
    monkeypatch.setattr("verifier.cli.commands.now", lambda: MOMENT)


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference cannot be loaded."""

    def load() -> NoReturn:
        raise AssertionError("the reference was loaded")

    monkeypatch.setattr(
        "verifier.reference.loaded.reference_loader", lambda _config, **_where: load
    )


def reference_loader_that(loaded: list[object]) -> Any:
    """Loads the tiny model, and says so."""

    def load() -> Reference:
        loaded.append(None)
        return load_reference()

    return lambda _config, **_where: load


def asked_last(run: Path) -> str:
    told = [json.loads(line)["started_at"] for line in (run / EXCHANGES).read_text().splitlines()]
    return max(told)[:19].replace("T", " ")


@pytest.mark.usefixtures("without_weights")
def test_a_finished_audit_says_first_that_nobody_was_asked(honest: Finished) -> None:
    """When its replies were asked, and what to type; no weights are loaded, no host is needed."""
    before = (honest.folder / REPORT).read_bytes()
    ended = call("audit", honest.run_file)
    first, *rest = ended.out.splitlines()

    assert ended.status == 0
    assert first == (
        f"nobody was asked: {honest.folder} is finished, its last question asked on "
        f"{asked_last(honest.folder)} UTC; add --again to audit anew, in a folder beside it"
    )
    assert any(line.startswith("CONSISTENT ") for line in rest)
    assert (honest.folder / REPORT).read_bytes() == before


@pytest.mark.usefixtures("without_weights")
def test_beside_json_the_word_is_on_stderr(faulty: Finished) -> None:
    """Stdout is the report to the byte, and the status that of the verdict."""
    ended = call("audit", faulty.run_file, "--json")

    assert ended.status == 1
    assert ended.out.encode() == (faulty.folder / REPORT).read_bytes()
    assert ended.err.startswith("nobody was asked: ")
    assert ended.err.count("\n") == 1


def test_an_audit_that_asks_says_nothing_of_it(honest: Finished) -> None:
    """Its replies are of today."""
    assert "nobody was asked" not in honest.ended.out + honest.ended.err


@pytest.mark.usefixtures("without_weights")
def test_a_run_folder_stands_for_its_run_file(honest: Finished, tmp_path: Path) -> None:
    """Wherever it lies by now."""
    moved = honest.copied(tmp_path)
    ended = call("audit", moved, "--trust")

    assert ended.status == 0
    assert ended.out.startswith(f"nobody was asked: {moved} is finished")


def test_a_folder_that_is_no_run_folder_is_no_run_file(tmp_path: Path) -> None:
    """One line."""
    assert call("audit", tmp_path).complaint == f"{tmp_path}: is not a run file"


@pytest.mark.usefixtures("at_the_moment")
def test_again_asks_anew_in_a_folder_named_after_the_moment(tmp_path: Path) -> None:
    """Beside the first, which stays as it is; a stamp is not stamped again."""
    with host() as url:
        run_file = write_run_file(tmp_path, url, budget_completion_tokens=1200)
        first = call("audit", run_file)
        before = (tmp_path / "run" / EXCHANGES).read_bytes()
        again = call("audit", run_file, "--again")
        dated = tmp_path / f"run-{STAMP}"
        once_more = call("audit", dated, "--again")

    assert (first.status, again.status) == (0, 0)
    assert "nobody was asked" not in again.out
    assert (tmp_path / "run" / EXCHANGES).read_bytes() == before
    assert (dated / EXCHANGES).stat().st_size > 0
    assert json.loads((dated / PLAN).read_text())["seed"] == 5
    assert once_more.complaint == f"{dated}: exists; run the same command again"


def test_a_verdict_on_other_evidence_is_not_finished(honest: Finished, tmp_path: Path) -> None:
    """More was asked since, or scored anew to something else."""
    run = honest.copied(tmp_path)

    assert finished_with(run) == "consistent"
    with (run / EXCHANGES).open("ab") as file:
        file.write(b"{}\n")
    assert finished_with(run) is None


def test_a_report_of_an_older_version_is_dated_by_its_exchanges(
    honest: Finished, tmp_path: Path
) -> None:
    """It does not say when it was asked, and its folder does."""
    run = honest.copied(tmp_path)
    report = json.loads((run / REPORT).read_text())
    asked = report.pop("asked")
    write_json(run / REPORT, report)
    shown = call("report", run, "--json")

    assert json.loads(shown.out)["asked"] == asked
    assert asked["last"][:19].replace("T", " ") == asked_last(run)
    assert asked_last(run) in (run / PAGE).read_text()


def test_what_is_decided_otherwise_by_now_goes_on(honest: Finished, tmp_path: Path) -> None:
    """As where another version decides it: the weights are loaded again."""
    run = honest.copied(tmp_path)
    note = json.loads((run / FINISHED).read_text())
    write_json(run / FINISHED, note | {"decision": "inconclusive"})
    loaded: list[object] = []
    with pytest.MonkeyPatch.context() as patched:
        loader = reference_loader_that(loaded)
        patched.setattr("verifier.reference.loaded.reference_loader", loader)
        ended = call("audit", run, "--trust")

    assert (ended.status, len(loaded)) == (0, 1)
    assert finished_with(run) == "consistent"


def test_a_folder_of_an_older_version_says_so_too(honest: Finished, tmp_path: Path) -> None:
    """It has no note of its end: the weights are loaded, and then nobody is asked."""
    run = honest.copied(tmp_path)
    (run / FINISHED).unlink()
    ended = call("audit", run, "--trust")

    assert ended.status == 0
    assert ended.out.startswith(f"nobody was asked: {run} is finished")
    assert finished_with(run) == "consistent"


def test_an_audit_whose_host_is_dead_is_not_finished(tmp_path: Path) -> None:
    """The same command asks again, so that nothing is repeated as if it were a finding."""
    run_file = write_run_file(tmp_path, NOWHERE)

    assert call("audit", run_file).status == 2
    assert finished_with(tmp_path / "run") is None


@pytest.mark.usefixtures("at_the_moment")
def test_several_targets_are_repeated_and_asked_again_likewise(tmp_path: Path) -> None:
    """One line for all; anew all of them in a folder of their own, with probes of their own."""
    with host() as one, host(FAULT) as other:
        targets = {
            name: {"base_url": url, "model": "tiny", "max_attempts": 1}
            for name, url in (("one", one), ("other", other))
        }
        run_file = write_run_file(
            tmp_path, NOWHERE, budget_completion_tokens=1200, seed=None, top={"targets": targets}
        )
        first = call("audit", run_file)
        repeated = call("audit", run_file)
        again = call("audit", tmp_path / "run", "--again")
    out, dated = tmp_path / "run", tmp_path / f"run-{STAMP}"
    seeds = [yaml.safe_load((run / FLEET).read_text())["audit"]["seed"] for run in (out, dated)]
    summary = json.loads((out / SUMMARY).read_text())

    assert (first.status, repeated.status, again.status) == (1, 1, 1)
    assert repeated.out.startswith(f"nobody was asked: {out} is finished, its last ")
    assert "nobody" not in first.out + again.out
    assert seeds[0] != seeds[1]
    assert all(target["asked"]["first"] for target in summary["targets"])
    assert re.search(r"asked \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", " ".join(first.out.split()))


def test_a_target_that_is_not_asked_anew_is_named(tmp_path: Path) -> None:
    """The others are asked, so that nobody takes the table for one of today."""
    with host() as one:
        targets = {
            name: {"base_url": url, "model": "tiny", "max_attempts": 1}
            for name, url in (("one", one), ("dead", NOWHERE))
        }
        run_file = write_run_file(
            tmp_path, NOWHERE, budget_completion_tokens=1200, top={"targets": targets}
        )
        first, again = call("audit", run_file), call("audit", run_file)

    assert (first.status, again.status) == (3, 3)
    assert "not asked anew" not in first.out
    assert again.out.startswith(f"not asked anew: one: {tmp_path / 'run'} is finished")


def test_a_folder_without_a_name_has_none_beside_it(tmp_path: Path) -> None:
    """One line."""
    ended = call("audit", write_run_file(tmp_path, NOWHERE), "--out", ".", "--again")

    assert ended.complaint == ".: --again makes a folder beside it; give an --out by name"


def test_the_page_is_named_below_the_verdict(honest: Finished) -> None:
    """To be opened."""
    assert f"page: {honest.folder / PAGE}" in call("report", honest.folder).out


def test_beside_a_control_it_goes_on_from_its_folder(tmp_path: Path) -> None:
    """The control's own run file lies in its own folder."""
    with host() as url:
        control = {"base_url": url, "model": "tiny", "max_attempts": 1}
        run_file = write_run_file(
            tmp_path, url, budget_completion_tokens=1200, top={"control": control}
        )
        first = call("audit", run_file)
        again = call("audit", tmp_path / "run")

    assert (first.status, again.status) == (0, 0)
    assert (tmp_path / "run" / "control" / RUN).exists()
    assert again.out.startswith("nobody was asked: ")


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("again", [(), ("--again",)])
def test_where_nobody_can_write_is_one_line(
    honest: Finished, monkeypatch: pytest.MonkeyPatch, again: tuple[str, ...]
) -> None:
    """And nothing is overwritten: an audit keeps what it does."""
    write_nowhere(monkeypatch)
    ended = call("audit", honest.run_file, *again)

    assert (ended.status, ended.out) == (2, "")
    assert "Read-only file system; mend that" in ended.complaint
