"""The command line: exit status, one line per error, what is printed where, and nothing leaked."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from audits import CARD, FAULT, KEY, NOWHERE, make_engine, write_run_file
from command_line import Ended, Finished, _plain_surroundings, call, faulty, honest, write_nowhere
from fakes_engine import FakeTokenizer
from fakes_host import Answer, Asked, FakeHost, chat, error
from simulate import make_calibration

import verifier
from verifier.cli import commands
from verifier.config import load_policies
from verifier.errors import EndpointError
from verifier.evidence.calibration import NoiseClass
from verifier.files.run_folder import (
    EXCHANGES,
    FINISHED,
    LEDGER,
    PAGE,
    PLAN,
    PROBES,
    REPORT,
    RUN,
    SCORES,
    working_in,
    write_json,
)
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import GenerateRequest, Message
from verifier.reference.loaded import Reference
from verifier.reference.variants import VARIANTS

__all__ = ["_plain_surroundings", "faulty", "honest"]  # fixtures

Script = Callable[[Asked], "Answer | dict[str, Any]"]


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# -- help and usage ----------------------------------------------------------------------------


def list_commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in (getattr(command, "commands", None) or {}).items():
        yield from list_commands(inner, (*words, name))


@pytest.mark.parametrize(
    "words",
    [*list_commands(typer.main.get_command(commands.app))],
    ids=lambda w: " ".join(w) or "-",
)
def test_help_goes_to_stdout_and_is_no_error(words: tuple[str, ...]) -> None:
    """In its long and its short form, and it fits 80 columns."""
    ended = call(*words, "--help")

    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: {' '.join(('verifier', *words))} ")
    assert call(*words, "-h") == ended
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize("words", [(), ("testbed",)], ids=["verifier", "testbed"])
def test_a_missing_command_shows_the_help_and_is_no_verdict(words: tuple[str, ...]) -> None:
    """A script whose arguments got lost must not read status 0."""
    ended = call(*words)

    assert (ended.status, ended.out) == (2, "")
    assert "Commands:" in ended.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["adit"], "No such command 'adit'"),
        (["--verbose"], "No such option: --verbose"),
        (["audit", "--bugdet", "9"], "No such option: --bugdet"),
        (["audit", "a.yaml", "b.yaml"], "Got unexpected extra argument"),
        (["audit", "--alpha", "low"], "Invalid value for '--alpha'"),
        (["audit", "--seed"], "Option '--seed' requires an argument"),
        (["reference", "show"], "Missing argument 'CARD' (see `verifier reference show --help`)"),
        (["decide"], "Missing argument 'FOLDER'"),
        (["collect", "run", "--probes", "0"], "Invalid value for '--probes'"),
        (["testbed", "lst"], "No such command 'lst'"),
        (["testbed", "serve", "--dtype", "int8"], "Invalid value for '--dtype'"),
        (["testbed", "serve", "--max-batch", "0"], "Invalid value for '--max-batch'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_that_cannot_be_read_is_a_usage_error(
    arguments: list[str], complaint: str
) -> None:
    """One line like any other error, with where to look."""
    ended = call(*arguments)

    assert (ended.status, ended.out) == (2, "")
    assert ended.complaint.startswith(complaint)
    assert ended.complaint.endswith("--help`)")


def test_the_version_is_printed() -> None:
    """Name and number, nothing else."""
    assert call("--version") == Ended(status=0, out=f"verifier {verifier.__version__}\n", err="")


# -- audits ------------------------------------------------------------------------------------


def test_an_honest_host_ends_with_status_0(honest: Finished) -> None:
    """The verdict is on stdout, what it did on the way on stderr."""
    assert honest.ended.status == 0
    assert re.match(r"127\.0\.0\.1:\d+\ntiny\n\nCONSISTENT ", honest.ended.out)
    assert f"run folder: {honest.folder}" in honest.ended.out.replace("\n", "")
    assert honest.ended.out.splitlines()[-1] == f"page: {honest.folder / 'report.html'}"
    assert "replies" in honest.ended.err


def test_a_faulty_host_ends_with_status_1(faulty: Finished) -> None:
    """And its fault is named."""
    assert faulty.ended.status == 1
    assert "\n\nINCONSISTENT " in faulty.ended.out
    assert FAULT in faulty.ended.out
    assert faulty.ended.out.splitlines()[-1] == f"page: {faulty.folder / 'report.html'}"


@pytest.mark.parametrize("command", ["audit", "decide", "report"])
def test_json_is_the_report_file_to_the_byte(
    honest: Finished, faulty: Finished, command: str
) -> None:
    """On stdout alone, so that it can be piped; the status is that of the verdict.

    The host is gone by now: a finished audit asks nothing more.
    """
    for finished, status in ((honest, 0), (faulty, 1)):
        given = finished.run_file if command == "audit" else finished.folder
        ended = call(command, given, "--json", encoding="ascii")
        assert ended.status == status
        assert ended.out.encode() == (finished.folder / REPORT).read_bytes()


def test_without_a_terminal_progress_is_plain_lines(honest: Finished) -> None:
    """No bars, no control characters, and no line is broken in two."""
    assert honest.ended.err.endswith("\n")
    for line in honest.ended.err.splitlines():
        assert line.isprintable()
        assert re.fullmatch(r"\d+ repl(y|ies), \d+ tokens: \d+ detected, \d+ excluded, .*", line)


def test_on_a_terminal_progress_is_a_bar(honest: Finished) -> None:
    """On stderr, so that stdout can still be piped."""
    (honest.folder / FINISHED).unlink()  # else nothing is to be done
    ended = call("audit", honest.run_file, "--json", terminal=True)

    assert "\x1b[" in ended.err
    assert "━" in ended.err  # which step it names depends on how fast it runs
    assert "\x1b" not in ended.out


def test_colours_are_for_terminals_and_can_be_turned_off(honest: Finished) -> None:
    """NO_COLOR leaves no colour; without a terminal there is no escape at all."""
    colour = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7])[0-9;]*m")

    plain = call("report", honest.folder)
    coloured = call("report", honest.folder, terminal=True)
    turned_off = call("report", honest.folder, terminal=True, NO_COLOR="1")

    assert "\x1b" not in plain.out
    assert colour.search(coloured.out)
    assert not colour.search(turned_off.out)


def test_a_terminal_that_lacks_a_sign_shows_it_escaped(honest: Finished, tmp_path: Path) -> None:
    """Rather than failing on what a host has sent."""
    run = honest.copied(tmp_path)
    report = json.loads((run / REPORT).read_text())
    write_json(run / REPORT, report | {"notes": ["most often: déjà vu"]})
    ended = call("report", run, encoding="ascii")

    assert ended.status == 0
    assert r"most often: d\xe9j\xe0 vu" in ended.out


@pytest.mark.parametrize("missing", ["--base-url", "--model", "--reference", "--out"])
def test_each_missing_flag_is_named(missing: str) -> None:
    """Without a run file these four are needed."""
    flags = {"--base-url": NOWHERE, "--model": "m", "--reference": "tiny", "--out": "run"}
    del flags[missing]
    ended = call("audit", *(word for flag in flags.items() for word in flag))

    assert ended.status == 2
    assert ended.complaint == f"audit: {missing} is missing; give it, or give a run file"


def test_flags_override_the_run_file(tmp_path: Path) -> None:
    """Each of them, and nothing else changes."""
    run_file = write_run_file(tmp_path, NOWHERE)
    classes = [
        NoiseClass(name=name, scale=0.3, basis="test") for name in load_policies()["screen"].noise
    ]
    calibration = make_calibration(classes=tuple(classes)).model_dump(mode="json")
    write_json(tmp_path / "tiny.calibration.json", calibration)
    ended = call(
        "audit", run_file, "--model", "other", "--alpha", "0.01", "--seed", "7", "--policy",
        "screen", "--budget-completion-tokens", "600", "--out", tmp_path / "elsewhere",
        "--base-url", "http://127.0.0.1:2/v1", "--api-key-env", "SOME_KEY", SOME_KEY=KEY,
    )  # fmt: skip
    before = yaml.safe_load(run_file.read_text())
    written = yaml.safe_load((tmp_path / "elsewhere" / RUN).read_text())

    assert ended.complaint.startswith("cannot reach 127.0.0.1:2")
    assert written["audit"]["policy"] == "screen"
    assert written["endpoint"]["base_url"] == "http://127.0.0.1:2/v1"
    assert written["endpoint"]["model"] == "other"
    assert written["endpoint"]["api_key_env"] == "SOME_KEY"
    assert written["endpoint"]["max_attempts"] == before["endpoint"]["max_attempts"]
    assert written["audit"]["alpha"] == 0.01
    assert written["audit"]["seed"] == 7
    assert written["audit"]["budget_completion_tokens"] == 600
    assert written["audit"]["max_tokens"] == before["audit"]["max_tokens"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--alpha", "0.7"], "audit.alpha: expected less than 0.5; got 0.7"),
        (["--alpha", "0"], "audit.alpha: expected greater than or equal to"),
        (["--alpha", "nan"], "audit.alpha: expected a finite number; got nan"),
        (["--alpha", "inf"], "audit.alpha: expected a finite number; got inf"),
        (["--seed", "-1"], "audit.seed: expected greater than or equal to 0; got -1"),
        (["--budget-completion-tokens", "0"], "audit.budget_completion_tokens: expected greater"),
        (["--budget-completion-tokens", "119"], "audit.budget_completion_tokens: 119 cannot pay"),
        (["--policy", "lax"], "audit.policy: no policy 'lax'; there are screen, standard, strict"),
        (["--policy", "standard"], "audit.policy: noise: the card's calibration has no class"),
        (["--reference", "nosuch"], "reference: no card 'nosuch'; there are"),
        (["--base-url", "ftp://host/v1"], "endpoint.base_url: expected http(s)://host/path"),
        (["--base-url", "http://host:port/v1"], "endpoint.base_url: expected http(s)"),
        (["--base-url", f"http://{KEY}@host/v1"], "endpoint.base_url: must not hold a user name"),
        (["--base-url", f"http://host/v1?key={KEY}"], "endpoint.base_url: must not hold"),
        (["--model", " "], "endpoint.model: expected the model's name at the host, got nothing"),
        (["--api-key-env", "SOME_KEY"], "endpoint.api_key_env: the variable SOME_KEY is not set"),
        (["--api-key-env", KEY], "endpoint.api_key_env: expected the name of an environment"),
        (["--api-key-env", KEY.replace("-", "")], "endpoint.api_key_env: looks like a key"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_refused_before_anything_is_written(
    tmp_path: Path, flags: list[str], complaint: str
) -> None:
    """One line that names the key; a secret in it is not repeated."""
    ended = call("audit", write_run_file(tmp_path, NOWHERE), *flags)

    assert (ended.status, ended.out) == (2, "")
    assert complaint in ended.complaint
    assert KEY not in ended.err
    assert KEY.replace("-", "") not in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("endpoint: [", "not YAML"),
        ("- 1", "expected keys and values, got list"),
        ("", "expected keys and values, got nothing"),
        ("endpoint: {base_url: x, model: y, api_key: " + KEY + "}", "endpoint.api_key: unknown"),
        ("audit: {policy: {noise: [], nose: []}}", "missing; add it"),
    ],
    ids=["not YAML", "list", "empty", "unknown key", "missing"],
)
@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_wrong_run_file_is_refused(
    tmp_path: Path, command: str, content: str, complaint: str
) -> None:
    """By its name, in one line."""
    path = tmp_path / "file.yaml"
    path.write_text(content)
    ended = call(command, path)

    assert ended.status == 2
    assert ended.complaint.startswith(f"{path}: ")
    assert complaint in ended.complaint
    assert KEY not in ended.err


@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_run_file_that_is_not_there_is_refused(tmp_path: Path, command: str) -> None:
    """Nor is a folder one."""
    assert call(command, "none.yaml").complaint == "none.yaml: no such run file"
    assert call(command, tmp_path).complaint == f"{tmp_path}: is not a run file"


def test_a_folder_that_cannot_be_made_is_no_defect(tmp_path: Path) -> None:
    """What the system refuses is said in its own words, with the path."""
    (tmp_path / "file").write_text("mine")
    ended = call("audit", write_run_file(tmp_path, NOWHERE), "--out", tmp_path / "file" / "run")

    assert ended.status == 2
    assert ended.complaint.startswith(f"{tmp_path / 'file' / 'run'}")
    assert "Not a directory" in ended.complaint or "exists" in ended.complaint


# -- hosts -------------------------------------------------------------------------------------


def test_an_unreachable_host_is_the_operators(tmp_path: Path) -> None:
    """Host, what came, what to do."""
    ended = call("audit", write_run_file(tmp_path, NOWHERE))

    assert ended.status == 2
    assert ended.complaint.startswith("cannot reach 127.0.0.1:1: ConnectError")
    assert "check the base URL" in ended.complaint


def refuse(status: int) -> Script:
    """A host that refuses, and repeats the key it was given, in a text full of traps."""
    return lambda asked: error(
        status, f"no\n\x1b[2Jverifier: {asked.headers.get('authorization')}\u202e"
    )


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        (401, "refused the API key"),
        (403, "refused the API key"),
        (404, "does not serve the model 'tiny'"),
        (400, "probes in a row and has answered none"),
    ],
)
def test_a_refusal_is_the_operators(tmp_path: Path, status: int, complaint: str) -> None:
    """One printable line, and the key is nowhere: not on the screen, not in a file."""
    with FakeHost(refuse(status)) as host:
        run_file = write_run_file(tmp_path, host.url, endpoint={"api_key_env": "SOME_KEY"})
        ended = call("audit", run_file, SOME_KEY=KEY)

    assert ended.status == 2
    assert complaint in ended.complaint
    assert host.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in ended.out + ended.err
    assert KEY.encode() not in everything_in(tmp_path)


def test_a_key_that_a_host_repeats_in_its_replies_is_struck_out(tmp_path: Path) -> None:
    """In the exchanges, the page and on the screen."""

    def script(asked: Asked) -> dict[str, Any]:
        return chat(f"your key is {asked.headers['authorization']} and so on")

    with FakeHost(script) as host:
        run_file = write_run_file(
            tmp_path, host.url, endpoint={"api_key_env": "SOME_KEY"}, budget_completion_tokens=120
        )
        ended = call("audit", run_file, SOME_KEY=KEY)

    assert ended.status in (1, 3)
    assert KEY not in ended.out + ended.err
    assert KEY.encode() not in everything_in(tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        lambda _asked: error(429, "slow down"),
        lambda _asked: error(503, "busy"),
        lambda _asked: Answer(body=b"<html>busy</html>"),
        lambda _asked: chat(""),
    ],
    ids=["429", "503", "not JSON", "empty"],
)
def test_a_host_that_never_answers_ends_with_status_3(tmp_path: Path, script: Script) -> None:
    """No verdict is earned, and what was collected is kept."""
    with FakeHost(script) as host:
        ended = call("audit", write_run_file(tmp_path, host.url))

    assert ended.status == 3
    assert "\n\nINCONCLUSIVE " in ended.out
    assert "Traceback" not in ended.err
    assert (tmp_path / "run" / EXCHANGES).read_bytes().count(b"\n") == len(host.asked) > 0


def test_logprobs_that_are_no_numbers_are_left_unused(tmp_path: Path) -> None:
    """The text alone decides, and the report says why."""
    engine, tokenizer = make_engine(), FakeTokenizer()

    def script(asked: Asked) -> dict[str, Any]:
        messages = [Message(role=m["role"], content=m["content"]) for m in asked.json["messages"]]
        request = GenerateRequest(prompt_ids=tokenizer.render(messages), max_tokens=12)
        (made,) = engine.generate([request])
        text = tokenizer.decode(made.token_ids)
        nan = {"token": text, "logprob": float("nan"), "bytes": None, "top_logprobs": []}
        reply = chat(text, logprobs={"content": [nan]})
        reply["choices"][0]["finish_reason"] = made.finish_reason
        return reply

    with FakeHost(script) as host:
        run_file = write_run_file(
            tmp_path, host.url, top_logprobs=5, budget_completion_tokens=1200,
            endpoint={"concurrency": 1},
        )  # fmt: skip
        ended = call("audit", run_file)

    assert ended.status == 0
    assert "log-probabilities were not used" in " ".join(ended.out.split())


# -- the steps ---------------------------------------------------------------------------------


def test_the_plan_says_what_it_may_cost_and_sends_nothing(tmp_path: Path) -> None:
    """Requests, tokens and dollars, as expected and at most: 240 tokens at 2 dollars a million."""
    ended = call("plan", write_run_file(tmp_path, NOWHERE))
    folder, policy, expected, most, deadline = ended.out.splitlines()
    said = re.compile(
        r"([\d,]+) requests, ([\d,]+) prompt and 240 completion tokens, USD (0\.\d+)$"
    )

    assert (ended.status, ended.err) == (0, "")
    assert folder == f"run folder: {tmp_path / 'run'}"
    assert policy == (
        "policy custom: a consistent verdict excludes 4-bit-class rounding, another model"
    )
    figures = [said.search(line) for line in (expected, most)]
    assert all(figures)
    low, high = ([float(x.replace(",", "")) for x in found.groups()] for found in figures if found)
    assert all(a < b for a, b in zip(low, high, strict=True))
    assert low[2] >= 0.0005
    assert deadline.startswith("deadline: 6 h; ")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {RUN, PLAN, PROBES}


def with_reference(run_file: Path, **section: Any) -> Path:
    raw = yaml.safe_load(run_file.read_text())
    raw["reference"] |= section
    run_file.write_text(yaml.safe_dump(raw))
    return run_file


def test_a_plan_for_gpus_shows_the_memory_before_the_ceiling(tmp_path: Path) -> None:
    """A card without the facts says which it lacks, and the run is planned all the same."""
    run_file = with_reference(write_run_file(tmp_path, NOWHERE), engine="vllm")
    ended = call("plan", run_file)

    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == (
        "memory: not planned, because card tiny lacks architecture.hidden_size, "
        "architecture.attention_heads, architecture.head_dim, architecture.vocabulary, "
        "architecture.weight_bytes, architecture.bits, architecture.context_length, "
        "architecture.kv_heads, architecture.intermediate_size"
    )
    assert "at most: " in ended.out


def test_a_plan_that_cannot_fit_leaves_no_run_folder(tmp_path: Path) -> None:
    """The table, one line of what is missing, and the status of a configuration error."""
    small = {"gpus": 1, "memory_gib": 0.5}
    run_file = with_reference(
        write_run_file(tmp_path, NOWHERE), card="smollm2-135m-instruct", hardware=small
    )
    ended = call("plan", run_file)

    assert ended.status == 2
    assert "Memory of each GPU (estimate)" in ended.out
    assert ended.complaint.startswith("reference.hardware: weights, activations and reserve need")
    assert not (tmp_path / "run").exists()


def test_a_plan_that_fits_goes_on(tmp_path: Path) -> None:
    """With the table above the ceiling."""
    run_file = with_reference(
        write_run_file(tmp_path, NOWHERE),
        card="smollm2-135m-instruct",
        engine="vllm",
        hardware={"gpus": 1, "memory_gib": 24},
    )
    ended = call("plan", run_file)

    assert (ended.status, ended.err) == (0, "")
    assert ended.out.index("Memory of each GPU") < ended.out.index("at most: ")


# -- cards -------------------------------------------------------------------------------------


def test_cards_are_listed_and_shown() -> None:
    """Names with their terms; one card with its licence first."""
    listed, one = call("reference", "list"), call("reference", "show", "minimax-m2.7")

    assert (listed.status, one.status) == (0, 0)
    assert "minimax-m2.7" in listed.out
    assert one.out.startswith("Licence")


def test_an_unknown_card_is_one_line() -> None:
    """It lists those that ship."""
    ended = call("reference", "show", "no-such-model")

    assert ended.status == 2
    assert ended.complaint.startswith("reference: no card 'no-such-model'; there are deepseek")


def test_pinning_says_what_it_wrote_and_refuses_a_mismatch(tiny: Path, tmp_path: Path) -> None:
    """Once filled, twice the same, and another snapshot is an error."""
    opened = {
        "rules": None, "tensors_sha256": None, "config_sha256": None, "tokenizer_sha256": None,
        "template_sha256": None,
    }  # fmt: skip
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(CARD | {"digests": opened, "layers": 3}))
    first = call("reference", "pin", card, "--weights", tiny)
    again = call("reference", "pin", card, "--weights", tiny)
    (tmp_path / "other").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages }}")
    other = call("reference", "pin", card, "--weights", tmp_path / "other")
    nothing = call("reference", "pin", card, "--weights", "somewhere")

    assert (first.status, again.status, other.status, nothing.status) == (0, 0, 2, 2)
    assert [line.partition(": ")[0] for line in first.out.splitlines()] == [
        *(f"digests.{key}" for key in opened), "takes_tools",
    ]  # fmt: skip
    assert again.out.startswith("nothing to fill")
    assert "digests.template_sha256 is" in other.complaint
    assert "neither a directory nor REPO@REVISION" in nothing.complaint


def test_steps_alone_give_what_an_audit_gives(honest: Finished, tmp_path: Path) -> None:
    """Plan, collect, score, decide, report: the same replies, the same verdict."""
    app = create_app(
        Host(engine=make_engine(), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001)
    )
    with running(app) as url:
        run, run_file = tmp_path / "run", write_run_file(tmp_path, url, top_logprobs=5)
        asked = len((honest.folder / EXCHANGES).read_bytes().splitlines())
        steps = [
            call("plan", run_file),
            call("collect", run, "--probes", asked),
            call("score", run),
            call("decide", run),
            call("report", run),
        ]
    reports = [json.loads((folder / REPORT).read_text()) for folder in (run, honest.folder)]

    assert [step.status for step in steps] == [0, 0, 0, 0, 0]
    assert steps[1].out == f"{asked} probes have an outcome in {run}\n"
    assert reports[0]["findings"] == reports[1]["findings"]
    assert reports[0]["noise_scale"] == reports[1]["noise_scale"]
    assert (run / PAGE).exists()


def test_scoring_the_builds_adds_the_bank(honest: Finished, tmp_path: Path) -> None:
    """So that a cause can be named; without it only the policy's builds are scored."""
    run = honest.copied(tmp_path)
    before = {w for row in ledger_rows(run) for w in row["text"]}

    assert call("score", run, "--builds").status == 0
    after = {w for row in ledger_rows(run) for w in row["text"]}
    assert before == {"reference"}
    assert after == {"reference", FAULT, "fp8-channel"}


