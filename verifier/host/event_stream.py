"""A recorded event stream, put together to the body that the host would have sent in one piece.

Works on the kept bytes alone, so a run folder can be read again. Framing is httpx-sse's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import httpx
from httpx_sse import EventSource

from verifier.host.refusals import clean, error_in

END: Final = "[DONE]"

#: Some hosts begin a body with a byte order mark, which is no part of it.
MARK: Final = "\ufeff"

#: Where a chat names the tools that it calls, and its older place for one.
CALLS: Final = ("tool_calls", "function_call")

_BEGINNING: Final = re.compile(r"\ufeff?\s*(?:data|event|id|retry)?:")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

#: The line of the last event in every dialect: OpenAI's two, and Anthropic's.
_LAST_LINE: Final = re.compile(
    rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])(?:data: ?\[DONE\]"
    rb"|event: ?(?:message_stop|response\.(?:completed|incomplete|failed))[\r\n])"
)
_END_OF_EVENT: Final = re.compile(rb"\n\r?\n|\r\r")
_LONGEST_LINE: Final = 64  # bytes, of those lines

#: How JSON begins that may have been cut off, and then holds a piece of an answer.
_OF_JSON: Final = '{["'


class BrokenStream(Exception):
    """The events do not add up to one whole answer; the text says why.

    `said` is what the host put in the place of an event, where it may be an error in plain words.
    """

    def __init__(self, reason: str, *, said: str = "") -> None:
        super().__init__(reason)
        self.said = said


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: its name ("" or "message" when unnamed) and its JSON value."""

    name: str
    value: dict[str, Any]


class Ending:
    """Whether a stream that is still arriving holds its last event, whole."""

    def __init__(self) -> None:
        self._looked = 0  # bytes
        self._named: int | None = None  # where the event's name ended, and its data is due

    def has_come(self, received: bytearray) -> bool:
        """Look at all that came so far; only what is new is read."""
        start, self._looked = max(0, self._looked - _LONGEST_LINE), len(received)
        if self._named is None:
            found = _LAST_LINE.search(received, start)
            if found is None:
                return False
            if found[0].endswith(END.encode()):
                return True
            self._named = found.end() - 1
        return _END_OF_EVENT.search(received, max(start, self._named)) is not None


def begins_stream(body: str) -> bool:
    """Whether a body begins as an event stream does, which no JSON and no page can."""
    return _BEGINNING.match(body) is not None


def read_events(body: str) -> tuple[list[Event], bool]:
    """The events of a stream, and whether it was declared ended; comments are passed over.

    Bytes that are no UTF-8 become U+FFFD. Raises BrokenStream for data that is not a JSON object.
    """
    whole = _SURROGATE.sub("\ufffd", body.removeprefix(MARK))
    response = httpx.Response(
        200,
        headers={"Content-Type": "text/event-stream; charset=utf-8"},
        content=f"{whole}\n\n".encode(),  # some hosts leave out the last line's end
    )
    found: list[Event] = []
    ended = False
    for sent in EventSource(response).iter_sse():
        data = sent.data.strip()
        if not data:
            continue  # a keep-alive, or an event that is its name alone
        if data.startswith(END):
            ended = True
            break
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            said = "" if data[0] in _OF_JSON else clean(data)
            why = f"event {len(found) + 1} is not JSON{said and f': {said}'}"
            raise BrokenStream(why, said=said) from None
        if not isinstance(value, dict):
            said = clean(value) if isinstance(value, str) else ""
            why = f"event {len(found) + 1} is not an object{said and f': {said}'}"
            raise BrokenStream(why, said=said)
        found.append(Event(name=sent.event, value=value))
    return found, ended


def assemble_chat(body: str) -> dict[str, Any]:
    """The chat completion that a stream of its chunks adds up to.

    See `_assemble`.
    """
    return _assemble(body, chat=True)


def assemble_text(body: str) -> dict[str, Any]:
    """The text completion that a stream of its chunks adds up to.

    See `_assemble`.
    """
    return _assemble(body, chat=False)


