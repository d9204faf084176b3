"""Each way of asking and answering, as real hosts speak it: bodies, streams, keys, who answered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fakes_host import Answer, FakeHost, chat
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.host.endpoint import Client, Endpoint
from verifier.host.exchange import DIALECTS, Problem, parse
from verifier.records import Attempt, Message, NotJudged, Probe, Reply

KEY = "sk-test-0123456789abcdef"
PROBE = Probe(
    id="p1",
    kind="open",
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi?")),
    max_tokens=16,
)


def ask(host: FakeHost, **changes: Any) -> Attempt:
    given_: dict[str, Any] = {"base_url": host.url, "model": "m", "api_key": KEY}
    endpoint = Endpoint(**(given_ | changes))

    async def once() -> Attempt:
        async with Client(endpoint) as client:
            return (await client.ask(PROBE, number=1, logprobs=True)).attempt

    return asyncio.run(once())


def events(*values: dict[str, Any], named: bool = False, end: str = "") -> Answer:
    """A stream; `named` puts each event's type before it, as Anthropic does."""
    lines = (
        (f"event: {v['type']}\n" if named else "") + f"data: {json.dumps(v)}\n\n" for v in values
    )
    head = {"Content-Type": "text/event-stream"}
    return Answer(body=("".join(lines) + end).encode(), headers=head)


def reply(answer: Answer | dict[str, Any], **changes: Any) -> Reply:
    with FakeHost(lambda _asked: answer) as host:
        found = parse(ask(host, **changes))
    assert isinstance(found, Reply), found
    return found


def assert_thought(found: object, thought: str | None) -> None:
    """That an answer "Hi." comes with this thought; None: with one that is hidden, unjudged."""
    if thought is None:
        assert isinstance(found, NotJudged)
        assert "reasoning hidden" in found.reason
    else:
        assert isinstance(found, Reply)
        assert (found.thought, found.text) == (thought, "Hi.")


def problem(answer: Answer | dict[str, Any], **changes: Any) -> Problem:
    with FakeHost(lambda _asked: answer) as host:
        found = parse(ask(host, **changes))
    assert isinstance(found, Problem), found
    return found


# -- text completions --------------------------------------------------------------------------

TEXT = {
    "choices": [
        {
            "text": "Hi.",
            "finish_reason": "length",
            "logprobs": {
                "tokens": ["Hi", "."],
                "token_logprobs": [-0.5, -0.25],
                "top_logprobs": [{"Hi": -0.5, "Yo": -1.5}, {".": -0.25}],
                "text_offset": [0, 2],
            },
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


def test_text_completions_are_asked_with_a_rendered_prompt() -> None:
    """The prompt is the reference's own, as token ids, and the older log-probabilities are read."""
    with FakeHost(lambda _asked: TEXT) as host:
        attempt = ask(host, dialect="completions", render=lambda _messages: (5, 6, 7))

        assert host.asked[0].path == "/v1/completions"
    sent, found = json.loads(attempt.request), parse(attempt)
    assert (sent["prompt"], sent["logprobs"], "messages" in sent) == ([5, 6, 7], 5, False)
    assert isinstance(found, Reply)
    assert (found.text, found.finish_reason, found.completion_tokens) == ("Hi.", "length", 2)
    assert found.logprobs is not None
    assert [c.token for c in found.logprobs[0].top] == ["Hi", "Yo"]


def test_a_stream_of_text_completions_reads_alike() -> None:
    """Pieces of text and of the parallel lists are joined."""
    whole = TEXT["choices"][0]  # type: ignore[index]  # a list in a dictionary of mixed values
    lists = whole["logprobs"]
    pieces = [
        {
            "text": text,
            "finish_reason": None,
            "logprobs": {name: column[n : n + 1] for name, column in lists.items()},
        }
        for n, text in enumerate(("Hi", "."))
    ]
    answer = events(
        *({"choices": [piece]} for piece in pieces),
        {"choices": [{"text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": TEXT["usage"]},
        end="data: [DONE]\n\n",
    )
    how: dict[str, Any] = {"dialect": "completions", "render": lambda _messages: "x"}

    assert reply(answer, stream=True, **how) == reply(TEXT, **how)


# -- Anthropic's Messages ----------------------------------------------------------------------

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Hi."}],
    "model": "m",
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 9, "cache_read_input_tokens": 3, "output_tokens": 2},
}


def message_events() -> list[dict[str, Any]]:
    return [
        {
            "type": "message_start",
            "message": MESSAGE
            | {"content": [], "stop_reason": None}
            | {"usage": {"input_tokens": 9, "cache_read_input_tokens": 3, "output_tokens": 0}},
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {"type": "ping"},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "H"},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "i."},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 2},
        },
        {"type": "message_stop"},
    ]


