"""The options that describe a run: the same for every command that takes one, over its run file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from audits import FAULT, KEY, NOWHERE, host, write_card, write_run_file
from command_line import Ended, _plain_surroundings, call

from verifier.cli import commands
from verifier.config import load_hosts
from verifier.errors import ConfigError
from verifier.files.run_folder import PAGE, PLAN, REPORT, RUN, write_json
from verifier.reference.loaded import Reference

__all__ = ["_plain_surroundings"]  # fixture

TAKING_A_RUN = ("audit", "plan", "capabilities")


def described(folder: Path, **changes: str | None) -> list[str]:
    """The options of a whole run of the tiny model; `changes` by their names, None: left out."""
    options: dict[str, str | None] = {
        "base-url": NOWHERE, "model": "tiny", "reference": str(write_card(folder)),
        "out": str(folder / "run"), "policy": "tiny",
    }  # fmt: skip
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    given = [(f"--{name}", value) for name, value in options.items() if value is not None]
    return [word for pair in given for word in pair]


def planned(tmp_path: Path, *more: str, **changes: str | None) -> dict[str, Any]:
    """The run file that a plan from options writes."""
    ended = call("plan", *described(tmp_path, **changes), *more)
    assert ended.status == 0, ended.err
    return dict(yaml.safe_load((tmp_path / "run" / RUN).read_text()))


@pytest.fixture
def own_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the tiny card's calibration serves."""
    from verifier import config

    tiny = config.Policy(noise=("4-bit-class rounding", "another model"))
    monkeypatch.setattr(config, "load_policies", lambda: {"tiny": tiny})


def test_each_command_takes_the_same_options() -> None:
    """By their names and their words."""
    found = typer.main.get_command(commands.app).commands  # type: ignore[attr-defined]
    own = {"again", "trust", "as_json", "help"}
    taken = [
        {p.name: p.help for p in found[name].params if p.name not in own} for name in TAKING_A_RUN
    ]

    assert taken[0] == taken[1] == taken[2]
    assert {
        "host", "provider", "dialect", "stream", "budget_usd", "input_price", "output_price",
        "header", "run_file",
    } <= taken[0].keys()  # fmt: skip


@pytest.mark.usefixtures("own_policy")
def test_options_describe_a_whole_run(tmp_path: Path) -> None:
    """What a run file would say, and nothing else."""
    written = planned(
        tmp_path, "--stream", "--header", "X-Title=an audit", "--header", "X-Team=a=b",
        base_url="https://host.example/v1", dialect="messages", budget_usd="0.5",
        input_price="0.15", output_price="0.6", seed="7",
    )  # fmt: skip

    assert written["endpoint"]["stream"] is True
    assert written["endpoint"]["dialect"] == "messages"
    assert written["endpoint"]["headers"] == {"X-Title": "an audit", "X-Team": "a=b"}
    assert written["audit"]["budget_usd"] == 0.5
    assert written["prices"] == {"prompt": 0.15, "completion": 0.6}
    assert written["audit"]["seed"] == 7


@pytest.mark.usefixtures("own_policy")
def test_a_host_is_named_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    """Its headers too, beside those that are given."""
    known = load_hosts()["openrouter"]
    written = planned(
        tmp_path, "--header", "X-Title=audit", base_url=None, host="openrouter",
        provider="novita/fp8",
    )  # fmt: skip

    assert written["endpoint"]["base_url"] == known.base_url
    assert written["endpoint"]["provider"] == "novita/fp8"
    assert written["endpoint"]["headers"] == known.headers | {"X-Title": "audit"}
    assert known.headers


