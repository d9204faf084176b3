"""What else the testbed host speaks: Anthropic's Messages and OpenAI's Responses.

Each body is read as the chat that it asks for, and the answer to that chat is put into its shape.
Knows nothing of tokenizers, engines or sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from verifier.host.dialects.responses import LOGPROBS
from verifier.lab.testbed.wire import (
    Alternatives,
    Answer,
    ChatBody,
    NonEmpty,
    Stamp,
    chat_logprobs,
    pieces,
)

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}

#: One event of a stream: its name, and what it carries.
Event = tuple[str, dict[str, Any]]


class _TextBlock(BaseModel):
    type: Literal["text", "input_text", "output_text"] = "text"
    text: str


class _Turn(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[_TextBlock, ...]


class _Body(BaseModel):
    """The fields both take. Null means the default; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None


class MessagesBody(_Body):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[tuple[_Turn, ...], Field(min_length=1)]
    system: str | tuple[_TextBlock, ...] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: tuple[NonEmpty, ...] | None = None

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        if any(turn.role not in ("user", "assistant") for turn in self.messages):
            raise ValueError("messages hold the roles user and assistant; the rest is `system`")
        return self

    @property
    def chat(self) -> ChatBody:
        """The chat it asks for."""
        system = () if self.system is None else (_Turn(role="system", content=self.system),)
        return _chat(
            self, (*system, *self.messages), max_tokens=self.max_tokens, top_k=self.top_k,
            stop=self.stop_sequences,
        )  # fmt: skip


