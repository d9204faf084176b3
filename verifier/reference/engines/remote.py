"""The remote engine: any vLLM server by URL, asked for prompt log-probabilities over HTTP.

For a machine without the GPUs that the reference needs. The server is trusted: which weights it
holds is taken on its word, and weights variants cannot be put into it. Only token ids are sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict

from verifier.errors import ConfigError
from verifier.evidence.samplers import is_plain
from verifier.files.stored import check
from verifier.records import (
    REFERENCE,
    Count,
    GenerateRequest,
    Generation,
    Nats,
    ReplyScore,
    ScoreRequest,
    TokenId,
)
from verifier.reference.engines import NO_FAULT, TOP_K, prompt_logprobs
from verifier.reference.engines.prompt_logprobs import (
    WIDE_K,
    Answer,
    Question,
    WithoutDistributions,
    chunks,
)
from verifier.safety import sieve

T = TypeVar("T")

#: Prompts sent in one request, and log-probabilities that one response may hold.
PROMPTS_PER_REQUEST = 16
VALUES_PER_REQUEST = 200_000

#: Seconds for one request; scoring on a CPU takes minutes.
TIMEOUT_S = 600.0

#: A text that tokenizers split in ways of their own.
_SAMPLE = "The café's 3,141 naïve words:\n\tif (x_1 != 'größer') { return  x²; } 数学 ok."


class RemoteEngine(WithoutDistributions):
    """One model on one vLLM server. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        url: str,
        *,
        eos_ids: Sequence[int],
        api_key: str | None = None,
        encode: Callable[[str], tuple[int, ...]] | None = None,
    ) -> None:
        """`url` is what comes before /completions; `encode` is the card's tokenizer, which the
        server's must agree with.

        Raises ConfigError when the server cannot be reached, gives no prompt log-probabilities,
        serves several models, or splits text otherwise.
        """
        sieve.know(api_key)
        sieve.guard_logs()
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise ConfigError(
                "reference.url_key_env: the key is empty or holds spaces, line ends or other signs "
                "no key has; set it again"
            )
        self._url = url.rstrip("/")
        self._eos = list(eos_ids)
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(
            headers=headers, timeout=TIMEOUT_S, transport=httpx.HTTPTransport(retries=2)
        )
        try:
            self._greet(encode)
        except BaseException:
            self.close()  # nobody else can: the caller gets no engine
            raise

    def _greet(self, encode: Callable[[str], tuple[int, ...]] | None) -> None:
        """Find out what the server serves, and that it splits text as the card's tokenizer."""
        served = self._get("/models", _Models).data
        if len(served) != 1:
            names = sieve.strike(", ".join(str(model.id) for model in served))
            raise ConfigError(f"{self._url}: expected one model, got {names or 'none'}")
        self._model, self._longest = served[0].id, served[0].max_model_len
        if encode is not None:
            self._check_tokenizer(encode)
        self._widest = self._find_widest()
        self._version = sieve.strike(self._get("/version", _Version, root=True).version)

    def close(self) -> None:
        self._http.close()

    @property
    def versions(self) -> dict[str, str]:
        return {
            "engine": "remote vllm",
            "vllm": self._version,
            "url": self._url,
            "model": sieve.strike(self._model),
            "weights": "as the server says; not checked",
        }

    def can_load(self, name: str) -> bool:
        return name == REFERENCE

    def load_variant(self, name: str) -> None:
        """Raises ConfigError for anything but the reference weights."""
        if name != REFERENCE:
            raise ConfigError(
                f"{self._url}: the remote engine cannot put weights variant {name!r} into a "
                "server; use a policy without builds, or --engine vllm or transformers"
            )

    # -- scoring -------------------------------------------------------------------------------

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        """Score replies by teacher forcing; see `prompt_logprobs` for what is exact."""
        for request in requests:
            self._refuse_longer(len(request.prompt_ids) + len(request.reply_ids) + 1)
        return prompt_logprobs.score(requests, ask=self._ask, widest=self._widest)

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers: list[Answer] = []
        for chunk in chunks(questions, values=VALUES_PER_REQUEST, most=PROMPTS_PER_REQUEST):
            choices = self._complete(
                prompt=[[*q.prompt_ids, *q.reply_ids] for q in chunk],
                prompt_logprobs=chunk[0].k,
                max_tokens=1,
                temperature=0,
            )
            for choice, question in zip(choices, chunk, strict=True):
                with self._refusing("prompt_logprobs"):
                    answers.append(_read(choice.prompt_logprobs, question))
        return answers

    def _find_widest(self) -> int:
        """The largest number of log-probabilities to ask for that the server allows."""
        for k in (WIDE_K, TOP_K):
            body = {"prompt": [[1, 1]], "prompt_logprobs": k, "max_tokens": 1, "temperature": 0}
            response = self._send("POST", "/completions", json={"model": self._model, **body})
            if response.status_code == 200:
                if not any(
                    one.prompt_logprobs for one in self._read(response, _Completions).choices
                ):
                    break
                return k
        raise ConfigError(
            f"{self._url}: gives no prompt_logprobs; it must be a vLLM server, with --max-logprobs "
            f"{TOP_K} or more"
        )

    def _check_tokenizer(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        body = {"model": self._model, "prompt": _SAMPLE, "add_special_tokens": False}
        theirs = tuple(self._post("/tokenize", body, _Tokens, root=True).tokens)
        if theirs != encode(_SAMPLE):
            raise ConfigError(
                f"{self._url}: model {self._model!r} splits text otherwise than the card's "
                "tokenizer; serve the card's model there, or name the card of the one served"
            )

    def _refuse_longer(self, tokens: int) -> None:
        if self._longest is not None and tokens > self._longest:
            raise ConfigError(
                f"{self._url}: {tokens} tokens are more than its max_model_len {self._longest}; "
                "restart it with a larger --max-model-len, or ask for shorter replies"
            )

    # -- generating ----------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        found: list[Generation] = []
        for request in requests:
            if not is_plain(request):
                raise ConfigError(NO_FAULT)
            self._refuse_longer(len(request.prompt_ids) + request.max_tokens)
            (choice,) = self._complete(
                prompt=[list(request.prompt_ids)],
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k,
                seed=request.seed,
                logprobs=request.top_logprobs,
                stop=list(request.stop),
                stop_token_ids=self._eos,
                ignore_eos=True,  # ours are in stop_token_ids; the checkpoint's may differ
                return_token_ids=True,
                return_tokens_as_token_ids=True,
            )
            with self._refusing("logprobs"):
                found.append(_generation(choice, request))
        return found

    # -- HTTP ----------------------------------------------------------------------------------

    def _complete(self, **body: Any) -> list[_Choice]:
        """The choices in the order of the prompts, one of each."""
        answer = self._post("/completions", {"model": self._model, **body}, _Completions)
        choices, asked = sorted(answer.choices, key=lambda choice: choice.index), body["prompt"]
        if [choice.index for choice in choices] != [*range(len(asked))]:
            raise ConfigError(
                f"{self._url}: gave {len(choices)} choices for {len(asked)} prompts; {_ADVICE}"
            )
        return choices

    def _post(self, path: str, body: Mapping[str, Any], kind: type[T], *, root: bool = False) -> T:
        return self._read(self._send("POST", path, json=body, root=root), kind)

    def _get(self, path: str, kind: type[T], *, root: bool = False) -> T:
        return self._read(self._send("GET", path, root=root), kind)

    def _send(self, method: str, path: str, *, root: bool = False, **body: Any) -> httpx.Response:
        base = self._url.removesuffix("/v1") if root else self._url
        try:
            return self._http.request(method, base + path, **body)
        except httpx.HTTPError as error:
            said = sieve.strike(str(error)) or type(error).__name__
            raise ConfigError(
                f"{base}{path}: no answer ({said}); is the vLLM server "
                "up, and reference.url what comes before /completions?"
            ) from error

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """What an answer lacks is the server's fault, and said in one line."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self._url}: {what}: {said}; {_ADVICE}") from error

    def _read(self, response: httpx.Response, kind: type[T]) -> T:
        try:
            answer = response.json() if response.status_code == 200 else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            said = " ".join(sieve.strike(response.text).split())[:200]
            raise ConfigError(
                f"{response.url}: HTTP {response.status_code} ({said}); reference.url must be what "
                "comes before /completions at a vLLM server"
            )
        return check(response.content, kind, where=str(response.url), advice=_ADVICE)


_ADVICE = "reference.url must be what comes before /completions at a vLLM server"


class _Answer(BaseModel):
    """Part of what a server says; it may say more."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Model(_Answer):
    id: str
    max_model_len: Count | None = None


class _Models(_Answer):
    data: list[_Model]


class _Version(_Answer):
    version: str = "unknown"


class _Tokens(_Answer):
    tokens: list[TokenId]


class _Entry(_Answer):
    logprob: Nats
    rank: Count | None


class _Named(_Answer):
    token_logprobs: list[Nats]
    top_logprobs: list[dict[str, Nats]]


class _Choice(_Answer):
    index: Count
    prompt_logprobs: list[dict[str, _Entry] | None] | None = None
    logprobs: _Named | None = None
    finish_reason: str | None = None
    token_ids: list[TokenId] | None = None


class _Completions(_Answer):
    choices: list[_Choice]


def _read(positions: Sequence[Mapping[str, _Entry] | None] | None, question: Question) -> Answer:
    """The reply's positions of a response: at each, ids to log-probability and rank.

    Raises ValueError for what is no answer to the question, KeyError for a token it lacks.
    """
    asked = len(question.prompt_ids) + len(question.reply_ids)
    if positions is None or len(positions) != asked:
        got = "none" if positions is None else len(positions)
        raise ValueError(f"expected {asked} positions, got {got}")
    reply = [at or {} for at in positions[len(question.prompt_ids) :]]
    chosen = [_entry(at, i) for at, i in zip(reply, question.reply_ids, strict=True)]
    tops = [
        sorted(((e.logprob, int(i)) for i, e in at.items()), key=lambda pair: -pair[0])
        for at in reply
    ]
    least = min((len(top) for top in tops), default=question.k)
    if least < question.k:
        raise ValueError(f"expected {question.k} tokens at each position, got {least}")
    most = max((top[0][0] for top in tops if top), default=0.0)
    if most > _ROUNDING:
        raise ValueError(f"expected log-probabilities, got {most:g}")
    shape = (len(reply), question.k)
    return Answer(
        logprobs=np.array([logprob for logprob, _ in chosen], dtype=np.float64),
        ranks=np.array([rank for _, rank in chosen], dtype=np.int64),
        top_ids=np.array([[i for _, i in t[: question.k]] for t in tops], np.int64).reshape(shape),
        top_logprobs=np.array([[v for v, _ in t[: question.k]] for t in tops]).reshape(shape),
    )


#: How far above 0 a log-probability may be rounded.
_ROUNDING = 0.01


def _entry(at: Mapping[str, _Entry], token_id: int) -> tuple[float, int]:
    """Log-probability and rank of a token of the reply."""
    found = at.get(str(token_id))
    if found is None or found.rank is None:
        raise ValueError(f"token {token_id}, which was asked for, has no log-probability and rank")
    return found.logprob, found.rank


def _generation(choice: _Choice, request: GenerateRequest) -> Generation:
    named, ids = choice.logprobs, choice.token_ids
    if named is None or ids is None:
        raise ValueError("expected the token_ids of the reply and their logprobs")
    if not len(ids) == len(named.token_logprobs) == len(named.top_logprobs):
        raise ValueError("expected as many of each as there are tokens")
    top = tuple(
        tuple(
            (int(token.removeprefix("token_id:")), value)
            for token, value in sorted(at.items(), key=lambda pair: -pair[1])[
                : request.top_logprobs
            ]
        )
        for at in named.top_logprobs
    )
    reason: Literal["stop", "length"] = "stop" if choice.finish_reason == "stop" else "length"
    return Generation(
        token_ids=tuple(ids),
        finish_reason=reason,
        logprobs=tuple(named.token_logprobs),
        top=top if request.top_logprobs else (),
    )
