"""What must not leave, and what must not come in: keys, certificates, strangers' folders."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes_engine import FakeTokenizer
from fakes_host import Answer, Asked, FakeHost, chat
from test_audit import card, configure, load_reference, make_engine, run  # noqa: F401 - a fixture
from test_commands import call, with_fake_reference, write_run_file

from verifier.files.run_folder import PLAN, PROBES, RUN
from verifier.host.collect import collect, read_outcomes
from verifier.host.endpoint import Client, Endpoint
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import Message, NotJudged, Probe, Reply
from verifier.reports.junit import render_junit
from verifier.reports.markdown import render_markdown
from verifier.steps import write_page

KEY = "sk-test-0123456789abcdef"
PROBE = Probe(id="p1", kind="open", messages=(Message(role="user", content="Hi."),), max_tokens=24)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def every_byte(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# -- the key -----------------------------------------------------------------------------------


def spelled(*pieces: str, name: str = "content") -> bytes:
    """A stream whose pieces together are a text, or a thought."""
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": {name: p}}]} for p in pieces]
    chunks += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks).encode() + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=spelled("It is sk-te", "st-01234", "56789abcdef.", name="reasoning"),
               headers={"Content-Type": "text/event-stream"}),
        Answer(body=spelled("Your key is sk-te", "st-01234", "56789abcdef."),
               headers={"Content-Type": "text/event-stream"}),
        Answer(body=chat([{"type": "text", "text": "sk-test-01"},
                          {"type": "text", "text": "23456789abcdef"}])),
        Answer(body=chat("Hi."), headers={"x-request-id": KEY, "server": KEY}),
    ],
    ids=["over a thought", "over a stream", "over parts", "in headers"],
)  # fmt: skip
def test_a_key_that_a_host_spells_in_pieces_is_in_nothing_written(
    tmp_path: Path, answer: Answer
) -> None:
    """Neither in one piece in the folder nor put together in an outcome."""
    with FakeHost(lambda _asked: answer) as host:
        endpoint = Endpoint(
            base_url=host.url, model="m", api_key=KEY, top_logprobs=0, max_attempts=1
        )
        collect(tmp_path, endpoint, [PROBE])
        outcomes = read_outcomes(tmp_path, max_attempts=1)

    (outcome,) = outcomes.values()
    text = repr(outcome)
    assert KEY not in text
    assert KEY.encode() not in every_byte(tmp_path)
    assert "sk-te" not in text


def test_the_key_of_an_audit_is_in_no_artefact(card: Path, tmp_path: Path) -> None:  # noqa: F811
    """Run folder, pages, summaries: every byte that one whole audit writes."""
    app = create_app(
        Host(
            engine=make_engine(),
            tokenizer=FakeTokenizer(),
            model="tiny",
            api_key=KEY,
            window_s=0.001,
        )
    )
    out = tmp_path / "run"
    with running(app) as url:
        report = run(configure(url, card, out), key=KEY)
    write_page(out)
    (out / "junit.xml").write_text(render_junit(report))
    (out / "summary.md").write_text(render_markdown(report))

    written = every_byte(out)
    assert report.decision == "consistent"
    assert KEY.encode() not in written
    assert KEY.encode().upper() not in written


@pytest.mark.parametrize(
    ("place", "content", "said"),
    [
        ("key.txt", "", "must hold the key and nothing else"),
        ("run/key.txt", KEY, "lies in the run folder"),
        ("none.txt", None, "cannot be read"),
        ("key.txt", "k" * 20_000, "must hold the key and nothing else"),
    ],
)
def test_a_key_file_that_cannot_be_is_refused(
    tmp_path: Path, place: str, content: str | None, said: str
) -> None:
    """In one line that names the file and never the key."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_text(content)
    run_file = write_run_file(
        tmp_path, "http://127.0.0.1:1/v1", endpoint={"api_key_file": str(path)}
    )
    ended = call("audit", run_file)

    assert ended.status == 2
    assert said in ended.complaint
    assert KEY not in ended.err


def test_a_key_may_come_from_a_file(tmp_path: Path) -> None:
    """It is sent, and the run folder holds the file's name alone."""
    key_file = tmp_path / "key.txt"
    key_file.write_text(KEY + "\n")
    with FakeHost(lambda _asked: Answer(status=401, body={"error": {"message": "no"}})) as host:
        run_file = write_run_file(tmp_path, host.url, endpoint={"api_key_file": str(key_file)})
        assert call("plan", run_file).status == 0
        call("collect", tmp_path / "run", "--trust")

        assert host.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY.encode() not in every_byte(tmp_path / "run")


