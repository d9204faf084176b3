"""Folders from elsewhere: what is done with them unasked, what is not, and how ours are known."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from audits import NOWHERE, write_run_file
from command_line import _plain_surroundings, call
from fakes_card import write_card as write_plain_card
from fakes_host import Answer, FakeHost, chat

from verifier.cli.trust import MADE_HERE, is_made_here, refuse_foreign, remember
from verifier.config import Hardware, ReferenceSection, Suspect, load_run_file
from verifier.errors import ConfigError
from verifier.files.run_folder import FLEET, PLAN, PROBES, RUN

__all__ = ["_plain_surroundings"]  # fixtures

KEY = "sk-test-0123456789abcdef"
REFUSAL = Answer(status=401, body={"error": {"message": "no"}})  # which ends an audit at once
SHIPPED = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is noted here, forgotten after each test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "verifier"


def forget(state: Path) -> None:
    shutil.rmtree(state)


def plan(tmp_path: Path, url: str = NOWHERE, **changes: Any) -> Path:
    """A run folder, made here."""
    assert call("plan", write_run_file(tmp_path, url, **changes)).status == 0
    return tmp_path / "run"


def say(run: Path, **reference: Any) -> None:
    """Let a run folder's run file ask for another reference."""
    content = yaml.safe_load((run / RUN).read_text())
    content["reference"] = {"card": SHIPPED} | reference
    (run / RUN).write_text(yaml.safe_dump(content))


# -- made here ---------------------------------------------------------------------------------


def test_a_folder_made_here_needs_no_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    """Its owner wrote what it says; moved or copied it says the same."""
    monkeypatch.setenv("SOME_KEY", KEY)
    with FakeHost(lambda _asked: chat()) as host:
        run = plan(tmp_path, host.url, endpoint={"api_key_env": "SOME_KEY"})
        run = run.rename(tmp_path / "moved")
        collected = call("collect", run, "--probes", 1)
        scored = call("score", run)
        forget(state)
        refused = [call(*step) for step in (("collect", run), ("score", run))]

        assert host.asked
    assert (collected.status, scored.status) == (0, 0)
    assert [ended.status for ended in refused] == [2, 2]
    assert all("--trust" in ended.complaint for ended in refused)


@pytest.mark.parametrize("command", ["audit", "capabilities"])
def test_a_run_file_in_a_folder_from_elsewhere_needs_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path, command: str
) -> None:
    """Nothing is asked, and no key file is read, before somebody says that it is theirs."""
    (tmp_path / "hub-token").write_text(KEY)
    with FakeHost(lambda _asked: REFUSAL) as host:
        run = plan(tmp_path, host.url, endpoint={"api_key_file": str(tmp_path / "hub-token")})
        forget(state)
        refused = call(command, run / RUN)
        linked = tmp_path / "elsewhere.yaml"
        linked.symlink_to(run / RUN)
        also_refused = call(command, linked)

        assert host.asked == []
        trusted = call(command, run / RUN, "--trust")
        assert host.asked
    assert refused.status == also_refused.status == 2
    assert "was not made here" in refused.complaint
    assert "was not made here" in also_refused.complaint
    assert "--trust" not in trusted.err


def test_the_run_file_of_a_folder_made_here_needs_none(tmp_path: Path) -> None:
    """Also by a link that lies elsewhere."""
    with FakeHost(lambda _asked: REFUSAL) as host:
        run = plan(tmp_path, host.url)
        linked = tmp_path / "elsewhere.yaml"
        linked.symlink_to(run / RUN)
        ended = [call("audit", path) for path in (run / RUN, linked)]

        assert len(host.asked) >= 2
    assert [one.status for one in ended] == [2, 2]
    assert not any("was not made here" in one.complaint for one in ended)


