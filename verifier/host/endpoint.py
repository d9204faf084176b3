"""One HTTP exchange with an OpenAI-compatible host: its settings, and sending.

Knows nothing of files, of what a response means, or of when to ask again.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx
from aiolimiter import AsyncLimiter

from verifier.errors import ConfigError
from verifier.host.dialects import Ask, LimitName, LogprobsForm
from verifier.host.event_stream import MARK, Ending
from verifier.host.exchange import DIALECTS
from verifier.host.rate_limits import exhausted_for_s, retry_after_s
from verifier.host.response_body import ACCEPTED, Body, BodyTooLarge, UnreadableBody
from verifier.host.shape import AS_WRITTEN, Shape, limit_name, renamed, streams, written
from verifier.prompts import Render, wire_extras
from verifier.records import Attempt, CountTokens, Probe
from verifier.safety import sieve

#: Why an answer is not kept.
SPELLED: Final = "the answer spells the API key: struck out"

_KEPT_BESIDE_ERROR: Final = 4096  # characters: enough to see what an unusable body was
_KEPT_OF_ERROR: Final = 500
_KEPT_OF_HEADER: Final = 200
#: Lines that share one pool: httpx looks at every line of a pool for each request.
_PER_LANE: Final = 8
#: From a response of httpx to the state of its line. Private names: a test says when they change.
_TO_THE_LINE: Final = ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state")
_AFTER_END_S: Final = 0.5  # for a line to close whose event stream has ended

#: Fields that may have been found to make a host greedy, and are not for samples.
_OF_SAMPLING: Final = ("temperature", "top_k", "top_p")

#: What may come besides tokens, and for each token and each alternative to it, in bytes.
_ROOM: Final = 2**18
_ROOM_PER_CANDIDATE: Final = 1024

#: Headers that are kept: limits, requests' names, who answered. None of them carries a secret.
_TELLING: Final = re.compile(
    r"(x-)?(should-retry|retry-after(-ms)?|request-id|generation-id|served-by)"
    r"|(x-|anthropic-)?(ratelimit|tokenlimit)-[a-z-]+|(x-)?openrouter-[a-z-]+"
    r"|content-type|date|server|via|cf-ray"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to ask, for what, with which key, and how hard. Raises ConfigError when it cannot be.

    `base_url` is what comes before `/chat/completions` or its kin. The key goes into the header
    or headers of its dialect alone, or as it is into `api_key_header`; `api_key_env` is the name
    of its variable, for messages.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    api_key_header: str | None = None  # None: as its dialect sends it
    ca_file: Path | None = None  # whose certificates alone are trusted; None: those of the system
    client_certificate: Path | None = None
    client_key: Path | None = None  # None: it lies in the certificate's file
    timeout_s: float = 120.0  # for one whole exchange
    connect_timeout_s: float = 10.0
    read_timeout_s: float | None = None  # between two pieces of a response; None: `timeout_s`
    concurrency: int = 8
    max_attempts: int = 8  # per probe
    requests_per_minute: float | None = None  # None: as fast as `concurrency` allows
    top_logprobs: int = 5  # 0: do not ask for log-probabilities
    max_response_bytes: int = 2**26  # at most; a probe's own length may allow less
    stream: bool = False  # ask for an event stream
    dialect: str = "chat"  # one of `wire.DIALECTS`
    logprobs_form: LogprobsForm = "boolean"
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request
    headers: Mapping[str, str] = field(default_factory=dict)  # of each request; not secret
    render: Render | None = None  # messages to a prompt, which text completions need
    count_tokens: CountTokens | None = None  # None: no tokenizer is at hand
    least_max_tokens: int = 1  # the fewest tokens that it may be asked for
    max_tokens_field: LimitName | None = None  # of a chat's limit; None: the one that is taken
    shape: Shape = AS_WRITTEN  # how it is known to take requests, but for log-probabilities

    def __post_init__(self) -> None:
        sieve.know(self.api_key)
        object.__setattr__(self, "base_url", _checked_url(self.base_url))
        if not self.model.strip():
            raise ConfigError("endpoint.model: expected the model's name at the host, got nothing")
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            # the value itself must not be shown
            raise ConfigError(
                f"endpoint: the API key in {self.api_key_env or 'api_key'} is empty or holds "
                "spaces, line ends or other signs no key has; set it again"
            )
        for name in ("base_url", "model", "extra_body", "headers", "api_key_header"):
            if sieve.strike_all(value := getattr(self, name)) != value:
                raise ConfigError(
                    f"endpoint.{name}: holds the API key itself, and is kept in the run folder; "
                    "take it out: the key is sent in its own header"
                )
        if self.dialect not in DIALECTS:
            raise ConfigError(
                f"endpoint.dialect: no dialect {self.dialect!r}; there are {', '.join(DIALECTS)}"
            )
        for name, low, high in (
            ("timeout_s", 0.001, 86_400),
            ("connect_timeout_s", 0.001, 86_400),
            ("read_timeout_s", 0.001, 86_400),
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
    except (ValueError, httpx.InvalidURL):  # whose text shows what may be a key
        raise ConfigError(f"endpoint.base_url: {expected}; it cannot be read") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "endpoint.base_url: holds a user name or password; take it out and name the variable "
            "that holds the key in endpoint.api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"endpoint.base_url: {expected}")
    if parts.query or parts.fragment:
        raise ConfigError(f"endpoint.base_url: {expected}, without ? or #")
    return url.strip().rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What came of one request, and how long the host asks to wait before the next."""

    attempt: Attempt
    retry_after_s: float | None  # None: the host did not say
    exhausted_for_s: float | None  # until its limits allow another; None: nothing is used up


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    status: int | None
    body: str
    error: str | None
    headers: dict[str, str]
    retry_after_s: float | None
    exhausted_for_s: float | None
    first_at: float | None  # by the monotonic clock


