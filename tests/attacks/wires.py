"""Hosts that break HTTP: whatever comes over the line is a value, in time, and leaves no trace."""

from __future__ import annotations

import gzip
import json
import resource
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from attacks.lab import Lab, RawHost, Tally, canary, chat, every_file
from verifier.errors import VerifierError
from verifier.host.collect import collect, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.records import Message, Probe

KEY = "sk-test-0123456789abcdef"
TIMEOUT_S = 3.0
PAST_S = 1.0  # past the time-out that one exchange may take on a machine under load
GOOD = json.dumps(chat("Paris.")).encode()
Script = Callable[[socket.socket, bytes], None]


def head(*rows: str, status: str = "200 OK") -> bytes:
    return ("\r\n".join([f"HTTP/1.1 {status}", *rows]) + "\r\n\r\n").encode("latin-1")


def whole(body: bytes = GOOD, *rows: str, status: str = "200 OK") -> bytes:
    return head("Content-Type: application/json", f"Content-Length: {len(body)}", *rows,
                status=status) + body  # fmt: skip


def says(raw: bytes) -> Script:
    """Answers with these bytes and closes the line."""

    def script(line: socket.socket, _request: bytes) -> None:
        line.sendall(raw)
        raise ValueError  # ends the line

    return script


def drips(before: bytes, piece: bytes, *, pause: float = 0.05) -> Script:
    """Begins an answer and never ends it, a piece at a time."""

    def script(line: socket.socket, _request: bytes) -> None:
        line.sendall(before)
        until = time.monotonic() + 4 * TIMEOUT_S
        while time.monotonic() < until:
            line.sendall(piece)
            time.sleep(pause)

    return script


def floods(before: bytes, piece: bytes, *, most: int = 2**30) -> Script:
    """As fast as the line takes it, up to so many bytes."""

    def script(line: socket.socket, _request: bytes) -> None:
        line.sendall(before)
        sent, until = 0, time.monotonic() + 4 * TIMEOUT_S
        while sent < most and time.monotonic() < until:
            line.sendall(piece)
            sent += len(piece)
        raise ValueError

    return script


def hangs(before: bytes = b"") -> Script:
    def script(line: socket.socket, _request: bytes) -> None:
        line.sendall(before)
        with suppress(OSError):
            line.recv(1)

    return script


def packed(body: bytes, *kinds: str) -> bytes:
    for kind in kinds:
        body = gzip.compress(body) if kind == "gzip" else zlib.compress(body)
    return whole(body, f"Content-Encoding: {', '.join(kinds)}")


BOMB = gzip.compress(b"\0" * (100 * 2**20), 9)
EVENTS = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
CHUNKED = head("Content-Type: application/json", "Transfer-Encoding: chunked")


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


