"""Spoilt run folders, run files and cards: a verdict or one line, never a defect, never a hang."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from audits import CARD, NOWHERE, write_card, write_run_file

from attacks.bases import make_base
from attacks.lab import Lab, Tally, run, sound
from attacks.mutate import spoil, spoil_bytes, to_json, to_yaml

HANG_S = 25.0
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def spoil_file(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Spoil one file of a folder; says how."""
    raw = path.read_bytes()
    kind = rng.randrange(20)
    if kind == 0:
        path.unlink()
        return "taken away"
    if kind == 1:
        path.unlink()
        path.mkdir()
        return "a folder instead"
    if kind == 2:
        same = [other for other in others if other.name == path.name and other != path]
        if same:
            path.write_bytes(rng.choice(same).read_bytes())
        return "of another folder"
    if kind < 6:
        path.write_bytes(spoil_bytes(rng, raw))
        return "bytes spoilt"
    times = rng.choice([1, 1, 1, 2, 5])
    try:
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in raw.splitlines() if line]
            if lines and rng.random() < 0.85:
                at = rng.randrange(len(lines))
                spoilt = [to_json(spoil(rng, line, times) if n == at else line)
                          for n, line in enumerate(lines)]  # fmt: skip
            else:
                spoilt = [
                    to_json(line) for line in rng.sample(lines, rng.randrange(len(lines) + 1))
                ]
                spoilt += spoilt[:2]
            path.write_bytes(b"".join(line + b"\n" for line in spoilt))
        elif path.suffix == ".json":
            path.write_bytes(to_json(spoil(rng, json.loads(raw), times)))
        elif path.suffix == ".yaml":
            path.write_bytes(to_yaml(rng, spoil(rng, yaml.safe_load(raw), times)))
        else:
            path.write_bytes(spoil_bytes(rng, raw))
    except (ValueError, RecursionError, yaml.YAMLError):  # what was spoilt before
        path.write_bytes(spoil_bytes(rng, raw))
    return "values spoilt"


def attack_folders(lab: Lab) -> Iterator[Tally]:
    total = lab.size(6_000, 150)
    names = ("honest", "faulty", "template", "sampled", "fleet")
    bases = {name: make_base(lab, name) / "run" for name in names}
    files = [path for base in bases.values() for path in base.rglob("*") if path.is_file()]
    for name, base in bases.items():
        rng = lab.rng(name)
        step = Tally(
            attack=f"spoilt run folders ({name}): decided and reported, or refused in one line"
        )
        count = total // (len(names) * 2)
        for number in range(count):
            copy = lab.scratch / "copy"
            shutil.copytree(base, copy)
            mine = sorted(p for p in copy.rglob("*") if p.is_file() and p.suffix != ".html")
            how = []
            for _ in range(rng.choice([1, 1, 2])):
                path = rng.choice(mine)
                if path.is_file():
                    how.append(f"{path.relative_to(copy)} {spoil_file(rng, path, files)}")
            label = f"{name} {number} ({'; '.join(how)})"
            shown = ("--junit", copy / "out.xml", "--markdown", copy / "out.md")
            commands = (
                [("summary", copy, *shown), ("report", copy / "good", *shown)] if name == "fleet"
                else [("decide", copy), ("report", copy, *shown)]
            )  # fmt: skip
            for command in commands:
                ended = run(*command, seconds=HANG_S)
                step.note(f"{command[0]} {label}", sound(ended), ended.seconds)
            shutil.rmtree(copy)
        yield step


def attack_files(lab: Lab) -> Iterator[Tally]:
    yield _run_files(lab)
    yield from _cards(lab)
    yield _whole_values(lab)


