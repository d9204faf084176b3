"""OpenAI's chat completions, as hosts of open models speak it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from verifier.host.dialects import (
    Ask,
    Dialect,
    Unreadable,
    View,
    bearer,
    items,
    kind_of,
    member,
    sampling,
    size_of,
    text_of,
)
from verifier.host.event_stream import CALLS, assemble_chat
from verifier.prompts import wire_message

#: A count on every chunk, where the host knows how, shows events that were lost or moved.
STREAM_OPTIONS: Final = {"include_usage": True, "continuous_usage_stats": True}

#: Fields that hold a thought word for word; hosts that give several repeat it.
_THOUGHTS: Final = ("reasoning", "reasoning_content", "thinking")
_REASONING_PARTS: Final = ("reasoning", "thinking")

_LONGEST_NAME: Final = 1024  # characters, of a tool


def _body(ask: Ask) -> dict[str, Any]:
    asked = {"messages": [wire_message(message) for message in ask.messages]}
    body = completion_body(ask, asked, extras=ask.extras)
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
    thought, other = _thought_of(message)
    if text is None and items(content):
        parts = [part for part in items(content) if member(part, "type") not in _REASONING_PARTS]
        text = text_of(parts)
    if text is None and not other:
        raise Unreadable(f"content is {kind_of(content)}, expected text")
    refusal = message.get("refusal")
    calls, call_bytes = _calls_of(message)
    return replace(
        completion_view(body, choice, text),
        reasoning=other,
        refusal=refusal if isinstance(refusal, str) and refusal.strip() else None,
        thought=thought,
        calls=calls,
        call_bytes=call_bytes,
    )


def _calls_of(message: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Names of the tools that are called, and how long the arguments are.

    A stream brings a call in pieces, which tell by a number, or by having no name, to which call
    they belong.
    """
    names: dict[int, str] = {}
    size = 0
    for field in CALLS:
        held = message.get(field)
        for piece in held if isinstance(held, list) else [held]:
            if not isinstance(piece, dict) or not piece:
                continue
            made = piece.get("function") if isinstance(piece.get("function"), dict) else piece
            size += size_of(member(made, "arguments") or "")
            name, number = member(made, "name"), piece.get("index")
            if field == CALLS[1]:
                number = 0  # there is only one
            elif type(number) is not int:
                number = len(names) - (bool(names) and not name)
            before = names.get(number, "")
            more = isinstance(name, str) and name != before  # some hosts repeat it on every piece
            names[number] = (before + name)[:_LONGEST_NAME] if more else before
    return tuple(names.values()), size


def _thought_of(message: dict[str, Any]) -> tuple[str | None, bool]:
    """A thought shown word for word, and whether there is reasoning of which that is not known.

    Details that are summaries or encrypted say that the field beside them is no more either.
    """
    shown = [value for name in _THOUGHTS if (value := message.get(name)) and not _is_blank(value)]
    details = items(message.get("reasoning_details"))
    parts = [p for p in items(message.get("content")) if member(p, "type") in _REASONING_PARTS]
    whole = [_words_of(part) for part in (*details, *parts)]
    told = "".join(words for words in whole if words is not None)
    is_struck_out = bool(whole) and not told.strip()
    if None in whole or is_struck_out or not all(isinstance(value, str) for value in shown):
        return None, True
    texts = {value for value in (*shown, told) if value.strip()}
    if not texts:
        return None, False
    return (texts.pop(), False) if len(texts) == 1 else (None, True)


def _words_of(part: object) -> str | None:
    """The words of a detail or a part that holds a thought as it was; None when it does not."""
    if member(part, "type") not in ("reasoning.text", *_REASONING_PARTS):
        return None
    for name in ("text", "thinking", "reasoning"):
        value = member(part, name)
        if value is not None:
            return text_of(value)
    return None


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


# -- what text completions say alike -----------------------------------------------------------


def completion_body(
    ask: Ask, asked: Mapping[str, Any], *, extras: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A request, but for log-probabilities; `asked` is its conversation or its prompt."""
    body: dict[str, Any] = {
        "model": ask.model,
        **asked,
        "max_tokens": ask.max_tokens,
        **sampling(ask),
        "stream": ask.stream,
        **(extras or {}),
    }
    if ask.stream:
        body["stream_options"] = dict(STREAM_OPTIONS)
    return body


def completion_view(body: dict[str, Any], choice: dict[str, Any], text: str | None) -> View:
    """What an answer says beside its words: neither reasoning nor calls, which only chats have."""
    usage = body.get("usage") or choice.get("usage")
    return View(
        text=text,
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
        logprobs=choice.get("logprobs"),
        reasoning=False,
        reasoning_tokens=member(member(usage, "completion_tokens_details"), "reasoning_tokens"),
        refusal=None,
        token_ids=choice.get("token_ids"),
    )


def _count(usage: object, name: str, other: str) -> Any:
    """A count by its name, or by the one that Anthropic's dialect has for it."""
    count = member(usage, name)
    return member(usage, other) if count is None else count


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
