"""An installation by itself: what the wheel takes in, laid out as it would be, with no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from audits import NOWHERE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with what pyproject.toml puts into the wheel."""
    site = tmp_path_factory.mktemp("site-packages")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    caches = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=caches)
    for folder, inside in wheel["force-include"].items():
        shutil.copytree(ROOT / folder, site / inside, ignore=caches)
    return site


def run(site: Path, cwd: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """One command of the installation, in a folder that is no checkout."""
    script = "import sys; sys.path = [p for p in sys.path if p != sys.argv[1]]; del sys.argv[1]; "
    script += "from verifier.cli import main; main()"
    home = {"XDG_DATA_HOME": cwd / "data", "XDG_STATE_HOME": cwd / "state", "HOME": cwd}
    return subprocess.run(
        [sys.executable, "-P", "-c", script, str(ROOT), *map(str, words)],
        cwd=cwd, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(site)} | {k: str(v) for k, v in home.items()},
    )  # fmt: skip


def test_an_installation_works_without_a_checkout(site: Path, tmp_path: Path) -> None:
    """Help, cards, run files, plans, faults, and an endpoint that is not there."""
    described = ("--base-url", NOWHERE, "--model", "m", "--reference", "smollm2-135m-instruct")
    listed = run(site, tmp_path, "reference", "list", "--json")
    capabilities = run(site, tmp_path, "capabilities", *described, "--out", "runs/c")

    assert len(json.loads(listed.stdout)) >= 20
    for words in (
        ("--help",), ("reference", "show", "qwen3-8b"), ("init",), ("init", "t.yaml", "--targets"),
        ("plan", *described, "--out", "runs/p"), ("plan", "audit.yaml"), ("testbed", "list"),
    ):  # fmt: skip
        ended = run(site, tmp_path, *words)
        assert ended.returncode == 0, (words, ended.stderr)
    assert capabilities.returncode == 2
    assert "cannot reach 127.0.0.1:1" in capabilities.stderr


def test_an_installation_that_cannot_be_written_pins_elsewhere(site: Path, tmp_path: Path) -> None:
    """Where a card is written is the user's; every file that was installed is as it was."""
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*.yaml")}
    asked = (
        "from pathlib import Path\n"
        "from verifier.reference.cards import find_card, write_card\n"
        "from verifier.shipped import with_own_cards\n"
        "with with_own_cards(Path('own')):\n"
        "    print(write_card('qwen3-8b', find_card('qwen3-8b').read_text()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", asked], cwd=tmp_path, capture_output=True, text=True,
        check=True, env=os.environ | {"PYTHONPATH": str(site)},
    )  # fmt: skip

    assert done.stdout == "own/qwen3-8b.yaml\n"
    assert (tmp_path / "own" / "qwen3-8b.yaml").is_file()
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*.yaml")} == before
