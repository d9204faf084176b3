"""The GitHub Action: what its script does with each exit status, and with hostile inputs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ACTION = Path(__file__).resolve().parent.parent / ".github" / "actions" / "audit"

#: Stands for the verifier: ends an audit with $STATUS, and notes how it was called.
STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1" = audit ] && exit "$STATUS"
exit 0
"""


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ACTION / name).read_text(encoding="utf-8"))


def run_audit_step(
    tmp_path: Path, status: int, *, run_file: str = "a.yaml", inconclusive: str = "fail"
) -> tuple[int, str, list[str]]:
    """Run the script of the audit step: its status, its outputs, the calls of the verifier."""
    (step,) = [s for s in load("action.yml")["runs"]["steps"] if s.get("id") == "audit"]
    stand_in = tmp_path / "bin" / "verifier"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    outputs, calls = tmp_path / "outputs", tmp_path / "calls"
    outputs.touch()
    calls.touch()
    given = {
        "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
        "RUN_FILE": run_file,
        "OUT": "runs/x",
        "INCONCLUSIVE": inconclusive,
        "GITHUB_OUTPUT": str(outputs),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "CALLS": str(calls),
        "STATUS": str(status),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=given, cwd=tmp_path, check=False)
    return done.returncode, outputs.read_text(), calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("status", "decision", "reported"),
    [(0, "consistent", True), (1, "inconsistent", True), (3, "inconclusive", True),
     (2, "error", False), (4, "error", False)],
)  # fmt: skip
def test_the_job_ends_as_the_audit_did(
    tmp_path: Path, status: int, decision: str, reported: bool
) -> None:
    """With the verifier's own status, the decision as an output, and a report if there is one."""
    ended, outputs, calls = run_audit_step(tmp_path, status)

    assert ended == status
    assert outputs == f"decision={decision}\n"
    assert (len(calls) == 2) is reported


def test_several_targets_are_summed_up(tmp_path: Path) -> None:
    """Their folder has no report of its own."""
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "targets.yaml").touch()
    _ended, _outputs, calls = run_audit_step(tmp_path, 1)

    assert calls[1].startswith("summary runs/x --junit")


def test_an_inconclusive_audit_may_pass_when_asked_for(tmp_path: Path) -> None:
    """It still says that it was inconclusive."""
    ended, outputs, _calls = run_audit_step(tmp_path, 3, inconclusive="pass")

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
