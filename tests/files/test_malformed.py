"""Run folders that a stranger has spoilt: one clear line, and no crash, whatever they hold."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from audits import CARD, NOWHERE, configure, host, run
from command_line import Ended, call
from fleets import endpoint, make_folders
from long_audits import long_host, run_long
from simulate import make_calibration

from verifier.checks.tokenizer import Counting
from verifier.errors import ConfigError
from verifier.evidence.ledger import Repeat, SampledRow
from verifier.files import run_folder as folder
from verifier.files.run_folder import write_json
from verifier.records import Control
from verifier.scoring.sampled_file import read_repeats, read_sampled
from verifier.scoring.score_file import read_scores

#: Seconds that no command may take for one folder, on a machine under load.
SLOW = 10.0


def build_folders(base: Path) -> dict[str, Path]:
    """Run folders that hold every file there may be: of one run, of long prompts, of targets."""
    card = base / "tiny.yaml"
    card.write_text(yaml.safe_dump(CARD))
    write_json(base / "tiny.calibration.json", make_calibration().model_dump(mode="json"))
    with host(template="generation-prompt-missing", shows_prompts=True) as url:
        run(configure(url, card, base / "one", capabilities=True))
    with long_host("context:1700,front") as url:
        settings = {"context": 3000, "output": 64, "budget_completion_tokens": 1600}
        run_long(configure(url, card, base / "long", **settings))
    one = base / "one"
    (one / folder.COMPLETIONS).mkdir(exist_ok=True)
    for name in (folder.PROBES, folder.EXCHANGES, folder.LEDGER, folder.SCORES):
        shutil.copy(one / name, one / folder.COMPLETIONS / name)
    counts = {"reference": (9, 8), "other": (7, 8)}
    counting = Counting(strings={"k00": "a", "k01": "b"}, counts=counts, models={"other": "theirs"})
    write_json(one / folder.COUNTED, asdict(counting))
    control = Control(
        base_url=NOWHERE, model="tiny", finding="consistent", summary="fine", usage=None
    )
    write_json(one / folder.CONTROL_REPORT, asdict(control))
    shutil.copy(one / folder.PROBES, one / folder.SAMPLED)
    row = SampledRow(probe_id="s1", tokens=3, left_out=0, cells={"plain": -2.5}, problem=None)
    folder.append_line(one / folder.SAMPLED_SCORES, asdict(row))
    again = Repeat(probe_id="s1~same", otherwise=False, came_again=True, log_p=-9.0)
    folder.append_line(one / folder.REPEATS, asdict(again))
    make_folders(base / "targets", {"a": (0.05, 14), "b": (0.8, 14)}, control=endpoint(NOWHERE))
    write_json(base / "targets" / folder.ERRORS, {"errors": {"control": "cannot be reached"}})
    for run_ in (one, base / "long"):
        assert call("decide", run_).status in (0, 1, 3)
        assert call("report", run_).status in (0, 1, 3)
    assert call("summary", base / "targets").status in (0, 1, 3)
    return {"one": one, "long": base / "long", "targets": base / "targets"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_folders(tmp_path_factory.mktemp("whole"))


def look(run_: Path, name: str) -> list[Ended]:
    """Everything that reads a file of a run folder, without a model."""
    if (run_ / folder.FLEET).exists():
        return [
            call("summary", run_, "--junit", run_ / "j.xml", "--markdown", run_ / "m.md"),
            call("summary", run_, "--json"),
        ]
    ends = [] if name == folder.REPORT else [call("decide", run_)]
    ends.append(call("report", run_, "--junit", run_ / "j.xml", "--markdown", run_ / "m.md"))
    for read in (read_scores, read_sampled, read_repeats):
        try:
            read(run_)
        except ConfigError as error:
            ends.append(Ended(status=2, out="", err=f"verifier: {error}\n"))
    return ends


def assert_no_crash(run_: Path, name: str) -> list[Ended]:
    """Each command ends with a verdict or with one line, and soon."""
    start = time.monotonic()
    ends = look(run_, name)
    for ended in ends:
        assert ended.status in (0, 1, 2, 3), ended.err
        assert "Traceback" not in ended.err
        assert ended.status != 2 or ended.complaint
    assert time.monotonic() - start < SLOW
    return ends


# -- one by one --------------------------------------------------------------------------------

Change = Callable[[Any], Any]


def put(*steps: Any) -> Change:
    """A change that sets what the last step but one leads to."""

    def change(value: Any) -> Any:
        place = value
        for step in steps[:-2]:
            place = place[step]
        place[steps[-2]] = steps[-1]
        return value

    return change


def drop(*steps: Any) -> Change:
    """A change that removes a key."""

    def change(value: Any) -> Any:
        place = value
        for step in steps[:-1]:
            place = place[step]
        del place[steps[-1]]
        return value

    return change


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


SPOILT: list[tuple[str, str, Change, str]] = [
    ("one", folder.EXCHANGES, put("dialect", ["chat"]), "dialect: input should be a valid string"),
    ("one", folder.EXCHANGES, put("dialect", {}), "dialect: input should be a valid string"),
    ("one", folder.EXCHANGES, put("dialect", "x"), "dialect: 'x', but this version reads chat"),
    ("one", folder.EXCHANGES, put("elapsed_s", 10**400), "elapsed_s: input should be a finite"),
    ("one", folder.EXCHANGES, put("elapsed_s", 1e300), "elapsed_s: input should be less than"),
    ("one", folder.EXCHANGES, put("number", -1), "number: input should be greater than or equal"),
    ("one", folder.EXCHANGES, put("headers", {"a": 1}), "headers.a: input should be a valid str"),
    ("one", folder.EXCHANGES, put("extra", 1), "extra: unknown key"),
    ("one", folder.PROBES, put("tools", "all"), "tools: input should be a list"),
    ("one", folder.PROBES, put("max_tokens", 10**30), "max_tokens: input should be less than"),
    ("one", folder.PROBES, put("settings", [["a", 1]]), "settings[0][1]"),
    ("one", folder.PLAN, put("configuration", {"a": 1e999}), "configuration: holds a number that"),
    ("one", folder.PLAN, put("configuration", {"a": 10**400}), "configuration: holds a number"),
    ("one", folder.PLAN, put("configuration", {"a": nested(900)}), "recursion limit exceeded"),
    ("one", folder.PLAN, put("calibration", "text", "honest_scale", 5.0), "is below honest_scale"),
    ("one", folder.PLAN, put("calibration", "text", "honest_scale", 1e-9), "text.honest_scale: 1"),
    ("one", folder.PLAN, put("calibration", "text", "spread", 5e-324), "spread: expected 0, or"),
    ("one", folder.PLAN, put("prices", {"prompt": 1e300, "completion": 1.0}), "prices.prompt: "),
    ("one", folder.PLAN, put("max_tokens", "12"), "max_tokens: input should be a valid integer"),
    ("one", folder.PLAN, put("seed", None), "seed: input should be a valid integer, got None"),
    ("one", folder.PROMPTS, drop("served"), "served: missing"),
    ("one", folder.PROMPTS, put("published", 3), "published: input should be a valid string"),
    ("one", folder.PROMPTS, put("name", "../../x"), "name: no rendering '../../x' is known"),
    ("one", folder.SHOWN, put("prompts", 0, "names", ["x"]), "prompts: no rendering 'x' is known"),
    ("one", folder.CAPABILITIES, put("alike", 1e300), "alike: input should be less than"),
    ("one", folder.CAPABILITIES, put("parameters", 3), "parameters: input should be a list"),
    ("one", folder.SHOWN, put("requests", 1.5), "requests: input should be a valid integer"),
    ("one", folder.COUNTED, put("counts", {}), "counts: expected one per string"),
    ("one", folder.COUNTED, put("models", {}), "models: expected one per tokenizer"),
    ("one", folder.CONTROL_REPORT, put("finding", "well"), "finding: input should be 'consistent'"),
    ("one", folder.LEDGER, put("rows", 0, "tokens", -1), "rows[0].tokens: input should be greater"),
    ("one", folder.LEDGER, drop("rows", -1, "text", "reference"), ".text.reference: missing"),
    ("one", folder.LEDGER, put("rows", 0, "rendered", {"x": 1}), ".rendered.reference: missing"),
    ("one", folder.LEDGER, put("engine", "fake"), "engine: input should be an object"),
    ("one", folder.REPORT, put("noise_scale", "honest", 1e308), "noise_scale.honest: input should"),
    ("one", folder.REPORT, put("usage", "requests", 10**30), "usage.requests: input should be le"),
    ("one", folder.REPORT, put("signature", {"a": 1e999}), "signature: holds a number that is not"),
    ("one", folder.SAMPLED_SCORES, put("cells", {"plain": "x"}), "cells.plain: input should be a"),
    ("one", folder.REPEATS, put("log_p", 1.0), "log_p: input should be less than or equal to 0"),
    ("one", folder.SCORES, put("score", "ranks", []), "score.ranks: has 0 entries, the reply"),
    ("long", folder.CONTEXT_SCORES, drop("probe_id"), "ended.probe_id: missing"),
    ("long", folder.CONTEXT_SCORES, put("end", [0.0]), "ended.end: tuple should have at least 41"),
    ("long", folder.CONTEXT_SCORES, put("end", "now"), "ended.end: input should be a list"),
    ("targets", folder.ERRORS, put("errors", ["a"]), "errors: input should be an object, got"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "name", "change", "said"), SPOILT, ids=lambda v: v if isinstance(v, str) else "-"
)
def test_a_spoilt_file_is_refused_in_one_clear_line(
    folders: dict[str, Path], tmp_path: Path, which: str, name: str, change: Change, said: str
) -> None:
    """With the file, the place in it, what was expected, and what to do."""
    out = tmp_path / "run"
    shutil.copytree(folders[which], out)
    first, _, rest = (out / name).read_text().partition("\n" if name.endswith("l") else "\0")
    spoilt = json.dumps(change(json.loads(first))).replace("Infinity", "1e999")
    (out / name).write_text(f"{spoilt}\n{rest}")

    complaints = [ended.complaint for ended in assert_no_crash(out, name) if ended.status == 2]
    assert any(c.startswith(f"{out / name}:") and said in c for c in complaints), complaints


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e6])
@pytest.mark.parametrize("key", ["honest", "estimate", "lower", "upper", "marks"])
def test_any_noise_scale_that_is_read_is_drawn(
    folders: dict[str, Path], tmp_path: Path, key: str, scale: float
) -> None:
    """An axis has two ends, whatever the report claims."""
    out = tmp_path / "run"
    shutil.copytree(folders["one"], out)
    report = json.loads((out / folder.REPORT).read_text())
    report["noise_scale"][key] = [["int8", scale], ["fp8", 1e6]] if key == "marks" else scale
    (out / folder.REPORT).write_text(json.dumps(report))

    assert call("report", out).status == 1


def test_a_file_of_millions_of_values_is_refused_at_once(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each costs a hundred times the memory of its two bytes."""
    out = tmp_path / "run"
    shutil.copytree(folders["one"], out)
    for text in ('{"a": [' + "[]," * 16_000_000 + "1]}", "{" + '"a":1,' * 300_000 + '"b":1}'):
        (out / folder.PLAN).write_text(text)
        start = time.monotonic()
        ended = call("decide", out)

        assert ended.complaint.startswith(f"{out / folder.PLAN}: more than")
        assert time.monotonic() - start < SLOW