def test_a_run_file_among_other_things_needs_none(tmp_path: Path, state: Path) -> None:
    """Other programs write a plan.json and a report.json, and a run file may be a link."""
    for name in (PLAN, "report.json", FLEET):
        (tmp_path / name).write_text("{}")
    file = write_run_file(tmp_path, NOWHERE)
    linked = tmp_path / "link.yaml"
    linked.symlink_to(file)

    assert "was not made here" not in call("audit", linked).err


def test_planning_what_came_from_elsewhere_does_not_make_it_ours(
    tmp_path: Path, state: Path
) -> None:
    """Else a run file that is written as we write them would be noted by planning it."""
    run = plan(tmp_path)
    content = (run / RUN).read_text().replace(str(run), str(tmp_path / "second"))
    (run / RUN).write_text(content)
    forget(state)

    assert call("plan", run / RUN).status == 0
    assert (tmp_path / "second" / RUN).read_text() == content
    assert not is_made_here(run / RUN, state=state)


def test_planning_a_folder_from_elsewhere_does_not_make_it_ours(
    tmp_path: Path, state: Path
) -> None:
    """Given as a folder, nor into another one."""
    run = plan(tmp_path)
    forget(state)

    assert call("plan", run, "--out", tmp_path / "second").status == 0
    assert not is_made_here(tmp_path / "second" / RUN, state=state)
    assert "was not made here" in call("audit", run).complaint
    assert "was not made here" in call("capabilities", run).complaint


def test_a_control_that_somebody_put_beside_a_run_of_ours_needs_trust(
    tmp_path: Path, state: Path
) -> None:
    """Its run file says which key goes where, too."""
    theirs = plan(tmp_path, "http://127.0.0.1:2/v1").rename(tmp_path / "theirs")
    ours = plan(tmp_path)
    forget(state)
    remember([ours / RUN], state=state)
    theirs.rename(ours / "control")

    assert "control/run.yaml: lies in a run folder that was not made here" in (
        call("audit", ours).complaint
    )


def test_a_folder_that_was_taken_up_is_not_made_here(tmp_path: Path, state: Path) -> None:
    """Only what was written is noted; --trust holds for one command."""
    with FakeHost(lambda _asked: REFUSAL) as host:
        run = plan(tmp_path, host.url)
        forget(state)
        call("audit", run / RUN, "--trust")

    assert not is_made_here(run / RUN, state=state)


def test_the_folders_of_several_targets_are_made_here(tmp_path: Path, state: Path) -> None:
    """Each by itself, the control's, and the file of all."""
    path = write_run_file(tmp_path, NOWHERE)
    content = yaml.safe_load(path.read_text())
    one = content.pop("endpoint")
    path.write_text(json.dumps(content | {"targets": {"a": one, "b": one}, "control": one}))
    assert call("plan", path).status == 0
    out = tmp_path / "run"
    files = [out / FLEET, *(out / name / RUN for name in ("a", "b", "control"))]

    assert all(is_made_here(file, state=state) for file in files)
    forget(state)
    assert "was not made here" in call("audit", out / FLEET).complaint


