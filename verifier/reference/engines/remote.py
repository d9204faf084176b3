"""The remote engine: any vLLM server by URL, asked for prompt log-probabilities over HTTP.

For a machine without the GPUs that the reference needs. The server is trusted: which weights it
holds is taken on its word, and weights variants cannot be put into it. Only token ids are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from verifier.errors import ConfigError
from verifier.evidence.samplers import is_plain
from verifier.records import (
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
    chunks,
)
from verifier.reference.engines.server import ROUNDING, SAMPLE, Elsewhere, Server, Told
from verifier.safety import sieve

#: Prompts sent in one request, and log-probabilities that one response may hold.
PROMPTS_PER_REQUEST = 16
VALUES_PER_REQUEST = 200_000


class RemoteEngine(Elsewhere):
    """One model on one vLLM server. Not thread-safe: one caller at a time."""

    _called = "remote"

    def __init__(
        self,
        url: str,
        *,
        eos_ids: Sequence[int],
        api_key: str | None = None,
        encode: Callable[[str], tuple[int, ...]] | None = None,
        model: str | None = None,
    ) -> None:
        """`url` is what comes before /completions; `encode` is the card's tokenizer, which the
        server's must agree with; `model` is one of several that the server has.

        Raises ConfigError when the server cannot be reached, gives no prompt log-probabilities,
        serves several models and none is named, or splits text otherwise.
        """
        self._eos = list(eos_ids)
        self._server = Server(url, kind="vLLM server", api_key=api_key)
        try:
            self._greet(encode, model)
        except BaseException:
            self.close()  # nobody else can: the caller gets no engine
            raise

    def _greet(self, encode: Callable[[str], tuple[int, ...]] | None, model: str | None) -> None:
        """Find out what the server serves, and that it splits text as the card's tokenizer."""
        served = self._server.find_model(model)
        self._model, self._longest = served.id, served.max_model_len
        if encode is not None:
            self._check_tokenizer(encode)
        self._widest = self._find_widest()
        self._version = sieve.strike(self._server.get("/version", _Version, root=True).version)

    @property
    def versions(self) -> dict[str, str]:
        return {
            "engine": "remote vllm",
            "vllm": self._version,
            "url": self._server.url,
            "model": sieve.strike(self._model),
            "weights": "as the server says; not checked",
        }

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
                with self._server.refusing("prompt_logprobs"):
                    answers.append(_read(choice.prompt_logprobs, question))
        return answers

    def _find_widest(self) -> int:
        """The largest number of log-probabilities to ask for that the server allows."""
        for k in (WIDE_K, TOP_K):
            body = {"prompt": [[1, 1]], "prompt_logprobs": k, "max_tokens": 1, "temperature": 0}
            asked = {"model": self._model, **body}
            response = self._server.send("POST", "/completions", json=asked)
            if response.status_code == 200:
                if not any(
                    one.prompt_logprobs for one in self._server.read(response, _Completions).choices
                ):
                    break
                return k
        raise ConfigError(
            f"{self._server.url}: gives no prompt_logprobs; it must be a vLLM server, with "
            f"--max-logprobs {TOP_K} or more"
        )

    def _check_tokenizer(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        body = {"model": self._model, "prompt": SAMPLE, "add_special_tokens": False}
        theirs = tuple(self._server.post("/tokenize", body, _Tokens, root=True).tokens)
        if theirs != encode(SAMPLE):
            raise ConfigError(
                f"{self._server.url}: model {self._model!r} splits text otherwise than the card's "
                "tokenizer; serve the card's model there, or name the card of the one served"
            )

    def _refuse_longer(self, tokens: int) -> None:
        if self._longest is not None and tokens > self._longest:
            raise ConfigError(
                f"{self._server.url}: {tokens} tokens are more than its max_model_len "
                f"{self._longest}; restart it with a larger --max-model-len, or ask for shorter "
                "replies"
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
            with self._server.refusing("logprobs"):
                found.append(_generation(choice, request))
        return found

    def _complete(self, **body: Any) -> list[_Choice]:
        """The choices in the order of the prompts, one of each."""
        answer = self._server.post("/completions", {"model": self._model, **body}, _Completions)
        choices, asked = sorted(answer.choices, key=lambda choice: choice.index), body["prompt"]
        if [choice.index for choice in choices] != [*range(len(asked))]:
            raise ConfigError(
                f"{self._server.url}: gave {len(choices)} choices for {len(asked)} prompts; "
                f"{self._server.advice}"
            )
        return choices


class _Version(Told):
    version: str = "unknown"


class _Tokens(Told):
    tokens: list[TokenId]


class _Entry(Told):
    logprob: Nats
    rank: Count | None


class _Named(Told):
    token_logprobs: list[Nats]
    top_logprobs: list[dict[str, Nats]]


class _Choice(Told):
    index: Count
    prompt_logprobs: list[dict[str, _Entry] | None] | None = None
    logprobs: _Named | None = None
    finish_reason: str | None = None
    token_ids: list[TokenId] | None = None


class _Completions(Told):
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
    if most > ROUNDING:
        raise ValueError(f"expected log-probabilities, got {most:g}")
    shape = (len(reply), question.k)
    return Answer(
        logprobs=np.array([logprob for logprob, _ in chosen], dtype=np.float64),
        ranks=np.array([rank for _, rank in chosen], dtype=np.int64),
        top_ids=np.array([[i for _, i in t[: question.k]] for t in tops], np.int64).reshape(shape),
        top_logprobs=np.array([[v for v, _ in t[: question.k]] for t in tops]).reshape(shape),
    )


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