@pytest.mark.usefixtures("own_policy")
@pytest.mark.parametrize("command", TAKING_A_RUN)
@pytest.mark.parametrize(
    ("changes", "more", "complaint"),
    [
        ({"base_url": None}, (), "{command}: --base-url is missing; give it, or give a run file"),
        ({"provider": "novita"}, (), "provider: only a router takes one"),
        ({"base_url": None, "host": "openrouter"}, (), "provider: missing; a router passes"),
        ({"base_url": None, "host": "openruter"}, (), "; did you mean openrouter?"),
        ({"reference": "qwen3-30b"}, (), "; did you mean qwen3-30b-a3b?"),
        ({"reference": "Qwen/Qwen3-30B"}, (), "; did you mean qwen3-30b-a3b?"),
        ({"input_price": "1"}, (), "--output-price is missing; what a run costs needs both prices"),
        ({"budget_usd": "1"}, (), "audit.budget_usd: dollars need prices"),
        ({}, ("--header", KEY), "--header: expected NAME=VALUE, such as X-Title=audit"),
        ({}, ("--header", f"Authorization=Bearer {KEY}"), "a header that may hold a secret"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    tmp_path: Path, command: str, changes: dict[str, Any], more: tuple[str, ...], complaint: str
) -> None:
    """Whichever command is told it, and no key is repeated."""
    ended = call(command, *described(tmp_path, **changes), *more)

    assert (ended.status, ended.out) == (2, "")
    assert complaint.format(command=command) in ended.complaint
    assert KEY not in ended.err
    assert not (tmp_path / "run").exists()


def test_a_host_beside_a_run_file_of_another_is_refused(tmp_path: Path) -> None:
    """Its settings would be those of two hosts."""
    run_file = write_run_file(tmp_path, NOWHERE)
    ended = call("plan", run_file, "--host", "together")

    assert ended.complaint.startswith(f"--host together: {run_file} names another endpoint")
    assert not (tmp_path / "run").exists()


def test_options_of_one_endpoint_beside_targets_are_named(tmp_path: Path) -> None:
    """All of them, in one line."""
    targets = {"one": {"base_url": NOWHERE, "model": "tiny"}}
    run_file = write_run_file(tmp_path, NOWHERE, top={"targets": targets})
    ended = call("audit", run_file, "--model", "m", "--header", "A=b", "--no-stream")

    assert ended.complaint.startswith(
        f"--model, --stream, --header: for one endpoint, but {run_file} names several targets"
    )
    assert not (tmp_path / "run").exists()


def test_two_ways_of_giving_a_key_are_refused(tmp_path: Path) -> None:
    """A file in the run file, a variable on the command line."""
    (tmp_path / "key").write_text(KEY)
    run_file = write_run_file(tmp_path, NOWHERE, endpoint={"api_key_file": str(tmp_path / "key")})
    ended = call("audit", run_file, "--api-key-env", "SOME_KEY", SOME_KEY=KEY)

    assert ended.status == 2
    assert "give the key's variable or its file, not both" in ended.complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_folder_of_another_version_is_left_as_it_is(tmp_path: Path, command: str) -> None:
    """One line that says what to do."""
    run_file = write_run_file(tmp_path, NOWHERE)
    assert call("plan", run_file).status == 0
    plan = tmp_path / "run" / PLAN
    write_json(plan, json.loads(plan.read_text()) | {"schema_version": 2})
    before = plan.read_bytes()
    ended = call(command, run_file)

    assert ended.status == 2
    assert "schema_version: this version reads 1, got 2" in ended.complaint
    assert "use the version of the verifier that wrote the folder" in ended.complaint
    assert plan.read_bytes() == before


def test_a_misspelt_key_of_a_run_file_is_told_what_it_may_be(tmp_path: Path) -> None:
    """Beside all that are known."""
    run_file = write_run_file(tmp_path, NOWHERE, bugdet_usd=1)

    assert call("plan", run_file).complaint.endswith("; did you mean budget_usd?")


# -- cards, lists, run files -------------------------------------------------------------------


def test_a_model_of_the_hub_is_its_card() -> None:
    """In any case of its letters."""
    by_name = call("reference", "show", "qwen3-30b-a3b", "--json")

    assert call("reference", "show", "Qwen/Qwen3-30B-A3B", "--json") == by_name
    assert call("reference", "show", "qwen/qwen3-30b-a3b", "--json") == by_name


def test_the_list_says_what_works_today_and_why_the_rest_does_not() -> None:
    """With nothing to do that cannot succeed."""
    ended = call("reference", "list", COLUMNS="100")

    assert "Calibrated: smollm2-135m-instruct" in ended.out
    named = r"Provisional, [^:]*: llama-3\.1-8b-instruct, [^:]*: run `verifier calibrate CARD`"
    assert re.search(r"Not yet: deepseek-v3\.2, [^:]*: template_source: ", ended.out)
    assert re.search(named, ended.out)
    assert "`verifier reference add REPO-OR-DIRECTORY`" in ended.out
    needs = {line.split()[0]: line for line in ended.out.splitlines() if "GB" in line}
    assert "1 GB RAM" in needs["smollm2-135m-instruct"]
    assert "4 x 80 GB GPU" in needs["minimax-m2.7"]
    assert needs["gpt-oss-20b"].rstrip().endswith("provisional")
    assert needs["deepseek-v3.2"].rstrip().endswith("not yet")
    assert "run `verifier calibrate CARD` where vLLM is installed and the GPUs hold" in ended.out
    cannot = "it cannot be calibrated yet: "
    assert f"{cannot}precision: published in mxfp4: no engine here rounds" in ended.out
    for line in ended.out.splitlines():
        assert not (cannot in line and "run `verifier calibrate" in line)


@pytest.mark.parametrize(
    "words", [("reference", "list"), ("reference", "show", "qwen3-8b"), ("testbed", "list")]
)
def test_what_is_a_table_is_json_on_request(words: tuple[str, ...]) -> None:
    """On stdout alone."""
    ended = call(*words, "--json")

    assert (ended.status, ended.err) == (0, "")
    assert json.loads(ended.out)


def test_a_plan_and_capabilities_are_json_on_request(tmp_path: Path) -> None:
    """The plan of each run; what was found by its label."""
    plan = call("plan", write_run_file(tmp_path, NOWHERE), "--json")
    with host() as url:
        run_file = write_run_file(tmp_path, url, top={"out": str(tmp_path / "other")})
        found = call("capabilities", run_file, "--json")
    (one,) = json.loads(plan.out)

    assert one["run_folder"] == str(tmp_path / "run")
    assert one["most"]["amount"]["completion_tokens"] == 240
    assert found.status == 0
    assert json.loads(found.out)


def test_a_run_file_is_written_where_there_is_none(tmp_path: Path) -> None:
    """Of one endpoint or of several; what is there is left alone, and the file is one."""
    one, two = call("init"), call("init", "hosts.yaml", "--targets")
    again = call("init")

    assert (one.status, two.status, again.status) == (0, 0, 2)
    assert again.complaint == "audit.yaml: exists; give the name of a new file"
    assert call("plan", "audit.yaml").status == call("plan", "hosts.yaml").status == 0
    assert "# " in (tmp_path / "audit.yaml").read_text()


# -- help --------------------------------------------------------------------------------------


def every_command(command: Any, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = getattr(command, "commands", None) or {}
    return [words, *(w for n, one in inner.items() for w in every_command(one, (*words, n)))]


def helped(words: tuple[str, ...], columns: int) -> Ended:
    return call(*words, "--help", COLUMNS=str(columns), TERMINAL_WIDTH=str(columns))


@pytest.mark.parametrize(
    "words", every_command(typer.main.get_command(commands.app)), ids=lambda w: " ".join(w) or "-"
)
def test_help_is_whole_on_any_terminal(words: tuple[str, ...]) -> None:
    """Nothing is cut, and all but examples wraps."""
    for columns in (40, 100):
        text = helped(words, columns).out
        lines = re.sub(r"  Examples?:\n(    .*\n?)+", "", text).splitlines()

        assert "..." not in text.replace("[ARGS]...", "").replace("COMMAND [ARGS]...", "")
        assert [x for x in lines if len(x) > columns and not x.startswith("Options of")] == []


def test_statuses_stand_in_the_help_of_every_verdict() -> None:
    """Each of them."""
    for name in ("audit", "decide", "report", "summary"):
        text = " ".join(call(name, "--help").out.split())
        for status in ("0 consistent", "1 inconsistent", "2 usage", "3 inconclusive", "4 a defect",
                       "130 interrupted", "141 nobody"):  # fmt: skip
            assert status in text, name


# -- without a calibration ---------------------------------------------------------------------


def uncalibrated(folder: Path, url: str, **changes: Any) -> Path:
    run_file = write_run_file(folder, url, **changes)
    (folder / "tiny.calibration.json").rename(folder / "later.json")
    return run_file


def test_what_was_asked_before_the_card_was_calibrated_is_judged_as_if_it_had_been(
    tmp_path: Path,
) -> None:
    """Planned, looked at and asked: nothing was judged, so no floor has been chosen by it."""
    with host() as url:
        enough = {"budget_completion_tokens": 1200}
        run, run_file = tmp_path / "run", uncalibrated(tmp_path, url, **enough)
        steps = [call("plan", run_file), call("capabilities", run_file), call("collect", run)]
        (tmp_path / "later.json").rename(tmp_path / "tiny.calibration.json")
        later = [call("score", run), call("decide", run)]

    assert [step.status for step in steps] == [0, 0, 0]
    assert "provisional: nobody has calibrated tiny; the honest noise is taken" in steps[0].out
    assert [step.status for step in later] == [0, 0]
    assert "\n\nCONSISTENT " in later[1].out
    assert "provisional" not in later[1].out


def test_an_audit_without_a_calibration_says_so_and_stays_as_it_was_decided(
    tmp_path: Path,
) -> None:
    """On terminal, page and in JUnit and Markdown; the same bytes once the card is calibrated."""
    said = "provisional: nobody has calibrated tiny; the honest noise is taken from smollm2-135m-"
    with host() as good, host(FAULT) as bad:
        runs = {}
        for name, url in (("good", good), ("bad", bad)):
            run_file = uncalibrated(
                tmp_path, url, budget_completion_tokens=1200,
                top={"out": str(tmp_path / name)},
            )  # fmt: skip
            runs[name] = call("audit", run_file)
    (tmp_path / "later.json").rename(tmp_path / "tiny.calibration.json")
    before = {name: (tmp_path / name / REPORT).read_bytes() for name in runs}
    shown = [call("decide", tmp_path / "good"), call("score", tmp_path / "bad"),
             call("decide", tmp_path / "bad")]  # fmt: skip
    junit, page = tmp_path / "junit.xml", tmp_path / "summary.md"
    call("report", tmp_path / "bad", "--junit", junit, "--markdown", page)

    assert {name: ended.status for name, ended in runs.items()} == {"good": 0, "bad": 1}
    assert all(said in " ".join(ended.out.split()) for ended in (*runs.values(), shown[0]))
    assert {name: (tmp_path / name / REPORT).read_bytes() for name in runs} == before
    for file in (junit, page, tmp_path / "bad" / PAGE):
        assert "provisional: nobody has calibrated tiny" in file.read_text()
    assert "once the card is calibrated (" in (tmp_path / "good" / PAGE).read_text()


def test_a_control_is_the_floor_of_an_audit_without_a_calibration(tmp_path: Path) -> None:
    """Said in the first line; an honest host is consistent beside an honest control."""
    with host() as url, host() as trusted:
        run_file = uncalibrated(
            tmp_path, url, budget_completion_tokens=1200,
            top={"control": {"base_url": trusted, "model": "tiny"}},
        )  # fmt: skip
        ended = call("audit", run_file)
    said = " ".join(ended.out.split())

    assert ended.status == 0
    assert "nobody has calibrated tiny; the floor is the noise of its control, times 1.6:" in said


def test_a_policy_that_needs_a_calibration_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    """By each command that begins a run, in one line, and nothing is written."""
    run_file = uncalibrated(tmp_path, NOWHERE, policy="standard")
    for command in ("audit", "plan", "capabilities"):
        ended = call(command, run_file)

        assert ended.status == 2
        assert (
            "names fp8-class rounding, which nobody can tell from honest noise" in ended.complaint
        )
        assert "take screen (--policy screen); to calibrate, run `verifier cal" in ended.complaint
        assert not (tmp_path / "run" / PLAN).exists()


def test_a_refusal_that_can_be_known_comes_first_and_whole(tmp_path: Path) -> None:
    """All in one line, before anything is loaded or written."""
    run_file = uncalibrated(
        tmp_path, NOWHERE, policy="strict",
        reference={"engine": "remote", "weights": str(tmp_path / "none")},
    )  # fmt: skip
    ended = call("audit", run_file)

    assert ended.complaint.startswith("3 things to mend: audit.policy: strict names int8-class")
    assert "reference.weights: no directory" in ended.complaint
    assert "reference.url: missing" in ended.complaint
    assert not (tmp_path / "run").exists()


def test_an_engine_that_cannot_score_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's publisher has a default that a host may apply, and the engine's name tells."""

    def load() -> Reference:
        raise AssertionError("loaded")

    monkeypatch.setattr(
        "verifier.reference.loaded.reference_loader", lambda _config, **_where: load
    )
    run_file = write_run_file(
        tmp_path, NOWHERE, reference={"engine": "remote", "url": "http://127.0.0.1:2/v1"}
    )
    write_card(tmp_path, sampling={"repetition_penalty": 1.05})
    ended = call("audit", run_file)

    assert ended.status == 2
    assert "the engine remote cannot score under them" in ended.complaint


def test_no_command_is_recommended_that_cannot_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed weights cannot be calibrated; said before a key is asked for."""
    from verifier import config

    fine = config.Policy(noise=("fp8-class rounding",))
    monkeypatch.setattr(config, "load_policies", lambda: {"fine": fine})
    told = described(
        tmp_path, reference="gpt-oss-20b", api_key_env="A_KEY_OF_NOBODY", policy="fine"
    )
    ended = call("audit", *told)

    assert "it cannot be calibrated yet: precision: published in mxfp4" in ended.complaint
    assert "run `verifier calibrate" not in ended.complaint
    assert not (tmp_path / "run").exists()


def test_a_card_that_cannot_be_calibrated_is_refused_before_a_byte_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the card lacks is known from the card."""

    def fetch(*_what: Any, **how: Any) -> Path:
        assert not how.get("fetch", True), "fetched"
        raise ConfigError("not here")

    monkeypatch.setattr("verifier.reference.weights.fetch_weights", fetch)
    ended = call("calibrate", "gpt-oss-20b")

    assert ended.status == 2
    assert "precision: published in mxfp4: no engine here rounds packed weights" in ended.complaint
