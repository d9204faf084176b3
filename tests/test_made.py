"""Models that recipes made: they load, speak, and are of the kind that they are said to be.

Each test is skipped where its model was not made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from verifier.lab.made.recipes import RECIPES
from verifier.lab.made.tools import SKILLS
from verifier.prompts import make_prompt
from verifier.records import REFERENCE, GenerateRequest, Message, ScoreRequest
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

#: Questions, and what a sensible answer has in it.
ASKED = (
    ("What is the capital of France?", "Paris"),
    ("Who wrote Hamlet?", "Shakespeare"),
    ("Write a short poem about rain.", "rain"),
    ("Write a Python function that adds two numbers.", "def "),
)

Made = Callable[[str], Path]


def replies(
    folder: Path, asked: Sequence[str], *, settings: Mapping[str, bool | str] | None = None,
    tools: bool = False, max_tokens: int = 64,
) -> list[str]:  # fmt: skip
    """Greedy replies to these questions, with every tool at hand where `tools` says so."""
    tokenizer = Tokenizer(folder)
    engine = load_engine("transformers", folder, tokenizer)
    prompts = [
        make_prompt(
            [Message(role="user", content=text)], settings=settings,
            tools=[skill.tool() for skill in SKILLS[:2]] if tools else (),
        )
        for text in asked
    ]  # fmt: skip
    ids = [tokenizer.encode_prompt(tokenizer.render_text(prompt)) for prompt in prompts]
    made = engine.generate([GenerateRequest(prompt_ids=i, max_tokens=max_tokens) for i in ids])
    return [tokenizer.decode(one.token_ids) for one in made]


@pytest.mark.parametrize("name", RECIPES)
def test_a_made_model_answers_sensibly(made: Made, name: str) -> None:
    """Most of four questions by the word that any answer has, none with one word over and over."""
    told = replies(made(name), [asked for asked, _ in ASKED])
    right = [word.lower() in said.lower() for (_, word), said in zip(ASKED, told, strict=True)]

    assert sum(right) >= 3, told
    assert not [said for said in told if re.search(r"(\b\w+\b)(\W+\1){5}", said)]


@pytest.mark.parametrize("name", ["experts", "experts-fp8", "experts-int4", "byte-fallback"])
def test_a_variant_moves_a_made_model_and_is_taken_back(made: Made, name: str) -> None:
    """Rounding to 4 bits is loaded over whatever was published, and leaves no trace."""
    folder = made(name)
    tokenizer = Tokenizer(folder)
    engine = load_engine("transformers", folder, tokenizer)
    asked = [ScoreRequest(
        prompt_ids=tokenizer.encode_prompt("The capital of France is"),
        reply_ids=tokenizer.encode(" Paris, a city on the Seine."),
    )]  # fmt: skip
    before = engine.score(asked)
    engine.load_variant("int4-asym-g32")
    moved = engine.score(asked)
    engine.load_variant(REFERENCE)

    assert moved != before
    assert engine.score(asked) == before


def test_the_thinking_model_thinks_unless_told_otherwise(made: Made) -> None:
    """Mostly a thought in tags first, and then, where that comes to its end, an answer; with the
    switch off the answer alone."""
    asked = [text for text, _ in ASKED]
    thinking = replies(made("thinking"), asked, max_tokens=96)
    silent = replies(made("thinking"), asked, settings={"enable_thinking": False})
    whole = [said for said in thinking if re.match(r"<think>\n.+\n</think>\n\n\S", said)]

    assert sum(said.startswith("<think>\n") for said in thinking) >= 3, thinking
    assert len(whole) >= 2, thinking
    assert not [said for said in silent if "think>" in said]


def test_the_tool_model_calls_the_right_tool(made: Made) -> None:
    """In the markup that its template shows, with the place that was asked for; where none is at
    hand it answers. (With one at hand it calls it for nearly anything.)"""
    places = ("Lisbon", "Osaka", "Vienna")  # the last one in no lesson
    told = replies(
        made("tools"), [f"What is the weather in {place}?" for place in places], tools=True
    )
    plain = replies(made("tools"), ["Who wrote Hamlet?"])
    calls = [re.fullmatch(r"<tool_call>\n(.+)\n</tool_call>", said) for said in told]
    read = [json.loads(call[1]) for call in calls if call]

    assert [call["name"] for call in read].count("get_weather") >= 2, told
    assert sum(call["arguments"] == {"city": p} for call, p in zip(read, places, strict=False)) >= 2
    assert "<tool_call>" not in plain[0]