def test_keys_of_several_targets_and_a_control_are_in_no_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each host gets its own alone and repeats it, one refuses it; nothing written holds any."""
    with_fake_reference(monkeypatch)
    keys = {name: f"sk-of-{name}-0123456789abcdef" for name in ("one", "two", "off", "control")}

    def script(asked: Asked) -> Any:
        key = asked.headers["authorization"].removeprefix("Bearer ")
        if key == keys["off"]:
            return Answer(status=401, body={"error": {"message": f"bad key {key}"}})
        return chat(f"the model says {key} more or less now")

    with ExitStack() as stack:
        hosts = {name: stack.enter_context(FakeHost(script)) for name in keys}
        sections = {}
        for name, key in keys.items():
            (tmp_path / f"{name}.key").write_text(key)
            sections[name] = {
                "base_url": hosts[name].url, "model": "tiny", "max_attempts": 1,
                "api_key_file": str(tmp_path / f"{name}.key"),
            }  # fmt: skip
        path = write_run_file(tmp_path, "http://127.0.0.1:1/v1")
        content = yaml.safe_load(path.read_text())
        del content["endpoint"]
        control = sections.pop("control")
        path.write_text(yaml.safe_dump(content | {"targets": sections, "control": control}))
        ended = call("audit", path)
        out = tmp_path / "run"
        call("summary", out, "--junit", out / "junit.xml", "--markdown", out / "summary.md")
        sent = {
            name: {asked.headers["authorization"] for asked in host.asked}
            for name, host in hosts.items()
        }

    assert ended.status in (1, 3)
    assert sent == {name: {f"Bearer {key}"} for name, key in keys.items()}
    written = every_byte(out) + (ended.out + ended.err).encode()
    assert b"refused the API key" in written
    for key in keys.values():
        assert key.encode() not in written


def test_a_key_file_in_the_folder_of_all_targets_is_refused(tmp_path: Path) -> None:
    """That folder is passed on whole."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "key.txt").write_text(KEY)
    path = write_run_file(tmp_path, "http://127.0.0.1:1/v1")
    content = yaml.safe_load(path.read_text())
    target = content.pop("endpoint") | {"api_key_file": str(tmp_path / "run" / "key.txt")}
    path.write_text(yaml.safe_dump(content | {"targets": {"a": target}}))

    assert "lies in the run folder" in call("audit", path).complaint


# -- the line ----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    """The key is not sent to a host that cannot prove its name."""
    certificate, private = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-keyout", private, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Authorization"])

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # it is refused on purpose
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    endpoint = Endpoint(
        base_url=f"https://localhost:{server.server_port}/v1", model="m", api_key=KEY
    )

    async def once() -> str:
        async with Client(endpoint) as client:
            return (await client.ask(PROBE, number=1, logprobs=False)).attempt.error or ""

    try:
        error = asyncio.run(once())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "CERTIFICATE_VERIFY_FAILED" in error
    assert asked == []


# -- a run folder from a stranger --------------------------------------------------------------


def as_from_a_stranger(run_: Path) -> Path:
    """The run folder, less the memory that it was made here."""
    with (run_ / RUN).open("a") as file:
        file.write("# of somebody else\n")
    return run_


def test_a_strangers_folder_gets_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run file names a host and a variable of ours; nothing is sent until we say so."""
    monkeypatch.setenv("SOME_KEY", KEY)
    with FakeHost(lambda _asked: chat()) as host:
        run_file = write_run_file(tmp_path, host.url, endpoint={"api_key_env": "SOME_KEY"})
        assert call("plan", run_file).status == 0
        as_from_a_stranger(tmp_path / "run")
        refused = call("collect", tmp_path / "run")
        nothing_sent = not host.asked
        trusted = call("collect", tmp_path / "run", "--probes", 1, "--trust")

        assert host.asked
    assert (refused.status, nothing_sent, trusted.status) == (2, True, 0)
    assert "--trust" in refused.complaint
    assert host.url in refused.complaint


@pytest.mark.parametrize(
    "reference",
    [
        {"engine_args": {"trust_remote_code": True}},
        {"weights": "weights"},
        {"suspects": [{"name": "other", "path": "other"}]},
        {"url": "http://127.0.0.1:1/v1", "engine": "remote"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_strangers_folder_loads_nothing_of_its_own(
    tmp_path: Path, reference: dict[str, Any]
) -> None:
    """Engine arguments can run code, and a path or a server can be anything."""
    run_file = write_run_file(tmp_path, "http://127.0.0.1:1/v1")
    content = yaml.safe_load(run_file.read_text())
    content["reference"] |= reference
    run_file.write_text(yaml.safe_dump(content))
    content["reference"] |= {"card": "smollm2-135m-instruct"}
    assert call("plan", run_file).status == 0
    run_ = as_from_a_stranger(tmp_path / "run")
    (run_ / RUN).write_text(yaml.safe_dump(content))
    ended = call("score", run_)

    assert ended.status == 2
    assert f"reference.{next(iter(reference))}: " in ended.complaint
    assert "--trust" in ended.complaint


def test_a_strangers_folder_cannot_write_elsewhere(tmp_path: Path) -> None:
    """What its run file calls `out` is not where a step writes."""
    run_file = write_run_file(tmp_path, "http://127.0.0.1:1/v1")
    assert call("plan", run_file).status == 0
    run_ = tmp_path / "run"
    moved = tmp_path / "elsewhere"
    (run_ / RUN).write_text((run_ / RUN).read_text().replace(str(run_), str(moved)))
    with FakeHost(lambda _asked: chat()) as host:
        (run_ / RUN).write_text((run_ / RUN).read_text().replace("http://127.0.0.1:1/v1", host.url))
        assert call("collect", run_, "--probes", 1, "--trust").status == 0

    assert not moved.exists()
    assert {RUN, PLAN, PROBES} < {path.name for path in run_.iterdir()}
    assert all(
        isinstance(outcome, Reply | NotJudged)
        for outcome in read_outcomes(run_, max_attempts=8).values()
    )
