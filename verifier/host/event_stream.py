"""A recorded event stream, put together to the body that the host would have sent in one piece.

Works on the kept bytes alone, so a run folder can be read again. Framing is httpx-sse's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from httpx_sse import EventSource

from verifier.host.dialects import end_of, items, member
from verifier.host.pieces import BrokenStream, Piece, Step, TwoReadings, read_pieces
from verifier.host.refusals import clean, error_in

END: Final = "[DONE]"

#: Some hosts begin a body with a byte order mark, which is no part of it.
MARK: Final = "\ufeff"

#: Where a chat names the tools that it calls, and its older place for one.
CALLS: Final = ("tool_calls", "function_call")

#: Where an event holds some of what is said.
_SPOKEN: Final = (
    "reasoning", "reasoning_content", "thinking", "reasoning_details", "content", "text", "refusal",
)  # fmt: skip

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

    Raises BrokenStream when the stream ends without its last event, and when events were lost or
    out of order as far as they tell: by a running count of tokens on every chunk, by text after
    the end, by more pieces than tokens. Where a host counts nothing, two pieces that changed places
    cannot be seen. Raises TwoReadings where the pieces may be read as several texts.
    """
    events, ended = read_events(body)
    found = _Sum(chat=chat)
    for event in events:
        value = event.value
        choice = _first(value.get("choices"))
        error = value.get("error") or choice.get("error")
        if error or event.name == "error":
            return {"error": error or value}
        if error_in(value) is not None:
            return value
        found.add(value, choice)
    if found.finish is None and not ended:
        raise BrokenStream("the stream ends without its last event")
    return found.whole()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """What one event adds."""

    value: dict[str, Any]
    delta: dict[str, Any]
    claims: dict[str, list[Any]]  # columns of log-probabilities
    count: int | None  # of tokens, so far
    ends: bool

    @property
    def texts(self) -> dict[str, str]:
        """What it says, by field."""
        spoken = ((name, self.delta.get(name)) for name in _SPOKEN)
        return {name: text for name, text in spoken if isinstance(text, str) and text}

    @property
    def says(self) -> bool:
        """Whether it holds text or parts that may be scored."""
        return any(self.delta.get(name) for name in _SPOKEN)


@dataclass(slots=True, kw_only=True)
class _Sum:
    """What the chunks so far add up to."""

    chat: bool
    around: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    finish: str | None = None
    chunks: list[_Chunk] = field(default_factory=list)
    messages: list[_Chunk] = field(default_factory=list)  # the same, of a field for whole answers

    def add(self, value: dict[str, Any], choice: dict[str, Any]) -> None:
        """Add one chunk and its choice."""
        for name, told in value.items():
            if name not in ("choices", "usage", "object") and (told or name not in self.around):
                self.around[name] = told  # some leave names out of an event
        usage = value.get("usage") or choice.get("usage")  # Moonshot puts it into the choice
        for name, told in (usage if isinstance(usage, dict) else {}).items():
            if told or name not in self.usage:  # some count in one event, and write 0 in others
                self.usage[name] = told
        end = end_of(choice.get("finish_reason"))
        columns = choice.get("logprobs")
        claims = {
            name: column for name, column in (columns if isinstance(columns, dict) else {}).items()
            if isinstance(column, list)
        }  # fmt: skip
        delta = choice.get("delta") if self.chat else {"text": choice.get("text")}
        for said, held in ((self.chunks, delta), (self.messages, choice.get("message"))):
            said.append(
                _Chunk(
                    value=value, delta=held if isinstance(held, dict) else {}, claims=claims,
                    count=_count(usage), ends=end is not None,
                )
            )  # fmt: skip
        self.finish = end or self.finish

    def whole(self) -> dict[str, Any]:
        """The completion. Raises BrokenStream and TwoReadings, see `_assemble`."""
        chunks, whole = self.chunks, None
        told = [chunk.texts.get("content") for chunk in self.messages]
        if not any(chunk.delta.get(name) for chunk in chunks for name in (*_SPOKEN, *CALLS)):
            chunks = self.messages if self.chat else chunks  # the whole answer as one event
        else:
            whole = next(filter(None, reversed(told)), None)
        try:
            return self._add_up(chunks, self._steps(chunks, whole))
        except TwoReadings as doubt:
            doubt.body = self._add_up(chunks, ["new"] * len(chunks))
            raise

    def _add_up(self, chunks: list[_Chunk], steps: Sequence[Step]) -> dict[str, Any]:
        """The completion; `steps` are those of the chunks that say something."""
        made: dict[str, Any] = {"role": "assistant", "content": None} if self.chat else {"text": ""}
        claims: dict[str, list[Any]] = {}
        following = iter(steps)
        for chunk in chunks:
            step = next(following) if chunk.says else "new"
            if step != "again":
                _add(made, chunk.delta, says_all=step == "all")
                _add_claims(claims, chunk.claims, says_all=step == "all")
        last = {"index": 0, "finish_reason": self.finish, "logprobs": claims or None}
        choice = last | ({"message": made} if self.chat else made)
        return self.around | {"choices": [choice]} | ({"usage": self.usage} if self.usage else {})

    def _steps(self, every: list[_Chunk], whole: str | None) -> list[Step]:
        """What each chunk that says something is."""
        chunks = [chunk for chunk in every if chunk.says]
        waiting, rows = 0, []  # of tokens that end in no character, and of each chunk with them
        for chunk in every:
            waiting += len(_rows(chunk.claims))
            if chunk.says:
                rows.append(waiting)
                waiting = 0
        # some write an end on every chunk, or behind a thought: the last one counts
        end = max((n for n, chunk in enumerate(self.chunks) if chunk.ends), default=None)
        ended = set() if end is None else {id(chunk.value) for chunk in self.chunks[end + 1 :]}
        after = next((n for n, chunk in enumerate(chunks) if id(chunk.value) in ended), None)
        numbers = [_numbers(chunk.claims) for chunk in chunks]
        often = Counter(numbers)
        pieces = [
            Piece(
                texts=chunk.texts or {"": str(chunk.delta)}, count=chunk.count,
                event={name: told for name, told in chunk.value.items() if name != "created"},
                named=_named(chunk.claims), rows=count,
                telling=any(own) and often[own] == 2,
            )
            for chunk, own, count in zip(chunks, numbers, rows, strict=True)
        ]  # fmt: skip
        return read_pieces(
            pieces, total=_count(self.usage), whole=whole, at_limit=self.finish == "length",
            after_end=after,
        )  # fmt: skip