def _assemble(body: str, *, chat: bool) -> dict[str, Any]:
    """The completion that chunks add up to; an error event is its `error`.

    Raises BrokenStream when the stream ends without its last event, and when events were repeated
    or out of order as far as they tell: by a running count of tokens on every chunk, by text after
    the end, by more pieces than tokens. Where a host counts nothing, two pieces that changed
    places cannot be seen.
    """
    events, ended = read_events(body)
    found = _Sum(chat=chat, made={"role": "assistant", "content": None} if chat else {"text": ""})
    for event in events:
        value = event.value
        choice = _first(value.get("choices"))
        if not isinstance(choice.get("logprobs"), dict | None):
            raise BrokenStream("logprobs of an event are no object")
        error = value.get("error") or choice.get("error")
        if error or event.name == "error":
            return {"error": error or value}
        if error_in(value) is not None:
            return value
        found.add(value, choice)
    if found.finish is None and not ended:
        raise BrokenStream("the stream ends without its last event")
    return found.whole()


@dataclass(slots=True, kw_only=True)
class _Sum:
    """What the chunks so far add up to."""

    chat: bool
    made: dict[str, Any]  # the message, or the text
    around: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    finish: str | None = None
    claims: dict[str, list[Any]] = field(default_factory=dict)
    #: The running count, and the chunk.
    pieces: list[tuple[int | None, dict[str, Any]]] = field(default_factory=list)

    def add(self, value: dict[str, Any], choice: dict[str, Any]) -> None:
        """Add one chunk and its choice. Raises BrokenStream for text after the end."""
        self.around |= {k: v for k, v in value.items() if k not in ("choices", "usage", "object")}
        found = value.get("usage") or choice.get("usage")  # Moonshot puts it into the choice
        self.usage = found if isinstance(found, dict) else self.usage
        if _add(self.made, choice.get("delta") if self.chat else {"text": choice.get("text")}):
            if self.finish is not None:
                raise BrokenStream("a piece of text came after the end")
            self.pieces.append((_count(found), value))
        for name, column in (choice.get("logprobs") or {}).items():
            if isinstance(column, list):
                self.claims.setdefault(name, []).extend(column)
        self.finish = choice.get("finish_reason") or self.finish

    def whole(self) -> dict[str, Any]:
        """The completion. Raises BrokenStream when its chunks were not in order."""
        positions = len(self.claims.get("content") or self.claims.get("tokens") or ())
        _check_order(self.pieces, total=_count(self.usage), positions=positions)
        last = {"index": 0, "finish_reason": self.finish, "logprobs": self.claims or None}
        choice = last | ({"message": self.made} if self.chat else self.made)
        usage = {} if self.usage is None else {"usage": self.usage}
        return self.around | {"choices": [choice]} | usage


def _first(choices: object) -> dict[str, Any]:
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else {}


def _count(usage: object) -> int | None:
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int else None


def _add(message: dict[str, Any], delta: object) -> bool:
    """Add one piece to the message; whether it held any text or parts that may be scored."""
    grew = False
    for name, piece in (delta if isinstance(delta, dict) else {}).items():
        before: Any = message.get(name)
        if name == "role" or piece is None:
            continue
        if name in CALLS:  # in pieces, which nothing here puts together
            message.setdefault(name, []).extend(piece if isinstance(piece, list) else [piece])
            continue
        joins = isinstance(piece, str | list) and isinstance(before, type(piece))
        message[name] = before + piece if joins else piece
        grew = grew or bool(piece)
    return grew


def _check_order(
    pieces: Sequence[tuple[int | None, dict[str, Any]]], *, total: int | None, positions: int
) -> None:
    counts = [count for count, _ in pieces if count is not None]
    counts_on = bool(counts) and min(counts) < max(counts)  # else one number stands on each
    for (before, one), (after, other) in pairwise(pieces):
        if counts_on and before is not None and after is not None and after < before:
            raise BrokenStream("its running count of tokens goes back")
        tells_apart = counts_on or _first(one.get("choices")).get("logprobs")
        if tells_apart and one == other:
            raise BrokenStream("an event came twice")
    if total is not None and max(len(pieces), positions) > total + 1:
        raise BrokenStream(f"{max(len(pieces), positions)} pieces for {total} tokens")
