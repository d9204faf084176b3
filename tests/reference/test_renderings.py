"""The catalogue: what each rendering does, on the templates of eight families."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, make_family, talk, tool_talk
from jinja2.utils import htmlsafe_json_dumps

from verifier.errors import ConfigError, RenderingError
from verifier.probes import TOOLS
from verifier.prompts import prompt_of, wire_extras, wire_message
from verifier.records import REFERENCE, Message, Probe, Prompt
from verifier.reference.renderings import changes
from verifier.reference.renderings.catalogue import (
    SERVED_HIDDEN,
    catalogue,
    expressible,
    family_names,
    render,
    render_probe,
    served,
)
from verifier.reference.tokenizer import Tokenizer

ENTRIES = catalogue()
ONE = talk(("user", "Hi."))
LONG = talk(
    ("system", "Be brief."), ("user", " One "), ("assistant", "Two"), ("user", "Three"),
    ("assistant", ""), ("user", "Four"), ("assistant", "Five"), ("user", "Six"),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One per family."""
    base = tmp_path_factory.mktemp("families")
    return {family.name: make_family(base / family.name, family.name) for family in FAMILIES}


@pytest.fixture
def chatml(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["chatml"]


def text(name: str, probe: Probe, tokenizer: Tokenizer) -> str:
    found = render_probe(ENTRIES[name], probe, tokenizer)
    assert found is not None
    return found.text


# -- the entries -------------------------------------------------------------------------------


def test_every_fault_says_what_it_is_and_what_to_do() -> None:
    """A name alone mends nothing; an honest way to render needs no advice."""
    for entry in ENTRIES.values():
        assert entry.summary
        assert bool(entry.advice) == (entry.kind == "fault")
        assert "\n" not in entry.summary + entry.advice


def test_the_published_rendering_is_that_of_the_tokenizer(tokenizers: dict[str, Tokenizer]) -> None:
    """The column that all others are held against, in every family."""
    for tokenizer in tokenizers.values():
        found = render(ENTRIES[REFERENCE], prompt_of(ONE), tokenizer)
        assert found.ids == tokenizer.render(ONE.messages)
        assert tokenizer.encode_prompt(found.text) == found.ids


EXPECTED = {
    "generation-prompt-missing": "<|im_start|>user\nHi.<|im_end|>\n",
    "default-system-replaced": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
    "no-template": "Hi.",
    "content-as-parts": "<|im_start|>user\n[{'type': 'text', 'text': 'Hi.'}]<|im_end|>\n"
    "<|im_start|>assistant\n",
    "space-added": "<|im_start|>user\n Hi.<|im_end|>\n<|im_start|>assistant\n",
    "newline-added": "<|im_start|>user\nHi.\n<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_rendering_spells_its_fault(name: str, chatml: Tokenizer) -> None:
    """Written out by hand for the plainest template."""
    assert text(name, ONE, chatml) == EXPECTED[name]


def test_history_is_cut_in_three_ways(chatml: Tokenizer) -> None:
    """Only the last turn; the earlier half; the middle. The system message stays."""
    published = text(REFERENCE, LONG, chatml)

    def kept(name: str) -> list[str]:
        found = text(name, LONG, chatml)
        assert found.startswith("<|im_start|>system\nBe brief.")
        words = ("One", "Two", "Three", "Four", "Five", "Six")
        assert all(word in published for word in words)
        return [word for word in words if word in found]

    assert kept("last-turn-only") == ["Six"]
    assert kept("history-cut-front") == ["Four", "Five", "Six"]
    assert kept("history-cut-middle") == ["One", "Two", "Six"]


def test_system_messages_are_merged_ignored_or_led_by_another(chatml: Tokenizer) -> None:
    """Three ways to mistreat one."""
    assert "user\nBe brief.\n\n One <|im_end|>" in text("system-merged", LONG, chatml)
    assert "Be brief." not in text("system-ignored", LONG, chatml)
    injected = text("system-injected", LONG, chatml)
    assert injected.endswith(text(REFERENCE, LONG, chatml).removeprefix("<|im_start|>system\n"))


def test_a_served_hidden_prompt_is_not_one_of_those_that_stand_for_it(chatml: Tokenizer) -> None:
    """Else the benchmark would know the words that a host hides."""
    known = [e for e in ENTRIES.values() if e.stands_for == "system-injected"]
    hidden = {render(served(e.name, ENTRIES), prompt_of(ONE), chatml).ids for e in known}

    assert len(known) == 8
    assert len(hidden) == len(SERVED_HIDDEN)
    assert not hidden & {render(e, prompt_of(ONE), chatml).ids for e in known}


def test_white_space_is_stripped_on_one_side_or_both(chatml: Tokenizer) -> None:
    """In front it is an honest difference, behind it is not."""
    assert "user\nOne <|im_end|>" in text("leading-whitespace-stripped", LONG, chatml)
    assert "user\nOne<|im_end|>" in text("whitespace-stripped", LONG, chatml)
    assert ENTRIES["leading-whitespace-stripped"].kind == "valid"


def test_empty_content_becomes_a_list_alone(chatml: Tokenizer) -> None:
    """Other content stays as it is."""
    found = text("empty-content-as-parts", LONG, chatml)

    assert found.count("[{'type': 'text', 'text': ''}]") == 1
    assert " One " in found


def test_the_end_of_turn_is_taken_from_the_history_only(chatml: Tokenizer) -> None:
    """From turns of the assistant; those of the user keep theirs."""
    found = text("end-of-turn-missing", LONG, chatml)

    assert "assistant\nTwo\n<|im_start|>user" in found
    assert "user\nThree<|im_end|>" in found


def test_the_default_system_prompt_is_dropped_whatever_the_template(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """Found by comparing what stands in front of a first and of a later turn."""
    minimax = text("default-system-dropped", ONE, tokenizers["minimax-m2"])
    assert minimax == "]~!b[]~b]user\nHi.[e~[\n]~b]ai\n<think>\n"
    for name in ("chatml", "mistral", "gemma", "deepseek"):
        published = text(REFERENCE, ONE, tokenizers[name])
        assert text("default-system-dropped", ONE, tokenizers[name]) == published


def test_bos_is_doubled_and_dropped_where_the_template_writes_one(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """By exactly one token; not at all where there is none."""
    for family in FAMILIES:
        tokenizer = tokenizers[family.name]
        published = render(ENTRIES[REFERENCE], prompt_of(ONE), tokenizer).ids
        more = render(ENTRIES["bos-doubled"], prompt_of(ONE), tokenizer).ids
        less = render(ENTRIES["bos-missing"], prompt_of(ONE), tokenizer).ids
        if family.bos:
            assert more == (published[0], *published)
            assert less == published[1:]
        else:
            assert more == less == published


TOOL_FAULTS = (
    "tool-keys-sorted", "tools-dropped", "tool-results-as-user", "arguments-as-text",
    "arguments-as-object", "reasoning-dropped", "reasoning-kept",
)  # fmt: skip


@pytest.mark.parametrize("name", TOOL_FAULTS)
def test_faults_of_tools_and_reasoning_show_where_the_template_has_them(
    name: str, chatml: Tokenizer
) -> None:
    """A conversation without tools or reasoning cannot show them."""
    entry = [ENTRIES[name]]

    assert expressible(entry, [tool_talk()], chatml)
    assert not expressible(entry, [ONE], chatml)


SPELLED = ("compact", "compact-sorted", "ascii", "html", "compact-html", "slashes")


def test_every_spelling_of_tools_differs_from_every_other(chatml: Tokenizer) -> None:
    """On the tools that questions offer; none shows where nothing is offered."""
    offering = replace(ONE, tools=TOOLS)
    names = [REFERENCE, "tool-keys-sorted", *(f"tool-json-{name}" for name in SPELLED)]

    assert len({text(name, offering, chatml) for name in names}) == len(names)
    assert not expressible([ENTRIES[f"tool-json-{name}"] for name in SPELLED], [ONE], chatml)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("compact", '{"b":"é/<\'","a":[1,{}]}'),
        ("compact-sorted", '{"a":[1,{}],"b":"é/<\'"}'),
        ("ascii", '{"b": "\\u00e9/<\'", "a": [1, {}]}'),
        ("html", '{"a": [1, {}], "b": "\\u00e9/\\u003c\\u0027"}'),
        ("compact-html", '{"b":"é/\\u003c\\u0027","a":[1,{}]}'),
        ("slashes", '{"b":"é\\/<\'","a":[1,{}]}'),
    ],
)
def test_json_is_spelled_as_each_writer_does(name: str, expected: str) -> None:
    """Known answers; the second is what Go gives, the fourth Jinja's own filter."""
    entry = ENTRIES[f"tool-json-{name}"]
    assert isinstance(entry.rewrite, partial)
    value = {"b": "é/<'", "a": [1, {}]}
    spelled = entry.rewrite.keywords["spell"](value, None)

    assert spelled == expected
    assert json.loads(spelled) == value
    if name == "html":
        assert spelled == str(htmlsafe_json_dumps(value, sort_keys=True))


def test_ids_of_calls_are_rewritten_where_the_template_writes_them(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """Mistral's does; a call and its result keep one id."""
    found = text("tool-ids-rewritten", tool_talk(), tokenizers["mistral"])

    assert "functions.weather:0" in text(REFERENCE, tool_talk(), tokenizers["mistral"])
    assert "functions.weather:0" not in found
    assert found.count("call_000000000000000000000000") == 2


def test_switches_are_ignored_on_and_off(tokenizers: dict[str, Tokenizer]) -> None:
    """Whatever was asked for; the effort falls back to the template's own."""
    off = replace(ONE, settings=(("enable_thinking", False),))
    chatml = tokenizers["chatml"]

    assert text(REFERENCE, off, chatml).endswith("</think>\n\n")
    assert text("thinking-forced-on", off, chatml).endswith("assistant\n")
    assert text("thinking-forced-off", ONE, chatml).endswith("</think>\n\n")
    high = replace(ONE, settings=(("reasoning_effort", "high"),), today="2026-03-01")
    harmony = tokenizers["harmony"]
    assert "Reasoning: high" in text(REFERENCE, high, harmony)
    assert "Reasoning: medium" in text("reasoning-effort-ignored", high, harmony)
    assert text("effort-as-thinking", replace(ONE, settings=(("reasoning_effort", "none"),)),
                chatml).endswith("</think>\n\n")  # fmt: skip


def test_a_date_is_pinned_and_its_neighbours_are_tried(tokenizers: dict[str, Tokenizer]) -> None:
    """The prompt of a day can be rendered on any other day."""
    dated = replace(ONE, today="2026-03-01")
    llama = tokenizers["llama3"]

    assert "Today Date: 01 Mar 2026" in text(REFERENCE, dated, llama)
    assert "Today Date: 28 Feb 2026" in text("date-day-before", dated, llama)
    assert "Today Date: 02 Mar 2026" in text("date-day-after", dated, llama)
    assert text("date-day-after", ONE, llama) == text(REFERENCE, ONE, llama)


def test_an_earlier_revision_and_an_alternative_come_from_the_card(chatml: Tokenizer) -> None:
    """Their sources are the card's, their kinds differ."""
    entries = catalogue(earlier={"v0": "old {{ messages[0].content }}"}, valid={"b": "new"})

    found = render_probe(entries["earlier-revision-v0"], ONE, chatml)
    assert found is not None
    assert found.text == "old Hi."
    assert entries["alternative-b"].kind == "valid"
    assert "v0" in entries["earlier-revision-v0"].advice


def test_every_entry_is_expressible_in_some_family(tokenizers: dict[str, Tokenizer]) -> None:
    """No entry is there for show."""
    probes = [
        ONE, LONG, replace(ONE, settings=(("enable_thinking", False),)), replace(ONE, tools=TOOLS),
        replace(tool_talk(), settings=(("reasoning_effort", "none"),), today="2026-03-01"),
    ]  # fmt: skip
    found = {
        entry.name
        for tokenizer in tokenizers.values()
        for entry in expressible(ENTRIES.values(), probes, tokenizer)
    }

    assert set(ENTRIES) - found == {REFERENCE}


def test_what_equals_the_published_rendering_everywhere_is_not_expressible(
    chatml: Tokenizer,
) -> None:
    """Tools cannot be mistreated where none are offered, nor a history where there is none."""
    names = {entry.name for entry in expressible(ENTRIES.values(), [ONE], chatml)}

    assert "family-llama3" in names
    assert not names & {REFERENCE, "tools-dropped", "last-turn-only", "family-chatml"}


@pytest.mark.slow
def test_entries_of_the_embedded_model(embedded: Path) -> None:
    """Its template knows no tools, no reasoning and no date; the rest can be expressed."""
    names = {e.name for e in expressible(ENTRIES.values(), [ONE, LONG], Tokenizer(embedded))}

    assert names >= {
        "generation-prompt-missing", "bos-doubled", "bos-missing", "default-system-dropped",
        "default-system-replaced", "system-injected", "system-merged", "system-ignored",
        "no-template", "content-as-parts", "empty-content-as-parts", "whitespace-stripped",
        "space-added", "newline-added", "end-of-turn-missing", "end-of-turn-ignored",
        "last-turn-only", "history-cut-front", "history-cut-middle", "family-llama3",
    }  # fmt: skip
    assert not names & {"tools-dropped", "date-day-before", "thinking-forced-on"}


# -- bad input ---------------------------------------------------------------------------------


def test_a_template_that_raises_is_named_in_one_line(chatml: Tokenizer) -> None:
    """Whatever it raises; the entry then has no prompt on this probe."""
    for source in ("{{ raise_exception('no\nsystem') }}", "{{ messages[9].content + 1 }}", "{% if"):
        prompt = replace(prompt_of(ONE), template=source)
        with pytest.raises(RenderingError, match="refused a conversation of 1 messages") as refused:
            chatml.render_text(prompt)
        assert "\n" not in str(refused.value)
    entries = catalogue(valid={"strict": "{{ raise_exception('no') }}"})
    assert render_probe(entries["alternative-strict"], ONE, chatml) is None


def test_templates_run_in_a_sandbox(chatml: Tokenizer) -> None:
    """A template is foreign code: it reaches nothing but the conversation."""
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}"

    with pytest.raises(RenderingError, match="SecurityError"):
        chatml.render_text(replace(prompt_of(ONE), template=source))


@pytest.mark.parametrize(
    ("file", "names"),
    [("", "no chat template"), ("tekken.json", "mistral-common"), ("harmony", "openai-harmony")],
)
def test_a_model_without_a_template_is_told_what_renders_it(
    tmp_path: Path, file: str, names: str
) -> None:
    """Some families are rendered by their publisher's own library."""
    make_family(tmp_path, "harmony" if file == "harmony" else "mistral")
    (tmp_path / "chat_template.jinja").unlink()
    if file == "tekken.json":
        (tmp_path / file).write_text("{}")

    with pytest.raises(RenderingError, match=names):
        Tokenizer(tmp_path).render(ONE.messages)


def test_an_unknown_rendering_is_refused_with_those_there_are() -> None:
    """One line for the command line."""
    with pytest.raises(ConfigError, match=r"no rendering 'x'; there are reference, "):
        served("x", ENTRIES)
    assert "chatml" in family_names()


# -- formats that servers build in ---------------------------------------------------------------

SAID = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Yes?"), ("user", "Why?"))
BUILT_IN = {
    "llama2-sys-bos": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST]Yes?</s><s>"
    "[INST] Why? [/INST]",
    "mistral-v1": " [INST] Be brief.\n\nHi. [/INST] Yes?</s> [INST] Why? [/INST]",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi.</s>\n<|assistant|>\nYes?</s>\n"
    "<|user|>\nWhy?</s>\n<|assistant|>\n",
    "monarch": "system\nBe brief.</s>\n<s>user\nHi.</s>\n<s>assistant\nYes?</s>\n"
    "<s>user\nWhy?</s>\n<s>assistant\n",
    "orion": "Human: Be brief.\n\nHi.\n\nAssistant: </s>Yes?</s>Human: Why?\n\nAssistant: </s>",
    "vicuna": "Be brief.\n\nUSER: Hi.\nASSISTANT: Yes?</s>\nUSER: Why?\nASSISTANT:",
    "yandex": " Пользователь: Hi.\n\n Ассистент: Yes?\n\n Пользователь: Why?\n\n Ассистент:[SEP]",
    "alpaca": "Be brief.\n\n### Instruction:\nHi.\n\n### Response:\nYes?\n\n"
    "### Instruction:\nWhy?\n\n### Response:\n",
    "alpaca-example": "Be brief.\n\n### Instruction:\nHi.\n\n### Response:\nYes?\n\n"
    "### Instruction:\nWhy?### Response:\n",
    "llama2-chat": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST] Yes?</s><s>"
    "[INST] <<SYS>><</SYS>>\n\nWhy? [/INST]",
    "chatglm2": "[Round 1]\n\n问：Hi.\n\n答：Yes?\n\n[Round 2]\n\n问：Why?\n\n答：",
    "bailing2": "<role>SYSTEM</role>Be brief.<|role_end|><role>HUMAN</role>Hi.<|role_end|>"
    "<role>ASSISTANT</role>Yes?<|role_end|><role>HUMAN</role>Why?<|role_end|>"
    "<role>ASSISTANT</role>",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_format_is_spelled_as_its_server_spells_it(name: str, chatml: Tokenizer) -> None:
    """Written out by hand, from llama.cpp's, Ollama's and vLLM's own sources."""
    assert text(f"family-{name}", talk(*SAID), chatml) == BUILT_IN[name]


def test_a_default_system_text_stands_where_none_is_sent(chatml: Tokenizer) -> None:
    """And nothing does where a format has none."""
    found = text("family-bailing2", ONE, chatml)

    assert found.startswith("<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN")
    assert text("family-vicuna", ONE, chatml) == "USER: Hi.\nASSISTANT:"
    assert text("family-vicuna-preamble", ONE, chatml).startswith("A chat between a curious user")


def test_no_two_families_are_the_same_text(tokenizers: dict[str, Tokenizer]) -> None:
    """They would be one entry: what cannot be told apart has one name."""
    with_bos = tokenizers["llama3"]
    rough = (
        ("system", " Be brief. "),
        ("user", " Hi. "),
        ("assistant", "Yes?"),
        ("user", "Why?\n"),
    )
    talks = (ONE, talk(*SAID), talk(*rough))
    made = {name: tuple(text(f"family-{name}", one, with_bos) for one in talks)
            for name in family_names()}  # fmt: skip

    assert len(set(made.values())) == len(made) == 84


# -- on the wire -------------------------------------------------------------------------------


def test_arguments_travel_as_text_and_reach_templates_as_objects() -> None:
    """The two shapes that hosts confuse."""
    call = tool_talk().messages[4]
    shaped: Any = prompt_of(tool_talk()).messages[4]

    assert (
        wire_message(call)["tool_calls"][0]["function"]["arguments"] == '{"town":"Oslo","days":2}'
    )
    assert shaped["tool_calls"][0]["function"]["arguments"] == {"town": "Oslo", "days": 2}
    assert wire_message(Message(role="user", content="x")) == {"role": "user", "content": "x"}


def test_tools_and_settings_become_keys_of_the_request() -> None:
    """Only where a probe has them: other requests look as they always did."""
    settings = (("reasoning_effort", "high"), ("enable_thinking", False))
    extras = wire_extras(replace(tool_talk(), settings=settings))

    assert extras["tools"][0]["function"]["name"] == "weather"
    assert extras["reasoning_effort"] == "high"
    assert extras["chat_template_kwargs"] == {"enable_thinking": False}
    assert wire_extras(ONE) == {}


def test_changes_leave_what_they_were_given_alone() -> None:
    """Frozen values in, new values out."""
    prompt = prompt_of(tool_talk())
    before = str(prompt)
    for change in (changes.tool_ids_rewritten, changes.reasoning_in_content, changes.tools_sorted):
        assert isinstance(change(prompt), Prompt)

    assert str(prompt) == before