def trusted_by(endpoint: Endpoint) -> ssl.SSLContext:
    """Whom an endpoint's lines trust, and who they say that they are.

    Raises ConfigError for a file that the endpoint names which cannot be read, or holds something
    else, and OSError or ValueError for what SSL_CERT_FILE names.
    """
    for name in ("ca_file", "client_certificate", "client_key"):
        path = getattr(endpoint, name)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"endpoint.{name}: {path} cannot be read ({error.strerror}); name a PEM file"
            ) from None
    if endpoint.ca_file is None:
        trusted = httpx.create_ssl_context()
    else:
        try:
            trusted = ssl.create_default_context(cafile=endpoint.ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"endpoint.ca_file: {endpoint.ca_file} holds no certificates that can be trusted "
                f"({_describe(error)}); name a PEM file of them"
            ) from None
    if endpoint.client_certificate is not None:
        key = endpoint.client_key
        try:
            # a password that is wrong: else one is asked for on the terminal
            trusted.load_cert_chain(endpoint.client_certificate, key, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"endpoint.client_certificate: {endpoint.client_certificate}"
                f"{f' and client_key {key}' if key else ''} are no certificate and its key "
                f"({_describe(error)}); name PEM files, the key without a passphrase"
            ) from None
    return trusted


class Client:
    """Open connections to one endpoint; use as `async with Client(endpoint) as client`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        sieve.guard_logs()
        rate = endpoint.requests_per_minute
        # one request per period, never a burst: hosts count over shorter windows than a minute
        self._pace = nullcontext() if rate is None else AsyncLimiter(1, 60 / rate)
        headers = {"Content-Type": "application/json", "Accept-Encoding": ACCEPTED}
        headers |= {**endpoint.headers, **DIALECTS[endpoint.dialect].headers}
        if endpoint.api_key is not None and endpoint.api_key_header is not None:
            headers[endpoint.api_key_header] = endpoint.api_key
        elif endpoint.api_key is not None:
            headers |= DIALECTS[endpoint.dialect].key_headers(endpoint.api_key)
        try:
            trusted = trusted_by(endpoint)
            self._lanes = [
                httpx.AsyncClient(
                    headers=headers,
                    follow_redirects=False,  # the key must not travel to another host
                    verify=trusted,
                    timeout=httpx.Timeout(
                        endpoint.timeout_s,
                        connect=endpoint.connect_timeout_s,
                        read=endpoint.read_timeout_s or endpoint.timeout_s,
                        pool=None,
                    ),
                    limits=httpx.Limits(max_connections=None),
                )
                for _ in range(-(-endpoint.concurrency // _PER_LANE))
            ]
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"{endpoint.host}: no connection can be set up ({sieve.strike(str(error))}); "
                "check the proxy and certificate variables (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE)"
            ) from None
        self._turns = cycle(self._lanes)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Client:
        for lane in self._lanes:
            await self._open.enter_async_context(lane)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.__aexit__(kind, error, trace)

    async def pace(self) -> None:
        """Take one place in the rate limit, for a request that another client sent just before."""
        async with self._pace:
            pass

    async def ask(
        self,
        probe: Probe,
        *,
        number: int,
        logprobs: bool,
        shape: Shape = AS_WRITTEN,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> Sent:
        """Send one probe once; whatever the network or the host does comes back as a value.

        `shape` is what the endpoint's is changed by. `before` is awaited once the rate limit allows
        the request; what it raises is raised, and nothing is sent.
        """
        endpoint = self._endpoint
        shape |= endpoint.shape
        request = request_body(endpoint, probe, logprobs=logprobs, shape=shape)
        await self.pace()
        if before is not None:
            await before()
        started_at, start = datetime.now(UTC), time.monotonic()
        got = await self._exchange(
            "POST",
            DIALECTS[endpoint.dialect].path,
            request,
            cap=_cap(endpoint, probe, logprobs=logprobs),
        )
        return Sent(
            attempt=Attempt(
                probe_id=probe.id,
                number=number,
                started_at=started_at.isoformat(timespec="milliseconds"),
                elapsed_s=round(time.monotonic() - start, 6),
                first_s=None if got.first_at is None else round(got.first_at - start, 6),
                request=sieve.strike(request.decode()),
                status=got.status,
                body=got.body,
                error=got.error,
                headers=got.headers,
                dialect=endpoint.dialect,
            ),
            retry_after_s=got.retry_after_s,
            exhausted_for_s=got.exhausted_for_s,
        )

    async def list_models(self) -> tuple[str, ...]:
        """Names that `GET /models` gives; none when it gives no such list."""
        got = await self._exchange("GET", "/models", None, cap=self._endpoint.max_response_bytes)
        try:
            listing: Any = json.loads(got.body.removeprefix(MARK))
        except (ValueError, RecursionError):
            return ()
        rows = listing.get("data") if isinstance(listing, dict) else listing
        if not isinstance(rows, list):
            return ()
        names = (row.get("id") for row in rows if isinstance(row, dict))
        return tuple(sieve.strike(name) for name in names if isinstance(name, str))

    async def _exchange(
        self, method: str, path: str, content: bytes | None, *, cap: int
    ) -> _Response:
        """One request. A body that broke off counts as no response, and what came is kept."""
        endpoint, lane = self._endpoint, next(self._turns)
        body = Body(encoding="", cap=cap)
        status, error = None, None
        headers: dict[str, str] = {}
        try:
            async with (
                asyncio.timeout(endpoint.timeout_s),
                lane.stream(method, endpoint.base_url + path, content=content) as response,
            ):
                headers = dict(response.headers.items())  # its own is slow to look up
                body = Body(encoding=headers.get("content-encoding", ""), cap=cap)
                try:
                    await _read(response, body)
                except BodyTooLarge:
                    error = f"response larger than {cap} bytes"
                if _more_follows(response):  # what was not asked for must not answer what is next
                    await response.extensions["network_stream"].aclose()
                if response.next_request is not None:
                    error = f"redirect to {response.next_request.url.host}, not followed"
                status = response.status_code
        except TimeoutError:
            error = f"no whole answer within {endpoint.timeout_s:g} s"
        except (
            httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, UnreadableBody
        ) as problem:  # fmt: skip
            error = _describe(problem)
        text = body.received.decode("utf-8", "surrogateescape")
        if sieve.is_spelled(text):
            text, error = _strike_body(text, status, error)
        if error is not None:  # struck out first: a cut could leave most of a key unrecognized
            text = sieve.strike_end(text)[:_KEPT_BESIDE_ERROR]
            error = sieve.strike(error)[:_KEPT_OF_ERROR]
        now = datetime.now(UTC)
        return _Response(
            status=status,
            body=text,
            error=error,
            headers=_kept_headers(headers),
            retry_after_s=retry_after_s(headers, now=now),
            exhausted_for_s=exhausted_for_s(headers, now=now),
            first_at=body.first_at,
        )


def _strike_body(text: str, status: int | None, error: str | None) -> tuple[str, str | None]:
    """A body without the key that it spells, and its error; nothing of it where pieces do."""
    struck = sieve.strike_in_place(text)
    if struck is not None and not sieve.is_spelled(struck):
        return struck, error
    if error is None and status is not None and 200 <= status <= 299:
        return "", SPELLED
    return sieve.REDACTED, error  # the status alone says what to do


def _kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that tell something; none where they spell the key together."""
    told = {name: sieve.strike(v) for name, v in headers.items() if _TELLING.fullmatch(name)}
    if sieve.is_spelled(json.dumps(told)):
        return {}
    return {name: value[:_KEPT_OF_HEADER] for name, value in told.items()}


