"""OpenAI's Responses, in one turn and without anything kept at the host."""

from __future__ import annotations

from typing import Any, Final

from verifier.host.dialects import (
    Ask,
    Dialect,
    Unreadable,
    View,
    bearer,
    items,
    member,
    plain_turns,
    sampling,
    size_of,
    text_of,
    word_of,
)
from verifier.host.event_stream import read_events
from verifier.host.pieces import BrokenStream

LOGPROBS: Final = "message.output_text.logprobs"

#: Events that carry the whole answer as it ended.
_LAST: Final = ("response.completed", "response.incomplete", "response.failed")


def _body(ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": ask.model,
        "input": plain_turns(ask.messages),
        "max_output_tokens": ask.max_tokens,
        **sampling(ask),
        "store": False,
        "stream": ask.stream,
    }
    if ask.top_logprobs is not None:
        body |= {"include": [LOGPROBS], "top_logprobs": ask.top_logprobs}
    return body


def _read(body: dict[str, Any]) -> View:
    output = body.get("output")
    if not isinstance(output, list):
        raise Unreadable("no output in the body")
    calls = [item for item in output if word_of(member(item, "type")).endswith("_call")]
    parts = _parts(output[: output.index(calls[0])] if calls else output)
    said = [part for part in parts if member(part, "type") == "output_text"]
    refusals = [member(part, "refusal") for part in parts if member(part, "type") == "refusal"]
    shows_reasoning, thought = _thought_of(output)
    usage = body.get("usage")
    rows = [row for part in said for row in items(member(part, "logprobs"))]
    return View(
        text=text_of(said),
        finish_reason=member(body.get("incomplete_details"), "reason")
        or ("stop" if body.get("status") == "completed" else body.get("status")),
        prompt_tokens=member(usage, "input_tokens"),
        completion_tokens=member(usage, "output_tokens"),
        logprobs={"content": rows} if rows else None,
        reasoning=shows_reasoning and thought is None,
        reasoning_tokens=member(member(usage, "output_tokens_details"), "reasoning_tokens"),
        refusal=next((text for text in refusals if isinstance(text, str)), None),
        thought=thought,
        calls=tuple(word_of(call.get("name")) or call["type"] for call in calls),
        call_bytes=sum(size_of(call.get("arguments") or call.get("input") or "") for call in calls),
    )


def _parts(spoken: list[Any]) -> list[Any]:
    """The parts of all messages."""
    messages = [item for item in spoken if member(item, "type") == "message"]
    return [part for message in messages for part in items(member(message, "content"))]


def _thought_of(output: list[Any]) -> tuple[bool, str | None]:
    """Whether reasoning is shown, and the thought where it is one, word for word, ahead of all.

    A summary is not what was generated, and a thought after words is not where it was.
    """
    reasoning = [item for item in output if member(item, "type") == "reasoning"]
    shown = [part for item in reasoning for part in items(member(item, "content"))]
    words = text_of(shown) if all(member(p, "type") == "reasoning_text" for p in shown) else None
    whole = bool(words) and len(reasoning) == 1 and output[0] is reasoning[0]
    return bool(reasoning), words if whole else None


def _assemble(body: str) -> dict[str, Any]:
    """The answer as its last event holds it; the numbers on the events show lost or moved ones.

    Some gateways leave the output out of that event: then it is what was done before.
    """
    expected: int | None = None
    done: list[Any] = []
    for event in read_events(body)[0]:
        value = event.value
        number, kind = value.get("sequence_number"), value.get("type") or event.name
        if type(number) is int:
            if expected is not None and number != expected:
                raise BrokenStream(f"event {number} came where {expected} was due")
            expected = number + 1
        if kind == "error":
            return {"error": value.get("error") or value}
        if kind in _LAST:
            whole = value.get("response")
            if not isinstance(whole, dict):
                raise BrokenStream("the last event holds no response")
            return whole if whole.get("output") or not done else whole | {"output": done}
        if kind == "response.output_item.done":
            done.append(value.get("item"))
    raise BrokenStream("the stream ends without its last event")


RESPONSES: Final = Dialect(
    name="responses",
    path="/responses",
    headers={},
    key_headers=bearer,
    body=_body,
    read=_read,
    assemble=_assemble,
)
