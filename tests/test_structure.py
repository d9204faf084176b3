"""The shape of the whole: layers, homes of heavy imports, start-up, help, documents, packaging."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Any

import aspects
import numpy as np
import pytest
import tree
import typer
import yaml
from longest import LONGEST
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from simulate import make_plan, simulate_row, write_scored
from source import MODULES, PACKAGE, ROOT, parsed

import verifier
from verifier import cli
from verifier.checks import ASPECTS, CHECKS
from verifier.cli import commands
from verifier.evidence.ledger import Choices, LedgerFile, Repeat, Row, SampledRow
from verifier.files import run_folder
from verifier.files.run_folder import PAGE, REPORT
from verifier.plan_file import write_plan
from verifier.records import (
    Attempt,
    Control,
    Evidence,
    Finding,
    Message,
    NoiseScale,
    Place,
    Probe,
    Report,
    Substitution,
    Usage,
)
from verifier.shipped import shipped

FOLDERS = ("probes", "reference", "configs")

#: What of them the wheel carries: results and recipes stay in the checkout.
CARRIED = ("probes", "reference/cards", "reference/packs", "configs")

#: Rows from top to bottom: a wing, or a module at the top, imports from rows below its own only.
#: Wings of one row do not know each other.
WINGS = (
    ("__main__",),
    ("cli",),
    ("schemas",),
    ("lab", "fleet"),
    ("audit",),
    ("steps",),
    ("reports",),
    ("session", "plan"),
    ("verdict",),
    ("checks",),
    ("scoring",),
    ("plan_file",),
    ("host", "reference"),
    ("evidence",),
    ("config", "report_file"),
    ("probes", "wording", "prompts"),
    ("files",),
    ("safety",),
    ("records", "errors", "progress", "shipped", "verifier"),
)

#: Packages that are slow to load or reach outside, and the modules that may import them.
HOMES = {
    "httpx": {
        "host.endpoint",
        "reference.engines.server",
        "host.event_stream",
        "lab.bench.wire",
        "lab.testbed.router",
    },
    "httpx_sse": {"host.event_stream"},
    "aiolimiter": {"host.endpoint"},
    "junitparser": {"reports.junit"},
    "h11": {"lab.testbed.proxy"},
    "torch": {
        "reference.variants",
        "reference.roundings",
        "reference.gguf_types",
        "reference.checkpoint",
        "lab.derived_models",
        "lab.restated",
        "lab.made.byte_fallback",
        "lab.made.experts",
        "lab.made.thinking",
        "lab.made.tools",
        "lab.made.training",
        "reference.engines.gguf",
        "reference.engines.load",
        "reference.engines.transformers",
        "reference.engines.vllm",
        "reference.engines.vllm_worker",
    },
    "transformers": {
        "reference.tokenizer",
        "reference.template_worker",
        "lab.derived_models",
        "lab.made.experts",
        "reference.engines.gguf",
        "reference.engines.transformers",
    },
    "safetensors": {"lab.restated", "reference.engines.transformers", "reference.pack_file"},
    "cryptography": {"reference.pack_file", "reference.signing"},
    "compressed_tensors": {"lab.restated", "reference.checkpoint"},
    "gguf": {"reference.engines.gguf", "reference.gguf_types"},
    "vllm": {"reference.engines.vllm", "reference.engines.vllm_worker"},
    "matplotlib": {"reports.noise_dial"},
    "psutil": {"lab.bench.engine", "cli.stop"},
    "scipy": {"lab.made.experts"},
    "mpmath": {"evidence.stacks"},
    "starlette": {"lab.testbed.app", "lab.testbed.router", "lab.testbed.server"},
    "uvicorn": {"lab.testbed.server"},
    "typer": {
        "cli.commands",
        "cli.common",
        "cli.init",
        "cli.lab",
        "cli.options",
        "cli.pack",
        "cli.reference",
    },
    "rich": {"reports.terminal", "reports.tables", "cli.common"},
    "jinja2": {"reports.html"},
    "yaml": {"files.strict_yaml"},
    "ruamel": {"reference.card_text"},
    "huggingface_hub": {"reference.hub"},
}


@cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names that a module imports anywhere, also inside functions and for types alone."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            inside = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (
                name if name.removeprefix("verifier.") in MODULES else node.module
                for name in inside
            )


def siblings(path: Path) -> set[str]:
    """Modules of this package that a module imports."""
    names = {name for name in imported(path) if name.split(".")[0] == "verifier"}
    return {name.removeprefix("verifier.") for name in names}


# -- layers ------------------------------------------------------------------------------------


def wing_of(name: str) -> str:
    """The wing of a module, or itself at the top."""
    return name.partition(".")[0]


def test_every_wing_has_one_place() -> None:
    """A new wing is put into a row when it is made."""
    placed = [wing for row in WINGS for wing in row]

    assert sorted(placed) == sorted({wing_of(name) for name in MODULES})


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downward(name: str) -> None:
    """Data flows one way, so imports do too."""
    depth = {wing: n for n, row in enumerate(WINGS) for wing in row}
    own = wing_of(name)
    up = {
        other
        for other in siblings(MODULES[name])
        if wing_of(other) != own and depth[wing_of(other)] <= depth[own]
    }

    assert up == set()


def test_the_top_of_the_package_can_be_overlooked() -> None:
    """What is more than a file or two is a wing."""
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 19


def test_files_import_each_other_in_no_circle() -> None:
    """Whatever their wings: each file can be read after those that it imports."""
    waiting = {name: siblings(path) & set(MODULES) for name, path in MODULES.items()}
    while ready := {name for name, others in waiting.items() if not others - {name}}:
        waiting = {n: others - ready for n, others in waiting.items() if n not in ready}

    assert waiting == {}


# -- the checks --------------------------------------------------------------------------------


def check_of(name: str) -> str | None:
    """The check that a module is of; None: it is of none, or the seam between all of them."""
    wing, *rest = name.split(".")
    return rest[0] if wing == "checks" and rest and rest[0] != "check" else None


CHECK_FILES = {name: check_of(name) for name in MODULES if check_of(name)}


def test_every_check_is_named_once() -> None:
    """As its file or folder, in the one list that all others read."""
    assert {check.name for check in CHECKS} == set(CHECK_FILES.values())
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("name", sorted(CHECK_FILES))
def test_no_check_knows_another(name: str) -> None:
    """Nor what asks, decides or shows: what it needs of others is in the case and the account."""
    others = siblings(MODULES[name])
    known = {check_of(other) for other in others} - {None, CHECK_FILES[name]}

    assert known == set()
    assert not {"session", "verdict", "reports"} & {wing_of(other) for other in others}
    assert "checks" not in others  # the list of all


def test_all_checks_are_named_in_one_place() -> None:
    """Whoever else goes through them has them from there."""
    named = {name: {check_of(o) for o in siblings(path)} for name, path in MODULES.items()}

    assert [name for name, some in named.items() if some >= set(CHECK_FILES.values())] == ["checks"]


@pytest.mark.parametrize("check", sorted(set(CHECK_FILES.values())))
def test_every_check_has_its_four_kinds_of_test(check: str) -> None:
    """In files that are named as it is, under a line for each."""
    files = sorted((ROOT / "tests" / "checks").glob(f"test_{check}*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)

    for part in ("level", "power", "known answer", "one audit"):
        assert re.search(rf"^# -- {part} -+$", text, re.MULTILINE), part


def test_an_aspect_means_the_same_in_every_check() -> None:
    """One label and one role for each name, so that a reader may look it up."""
    said = {(one.name, one.label, one.role) for check in CHECKS for one in check.aspects}

    assert said == {(one.name, one.label, one.role) for one in ASPECTS.values()}
    assert len(said) == len(ASPECTS)


def test_findings_are_about_known_aspects() -> None:
    """All that the committed run folders were found to show."""
    reports = sorted((ROOT / "tests" / "verdicts").rglob("expected-report.json"))
    found = {f["aspect"] for path in reports for f in json.loads(path.read_text())["findings"]}

    assert len(reports) >= 30
    assert found <= ASPECTS.keys()


def test_no_test_module_imports_another() -> None:
    """What they share lies in tests/support."""
    modules = {path.stem for path in (ROOT / "tests").rglob("test_*.py")} | {"conftest"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert not modules & {name.split(".")[0] for name in imported(path)}, path


# -- packages ----------------------------------------------------------------------------------


def test_the_lowest_row_needs_the_standard_library_only() -> None:
    """Values and errors can be read without anything installed."""
    for name in WINGS[-1]:
        outside = {module.split(".")[0] for module in imported(MODULES[name])}
        assert outside <= sys.stdlib_module_names


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_heavy_package_has_one_home(package: str) -> None:
    """What loads slowly or reaches outside can be found, and replaced, in one place."""
    users = {
        name
        for name, path in MODULES.items()
        if package in {imported_name.split(".")[0] for imported_name in imported(path)}
    }

    assert users <= HOMES[package]


def effects(path: Path) -> Iterator[str]:
    """Where a module prints, reads the environment or ends the process."""
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" | "SystemExit")):
                yield ast.unparse(node)
            case ast.Attribute(
                value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "_exit"
            ):
                yield ast.unparse(node)
            case ast.Attribute(value=ast.Name(id="sys"), attr="exit" | "stdout" | "stderr"):
                yield ast.unparse(node)
            case ast.ImportFrom(module="os" | "sys", names=names):
                yield from (n.name for n in names if n.name in ("environ", "getenv", "exit"))


def test_only_the_command_line_prints_exits_and_reads_the_environment() -> None:
    """Everything below its modules can be used as a library; `child` passes on a part of it."""
    found = {name: list(effects(path)) for name, path in MODULES.items()}

    assert {name for name, what in found.items() if what} == {
        "cli", "cli.common", "cli.stop", "safety.child",
    }  # fmt: skip


def test_processes_are_started_with_the_environment_of_one_place() -> None:
    """What is inherited by default holds every key of whoever typed the command."""
    for name, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id="subprocess"),
                        attr="run" | "Popen" | "call" | "check_call" | "check_output",
                    ),
                    keywords=given,
                ):
                    env = [ast.unparse(k.value) for k in given if k.arg == "env"]
                    assert env in (["plain_environment()"], ["bare_environment() | _GIVEN"]), name
                case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen" | "execv"):
                    pytest.fail(name)


def test_no_checkpoint_is_loaded_with_code_of_its_own() -> None:
    """Left out, transformers would ask on the terminal whether to run it."""
    calls = [
        (name, node)
        for name, path in MODULES.items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"
    ]

    assert len(calls) >= 5
    for name, call in calls:
        given = [ast.unparse(k.value) for k in call.keywords if k.arg == "trust_remote_code"]
        assert given == ["False"], name


#: Folders of inputs, and the one module that reads each.
HOMES_OF_INPUTS = {
    "configs": "config", "probes": "probes", "reference/cards": "reference.cards",
    "reference/packs": "lab.demo",
}  # fmt: skip


def test_each_folder_of_inputs_is_read_by_one_module() -> None:
    """`probes/` by `probes`, and so on: a reader knows where to look."""
    for folder in CARRIED:
        readers = set()
        for name, path in MODULES.items():
            for node in ast.walk(parsed(path)):
                match node:
                    case ast.Call(func=ast.Name(id="shipped"), args=[ast.Constant(value=value)]):
                        readers |= {name} if value == folder else set()
        assert readers == {HOMES_OF_INPUTS[folder]}


# -- functions ---------------------------------------------------------------------------------

#: Lines that a function may have, and branches.
MOST_LINES, MOST_BRANCHES = 60, 15

#: Tables in the form of a function: rows of one shape, to be read one by one.
TABLES = {
    "cli.options.describe",
    "cli.lab._measure",
    "reference.renderings.catalogue._faults",
}


def functions(node: ast.AST, within: str) -> Iterator[tuple[str, ast.AST]]:
    """Every function of a module or a class by its dotted name; what is inside one is of it."""
    for inner in ast.iter_child_nodes(node):
        match inner:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield f"{within}.{name}", inner
            case ast.ClassDef(name=name):
                yield from functions(inner, f"{within}.{name}")


def count_branches(function: ast.AST) -> int:
    """Places at which a reader must hold two ways in mind."""
    found = 0
    for node in ast.walk(function):
        match node:
            case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
                found += 1
            case ast.ExceptHandler():
                found += 1
            case ast.BoolOp(values=values):
                found += len(values) - 1
            case ast.comprehension(ifs=ifs):
                found += len(ifs)
            case ast.Match(cases=cases):
                found += len(cases)
    return found


def test_no_function_is_longer_than_a_reader_holds_in_mind() -> None:
    """Within a page and some branches."""
    found = {
        name
        for module, path in MODULES.items()
        for name, node in functions(parsed(path), module)
        if node.end_lineno - node.lineno >= MOST_LINES or count_branches(node) > MOST_BRANCHES
    }

    assert found == TABLES


# -- start-up ----------------------------------------------------------------------------------

WITHOUT = ("torch", "transformers", "vllm", "scipy", "huggingface_hub")

STARTED = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in WITHOUT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Missing())
import verifier
from verifier.cli import main

def run(*arguments):
    sys.argv = ["verifier", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code

statuses = [run("--help")]
loaded = [name for name in SLOW if name in sys.modules]
refused = [run("audit", "none.yaml"), run("decide", "none"), run("reference", "show", "none")]
late = [name for name in SLOW if name in sys.modules and name != "pydantic"]
statuses += [run("decide", RUN), run("report", RUN), run("bench", "out")]
print(json.dumps({"statuses": statuses, "loaded": loaded, "refused": refused, "late": late}))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A process in which heavy packages are missing ran help, decide, report and bench.

    The run folder, what the process says of itself in its last line, and its stderr.
    """
    run = tmp_path_factory.mktemp("start") / "run"
    rng = np.random.default_rng(1)
    rows = tuple(simulate_row(rng, f"p{n}", scale=0.05) for n in range(14))
    probes = tuple(
        Probe(
            id=row.probe_id, kind="code", messages=(Message(role="user", content="Hi."),),
            max_tokens=30,
        )
        for row in rows
    )  # fmt: skip
    write_plan(run, "", make_plan(), probes)
    write_scored(run, rows)
    slow = ["torch", "transformers", "matplotlib", "pydantic", "scipy", "numpy", "httpx"]
    given = f"WITHOUT = {WITHOUT!r}\nSLOW = {slow!r}\nRUN = {str(run)!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", given + STARTED],
        capture_output=True, text=True, check=True, cwd=run.parent,
    )  # fmt: skip
    return run, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_deciding_and_reporting_need_no_model_library(
    started: tuple[Path, dict[str, Any], str],
) -> None:
    """On a laptop that neither serves nor scores: both end with the verdict's status."""
    run, said, _ = started

    assert said["statuses"][:3] == [0, 0, 0]
    assert json.loads((run / REPORT).read_text())["decision"] == "consistent"
    assert (run / PAGE).exists()