@pytest.mark.parametrize("how", ["a file in its place", "a link", "not ours to write", "torn"])
def test_what_cannot_be_noted_stops_no_audit(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A home may be read-only, or full; then a folder of ours asks for --trust as any other."""
    state.parent.mkdir()
    match how:
        case "a file in its place":
            state.write_text("")
        case "a link":
            state.mkdir()
            (state / MADE_HERE).symlink_to(tmp_path / "victim")
        case "not ours to write":
            monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
        case "torn":
            state.mkdir()
            (state / MADE_HERE).write_bytes(b"\xff" * 100)
    run = plan(tmp_path)

    assert call("collect", run).status == 2
    assert not (tmp_path / "victim").exists()


def test_what_is_noted_stays_small(tmp_path: Path, state: Path) -> None:
    """The older half is forgotten, never the newest."""
    state.mkdir(parents=True)
    (state / MADE_HERE).write_text("".join(f"{n:064x}\n" for n in range(20_000)))
    path = tmp_path / RUN
    path.write_text("out: x\n")
    remember([path], state=state)

    assert (state / MADE_HERE).stat().st_size <= 2**19
    assert is_made_here(path, state=state)
    assert (state / MADE_HERE).stat().st_mode & 0o777 == 0o600


# -- what a run file from elsewhere may ask for ------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("card", "./card.yaml"),
        ("card", "card.yaml"),
        ("card", f"../reference/cards/{SHIPPED}.yaml"),
        ("card", "no-such-card"),
        ("weights", "weights"),
        ("engine_args", {"trust_remote_code": True}),
        ("url", NOWHERE),
        ("url_key_env", "SOME_KEY"),
        ("suspects", [{"name": "other", "path": "other"}]),
    ],
)
def test_a_reference_of_its_own_is_refused_by_its_key(
    tmp_path: Path, state: Path, key: str, value: Any
) -> None:
    """In one line, before a card is read."""
    run = plan(tmp_path)
    say(run, **{key: value})
    ended = call("score", run)

    assert ended.status == 2
    assert f"reference.{key}: " in ended.complaint
    assert "--trust" in ended.complaint


def test_a_shipped_card_an_engine_and_a_precision_are_nobodys_own() -> None:
    """And the numbers of GPUs, which nothing is loaded from."""
    refuse_foreign(
        ReferenceSection(
            card=SHIPPED, engine="vllm", dtype="bfloat16", hardware=Hardware(gpus=1, memory_gib=8)
        ),
        where="run",
    )


def test_a_key_that_is_added_later_is_refused_by_itself() -> None:
    """The gate knows what is allowed, and needs no word on what is not."""

    class Later(ReferenceSection):
        adapter: str | None = None
        helpers: tuple[Suspect, ...] = ()

    class Sized(Hardware):
        driver: str = ""

    refuse_foreign(Later(card=SHIPPED), where="run")
    with pytest.raises(ConfigError, match=r"^run: reference\.adapter: "):
        refuse_foreign(Later(card=SHIPPED, adapter="x"), where="run")
    with pytest.raises(ConfigError, match=r"reference\.helpers: "):
        refuse_foreign(Later(card=SHIPPED, helpers=(Suspect(name="a", path="b"),)), where="run")
    with pytest.raises(ConfigError, match=r"reference\.hardware: "):
        refuse_foreign(
            ReferenceSection(card=SHIPPED, hardware=Sized(gpus=1, memory_gib=8)), where="run"
        )


def test_a_card_in_a_folder_from_elsewhere_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by what pip would build, nor by a pip.py that lies where the command is typed."""
    from verifier.reference import loaded as local

    monkeypatch.setenv("MY_SECRET_KEY", KEY)
    monkeypatch.setattr("verifier.reference.loaded.reference_loader", local.reference_loader)
    run = plan(tmp_path)
    ran = tmp_path / "ran"
    project = run / "proj"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    )
    (project / "evil.py").write_text(f"open({str(ran)!r}, 'w').write('ran')\n")
    (run / "pip.py").write_text(f"open({str(ran)!r}, 'w').write('ran')\n")
    wheel = {"kind": "wheel", "requirement": "./proj", "sha256": "0" * 64, "member": "x"}
    write_plain_card(run, source=wheel)
    say(run, card="./tiny.yaml")
    monkeypatch.chdir(run)
    refused = call("score", ".")
    shown = call("panel", "./tiny.yaml", "--seed", 1)

    assert refused.status == shown.status == 2
    assert "reference.card" in refused.complaint
    assert "source.wheel.requirement" in shown.complaint or "source" in shown.complaint
    assert not ran.exists()


