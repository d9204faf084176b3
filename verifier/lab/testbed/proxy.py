"""A laboratory instrument: a proxy on the loopback that spoils some of what a host answers.

Real sockets, so that a collector meets what routers and gateways really do: errors with every form
of Retry-After, lines that break off, slow drips, truncated and spoilt bodies, floods, gzip bombs,
and event streams whose events come twice or change places. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import h11

_LOOPBACK: Final = "127.0.0.1"
_HUGE_BYTES: Final = 50 * 2**20
_BOMB_BYTES: Final = 2**28  # unpacked; a quarter of a megabyte on the wire
_SKEW_S: Final = 3600.0  # how wrong the clock of a spoilt answer is
_STALL_S: Final = 60.0  # a drip that nobody waits out

#: Share of requests by what is done to them: 20 % refused, and one in a hundred of each other kind.
STORM: Final[Mapping[str, float]] = {
    "429": 0.07, "500": 0.06, "503": 0.07,
    "reset": 0.01, "drip": 0.01, "stall": 0.01, "truncated": 0.01, "malformed": 0.01,
    "wrong type": 0.01, "huge": 0.01, "bomb": 0.01, "error in 200": 0.01,
    "event twice": 0.01, "events swapped": 0.01, "error in stream": 0.01,
}  # fmt: skip
_OF_STREAMS: Final = ("event twice", "events swapped", "error in stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a host answered, whole."""

    status: int
    kind: str  # its Content-Type
    body: bytes


Upstream = Callable[[str, str, bytes], Awaitable[Answered]]  # method, path, body