def test_a_missing_package_is_named_with_what_to_do(
    started: tuple[Path, dict[str, Any], str],
) -> None:
    """One line and the status of a usage error, for a step that does need it."""
    _, said, stderr = started

    assert said["statuses"][3] == 2
    # which one depends on whether the embedded model is in the cache already
    line = r"^verifier: this step needs the package (torch|transformers); install this one with "
    line += r"its extra weights \(pip install '\.\[weights\]'\), or audit from a pack$"
    assert re.search(line, stderr, re.MULTILINE)
    assert "Traceback" not in stderr


def test_help_starts_without_anything_slow(started: tuple[Path, dict[str, Any], str]) -> None:
    """Whoever asks for help should not wait."""
    assert started[1]["loaded"] == []


def test_a_refusal_that_needs_no_model_starts_without_anything_slow(
    started: tuple[Path, dict[str, Any], str],
) -> None:
    """Nor should whoever mistypes a name; what checks run files is all that is loaded."""
    assert started[1]["refused"] == [2, 2, 2]
    assert started[1]["late"] == []


# -- help and documents ------------------------------------------------------------------------

#: Lines of the README at most: what is longer has a page of its own.
LONGEST_README = 220

#: How the names of modules begin in which checks name what they keep.
CHECKS_FROM = "verifier.checks."