def _first(choices: object) -> dict[str, Any]:
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else {}


def _count(usage: object) -> int | None:
    counts = (member(usage, name) for name in ("completion_tokens", "output_tokens"))
    return next((count for count in counts if type(count) is int), None)


def _add(message: dict[str, Any], delta: dict[str, Any], *, says_all: bool) -> None:
    """Add one piece to the message; one that says all stands for what was said in its fields."""
    for name, piece in delta.items():
        before: Any = message.get(name)
        if name == "role" or piece is None:
            continue
        if name in CALLS:  # in pieces, which nothing here puts together
            message.setdefault(name, []).extend(piece if isinstance(piece, list) else [piece])
            continue
        joins = isinstance(piece, str | list) and isinstance(before, type(piece))
        if joins and says_all and name in _SPOKEN and isinstance(piece, str):
            message[name] = piece if piece.startswith(before) else before
        else:
            message[name] = before + piece if joins else piece


# -- log-probabilities of chunks -------------------------------------------------------------------


def _add_claims(
    claims: dict[str, list[Any]], columns: dict[str, list[Any]], *, says_all: bool
) -> None:
    """Add the claims of one chunk; those of one that says all may be of all, too."""
    for name, column in columns.items():
        before = claims.setdefault(name, [])
        if says_all and before and column[: len(before)] == before:
            before.clear()
        before.extend(column)


def _rows(columns: dict[str, list[Any]]) -> list[Any]:
    """The tokens that a chunk names."""
    return columns.get("content") or columns.get("tokens") or []


def _named(columns: dict[str, list[Any]]) -> bytes | None:
    """What they spell; None where that is not said."""
    spelled = b""
    for row in _rows(columns):
        token = row if isinstance(row, str) else member(row, "token")
        raw = items(member(row, "bytes"))
        if raw and all(type(one) is int and 0 <= one < 256 for one in raw):
            spelled += bytes(raw)
        elif isinstance(token, str):
            spelled += token.encode("utf-8", "replace")
        else:
            return None
    return spelled or None


def _numbers(columns: dict[str, list[Any]]) -> tuple[float, ...]:
    """The numbers beside them, as far as they come, those of alternatives among them."""
    given = [member(row, "logprob") for row in columns.get("content") or []]
    others = [
        member(one, "logprob")
        for row in columns.get("content") or [] for one in items(member(row, "top_logprobs"))
    ]  # fmt: skip
    given += columns.get("token_logprobs") or []
    return tuple(float(one) for one in (*given, *others) if isinstance(one, float))
