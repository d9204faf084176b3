"""Hosts that repeat the API key in every way they may: nothing written or shown spells it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from audits import write_run_file
from command_line import call, with_fake_reference
from fakes_engine import FakeTokenizer
from fakes_host import Answer, Asked, FakeHost, chat
from hypothesis import given, settings
from hypothesis import strategies as st
from spelled import find_spelled, read_all

from verifier.checks.capabilities.probe import probe_capabilities
from verifier.errors import ConfigError, EndpointError
from verifier.host.budget import Ceiling, Purse
from verifier.host.collect import collect, read_attempts, read_outcomes
from verifier.host.dialects.chat import CHAT
from verifier.host.endpoint import Client, Endpoint
from verifier.host.exchange import parse
from verifier.records import Message, Probe
from verifier.safety import sieve

KEY = "sk-test-0123456789abcdef"
PROBES = [
    Probe(id=f"p{n}", kind="open", messages=(Message(role="user", content="Hi."),), max_tokens=24)
    for n in range(2)
]
SSE = {"Content-Type": "text/event-stream"}


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "VERIFIER_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    with_fake_reference(monkeypatch)


# -- the ways to repeat a key --------------------------------------------------------------------


def between(sign: str) -> str:
    return sign.join(KEY)


def stream(*deltas: dict[str, Any], last: dict[str, Any] | None = None, head: str = "") -> Answer:
    chunks = [{"id": "c", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks += [{"choices": [last or {"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    body = head + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return Answer(body=(body + "data: [DONE]\n\n").encode(), headers=SSE)


def says(text: str) -> dict[str, Any]:
    return {"error": {"message": f"bad key {text}"}}


def raw(status_line: str, *headers: str, body: str = "no") -> Answer:
    head = "\r\n".join([f"HTTP/1.1 {status_line}", f"Content-Length: {len(body)}", *headers])
    return Answer(raw=f"{head}\r\n\r\n{body}".encode())


CUT = [KEY[:5], KEY[5:14], KEY[14:]]
SPELLED = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "percent": "".join(f"%{ord(s):02x}" for s in KEY),
    "escaped hyphens": KEY.replace("-", "\\u002d"),
    "escaped twice": "".join(f"\\u{ord(s):04x}" for s in KEY),
    "entities": "".join(f"&#{ord(s)};" for s in KEY),
    "base64": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "zero width": between("\u200b"),
    "NUL": between("\x00"),
    "soft hyphens": between("\xad"),
    "private use": between("\ue000"),
    "bidi marks": between("\u202e"),
    "lone surrogates": between("\ud800"),
    "backspaces": between("\b"),
    "fullwidth": "".join(chr(ord(s) + 0xFEE0) for s in KEY),
}
ECHOES: dict[str, Answer] = {
    **{f"401 {name}": Answer(status=401, body=says(text)) for name, text in SPELLED.items()},
    **{f"400 {name}": Answer(status=400, body=says(text)) for name, text in SPELLED.items()},
    **{f"text {name}": Answer(body=chat(f"It is {text}.")) for name, text in SPELLED.items()},
    **{f"{status} zero width": Answer(status=status, body=says(SPELLED["zero width"]))
       for status in (403, 404, 429, 500)},
    "raw escapes": Answer(status=500, body=json.dumps(says("@")).replace(
        "@", "".join(f"\\u{ord(s):04x}" for s in KEY)).encode()),
    "refusal": Answer(body=chat("", refusal=f"no {between(chr(0xAD))}")),
    "refusal in pieces": stream(*({"refusal": piece} for piece in CUT)),
    "text in pieces": stream(*({"content": piece} for piece in CUT)),
    "text in unseen pieces": stream(*({"content": f"{piece}\u200b"} for piece in CUT)),
    "thought in pieces": stream(*({"reasoning": p} for p in CUT), {"content": "Hi."}),
    "thought and text": Answer(body=chat(CUT[1] + CUT[2], reasoning=CUT[0])),
    "text and thought": Answer(body=chat(CUT[0], reasoning=CUT[1] + CUT[2])),
    "thought and text in a stream": stream({"reasoning": KEY[:9]}, {"content": KEY[9:]}),
    "tool call in pieces": stream(*({"tool_calls": [{"index": 0, "function": {"arguments": p}}]}
                                    for p in CUT)),
    "finish reason": Answer(body={"choices": [{"message": {"content": "Hi."},
                                               "finish_reason": between("\u200b")}]}),
    "finish reason in pieces": Answer(headers=SSE, body="".join(
        f"data: {json.dumps({'choices': [{'delta': {'content': 'a'}, 'finish_reason': p}]})}\n\n"
        for p in CUT).encode()),
    "parts": Answer(body=chat([{"type": "text", "text": piece} for piece in CUT])),
    "two choices": Answer(body={"choices": [
        {"index": n, "message": {"content": p}, "finish_reason": "stop"}
        for n, p in enumerate(CUT)]}),
    "header": Answer(body=chat(), headers={"x-request-id": KEY, "server": KEY}),
    "headers in pieces": Answer(body=chat(), headers={"x-request-id": KEY[:9], "via": KEY[9:]}),
    "reason phrase": raw(f"401 {KEY}"),
    "bad status line": raw(f"HTTP {KEY}"),
    "bad header": raw("200 OK", f"{KEY}"),
    "bad header name": raw("200 OK", f"{KEY} x: y"),
    "location": Answer(status=307, headers={"Location": f"http://{KEY}/x"}),
    "location path": Answer(status=302, headers={"Location": f"http://127.0.0.1:1/{KEY}"}),
    "bad location": Answer(status=302, headers={"Location": f"http://[{KEY}"}),
    "encoding": Answer(body=chat(), headers={"Content-Encoding": KEY}),
    "id": Answer(body=chat() | {"id": between("\u200b")}),
    **{f"model {name}": Answer(body=chat() | {"model": f"own/{text}"})
       for name, text in SPELLED.items()},
    "model in pieces": Answer(headers=SSE, body="".join(
        f"data: {json.dumps({'model': p, 'choices': [{'delta': {'content': 'a'}}]})}\n\n"
        for p in CUT).encode() + b"data: [DONE]\n\n"),
    "fingerprint": Answer(body=chat() | {"system_fingerprint": KEY[:9], "model": KEY[9:]}),
    "logprob tokens": Answer(body=chat(logprobs={"content": [
        {"token": s, "logprob": -1.0, "bytes": [120], "top_logprobs": []} for s in KEY]})),
    "logprob bytes": Answer(body=chat(logprobs={"content": [
        {"token": "x", "logprob": -1.0, "bytes": [ord(s)], "top_logprobs": []} for s in KEY]})),
    "alternatives": Answer(body=chat(logprobs={"content": [
        {"token": "x", "logprob": -1.0, "top_logprobs": [{"token": s, "logprob": -2.0}]}
        for s in KEY]})),
    "usage keys": Answer(body=chat() | {"usage": dict.fromkeys(CUT, 1)}),
    "usage key": Answer(body=chat() | {"usage": {between("\u200b"): 1}}),
    "web page title": Answer(
        status=502, body=f"<html><title>{SPELLED['soft hyphens']}</title>".encode()),
    "web page": Answer(body=f"<html><title>{SPELLED['entities']}</title>".encode()),
    "error object in a 200": Answer(body={"error": {"message": between("\u200b"), "code": "x"}}),
    "error code in a 200": Answer(body={"error": {"message": "no", "code": between("\x00")}}),
    "error in a choice": Answer(body={"choices": [{"error": {"message": between("\ue000")}}]}),
    "error in an event": Answer(headers=SSE, body=(
        f"data: {json.dumps({'error': {'message': between(chr(0x200B))}})}\n\n").encode()),
    "error in two messages": Answer(status=422, body={"detail": [{"msg": p} for p in CUT]}),
    "event name": stream({"content": "Hi."}, head=f"event: {KEY}\ndata: {{}}\n\n"),
    "event names": stream({"content": "Hi."}, head="".join(
        f"event: {p}\ndata: {{}}\n\n" for p in CUT)),
    "comment": stream({"content": "Hi."}, head=f": {between(chr(0x200B))}\n\n"),
    "comments": stream({"content": "Hi."}, head="".join(f": {p}\n\n" for p in CUT)),
    "no JSON": Answer(body=f"your key is {between(chr(0x200B))}".encode()),
    "content of another kind": Answer(body=chat({"key": between("\u200b")})),
    "a text for logprobs": Answer(body=chat(logprobs=between("\u200b"))),
    "a token of another kind": Answer(body=chat(logprobs={"content": [
        {"token": "x", "logprob": between("\u200b")}]})),
    "not UTF-8": Answer(status=401, body=b"bad key " + b"\xff".join(s.encode() for s in KEY)),
    "broken off": Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + KEY[:-1].encode()),
    "filter": Answer(body={"choices": [{"message": {"content": ""}, "finish_reason":
                                        "content_filter", "reason": CUT}]}),
}  # fmt: skip


@pytest.mark.parametrize("answer", ECHOES.values(), ids=ECHOES)
def test_a_collection_spells_no_key(
    tmp_path: Path, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in the folder, nor in what is read back from it, nor in what is raised."""
    said = ""
    with FakeHost(lambda _asked: answer) as host:
        endpoint = Endpoint(base_url=host.url, model="m", api_key=KEY, max_attempts=1)
        try:
            collect(tmp_path, endpoint, PROBES)
        except EndpointError as error:
            said = str(error)
    sieve.forget()  # whoever reads the folder knows no key
    outcomes = read_outcomes(tmp_path, max_attempts=1)
    claims = [parse(attempt) for attempt in read_attempts(tmp_path)]
    bodies = [attempt.body for attempt in read_attempts(tmp_path)]
    assembled = [CHAT.assemble(body) for body in bodies if body.startswith("data:")]

    assert host.asked
    assert read_attempts(tmp_path)
    texts = [*read_all(tmp_path), *bodies, repr(outcomes), repr(claims), repr(assembled), said]
    assert find_spelled(KEY, [*texts, "".join(capsys.readouterr())]) == []
    told = "".join(text for one in claims for text in sieve.texts_in(one))
    assert find_spelled(KEY, [told]) == []