def each_command(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path), command
    for name, one in (inner or {}).items():
        yield from each_command(one, (*path, name))


COMMANDS = dict(each_command(typer.main.get_command(commands.app)))


def examples(command: Any) -> list[list[str]]:
    """The words of each example in a command's help."""
    text = (command.help or "").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("verifier ")]


def test_the_commands_are_those_of_the_design() -> None:
    """So that the tests below do not pass over nothing."""
    assert set(COMMANDS) >= {
        "audit", "plan", "collect", "score", "decide", "report", "calibrate", "demo", "bench",
        "panel", "testbed list", "testbed serve", "reference list", "reference show",
        "reference pin",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_explains_a_command_and_gives_an_example(name: str) -> None:
    """Every option and argument has a word on it, and the example's options exist."""
    command = COMMANDS[name]
    options = {option for parameter in command.params for option in parameter.opts}
    shown = examples(command)

    assert len(command.help.split("\b")[0].split()) >= 5
    assert shown
    for words in shown:
        assert words[: len(name.split()) + 1] == ["verifier", *name.split()]
        assert {word for word in words if word.startswith("-")} <= options
    assert [p.name for p in command.params if not p.help] == []


def test_the_readme_names_every_command() -> None:
    """What cannot be found is not used."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert [name for name in COMMANDS if f"verifier {name}" not in readme] == []


def test_the_readme_names_the_example_run_file() -> None:
    """And it is there; an installation has it from `verifier init`."""
    assert "configs/example.yaml" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "configs" / "example.yaml").is_file()


def test_the_readme_is_short_and_has_the_commands_to_paste() -> None:
    """A page of two screens first; CI takes the line of the tests from it."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (demo,) = (line for line in lines if re.search("^python3 .*verifier demo$", line))
    (tests,) = (line for line in lines if re.search("^python3 .*pytest", line))

    assert len(lines) <= LONGEST_README
    assert lines.index(demo) < lines.index(tests)
    assert "grep -m 1 -E '^python3 .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_page_of_the_checks_shows_their_aspects() -> None:
    """As they are declared. Else: python tests/support/aspects.py."""
    page = aspects.PAGE.read_text(encoding="utf-8")

    assert page == aspects.written(page)


def test_the_page_of_the_checks_has_a_part_on_each() -> None:
    """And on none that is not there; every switch of the run file stands with one."""
    page = aspects.PAGE.read_text(encoding="utf-8")
    told = re.findall("^### (.+)$", page, re.MULTILINE)
    switches = ("capabilities", "sampler", "vary", "context", "output", "streaming", "speed")

    assert sorted(told) == sorted(check.name for check in CHECKS)
    assert [name for name in switches if f"`audit.{name}`" not in page] == []


def test_the_page_of_the_package_names_every_file_of_a_run_folder() -> None:
    """Those of the run folder itself, and those that checks keep there."""
    page = tree.PAGE.read_text(encoding="utf-8")
    modules = [run_folder, *(sys.modules[n] for n in sys.modules if n.startswith(CHECKS_FROM))]
    named = {
        value for module in modules for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
        and re.fullmatch(r"[\w.]+\.(jsonl?|yaml|html)", value)
    }  # fmt: skip
    folders = {f"{run_folder.COMPLETIONS}/", f"{run_folder.CONTROL}/", run_folder.LOCK}

    assert len(named) >= 20
    assert [name for name in sorted(named | folders) if f"`{name}`" not in page] == []


def test_the_page_of_the_package_names_every_key_that_is_written() -> None:
    """Of the report, the ledger and the exchanges."""
    page = tree.PAGE.read_text(encoding="utf-8")
    kinds = (
        Report, Finding, NoiseScale, Usage, Substitution, Control, Evidence, Place, LedgerFile,
        Row, Choices, SampledRow, Repeat, Attempt,
    )  # fmt: skip
    keys = {field.name for kind in kinds for field in fields(kind)}

    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_the_page_of_the_package_draws_the_wings() -> None:
    """Row by row, as they are held to."""
    page = tree.PAGE.read_text(encoding="utf-8")
    drawn = page.partition("<!-- begin wings -->")[2].partition("<!-- end wings -->")[0]
    rows = [tuple(line[:34].split()) for line in drawn.strip("`\n").splitlines()]
    held = [tuple(wing for wing in row if wing not in ("__main__", "verifier")) for row in WINGS]

    assert rows == [row for row in held if row]


def test_the_page_of_the_package_shows_its_tree() -> None:
    """A line for each file, from its docstring. Else: python tests/support/tree.py."""
    page = tree.PAGE.read_text(encoding="utf-8")

    assert page == tree.written(page)


def test_the_changelog_knows_this_version_or_what_comes() -> None:
    """Keep a Changelog: a heading for the version at hand, or for the unreleased."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert f"[{verifier.__version__}]" in changelog or "Unreleased" in changelog


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is(name: str) -> None:
    """A docstring first, and annotations that cost nothing at run time."""
    module = parsed(MODULES[name])

    assert ast.get_docstring(module)
    code = [node for node in module.body[1:] if not isinstance(node, ast.Expr)]
    assert (
        not code
        or name in ("verifier", "__main__")
        or (isinstance(code[0], ast.ImportFrom) and code[0].module == "__future__")
    )


# -- packaging ---------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Installed metadata, the package, and what the command line prints."""
    with pytest.raises(typer.Exit):
        commands._version(True)

    assert version("hosted-model-verifier") == verifier.__version__
    assert capsys.readouterr().out == f"verifier {verifier.__version__}\n"


def test_the_command_is_the_one_that_is_tested() -> None:
    """`verifier` on the path is `cli.main`."""
    (found,) = entry_points(group="console_scripts", name="verifier")

    assert found.load() is cli.main


def test_the_wheel_carries_the_reviewable_inputs() -> None:
    """Each folder of inputs travels to where `shipped` looks first; what was measured stays."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert wheel["force-include"] == {name: f"verifier/_shipped/{name}" for name in CARRIED}
    assert wheel["packages"] == ["verifier"]
    carried = [path.name for folder in CARRIED for path in (ROOT / folder).rglob("*")]
    assert [name for name in carried if name.endswith((".benchmark.json", ".py"))] == []


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("probes", "code.yaml"),
        ("reference/cards", "smollm2-135m-instruct.yaml"),
        ("reference/cards", "smollm2-135m-instruct.calibration.json"),
        ("reference/cards", "tokenizers.json"),
        ("configs", "policies.yaml"),
    ],
)
def test_inputs_are_found_in_a_checkout_and_in_a_wheel(
    folder: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the package, or inside it where there is such a folder."""
    in_checkout = shipped(folder)
    inside = tmp_path / "verifier" / "_shipped" / folder
    inside.mkdir(parents=True)
    monkeypatch.setattr("verifier.shipped._PACKAGE", tmp_path / "verifier")

    assert (in_checkout / file).is_file()
    assert shipped(folder) == inside


def test_nothing_names_the_machine_it_was_written_on() -> None:
    """No absolute path of a home or a workspace, no package index of someone's own."""
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "index" + "-url")
    telling = re.compile(rf"(?<![\w.])/(?:work|root|home)/\w|{'|'.join(map(re.escape, hosts))}")
    tops = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    folders = [ROOT / name for name in (*FOLDERS, "verifier", "tests", ".ci")]
    files = [*tops, *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    found = {}
    for path in files:
        if "__pycache__" not in path.parts:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found[path.name] = [line.strip()[:80] for line in lines if telling.search(line)]

    assert {name: lines for name, lines in found.items() if lines} == {}


# -- what an installation takes in -------------------------------------------------------------


def pinned(name: str) -> dict[str, str]:
    """Versions by name that a file of configs/ pins, as the index spells names."""
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", one).lower(): number for one, number in found}


def needed(names: Iterable[str], besides: set[str]) -> set[str]:
    """What these packages need where they are installed, themselves included."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found | besides or not (one.marker is None or one.marker.evaluate()):
            continue
        found.add(name)
        with suppress(PackageNotFoundError):
            told = (Requirement(line) for line in requires(name) or ())
            waiting += [r for r in told if r.marker is None or "extra" not in str(r.marker)]
    return found


def test_the_digests_cover_what_a_run_needs_in_the_versions_of_the_constraints() -> None:
    """All but PyTorch, which may come from elsewhere; with what builds the package."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    digests, constraints = pinned("hashes.txt"), pinned("constraints.txt")
    project = pyproject["project"]
    asked = (
        *project["dependencies"], *project["optional-dependencies"]["weights"],
        *pyproject["build-system"]["requires"],
    )  # fmt: skip

    assert digests.items() <= constraints.items()
    assert needed(asked, {"torch"}) <= digests.keys()
    assert not {"torch", "triton"} & digests.keys()


def test_the_bare_package_needs_no_library_of_models() -> None:
    """What computes likelihoods from weights is an extra, which all that need it take."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    heavy = {
        "torch", "transformers", "accelerate", "compressed-tensors", "gguf", "huggingface-hub",
        "scipy", "vllm",
    }  # fmt: skip
    extras = project["optional-dependencies"]

    assert not needed(project["dependencies"], set()) & heavy
    assert heavy - {"vllm"} <= needed(extras["weights"], set())
    for name in ("gpu", "cpu-vllm", "test"):
        assert "hosted-model-verifier[weights]" in extras[name]


def test_each_package_has_a_digest() -> None:
    """As pip wants them: every line pins one version, and has at least one sha256."""
    text = (ROOT / "configs" / "hashes.txt").read_text(encoding="utf-8")
    blocks = re.split(r"(?<!\\)\n", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())

    for block in blocks:
        first, *hashes = block.split(" \\\n")
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; .+)?", first)
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", one) for one in hashes)


def test_what_builds_the_package_is_pinned() -> None:
    """Constraints do not reach where pip builds."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert pyproject["build-system"]["requires"] == [
        f"hatchling=={pinned('constraints.txt')['hatchling']}"
    ]


