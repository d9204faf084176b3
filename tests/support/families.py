"""Tokenizers of several families: bytes, a few pairs, and the family's real control tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from models import save_tokenizer

from verifier.records import Message, Probe, Tool, ToolCall
from verifier.reference.renderings.catalogue import family_template
from verifier.reference.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's control tokens; of its template, only the name: the text ships."""

    name: str
    bos: str | None
    eos: str
    others: tuple[str, ...]


FAMILIES = (
    Family(name="chatml", bos=None, eos="<|im_end|>", others=("<|im_start|>", "<|endoftext|>")),
    Family(
        name="llama3", bos="<|begin_of_text|>", eos="<|eot_id|>",
        others=("<|start_header_id|>", "<|end_header_id|>"),
    ),
    Family(
        name="mistral", bos="<s>", eos="</s>",
        others=(
            "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
        ),
    ),
    Family(name="gemma", bos="<bos>", eos="<end_of_turn>", others=("<start_of_turn>",)),
    Family(
        name="deepseek", bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>",
        others=("<｜User｜>", "<｜Assistant｜>"),
    ),
    Family(
        name="minimax-m1", bos="<begin_of_document>", eos="<end_of_sentence>",
        others=("<beginning_of_sentence>",),
    ),
    Family(name="minimax-m2", bos="]~!b[", eos="[e~[", others=("]~b]",)),
    Family(
        name="harmony", bos=None, eos="<|return|>",
        others=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
    ),
)  # fmt: skip


def save_family(directory: Path, family: Family) -> Path:
    """Write the tokenizer of a family; the directory."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    save_tokenizer(directory)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    names = (*((family.bos,) if family.bos else ()), family.eos, *family.others)
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": family.eos}
    if family.bos:
        config["bos_token"] = family.bos
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(family_template(family.name))
    return directory


def make_family(directory: Path, name: str) -> Tokenizer:
    """The tokenizer of a family by name."""
    return Tokenizer(save_family(directory, next(f for f in FAMILIES if f.name == name)))


WEATHER = Tool(
    name="weather",
    description="The weather of a town",
    parameters='{"type":"object","properties":{"town":{"type":"string"},"days":{"type":"integer"}}}',
)


def talk(*turns: tuple[str, str], **more: object) -> Probe:
    """A probe from pairs of role and content."""
    messages = tuple(Message(role=role, content=text) for role, text in turns)  # type: ignore[arg-type]
    return Probe(id="p", kind="test", messages=messages, max_tokens=8, **more)  # type: ignore[arg-type]


def tool_talk(**more: object) -> Probe:
    """A conversation in which a tool was called, with what the assistant thought."""
    call = ToolCall(id="functions.weather:0", name="weather", arguments='{"town":"Oslo","days":2}')
    messages = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hello "),
        Message(role="assistant", content="Hi.", reasoning="They greet me."),
        Message(role="user", content="Rain in Oslo?"),
        Message(role="assistant", content="", reasoning="I should look.", tool_calls=(call,)),
        Message(role="tool", content="3 mm", tool_call_id=call.id),
    )
    return Probe(
        id="tools",
        kind="test",
        messages=messages,
        max_tokens=8,
        tools=(WEATHER,),
        **more,  # type: ignore[arg-type]
    )