def test_a_ledger_of_wrong_rows_is_refused_at_the_first(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Not after a complaint on each of a million."""
    out = tmp_path / "run"
    shutil.copytree(folders["one"], out)
    ledger = json.loads((out / folder.LEDGER).read_text())
    text = json.dumps(ledger | {"rows": []}).replace('"rows": []', f'"rows": [{"1," * 3_000_000}1]')
    (out / folder.LEDGER).write_text(text)
    start = time.monotonic()

    assert "rows[0]: input should be an object" in call("decide", out).complaint
    assert time.monotonic() - start < SLOW


def test_texts_may_hold_any_number_of_signs_of_json(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """What a host says is one value, however many brackets it has."""
    out = tmp_path / "run"
    shutil.copytree(folders["one"], out)
    lines = (out / folder.EXCHANGES).read_text().splitlines()
    attempt = json.loads(lines[0]) | {"probe_id": "z", "body": '[{"a\\":1,' * 600_000}
    (out / folder.EXCHANGES).write_text("\n".join([*lines, json.dumps(attempt)]) + "\n")

    assert call("decide", out).status in (0, 1, 3)


# -- at random ---------------------------------------------------------------------------------

NUMBERS = [
    0, -1, 1, 2, 10**9, 2**63, 10**18, 10**400, -(10**400), 0.5, -0.0, 1e308, -1e308, 5e-324, 1e999,
    float("nan"), 1e15, -1e12, 999999999999, 0.01,
]  # fmt: skip
TEXTS = [
    "", "x", "\x00", "\ud800", "\udcff", "\u202e\u2028", "a" * 100_000, "😀", "<script>", "../../x",
    "2024-01-01", "NaN", "-1", "\x1b[2J", "reference", "inconsistent", "@", "front@9",
]  # fmt: skip


def spoil(value: Any, rng: random.Random) -> Any:
    """A JSON value with one thing changed somewhere, as deep as it goes."""
    inner = list(value) if isinstance(value, dict) else [*range(len(value))] if isinstance(
        value, list) else []  # fmt: skip
    if inner and rng.random() < 0.8:
        key = rng.choice(inner)
        match rng.randrange(12):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice(TEXTS)] = value[key]
            case 1:
                value.extend([value[key]] * rng.choice([1, 5, 1000]))
            case _:
                value[key] = spoil(value[key], rng)
        return value
    deep = nested(rng.choice([3, 150, 300, 900]))
    wrong: list[Any] = [None, True, False, [], {}, deep, {"a": 1}, [value], {"x": value}]
    numeric = isinstance(value, int | float) and rng.random() < 0.6
    pool = NUMBERS if numeric else TEXTS if isinstance(value, str) else wrong
    return rng.choice(pool if rng.random() < 0.6 else [*NUMBERS, *TEXTS, *wrong])


def spoil_text(raw: bytes, rng: random.Random) -> bytes:
    """A file with one thing changed: a value of its JSON, or bytes anywhere."""
    kind = rng.randrange(10)
    if kind == 0:
        return raw[: rng.randrange(len(raw) + 1)]
    if kind == 1:
        at = rng.randrange(len(raw) + 1)
        junk = rng.choice([b"\xff", b"\xed\xa0\x80", b"\x00", b"{", b"]", b",", b"\n", b"9" * 5000])
        return raw[:at] + junk + raw[at + rng.randrange(3) :]
    lines = [raw] if raw.startswith(b"{\n") else raw.splitlines(keepends=True)
    if not lines:
        return b"{}\n"
    at = rng.randrange(len(lines))
    value = spoil(json.loads(lines[at]), rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).replace("Infinity", "1e999")
    lines[at] = text.encode("utf-8", "surrogatepass") + b"\n"
    return b"".join(lines)


def spoil_folders(folders: dict[str, Path], at: Path, *, seed: int, count: int) -> dict[str, int]:
    """Spoil `count` files of the folders, one at a time; how many were refused, and not."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    copies = {name: at / name for name in folders}
    for name, path in folders.items():
        shutil.copytree(path, copies[name])
    every = [
        (name, path.relative_to(copies[name]))
        for name in folders
        for path in sorted(copies[name].rglob("*.json*"))
    ]
    found = {"refused": 0, "fine": 0}
    for _ in range(count):
        name, file = rng.choice(every)
        path = copies[name] / file
        whole = path.read_bytes()
        path.write_bytes(spoilt := spoil_text(whole, rng))
        try:
            ends = assert_no_crash(copies[name], str(file))
        except BaseException as error:
            (at / "spoilt").write_bytes(spoilt)
            error.add_note(f"{name}/{file} was spoilt as in {at / 'spoilt'}")
            raise
        found["refused" if any(ended.status == 2 for ended in ends) else "fine"] += 1
        path.write_bytes(whole)
        for made in ("j.xml", "m.md"):
            (copies[name] / made).unlink(missing_ok=True)
        for written in (folder.REPORT, folder.SUMMARY):
            if (folders[name] / written).exists():
                shutil.copy(folders[name] / written, copies[name] / written)
    return found


def test_folders_spoilt_at_random_never_crash(folders: dict[str, Path], tmp_path: Path) -> None:
    """Keys dropped and added, types changed, numbers of any size, deep nesting, torn files."""
    found = spoil_folders(folders, tmp_path, seed=20, count=250)

    assert found["refused"] > 100
    assert found["fine"] > 10
