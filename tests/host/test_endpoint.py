"""One HTTP exchange over real loopback sockets, and the settings that make it possible."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fakes_host import Answer, Asked, FakeHost, chat
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.errors import ConfigError
from verifier.host.endpoint import Client, Endpoint, Sent
from verifier.host.exchange import parse
from verifier.records import Message, Probe, Reply

KEY = "sk-Test/0123456789+abcDEF"
PROBE = Probe(
    id="p1",
    kind="open",
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="Où ?")),
    max_tokens=16,
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(endpoint: Endpoint, *, logprobs: bool = True) -> Sent:
    async def once() -> Sent:
        async with Client(endpoint) as client:
            return await client.ask(PROBE, number=3, logprobs=logprobs)

    return asyncio.run(once())


def endpoint(url: str, **changes: Any) -> Endpoint:
    return Endpoint(**({"base_url": url, "model": "m", "api_key": KEY} | changes))


def test_an_ordinary_exchange_is_kept_as_sent_and_as_received() -> None:
    """The attempt holds the body that went out, the body that came in, and no key."""
    with FakeHost(lambda _asked: chat("Là.")) as host:
        attempt = ask(endpoint(host.url + "/")).attempt

        assert host.asked[0].path == "/v1/chat/completions"
        assert host.asked[0].raw.decode() == attempt.request
        assert host.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(attempt.request) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Où ?"},
        ],
        "max_tokens": 16,
        "temperature": 0,
        "stream": False,
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert (attempt.probe_id, attempt.number) == ("p1", 3)
    assert (attempt.status, attempt.error) == (200, None)
    assert json.loads(attempt.body) == chat("Là.")
    assert attempt.elapsed_s >= 0
    assert datetime.fromisoformat(attempt.started_at).utcoffset() == UTC.utcoffset(None)


def test_logprobs_are_asked_for_only_when_told() -> None:
    """Without log-probabilities the request holds neither of the two fields."""
    with FakeHost(lambda _asked: chat()) as host:
        attempt = ask(endpoint(host.url), logprobs=False).attempt

    assert not json.loads(attempt.request).keys() & {"logprobs", "top_logprobs"}


def test_without_a_key_no_authorization_is_sent() -> None:
    """A local server needs no key, and gets no empty one."""
    with FakeHost(lambda _asked: chat()) as host:
        ask(endpoint(host.url, api_key=None))

        assert "authorization" not in host.asked[0].headers


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        KEY.upper(),
        KEY.replace("/", "\\/"),
        "".join(f"\\u{ord(sign):04X}" for sign in KEY),
        KEY.replace("/", "%2F").replace("+", "%2b"),
    ],
    ids=["plain", "upper case", "escaped slash", "escaped", "percent"],
)
def test_an_echoed_key_is_struck_out(echo: str) -> None:
    """A host that repeats the key, however escaped, cannot get it into the record."""
    body = b'{"error": "bad key ' + echo.encode() + b'!"}'
    with FakeHost(lambda _asked: Answer(status=401, body=body)) as host:
        attempt = ask(endpoint(host.url)).attempt

    assert attempt.body == '{"error": "bad key [redacted]!"}'


def test_a_placeholder_key_is_not_struck_out() -> None:
    """Keys such as EMPTY are no secrets, and words of replies must stay as they came."""
    with FakeHost(lambda _asked: chat("An EMPTY room.")) as host:
        attempt = ask(endpoint(host.url, api_key="EMPTY")).attempt

    assert "An EMPTY room." in attempt.body


def test_the_key_is_in_no_repr() -> None:
    """Settings may be printed or land in a trace; the key does not."""
    assert KEY not in repr(endpoint("http://h/v1"))


def test_a_redirect_is_not_followed_and_takes_no_key_along() -> None:
    """The key goes to the host that was named and to no other."""
    with (
        FakeHost(lambda _asked: chat()) as other,
        FakeHost(
            lambda _asked: Answer(status=307, headers={"Location": other.url + "/chat/completions"})
        ) as host,
    ):
        attempt = ask(endpoint(host.url)).attempt

        assert other.asked == []
    assert attempt.status == 307
    assert attempt.error == "redirect to 127.0.0.1, not followed"


def test_a_redirect_to_nowhere_is_an_error_too() -> None:
    """A Location that is no address comes back as a value."""
    redirect = Answer(status=302, headers={"Location": "http://[bad"})
    with FakeHost(lambda _asked: redirect) as host:
        attempt = ask(endpoint(host.url)).attempt

    assert attempt.error is not None


@pytest.mark.parametrize("packed", [False, True])
def test_reading_stops_at_the_cap(packed: bool) -> None:
    """A body without end, or one that unpacks to it, costs neither memory nor disk."""
    body = b"[" + b"1," * 100_000
    answer = Answer(
        body=gzip.compress(body) if packed else body,
        headers={"Content-Encoding": "gzip"} if packed else {},
    )
    with FakeHost(lambda _asked: answer) as host:
        attempt = ask(endpoint(host.url, max_response_bytes=50_000)).attempt

    assert attempt.error == "response larger than 50000 bytes"
    assert attempt.status == 200
    assert len(attempt.body) <= 4096


def test_a_key_at_the_edge_of_a_cut_body_is_struck_out() -> None:
    """The body is cut after the key is struck out, so no part of it stays."""
    body = b"x" * (4096 - 10) + KEY.encode() + b"y" * 60_000
    with FakeHost(lambda _asked: Answer(body=body)) as host:
        attempt = ask(endpoint(host.url, max_response_bytes=50_000)).attempt

    assert KEY[:6] not in attempt.body


def test_bytes_that_are_not_utf8_can_be_had_back() -> None:
    """The body is text whatever came, and gives back every byte."""
    with FakeHost(lambda _asked: Answer(body=b"a\xff\x00b")) as host:
        attempt = ask(endpoint(host.url)).attempt

    assert attempt.body == "a\udcff\x00b"
    assert attempt.body.encode("utf-8", "surrogateescape") == b"a\xff\x00b"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 999999 \xff\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000 + b"\r\n\r\n",
    ],
)
def test_a_broken_line_is_an_error_and_no_response(raw: bytes) -> None:
    """Whatever comes instead of HTTP becomes the attempt's error."""
    with FakeHost(lambda _asked: Answer(raw=raw)) as host:
        attempt = ask(endpoint(host.url)).attempt

    assert attempt.status is None
    assert attempt.error


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_make_sending_raise(raw: bytes, headed: bool) -> None:
    """Arbitrary bytes from the host never become an exception."""
    head = b"HTTP/1.1 200 OK\r\n" if headed else b""
    with FakeHost(lambda _asked: Answer(raw=head + raw)) as host:
        attempt = ask(endpoint(host.url)).attempt

    assert attempt.status is not None or attempt.error


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing listens, held so that nothing else takes it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_refused_connection_says_so(closed_port: int) -> None:
    """The reason is the operating system's, not "all connection attempts failed"."""
    attempt = ask(endpoint(f"http://127.0.0.1:{closed_port}/v1")).attempt

    assert attempt.status is None
    assert "refused" in (attempt.error or "").lower()


