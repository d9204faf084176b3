"""Whatever prints a table, or a list of lines, prints JSON on request: no command can forget it."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from command_line import Finished, _plain_surroundings, call, faulty

from verifier.checks.template import panel as template_panel
from verifier.checks.template.panel_design import Panel
from verifier.cli import commands, lab
from verifier.files.run_folder import REPORT, write_json
from verifier.lab import demo
from verifier.records import Message, Probe
from verifier.report_file import read_report

__all__ = ["_plain_surroundings", "faulty"]  # fixtures

#: Commands that end with one line, and why that is no table.
ONE_LINE = {
    "init": "the file that was written",
    "collect": "how many probes have an outcome",
    "score": "where the ledger is",
    "pack check": "whether it is whole",
    "testbed serve": "where it serves",
    "testbed route": "where it routes",
}


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(words), command
    for name, one in (inner or {}).items():
        yield from leaves(one, (*words, name))


LEAVES = dict(leaves(typer.main.get_command(commands.app)))


def test_every_command_that_prints_more_than_a_line_has_json() -> None:
    """By the whole tree of commands."""
    without = {
        name for name, command in LEAVES.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }  # fmt: skip

    assert without == ONE_LINE.keys()


@pytest.mark.parametrize("name", ONE_LINE)
def test_a_command_without_json_says_one_line(name: str) -> None:
    """It shows no table, and says nothing in a loop."""
    function = inspect.unwrap(LEAVES[name].callback)
    tree = ast.parse(inspect.getsource(function))
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [ast.unparse(node.func) for node in called]
    looped = {
        ast.unparse(inner.func)
        for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)
        for inner in ast.walk(node) if isinstance(inner, ast.Call)
    }  # fmt: skip

    assert names.count("say") == 1
    assert "say" not in looped
    assert not [one for one in names if one.startswith(("print", "show_"))]


def test_a_panel_is_printed_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as its lines say, and nothing else on stdout."""
    probe = Probe(
        id="panel-1", kind="panel", messages=(Message(role="user", content="hi"),), max_tokens=4
    )
    made = Panel(
        probes=(probe,), names=("reference", "a", "b"),
        lengths=np.array([[7.0], [7.0], [float("nan")]]), differing=np.zeros((3, 3), np.int64),
    )  # fmt: skip
    monkeypatch.setattr(template_panel, "design_card_panel", lambda *_given, **_named: made)
    lines = call("panel", "smollm2-135m-instruct", "--seed", "7")
    ended = call("panel", "smollm2-135m-instruct", "--seed", "7", "--json")
    found = json.loads(ended.out)

    assert (lines.status, ended.status) == (0, 0)
    assert found["renderings"] == ["reference", "a", "b"]
    assert found["probes"] == [
        {"id": "panel-1", "roles": ["user"], "prompt_tokens": 7, "counts": [7]}
    ]
    assert lines.out.splitlines()[0].startswith("panel-1: 7 tokens as published, 1 different")
    assert f"tell {3 - len(found['confused'])} of 3 pairs" in lines.out
    assert {"pair": ["reference", "a"], "same_prompts": True} in found["confused"]
    assert "  reference, a (the same prompts)" in lines.out.splitlines()


def test_a_benchmark_is_printed_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in the file of results; what else is said goes to stderr."""
    path = tmp_path / "part.benchmark.json"
    write_json(path, {"schema_version": 1, "hosts": [1, 2]})

    def measured(*_given: object, **_named: object) -> object:
        return path, lambda results: f"a table of {len(results['hosts'])}"

    monkeypatch.setattr(lab, "_measure", measured)
    shown = call("bench", tmp_path, "--part", "wire")
    ended = call("bench", tmp_path, "--part", "wire", "--json")

    assert shown.out.splitlines()[:2] == ["a table of 2", f"results: {path}"]
    assert (ended.status, json.loads(ended.out)) == (0, {"schema_version": 1, "hosts": [1, 2]})
    assert f"results: {path}" in ended.err


def test_the_demo_is_printed_as_json(
    monkeypatch: pytest.MonkeyPatch, faulty: Finished, tmp_path: Path
) -> None:
    """Each host with its fault, its run folder and its report."""
    found = read_report(faulty.folder)
    monkeypatch.setattr(demo, "run_demo", lambda *_given, **_named: iter([("int4", "x", found)]))
    ended = call("demo", "--out", tmp_path / "demo", "--json")

    assert (ended.status, json.loads(ended.out)) == (0, [{
        "host": "int4", "fault": "x", "run_folder": str(tmp_path / "demo" / "int4"),
        "report": json.loads((faulty.folder / REPORT).read_text()),
    }])  # fmt: skip