def test_messages_are_asked_as_anthropic_does() -> None:
    """The system prompt apart, the version, the key in both headers, no log-probabilities."""
    with FakeHost(lambda _asked: MESSAGE) as host:
        attempt = ask(host, dialect="messages")
        asked = host.asked[0]

    assert asked.path == "/v1/messages"
    assert asked.headers["x-api-key"] == KEY
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["anthropic-version"] == "2023-06-01"
    assert asked.json == {
        "model": "m",
        "max_tokens": 16,
        "messages": [{"role": "user", "content": "Hi?"}],
        "temperature": 0,
        "stream": False,
        "system": "Be brief.",
    }
    assert KEY not in attempt.request


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_is_read(stream: bool) -> None:
    """Text of all blocks, the end in the usual words, cached prompt tokens counted too."""
    answer = events(*message_events(), named=True) if stream else MESSAGE
    found = reply(answer, dialect="messages", stream=stream)

    assert (found.text, found.finish_reason) == ("Hi.", "stop")
    assert (found.prompt_tokens, found.completion_tokens) == (12, 2)
    assert (found.logprobs, found.logprobs_problem) == (None, None)


@pytest.mark.parametrize("again", [0, 1])
def test_pieces_of_a_message_that_hold_all_that_was_said_are_no_addition(again: int) -> None:
    """As in a chat; what may be two texts is set aside, and its counts are kept."""
    first, begun, ping, piece, _, *rest = message_events()
    words = [
        "The ",
        "The cat ",
        "The cat sat ",
        "The cat sat down.",
        *["The cat sat down."] * again,
    ]
    pieces = [piece | {"delta": {"type": "text_delta", "text": word}} for word in words]
    how: dict[str, Any] = {"dialect": "messages", "stream": True}
    rest[1] = rest[1] | {"usage": {"output_tokens": 5}}

    found = reply(events(first, begun, ping, *pieces, *rest, named=True), **how)
    assert found.text == "The cat sat down."
    with FakeHost(lambda _asked: events(first, begun, ping, *pieces[:2], *rest)) as host:
        doubtful = parse(ask(host, **how))
    assert isinstance(doubtful, NotJudged)
    assert "more than one text" in doubtful.reason
    assert (doubtful.prompt_tokens, doubtful.completion_tokens) == (12, 5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: e[:4],
        lambda e: [*e[:1], *e[2:]],
        lambda e: [*e[:2], e[1], *e[2:]],
        lambda e: [*e[:4], e[5], e[4], *e[6:]],
    ],
    ids=["cut", "no start", "started twice", "after its stop"],
)
def test_a_broken_stream_of_a_message_is_asked_for_again(spoil: Any) -> None:
    """Blocks open, grow and close in order; anything else is a broken transfer."""
    assert problem(events(*spoil(message_events())), dialect="messages", stream=True).retryable


@pytest.mark.parametrize(
    ("before", "after", "thought"),
    [
        ([{"type": "thinking", "thinking": "Hm\n"}], [], "Hm\n"),
        ([{"type": "thinking", "thinking": "H"}, {"type": "thinking", "thinking": "m"}], [], "Hm"),
        ([{"type": "redacted_thinking", "data": "x"}], [], None),
        ([], [{"type": "thinking", "thinking": "Hm"}], None),
    ],
)
def test_thinking_in_a_message_is_seen(
    before: list[dict[str, str]], after: list[dict[str, str]], thought: str | None
) -> None:
    """So that the answer is not judged as if it had been all."""
    content: Any = MESSAGE["content"]
    thinking = MESSAGE | {"content": [*before, *content, *after]}
    with FakeHost(lambda _asked: thinking) as host:
        found = parse(ask(host, dialect="messages"))

    assert_thought(found, thought)


