"""Hosts that give the key back in every way: no byte that an audit writes or prints holds it."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote
from zlib import crc32

from audits import NOWHERE, write_run_file

from attacks.lab import (
    Answer,
    Asked,
    FakeHost,
    Lab,
    Model,
    RawHost,
    Tally,
    bare,
    canary,
    chat,
    every_file,
    refused,
    run,
    told,
)

VARIABLE = "SOME_KEY"
#: What is shown to people, where a key in any disguise that a reader would copy counts.
SHOWN = (".html", ".xml", ".md", "report.json", "summary.json", "errors.json", "control.json")


def pieces(key: str, count: int = 3) -> list[str]:
    step = -(-len(key) // count)
    return [key[n : n + step] for n in range(0, len(key), step)]


def stream(*deltas: dict[str, Any], finish: Any = "stop") -> Answer:
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    raw = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return Answer(body=raw.encode(), headers={"Content-Type": "text/event-stream"})


def says(status: int, message: Callable[[str], str]) -> Callable[[str], Answer]:
    return lambda key: Answer(status=status, body={"error": {"message": "bad key " + message(key)}})


def with_finish(finish: str) -> dict[str, Any]:
    body = chat("the model says more or less now")
    body["choices"][0]["finish_reason"] = finish
    return body


def joined(sign: str) -> Callable[[str], str]:
    return sign.join


def escaped(key: str) -> Answer:
    spelled = "".join(f"\\u{ord(s):04x}" for s in key)
    return Answer(status=400, body=f'{{"error":{{"message":"bad key {spelled}"}}}}'.encode())


def counted(key: str) -> dict[str, Any]:
    body = chat("the model says more")
    body["choices"][0]["logprobs"] = {"content": [
        {"token": piece, "logprob": -0.1, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece in pieces(key, 4)
    ]}  # fmt: skip
    return body


#: Every way to give a key back: key -> what is answered.
ECHOES: dict[str, Callable[[str], Any]] = {
    "400 in clear": says(400, str),
    "401 in clear": says(401, str),
    "403 in clear": says(403, str),
    "404 in clear": says(404, lambda key: f"model {key} does not exist"),
    "429 in clear": says(429, str),
    "500 in clear": says(500, str),
    "400 upper case": says(400, str.upper),
    "400 percent": says(400, lambda key: "".join(f"%{ord(s):02x}" for s in key)),
    "400 \\u escapes": escaped,
    "400 entities": says(400, lambda key: "".join(f"&#{ord(s)};" for s in key)),
    "400 base64": says(400, lambda key: base64.b64encode(key.encode()).decode()),
    "400 quoted": says(400, lambda key: quote(key, safe="")),
    "400 zero width": says(400, joined("\u200b")),
    "401 zero width": says(401, joined("\u200b")),
    "500 zero width": says(500, joined("\u200d")),
    "400 NUL": says(400, joined("\x00")),
    "500 soft hyphen": says(500, joined("\u00ad")),
    "401 private use": says(401, joined("\ue000")),
    "400 bidi": says(400, joined("\u2060")),
    "400 half surrogates": says(400, joined("\ud800")),
    "400 unassigned": says(400, joined("\U000e0080")),
    "400 in a list": lambda key: Answer(status=400, body={"detail": [{"msg": key}, {"msg": key}]}),
    "422 in pieces of a list": lambda key: Answer(status=422, body={"detail": [{"msg": p} for p in pieces(key)]}),
    "500 a page's title": lambda key: Answer(status=500, body=f"<html><title>\u200b{joined(chr(0x200b))(key)}</title>".encode()),
    "error object": lambda key: {"error": {"message": joined("\u200b")(key), "code": joined("\u200b")(key)}},
    "answer": lambda key: chat(f"the model says {key} more or less now"),
    "answer zero width": lambda key: chat(f"the model says {joined(chr(0x200b))(key)} now"),
    "answer in parts": lambda key: chat([{"type": "text", "text": p} for p in pieces(key)]),
    "thought": lambda key: chat("the model says more", reasoning=f"so {key}"),
    "refusal": lambda key: chat(None, refusal=f"no, {key}"),
    "refusal zero width": lambda key: chat(None, refusal=joined("\u200b")(key)),
    "finish reason": with_finish,
    "finish reason zero width": lambda key: with_finish(joined("\u200b")(key)),
    "tool call": lambda key: chat(None, tool_calls=[{"id": key, "type": "function", "function": {"name": key, "arguments": key}}]),
    "token by token": counted,
    "id and model": lambda key: chat("the model says more") | {"id": key, "model": key, "provider": key, "system_fingerprint": joined("\u200b")(key)},
    "headers": lambda key: Answer(body=chat("the model says more"), headers={"x-request-id": key, "server": key, "via": key, "date": key, "cf-ray": key}),
    "headers in pieces": lambda key: Answer(body=chat("the model says more"), headers={"server": pieces(key, 2)[0], "via": pieces(key, 2)[1]}),
    "location": lambda key: Answer(status=302, headers={"Location": f"http://127.0.0.1:1/{key}"}),
    "location's host": lambda key: Answer(status=302, headers={"Location": f"http://{key.lower().replace('_', '-')}/"}),
    "stream of text": lambda key: stream(*({"content": p} for p in pieces(key))),
    "stream of refusal": lambda key: stream(*({"refusal": p} for p in pieces(key))),
    "stream of thought": lambda key: stream(*({"reasoning_content": p} for p in pieces(key)), {"content": "the"}),
    "stream of single signs": lambda key: stream(*({"content": s} for s in key)),
    "stream's finish reason": lambda key: stream({"content": "the model"}, finish=key),
    "stream's error": lambda key: Answer(body=b'event: error\ndata: {"error":{"message":"' + joined("\u200b")(key).encode() + b'"}}\n\n', headers={"Content-Type": "text/event-stream"}),
    "not JSON": lambda key: Answer(body=joined("\u200b")(key).encode()),
    "JSON but a text": lambda key: Answer(body=json.dumps(joined("\x00")(key)).encode()),
    "reason phrase": lambda key: Answer(raw=f"HTTP/1.1 400 {key}\r\nContent-Length: 0\r\n\r\n".encode()),
    "bad header line": lambda key: Answer(raw=f"HTTP/1.1 200 OK\r\n{key}\r\n\r\n".encode()),
    "bad status line": lambda key: Answer(raw=f"{key}\r\n\r\n".encode()),
    "bad chunk": lambda key: Answer(raw=f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{key}\r\n".encode()),
    "bad length": lambda key: Answer(raw=f"HTTP/1.1 200 OK\r\nContent-Length: {key}\r\n\r\n".encode()),
    "bad encoding": lambda key: Answer(body=b"{}", headers={"Content-Encoding": key}),
}  # fmt: skip


def found_in(key: str, written: dict[str, bytes]) -> str | None:
    """Where the key stands: anywhere in clear; where people read, in any disguise they undo."""
    plain, folded = key.encode(), key.casefold()
    for name, raw in written.items():
        if plain in raw or plain.lower() in raw.lower():
            return f"in clear in {name}"
        if name.endswith(SHOWN) or name in ("stdout", "stderr"):
            text = raw.decode("utf-8", "replace")
            if folded in bare(text):
                return f"less signs that nobody sees in {name}"
            if name.endswith(".json"):
                text = json.dumps(json.loads(text), ensure_ascii=False)
                if folded in bare(text):
                    return f"as JSON in {name}"
    return None


def attack_keys(lab: Lab) -> Iterator[Tally]:
    yield from _audits(lab)
    yield _to_other_hosts(lab)
    yield _from_other_places(lab)
    yield _pasted(lab)


def _audits(lab: Lab) -> Iterator[Tally]:
    """Whole audits of a host that answers well at first, then gives the key back in one way."""
    models = Model()
    names = list(ECHOES)[:: lab.size(1, 9)]
    for several in (False, True):
        what = "several targets and a control" if several else "one endpoint"
        tally = Tally(
            attack=f"whole audits of hosts that give the key back ({what}): no byte of it"
        )
        outputs = 0
        for name in names:
            key = f"sk-{'b' if several else 'a'}Zq7-invented_{len(name)}{crc32(name.encode()) % 97}x9K4mR2tVw8"
            folder = lab.folder("audit")
            seen = threading.Lock()
            count = 0

            def script(asked: Asked, name: str = name, key: str = key, seen: Any = seen) -> Any:
                nonlocal count
                with seen:
                    count += 1
                    echoes = count % 3 != 1 or name.startswith(("401", "403", "404"))
                return ECHOES[name](key) if echoes else models(asked)

            with FakeHost(
                script, models=Answer(body={"data": [{"id": key}, {"id": f"\u200b{key}"}]})
            ) as host:
                endpoint = {"base_url": host.url, "model": "tiny", "max_attempts": 1,
                            "api_key_env": VARIABLE, "stream": name.startswith("stream")}  # fmt: skip
                if several:
                    (folder / "key").write_text(key)
                    target = {k: v for k, v in endpoint.items() if k != "api_key_env"}
                    target["api_key_file"] = str(folder / "key")
                    top = {"targets": {"a": target}, "control": endpoint}
                    path = write_run_file(folder, "", top=top)
                else:
                    path = write_run_file(folder, host.url, endpoint=endpoint)
                environment = {VARIABLE: key}
                ended = [run("audit", path, environment=environment, seconds=120)]
            out = folder / "run"
            command = "summary" if several else "report"
            for argv in (
                (command, out, "--junit", out / "x.xml", "--markdown", out / "x.md"),
                (command, out, "--json"),
            ):
                ended.append(run(*argv, environment=environment, seconds=60))
            written = {k: v for k, v in every_file(folder).items() if k != "key"}
            written["stdout"] = "".join(e.out for e in ended).encode("utf-8", "replace")
            written["stderr"] = "".join(e.err for e in ended).encode("utf-8", "replace")
            outputs += len(written)
            problem = found_in(key, written)
            if problem is None and ended[0].status in (4, None):
                problem = f"exit {ended[0].status}: {ended[0].last}"
            tally.note(name, problem, ended[0].seconds)
            shutil.rmtree(folder)
        tally.extra = {"files_and_streams_searched": outputs}
        yield tally


def _authorised(host: RawHost, key: str) -> str | None:
    """Whether the key came to a host that should not have it."""
    plain = key.encode()
    came = [request for request in host.requests if plain in request]
    return f"the host got the key: {came[0][:120]!r}" if came else None


def _to_other_hosts(lab: Lab) -> Tally:
    """The key of a preset's variable, and what a stranger's run file names as a key."""
    tally = Tally(attack="a key goes to the host that it is for, and to no other")
    key = "sk-preset-0123456789abcdef"
    for host_name, variable in (
        ("together", "TOGETHER_API_KEY"),
        ("openrouter", "OPENROUTER_API_KEY"),
        ("fireworks", "FIREWORKS_API_KEY"),
    ):
        for way in ("run file", "flag", "target", "control"):

            def attempt(
                host_name: str = host_name, variable: str = variable, way: str = way
            ) -> str | None:
                folder = lab.folder("preset")
                with canary() as other:
                    more = {"provider": "novita"} if host_name == "openrouter" else {}
                    endpoint = {"host": host_name, **more}
                    section = {"model": "tiny", "base_url": other.url} | endpoint
                    if way == "target":
                        path = write_run_file(folder, "", top={"targets": {"a": section}})
                    elif way == "control":
                        path = write_run_file(folder, NOWHERE, top={"control": section})
                    else:
                        path = write_run_file(folder, other.url, endpoint=endpoint)
                    argv = ["--base-url", other.url] if way == "flag" else []
                    ended = run("audit", path, *argv, environment={variable: key}, seconds=60)
                    problem = _authorised(other, key)
                if problem is None and ended.status in (None, 4):
                    problem = f"exit {ended.status}: {ended.last}"
                return problem

            tally.try_(f"{host_name} by {way}", attempt)
    for command in ("audit", "capabilities", "collect"):

        def stranger(command: str = command) -> str | None:
            folder = lab.folder("stranger")
            token = folder / "token"
            token.write_text("hf_invented0123456789\n")
            with canary() as other:
                path = write_run_file(folder, other.url, endpoint={"api_key_file": str(token)})
                made = run("plan", path, environment={"XDG_STATE_HOME": str(folder / "theirs")})
                if made.status:
                    return f"plan: exit {made.status}: {made.last}"
                run_ = folder / "run"
                target = run_ if command == "collect" else run_ / "run.yaml"
                ended = run(command, target, environment={"XDG_STATE_HOME": str(folder / "mine")})
                return _authorised(other, "hf_invented0123456789") or told(ended, "--trust")

        tally.try_(f"a file's content by {command} of a stranger's run.yaml", stranger)
    return tally


def _from_other_places(lab: Lab) -> Tally:
    """Keys that the remote engine, a proxy and URLs hold."""
    tally = Tally(attack="keys of reference servers, proxies and URLs are in no message")
    key = "sk-remote-0123456789abcdef"

    def says_key(line: Any, _request: bytes) -> None:
        body = json.dumps({"error": {"message": f"bad key {key}"}, "detail": key}).encode()
        line.sendall(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def remote(scheme: str) -> str | None:
        folder = lab.folder("remote")
        with RawHost(says_key) as server, FakeHost(Model()) as host:
            reference = {"engine": "remote", "url": server.url.removesuffix("/v1") if scheme == "root" else server.url,
                         "url_key_env": VARIABLE, "weights": str(folder)}  # fmt: skip
            path = write_run_file(folder, host.url, reference=reference)
            ended = run("audit", path, environment={VARIABLE: key}, fake=False, seconds=90)
        problem = found_in(
            key, every_file(folder) | {"stderr": ended.err.encode(), "stdout": ended.out.encode()}
        )
        return problem or ("exit 4: " + ended.last if ended.status in (4, None) else None)

    def proxied(phrase: str) -> str | None:
        folder = lab.folder("proxy")

        def no(line: Any, _request: bytes) -> None:
            line.sendall(f"HTTP/1.1 407 {phrase}\r\nContent-Length: 0\r\n\r\n".encode())

        with RawHost(no) as proxy:
            path = write_run_file(
                folder, "https://host.invalid/v1", endpoint={"api_key_env": VARIABLE}
            )
            url = f"http://user:{key}@127.0.0.1:{proxy.port}"
            ended = run(
                "audit", path, environment={VARIABLE: "sk-another-0123456789", "HTTPS_PROXY": url}
            )
        return found_in(
            key, every_file(folder) | {"stderr": ended.err.encode(), "stdout": ended.out.encode()}
        )

    for scheme in ("root", "v1"):
        tally.try_(f"a reference server's 401 ({scheme})", lambda scheme=scheme: remote(scheme))
    for phrase in ("No", f"bad {key}", f"bad {joined(chr(0x200B))(key)}"):
        tally.try_(f"a proxy's phrase ({phrase[:5]})", lambda phrase=phrase: proxied(phrase))
    for url in (f"http://user:{key}@h/v1", f"http://h/v1?k={key}", f"http://h/v1#{key}", f"http://h:{key}/v1",
                f"{key}://h/v1", f"http://[{key}]/v1", f"http://{key}@h/v1"):  # fmt: skip

        def in_url(url: str = url) -> str | None:
            folder = lab.folder("url")
            path = write_run_file(folder, url)
            mine = path.name, "tiny.yaml", "tiny.calibration.json"
            ended = run("plan", path)
            written = {k: v for k, v in every_file(folder).items() if k not in mine}
            return refused(ended) or found_in(key, written | {"stderr": ended.err.encode()})

        tally.try_(f"in a base_url: {url.replace(key, 'KEY')}", in_url)
    return tally


def _pasted(lab: Lab) -> Tally:
    """A key where a name belongs is refused before anything is written, and not shown."""
    tally = Tally(attack="a key pasted into a run file is refused, neither kept nor shown")
    key = "gsk_0123456789abcdefghijABCDEFGHIJ0123456789abcdefghijAB"
    places: dict[str, dict[str, Any]] = {
        "api_key_env": {"api_key_env": key}, "api_key_env in a list": {"api_key_env": [key]},
        "api_key_env in a map": {"api_key_env": {"a": key}},
        "extra_body api_key": {"extra_body": {"api_key": key}},
        "extra_body nested token": {"extra_body": {"a": {"access_token": key}}},
        "X-Auth": {"headers": {"X-Auth": key}}, "X-Credential": {"headers": {"X-Credential": key}},
        "Authorization": {"headers": {"authorization": f"Bearer {key}"}},
        "api_key": {"api_key": key},
    }  # fmt: skip
    for name, endpoint in places.items():

        def attempt(endpoint: dict[str, Any] = endpoint) -> str | None:
            folder = lab.folder("pasted")
            path = write_run_file(folder, NOWHERE, endpoint=endpoint)
            ended = run("plan", path)
            written = every_file(folder / "run") if (folder / "run").exists() else {}
            streams = {"stderr": ended.err.encode(), "stdout": ended.out.encode()}
            return found_in(key, written | streams) or refused(ended)

        tally.try_(name, attempt)
    return tally