def test_a_host_that_speaks_no_tls_is_an_error() -> None:
    """https against a plain port ends as a transport error that names TLS."""
    with FakeHost(lambda _asked: chat()) as host:
        attempt = ask(endpoint(host.url.replace("http://", "https://"))).attempt

    assert attempt.status is None
    assert "SSL" in (attempt.error or "")


@pytest.mark.parametrize("drips", [False, True])
def test_a_host_that_does_not_end_is_timed_out(drips: bool) -> None:
    """The limit holds for the whole exchange, also when bytes keep coming."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def drip() -> None:
            line, _address = slow.accept()
            with line:
                line.recv(65_536)
                try:
                    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
                    while drips and not over.wait(0.02):
                        line.sendall(b" ")
                    over.wait(10)
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        start = time.monotonic()
        attempt = ask(
            endpoint(f"http://127.0.0.1:{slow.getsockname()[1]}/v1", timeout_s=0.3)
        ).attempt
        assert time.monotonic() - start < 5
        over.set()
        thread.join()

    assert attempt.status is None
    assert attempt.error


def test_proxy_variables_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a company proxy the request goes through it."""
    with FakeHost(lambda _asked: chat()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        attempt = ask(endpoint("http://host.invalid/v1")).attempt

        assert proxy.asked[0].path == "http://host.invalid/v1/chat/completions"
    assert attempt.status == 200


def test_a_proxy_that_cannot_be_read_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy variable of an unknown kind is a ConfigError that names the variables."""
    monkeypatch.setenv("ALL_PROXY", "gopher://user:word@h:1")

    with pytest.raises(ConfigError, match="ALL_PROXY") as caught:
        ask(endpoint("http://127.0.0.1:1/v1"))
    assert "word" not in str(caught.value)


def test_requests_are_spaced_by_the_rate() -> None:
    """At 1,200 requests a minute, each starts 50 ms after the one before."""

    async def thrice(settings_: Endpoint) -> None:
        async with Client(settings_) as client:
            await asyncio.gather(*(client.ask(PROBE, number=1, logprobs=False) for _ in range(3)))

    moments: list[float] = []

    def note(_asked: Asked) -> dict[str, Any]:
        moments.append(time.monotonic())
        return chat()

    with FakeHost(note) as host:
        asyncio.run(thrice(endpoint(host.url, requests_per_minute=1_200)))

    assert moments[2] - moments[0] >= 0.08  # 0.1, less what arrival may wobble


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"data": [{"id": "a"}, {"id": 3}, "x", {"id": "b"}]}, ("a", "b")),
        ([{"id": "a"}], ("a",)),
        ({"data": None}, ()),
        (b"<html>", ()),
        (b"[" * 100_000, ()),
        ("text", ()),
    ],
)
def test_listing_models_takes_what_is_there(body: Any, expected: tuple[str, ...]) -> None:
    """Whatever GET /models answers, the names come back, or none."""

    async def models(settings_: Endpoint) -> tuple[str, ...]:
        async with Client(settings_) as client:
            return await client.list_models()

    with FakeHost(lambda _asked: chat(), models=Answer(body=body)) as host:
        assert asyncio.run(models(endpoint(host.url))) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "ftp://h/v1"}, "base_url"),
        ({"base_url": "h/v1"}, "base_url"),
        ({"base_url": "http:///v1"}, "base_url"),
        ({"base_url": "http://h:99999/v1"}, "base_url"),
        ({"base_url": "http://h:port/v1"}, "base_url"),
        ({"base_url": "http://[::1/v1"}, "base_url"),
        ({"base_url": "http://a..b/v1"}, "base_url"),
        ({"base_url": "http://" + "a" * 70 + "/v1"}, "base_url"),
        ({"base_url": "http://h/v1?key=x"}, "base_url"),
        ({"base_url": "http://h/\x00v1"}, "base_url"),
        ({"model": " "}, "model"),
        ({"api_key": ""}, "API_KEY_VAR"),
        ({"api_key": "two words"}, "API_KEY_VAR"),
        ({"api_key": "line\n"}, "API_KEY_VAR"),
        ({"api_key": "ключ-ключ"}, "API_KEY_VAR"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_response_bytes": 1}, "max_response_bytes"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    """One line that names the setting, before anything is sent."""
    with pytest.raises(ConfigError, match=said) as caught:
        Endpoint(
            **({"base_url": "http://h/v1", "model": "m", "api_key_env": "API_KEY_VAR"} | changes)
        )
    assert "\n" not in str(caught.value)


def test_credentials_in_the_address_are_refused_unseen() -> None:
    """A password in the URL would land in every file; the message does not repeat it."""
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        endpoint("https://user:pass-word@h/v1")
    assert "pass-word" not in str(caught.value)


# -- streams that do not end as they should ----------------------------------------------------


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = (
    'data: {"choices": [{"delta": {"content": "Là."}, "finish_reason": "stop"}]}\n\n'
    "data: [DONE]\n\n"
).encode()


def ask_chunked(pieces: list[bytes], after: str) -> tuple[Sent, float]:
    """Ask a host that sends these pieces as chunks, and then does what `after` says."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def serve() -> None:
            line, _address = slow.accept()
            with line:
                line.recv(65_536)
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    line.sendall(EVENTS)
                    for piece in pieces:
                        line.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                        over.wait(0.005)
                    while after == "comments" and not over.wait(0.05):
                        line.sendall(b"10\r\n: keep-alive ...\r\n")
                    if after == "silence":
                        over.wait(20)
                    if after == "junk":
                        line.sendall(b"zz\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        start = time.monotonic()
        url = f"http://127.0.0.1:{slow.getsockname()[1]}/v1"
        sent = ask(endpoint(url, timeout_s=4, stream=True))
        took = time.monotonic() - start
        over.set()
        thread.join()
    return sent, took


@pytest.mark.parametrize("after", ["silence", "comments", "a broken line", "junk"])
def test_a_stream_that_said_its_end_is_whole(after: str) -> None:
    """Whatever the host does with the line afterwards, the answer is not asked for again."""
    sent, took = ask_chunked([ANSWER], after)

    assert (sent.attempt.status, sent.attempt.error) == (200, None)
    assert sent.attempt.body.encode().startswith(ANSWER)
    assert took < 3


@pytest.mark.parametrize("after", ["silence", "a broken line"])
def test_a_stream_that_did_not_say_its_end_is_broken(after: str) -> None:
    """More may have been due."""
    sent, _took = ask_chunked([ANSWER.partition(b"data: [DONE]")[0]], after)

    assert sent.attempt.error is not None


@pytest.mark.parametrize("size", [1, 5, 1_000])
def test_a_stream_is_kept_as_it_came_however_it_is_cut(size: int) -> None:
    """Inside a character of several bytes, too; several events in one piece."""
    whole = b"\xef\xbb\xbf: hm\r\n\r\n" + ANSWER
    sent, _took = ask_chunked([whole[n : n + size] for n in range(0, len(whole), size)], "silence")
    found = parse(sent.attempt)

    assert sent.attempt.body.encode() == whole
    assert isinstance(found, Reply)
    assert found.text == "Là."


def test_a_mark_before_a_list_of_models_is_passed_over() -> None:
    """As before any body."""
    listing = b'\xef\xbb\xbf{"data": [{"id": "m"}]}'

    async def once(url: str) -> tuple[str, ...]:
        async with Client(endpoint(url)) as client:
            return await client.list_models()

    with FakeHost(lambda _asked: chat(), models=Answer(body=listing)) as host:
        assert asyncio.run(once(host.url)) == ("m",)


# -- bytes behind a response ---------------------------------------------------------------------


def response_of(text: str, *, chunked: bool = False) -> bytes:
    body = json.dumps(chat(text)).encode()
    if chunked:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class KeptAlive:
    """A host that keeps lines open: after each answer it sends `more`, `later` seconds after it."""

    def __init__(self, more: bytes, *, later: float | None = None, chunked: bool = False) -> None:
        self.asked = 0
        self.lines = 0
        self._more, self._later, self._chunked = more, later, chunked
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._open: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"

    def __enter__(self) -> KeptAlive:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for line in self._open:
            line.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            self.lines += 1
            self._open.append(line)
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        received = b""
        while True:
            try:
                piece = line.recv(65536)
            except OSError:
                return
            received += piece
            if not piece:
                return
            head, found, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            if not found or length is None or len(body) < int(length[1]):
                continue
            received = b""
            self.asked += 1
            answer = response_of(f"answer {self.asked}", chunked=self._chunked)
            try:
                if self._later is None:
                    line.sendall(answer + self._more)
                else:
                    line.sendall(answer)
                    time.sleep(self._later)
                    line.sendall(self._more)
            except OSError:
                return


def ask_in_turn(url: str, count: int, *, pause_s: float = 0.0) -> list[str]:
    """The texts that so many questions got, on as few lines as may be."""

    async def every() -> list[str]:
        found = []
        async with Client(endpoint(url, concurrency=1)) as client:
            for number in range(count):
                sent = await client.ask(PROBE, number=number + 1, logprobs=False)
                assert sent.attempt.error is None, sent.attempt.error
                found.append(json.loads(sent.attempt.body)["choices"][0]["message"]["content"])
                await asyncio.sleep(pause_s)
        return found

    return asyncio.run(every())


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize(
    ("more", "later"),
    [
        (response_of("INJECTED"), None),
        (response_of("INJECTED"), 0.05),
        (response_of("INJECTED")[:30], None),
        (b"\r\n", None),
    ],
    ids=["in one packet", "later", "half of one", "an empty line"],
)
def test_bytes_behind_a_response_answer_nothing(
    more: bytes, later: float | None, chunked: bool
) -> None:
    """Every question gets the answer that was made for it, and the line is not used again."""
    with KeptAlive(more, later=later, chunked=chunked) as host:
        found = ask_in_turn(host.url, 4, pause_s=3 * (later or 0.0))

        assert found == [f"answer {n}" for n in (1, 2, 3, 4)]
        assert (host.asked, host.lines) == (4, 4)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_an_honest_line_is_kept(chunked: bool) -> None:
    """Also a check of the names by which a line is looked at: were one gone, none would be."""
    with KeptAlive(b"", chunked=chunked) as host:
        ask_in_turn(host.url, 4)

        assert (host.asked, host.lines) == (4, 1)
