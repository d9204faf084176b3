"""A server of a reference by URL: what is sent to it, and what of its answers is read.

Which weights it holds is taken on its word. Its key is never shown.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict

from verifier.errors import ConfigError
from verifier.files.stored import check
from verifier.records import REFERENCE, Count
from verifier.reference.engines.prompt_logprobs import WithoutDistributions
from verifier.safety import sieve

T = TypeVar("T")

#: Seconds for one request; scoring on a CPU takes minutes.
TIMEOUT_S = 600.0

#: How often a server that has no time is asked once more, and the longest wait between, in seconds.
_AGAIN = 6
_LONGEST_WAIT_S = 60.0

#: Statuses of a server that has no time now.
_BUSY = (429, 502, 503, 529)

#: A text that tokenizers split in ways of their own.
SAMPLE = "The café's 3,141 naïve words:\n\tif (x_1 != 'größer') { return  x²; } 数学 ok."

#: How far above 0 a log-probability may be rounded.
ROUNDING = 0.01


class Server:
    """One server and the connections to it."""

    def __init__(
        self,
        url: str,
        *,
        kind: str,
        api_key: str | None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`url` is what comes before /completions at a server of this `kind`.

        Raises ConfigError for a key that no header can hold.
        """
        sieve.know(api_key)
        sieve.guard_logs()
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise ConfigError(
                "reference.url_key_env: the key is empty or holds spaces, line ends or other signs "
                "no key has; set it again"
            )
        self.url = url.rstrip("/")
        self._kind, self._sleep = kind, sleep
        self.advice = f"reference.url must be what comes before /completions at a {kind}"
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = self._connect()

    def _connect(self) -> httpx.Client:
        return httpx.Client(
            headers=self._headers, timeout=TIMEOUT_S, transport=httpx.HTTPTransport(retries=2)
        )

    def close(self) -> None:
        self._http.close()

    def reconnect(self) -> None:
        """Go on by other connections: what answers them may be another machine."""
        self.close()
        self._http = self._connect()

    def find_model(self, name: str | None) -> Model:
        """The model of this name, or the only one. Raises ConfigError unless there is one."""
        served = self.get("/models", _Models).data
        found = [model for model in served if name is None or model.id == name]
        if len(found) == 1:
            return found[0]
        names = sieve.strike(", ".join(str(model.id) for model in served))
        if name is None:
            raise ConfigError(
                f"{self.url}: expected one model, got {names or 'none'}; name the one to ask in "
                "reference.url_model"
            )
        raise ConfigError(
            f"{self.url}: has no model {name!r} (reference.url_model), but {names or 'none'}"
        )

    def post(self, path: str, body: Mapping[str, Any], kind: type[T], *, root: bool = False) -> T:
        return self.read(self.send("POST", path, json=body, root=root), kind)

    def get(self, path: str, kind: type[T], *, root: bool = False) -> T:
        return self.read(self.send("GET", path, root=root), kind)

    def send(self, method: str, path: str, *, root: bool = False, **body: Any) -> httpx.Response:
        """What came, whatever it is; `root`: the path is not below /v1."""
        base = self.url.removesuffix("/v1") if root else self.url
        try:
            for again in range(_AGAIN):
                response = self._http.request(method, base + path, **body)
                if response.status_code not in _BUSY:
                    break
                self._sleep(_wait_of(response, again))
            return response
        except httpx.HTTPError as error:
            said = sieve.strike(str(error)) or type(error).__name__
            raise ConfigError(
                f"{base}{path}: no answer ({said}); is the {self._kind} "
                "up, and reference.url what comes before /completions?"
            ) from error

    @contextmanager
    def refusing(self, what: str) -> Iterator[None]:
        """What an answer lacks is the server's fault, and said in one line."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            said = " ".join(sieve.strike(str(error)).split())[:200]
            raise ConfigError(f"{self.url}: {what}: {said}; {self.advice}") from error

    def try_post(self, path: str, body: Mapping[str, Any], kind: type[T]) -> T | str:
        """An answer, or what is said by a server that refuses the request as it stands."""
        response = self.send("POST", path, json=body)
        if response.status_code in (400, 422):
            return _said_of(response)
        return self.read(response, kind)

    def read(self, response: httpx.Response, kind: type[T]) -> T:
        """What an answer holds. Raises ConfigError for one that is none."""
        try:
            answer = response.json() if response.status_code == 200 else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ConfigError(f"{response.url}: {_said_of(response)}; {self.advice}")
        return check(response.content, kind, where=str(response.url), advice=self.advice)


class Elsewhere(WithoutDistributions):
    """An engine whose weights are a server's: no others can be put in their place."""

    _server: Server
    _called: str  # as `--engine` has it
    _holder = "server"  # what holds the weights, in a word

    def close(self) -> None:
        self._server.close()

    def can_load(self, name: str) -> bool:
        return name == REFERENCE

    def load_variant(self, name: str) -> None:
        """Raises ConfigError for anything but the reference weights."""
        if name != REFERENCE:
            raise ConfigError(
                f"{self._server.url}: the {self._called} engine cannot put weights variant "
                f"{name!r} into a {self._holder}; use a policy without builds, or --engine vllm or "
                "transformers"
            )


def _wait_of(response: httpx.Response, again: int) -> float:
    """Seconds until a server that has no time is asked once more: its own word, or 1, 2, 4, ..."""
    told = response.headers.get("retry-after", "")
    wait = float(told) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", told) else 2.0**again
    return min(wait, _LONGEST_WAIT_S)


def _said_of(response: httpx.Response) -> str:
    """Status and words of an answer, in one line without keys."""
    said = " ".join(sieve.strike(response.text).split())[:200]
    return f"HTTP {response.status_code} ({said})"


class Told(BaseModel):
    """Part of what a server says; it may say more."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Model(Told):
    id: str
    max_model_len: Count | None = None


class _Models(Told):
    data: list[Model]
