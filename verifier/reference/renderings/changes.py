"""What a fault does to a conversation before its template, or to the text that the template made.

Each function is pure and takes what it changes as its first argument. One that finds nothing to
change gives back what it was given: then the fault does not show on this conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, Final

from verifier.errors import RenderingError
from verifier.records import Prompt
from verifier.reference.reader import Renderer

Message = Mapping[str, Any]


PromptChange = Callable[[Prompt], Prompt]
TextChange = Callable[[str, Prompt, Renderer], str]


# -- before the template -----------------------------------------------------------------------


def each_content(prompt: Prompt, change: Callable[[str], str], *roles: str) -> Prompt:
    """Change the content of every message, or of those with one of `roles`."""
    return replace(
        prompt,
        messages=tuple(
            {**m, "content": change(m["content"])} if not roles or m["role"] in roles else m
            for m in prompt.messages
        ),
    )


def as_parts(text: str) -> str:
    """Content as a careless template shows a list of parts."""
    return str([{"type": "text", "text": text}])


def without_system(prompt: Prompt) -> Prompt:
    """As if no system message had been sent."""
    return replace(prompt, messages=_without_role(prompt.messages, "system"))


def system_in_first_user(prompt: Prompt) -> Prompt:
    """The system message becomes the beginning of the first user turn."""
    system = _system(prompt)
    if system is None:
        return prompt
    rest = list(_without_role(prompt.messages, "system"))
    first = next((n for n, m in enumerate(rest) if m["role"] == "user"), None)
    if first is not None:
        rest[first] = {**rest[first], "content": f"{system}\n\n{rest[first]['content']}"}
    return replace(prompt, messages=tuple(rest))


def with_default_system(prompt: Prompt, text: str) -> Prompt:
    """A system message where none was sent."""
    if _system(prompt) is not None:
        return prompt
    return replace(prompt, messages=({"role": "system", "content": text}, *prompt.messages))


def with_hidden_system(prompt: Prompt, text: str) -> Prompt:
    """A system prompt in front of whatever was sent."""
    system = _system(prompt)
    joined = text if not system else f"{text}\n\n{system}"
    rest = _without_role(prompt.messages, "system")
    return replace(prompt, messages=({"role": "system", "content": joined}, *rest))


def last_turn_only(prompt: Prompt) -> Prompt:
    """The history is dropped: the system message and the last user turn remain."""
    head, turns = _turns(prompt)
    return replace(prompt, messages=(*head, *turns[-1])) if turns else prompt


def cut_from_front(prompt: Prompt) -> Prompt:
    """The earliest half of the turns before the last is dropped, one at least."""
    head, turns = _turns(prompt)
    dropped = len(turns) // 2
    return replace(prompt, messages=(*head, *_flat(turns[dropped:])))


def cut_from_middle(prompt: Prompt) -> Prompt:
    """The first and the last turn remain."""
    head, turns = _turns(prompt)
    kept = turns if len(turns) < 3 else [turns[0], turns[-1]]
    return replace(prompt, messages=(*head, *_flat(kept)))


def without_reasoning(prompt: Prompt) -> Prompt:
    """What the assistant thought is not in the history."""
    names = ("reasoning", "reasoning_content")
    return replace(
        prompt,
        messages=tuple({k: v for k, v in m.items() if k not in names} for m in prompt.messages),
    )


def reasoning_in_content(prompt: Prompt) -> Prompt:
    """What the assistant thought is kept in its words, where a template cannot drop it."""

    def keep(m: Message) -> Message:
        thought = m.get("reasoning_content")
        if thought is None:
            return m
        return {**m, "content": f"<think>\n{thought}\n</think>\n\n{m['content']}"}

    kept = replace(prompt, messages=tuple(keep(m) for m in prompt.messages))
    return without_reasoning(kept)


def with_settings(prompt: Prompt, *dropped: str, **forced: bool | str) -> Prompt:
    """Template settings dropped, or forced whatever was asked."""
    kept = {name: value for name, value in prompt.settings.items() if name not in dropped}
    return replace(prompt, settings={**kept, **forced})


def effort_as_thinking(prompt: Prompt) -> Prompt:
    """The effort switches thinking, where none of the template's own switches is set."""
    effort = prompt.settings.get("reasoning_effort")
    if effort is None or "enable_thinking" in prompt.settings:
        return prompt
    return with_settings(prompt, enable_thinking=effort != "none")


def tools_sorted(prompt: Prompt) -> Prompt:
    """The keys of each tool's schema in alphabetical order."""
    ordered = tuple(json.loads(json.dumps(tool, sort_keys=True)) for tool in prompt.tools)
    return replace(prompt, tools=ordered)


def without_tools(prompt: Prompt) -> Prompt:
    """As if no tool had been offered."""
    return replace(prompt, tools=())


def tool_results_as_user(prompt: Prompt) -> Prompt:
    """What a tool gave comes as the words of the user."""
    return replace(
        prompt,
        messages=tuple(
            {"role": "user", "content": m["content"]} if m["role"] == "tool" else m
            for m in prompt.messages
        ),
    )


def tool_ids_rewritten(prompt: Prompt) -> Prompt:
    """Calls get ids of another vendor's form, the results with them."""
    ids = [call["id"] for m in prompt.messages for call in m.get("tool_calls", ())]
    new = {old: f"call_{n:024d}" for n, old in enumerate(dict.fromkeys(ids))}

    def rename(m: Message) -> Message:
        changed = dict(m)
        if "tool_calls" in m:
            changed["tool_calls"] = [{**c, "id": new[c["id"]]} for c in m["tool_calls"]]
        if "tool_call_id" in m:
            changed["tool_call_id"] = new.get(m["tool_call_id"], m["tool_call_id"])
        return changed

    return replace(prompt, messages=tuple(rename(m) for m in prompt.messages))


