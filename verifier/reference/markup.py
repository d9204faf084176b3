"""How a model writes its thoughts and calls its tools, read from its chat template.

Tags are taken only where the template itself writes both; a setting that turns thinking off only
where rendering with it shows that it does.
"""

from __future__ import annotations

from typing import Final, Literal

from verifier.errors import RenderingError
from verifier.prompts import make_prompt
from verifier.records import Message
from verifier.reference.cards import Parsers, Thinking
from verifier.reference.installed import parsers
from verifier.reference.tokenizer import Tokenizer

#: Tags around a thought, as published models write them.
_TAGS: Final = (
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
)  # fmt: skip

#: Settings of templates that turn thinking off, as publishers name them.
_SWITCHES: Final = ("enable_thinking", "thinking")

#: What marks a way of calling tools in a template, and vLLM's parser for it; the first that fits.
_TOOL_MARKS: Final = (
    ("<minimax:tool_call>", "minimax_m2"), ("<seed:tool_call>", "seed_oss"),
    ("<|tool_calls_section_begin|>", "kimi_k2"), ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<arg_key>", "glm45"), ("<function=", "qwen3_coder"), ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"), ("<|channel|>", "openai"), ("<|python_tag|>", "llama3_json"),
)  # fmt: skip

#: The same for thoughts: both marks stand in the template.
_THOUGHT_MARKS: Final = (
    ("<think>", "<minimax:tool_call>", "minimax_m2"),
    ("<think>", "<|tool_calls_section_begin|>", "kimi_k2"),
    ("<think>", "<｜Assistant｜>", "deepseek_r1"),
    ("<think>", "<arg_key>", "glm45"),
    ("<think>", "<|im_start|>", "qwen3"),
    ("[THINK]", "[/THINK]", "mistral"),
    ("<seed:think>", "</seed:think>", "seed_oss"),
    ("<|channel|>", "analysis", "openai_gptoss"),
)  # fmt: skip

_ASKED: Final = (Message(role="user", content="Hello."),)


def find_thinking(tokenizer: Tokenizer) -> Thinking | None:
    """The tags around a model's thoughts and what turns thinking off; None: its template writes no
    known tags."""
    template = tokenizer.template or ""
    for opening, closing in _TAGS:
        if opening in template and closing in template:
            found = Thinking(open=opening, close=closing)
            return found.model_copy(update={"switch_off": _switch_off(tokenizer, found)})
    return None


def hints_at_thinking(tokenizer: Tokenizer) -> str | None:
    """The tags for which a tokenizer has tokens; None: it has none such."""
    for pair in _TAGS:
        ids = [tokenizer.encode_prompt(tag) for tag in pair]
        if all(len(one) == 1 for one in ids):
            return " and ".join(pair)
    return None


def _switch_off(tokenizer: Tokenizer, tags: Thinking) -> dict[str, bool | str]:
    """The first setting under which a prompt leaves no thought to be written.

    Either the prompt then holds a whole thought, an empty one, which it did not before, or it no
    longer ends by opening one.
    """
    try:
        before = tokenizer.render_text(make_prompt(_ASKED))
        for name in _SWITCHES:
            after = tokenizer.render_text(make_prompt(_ASKED, settings={name: False}))
            closed = after.count(tags.close) > before.count(tags.close)
            opened = [text.rstrip().endswith(tags.open) for text in (before, after)]
            if after != before and not opened[1] and (closed or opened[0]):
                return {name: False}
    except RenderingError:
        pass  # a template that refuses the setting has no such switch
    return {}


def suggest_parsers(template: str) -> Parsers:
    """vLLM's parsers for what a template writes, among those that are installed."""
    tool = next((name for mark, name in _TOOL_MARKS if mark in template), None)
    reasoning = next(
        (name for one, other, name in _THOUGHT_MARKS if one in template and other in template),
        None,
    )
    return Parsers(reasoning=_among("reasoning", reasoning), tool=_among("tool", tool))


def _among(what: Literal["reasoning", "tool"], name: str | None) -> str | None:
    known = parsers(what)
    return name if known is not None and name in known else None
