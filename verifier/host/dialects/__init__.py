"""What a dialect is: how to ask one question, and what an answer says, in one form for all.

An adapter for each way of speaking stands beside this file. They are pure: JSON values in, records
out. The bytes that came are kept by others, untouched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from verifier.records import Message

#: How a host wants to be asked for log-probabilities in a chat: `true` beside a number of
#: alternatives (OpenAI), or that number itself (Together).
LogprobsForm = Literal["boolean", "integer"]

#: How a host names the limit on a chat's length.
LimitName = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question, free of any dialect."""

    model: str
    messages: tuple[Message, ...]
    extras: Mapping[str, Any]  # tools and template settings, as chats take them
    prompt: str | tuple[int, ...] | None  # the rendered prompt, for text completions alone
    max_tokens: int
    top_logprobs: int | None  # None: no log-probabilities
    logprobs_form: LogprobsForm
    stream: bool
    temperature: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What an answer says, in the words of no dialect; nothing is judged yet."""

    text: str | None  # None: neither text nor a list of text parts
    finish_reason: object
    prompt_tokens: object
    completion_tokens: object
    logprobs: object  # as in OpenAI's chat or text completions; None: none
    reasoning: bool  # the answer shows reasoning that is not `thought`: a summary, or encrypted
    reasoning_tokens: object  # how many were spent, shown or hidden
    refusal: str | None
    thought: str | None = None  # reasoning shown word for word; None: none
    token_ids: object = None  # of all that was generated
    calls: tuple[str, ...] = ()  # names of the tools that it calls, after the text
    call_bytes: int = 0  # how long their arguments are


class Unreadable(Exception):
    """The JSON is no answer of this dialect; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One way to ask and to answer."""

    name: str
    path: str  # after the base URL
    headers: Mapping[str, str]  # besides those of every request; none of them secret
    key_headers: Callable[[str], Mapping[str, str]]  # how the key travels
    body: Callable[[Ask], dict[str, Any]]
    read: Callable[[dict[str, Any]], View]  # raises Unreadable
    assemble: Callable[[str], dict[str, Any]]  # a stream to one answer; raises BrokenStream


def plain_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Who said what, where neither tools nor thoughts are sent."""
    return [{"role": message.role, "content": message.content} for message in messages]


def sampling(ask: Ask) -> dict[str, Any]:
    """How to sample: greedily, or at a temperature with everything else left in, said outright."""
    if ask.temperature == 0:
        return {"temperature": 0}
    return {"temperature": ask.temperature, "top_p": 1}


def bearer(key: str) -> Mapping[str, str]:
    """The key as most hosts take it."""
    return {"Authorization": f"Bearer {key}"}


def text_of(content: object) -> str | None:
    """The text of a content; None when it is neither text nor a list of text parts."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None


def member(value: object, name: str) -> Any:
    """A member of a JSON object; None when it is none, or has none."""
    return value.get(name) if isinstance(value, dict) else None


def items(value: object) -> list[Any]:
    """The items of a JSON list; none when it is no list."""
    return value if isinstance(value, list) else []


def size_of(arguments: object) -> int:
    """Bytes of a call's arguments, a text or a JSON value; 0 of one nested too deep to write."""
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    except RecursionError:
        return 0
    return len(text.encode("utf-8", "replace"))


#: How hosts write that an answer has not ended, where they do not leave it out.
_NO_END: Final = ("", "null", "none", "nil", "undefined")


def end_of(reason: object) -> str | None:
    """Why an answer ended, in the host's words; None where it does not say that it has."""
    said = isinstance(reason, str) and reason.strip().lower() not in _NO_END
    return reason if said and isinstance(reason, str) else None


def word_of(value: object) -> str:
    """A text; "" for anything else."""
    return value if isinstance(value, str) else ""


def kind_of(value: object) -> str:
    """What a JSON value is, in words; short text is shown."""
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    names = {type(None): "null", bool: "a boolean", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
