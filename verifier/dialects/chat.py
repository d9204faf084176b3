"""OpenAI's chat completions, as hosts of open models speak it."""

from __future__ import annotations

from typing import Any, Final

from verifier.dialects import (
    Ask,
    Dialect,
    Unreadable,
    View,
    bearer,
    items,
    kind_of,
    member,
    sampling,
    text_of,
)
from verifier.prompts import wire_message
from verifier.stream import assemble_chat

#: A count on every chunk, where the host knows how, shows events that were lost or moved.
STREAM_OPTIONS: Final = {"include_usage": True, "continuous_usage_stats": True}

_REASONING_FIELDS: Final = ("reasoning", "reasoning_content", "reasoning_details", "thinking")
_REASONING_PARTS: Final = ("reasoning", "thinking")


def _body(ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": ask.model,
        "messages": [wire_message(message) for message in ask.messages],
        "max_tokens": ask.max_tokens,
        **sampling(ask),
        "stream": ask.stream,
        **ask.extras,
    }
    if ask.stream:
        body["stream_options"] = dict(STREAM_OPTIONS)
    if ask.top_logprobs is not None:
        if ask.logprobs_form == "integer":
            body["logprobs"] = ask.top_logprobs
        else:
            body |= {"logprobs": True, "top_logprobs": ask.top_logprobs}
    return body


def _read(body: dict[str, Any]) -> View:
    choice = first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Unreadable(f"the first choice's message is {kind_of(message)}")
    content = message.get("content")
    text = text_of(content)
    reasoning = any(
        value.strip() if isinstance(value, str) else value
        for value in (message.get(name) for name in _REASONING_FIELDS)
    ) or any(member(part, "type") in _REASONING_PARTS for part in items(content))
    if text is None and not reasoning:
        raise Unreadable(f"content is {kind_of(content)}, expected text")
    usage = body.get("usage")
    refusal = message.get("refusal")
    return View(
        text=text,
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=member(usage, "prompt_tokens"),
        completion_tokens=member(usage, "completion_tokens"),
        logprobs=choice.get("logprobs"),
        reasoning=reasoning,
        reasoning_tokens=member(member(usage, "completion_tokens_details"), "reasoning_tokens"),
        refusal=refusal if isinstance(refusal, str) and refusal.strip() else None,
    )


def first_choice(body: dict[str, Any]) -> dict[str, Any]:
    """The first of the choices. Raises Unreadable when there is none."""
    choice = next(iter(items(body.get("choices"))), None)
    if not isinstance(choice, dict):
        raise Unreadable("no choices in the body")
    return choice


CHAT: Final = Dialect(
    name="chat",
    path="/chat/completions",
    headers={},
    key_headers=bearer,
    body=_body,
    read=_read,
    assemble=assemble_chat,
)
