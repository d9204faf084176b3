"""A scripted host on the loopback: answers each request with what the test says, over sockets."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it arrived; `index` counts chat requests from 0."""

    index: int
    path: str
    headers: dict[str, str]  # names in lower case
    raw: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def prompt(self) -> str:
        return self.json["messages"][-1]["content"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response. `raw`, when given, is written to the socket as it is and the line is cut."""

    status: int = 200
    body: Any = b""  # bytes, or a value that is sent as JSON
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


def chat(text: Any = "Paris.", *, logprobs: Any = None, **message: Any) -> dict[str, Any]:
    """The body of an ordinary answer."""
    return {
        "id": "x",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": "stop",
                "logprobs": logprobs,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }


def error(status: int, message: str = "no", **headers: str) -> Answer:
    """An error in OpenAI's shape."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, body={"error": {"message": message}}, headers=named)


class FakeHost:
    """Serves while the `with` block runs. `models`: what GET /v1/models answers."""

    def __init__(
        self,
        script: Callable[[Asked], Answer | dict[str, Any]],
        *,
        models: Answer | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.asked: list[Asked] = []
        self.busiest = 0  # the most chat requests under way at one time
        self.closing = threading.Event()  # a script that wants to hang waits for this
        self._script = script
        self._models = models or error(404)
        self._busy = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeHost:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, headers: dict[str, str], raw: bytes) -> Answer:
        """What to answer to one request, noting that it came."""
        if path.endswith("/models"):
            return self._models
        with self._lock:
            asked = Asked(index=len(self.asked), path=path, headers=headers, raw=raw)
            self.asked.append(asked)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            answer = self._script(asked)
        finally:
            with self._lock:
                self._busy -= 1
        return answer if isinstance(answer, Answer) else Answer(body=answer)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for every handler
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of some tests, not worth a trace."""


def _handler(host: FakeHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet for head and body: two would wait for each other
        timeout = 20  # of one read, so that no test can hang on a lost client

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            raw = self.rfile.read(length)
            if len(raw) < length:  # the client went away: this request never arrived
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._send(host.answer(self.path, headers, raw))

        def do_GET(self) -> None:
            self._send(host.answer(self.path, {}, b""))

        def _send(self, answer: Answer) -> None:
            if answer.raw is not None:
                self.wfile.write(answer.raw)
                self.close_connection = True
                return
            body = answer.body
            payload = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_args: object) -> None:
            """Silence."""

    return Handler