def _bases_of_run_files(folder: Path) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [yaml.safe_load(write_run_file(folder, NOWHERE).read_text())]
    for path in sorted(CONFIGS.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "reference" in content:
            made.append(content | {"out": "run"})
    written_out = {
        "noise": ["4-bit-class rounding"],
        "builds": ["int4-sym-g64"],
        "routed": {"another model": 0.1},
    }
    made.append(made[0] | {"audit": made[0]["audit"] | {"policy": written_out, "budget_usd": 1.0}})
    made.append(
        {key: value for key, value in made[0].items() if key != "endpoint"}
        | {
            "targets": {"a": made[0]["endpoint"], "b": made[0]["endpoint"]},
            "control": made[0]["endpoint"],
        }
    )
    odd = {"headers": {"Content-Length": "5"}, "extra_body": {"a": [1]}, "host": "together"}
    made.append(made[0] | {"endpoint": made[0]["endpoint"] | odd})
    return made


def _run_files(lab: Lab) -> Tally:
    tally, rng = (
        Tally(attack="spoilt run files: planned, or refused in one line"),
        lab.rng("run files"),
    )
    cards = lab.folder("cards")
    bases = _bases_of_run_files(cards)
    for number in range(lab.size(2_000, 80)):
        folder = lab.scratch / "a" / "b" / "case"  # some name an `out` above their own
        folder.mkdir(parents=True)
        value = spoil(rng, rng.choice(bases), rng.choice([1, 1, 2, 3]))
        if isinstance(value, dict) and value.get("out") == str(cards / "run"):
            value["out"] = "run"
        path = folder / "file.yaml"
        path.write_bytes(to_yaml(rng, value))
        if rng.random() < 0.15:
            path.write_bytes(spoil_bytes(rng, path.read_bytes()))
        raw = path.read_bytes()
        ended = run("plan", path, seconds=HANG_S, cwd=folder)
        tally.note(f"run file {number} {raw[:300]!r}", sound(ended), ended.seconds)
        shutil.rmtree(lab.scratch / "a")
    return tally


def _cards(lab: Lab) -> Iterator[Tally]:
    rng = lab.rng("cards")
    folder = lab.folder("card")
    run_file = write_run_file(folder, NOWHERE)
    path, beside = folder / "tiny.yaml", folder / "tiny.calibration.json"
    calibration = json.loads(beside.read_text())
    full = CARD | {
        "sampling": {"temperature": 0.6}, "engine_args": {"a": 1}, "earlier_templates": {"x": "t.jinja"},
        "thinking": {"open": "<think>", "close": "</think>", "switch_off": {"enable_thinking": False}},
        "variants": [{"name": "v", "repo": "a/b", "method": "gptq"}], "architecture": {"hidden_size": 9},
        "siblings": [{"name": "s", "path": "s", "relation": "base"}], "sources": {"layers": "here"},
        "licence": {"name": "n", "hosting": "allowed"}, "unchecked": ["precision"],
    }  # fmt: skip
    for what in ("cards", "calibrations"):
        tally = Tally(attack=f"spoilt {what}: planned, shown, or refused in one line")
        for number in range(lab.size(500, 20)):
            write_card(folder)
            spoilt = path if what == "cards" else beside
            base = rng.choice([CARD, full]) if what == "cards" else calibration
            value = spoil(rng, base, rng.choice([1, 1, 2, 3]))
            spoilt.write_bytes(to_yaml(rng, value) if what == "cards" else to_json(value))
            if rng.random() < 0.15:
                spoilt.write_bytes(spoil_bytes(rng, spoilt.read_bytes()))
            for command in (("plan", run_file), ("reference", "show", path)):
                ended = run(*command, seconds=HANG_S, cwd=folder)
                label = f"{command[0]} {number} {spoilt.read_bytes()[:300]!r}"
                tally.note(label, sound(ended), ended.seconds)
            shutil.rmtree(folder / "run", ignore_errors=True)
        yield tally


def _whole_values(lab: Lab) -> Tally:
    """Fields that once ended as a defect, each spoilt by hand."""
    tally = Tally(attack="malformed fields of run folders, each named: refused in one line")
    base = make_base(lab, "honest") / "run"
    template = make_base(lab, "template") / "run"

    def change(name: str, place: tuple[Any, ...], raw: str, *, of: Path = base) -> None:
        copy = lab.scratch / "copy"
        shutil.copytree(of, copy)
        path = copy / name
        value = json.loads(
            path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text()
        )
        holder = value
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = "@here@"
        text = json.dumps(value).replace('"@here@"', raw)
        rest = path.read_text().splitlines(keepends=True)[1:] if path.suffix == ".jsonl" else []
        path.write_text("".join([text + "\n", *rest]))
        for command in ("decide", "report"):
            ended = run(command, copy, seconds=HANG_S)
            tally.note(
                f"{command} {name} {'.'.join(map(str, place))} = {raw[:40]}",
                sound(ended),
                ended.seconds,
            )
        shutil.rmtree(copy)

    deep = "[" * 900 + "]" * 900
    for raw in ("[1]", '{"a":1}', "5", "null"):
        change("exchanges.jsonl", ("dialect",), raw)
        change("exchanges.jsonl", ("headers",), raw)
    for raw in ('"text"', "5", '[["a"]]', "null"):
        change("probes.jsonl", ("tools",), raw)
        change("probes.jsonl", ("settings",), raw)
        change("probes.jsonl", ("messages",), raw)
    for raw in ("1e999", deep, "1" + "0" * 400, "-1e999"):
        change("plan.json", ("configuration", "seed"), raw)
        change("exchanges.jsonl", ("elapsed_s",), raw)
        change("exchanges.jsonl", ("number",), raw)
    for raw in ("1e308", "5e-324", "5.0", "0", "-1"):
        change("report.json", ("noise_scale", "honest"), raw)
        change("plan.json", ("calibration", "text", "honest_scale"), raw)
        change("report.json", ("noise_scale", "marks"), f'[["a", 5e-324], ["b", {raw}]]')
    for place in ("served", "published", "name", "probe_id"):
        change("prompts.json", (place,), "5", of=template)
        change("prompts.json", (place,), '["x"]', of=template)
    return tally
