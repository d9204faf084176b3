"""What is loaded for help and for what is mistyped: nothing that takes a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from verifier.cli import commands

ROOT = Path(__file__).resolve().parents[2]

#: Packages that take a while, and those of a model, which take seconds.
SLOW = ("numpy", "mpmath", "httpx", "matplotlib", "starlette", "uvicorn", "jinja2", "psutil")
MODELS = ("torch", "transformers", "vllm", "safetensors", "gguf", "accelerate")

#: Runs command lines one after the other; what of the packages was loaded after each.
SCRIPT = """
import json, sys
from verifier.cli import main
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["verifier", *words]
    try:
        main()
    except SystemExit as end:
        loaded = [name for name in PACKAGES if name in sys.modules]
        found.append([words, end.code, loaded])
print(json.dumps(found), file=sys.stderr)
"""


def run_all(lines: list[list[str]], packages: tuple[str, ...], *, cwd: Path) -> list[list[object]]:
    """Each command line, its status, and what of the packages was loaded by then."""
    script = f"PACKAGES = {packages!r}\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(lines)], cwd=cwd, check=True,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return list(json.loads(done.stderr.splitlines()[-1]))


def every(command: object, words: tuple[str, ...] = ()) -> list[list[str]]:
    inner = getattr(command, "commands", None) or {}
    below = [line for name, one in inner.items() for line in every(one, (*words, name))]
    return [[*words, "--help"], *below]


def test_no_help_loads_what_is_slow(tmp_path: Path) -> None:
    """By the whole tree of commands; nor does the version."""
    lines = [*every(typer.main.get_command(commands.app)), ["--version"]]

    assert run_all(lines, SLOW + MODELS, cwd=tmp_path) == [[line, 0, []] for line in lines]


#: Mistakes that are found by a name alone, and those that a run or a fault must be read for.
NAMES = [
    ["audit", "none.yaml"], ["audit", "--bugdet", "9"], ["plan", "typo.yaml"],
    ["capabilities", "none.yaml"], ["collect", "none"], ["score", "none"], ["decide", "none"],
    ["report", "none"], ["summary", "none"], ["reference", "show", "none"],
    ["calibrate", "none"], ["panel", "none", "--seed", "1"], ["init", "typo.yaml"],
    ["reference", "contribute", "none", "typo.yaml"],
]  # fmt: skip
RUNS = [
    ["audit", "run.yaml", "--api-key-env", "NOT_SET_AT_ALL"], ["demo", "--out", ".."],
    ["testbed", "serve", "--fault", "none-such"],
    ["testbed", "route", "--base-url", "x", "--route", "y"],
    ["reference", "pin", "qwen3-8b", "--weights", "none"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "packages"), [(NAMES, SLOW + MODELS), (RUNS, ("mpmath", "matplotlib", *MODELS))]
)
def test_no_mistake_is_said_after_what_is_slow(
    tmp_path: Path, lines: list[list[str]], packages: tuple[str, ...]
) -> None:
    """Who mistyped waits for no model."""
    (tmp_path / "typo.yaml").write_text("endpoint: {modle: m}\n")
    (tmp_path / "run.yaml").write_text(
        "endpoint: {base_url: 'http://127.0.0.1:1/v1', model: m}\n"
        "reference: {card: smollm2-135m-instruct}\nout: run\n"
    )

    assert run_all(lines, packages, cwd=tmp_path) == [[line, 2, []] for line in lines]
