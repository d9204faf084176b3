"""Runs the attacks part by part, two at a time, and keeps the results as each part ends.

python -m tests.attacks --out results.json              every part; goes on where it was stopped
python -m tests.attacks --out results.json --quick      a small size, about two minutes
python -m tests.attacks --out results.json --part keys  that part anew
python -m tests.attacks --out results.json --part fuzz --seconds 600
python -m tests.attacks --out results.json --table      prints the rows as Markdown
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Name of each part: its module, and its function. Long ones first, so that two workers end alike.
PARTS = {
    "folders": ("folders", "attack_folders"),
    "kills": ("books", "attack_with_kills"),
    "files": ("folders", "attack_files"),
    "keys": ("keys", "attack_keys"),
    "bodies": ("bodies", "attack_bodies"),
    "wires": ("wires", "attack_wires"),
    "strangers": ("strangers", "attack_as_stranger"),
    "weights": ("weights", "attack_weights"),
    "books": ("books", "attack_books"),
    "bombs": ("bombs", "attack_with_bombs"),
    "outputs": ("shown", "attack_outputs"),
    "exits": ("shown", "attack_exits"),
    "surroundings": ("shown", "attack_surroundings"),
    "fuzz": ("fuzz", "attack_at_random"),
}
PACKAGES = (
    "hosted-model-verifier", "transformers", "torch", "tokenizers", "safetensors", "httpx",
    "httpcore", "h11", "jinja2", "PyYAML", "numpy", "pydantic", "rich", "typer", "hypothesis",
)  # fmt: skip
MOST_WORKERS = 2
LONGEST_S = 3600.0  # of one part


def main() -> int:
    asked = _arguments()
    if asked.worker:
        return _work(asked)
    results = _load(asked.out)
    if asked.table:
        _say(render_table(results))
        return 0
    code = _code()
    kept = results.setdefault("parts", {})
    done = {
        name for name, part in kept.items()
        if part["code"] == code["code"] and part["quick"] == asked.quick and not asked.again
    }  # fmt: skip
    names = asked.part or [name for name in PARTS if name not in done]
    results["machine"], results["versions"] = _machine(), _versions()
    results.setdefault("rows", [])
    with tempfile.TemporaryDirectory(prefix="attacks-") as scratch:
        _run_parts(names, asked, results, Path(scratch))
    wrong = [row for row in results["rows"] if row["held"] < row["tried"]]
    _say(render_table(results))
    for row in wrong:
        _say(
            f"\nNOT HELD  {row['part']}: {row['attack']}: {row['tried'] - row['held']} of {row['tried']}"
        )
        for example in row["examples"]:
            _say(f"    {example}")
    _say(f"\n{len(results['rows']) - len(wrong)} of {len(results['rows'])} rows held")
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "attacks" / "results.json")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the part fuzz runs")
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--again", action="store_true", help="all parts anew")
    parser.add_argument("--workers", type=int, default=MOST_WORKERS, choices=range(1, 3))
    parser.add_argument("--table", action="store_true", help="print the results as Markdown")
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def _save(path: Path, results: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    partial.replace(path)


def _run_parts(
    names: list[str], asked: argparse.Namespace, results: dict[str, Any], scratch: Path
) -> None:
    waiting, under_way = list(names), {}
    while waiting or under_way:
        while waiting and len(under_way) < asked.workers:
            name = waiting.pop(0)
            under_way[name] = (_start(name, asked, scratch), time.monotonic())
            _say(f"{name}: begun")
        time.sleep(0.2)
        for name, (process, begun) in list(under_way.items()):
            if process.poll() is None and time.monotonic() - begun < LONGEST_S:
                continue
            if process.poll() is None:
                process.kill()
                process.wait()
            del under_way[name]
            rows = _rows_of(scratch / name, name, process.returncode)
            results["rows"] = [row for row in results["rows"] if row["part"] != name] + rows
            results["rows"].sort(key=lambda row: list(PARTS).index(row["part"]))
            results["parts"][name] = _code() | {
                "quick": asked.quick, "seed": asked.seed, "seconds": round(time.monotonic() - begun, 1),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
            _save(asked.out, results)
            held = sum(row["held"] == row["tried"] for row in rows)
            _say(
                f"{name}: {held} of {len(rows)} rows held, {results['parts'][name]['seconds']:.0f} s"
            )


def _start(name: str, asked: argparse.Namespace, scratch: Path) -> subprocess.Popen[bytes]:
    """One part in a process of its own, in surroundings of its own."""
    home = scratch / name / "home"
    home.mkdir(parents=True)
    kept = {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key in kept} | {
        "HOME": str(home), "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"), "HF_HOME": str(home / "hf"),
        "TMPDIR": str(scratch / name), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'support'}",
        "TERM": "dumb", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "attacks", "--worker", name, "--scratch", str(scratch / name),
        "--seed", str(asked.seed), "--seconds", str(asked.seconds),
        *(["--quick"] if asked.quick else []),
    ]  # fmt: skip
    with (scratch / name / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def _work(asked: argparse.Namespace) -> int:
    """Run one part here; its rows go, each as it ends, to a file in the scratch folder."""
    from attacks.lab import Lab

    module, function = PARTS[asked.worker]
    lab = Lab(
        part=asked.worker, seed=asked.seed, quick=asked.quick, scratch=asked.scratch,
        seconds=asked.seconds,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for tally in getattr(import_module(f"attacks.{module}"), function)(lab):
        row = {"part": asked.worker} | asdict(tally)
        row["worst_s"] = round(row["worst_s"], 2)
        row["examples"] = [_nameless(text, asked.scratch) for text in row["examples"]]
        rows.append(row)
        _save(asked.scratch / "rows.json", {"rows": rows})
    return 0


def _rows_of(scratch: Path, name: str, status: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _load(scratch / "rows.json").get("rows", [])
    if status != 0:
        log = (scratch / "log").read_text("utf-8", "replace").strip().splitlines()[-6:]
        text = _nameless(f"ended with status {status}: {' | '.join(log)}", scratch)
        rows.append(
            {"part": name, "attack": "the script of this part ends", "tried": 1, "held": 0,
             "worst_s": 0.0, "examples": [text[-600:]], "extra": {}}
        )  # fmt: skip
    shutil.rmtree(scratch, ignore_errors=True)
    return rows


def _nameless(text: str, scratch: Path) -> str:
    """Text without the paths of this machine."""
    for path, name in (
        (scratch, "DIR"),
        (ROOT, "ROOT"),
        (sys.prefix, "PYTHON"),
        (sys.base_prefix, "PYTHON"),
    ):
        text = text.replace(str(path), name)
    return text


def render_table(results: dict[str, Any]) -> str:
    """Every row as a Markdown table."""
    lines = ["| attack | tried | held | slowest |", "|---|---|---|---|"]
    for row in results.get("rows", ()):
        slowest = f"{row['worst_s']:.1f} s" if row["worst_s"] else ""
        mark = "" if row["held"] == row["tried"] else " **not held**"
        lines.append(f"| {row['attack']} | {row['tried']:,} | {row['held']:,}{mark} | {slowest} |")
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _code() -> dict[str, str]:
    """The commit, and what stands for the package alone, with a + when its files differ from it."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return {"commit": "unknown", "code": "unknown"}

    def ask(*words: str) -> str:
        command = [git, "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = ask("status", "--porcelain", "-uno", "--", "verifier")
    return {
        "commit": ask("rev-parse", "HEAD"),
        "code": ask("rev-parse", "HEAD:verifier") + "+" * bool(changed),
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
