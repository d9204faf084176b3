"""The GitHub Action: what its script does with each verdict, with what is none, and with hostile
inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ACTION = Path(__file__).resolve().parent.parent / ".github" / "actions" / "audit"

#: Stands for the verifier: notes how it was called, and ends an audit with $STATUS once it has
#: written $REPORT and $SUMMARY, where there are any.
STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1" = audit ] || exit 0
mkdir -p "$OUT"
[ -z "$REPORT" ] || printf %s "$REPORT" > "$OUT/report.json"
[ -z "$SUMMARY" ] || printf %s "$SUMMARY" > "$OUT/summary.json"
exit "$STATUS"
"""

STATUS = {"consistent": 0, "inconsistent": 1, "inconclusive": 3}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ACTION / name).read_text(encoding="utf-8"))


def run_audit_step(
    tmp_path: Path,
    status: int,
    *,
    report: str = "",
    summary: str = "",
    run_file: str = "a.yaml",
    inconclusive: str = "fail",
    verifier: str = STAND_IN,
    **environment: str,
) -> tuple[int, str, list[str]]:
    """Run the script of the audit step: its status, its outputs, the calls of the verifier."""
    (step,) = [s for s in load("action.yml")["runs"]["steps"] if s.get("id") == "audit"]
    stand_in = tmp_path / "bin" / "verifier"
    stand_in.parent.mkdir()
    stand_in.write_text(verifier)
    stand_in.chmod(0o755)
    (stand_in.parent / "python").symlink_to(sys.executable)
    outputs, calls = tmp_path / "outputs", tmp_path / "calls"
    outputs.touch()
    calls.touch()
    given = {
        "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
        "GITHUB_ACTION_PATH": str(ACTION),
        "RUN_FILE": run_file,
        "OUT": "runs/x",
        "INCONCLUSIVE": inconclusive,
        "GITHUB_OUTPUT": str(outputs),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "CALLS": str(calls),
        "STATUS": str(status),
        "REPORT": report,
        "SUMMARY": summary,
    } | environment
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=given, cwd=tmp_path, check=False)
    return done.returncode, outputs.read_text(), calls.read_text().splitlines()


@pytest.mark.parametrize("decision", STATUS)
def test_the_job_ends_as_the_audit_did(tmp_path: Path, decision: str) -> None:
    """With the verifier's own status, the decision as an output, and a report."""
    report = json.dumps({"decision": decision})
    ended, outputs, calls = run_audit_step(tmp_path, STATUS[decision], report=report)

    assert ended == STATUS[decision]
    assert outputs == f"decision={decision}\n"
    assert calls[0] == "audit -- a.yaml"
    assert calls[1].startswith("report --junit runs/x/junit.xml")
    assert calls[1].endswith("-- runs/x")


@pytest.mark.parametrize(
    ("status", "report", "ends"),
    [
        (2, "", 2),
        (4, "", 4),
        (0, "", 4),
        (1, "", 4),
        (3, "", 4),
        (1, '{"decision": "consistent"}', 4),
        (0, '{"decision": "inconsistent"}', 4),
        (4, '{"decision": "inconsistent"}', 4),
        (1, '{"decision": ["inconsistent"]}', 4),
        (1, "[" * 5000, 4),
        (1, "{}", 4),
        (1, "null", 4),
    ],
)  # fmt: skip
def test_what_ends_without_a_verdict_is_an_error(
    tmp_path: Path, status: int, report: str, ends: int
) -> None:
    """An exit status alone is none: Python ends a broken program with 1, and help with 0."""
    ended, outputs, calls = run_audit_step(tmp_path, status, report=report)

    assert (ended, outputs, len(calls)) == (ends, "decision=error\n", 1)


@pytest.mark.parametrize("name", ["report.json", "summary.json"])
def test_an_older_verdict_is_none_of_this_run(tmp_path: Path, name: str) -> None:
    """A run folder may have been there before."""
    (tmp_path / "runs" / "x").mkdir(parents=True)
    old = {"decision": "inconsistent", "targets": [{"decision": "inconsistent"}]}
    (tmp_path / "runs" / "x" / name).write_text(json.dumps(old))
    _ended, outputs, _calls = run_audit_step(tmp_path, 1)

    assert outputs == "decision=error\n"


def test_a_python_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    """It ends with the status of a verdict before any line of the verifier is read."""
    broken = f"#!/bin/sh\nPYTHONHOME=/nonexistent exec {sys.executable} -m verifier\n"
    ended, outputs, _calls = run_audit_step(tmp_path, 1, verifier=broken)

    assert (ended, outputs) == (4, "decision=error\n")


@pytest.mark.parametrize("run_file", ["--help", "-h", "--version", "-x"])
def test_a_run_file_named_as_an_option_is_a_run_file(tmp_path: Path, run_file: str) -> None:
    """Help would end with 0, as a consistent audit does."""
    real = f'#!/bin/sh\nexec {sys.executable} -m verifier "$@"\n'
    ended, outputs, _calls = run_audit_step(
        tmp_path, 0, verifier=real, run_file=run_file, PYTHONPATH=str(ACTION.parents[2])
    )

    assert (ended, outputs) == (2, "decision=error\n")


@pytest.mark.parametrize(
    ("decisions", "status"),
    [
        (["consistent", "consistent"], 0),
        (["consistent", "inconsistent", None], 1),
        (["consistent", None], 3),
        (["inconclusive", "consistent"], 3),
    ],
)
def test_several_targets_are_summed_up(
    tmp_path: Path, decisions: list[str | None], status: int
) -> None:
    """Their folder has no report of its own; the worst news counts."""
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "targets.yaml").touch()
    summary = json.dumps({"targets": [{"decision": one} for one in decisions]})
    _ended, outputs, calls = run_audit_step(tmp_path, status, summary=summary)

    names = {number: name for name, number in STATUS.items()}
    assert outputs == f"decision={names[status]}\n"
    assert calls[1].startswith("summary --junit runs/x/junit.xml")


def test_an_inconclusive_audit_may_pass_when_asked_for(tmp_path: Path) -> None:
    """It still says that it was inconclusive."""
    ended, outputs, _calls = run_audit_step(
        tmp_path, 3, report='{"decision": "inconclusive"}', inconclusive="pass"
    )

    assert (ended, outputs) == (0, "decision=inconclusive\n")


def test_an_input_cannot_end_a_command(tmp_path: Path) -> None:
    """Inputs reach the script by variables alone."""
    hostile = '"; touch stolen; echo "$(touch stolen)'
    run_audit_step(tmp_path, 0, run_file=hostile)
    scripts = [step.get("run", "") for step in load("action.yml")["runs"]["steps"]]

    assert not (tmp_path / "stolen").exists()
    assert not any("${{" in script for script in scripts)


def test_the_example_uses_inputs_that_there_are() -> None:
    """All that are required, and no other."""
    steps = load("example-workflow.yml")["jobs"]["audit"]["steps"]
    (given,) = [step["with"] for step in steps if "actions/audit" in step["uses"]]
    inputs = load("action.yml")["inputs"]

    assert given.keys() <= inputs.keys()
    assert {name for name, one in inputs.items() if one.get("required")} <= given.keys()