# -- links and sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["collect", "score", "audit", "capabilities", "plan"])
@pytest.mark.parametrize("target", ["run.yaml of ours", "/etc/passwd", "/dev/zero"])
def test_a_run_file_that_is_a_link_is_refused_in_its_folder(
    tmp_path: Path, command: str, target: str
) -> None:
    """Whatever it leads to, trusted or not."""
    run = plan(tmp_path)
    moved = (run / RUN).rename(tmp_path / "ours.yaml")
    (run / RUN).symlink_to(moved if target == "run.yaml of ours" else target)
    given = run if command in ("collect", "score") else run / RUN
    trust = [] if command == "plan" else ["--trust"]
    ended = [call(command, given), call(command, given, *trust)]

    assert [one.status for one in ended] == [2, 2]
    for one in ended:
        assert "link" in one.complaint or "is not a run file" in one.complaint
        assert "root:" not in one.complaint


def test_a_file_of_targets_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Nothing of what it leads to is shown."""
    folder = tmp_path / "hosts"
    folder.mkdir()
    (folder / FLEET).symlink_to("/etc/hostname")

    assert "is a link" in call("summary", folder).complaint


@pytest.mark.parametrize("command", ["collect", "score", "summary", "plan", "audit"])
@pytest.mark.parametrize("what", ["3 GiB", "pipe", "aliases"])
def test_a_run_file_that_nobody_would_write_is_refused_at_once(
    tmp_path: Path, command: str, what: str
) -> None:
    """Before its size is read, without waiting for anybody, and without taking anything apart."""
    run = plan(tmp_path)
    name = FLEET if command == "summary" else RUN
    path = run / name
    path.unlink(missing_ok=True)
    match what:
        case "3 GiB":
            with path.open("wb") as file:
                file.truncate(3 * 2**30)
        case "pipe":
            os.mkfifo(path)
        case "aliases":
            lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
            lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
            path.write_text("\n".join(lines))
    given = run if command in ("collect", "score", "summary") else path
    begun = time.monotonic()
    ended = call(command, given, *([] if command in ("summary", "plan") else ["--trust"]))

    assert ended.status == 2
    assert ended.complaint
    assert time.monotonic() - begun < 5


# -- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["run file", "flag", "targets", "control", "http"])
def test_a_presets_key_goes_to_the_presets_own_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Whoever names another address names the key, or says that there is none."""
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    with FakeHost(lambda _asked: chat()) as host:
        path = write_run_file(tmp_path, host.url)
        content = yaml.safe_load(path.read_text())
        plain = content["endpoint"]
        other = plain | {"host": "together"}
        own = {"host": "together", "model": "tiny"}
        flags: list[object] = []
        match by:
            case "run file":
                content["endpoint"] = other
            case "flag":
                content["endpoint"] = own
                flags = ["--base-url", host.url]
            case "targets":
                del content["endpoint"]
                content["targets"] = {"a": other}
            case "control":
                content["control"] = own
                flags = ["--control", host.url]
            case "http":
                content["endpoint"] = own | {"base_url": "http://api.together.xyz/v1"}
        path.write_text(yaml.safe_dump(content))
        ended = call("audit", path, *flags)

        assert host.asked == []
    assert ended.status == 2
    assert "api_key_env: missing; TOGETHER_API_KEY is for the host together alone" in (
        ended.complaint
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("says", "sent"), [("MY_KEY", f"Bearer {KEY}"), (None, None)])
def test_a_key_that_is_named_goes_where_the_run_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str | None, sent: str | None
) -> None:
    """With what is known of the host otherwise."""
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("TOGETHER_API_KEY", "sk-of-together-0123456789")
    with FakeHost(lambda _asked: chat()) as host:
        plan(tmp_path, host.url, endpoint={"host": "together", "api_key_env": says})
        assert load_run_file(tmp_path / "run" / RUN).endpoint.logprobs_form == "integer"
        call("collect", tmp_path / "run", "--probes", 1)

        assert host.asked[0].headers.get("authorization") == sent


