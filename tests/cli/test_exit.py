"""How the process ends: 0, 1 and 3 are verdicts that were shown, whatever else goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def end(
    *words: object, shell: str = "", path: Path | None = None, options: str = ""
) -> tuple[int, str]:
    """Run the command line in a process of its own: its status, and what stderr says."""
    paths = [str(place) for place in (path, ROOT) if place is not None]
    command = f'exec "$0" {options} -m verifier "$@" {shell}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("module", "status", "said"),
    [
        ("raise RuntimeError('half of it is there')", 4, "RuntimeError: half of it is there"),
        ("raise MemoryError", 4, "MemoryError"),
        ("import sys; sys.exit(1)", 4, "SystemExit: 1"),
        ("import sys; sys.exit(0)", 4, "SystemExit: 0"),
        ("raise BaseException('a panic')", 4, "BaseException: a panic"),
        ("def (", 4, "what is installed is broken (SyntaxError"),
        ("from os import nothing_like_it", 4, "what is installed is broken (ImportError"),
        ("import not_to_be_found", 2, "this step needs the package not_to_be_found"),
        ("raise OSError(5, 'Input/output error', 'x.so')", 2, "x.so: Input/output error"),
    ],
)
@pytest.mark.parametrize("broken", ["rich", "typer"])
def test_a_broken_installation_is_no_verdict(
    tmp_path: Path, broken: str, module: str, status: int, said: str
) -> None:
    """One line, and a status of its own: Python's would be 1."""
    (tmp_path / f"{broken}.py").write_text(module)
    ended, err = end("report", tmp_path, path=tmp_path)

    assert ended == status
    assert err.startswith("verifier: ")
    assert said in err
    assert err.count("\n") == 1


def test_half_of_a_library_is_no_verdict(tmp_path: Path) -> None:
    """A package that was installed in part only."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("from numpy import _core_that_is_lost\n")
    ended, err = end("decide", tmp_path, path=tmp_path)

    assert ended == 4
    assert "ImportError" in err


@pytest.mark.parametrize("shell", ["2>/dev/full", "2>&-", "2>&- >/dev/full", "2>/dev/full <&-"])
def test_an_error_that_cannot_be_shown_keeps_its_status(tmp_path: Path, shell: str) -> None:
    """A terminal that is gone makes no verdict of it."""
    assert end("report", tmp_path / "none", shell=shell) == (2, "")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["audit", "--help"]])
@pytest.mark.parametrize(
    ("shell", "said"),
    [(">&-", "stdout is closed"), (">/dev/full", "No space left on device; mend that")],
)
def test_what_could_not_be_shown_did_not_end_well(words: list[str], shell: str, said: str) -> None:
    """No status of a verdict, and none of Python's own."""
    ended, err = end(*words, shell=shell)

    assert ended == 2
    assert err.startswith(f"verifier: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", ["-O", "-W error"])
def test_options_of_python_change_no_status(tmp_path: Path, options: str) -> None:
    """Without asserts, and with warnings as errors."""
    assert end("report", tmp_path / "none", options=options)[0] == 2
    assert end("--version", options=options)[0] == 0


def test_a_file_named_as_an_option_is_a_file(tmp_path: Path) -> None:
    """Behind `--` nothing is an option."""
    assert end("audit", "--", "--help") == (2, "verifier: --help: no such run file\n")


def test_nothing_but_the_standard_library_is_imported_before_errors_are_caught() -> None:
    """Nor is anything else of this package."""
    listed = "import sys; import verifier.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", listed], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    tops = {name.partition(".")[0] for name in done.stdout.split()}

    assert tops <= {*sys.stdlib_module_names, "__main__", "verifier"}
    assert {n for n in done.stdout.split() if n.startswith("verifier")} == {
        "verifier", "verifier.cli",
    }  # fmt: skip