def each_arguments(prompt: Prompt, change: Callable[[Any], Any]) -> Prompt:
    """Change the arguments of every tool call."""

    def reshape(m: Message) -> Message:
        if "tool_calls" not in m:
            return m
        calls = [
            {**c, "function": {**c["function"], "arguments": change(c["function"]["arguments"])}}
            for c in m["tool_calls"]
        ]
        return {**m, "tool_calls": calls}

    return replace(prompt, messages=tuple(reshape(m) for m in prompt.messages))


def other_day(prompt: Prompt, *, days: int) -> Prompt:
    """A template that prints the date prints another; a prompt without a day is not changed."""
    if prompt.today is None:
        return prompt
    moved = date.fromisoformat(prompt.today) + timedelta(days=days)
    return replace(prompt, today=moved.isoformat())


# -- after the template ------------------------------------------------------------------------


def bos_doubled(text: str, _prompt: Prompt, renderer: Renderer) -> str:
    """The tokenizer adds a token that the template has written already."""
    return renderer.bos + text if text.startswith(renderer.bos) else text


def bos_missing(text: str, _prompt: Prompt, renderer: Renderer) -> str:
    """The token that begins a text is not there."""
    return text.removeprefix(renderer.bos)


def end_of_turn_missing(text: str, prompt: Prompt, renderer: Renderer) -> str:
    """Nothing ends the assistant's turns of the history."""
    for message in prompt.messages:
        if message["role"] == "assistant":
            content = message["content"]
            text = text.replace(f"{content}{renderer.eos}", content, 1) if content else text
    return text


def default_system_dropped(text: str, prompt: Prompt, renderer: Renderer) -> str:
    """Without the system prompt that the template adds where none was sent.

    What the template writes in front of a first user turn, but not of a later one, is the default;
    a token that begins every text stays.
    """
    if _system(prompt) is not None:
        return text
    asked = {"role": "user", "content": "Again?"}
    history = (asked, {"role": "assistant", "content": "Yes."})

    def spelled(*messages: Message) -> str:
        bare = replace(prompt, messages=messages, generation_prompt=False, tools=())
        return renderer.render_text(bare)

    try:
        turn = spelled(*history, asked).removeprefix(spelled(*history))
        first = spelled(asked)
    except RenderingError:
        return text
    default = first.removesuffix(turn)
    if default == first or not text.startswith(default):
        return text
    starts_with_bos = default.startswith(renderer.bos) and not turn.startswith(renderer.bos)
    return (renderer.bos if starts_with_bos else "") + text.removeprefix(default)


#: A JSON value, and the indent that a template gave it, to its spelling.
Spell = Callable[[Any, int | None], str]

#: Shorter than this a value may stand in a prompt for other reasons.
_SPELLED: Final = 12


def json_spelled(text: str, prompt: Prompt, _renderer: Renderer, *, spell: Spell) -> str:
    """Tools, and the arguments of calls, as another writer of JSON spells them.

    The whole list first, then each tool, its function, its parameters: templates write one of them.
    """
    values: list[Any] = [list(prompt.tools)] if prompt.tools else []
    for tool in prompt.tools:
        values += [tool, tool["function"], tool["function"]["parameters"]]
    for message in prompt.messages:
        values += [call["function"]["arguments"] for call in message.get("tool_calls", ())]
    for value in values:
        for indent in (None, 4, 2):
            plain = json.dumps(value, ensure_ascii=False, indent=indent)
            if len(plain) >= _SPELLED and plain in text:
                text = text.replace(plain, spell(value, indent))
    return text


def spell_json(
    value: Any, indent: int | None, *, compact: bool = False, ordered: bool = False,
    ascii_only: bool = False, escaped: str = "",
) -> str:  # fmt: skip
    """A JSON value as some writer spells it; `escaped` are signs written as \\u00.., but for /."""
    found = json.dumps(
        value, ensure_ascii=ascii_only, sort_keys=ordered, indent=None if compact else indent,
        separators=(",", ":") if compact else None,
    )  # fmt: skip
    for sign in escaped:
        found = found.replace(sign, "\\/" if sign == "/" else f"\\u{ord(sign):04x}")
    return found


def without_template(_text: str, prompt: Prompt, _renderer: Renderer) -> str:
    """The words alone, a line each."""
    return "\n".join(m["content"] for m in prompt.messages if m["content"])


# -- parts of a conversation -------------------------------------------------------------------


def _system(prompt: Prompt) -> str | None:
    texts = [m["content"] for m in prompt.messages if m["role"] == "system"]
    return texts[0] if texts else None


def _without_role(messages: Sequence[Message], role: str) -> tuple[Message, ...]:
    return tuple(m for m in messages if m["role"] != role)


def _turns(prompt: Prompt) -> tuple[list[Message], list[list[Message]]]:
    """The system messages, and the rest cut before each user message."""
    head = [m for m in prompt.messages if m["role"] == "system"]
    turns: list[list[Message]] = []
    for message in prompt.messages:
        if message["role"] == "user":
            turns.append([])
        if message["role"] != "system" and turns:
            turns[-1].append(message)
    return head, turns


def _flat(turns: Sequence[Sequence[Message]]) -> list[Message]:
    return [message for turn in turns for message in turn]
