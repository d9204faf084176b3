"""What the testbed host reads and writes: request bodies, errors and replies in OpenAI's shapes.

Knows nothing of tokenizers, engines or sockets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from verifier.prompts import make_prompt
from verifier.records import GenerateRequest, Message, Prompt, Role, Tool, ToolCall

DEFAULT_MAX_TOKENS: Final = 256
_LOWEST_LOGPROB: Final = -9999.0  # JSON has no minus infinity; OpenAI and vLLM write this

NonEmpty = Annotated[str, Field(min_length=1)]
Alternatives = Annotated[int, Field(ge=0, le=20)]


class WireError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        body: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`body` stands for OpenAI's, which is made of the rest."""
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body: dict[str, Any] = body or {
            "error": {
                "message": message,
                "type": "server_error" if status >= 500 else "invalid_request_error",
                "param": param,
                "code": code,
            }
        }


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Function(BaseModel):
    name: str
    arguments: str


class _Call(BaseModel):
    id: str
    function: _Function


class ChatMessage(BaseModel):
    """One message; text parts are joined by line ends, as vLLM does for most templates."""

    role: Role
    content: str | tuple[_Part, ...] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # an older name of the same
    tool_calls: tuple[_Call, ...] = ()
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is only left out where tools are called")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())

    @property
    def message(self) -> Message:
        """The message as it was meant. Raises WireError for arguments that are no object."""
        for call in self.tool_calls:
            if not isinstance(_loaded(call.function.arguments), dict):
                raise WireError("messages: tool_calls: arguments: not a JSON object")
        return Message(
            role=self.role,
            content=self.text,
            reasoning=self.reasoning_content if self.reasoning is None else self.reasoning,
            tool_calls=tuple(
                ToolCall(id=c.id, name=c.function.name, arguments=c.function.arguments)
                for c in self.tool_calls
            ),
            tool_call_id=self.tool_call_id,
        )


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


class _Schema(BaseModel):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(BaseModel):
    type: Literal["function"]
    function: _Schema