def test_a_citation_is_of_this_version() -> None:
    """Title, version and licence as the package has them."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert cited["version"] == verifier.__version__
    assert cited["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_a_release_is_of_a_tag_and_keeps_no_password() -> None:
    """What is built cannot publish, and what publishes runs nothing of the repository."""
    path = ROOT / ".github" / "workflows" / "release.yml"
    release = yaml.safe_load(path.read_text(encoding="utf-8"))
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]

    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` so
    assert (release["permissions"], build["permissions"]) == ({}, {"contents": "read"})
    assert publish["permissions"] == {"id-token": "write"}
    assert (publish["needs"], publish["if"]) == ("build", "vars.PUBLISH == 'yes'")
    assert [step for step in publish["steps"] if "run" in step] == []
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_actions_are_named_by_their_digest() -> None:
    """A tag may be moved; beside it stands the version that it was."""
    for path in sorted((ROOT / ".github").rglob("*.yml")):
        for line in re.findall(r"uses: *(.+)", path.read_text(encoding="utf-8")):
            own = line == "OWNER/REPOSITORY/.github/actions/audit@COMMIT"
            assert own or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize("name", LONGEST)
def test_what_takes_longest_is_there(name: str) -> None:
    """A test that is named apart and renamed would go to a worker with the rest of its file."""
    path, _, test = name.partition("::")
    text = (ROOT / "tests" / path).read_text(encoding="utf-8")
    function, _, values = test.rstrip("]").partition("[")

    assert not test or f"def {function}(" in text
    assert all(value in text for value in values.split("-"))