WIRES: dict[str, Script] = {
    "nothing, and closes": says(b""),
    "nothing, and hangs": hangs(),
    "half a status line": hangs(b"HTTP/1.1 2"),
    "body a byte at a time": drips(head("Content-Length: 9999"), b" "),
    "header a byte at a time": drips(b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "status line a byte at a time": drips(b"HTTP/1.1 200 ", b"O"),
    "endless headers": floods(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"b" * 4000 + b"\r\n"),
    "one endless header": floods(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65536),
    "a million short headers": floods(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 10_000, most=2**24),
    "endless body of a length": floods(head("Content-Length: 99999999999"), b" " * 65536),
    "endless body without a length": floods(head("Connection: close"), b" " * 65536),
    "endless chunks": floods(CHUNKED, chunk(b" " * 65536)),
    "endless chunk size": floods(CHUNKED, b"1" * 65536),
    "endless chunk extension": floods(CHUNKED + b"5;", b"x=" * 32768),
    "endless trailers": floods(CHUNKED + chunk(GOOD) + b"0\r\n", b"X-T: " + b"b" * 4000 + b"\r\n"),
    "trailers that steer": says(CHUNKED + chunk(GOOD) + b"0\r\nContent-Length: 1\r\nSet-Cookie: a\r\n\r\n"),
    "chunks of one byte": says(CHUNKED + b"".join(chunk(bytes([b])) for b in GOOD) + b"0\r\n\r\n"),
    "a chunk shorter than it says": says(CHUNKED + b"ff\r\nshort\r\n0\r\n\r\n"),
    "a chunk longer than it says": says(CHUNKED + b"1\r\nlong text\r\n0\r\n\r\n"),
    "a negative chunk": says(CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n"),
    "a chunk of 10^30": says(CHUNKED + b"f" * 25 + b"\r\n" + GOOD),
    "a chunk size with 0x": says(CHUNKED + b"0x5\r\nabcde\r\n0\r\n\r\n"),
    "chunks that never end": hangs(CHUNKED + chunk(GOOD)),
    "endless event": floods(EVENTS, chunk(b"data: " + b"x" * 65536)),
    "endless comments": floods(EVENTS, chunk(b": keep-alive\n\n" * 1000)),
    "events a byte at a time": drips(EVENTS, chunk(b":")),
    "ten thousand events": says(EVENTS + chunk(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * 10_000) + b"0\r\n\r\n"),
    "events of CR alone": says(EVENTS + chunk(b'data: {"choices":[{"delta":{"content":"a"}}]}\r\rdata: [DONE]\r\r') + b"0\r\n\r\n"),
    "1xx without end": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "103 with headers without end": floods(b"", b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * 100),
    "101 switching": says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n" + GOOD),
    "100, then an answer": says(b"HTTP/1.1 100 Continue\r\n\r\n" + whole()),
    "a gzip bomb": says(whole(BOMB, "Content-Encoding: gzip")),
    "gzip in gzip": says(packed(GOOD, "gzip", "gzip")),
    "a bomb in gzip in gzip": says(whole(gzip.compress(BOMB), "Content-Encoding: gzip, gzip")),
    "deflate that is raw": says(whole(zlib.compress(GOOD)[2:-4], "Content-Encoding: deflate")),
    "gzip cut off": says(whole(gzip.compress(GOOD)[:-9], "Content-Encoding: gzip")),
    "gzip with rubbish behind": says(whole(gzip.compress(GOOD) + b"rubbish", "Content-Encoding: gzip")),
    "ten thousand gzip members": says(whole(gzip.compress(b" ") * 10_000, "Content-Encoding: gzip")),
    "gzip that is none": says(whole(GOOD, "Content-Encoding: gzip")),
    "br": says(whole(b"\x0b\x02\x80abc\x03", "Content-Encoding: br")),
    "zstd": says(whole(b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00", "Content-Encoding: zstd")),
    "a thousand encodings": says(whole(GOOD, "Content-Encoding: " + ", ".join(["gzip"] * 1000))),
    "an encoding nobody knows": says(whole(GOOD, "Content-Encoding: x-evil")),
    "a negative length": says(head("Content-Length: -5") + GOOD),
    "two lengths": says(head("Content-Length: 5", f"Content-Length: {len(GOOD)}") + GOOD),
    "a length of 10^30": says(head("Content-Length: 1" + "0" * 30) + GOOD),
    "a length with a sign": says(head(f"Content-Length: +{len(GOOD)}") + GOOD),
    "a length in letters": says(head("Content-Length: ten") + GOOD),
    "a length in Arabic digits": says(b"HTTP/1.1 200 OK\r\nContent-Length: \xd9\xa5\r\n\r\n" + GOOD),
    "a length too short": says(head(f"Content-Length: {len(GOOD) - 4}") + GOOD),
    "a length too long": says(head(f"Content-Length: {len(GOOD) + 9}") + GOOD),
    "TE with CL": says(head("Transfer-Encoding: chunked", "Content-Length: 3") + chunk(GOOD) + b"0\r\n\r\n"),
    "an unknown TE": says(head("Transfer-Encoding: evil") + GOOD),
    "HTTP/0.9": says(GOOD),
    "HTTP/2 preface": says(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100),
    "HTTP/9.9": says(whole().replace(b"HTTP/1.1", b"HTTP/9.9")),
    "a status of 0": says(whole(status="000 No")),
    "a status of 999": says(whole(status="999 Odd")),
    "a status of letters": says(whole(status="abc OK")),
    "204 with a body": says(whole(status="204 No Content")),
    "304 with a body": says(whole(status="304 Not Modified")),
    "a folded header": says(b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}"),
    "NUL in a header": says(b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    "bare LF": says(whole().replace(b"\r\n", b"\n")),
    "bare CR": says(whole().replace(b"\r\n", b"\r")),
    "bytes of a TLS hello": says(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200),
    "a reason of escapes": says(b"HTTP/1.1 400 \x1b]0;x\x07\x1b[2J\r\nContent-Length: 0\r\n\r\n"),
    "a date of year 1": says(whole(b"{}", "Date: Mon, 01 Jan 0001 00:00:00 GMT", "Retry-After: Mon, 01 Jan 0001 00:00:00 GMT", status="429 No")),
    "a date of year 9999": says(whole(b"{}", "Date: Fri, 31 Dec 9999 23:59:59 GMT", "Retry-After: Fri, 31 Dec 9999 23:59:59 -2359", status="429 No")),
    "a wait of nan": says(whole(b"{}", "Retry-After: nan", status="429 No")),
    "a wait of -5": says(whole(b"{}", "Retry-After: -5", status="503 No")),
    "a wait of 1e400": says(whole(b"{}", "Retry-After: 1e400", "x-ratelimit-remaining: 0", "x-ratelimit-reset: 1e400", status="429 No")),
    "limits that are no numbers": says(whole(GOOD, "x-ratelimit-remaining-requests: -inf", "x-ratelimit-reset-requests: 99999999d", "retry-after-ms: 0x7f")),
    "invalid UTF-8": says(whole(b'{"choices":[{"message":{"content":"\xff\xfe\xed\xa0\x80"}}]}')),
    "UTF-16": says(whole(GOOD.decode().encode("utf-16"))),
    "deep JSON": says(whole(b"[" * 200_000 + b"]" * 200_000)),
    "a number of a million digits": says(whole(b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":' + b"9" * 10**6 + b"}}")),
}  # fmt: skip

REDIRECTS = (
    "/v1/elsewhere", "file:///etc/hostname", "http://127.0.0.1:{port}/steal", "https://127.0.0.1:{port}/",
    "http://xn--a\u00df..invalid:{port}/", "http://127.0.0.1:{port}/" + "a" * 50_000,
    "//127.0.0.1:{port}/x", "http://user:pass@127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/",
)  # fmt: skip


def ask(folder: Path, url: str, *, key: str | None = None) -> str | None:
    """Ask one probe once; what did not hold."""
    probe = Probe(
        id="p1", kind="open", messages=(Message(role="user", content="Hi."),), max_tokens=24
    )
    endpoint = Endpoint(
        base_url=url, model="m", api_key=key, top_logprobs=0, max_attempts=1, timeout_s=TIMEOUT_S,
        max_response_bytes=2**22,
    )  # fmt: skip
    with suppress(VerifierError):  # the operator is told, in one line
        collect(folder, endpoint, [probe])
    read_outcomes(folder, max_attempts=1)
    if any(b"\0" in raw for raw in every_file(folder).values()):
        return "a NUL byte stands in the folder"
    return None


def attack_wires(lab: Lab) -> Iterator[Tally]:
    tally = Tally(attack="hostile wires: a value comes back, in time")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = list(WIRES)[:: lab.size(1, 3)]

    def one(name: str) -> tuple[str, str | None, float]:
        began = time.monotonic()
        with RawHost(WIRES[name]) as host:
            try:
                problem = ask(lab.folder("wire"), host.url, key=KEY)
            except Exception as error:  # noqa: BLE001 - whatever comes is the finding
                problem = f"raised {type(error).__name__}: {error}"
        took = time.monotonic() - began
        if problem is None and took > TIMEOUT_S + PAST_S + 2:  # and two more to close lines here
            problem = f"took {took:.1f} s, the time-out is {TIMEOUT_S} s"
        return name, problem, took

    with ThreadPoolExecutor(6) as pool:
        for name, problem, took in pool.map(one, names):
            tally.note(name, problem, took)
    yield tally

    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tally = Tally(attack="hostile wires: no growth in memory", extra={"grown_mb": round(grown)})
    tally.note("all wires", f"grew by {grown:.0f} MB" if grown > 400 else None)
    yield tally
    yield _redirects(lab)
    yield _longer_than_its_length(lab)


def _redirects(lab: Lab) -> Tally:
    tally = Tally(attack="redirects are not followed, and the key goes nowhere")
    for number, place in enumerate(REDIRECTS):
        status = ("301 Moved", "302 Found", "307 Same", "308 Same")[number % 4]

        def attempt(place: str = place, status: str = status) -> str | None:
            with canary() as other:
                raw = f"HTTP/1.1 {status}\r\nLocation: {place.format(port=other.port)}\r\nContent-Length: 0\r\n\r\n"
                with RawHost(says(raw.encode("utf-8"))) as host:
                    problem = ask(lab.folder("redirect"), host.url, key=KEY)
                    paths = {request.split(b" ")[1] for request in host.requests}
                if other.requests:
                    return f"the other host was asked: {other.requests[0][:100]!r}"
                if any(b"elsewhere" in path for path in paths):
                    return "followed on the same host"
            return problem

        tally.try_(place[:40], attempt)
    return tally


def _longer_than_its_length(lab: Lab) -> Tally:
    """A second answer in one packet with the first is no answer to the next question."""
    tally = Tally(attack="an answer longer than its Content-Length never becomes the next answer")
    injected = json.dumps(chat("INJECTED before the next question was sent")).encode()
    tails = {
        "a whole response": whole(injected), "two responses": whole(injected) * 2,
        "a line end and a response": b"\r\n" + whole(injected), "rubbish": b"rubbish " * 10,
        "half a response": whole(injected)[:60],
    }  # fmt: skip
    for name, tail in tails.items():

        def attempt(tail: bytes = tail) -> str | None:
            count = 0

            def script(line: socket.socket, _request: bytes) -> None:
                nonlocal count
                count += 1
                line.sendall(whole() + tail)

            folder = lab.folder("longer")
            probes = [
                Probe(id=f"p{n}", kind="open", messages=(Message(role="user", content=f"{n}?"),),
                      max_tokens=24)
                for n in range(6)
            ]  # fmt: skip
            with RawHost(script) as host:
                endpoint = Endpoint(base_url=host.url, model="m", top_logprobs=0, max_attempts=2,
                                    concurrency=1, timeout_s=TIMEOUT_S)  # fmt: skip
                with suppress(VerifierError):
                    collect(folder, endpoint, probes)
            text = repr(read_outcomes(folder, max_attempts=2))
            return "an injected answer was taken for a reply" if "INJECTED" in text else None

        tally.try_(name, attempt)
    return tally