@pytest.mark.parametrize("name", ["404", "names"])
def test_models_that_a_host_lists_spell_no_key(tmp_path: Path, name: str) -> None:
    """They are named to the operator, who asked for another."""
    names = [KEY, between("\u200b"), SPELLED["entities"], SPELLED["base64"]]
    models = Answer(body={"data": [{"id": one} for one in names]})
    with FakeHost(lambda _asked: Answer(status=404, body=says("")), models=models) as host:
        endpoint = Endpoint(base_url=host.url, model="m", api_key=KEY)

        async def listed() -> tuple[str, ...]:
            async with Client(endpoint) as client:
                return await client.list_models()

        if name == "names":
            texts = list(asyncio.run(listed()))
            assert len(texts) == len(names)
        else:
            with pytest.raises(EndpointError) as raised:
                collect(tmp_path, endpoint, PROBES)
            texts = [str(raised.value)]
    assert find_spelled(KEY, texts) == []


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_cut_of_a_key_is_ever_kept(data: st.DataObject) -> None:
    """Any pieces over the events of a stream, with any unseen signs in them."""
    sieve.know(KEY)
    noise = st.text("\u200b\x00\xad\ue000\u202e\u2066\ufeff\u0301\ud800\x08", max_size=2)
    pieces, piece = [], ""
    for sign in KEY:
        piece += sign + data.draw(noise)
        if data.draw(st.booleans()):
            pieces, piece = [*pieces, piece], ""
    field = data.draw(st.sampled_from(["content", "refusal", "reasoning", "other"]))
    body = stream(*({field: one} for one in [*pieces, piece])).body

    assert sieve.is_spelled(body.decode())


