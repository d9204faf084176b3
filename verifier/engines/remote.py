"""The remote engine: any vLLM server by URL, asked for prompt log-probabilities over HTTP.

For a machine without the GPUs that the reference needs. The server is trusted: which weights it
holds is taken on its word, and weights variants cannot be put into it. Only token ids are sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import httpx
import numpy as np

from verifier import sieve
from verifier.engines import NO_FAULT, TOP_K, prompt_logprobs
from verifier.engines.prompt_logprobs import (
    WIDE_K,
    Answer,
    Question,
    WithoutDistributions,
    chunks,
)
from verifier.errors import ConfigError
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Generation,
    ReplyScore,
    ScoreRequest,
)
from verifier.samplers import is_plain

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
        served = self._get("/models")["data"]
        if len(served) != 1:
            names = sieve.strike(", ".join(str(model.get("id")) for model in served))
            raise ConfigError(f"{self._url}: expected one model, got {names or 'none'}")
        self._model, self._longest = str(served[0]["id"]), served[0].get("max_model_len")
        if encode is not None:
            self._check_tokenizer(encode)
        self._widest = self._find_widest()
        self._version = sieve.strike(str(self._get("/version", root=True).get("version")))

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
            answers += [
                _read(choice["prompt_logprobs"], question)
                for choice, question in zip(choices, chunk, strict=True)
            ]
        return answers

    def _find_widest(self) -> int:
        """The largest number of log-probabilities to ask for that the server allows."""
        for k in (WIDE_K, TOP_K):
            body = {"prompt": [[1, 1]], "prompt_logprobs": k, "max_tokens": 1, "temperature": 0}
            response = self._send("POST", "/completions", json={"model": self._model, **body})
            if response.status_code == 200:
                if not response.json()["choices"][0].get("prompt_logprobs"):
                    break
                return k
        raise ConfigError(
            f"{self._url}: gives no prompt_logprobs; it must be a vLLM server, with --max-logprobs "
            f"{TOP_K} or more"
        )

    def _check_tokenizer(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        body = {"model": self._model, "prompt": _SAMPLE, "add_special_tokens": False}
        theirs = tuple(self._post("/tokenize", body, root=True)["tokens"])
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
            found.append(_generation(choice, request))
        return found

    # -- HTTP ----------------------------------------------------------------------------------

    def _complete(self, **body: Any) -> list[dict[str, Any]]:
        answer = self._post("/completions", {"model": self._model, **body})
        return sorted(answer["choices"], key=lambda choice: int(choice["index"]))

    def _post(self, path: str, body: Mapping[str, Any], *, root: bool = False) -> dict[str, Any]:
        return self._read(self._send("POST", path, json=body, root=root))

    def _get(self, path: str, *, root: bool = False) -> dict[str, Any]:
        return self._read(self._send("GET", path, root=root))

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

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json() if response.status_code == 200 else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            said = " ".join(sieve.strike(response.text).split())[:200]
            raise ConfigError(
                f"{response.url}: HTTP {response.status_code} ({said}); reference.url must be what "
                "comes before /completions at a vLLM server"
            )
        return answer


def _read(positions: Sequence[Mapping[str, Mapping[str, Any]]], question: Question) -> Answer:
    """The reply's positions of a response: at each, ids to log-probability and rank."""
    reply = positions[len(question.prompt_ids) :]
    chosen = [at[str(i)] for at, i in zip(reply, question.reply_ids, strict=True)]
    tops = [
        sorted(((e["logprob"], int(i)) for i, e in at.items()), key=lambda pair: -pair[0])
        for at in reply
    ]
    shape = (len(reply), question.k)
    return Answer(
        logprobs=np.array([entry["logprob"] for entry in chosen], dtype=np.float64),
        ranks=np.array([entry["rank"] for entry in chosen], dtype=np.int64),
        top_ids=np.array([[i for _, i in t[: question.k]] for t in tops], np.int64).reshape(shape),
        top_logprobs=np.array([[v for v, _ in t[: question.k]] for t in tops]).reshape(shape),
    )


def _generation(choice: Mapping[str, Any], request: GenerateRequest) -> Generation:
    named = choice["logprobs"]
    top = tuple(
        tuple(
            (int(token.removeprefix("token_id:")), float(value))
            for token, value in sorted(at.items(), key=lambda pair: -pair[1])[
                : request.top_logprobs
            ]
        )
        for at in named["top_logprobs"]
    )
    reason: Literal["stop", "length"] = "stop" if choice["finish_reason"] == "stop" else "length"
    return Generation(
        token_ids=tuple(choice["token_ids"]),
        finish_reason=reason,
        logprobs=tuple(map(float, named["token_logprobs"])),
        top=top if request.top_logprobs else (),
    )
