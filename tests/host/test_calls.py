"""Answers that call a tool, alone or behind a text, in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes_engine import FakeTokenizer
from fakes_host import chat
from fakes_thinker import THINKING, ThinkingTokenizer

from verifier.host.exchange import parse
from verifier.records import Attempt, Message, NotJudged, Probe, Reply
from verifier.scoring.alignment import align
from verifier.scoring.reasoning import readings

SAID = "calls the tool 'get_weather': not judged, since calls are not scored yet"
ARGUMENTS = '{"city": "Oslo"}'
MADE = {"name": "get_weather", "arguments": ARGUMENTS}
CALL = {"id": "c", "type": "function", "function": MADE}
USAGE = {"prompt_tokens": 7, "completion_tokens": 20}


def read(body: Any, dialect: str = "chat", **asked: Any) -> Any:
    """What an answer means; a text is an event stream."""
    streamed = isinstance(body, str)
    return parse(
        Attempt(
            probe_id="p1", number=1, started_at="2026-01-01T00:00:00+00:00", elapsed_s=0.1,
            request=json.dumps({"stream": streamed} | asked), status=200,
            body=body if streamed else json.dumps(body), error=None, dialect=dialect,
        )
    )  # fmt: skip


def answer(text: str | None, *, finish: str | None = "tool_calls", **message: Any) -> Any:
    """A chat's answer."""
    body = chat(text, **({"tool_calls": [CALL]} | message))
    body["choices"][0]["finish_reason"] = finish
    return body | {"usage": USAGE}


def message(*blocks: Any) -> Any:
    usage = {"input_tokens": 7, "output_tokens": 20}
    return {"content": list(blocks), "stop_reason": "tool_use", "usage": usage}


def response(*items: Any) -> Any:
    usage = {"input_tokens": 7, "output_tokens": 20}
    return {"output": list(items), "status": "completed", "usage": usage}


def events(*values: Any, named: bool = False) -> str:
    lines = (
        (f"event: {v['type']}\n" if named else "") + f"data: {json.dumps(v)}\n\n" for v in values
    )
    return "".join(lines) + ("" if named else "data: [DONE]\n\n")


def pieces(*deltas: Any, finish: str = "tool_calls") -> str:
    """A chat's stream of these deltas."""
    chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    return events(*chunks, last, {"choices": [], "usage": USAGE})


def cut(*, index: int | None = 0, again: bool = False) -> list[Any]:
    """A call in pieces, as streams bring it; its name perhaps on each."""
    where = {} if index is None else {"index": index}
    rest = {"name": "get_weather"} if again else {}
    return [
        {"tool_calls": [where | {"id": "c", "function": {"name": "get_weather", "arguments": ""}}]},
        {"tool_calls": [where | {"function": rest | {"arguments": ARGUMENTS[:6]}}]},
        {"tool_calls": [where | {"function": rest | {"arguments": ARGUMENTS[6:]}}]},
    ]


TOOL_USE = {"type": "tool_use", "id": "c", "name": "get_weather", "input": {"city": "Oslo"}}
FUNCTION_CALL = {"type": "function_call", "call_id": "c", **MADE}


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("chat", answer(None)),
        ("chat", answer("", finish="stop")),
        ("chat", answer(" \n", finish="length")),
        ("chat", answer(None, reasoning="I should look it up.")),
        ("chat", answer(None, tool_calls=None, function_call=MADE, finish="function_call")),
        ("chat", answer(None, tool_calls=[{**MADE, "arguments": {"city": "Oslo"}}])),
        ("chat", pieces({"role": "assistant", "content": None}, *cut())),
        ("chat", pieces(*cut(index=None))),
        ("chat", pieces(*cut(again=True), finish="stop")),
        ("chat", pieces({"function_call": {"name": "get_"}},
                        {"function_call": {"name": "weather"}},
                        {"function_call": {"arguments": ARGUMENTS}})),
        ("messages", message(TOOL_USE)),
        ("messages", events(
            {"type": "message_start", "message": {"usage": {"input_tokens": 7}}},
            {"type": "content_block_start", "index": 0, "content_block": TOOL_USE | {"input": {}}},
            {"type": "content_block_delta", "index": 0,
             "delta": {"type": "input_json_delta", "partial_json": ARGUMENTS}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"},
             "usage": {"output_tokens": 20}},
            {"type": "message_stop"}, named=True)),
        ("responses", response(FUNCTION_CALL)),
        ("responses", events({"type": "response.completed", "response": response(FUNCTION_CALL)},
                             named=True)),
    ],
)  # fmt: skip
def test_a_call_alone_is_said_to_be_one(dialect: str, body: Any) -> None:
    """The prompt was rendered all the same, so that its count may speak."""
    found = read(body, dialect)

    assert found == NotJudged(
        probe_id="p1", reason=SAID, prompt_tokens=7, completion_tokens=20, counts_prompt=True
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b"], "calls the tools 'a', 'b': "),
        (["a", "a"], "calls the tool 'a': "),
        (["a", "b", "c", "d"], "calls the tools 'a', 'b' and 2 more: "),
        (["\x1b[2J\u202ex" + "y" * 10_000], f"calls the tool '[2Jx{'y' * 35}…': "),
        ([""], "calls a tool: "),
        ([{"deep": 1}], "calls a tool: "),
        ([None], "calls a tool: "),
    ],
)
def test_names_of_tools_are_the_hosts_words(names: list[Any], said: str) -> None:
    """Few, short, and without signs that act."""
    found = read(answer(None, tool_calls=[{"function": {"name": name}} for name in names]))

    assert isinstance(found, NotJudged)
    assert found.reason == f"{said}not judged, since calls are not scored yet"