def test_an_error_event_of_anthropic_is_the_answer() -> None:
    """Overloaded in the middle: tried again, and a sign of too much."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}

    assert problem(events(*message_events()[:4], error), dialect="messages", stream=True).retryable


# -- Responses ---------------------------------------------------------------------------------

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "incomplete",
    "error": None,
    "incomplete_details": {"reason": "max_output_tokens"},
    "output": [
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {
                    "type": "output_text",
                    "text": "Hi.",
                    "annotations": [],
                    "logprobs": [
                        {"token": "Hi", "bytes": [72, 105], "logprob": -0.5, "top_logprobs": []},
                        {"token": ".", "bytes": [46], "logprob": -0.25, "top_logprobs": []},
                    ],
                }
            ],
        }
    ],
    "usage": {
        "input_tokens": 9,
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}


def response_events() -> list[dict[str, Any]]:
    kinds = ("response.created", "response.output_text.delta", "response.output_text.delta")
    found: list[dict[str, Any]] = [{"type": k, "sequence_number": n} for n, k in enumerate(kinds)]
    return [*found, {"type": "response.incomplete", "sequence_number": 3, "response": RESPONSE}]


def test_responses_are_asked_for_and_not_kept() -> None:
    """One turn, nothing stored at the host, log-probabilities included."""
    with FakeHost(lambda _asked: RESPONSE) as host:
        ask(host, dialect="responses")
        asked = host.asked[0]

    assert asked.path == "/v1/responses"
    assert asked.json == {
        "model": "m",
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi?"},
        ],
        "max_output_tokens": 16,
        "temperature": 0,
        "store": False,
        "stream": False,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 5,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_read(stream: bool) -> None:
    """Text, end, counts and log-probabilities in the usual form."""
    answer = events(*response_events()) if stream else RESPONSE
    found = reply(answer, dialect="responses", stream=stream)

    assert (found.text, found.finish_reason) == ("Hi.", "length")
    assert (found.prompt_tokens, found.completion_tokens) == (9, 2)
    assert found.logprobs is not None
    assert [row.chosen.token for row in found.logprobs] == ["Hi", "."]


@pytest.mark.parametrize(
    ("item", "thought"),
    [
        ({"content": [{"type": "reasoning_text", "text": "Hm\n"}], "summary": []}, "Hm\n"),
        ({"summary": [{"type": "summary_text", "text": "Hm"}]}, None),
        ({"encrypted_content": "x", "summary": []}, None),
    ],
)
def test_reasoning_in_a_response_is_kept_word_for_word_or_hidden(
    item: dict[str, Any], thought: str | None
) -> None:
    """A summary is not what was generated."""
    output: Any = RESPONSE["output"]
    body = RESPONSE | {"output": [{"type": "reasoning", **item}, *output]}
    with FakeHost(lambda _asked: body) as host:
        found = parse(ask(host, dialect="responses"))

    assert_thought(found, thought)


@pytest.mark.parametrize("output", [[], None])
def test_a_last_event_without_its_output_has_what_was_done_before(output: Any) -> None:
    """Gateways leave it out (QuantumNous/new-api#4362, BerriAI/litellm#32724)."""
    *before, last = response_events()
    done = [
        {"type": "response.output_item.done", "sequence_number": 3 + n, "item": item}
        for n, item in enumerate(RESPONSE["output"])  # type: ignore[arg-type]
    ]
    bare = last | {"sequence_number": 4, "response": RESPONSE | {"output": output}}
    how: dict[str, Any] = {"dialect": "responses", "stream": True}

    assert reply(events(*before, *done, bare), **how) == reply(RESPONSE, dialect="responses")


@pytest.mark.parametrize(
    "spoil",
    [lambda e: e[:3], lambda e: [e[0], e[1], e[1], *e[2:]], lambda e: [e[0], e[2], e[1], e[3]]],
    ids=["cut", "twice", "swapped"],
)
def test_numbers_on_events_show_a_broken_stream(spoil: Any) -> None:
    """Every event has the number after the one before."""
    assert problem(events(*spoil(response_events())), dialect="responses", stream=True).retryable


# -- chats of particular hosts -----------------------------------------------------------------


def test_together_is_asked_by_a_number_and_answers_in_lists() -> None:
    """`logprobs: 5`, and parallel lists with token ids."""
    lists = {
        "tokens": ["Hi", "."],
        "token_logprobs": [-0.5, -0.25],
        "token_ids": [17, 13],
        "top_logprobs": [{"Hi": -0.5}, {".": -0.25}],
    }
    with FakeHost(lambda _asked: chat("Hi.", logprobs=lists)) as host:
        attempt = ask(host, logprobs_form="integer")
        found = parse(attempt)

    sent = json.loads(attempt.request)
    assert (sent["logprobs"], "top_logprobs" in sent) == (5, False)
    assert isinstance(found, Reply)
    assert found.logprobs is not None
    assert [row.chosen.token_id for row in found.logprobs] == [17, 13]


def test_ids_in_the_place_of_tokens_are_read() -> None:
    """vLLM's return_tokens_as_token_ids: texts of parts of characters would be empty."""
    row = {"token": "token_id:502", "logprob": -0.5, "bytes": [116]}
    row |= {"top_logprobs": [{"token": "token_id:7", "logprob": -2.0}]}
    rows = {"content": [row, {"token": "token_id:x", "logprob": -0.1}]}
    found = reply(chat("Hi.", logprobs=rows))

    assert found.logprobs is not None
    assert found.logprobs[0].chosen.token_id == 502
    assert [c.token_id for c in found.logprobs[0].top] == [7]
    assert found.logprobs[1].chosen.token_id is None


def test_ids_beside_tokens_are_read() -> None:
    """Fireworks names them so."""
    rows = {"content": [{"token": "Hi", "logprob": -0.5, "token_id": 17}]}
    found = reply({**chat("Hi", logprobs=rows), "usage": None})

    assert found.logprobs is not None
    assert found.logprobs[0].chosen.token_id == 17


def test_further_fields_and_headers_are_sent() -> None:
    """Those of a preset or a run file."""
    with FakeHost(lambda _asked: chat()) as host:
        ask(host, extra_body={"top_k": 1}, headers={"X-Told": "yes"})

        assert host.asked[0].json["top_k"] == 1
        assert host.asked[0].headers["x-told"] == "yes"


# -- routers -----------------------------------------------------------------------------------

PINNED = {"extra_body": {"provider": {"only": ["deep-infra/fp8"], "allow_fallbacks": False}}}


@pytest.mark.parametrize(
    "said",
    [
        {"provider": "DeepInfra"},
        {
            "openrouter_metadata": {
                "endpoints": {
                    "available": [
                        {"provider": "Novita", "selected": False},
                        {"provider": "DeepInfra", "selected": True},
                    ]
                }
            }
        },
    ],
    ids=["field", "metadata"],
)
def test_an_answer_of_the_host_that_was_asked_for_counts(said: dict[str, Any]) -> None:
    """Named in the body or in the router's metadata, in its own spelling."""
    assert reply(chat("Hi.") | said, **PINNED).text == "Hi."


@pytest.mark.parametrize(
    ("said", "why"),
    [({"provider": "Novita"}, "'Novita' answered, not 'deep-infra/fp8'"), ({}, "did not say who")],
)
def test_an_answer_of_another_host_is_set_aside(said: dict[str, Any], why: str) -> None:
    """It is kept and counted, and judged neither for nor against the host."""
    with FakeHost(lambda _asked: chat("Hi.") | said) as host:
        found = parse(ask(host, **PINNED))

    assert isinstance(found, NotJudged)
    assert why in found.reason
    assert "set aside" in found.reason


# -- whatever comes ----------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "type", "content", "text", "output", "message", "output_text", "logprobs", "usage",
        "choices", "delta", "index", "response", "response.completed", "content_block_start",
        "content_block_delta", "message_delta", "error", "status", "incomplete_details",
        "thinking", "provider", "openrouter_metadata", "tokens", "sequence_number",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.dictionaries(WORDS, VALUES, max_size=5), max_size=4),
    dialect=st.sampled_from(sorted(DIALECTS)),
    stream=st.booleans(),
)
def test_no_json_makes_reading_raise(
    values: list[dict[str, Any]], dialect: str, stream: bool
) -> None:
    """Arbitrary objects, whole or as events, are an answer, not judged, or a problem."""
    whole = json.dumps(values[0]) if values else "{}"
    body = "".join(f"data: {json.dumps(v)}\n\n" for v in values) if stream else whole
    attempt = Attempt(
        probe_id="p1", number=1, started_at="2026-01-01T00:00:00+00:00", elapsed_s=0.1,
        request=json.dumps({"stream": stream, "logprobs": True, "provider": {"only": ["x"]}}),
        status=200, body=body, error=None, dialect=dialect,
        headers={"content-type": "text/event-stream" if stream else "application/json"},
    )  # fmt: skip

    assert isinstance(parse(attempt), Reply | NotJudged | Problem)
