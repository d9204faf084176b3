"""A laboratory instrument: a router on the loopback that sends some requests to other hosts.

Nothing in an answer tells who gave it; a log can be kept to compare with. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from verifier.errors import ConfigError

Routing = Literal["random", "sticky", "bursts", "hours"]

#: Requests of one burst, on average.
BURST: Final = 8

_HOUR_S: Final = 3600.0
_TIMEOUT_S: Final = 600.0
_PASSED_ON: Final = ("authorization", "x-api-key", "anthropic-version", "content-type", "accept")
_PASSED_BACK: Final = ("content-type", "retry-after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A host, by its base URL, and the share of requests that it gets."""

    base_url: str
    share: float


def read_routes(base_url: str, routes: Sequence[str]) -> tuple[Upstream, ...]:
    """The upstreams of a router: `routes` are SHARE:URL, and `base_url` gets the rest.

    Raises ConfigError for a route that is none, and for shares above 1 together.
    """
    found = []
    for route in routes:
        share, _, url = route.partition(":")
        try:
            part = float(share)
        except ValueError:
            part = -1.0
        if not 0 <= part <= 1 or not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--route: expected SHARE:URL, such as 0.3:http://127.0.0.1:8001/v1; got {route!r}"
            )
        found.append(Upstream(base_url=url.rstrip("/"), share=part))
    rest = 1 - sum(upstream.share for upstream in found)
    if rest < -1e-9:
        raise ConfigError(f"--route: shares of {1 - rest:g} together; allow 1 at most")
    return (Upstream(base_url=base_url.rstrip("/"), share=max(0.0, rest)), *found)


class Chooser:
    """Which upstream gets a request; the same requests in the same order meet the same ones."""

    def __init__(
        self, upstreams: Sequence[Upstream], *, routing: Routing, seed: int,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._upstreams = tuple(upstreams)
        self._ends = tuple(accumulate(upstream.share for upstream in upstreams))
        self._routing = routing
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - a laboratory, not a secret
        self._first = self._rng.random()  # where in the order of upstreams an hour begins
        self._burst: Upstream | None = None
        self._clock = clock

    def choose(self, body: bytes, *, client: str = "") -> Upstream:
        """The upstream of one request.

        "random" draws anew each time, "bursts" after BURST requests on average, "sticky" goes by
        the first message of a user, or by the client's key where there is none, and "hours" gives
        each upstream its part of every hour.
        """
        match self._routing:
            case "random":
                return self._at(self._rng.random())
            case "bursts":
                if self._burst is None or self._rng.random() < 1 / BURST:
                    self._burst = self._at(self._rng.random())
                return self._burst
            case "hours":
                return self._at((self._first + self._clock() / _HOUR_S) % 1)
            case "sticky":
                what = _first_words(body) or client
                digest = hashlib.sha256(f"{self._seed}:{what}".encode()).digest()
                return self._at(int.from_bytes(digest[:8], "big") / 2**64)

    def _at(self, point: float) -> Upstream:
        return next(
            (u for u, end in zip(self._upstreams, self._ends, strict=True) if point < end),
            self._upstreams[0],
        )


def _first_words(body: bytes) -> str:
    """What the first message of a user says, as JSON; empty where none is found."""
    try:
        asked = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(asked, dict):
        return ""
    for message in _list(asked.get("messages")):
        if isinstance(message, dict) and message.get("role") == "user":
            return json.dumps(message.get("content"))
    other = asked.get("prompt", asked.get("input"))
    return "" if other is None else json.dumps(other)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def create_router(
    upstreams: Sequence[Upstream], *, routing: Routing, seed: int, log: Path | None = None
) -> Starlette:
    """An app that passes every request on to one of `upstreams`, and its answer back as it comes.

    `log` gets a line of JSON per request: its number, the upstream, the path and a digest of the
    body. Which models there are is asked of the first upstream, and not logged.
    Raises OSError where the log cannot be written.
    """
    if log is not None:
        log.open("a").close()
    chooser = Chooser(upstreams, routing=routing, seed=seed)
    numbers = iter(range(2**63))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits) as client:
            yield {"client": client}

    async def pass_on(request: Request) -> Response:
        body = await request.body()
        key = request.headers.get("authorization", request.headers.get("x-api-key", ""))
        upstream = upstreams[0]
        if request.method == "POST":
            upstream = chooser.choose(body, client=key)
            if log is not None:
                _note(log, next(numbers), upstream, request.url.path, body)
        asked = request.state.client.build_request(
            request.method,
            upstream.base_url + request.url.path.removeprefix("/v1"),
            content=body,
            headers={k: v for k, v in request.headers.items() if k in _PASSED_ON},
        )
        try:
            got = await request.state.client.send(asked, stream=True)
        except httpx.TransportError:
            error = {"message": "no host answered", "type": "server_error"}
            return JSONResponse({"error": error}, status_code=502)
        return StreamingResponse(
            got.aiter_bytes(),
            status_code=got.status_code,
            headers={k: v for k, v in got.headers.items() if k in _PASSED_BACK},
            background=BackgroundTask(got.aclose),
        )

    return Starlette(
        routes=[Route("/v1/{path:path}", pass_on, methods=["GET", "POST"])], lifespan=lifespan
    )


def _note(log: Path, number: int, upstream: Upstream, path: str, body: bytes) -> None:
    line = {
        "number": number,
        "upstream": upstream.base_url,
        "path": path,
        "body_sha256": hashlib.sha256(body).hexdigest(),
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
