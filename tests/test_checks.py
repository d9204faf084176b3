"""Formatting, linting and types, so that the one test command holds them too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from longest import LONGEST

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]],
    ids=["format", "lint", "types"],
)
def test_the_code_passes(command: list[str]) -> None:
    """The settings are in pyproject.toml."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_that_are_run_first_are_there() -> None:
    """A file under another name would be run last, while one of two workers has nothing to do."""
    for name in LONGEST:
        file, _, test = name.partition("::")
        test = test.partition("[")[0]
        assert f"def {test}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