def forward_to(base_url: str) -> Upstream:
    """Asks the host at `base_url`, on a line of its own for each request."""
    parts = urlsplit(base_url)

    async def ask(method: str, path: str, body: bytes) -> Answered:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            line = h11.Connection(h11.CLIENT)
            headers = [
                ("Host", parts.netloc), ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))), ("Connection", "close"),
            ]  # fmt: skip
            for event in (
                h11.Request(method=method, target=path, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                writer.write(line.send(event) or b"")
            status, kind, received = 502, "", bytearray()
            while not isinstance(event := await _next(line, reader), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    status = event.status_code
                    kind = dict(event.headers).get(b"content-type", b"").decode()
                elif isinstance(event, h11.Data):
                    received += event.data
            return Answered(status=status, kind=kind, body=bytes(received))
        finally:
            writer.close()

    return ask


async def _next(line: h11.Connection, reader: asyncio.StreamReader) -> Any:
    """The next whole event of a line."""
    while (event := line.next_event()) is h11.NEED_DATA:
        line.receive_data(await reader.read(2**16))
    return event


class Proxy:
    """Answers for `upstream`, and spoils what `rates` says, at random by `seed`."""

    def __init__(self, upstream: Upstream, *, rates: Mapping[str, float], seed: int) -> None:
        self.done: Counter[str] = Counter()  # answers by what was done to them; "" is nothing
        self._upstream = upstream
        self._rates = rates
        self._rng = random.Random(seed)  # noqa: S311 - a storm, not a secret
        self._lines: set[asyncio.Task[None]] = set()

    async def start(self, *, port: int = 0) -> asyncio.Server:
        """Listen on the loopback interface."""
        return await asyncio.start_server(self._serve, _LOOPBACK, port, backlog=256)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        line = h11.Connection(h11.SERVER)
        try:
            while True:
                head, body = None, bytearray()
                while not isinstance(event := await _next(line, reader), h11.EndOfMessage):
                    if isinstance(event, h11.ConnectionClosed):
                        return
                    if isinstance(event, h11.Request):
                        head = event
                    elif isinstance(event, h11.Data):
                        body += event.data
                assert head is not None
                method, target = head.method.decode(), head.target.decode()
                if not await self._answer(line, writer, method, target, bytes(body)):
                    return
                line.start_next_cycle()
        except (OSError, h11.ProtocolError):
            return  # the client went away
        finally:
            self._lines.discard(task)
            with suppress(OSError):
                writer.close()

    def stop(self) -> None:
        """End the lines under way."""
        for task in self._lines:
            task.cancel()

    def _draw(self, *, streamed: bool) -> str:
        at = self._rng.random()
        for fault, share in self._rates.items():
            if at < share:
                return "" if fault in _OF_STREAMS and not streamed else fault
            at -= share
        return ""

    async def _answer(
        self, line: h11.Connection, writer: asyncio.StreamWriter, method: str, target: str,
        body: bytes,
    ) -> bool:  # fmt: skip
        """Answer one request; whether the line can go on."""
        if method == "GET" and target == "/faults":
            await _send(line, writer, 200, json.dumps(self.done).encode())
            return True
        fault = self._draw(streamed=b'"stream":true' in body)
        self.done[fault] += 1
        if fault in ("429", "500", "503"):
            said = json.dumps({"error": {"message": "try later", "code": int(fault)}})
            headers = [] if fault == "500" else self._wish()
            await _send(line, writer, int(fault), said.encode(), headers=headers)
            return True
        got = await self._upstream(method, target, body)
        match fault:
            case "reset":
                half = got.body[: self._rng.randrange(1, max(2, len(got.body)))]
                _write_head(line, writer, got.status, got.kind, length=len(got.body))
                writer.write(half)
                await writer.drain()
                writer.transport.abort()
                return False
            case "drip" | "stall":
                await self._drip(line, writer, got, seconds=1.0 if fault == "drip" else _STALL_S)
            case "huge":
                await _flood(line, writer)
            case "bomb":
                headers = [("Content-Encoding", "gzip")]
                await _send(line, writer, 200, _bomb(), headers=headers)
            case _:
                spoilt = self._spoil(fault, got)
                await _send(line, writer, got.status, spoilt, kind=got.kind)
        return True

    def _wish(self) -> list[tuple[str, str]]:
        """A form of Retry-After, or none; the date is told by a clock that is an hour off."""
        match self._rng.randrange(5):
            case 0:
                return [("Retry-After", "0.3")]
            case 1:
                return [("retry-after-ms", "200")]
            case 2:
                wrong = time.time() + self._rng.choice((-_SKEW_S, _SKEW_S))
                return [
                    ("Date", formatdate(wrong, usegmt=True)),
                    ("Retry-After", formatdate(wrong + 1, usegmt=True)),
                ]
            case 3:
                return [
                    ("x-ratelimit-remaining-requests", "0"),
                    ("x-ratelimit-reset-requests", "250ms"),
                ]
            case _:
                return []

    def _spoil(self, fault: str, got: Answered) -> bytes:
        """The body of a fault that keeps HTTP whole."""
        events = got.body.split(b"\n\n")[:-1]
        streamed = got.kind.startswith("text/event-stream")
        at = self._rng.randrange(1, max(2, len(events) - 3))  # a piece of text, not the first
        match fault:
            case "truncated" if streamed:
                events = events[:at]
            case "truncated" | "malformed":
                return got.body[: len(got.body) // 2] + (b"" if fault == "truncated" else b"}]")
            case "wrong type":
                return self._rng.choice((b"null", b'"text"', b"[1]", b'{"choices":{"0":3}}'))
            case "error in 200":
                return b'{"error":{"code":502,"message":"upstream is warming up"}}'
            case "event twice":
                events.insert(at, events[at])
            case "events swapped":
                events[at], events[at + 1] = events[at + 1], events[at]
            case "error in stream":
                events[at:] = [b'data: {"error":{"code":502,"message":"upstream died"}}']
            case _:
                return got.body
        return b"".join(event + b"\n\n" for event in events)

    async def _drip(
        self, line: h11.Connection, writer: asyncio.StreamWriter, got: Answered, *, seconds: float
    ) -> None:
        _write_head(line, writer, got.status, got.kind, length=len(got.body))
        step = max(1, len(got.body) // 20)
        for start in range(0, len(got.body), step):
            writer.write(line.send(h11.Data(data=got.body[start : start + step])) or b"")
            await writer.drain()
            await asyncio.sleep(seconds * step / len(got.body))
        writer.write(line.send(h11.EndOfMessage()) or b"")
        await writer.drain()


def _write_head(
    line: h11.Connection, writer: asyncio.StreamWriter, status: int, kind: str, *, length: int,
    headers: list[tuple[str, str]] | None = None,
) -> None:  # fmt: skip
    every = [("Content-Type", kind), ("Content-Length", str(length)), *(headers or [])]
    writer.write(line.send(h11.Response(status_code=status, headers=every)) or b"")


async def _send(
    line: h11.Connection, writer: asyncio.StreamWriter, status: int, body: bytes, *,
    kind: str = "application/json", headers: list[tuple[str, str]] | None = None,
) -> None:  # fmt: skip
    _write_head(line, writer, status, kind, length=len(body), headers=headers)
    writer.write(line.send(h11.Data(data=body)) or b"")
    writer.write(line.send(h11.EndOfMessage()) or b"")
    await writer.drain()


async def _flood(line: h11.Connection, writer: asyncio.StreamWriter) -> None:
    """Spaces without end, as far as the client takes them."""
    _write_head(line, writer, 200, "application/json", length=_HUGE_BYTES)
    piece = b" " * 2**16
    for _ in range(_HUGE_BYTES // len(piece)):
        writer.write(line.send(h11.Data(data=piece)) or b"")
        await writer.drain()
    writer.write(line.send(h11.EndOfMessage()) or b"")


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(_BOMB_BYTES), compresslevel=6)


@contextmanager
def running_proxy(
    upstream: Upstream, *, rates: Mapping[str, float], seed: int
) -> Iterator[tuple[str, Proxy]]:
    """Serve in a background thread; yields the base URL and the proxy, stops on leaving."""
    proxy = Proxy(upstream, rates=rates, seed=seed)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(proxy.start())
    thread = threading.Thread(target=loop.run_forever, name="testbed-proxy")
    thread.start()

    async def close() -> None:
        server.close()
        proxy.stop()

    try:
        yield f"http://{_LOOPBACK}:{server.sockets[0].getsockname()[1]}/v1", proxy
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
