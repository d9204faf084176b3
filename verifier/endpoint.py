"""One HTTP exchange with an OpenAI-compatible host: its settings, and sending.

Knows nothing of files, of what a response means, or of when to ask again.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from aiolimiter import AsyncLimiter

from verifier.errors import ConfigError
from verifier.prompts import wire_extras, wire_message
from verifier.records import Attempt, Probe
from verifier.wire import REDACTED

CONNECT_TIMEOUT_S: Final = 10.0
MAX_RETRY_AFTER_S: Final = 60.0

#: Shorter keys are placeholders such as EMPTY, and striking those out would change replies.
_SHORTEST_SECRET: Final = 8
_KEPT_BESIDE_ERROR: Final = 4096  # characters: enough to see what an unusable body was
_KEPT_OF_ERROR: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to ask, for what, with which key, and how hard. Raises ConfigError when it cannot be.

    `base_url` is what comes before `/chat/completions`. The key goes into the Authorization
    header alone; `api_key_env` is the name of its variable, for messages.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    timeout_s: float = 120.0  # for one whole exchange
    concurrency: int = 8
    max_attempts: int = 4  # per probe
    requests_per_minute: float | None = None  # None: as fast as `concurrency` allows
    top_logprobs: int = 5  # 0: do not ask for log-probabilities
    max_response_bytes: int = 8 * 2**20

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _checked_url(self.base_url))
        if not self.model.strip():
            raise ConfigError("endpoint.model: expected the model's name at the host, got nothing")
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            # the value itself must not be shown
            raise ConfigError(
                f"endpoint: the API key in {self.api_key_env or 'api_key'} is empty or holds "
                "spaces, line ends or other signs no key has; set it again"
            )
        for name, low, high in (
            ("timeout_s", 0.001, 86_400),
            ("concurrency", 1, 1_024),
            ("max_attempts", 1, 100),
            ("requests_per_minute", 0.1, 1_000_000),
            ("top_logprobs", 0, 20),
            ("max_response_bytes", 1_024, 2**30),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"endpoint.{name}: expected {low} to {high}, got {value!r}")

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.base_url).netloc


def _checked_url(url: str) -> str:
    expected = "expected http(s)://host/path, usually ending in /v1"
    try:
        parts = urlsplit(url.strip())
        httpx.URL(url.strip())
        (parts.hostname or "").encode("idna")
        _ = parts.port  # raises when it is no port
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"endpoint.base_url: {expected}; it cannot be read ({error})") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "endpoint.base_url: holds a user name or password; take it out and name the variable "
            "that holds the key in endpoint.api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"endpoint.base_url: {expected}; got {url!r}")
    if parts.query or parts.fragment:
        raise ConfigError(f"endpoint.base_url: {expected}, without ? or #; got {url!r}")
    return url.strip().rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What came of one request, and how long the host asks to wait before the next."""

    attempt: Attempt
    retry_after_s: float | None  # None: the host did not say


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    status: int | None
    body: str
    error: str | None
    retry_after_s: float | None