def test_a_preset_keeps_its_key_for_another_path_of_its_host(tmp_path: Path) -> None:
    """The scheme, the name and the port make the host."""
    endpoint = {"host": "together", "base_url": "https://API.together.xyz:443/v2"}
    plan(tmp_path, NOWHERE, endpoint=endpoint)

    loaded = load_run_file(tmp_path / "run" / RUN)
    assert loaded.endpoint.api_key_env == "TOGETHER_API_KEY"


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://far.invalid/v1", True),
        ("http://192.0.2.1:8000/v1", True),
        ("http://127.0.0.1:1/v1", False),
        ("http://[::1]:1/v1", False),
        ("http://localhost:1/v1", False),
        ("https://far.invalid:1/v1", False),
    ],
)
def test_a_key_that_would_go_in_clear_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, warned: bool
) -> None:
    """Before anything is sent, and never with the key."""
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setattr("verifier.steps.ask", lambda *_what, **_how: 0)
    plan(tmp_path, url, endpoint={"api_key_env": "SOME_KEY"})
    ended = call("collect", tmp_path / "run")

    assert ended.err.startswith("warning: endpoint.base_url: http sends the key") == warned
    assert KEY not in ended.err


# -- checkpoints with code of their own --------------------------------------------------------


@pytest.fixture
def own_code(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint that says it needs code, which writes a file when it runs."""
    directory = tmp_path / "own-code"
    shutil.copytree(tiny, directory)
    write = f"open({str(tmp_path / 'ran')!r}, 'w').write('ran')\n"
    for name in ("tokenization_evil", "modeling_evil", "configuration_evil"):
        (directory / f"{name}.py").write_text(write)
    return directory


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


AUTO = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModelForCausalLM": "modeling_evil.EvilModel",
    "AutoTokenizer": ["tokenization_evil.EvilTokenizer", None],
}


def answering_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_what: object) -> str:
        pytest.fail("asked on the terminal")

    monkeypatch.setattr("builtins.input", refuse)


def test_a_tokenizer_with_code_of_its_own_is_refused(
    own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, without a question."""
    from verifier.errors import ReferenceMismatch
    from verifier.reference.tokenizer import Tokenizer

    answering_yes(monkeypatch)
    (own_code / "tokenizer.json").unlink()
    change(own_code / "tokenizer_config.json", auto_map=AUTO, tokenizer_class="EvilTokenizer")
    change(own_code / "config.json", auto_map=AUTO, model_type="evil")
    with pytest.raises(ReferenceMismatch, match="needs code of its own") as refused:
        Tokenizer(own_code)

    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_model_with_code_of_its_own_is_refused(
    own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, without a question."""
    from verifier.reference.engines.transformers import TransformersEngine

    answering_yes(monkeypatch)
    change(own_code / "config.json", auto_map=AUTO, model_type="evil", architectures=["Evil"])
    with pytest.raises(ConfigError, match="needs code of its own") as refused:
        TransformersEngine(own_code, eos_ids=(2,))

    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_known_model_that_also_brings_code_is_loaded_without_it(
    own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many checkpoints keep the code that they were first published with."""
    from verifier.reference.engines.transformers import TransformersEngine
    from verifier.reference.tokenizer import Tokenizer

    answering_yes(monkeypatch)
    change(own_code / "tokenizer_config.json", auto_map=AUTO)
    change(own_code / "config.json", auto_map=AUTO)

    assert Tokenizer(own_code).encode("the")
    TransformersEngine(own_code, eos_ids=(2,)).close()
    assert not (tmp_path / "ran").exists()


def test_everything_that_is_made_here_is_noted_once_by_each_thread(
    tmp_path: Path, state: Path
) -> None:
    """Audits side by side lose no line of each other's."""
    paths = [tmp_path / f"{n}.yaml" for n in range(40)]
    for path in paths:
        path.write_text(f"out: {path}\n")
    threads = [
        threading.Thread(target=remember, args=([path],), kwargs={"state": state}) for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(is_made_here(path, state=state) for path in paths)


def test_a_folder_without_its_run_file_is_one_line(tmp_path: Path) -> None:
    """Rather than a question of trust."""
    run = plan(tmp_path)
    (run / RUN).unlink()

    assert (run / PROBES).exists()
    assert "no such run file" in call("collect", run).complaint
    assert "no such run file" in call("audit", run / RUN).complaint