class _StreamOptions(BaseModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: a running count on every chunk


class _Body(BaseModel):
    """The fields both endpoints take. Null means the default; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: NonEmpty | tuple[NonEmpty, ...] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @model_validator(mode="after")
    def _check_n(self) -> Self:
        if self.stream and (self.n or 1) > 1:
            raise ValueError("streams of several replies are not offered")
        if not all(name.isascii() and name.isdigit() for name in self.logit_bias or {}):
            raise ValueError("logit_bias: expected token ids as keys")
        return self

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self


class ChatBody(_Body):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: tuple[_Tool, ...] | None = None
    reasoning_effort: str | None = None
    return_token_ids: bool | None = None  # vLLM's: of the prompt, here
    return_prompt_text: bool | None = None
    chat_template_kwargs: dict[str, bool | str] | None = None

    @property
    def prompt(self) -> Prompt:
        """The conversation as a template reads it. Raises WireError for malformed tool calls."""
        effort = (
            {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        )
        return make_prompt(
            [message.message for message in self.messages],
            tools=[
                Tool(
                    name=tool.function.name,
                    description=tool.function.description,
                    parameters=json.dumps(tool.function.parameters),
                )
                for tool in self.tools or ()
            ],
            settings={**effort, **(self.chat_template_kwargs or {})},
        )

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed when logprobs is true")
        return self


class CompletionBody(_Body):
    """Body of POST /v1/completions."""

    prompt: NonEmpty | Annotated[tuple[int, ...], Field(min_length=1)]
    logprobs: Alternatives | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _check_echo(self) -> Self:
        if self.echo and (self.stream or (self.n or 1) > 1):
            raise ValueError("echo: not offered in a stream, or of several replies")
        return self


Body = ChatBody | CompletionBody
_B = TypeVar("_B", bound=BaseModel)


def parse_body(shape: type[_B], raw: bytes) -> _B:
    """Read a request body. Raises WireError (400) that names the first field that is wrong."""
    try:
        return shape.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise WireError(
            f"{where or 'request body'}: {first['msg']}",
            param=str(first["loc"][0]) if first["loc"] else None,
        ) from error


#: What of a request a host may refuse, by the words of hosts that do.
Refused = Literal[
    "stream_options", "continuous_usage_stats", "max_tokens", "logprobs", "streams", "whole"
]
#: How a host may say that a minute is full.
Limit = Literal["minute", "in-200"]

#: Of so many requests one finds the minute full.
_FULL_EVERY: Final = 4


def refuse(body: Body, refused: frozenset[Refused]) -> None:
    """Raises WireError for a request that asks for what the host refuses."""
    options = body.stream_options
    if "stream_options" in refused and options is not None:  # as Mistral does
        row = {
            "type": "extra_forbidden", "loc": ["body", "stream_options", "include_usage"],
            "msg": "Extra inputs are not permitted", "input": True,
        }  # fmt: skip
        raise WireError("", status=422, body={"object": "error", "message": {"detail": [row]}})
    if "continuous_usage_stats" in refused and options and options.continuous_usage_stats:
        name = "stream_options.continuous_usage_stats"
        raise WireError(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if "max_tokens" in refused and isinstance(body, ChatBody) and body.max_tokens is not None:
        raise WireError(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            param="max_tokens", code="unsupported_parameter",
        )  # fmt: skip
    if "logprobs" in refused and alternatives_asked(body) is not None:
        raise WireError("logprobs are not supported by this model", param="logprobs")
    if "streams" in refused and body.stream:
        raise WireError("Streaming is not supported for this model", param="stream")
    if "whole" in refused and not body.stream:
        raise WireError(
            "This model only support stream mode, please enable the stream parameter to access "
            "the model."
        )


def limit(number: int, how: Limit | None) -> None:
    """Raises WireError where the `number`-th request, counted from 0, finds the minute full."""
    if how is None or number % _FULL_EVERY != 1:
        return
    soon = {"retry-after-ms": "50"}
    if how == "in-200":  # as MiniMax does
        refusal = {"status_code": 1002, "status_msg": "rate limit exceeded(RPM)"}
        raise WireError("", status=200, headers=soon, body={"choices": None, "base_resp": refusal})
    raise WireError(
        "You exceeded your current quota, please check your plan and billing details. Quota "
        "exceeded for requests per minute, limit: 15. Please retry in 0.05s.",
        status=429, code="RESOURCE_EXHAUSTED", headers=soon,
    )  # fmt: skip


def alternatives_asked(body: Body) -> int | None:
    """How many alternatives per position the client asked for; None: no log-probabilities."""
    if isinstance(body, CompletionBody):
        return body.logprobs
    return (body.top_logprobs or 0) if body.logprobs else None


def request_of(
    body: Body, prompt_ids: tuple[int, ...], *, past_end: bool = False
) -> GenerateRequest:
    """What to generate; the defaults are OpenAI's, but for `DEFAULT_MAX_TOKENS`."""
    limit = body.max_completion_tokens if isinstance(body, ChatBody) else None
    stop = (body.stop,) if isinstance(body.stop, str) else body.stop
    return GenerateRequest(
        prompt_ids=prompt_ids,
        max_tokens=limit or body.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=body.top_p or 1.0,
        top_k=max(body.top_k or 0, 0),  # vLLM's -1 also means no limit
        seed=body.seed,
        top_logprobs=alternatives_asked(body) or 0,
        stop=stop or (),
        logit_bias=tuple((int(name), bias) for name, bias in (body.logit_bias or {}).items()),
        past_end=past_end,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    """One token of a reply's text, or of an echoed prompt."""

    raw: bytes
    start: int  # characters of the text before it
    logprob: float
    top: tuple[tuple[bytes, float], ...]  # alternatives, likeliest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One generated reply as a client sees it."""

    text: str
    tokens: tuple[ShownToken, ...]  # those in the text: no control tokens
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int  # all that were generated, control tokens too, as vLLM counts
    prompt_ids: tuple[int, ...] = ()  # shown to who asks; (): to nobody
    prompt_text: str = ""
    thought: str | None = None  # shown apart from the text; None: none is
    thought_tokens: tuple[ShownToken, ...] = ()  # those of it that are shown, tags included
    reasoning_tokens: int = 0  # spent on a thought, shown or not
    echoed: tuple[ShownToken, ...] = ()  # the prompt's tokens, to be repeated before the text
    others: tuple[Answer, ...] = ()  # further replies to the same request


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What identifies one reply on the wire."""

    id: str
    created: int  # seconds since 1970, UTC


def pieces(answer: Answer) -> Iterator[tuple[str, ShownToken]]:
    """The text token by token; a token that does not complete a character has an empty text."""
    ends = [token.start for token in answer.tokens] + [len(answer.text)]
    for token, (start, end) in zip(answer.tokens, pairwise(ends), strict=True):
        yield answer.text[start:end], token


def whole_reply(body: Body, answer: Answer, stamp: Stamp) -> dict[str, Any]:
    """The reply to a request that did not ask for a stream. Raises WireError (500) for a NaN."""
    each = (answer, *answer.others)
    choices = [_choice(body, one, index) for index, one in enumerate(each)]
    made = sum(one.completion_tokens for one in each)
    usage = _usage(replace(answer, completion_tokens=made))
    whole = _head(body, stamp) | {"choices": choices, "usage": usage}
    if isinstance(body, ChatBody) and body.return_token_ids and answer.prompt_ids:
        whole["prompt_token_ids"] = list(answer.prompt_ids)
    if isinstance(body, ChatBody) and body.return_prompt_text and answer.prompt_ids:
        whole["prompt_text"] = answer.prompt_text
    return whole


def _choice(body: Body, answer: Answer, index: int) -> dict[str, Any]:
    tokens, text = answer.tokens, answer.text
    if isinstance(body, CompletionBody) and body.echo:
        before = len(answer.prompt_text)
        tokens = (*answer.echoed, *(replace(t, start=t.start + before) for t in tokens))
        text = answer.prompt_text + text
    choice: dict[str, Any] = {
        "index": index,
        "logprobs": _logprobs(body, (*answer.thought_tokens, *tokens)),
        "finish_reason": answer.finish_reason,
    }
    if isinstance(body, ChatBody):
        thought = {} if answer.thought is None else {"reasoning": answer.thought}
        return choice | {"message": {"role": "assistant", "content": answer.text} | thought}
    return choice | {"text": text}


def reply_chunks(body: Body, answer: Answer, stamp: Stamp) -> Iterator[dict[str, Any]]:
    """The events of a stream: one per token, whose texts and logprobs add up to the whole reply.

    A token that does not complete a character comes with an empty text. Raises WireError (500)
    for a NaN.
    """
    head = _head(body, stamp)
    options = body.stream_options or _StreamOptions()
    wants_usage, counts_on = bool(options.include_usage), bool(options.continuous_usage_stats)
    if wants_usage:
        head["usage"] = None

    def chunk(
        content: dict[str, Any], tokens: Sequence[ShownToken] = (), finish: str | None = None,
        made: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        logprobs = _logprobs(body, tokens) if tokens else None
        choice = content | {"index": 0, "logprobs": logprobs, "finish_reason": finish}
        so_far = {"usage": _usage(replace(answer, completion_tokens=made))} if counts_on else {}
        return head | {"choices": [choice]} | so_far

    chat = isinstance(body, ChatBody)
    if chat:
        yield chunk({"delta": {"role": "assistant", "content": ""}})
    if chat and answer.thought:
        yield chunk({"delta": {"reasoning": answer.thought}})
    for made, (piece, token) in enumerate(pieces(answer), 1):
        shown = {"delta": {"content": piece}} if chat else {"text": piece}
        yield chunk(shown, [token], made=made)
    yield chunk(
        {"delta": {}} if chat else {"text": ""}, finish=answer.finish_reason,
        made=answer.completion_tokens,
    )  # fmt: skip
    if wants_usage:
        yield head | {"choices": [], "usage": _usage(answer)}


def _head(body: Body, stamp: Stamp) -> dict[str, Any]:
    chat = isinstance(body, ChatBody)
    streamed = "chat.completion.chunk" if body.stream else "chat.completion"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{stamp.id}",
        "object": streamed if chat else "text_completion",
        "created": stamp.created,
        "model": body.model,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    if answer.reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": answer.reasoning_tokens}
    return usage


def _logprobs(body: Body, tokens: Sequence[ShownToken]) -> dict[str, Any] | None:
    if alternatives_asked(body) is None:
        return None
    if isinstance(body, ChatBody):
        return {"content": chat_logprobs(body, tokens)}
    first: list[Any] = [None] if body.echo else []  # nothing came before it
    scored = tokens[len(first) :]
    return {
        "tokens": [_text(token.raw) for token in tokens],
        "token_logprobs": first + [_finite(token.logprob) for token in scored],
        "top_logprobs": first
        + [
            # keyed by text, so of two tokens with one text only the likelier can be shown
            {_text(raw): _finite(logprob) for raw, logprob in reversed(token.top)}
            | {_text(token.raw): _finite(token.logprob)}
            for token in scored
        ],
        "text_offset": [token.start for token in tokens],
    }


def chat_logprobs(body: ChatBody, tokens: Sequence[ShownToken]) -> list[dict[str, Any]] | None:
    """Tokens as chats name them; None where none were asked for. Raises WireError for a NaN."""
    if alternatives_asked(body) is None:
        return None
    return [
        _named(token.raw, token.logprob)
        | {"top_logprobs": [_named(raw, logprob) for raw, logprob in token.top]}
        for token in tokens
    ]


def _named(raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(raw), "bytes": list(raw), "logprob": _finite(logprob)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    if math.isnan(logprob):
        raise WireError("the engine failed: a log-probability is not a number", status=500)
    return max(logprob, _LOWEST_LOGPROB)