def ledger_rows(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / LEDGER).read_text())["rows"])


@pytest.mark.parametrize("command", ["score", "decide", "report"])
def test_scores_of_other_replies_are_refused(
    honest: Finished, faulty: Finished, tmp_path: Path, command: str
) -> None:
    """The replies of a faulty host beside the scores of an honest one are no honest host."""
    run = faulty.copied(tmp_path)
    for name in (SCORES, LEDGER, REPORT):
        shutil.copy(honest.folder / name, run / name)
    for name in ("panel.jsonl", "shown.json", "shown.jsonl", "counted.json", "prompts.json"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "completions", ignore_errors=True)
    before = everything_in(run)
    ended = call(command, run)

    assert (ended.status, ended.out) == (2, "")
    assert re.search(r"probe \S+: the score is not that of the reply", ended.complaint)
    assert "run `verifier score --anew`" in ended.complaint
    assert everything_in(run) == before


@pytest.mark.parametrize("command", ["score", "decide", "report"])
def test_scores_without_digests_are_refused(honest: Finished, tmp_path: Path, command: str) -> None:
    """An older version wrote them; one line says what to type."""
    run = honest.copied(tmp_path)
    lines = [json.loads(line) for line in (run / SCORES).read_text().splitlines()]
    for line in lines:
        del line["reply_sha256"]
    (run / SCORES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    ledger = json.loads((run / LEDGER).read_text())
    for row in ledger["rows"]:
        del row["reply_sha256"]
    write_json(run / LEDGER, ledger)
    ended = call(command, run)

    assert ended.status == 2
    assert "made before scores carried digests" in ended.complaint
    assert "run `verifier score --anew`" in ended.complaint
    assert call("score", run, "--anew").status == 0
    assert call("decide", run).status == 0
    assert (run / REPORT).read_bytes() == (honest.folder / REPORT).read_bytes()


def test_scoring_anew_gives_the_verdict_that_the_replies_earn(
    honest: Finished, faulty: Finished, tmp_path: Path
) -> None:
    """Whatever scores lay there before; the columns that named the cause come back as well."""
    run = faulty.copied(tmp_path)
    shutil.copy(honest.folder / LEDGER, run / LEDGER)

    assert call("score", run, "--anew").status == 0
    assert call("decide", run).status == 1
    named = [f["name"] for f in json.loads((run / REPORT).read_text())["findings"]
             if f["aspect"] == "cause"]  # fmt: skip
    expected = [f["name"] for f in json.loads((faulty.folder / REPORT).read_text())["findings"]
                if f["aspect"] == "cause"]  # fmt: skip
    assert named == expected


STEPS = ("collect", "score", "decide", "report")


@pytest.mark.parametrize("command", STEPS)
def test_a_folder_that_is_no_run_folder_is_refused(tmp_path: Path, command: str) -> None:
    """Missing, empty, or a file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    endings = [call(command, tmp_path / name) for name in ("none", "empty", "file")]

    assert [ended.status for ended in endings] == [2, 2, 2]
    assert endings[0].complaint == f"{tmp_path / 'none'}: no such run folder"
    assert endings[1].complaint.startswith(f"{tmp_path / 'empty' / PLAN}: no such file")
    assert endings[2].complaint == f"{tmp_path / 'file'}: no such run folder"
    assert list((tmp_path / "empty").iterdir()) == []


def edit_plan(run: Path, **changes: Any) -> None:
    write_json(run / PLAN, json.loads((run / PLAN).read_text()) | changes)


def spoil(run: Path, name: str, how: str) -> None:
    """Damage one file of a run folder."""
    path = run / name
    match how:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "not JSON":
            path.write_bytes(b"garbage\n" + path.read_bytes())
        case "a list":
            path.write_bytes(b"[1]\n" + path.read_bytes() if name.endswith("l") else b"[1]")
        case "other keys":
            path.write_bytes(b'{"surprise": 1}\n')
        case "linked":
            path.rename(run.parent / "outside")
            path.symlink_to(run.parent / "outside")
        case "a folder":
            path.unlink()
            path.mkdir()


DAMAGE = [
    *((command, PLAN, how) for command in STEPS for how in ("truncated", "a list", "linked")),
    *((command, EXCHANGES, how) for command in STEPS for how in ("not JSON", "other keys")),
    *((command, EXCHANGES, how) for command in STEPS for how in ("linked", "a folder")),
    *((command, PROBES, "not JSON") for command in ("collect", "score", "report")),
    *((command, RUN, how) for command in ("collect", "score") for how in ("missing", "other keys")),
    *(("score", SCORES, how) for how in ("not JSON", "other keys", "linked")),
    *(("decide", LEDGER, how) for how in ("missing", "truncated", "a list", "other keys")),
    *(("report", REPORT, how) for how in ("missing", "truncated", "a list", "other keys")),
    ("decide", LEDGER, "linked"),
    ("report", REPORT, "linked"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "name", "how"), DAMAGE, ids=lambda value: value)
def test_a_damaged_run_folder_is_refused_by_the_files_name(
    honest: Finished, tmp_path: Path, command: str, name: str, how: str
) -> None:
    """One line, and no other file is touched."""
    run = honest.copied(tmp_path)
    spoil(run, name, how)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    ended = call(command, run)

    assert (ended.status, ended.out) == (2, "")
    assert name in ended.complaint
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("command", STEPS)
def test_a_plan_of_another_version_is_refused(
    honest: Finished, tmp_path: Path, command: str
) -> None:
    """With what to do about it."""
    run = honest.copied(tmp_path)
    edit_plan(run, schema_version=2)
    ended = call(command, run)

    assert ended.status == 2
    assert ended.complaint == (
        f"{run / PLAN}: schema_version: this version reads 1, got 2; restore it from a copy, or "
        "use the version of the verifier that wrote the folder"
    )


def test_a_torn_last_exchange_is_no_damage(honest: Finished, tmp_path: Path) -> None:
    """A kill leaves one; the verdict of what had arrived stands."""
    run = honest.copied(tmp_path)
    with (run / EXCHANGES).open("ab") as file:
        file.write(b'{"probe_id": "p00')

    assert call("decide", run).status == 0
    assert (run / REPORT).read_bytes() == (honest.folder / REPORT).read_bytes()


# -- one process at a time, and none where nobody can write ---------------------------------------


def test_a_second_process_is_refused_by_every_command_that_writes(
    honest: Finished, tmp_path: Path
) -> None:
    """One line, and nothing is written; what only looks elsewhere is not held up."""
    run = honest.copied(tmp_path)
    config = yaml.safe_load(honest.run_file.read_text()) | {"out": str(run)}
    run_file = tmp_path / "same.yaml"
    run_file.write_text(yaml.safe_dump(config))
    before = everything_in(run)
    with working_in(run):
        held = everything_in(run)
        ended = [
            call(*arguments)
            for arguments in (
                ("collect", run), ("score", run), ("decide", run), ("report", run),
                ("audit", run_file), ("plan", run_file), ("capabilities", run_file),
            )
        ]  # fmt: skip

        assert everything_in(run) == held
    assert [one.status for one in ended] == [2] * 7
    said = (
        f"{run}: another verifier (process {os.getpid()}) is at work in it; wait for it, or stop it"
    )
    assert {one.complaint for one in ended} == {said}
    assert everything_in(run) == before
    assert call("decide", run).status == 0


@pytest.mark.parametrize("command", ["decide", "report"])
def test_a_folder_that_can_only_be_read_is_shown(
    faulty: Finished, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the verdict's own status, and a word on what is not kept."""
    run = faulty.copied(tmp_path)
    shown = call(command, run)
    before = everything_in(run)
    with monkeypatch.context() as patched:
        write_nowhere(patched)
        ended = call(command, run)

    assert (ended.status, ended.out) == (1, shown.out)
    assert ended.err == (
        f"verifier: {run}: cannot be written to (Read-only file system); nothing is kept there\n"
    )
    assert everything_in(run) == before


def test_a_plan_says_the_deadline_and_the_waits_without_one(tmp_path: Path) -> None:
    """As text or in seconds."""
    run_file = write_run_file(tmp_path, NOWHERE, deadline="90m")
    ended = call("plan", run_file)

    assert ended.status == 0
    assert "deadline: 90 min; without one, waits for the endpoint could take" in ended.out


# -- calibrate, demo, bench, testbed -----------------------------------------------------------


def test_the_testbed_lists_every_fault_with_a_word_on_it() -> None:
    """And the honest host, as none."""
    ended = call("testbed", "list")
    lines = dict(line.split(maxsplit=1) for line in ended.out.splitlines())

    assert (ended.status, ended.err) == (0, "")
    assert lines.keys() >= {"none", *VARIANTS}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["calibrate", "nosuch"], "reference: no card 'nosuch'; there are"),
        (["testbed", "serve", "--reference", "nosuch"], "reference: no card 'nosuch'; there are"),
        (["testbed", "serve", "--card", "nosuch"], "reference: no card 'nosuch'; there are"),
        (
            ["testbed", "route", "--base-url", "http://a", "--route", "b"],
            "--route: expected SHARE:",
        ),
        (["testbed", "serve", "--fault", "int5"], "no weights variant 'int5'; there are"),
        (["testbed", "serve", "--fault", "template:x"], "template: no rendering 'x'; there are"),
        (["panel", "nosuch", "--seed", "1"], "reference: no card 'nosuch'; there are"),
        (["testbed", "serve", "--api-key-env", "SOME_KEY"], "--api-key-env: the variable SOME_KEY"),
        (["demo", "--out", ".."], "..: exists and is no folder of a demo; give another --out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_of_the_laboratory_are_refused_at_once(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    """Before any weights are fetched."""
    ended = call(*arguments, VERIFIER_CACHE=str(tmp_path / "cache"))

    assert ended.status == 2
    assert ended.complaint.startswith(complaint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"VERIFIER_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"VERIFIER_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/verifier"),
        ({"VERIFIER_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/verifier"),
    ],
    ids=["own", "XDG", "home"],
)
def test_weights_are_kept_where_the_surroundings_say(
    honest: Finished, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], cache: str
) -> None:
    """Our own variable first, then the desktop's, then the home."""
    asked: list[Path] = []

    def loader(
        _config: object, *, cache: Path, show: object, api_key: str | None
    ) -> Callable[[], Reference]:
        asked.append(cache)
        return lambda: Reference(engine=make_engine(), tokenizer=FakeTokenizer())

    monkeypatch.setattr("verifier.reference.loaded.reference_loader", loader)
    (honest.folder / FINISHED).unlink()  # else nothing is loaded

    assert call("audit", honest.run_file, **environment).status == 0
    assert asked == [Path(cache)]


# -- ends from outside -------------------------------------------------------------------------


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(_run: Path, *, writes: bool) -> None:
        raise error

    Path("run").mkdir()
    monkeypatch.setattr("verifier.verdict.decide.judge_folder", fail)


def test_an_error_is_one_printable_line_whatever_it_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host or a file may hold signs that act on a screen."""
    fail_with(monkeypatch, EndpointError("the host said 'a\x1b[2J\u202eb\n\tc'"))
    ended = call("decide", "run")

    assert (ended.status, ended.out) == (2, "")
    assert ended.complaint == r"the host said 'a\x1b[2J\u202eb c'"


def test_a_defect_is_one_line_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own status, and how to see where it was."""
    fail_with(monkeypatch, ZeroDivisionError("division\nby zero"))
    ended = call("decide", "run")

    assert ended.status == 4
    assert ended.complaint.startswith("defect in the verifier (ZeroDivisionError: division by zero")
    assert "VERIFIER_TRACEBACK=1" in ended.complaint


def test_a_defect_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """On request only."""
    fail_with(monkeypatch, ZeroDivisionError("here"))
    ended = call("decide", "run", VERIFIER_TRACEBACK="1")

    assert ended.status == 4
    assert "judge_folder" in ended.err
    assert "ZeroDivisionError: here" in ended.err


@pytest.mark.parametrize(
    ("raised", "complaint"),
    [
        (OSError(28, "No space left on device", "run/report.json"), "run/report.json: No space"),
        (PermissionError(13, "Permission denied"), "Permission denied; mend that"),
        (
            ModuleNotFoundError("x", name="torch"),
            "this step needs the package torch; install this one with",
        ),
    ],
    ids=["disk full", "permission", "package"],
)
def test_what_the_machine_lacks_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, complaint: str
) -> None:
    """It is the operator's, with the path where there is one."""
    fail_with(monkeypatch, raised)
    ended = call("decide", "run")

    assert ended.status == 2
    assert ended.complaint.startswith(complaint)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "verifier", *map(str, arguments)]
    # with a buffer, as usual: what is left in it must not be complained of at the end
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    # a shell makes its background jobs ignore interrupts, and children would inherit that
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_stops_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """Status 130 as shells have it, never 1; what had arrived is kept, the rest is asked later."""
    with FakeHost(lambda asked: chat() if asked.index < 2 else wait(host)) as host:
        run_file = write_run_file(tmp_path, host.url, endpoint={"concurrency": 1})
        assert call("plan", run_file).status == 0
        process = start("collect", tmp_path / "run")
        until = time.monotonic() + 60
        while len(host.asked) < 3 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert process.returncode == 130, err
    assert out == b""
    assert err == b"verifier: stopped; the same command goes on where this one was\n"
    assert (tmp_path / "run" / EXCHANGES).read_bytes().count(b"\n") == 2