@pytest.mark.parametrize("nothing", [None, [], {}, "", 0])
def test_no_call_is_none(nothing: Any) -> None:
    """Many hosts send the field empty."""
    found = read(answer("Paris.", finish="stop", tool_calls=nothing, function_call=nothing))

    assert isinstance(found, Reply)
    assert found.finish_reason == "stop"


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("chat", answer("hi there")),
        ("chat", answer("hi there", finish="stop")),
        ("chat", pieces({"content": "hi "}, {"content": "there"}, *cut(), finish="stop")),
        ("messages", message({"type": "text", "text": "hi there"}, TOOL_USE,
                             {"type": "text", "text": " and more"})),
        ("responses", response(
            {"type": "message", "content": [{"type": "output_text", "text": "hi there"}]},
            FUNCTION_CALL,
            {"type": "message", "content": [{"type": "output_text", "text": " and more"}]})),
    ],
)  # fmt: skip
def test_a_text_before_a_call_is_the_beginning_of_what_was_generated(
    dialect: str, body: Any
) -> None:
    """No end of turn follows it, whatever the host says of the end; what came later is left out."""
    tokenizer = FakeTokenizer()
    found = read(body, dialect)

    assert isinstance(found, Reply)
    assert found.text == "hi there"
    aligned = align(found, tokenizer)
    assert tokenizer.eos_id not in aligned.reply_ids
    assert len(aligned.reply_ids) - 1 in aligned.left_out


def test_log_probabilities_and_ids_of_a_text_with_a_call_are_left_unused() -> None:
    """They are of the call as well."""
    rows = [{"token": "hi there", "logprob": -0.1}]
    body = answer("hi there", finish="stop")
    body["choices"][0] |= {"logprobs": {"content": rows}, "token_ids": [1] * 20}
    found = read(body, logprobs=True)

    assert isinstance(found, Reply)
    assert (found.logprobs, found.token_ids) == (None, None)
    assert found.logprobs_problem == "they speak of the call of a tool, too"


@pytest.mark.parametrize(("count", "read_as"), [(60, Reply), (900, NotJudged)])
def test_the_tokens_of_a_call_are_no_hidden_thought(count: int, read_as: type) -> None:
    """The host counts both; far more than both is a thought that nobody can read."""
    body = answer("hi") | {"usage": {"prompt_tokens": 7, "completion_tokens": count}}

    assert isinstance(read(body), read_as)


def test_a_thought_before_a_call_is_set_aside() -> None:
    """What is counted would have to tell whether it is all there."""
    found = read(answer("hi there", reasoning="Hm."))
    probe = Probe(id="p1", kind="open", messages=(Message(role="user", content="?"),), max_tokens=8)
    tokenizer = ThinkingTokenizer(control=True, inside=False)
    (reading,) = readings(found, probe, THINKING, tokenizer)

    assert reading.aligned.unjudged is not None
    assert "a tool is called too" in reading.aligned.unjudged


@pytest.mark.parametrize(
    ("dialect", "wrap"),
    [
        ("chat", lambda deep: answer(None, tool_calls=[{"function": {"arguments": deep}}])),
        ("chat", lambda deep: answer(None, tool_calls=[{"function": {"name": deep}}])),
        ("messages", lambda deep: message({"type": deep}, {**TOOL_USE, "input": deep})),
        ("responses", lambda deep: response({"type": deep}, {**FUNCTION_CALL, "name": deep})),
    ],
)
def test_no_depth_makes_reading_a_call_raise(dialect: str, wrap: Any) -> None:
    """Whatever a host puts into the arguments."""
    text = json.dumps(wrap("DEEP")).replace('"DEEP"', "[" * 900 + "]" * 900)
    found = parse(
        Attempt(
            probe_id="p1", number=1, started_at="2026-01-01T00:00:00+00:00", elapsed_s=0.1,
            request="{}", status=200, body=text, error=None, dialect=dialect,
        )
    )  # fmt: skip

    assert isinstance(found, NotJudged)