def test_honest_answers_are_kept_to_the_byte(tmp_path: Path) -> None:
    """Whatever looks like a key, or like an escape, in them."""
    words = "100%41 &amp; \\u0041 sk-test é ， ² 数学 sk-test-0123 456789abcdef \x7f\x08" + "a" * 99
    tokens = [
        {"token": t, "logprob": -0.5, "bytes": list(t.encode()), "top_logprobs": []} for t in words
    ]
    body = json.dumps(chat(words, logprobs={"content": tokens})).encode()
    with FakeHost(lambda _asked: Answer(body=body)) as host:
        for key in (KEY, "sk-aaaaaaaa", "abcdefgh"):
            endpoint = Endpoint(base_url=host.url, model="m", api_key=key, max_attempts=1)
            collect(tmp_path, endpoint, PROBES)

    attempts = read_attempts(tmp_path)
    assert [attempt.body.encode() for attempt in attempts] == [body] * 2
    assert all(attempt.error is None for attempt in attempts)


def test_capabilities_spell_no_key(tmp_path: Path) -> None:
    """Their exchanges, their record and what is said of refused parameters."""

    def script(asked: Asked) -> Answer:
        fields = asked.json
        if "stop" in fields or "seed" in fields:
            return Answer(status=400, body=says(between("\u200b")))
        if fields.get("stream"):
            return ECHOES["refusal in pieces"]
        if fields.get("return_token_ids"):
            return ECHOES["logprob tokens"]
        return Answer(body=chat("One two three four five six seven."))

    purse = Purse(Ceiling(completion_tokens=10_000, usd=None, prices=None))
    with FakeHost(script) as host:
        endpoint = Endpoint(base_url=host.url, model="m", api_key=KEY, max_attempts=1)
        found = probe_capabilities(tmp_path, endpoint, purse=purse, sleep=lambda _s: None)

    assert len(host.asked) > 5
    assert find_spelled(KEY, [*read_all(tmp_path), repr(found)]) == []