async def _read(response: httpx.Response, body: Body) -> None:
    """Read to the end; of an event stream, to the event that ends it.

    Behind that some hosts hang on, send comments without an end, or break off: the answer is whole.
    """
    # not aiter_raw, which gives the line back before it can be looked at
    pieces, ending = aiter(cast(AsyncIterator[bytes], response.stream)), Ending()
    until: float | None = None  # when reading stops; None: the last event is still to come
    while True:
        if until is None and ending.has_come(body.received):
            until = asyncio.get_running_loop().time() + _AFTER_END_S
        try:
            async with asyncio.timeout_at(until):
                piece = await anext(pieces, None)
            if piece is not None:
                body.add(piece)
                continue
            body.end()
        except (httpx.HTTPError, TimeoutError, OSError, BodyTooLarge, UnreadableBody):
            if until is None:
                raise
        return


def _more_follows(response: httpx.Response) -> bool:
    """Whether bytes have come behind a response: in its packet, or in its record of TLS.

    Those that come later make the line readable while nobody uses it, and httpx closes it then.
    """
    held: Any = response.stream
    try:
        for name in _TO_THE_LINE:
            held = getattr(held, name)
        if held.trailing_data[0]:
            return True
    except AttributeError:
        return True  # another httpx: a line is better closed than trusted
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    if tls is None:
        return False
    try:
        tls.read(1)
    except ssl.SSLWantReadError:
        return False
    except (ssl.SSLError, OSError):
        return True
    return True