def wait(host: FakeHost) -> dict[str, Any]:
    host.closing.wait(60)
    return chat()


def test_a_reader_that_leaves_ends_it_quietly(honest: Finished) -> None:
    """`verifier decide DIR | head -1` is no error, and no verdict either: 128 and SIGPIPE's 13."""
    process = start("decide", honest.folder)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()

    assert process.wait(60) == 141
    assert err == b""


def test_an_interrupt_of_any_command_has_one_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is under way."""
    fail_with(monkeypatch, KeyboardInterrupt())
    ended = call("decide", "run")

    assert ended.status == 130
    assert ended.complaint == "stopped; run the same command again"
    assert os.environ.get("VERIFIER_TRACEBACK") is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (error(401, "Invalid API key"), "wants an API key"),
        (error(402, "Insufficient Balance"), "Insufficient Balance"),
        (error(404, "no such model"), "does not serve the model 'tiny'"),
    ],
)
def test_capabilities_fails_where_nothing_was_answered(
    tmp_path: Path, answer: Answer, said: str
) -> None:
    """One line and status 2, and no table of what is unknown."""
    with FakeHost(lambda _asked: answer) as host:
        ended = call("capabilities", write_run_file(tmp_path, host.url))

    assert ended.status == 2
    assert said in ended.complaint
    assert ended.out == ""