def test_settings_that_hold_the_key_are_refused() -> None:
    """They are kept in the run folder."""
    for changes in (
        {"base_url": f"http://h/{KEY}/v1"}, {"model": KEY.upper()},
        {"extra_body": {"auth": {"token": KEY}}}, {"headers": {"X-Auth": f"Key {KEY}"}},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="holds the API key itself") as raised:
            Endpoint(**({"base_url": "http://h/v1", "model": "m", "api_key": KEY} | changes))
        assert KEY not in str(raised.value)


def test_no_log_and_no_exception_holds_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even those of the HTTP client at their most talkative."""
    with caplog.at_level(logging.DEBUG), FakeHost(lambda _asked: ECHOES["header"]) as host:
        endpoint = Endpoint(base_url=host.url, model="m", api_key=KEY, max_attempts=1)
        collect(tmp_path, endpoint, PROBES)

    assert any(record.name.startswith("httpcore") for record in caplog.records)
    assert find_spelled(KEY, [record.getMessage() for record in caplog.records]) == []


def test_what_a_proxy_says_beside_its_status_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may repeat the proxy's own key, which is not known here."""

    def refuse() -> None:
        line, _address = listener.accept()
        with line:
            line.recv(65_536)
            line.sendall(b"HTTP/1.1 407 Basic dXNlcjpwYXNz\r\nContent-Length: 0\r\n\r\n")

    endpoint = Endpoint(
        base_url="https://far.test/v1", model="m", api_key=KEY, max_attempts=1, concurrency=1
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        with pytest.raises(EndpointError) as raised:
            collect(tmp_path, endpoint, PROBES[:1])

    assert "the proxy answered 407" in str(raised.value)
    assert "dXNlcjpwYXNz" not in str(raised.value)
    assert b"dXNlcjpwYXNz" not in b"".join(read_all(tmp_path))


# -- whole audits --------------------------------------------------------------------------------


def mixed(answer: Answer, every: int) -> Callable[[Asked], Answer]:
    honest = Answer(body=chat("the model says more or less now"))
    return lambda asked: answer if asked.index % every == 0 else honest


def check_artefacts(out: Path, tmp_path: Path, *ended: Any) -> None:
    """Report, page, JUnit and Markdown are made in a process that knows no key."""
    sieve.forget()
    junit, markdown = tmp_path / "junit.xml", tmp_path / "summary.md"
    command = "summary" if (out / "targets.yaml").exists() else "report"
    said = call(command, out, "--junit", junit, "--markdown", markdown)
    also = [call("report", path.parent) for path in out.rglob("report.json")]
    also += [call("report", path.parent, "--json") for path in out.rglob("report.json")]
    texts: list[bytes | str] = [*read_all(tmp_path)]
    for one in (*ended, said, *also):
        texts += [one.out, one.err, "".join(one.out.split()), "".join(one.err.split())]
    assert find_spelled(KEY, texts) == []


@pytest.mark.parametrize(("name", "every"), [
    ("401 zero width", 1), ("400 entities", 1), ("500 zero width", 3), ("404 zero width", 1),
    ("429 zero width", 3), ("text base64", 3), ("refusal in pieces", 1), ("refusal in pieces", 3),
    ("thought and text", 3), ("finish reason", 1), ("error object in a 200", 3),
    ("logprob tokens", 3), ("web page title", 3), ("model base64", 1), ("model zero width", 1),
])  # fmt: skip
def test_an_audit_spells_no_key(tmp_path: Path, name: str, every: int) -> None:
    """By the command line: folder, page, terminal, JUnit and Markdown."""
    with FakeHost(mixed(ECHOES[name], every)) as host:
        run_file = write_run_file(
            tmp_path, host.url, endpoint={"api_key_env": "SOME_KEY"},
            top_logprobs=5 if "logprob" in name else 0,
        )  # fmt: skip
        ended = call("audit", run_file)
        again = call("collect", tmp_path / "run", "--trust")

    assert host.asked
    assert all(one.status in (0, 1, 2, 3) for one in (ended, again))
    check_artefacts(tmp_path / "run", tmp_path, ended, again)


@pytest.mark.parametrize("name", ["401 zero width", "refusal in pieces", "500 zero width"])
def test_an_audit_of_several_targets_spells_no_key(tmp_path: Path, name: str) -> None:
    """One echoes always and one at times; errors, summaries and a control among the files."""
    with (
        FakeHost(mixed(ECHOES[name], 1)) as always,
        FakeHost(mixed(ECHOES[name], 4)) as at_times,
        FakeHost(mixed(ECHOES[name], 3)) as beside,
    ):
        path = write_run_file(tmp_path, always.url)
        content = yaml.safe_load(path.read_text())
        section = content.pop("endpoint") | {"api_key_env": "SOME_KEY"}
        targets = {"a": section, "b": section | {"base_url": at_times.url}}
        control = section | {"base_url": beside.url}
        path.write_text(yaml.safe_dump(content | {"targets": targets, "control": control}))
        ended = call("audit", path)

    assert ended.status in (0, 1, 2, 3)
    check_artefacts(tmp_path / "run", tmp_path, ended)


def test_a_trace_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of a defect whose message repeats it."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(f"{SPELLED['zero width']} and {KEY}")

    monkeypatch.setattr("verifier.audit.audit", fail)
    run_file = write_run_file(
        tmp_path, "http://127.0.0.1:1/v1", endpoint={"api_key_env": "SOME_KEY"}
    )
    ended = call("audit", run_file, VERIFIER_TRACEBACK="1")

    assert ended.status == 4
    assert "Traceback" in ended.err
    assert find_spelled(KEY, [ended.out, ended.err]) == []


@pytest.mark.parametrize("name", ["plain", "zero width", "entities", "NUL", "base64"])
@pytest.mark.parametrize("where", ["401", "models", "version"])
def test_a_remote_engine_spells_no_key(name: str, where: str) -> None:
    """A 401 that repeats it, names of models, a version."""
    from verifier.reference.engines.remote import RemoteEngine

    text = SPELLED[name]
    models = {
        "401": Answer(status=401, body=says(text)),
        "models": Answer(body={"data": [{"id": text}, {"id": "b"}]}),
        "version": Answer(body={"data": [{"id": text}]}),
    }[where]
    answer = {"version": text, "choices": [{"prompt_logprobs": [None, {}]}]}
    with FakeHost(lambda _asked: answer, models=models) as host:
        try:
            engine = RemoteEngine(host.url, eos_ids=[0], api_key=KEY)
            said = str(engine.versions)
            engine.close()
        except ConfigError as error:
            said = str(error)

    assert host.url in said
    assert find_spelled(KEY, [said]) == []


@pytest.mark.parametrize("name", ["plain", "zero width", "entities", "NUL", "base64"])
@pytest.mark.parametrize("where", ["401", "400", "tokens", "model"])
def test_an_echo_engine_spells_no_key(name: str, where: str) -> None:
    """A refusal that repeats it, tokens, names of alternatives, and a name of a model."""
    from verifier.reference.engines.echo import EchoEngine

    text = SPELLED[name]
    lists = {
        "tokens": [text] * 40, "token_logprobs": [-1.5] * 40, "top_logprobs": [{text: -1.0}] * 40,
    }  # fmt: skip
    answer: dict[str, Any] = {"choices": [{"logprobs": lists}]}
    status = {"401": 401, "400": 400}.get(where, 200)
    models = Answer(body={"data": [{"id": text if where == "model" else "m"}]})
    told = Answer(status=status, body=says(text) if status != 200 else answer)
    with FakeHost(lambda _asked: told, models=models) as host:
        with pytest.raises(ConfigError) as raised:
            EchoEngine(host.url, tokenizer=FakeTokenizer(), api_key=KEY)
        said = str(raised.value)

    assert host.url in said
    assert find_spelled(KEY, [said]) == []


def test_a_remote_engines_key_that_cannot_be_sent_is_refused_unseen() -> None:
    """The HTTP client would repeat the header in its error."""
    from verifier.reference.engines.remote import RemoteEngine

    with pytest.raises(ConfigError, match="url_key_env") as raised:
        RemoteEngine("http://127.0.0.1:1/v1", eos_ids=[0], api_key=f"{KEY}\n")
    assert KEY not in str(raised.value)


def test_an_error_of_the_client_does_not_show_its_headers() -> None:
    """Neither as text nor as its representation."""

    async def failed() -> BaseException:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as client:
            try:
                await client.get("http://127.0.0.1:1/")
            except httpx.HTTPError as error:
                return error
        raise AssertionError

    error = asyncio.run(failed())
    assert find_spelled(KEY, [str(error), repr(error), repr(error.request)]) == []  # type: ignore[attr-defined]
