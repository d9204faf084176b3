"""Anthropic's Messages, which vLLM, MiniMax, SambaNova and others serve as well.

It has no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from verifier.host.dialects import (
    Ask,
    Dialect,
    Unreadable,
    View,
    bearer,
    member,
    plain_turns,
    sampling,
    size_of,
    text_of,
    word_of,
)
from verifier.host.event_stream import read_events
from verifier.host.pieces import BrokenStream, Piece, TwoReadings, read_pieces

#: The version of the interface that the bodies here are written in.
_VERSION: Final = "2023-06-01"


def _key_headers(key: str) -> Mapping[str, str]:
    """Both ways: Anthropic and most hosts read the first, vLLM reads the second alone."""
    return {"x-api-key": key, **bearer(key)}


def _body(ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": ask.model,
        "max_tokens": ask.max_tokens,
        "messages": plain_turns([m for m in ask.messages if m.role != "system"]),
        **sampling(ask),
        "stream": ask.stream,
    }
    system = "\n".join(m.content for m in ask.messages if m.role == "system")
    return body | {"system": system} if system else body


def _read(body: dict[str, Any]) -> View:
    blocks = body.get("content")
    if not isinstance(blocks, list):
        raise Unreadable("no content in the body")
    kinds = [member(block, "type") for block in blocks]
    calls = [block for block in blocks if word_of(member(block, "type")).endswith("tool_use")]
    spoken = blocks[: blocks.index(calls[0])] if calls else blocks
    texts = [block for block in spoken if member(block, "type") == "text"]
    thoughts = [
        member(block, "thinking") for block in blocks if member(block, "type") == "thinking"
    ]
    # a thought that comes after words, or that is struck out, is not where it was generated
    whole = all(isinstance(thought, str) for thought in thoughts) and kinds == sorted(
        kinds, key=lambda kind: kind != "thinking"
    )
    thought = "".join(thoughts) if thoughts and whole else ""
    usage = body.get("usage")
    prompt = [
        count
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        if type(count := member(usage, name)) is int
    ]
    return View(
        text=text_of(texts),
        finish_reason=body.get("stop_reason"),
        prompt_tokens=sum(prompt) if prompt else None,
        completion_tokens=member(usage, "output_tokens"),
        logprobs=None,
        reasoning="redacted_thinking" in kinds or not whole,
        reasoning_tokens=None,
        refusal="the host says so" if body.get("stop_reason") == "refusal" else None,
        thought=thought if thought.strip() else None,
        calls=tuple(word_of(call.get("name")) for call in calls),
        call_bytes=sum(
            size_of(call.get("input")) + size_of(call.get("partial_json") or "") for call in calls
        ),
    )


def _assemble(body: str) -> dict[str, Any]:
    """The message that its events add up to: blocks open, grow and close in their order."""
    whole: dict[str, Any] = {}
    blocks = _Blocks()
    ended = False
    for event in read_events(body)[0]:
        value = event.value
        match value.get("type") or event.name:
            case "error":
                return value
            case "message_start":
                message = value.get("message")
                whole = dict(message) if isinstance(message, dict) else {}
            case "content_block_start":
                blocks.open(value)
            case "content_block_delta":
                blocks.grow(value)
            case "content_block_stop":
                blocks.close()
            case "message_delta":
                whole |= _changes(value, whole)
                blocks.count(member(value.get("usage"), "output_tokens"))
            case "message_stop":
                ended = True
            case _:
                continue  # ping, and what may come
    if blocks.is_open or not (ended or whole.get("stop_reason")):
        raise BrokenStream("the stream ends without its last event")
    try:
        blocks.read()
    except TwoReadings as doubt:
        doubt.body = whole | {"content": blocks.held}
        raise
    return whole | {"content": blocks.held}


@dataclass(slots=True)
class _Blocks:
    """Blocks of content, of which one is open at a time."""

    held: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[list[tuple[str, str]]] = field(default_factory=list)  # of each: field and text
    closed: int = 0
    total: int | None = None  # tokens of all, as the host counts

    @property
    def is_open(self) -> bool:
        """Whether a block has begun and not ended."""
        return self.closed != len(self.held)

    def open(self, value: dict[str, Any]) -> None:
        """Begin the next block. Raises BrokenStream when another was due."""
        block = value.get("content_block")
        if value.get("index") != len(self.held) or not isinstance(block, dict):
            raise BrokenStream("a block of content is missing or came twice")
        self.held.append(dict(block))
        self.pieces.append([])

    def grow(self, value: dict[str, Any]) -> None:
        """Add a piece to the open block. Raises BrokenStream when it belongs to none."""
        if value.get("index") != len(self.held) - 1 or not self.is_open:
            raise BrokenStream("a piece of content belongs to no open block")
        delta, call = value.get("delta"), self.held[-1].get("partial_json")
        self.pieces[-1] += [
            (name, piece) for name in ("text", "thinking")
            if isinstance(piece := member(delta, name), str) and piece
        ]  # fmt: skip
        if isinstance(piece := member(delta, "partial_json"), str):
            self.held[-1]["partial_json"] = word_of(call) + piece

    def close(self) -> None:
        """End the open block. Raises BrokenStream when it was not the only one."""
        self.closed += 1
        if self.is_open:
            raise BrokenStream("a block of content closed out of order")

    def count(self, total: object) -> None:
        """Take the host's count of all tokens."""
        self.total = total if type(total) is int else self.total

    def read(self) -> None:
        """Put the pieces of each block together. Raises BrokenStream and TwoReadings."""
        for block, pieces in zip(self.held, self.pieces, strict=True):
            names = dict.fromkeys(name for name, _ in pieces)
            told = [(name, text) for name in names if (text := word_of(block.get(name)))] + pieces
            block |= dict.fromkeys(names, "")
            steps = read_pieces(
                [Piece(texts={name: text}, event=(name, text)) for name, text in told],
                total=self.total,
            )
            for step, (name, text) in zip(steps, told, strict=True):
                if step != "again":
                    block[name] = text if step == "all" else block[name] + text


def _changes(value: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """What an event changes of the message as it is so far."""
    delta, usage = value.get("delta"), value.get("usage")
    changes = dict(delta) if isinstance(delta, dict) else {}
    if isinstance(usage, dict):
        before = member(whole | changes, "usage")
        changes["usage"] = usage if not isinstance(before, dict) else before | usage
    return changes


MESSAGES: Final = Dialect(
    name="messages",
    path="/messages",
    headers={"anthropic-version": _VERSION},
    key_headers=_key_headers,
    body=_body,
    read=_read,
    assemble=_assemble,
)