class Client:
    """Open connections to one endpoint; use as `async with Client(endpoint) as client`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._secret = _secret_pattern(endpoint.api_key)
        rate = endpoint.requests_per_minute
        # one request per period, never a burst: hosts count over shorter windows than a minute
        self._pace = nullcontext() if rate is None else AsyncLimiter(1, 60 / rate)
        headers = {"Content-Type": "application/json"}
        if endpoint.api_key is not None:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        try:
            self._http = httpx.AsyncClient(
                headers=headers,
                follow_redirects=False,  # the key must not travel to another host
                timeout=httpx.Timeout(
                    endpoint.timeout_s,
                    connect=min(CONNECT_TIMEOUT_S, endpoint.timeout_s),
                    pool=None,
                ),
                limits=httpx.Limits(max_connections=endpoint.concurrency + 1),
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"{endpoint.host}: no connection can be set up ({self._redact(str(error))}); "
                "check the proxy and certificate variables (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE)"
            ) from None

    async def __aenter__(self) -> Client:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def pace(self) -> None:
        """Take one place in the rate limit, for a request that another client sent just before."""
        async with self._pace:
            pass

    async def ask(self, probe: Probe, *, number: int, logprobs: bool) -> Sent:
        """Send one probe once; whatever the network or the host does comes back as a value."""
        request = _request_body(self._endpoint, probe, logprobs=logprobs)
        await self.pace()
        started_at, start = datetime.now(UTC), time.monotonic()
        got = await self._exchange("POST", "/chat/completions", request)
        return Sent(
            attempt=Attempt(
                probe_id=probe.id,
                number=number,
                started_at=started_at.isoformat(timespec="milliseconds"),
                elapsed_s=round(time.monotonic() - start, 6),
                request=self._redact(request.decode()),
                status=got.status,
                body=got.body,
                error=got.error,
            ),
            retry_after_s=got.retry_after_s,
        )

    async def list_models(self) -> tuple[str, ...]:
        """Names that `GET /models` gives; none when it gives no such list."""
        got = await self._exchange("GET", "/models", None)
        try:
            listing: Any = json.loads(got.body)
        except (ValueError, RecursionError):
            return ()
        rows = listing.get("data") if isinstance(listing, dict) else listing
        if not isinstance(rows, list):
            return ()
        names = (row.get("id") for row in rows if isinstance(row, dict))
        return tuple(name for name in names if isinstance(name, str))

    async def _exchange(self, method: str, path: str, content: bytes | None) -> _Response:
        """One request. A body that broke off counts as no response, and what came is kept."""
        endpoint, received = self._endpoint, bytearray()
        status, error, wait = None, None, None
        try:
            async with (
                asyncio.timeout(endpoint.timeout_s),
                self._http.stream(method, endpoint.base_url + path, content=content) as response,
            ):
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if len(received) > endpoint.max_response_bytes:
                        error = f"response larger than {endpoint.max_response_bytes} bytes"
                        break
                if response.next_request is not None:
                    error = f"redirect to {response.next_request.url.host}, not followed"
                wait = retry_after_s(response.headers, now=datetime.now(UTC))
                status = response.status_code
        except TimeoutError:
            error = f"no whole answer within {endpoint.timeout_s:g} s"
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as problem:
            error = _describe(problem)
        body = self._redact(received.decode("utf-8", "replace"))
        if error is not None:  # redacted first: a cut could leave most of a key unrecognized
            body, error = body[:_KEPT_BESIDE_ERROR], self._redact(error)[:_KEPT_OF_ERROR]
        return _Response(status=status, body=body, error=error, retry_after_s=wait)

    def _redact(self, text: str) -> str:
        return text if self._secret is None else self._secret.sub(REDACTED, text)


def _request_body(endpoint: Endpoint, probe: Probe, *, logprobs: bool) -> bytes:
    """The JSON body, in the byte form of the usual clients, so that probes look like traffic."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [wire_message(message) for message in probe.messages],
        "max_tokens": probe.max_tokens,
        "temperature": 0,
        "stream": False,
    } | wire_extras(probe)
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds the host asks to wait, at most a minute: `retry-after-ms`, else `Retry-After`."""
    for value, unit_s in (
        (headers.get("retry-after-ms"), 0.001),
        (headers.get("retry-after"), 1.0),
    ):
        if value is None:
            continue
        try:
            wait = float(value) * unit_s
        except ValueError:
            try:
                moment = parsedate_to_datetime(value)
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                wait = max(0.0, (moment - now).total_seconds())
            except (ValueError, OverflowError):
                continue
        if not math.isnan(wait) and wait >= 0:
            return min(wait, MAX_RETRY_AFTER_S)
    return None


def _secret_pattern(key: str | None) -> re.Pattern[str] | None:
    """Matches the key in any case, and as JSON or a URL may escape it."""
    if key is None or len(key) < _SHORTEST_SECRET:
        return None
    signs = (rf"(?:\\?{re.escape(s)}|\\u{ord(s):04x}|%{ord(s):02x})" for s in key)
    return re.compile("".join(signs), re.IGNORECASE)


def _describe(error: BaseException) -> str:
    """The kind of a transport error and its first cause: httpx hides "connection refused"."""
    cause: BaseException = error
    for _ in range(16):  # chains may hold a circle
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        elif (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        else:
            break
    if isinstance(cause, ConnectionError) and cause.errno:
        text = os.strerror(cause.errno)  # asyncio's own words do not say "refused"
    else:
        text = str(cause if isinstance(cause, OSError) else error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