def _cap(endpoint: Endpoint, probe: Probe, *, logprobs: bool) -> int:
    """Bytes that an honest answer to this probe stays far below."""
    candidates = 1 + (endpoint.top_logprobs if logprobs else 0)
    room = _ROOM + probe.max_tokens * candidates * _ROOM_PER_CANDIDATE
    return min(room, endpoint.max_response_bytes)


def request_body(endpoint: Endpoint, probe: Probe, *, logprobs: bool, shape: Shape) -> bytes:
    """The JSON body, in the byte form of the usual clients, so that probes look like traffic."""
    ask = Ask(
        model=endpoint.model,
        messages=probe.messages,
        extras=wire_extras(probe),
        prompt=None if endpoint.render is None else endpoint.render(probe.messages),
        max_tokens=probe.max_tokens,
        top_logprobs=endpoint.top_logprobs if logprobs else None,
        logprobs_form=endpoint.logprobs_form,
        stream=streams(endpoint.stream or probe.stream, shape),
        temperature=probe.temperature,
    )
    extra = {
        name: value for name, value in endpoint.extra_body.items()
        if not (probe.temperature and name in _OF_SAMPLING)  # they make a host greedy
    }  # fmt: skip
    body = DIALECTS[endpoint.dialect].body(ask)
    if endpoint.dialect == "chat":
        body = renamed(body, endpoint.max_tokens_field or limit_name(shape))
    body = written(body | extra, shape)
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


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
    if isinstance(error, httpx.ProxyError) and re.match(r"[1-9][0-9]{2}\b", text):
        text = f"the proxy answered {text[:3]}"  # the rest is its own words, and may repeat a key
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
