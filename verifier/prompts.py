"""Conversations in the two shapes others read: what an API takes, and what a chat template reads.

They differ in small things that hosts get wrong: on the wire the arguments of a tool call are a
text, in a template an object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verifier.records import Message, Probe, Prompt, Tool

#: A whole conversation to the prompt that the reference's template makes of it.
Render = Callable[[tuple[Message, ...]], str | tuple[int, ...]]


def prompt_of(probe: Probe) -> Prompt:
    """A probe as its template reads it, up to where the reply begins."""
    return make_prompt(
        probe.messages, tools=probe.tools, settings=dict(probe.settings), today=probe.today
    )


def make_prompt(
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    settings: Mapping[str, bool | str] | None = None,
    today: str | None = None,
) -> Prompt:
    """A conversation as templates read it."""
    return Prompt(
        messages=tuple(_for_template(message) for message in messages),
        tools=tuple(_function(tool) for tool in tools),
        settings=settings or {},
        today=today,
    )


def _for_template(message: Message) -> dict[str, Any]:
    shaped = wire_message(message)
    if message.reasoning is not None:  # templates of different publishers read different names
        shaped["reasoning"] = message.reasoning
    for call in shaped.get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return shaped


def wire_message(message: Message) -> dict[str, Any]:
    """A message as OpenAI-compatible APIs take it."""
    shaped: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        shaped["reasoning_content"] = message.reasoning
    if message.tool_calls:
        shaped["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shaped["tool_call_id"] = message.tool_call_id
    return shaped


def wire_extras(probe: Probe) -> dict[str, Any]:
    """Tools and template settings of a probe as keys of a request body; none for most probes."""
    extras: dict[str, Any] = {}
    if probe.tools:
        extras["tools"] = [_function(tool) for tool in probe.tools]
    settings = dict(probe.settings)
    if "reasoning_effort" in settings:
        extras["reasoning_effort"] = settings.pop("reasoning_effort")
    if settings:
        extras["chat_template_kwargs"] = settings
    return extras


def _function(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": json.loads(tool.parameters),
        },
    }