class ResponsesBody(_Body):
    """Body of POST /v1/responses, in one turn."""

    input: NonEmpty | Annotated[tuple[_Turn, ...], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: tuple[str, ...] | None = None
    top_logprobs: Alternatives | None = None
    previous_response_id: None = None  # refused rather than ignored: nothing is kept here

    @property
    def chat(self) -> ChatBody:
        """The chat it asks for."""
        turns = self.input
        if isinstance(turns, str):
            turns = (_Turn(role="user", content=turns),)
        if self.instructions is not None:
            turns = (_Turn(role="system", content=self.instructions), *turns)
        wanted = LOGPROBS in (self.include or ())
        return _chat(
            self, turns, max_tokens=self.max_output_tokens, logprobs=wanted,
            top_logprobs=self.top_logprobs if wanted else None,
        )  # fmt: skip


def _chat(body: _Body, turns: tuple[_Turn, ...], **fields: Any) -> ChatBody:
    return ChatBody.model_validate(
        {
            "model": body.model,
            "messages": tuple({"role": _role(t.role), "content": _text(t.content)} for t in turns),
            "temperature": body.temperature,
            "top_p": body.top_p,
            "stream": body.stream,
            **fields,
        }
    )


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _text(content: str | tuple[_TextBlock, ...]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


# -- Messages ----------------------------------------------------------------------------------


def whole_message(body: MessagesBody, answer: Answer, stamp: Stamp) -> dict[str, Any]:
    """The reply to a request that did not ask for a stream."""
    return {
        "id": f"msg_{stamp.id}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
        "content": [
            *([] if answer.thought is None else [_thinking(answer.thought)]),
            {"type": "text", "text": answer.text},
        ],
        "stop_reason": _STOP_REASONS[answer.finish_reason],
        "stop_sequence": None,
        "usage": {
            "input_tokens": answer.prompt_tokens,
            "output_tokens": answer.completion_tokens,
        },
    }


def message_events(body: MessagesBody, answer: Answer, stamp: Stamp) -> Iterator[Event]:
    """The events of a stream, which add up to the whole message."""
    whole = whole_message(body, answer, stamp)
    begun = {"input_tokens": answer.prompt_tokens, "output_tokens": 0}
    opened = whole | {"content": [], "stop_reason": None, "usage": begun}
    yield _named("message_start", message=opened)
    index = 0
    if answer.thought is not None:
        yield _named("content_block_start", index=0, content_block=_thinking(""))
        delta = {"type": "thinking_delta", "thinking": answer.thought}
        yield _named("content_block_delta", index=0, delta=delta)
        yield _named("content_block_stop", index=0)
        index = 1
    yield _named("content_block_start", index=index, content_block={"type": "text", "text": ""})
    yield _named("ping")
    for piece, _ in pieces(answer):
        delta = {"type": "text_delta", "text": piece}
        yield _named("content_block_delta", index=index, delta=delta)
    yield _named("content_block_stop", index=index)
    ended = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    counted = {"output_tokens": answer.completion_tokens}
    yield _named("message_delta", delta=ended, usage=counted)
    yield _named("message_stop")


def _thinking(text: str) -> dict[str, str]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def message_error(error: dict[str, Any]) -> dict[str, Any]:
    """An error in OpenAI's shape, in Anthropic's."""
    told = error["error"]
    return {"type": "error", "error": {"type": told["type"], "message": told["message"]}}


# -- Responses ---------------------------------------------------------------------------------


def whole_response(body: ResponsesBody, answer: Answer, stamp: Stamp) -> dict[str, Any]:
    """The reply to a request that did not ask for a stream. Raises WireError (500) for a NaN."""
    cut = answer.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    return _response(body, stamp, status) | {
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [
            *([] if answer.thought is None else [_reasoning(answer.thought, stamp)]),
            _item(body, answer, stamp, status),
        ],
        "usage": {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answer.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
    }


def response_events(body: ResponsesBody, answer: Answer, stamp: Stamp) -> Iterator[Event]:
    """The events of a stream, numbered from 0. Raises WireError (500) for a NaN."""
    for number, (name, carried) in enumerate(_response_events(body, answer, stamp)):
        yield name, carried | {"sequence_number": number}


def _response_events(body: ResponsesBody, answer: Answer, stamp: Stamp) -> Iterator[Event]:
    whole = whole_response(body, answer, stamp)
    item = whole["output"][-1]  # a thought is told by the last event alone
    (part,) = item["content"]
    begun = _response(body, stamp, "in_progress")
    at = {"item_id": item["id"], "output_index": 0}
    within = at | {"content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    opened = item | {"status": "in_progress", "content": []}
    yield _named("response.created", response=begun)
    yield _named("response.in_progress", response=begun)
    yield _named("response.output_item.added", output_index=0, item=opened)
    yield _named("response.content_part.added", **within, part=empty)
    for piece, token in pieces(answer):
        rows = chat_logprobs(body.chat, (token,))
        yield _named("response.output_text.delta", **within, delta=piece, logprobs=rows or [])
    text, rows = part["text"], part["logprobs"]
    yield _named("response.output_text.done", **within, text=text, logprobs=rows)
    yield _named("response.content_part.done", **within, part=part)
    yield _named("response.output_item.done", output_index=0, item=item)
    yield _named(f"response.{whole['status']}", response=whole)


def _response(body: ResponsesBody, stamp: Stamp, status: str) -> dict[str, Any]:
    return {
        "id": f"resp_{stamp.id}",
        "object": "response",
        "created_at": stamp.created,
        "status": status,
        "model": body.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "metadata": {},
        "parallel_tool_calls": False,
        "temperature": body.temperature,
        "tool_choice": "none",
        "tools": [],
        "top_p": body.top_p,
        "usage": None,
    }


def _item(body: ResponsesBody, answer: Answer, stamp: Stamp, status: str) -> dict[str, Any]:
    part = {
        "type": "output_text",
        "text": answer.text,
        "annotations": [],
        "logprobs": chat_logprobs(body.chat, answer.tokens) or [],
    }
    return {
        "id": f"msg_{stamp.id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [part],
    }


def _reasoning(thought: str, stamp: Stamp) -> dict[str, Any]:
    return {
        "id": f"rs_{stamp.id}",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": thought}],
    }


def _named(name: str, **carried: Any) -> Event:
    return name, {"type": name, **carried}
