"""The testbed host over real loopback HTTP, with an engine small enough to follow by hand."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_engine import EOS, TURN, WORDS, FakeEngine, FakeTokenizer, scripted
from families import tool_talk

from verifier.errors import ConfigError, RenderingError
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import list_faults, read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running, serve
from verifier.prompts import make_prompt, prompt_of, wire_extras, wire_message
from verifier.records import REFERENCE, GenerateRequest, Generation, Message, Prompt, ScoreRequest
from verifier.reference.renderings.catalogue import catalogue
from verifier.reference.variants import VARIANTS

MODEL = "toy"
TOKENIZER = FakeTokenizer()


@contextmanager
def hosting(engine: FakeEngine, **settings: Any) -> Iterator[httpx.Client]:
    app = create_app(
        Host(engine=engine, tokenizer=settings.pop("tokenizer", TOKENIZER), model=MODEL, **settings)
    )
    with running(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeEngine, httpx.Client]]:
    engine = FakeEngine()
    with hosting(engine, window_s=0.0) as client:
        yield engine, client


@pytest.fixture
def engine(shared: tuple[FakeEngine, httpx.Client]) -> FakeEngine:
    shared[0].batches.clear()
    return shared[0]


@pytest.fixture
def client(shared: tuple[FakeEngine, httpx.Client], engine: FakeEngine) -> httpx.Client:
    return shared[1]


def chat_body(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "temperature": 0, **fields}


def chat(client: httpx.Client, text: str = "Hello", **fields: Any) -> dict[str, Any]:
    response = client.post("/chat/completions", json=chat_body(text, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def complete(client: httpx.Client, prompt: object, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, **fields}
    response = client.post("/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def prompt_ids(text: str = "Hello") -> tuple[int, ...]:
    return TOKENIZER.render([Message(role="user", content=text)])


def greedy(text: str = "Hello", **fields: Any) -> Generation:
    """What the engine says when nobody is between."""
    request = GenerateRequest(prompt_ids=prompt_ids(text), max_tokens=256, **fields)
    return FakeEngine().generate([request])[0]


# -- replies -----------------------------------------------------------------------------------


def test_models_are_listed(client: httpx.Client) -> None:
    """GET /models names the one model."""
    listing = client.get("/models").json()

    assert listing["object"] == "list"
    assert [row["id"] for row in listing["data"]] == [MODEL]


def test_chat_reply_has_openai_shape(client: httpx.Client) -> None:
    """A reply holds the engine's text without control tokens, and usage that counts them."""
    reply, made = chat(client), greedy()

    assert reply["object"] == "chat.completion"
    assert reply["model"] == MODEL
    assert reply["id"].startswith("chatcmpl-")
    assert reply["created"] > 1_700_000_000
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TOKENIZER.decode(made.token_ids)},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert made.token_ids[-1] == EOS
    assert reply["usage"] == {
        "prompt_tokens": len(prompt_ids()),
        "completion_tokens": len(made.token_ids),
        "total_tokens": len(prompt_ids()) + len(made.token_ids),
    }


def test_text_parts_are_one_content(client: httpx.Client) -> None:
    """Content given as text parts is their texts, one per line."""
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    body = chat_body() | {"messages": [{"role": "user", "content": parts}]}
    reply = client.post("/chat/completions", json=body).json()

    assert reply["choices"] == chat(client, "Hello\nthere")["choices"]


def test_all_turns_reach_the_template(client: httpx.Client, engine: FakeEngine) -> None:
    """The prompt is the whole conversation as the template renders it."""
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye")]
    chat(client, messages=[{"role": role, "content": text} for role, text in turns])

    ((request,),) = engine.batches
    assert request.prompt_ids == TOKENIZER.render(
        [Message(role=role, content=text) for role, text in turns]
    )


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_reply_ends_at_the_token_limit(client: httpx.Client, field: str) -> None:
    """Either name of the limit holds, and the reply says it was cut."""
    reply = chat(client, **{field: 2})

    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["message"]["content"] == TOKENIZER.decode(greedy().token_ids[:2])
    assert reply["usage"]["completion_tokens"] == 2


def test_fields_reach_the_engine(client: httpx.Client, engine: FakeEngine) -> None:
    """Sampling fields arrive as they were sent."""
    chat(client, max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, seed=3, stop=["x", "y"])
    chat(client, max_tokens=7, top_k=-1, logprobs=True, top_logprobs=4)

    first, second = (batch[0] for batch in engine.batches)
    assert first == GenerateRequest(
        prompt_ids=prompt_ids(), max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, seed=3,
        stop=("x", "y"),
    )  # fmt: skip
    assert second == GenerateRequest(
        prompt_ids=prompt_ids(), max_tokens=7, temperature=0.0, top_logprobs=4
    )


def test_null_and_missing_fields_mean_the_defaults(
    client: httpx.Client, engine: FakeEngine
) -> None:
    """OpenAI's defaults (temperature 1, no limits), 256 tokens; unknown fields are ignored."""
    optional = ("max_tokens", "top_p", "top_k", "seed", "stop", "n", "logprobs", "stream_options")
    chat(client, **dict.fromkeys(optional), temperature=None, user="me")
    client.post("/chat/completions", json={k: chat_body()[k] for k in ("model", "messages")})

    default = GenerateRequest(prompt_ids=prompt_ids(), max_tokens=256, temperature=1.0)
    assert [batch[0] for batch in engine.batches] == [default, default]


def test_one_seed_gives_one_sample(client: httpx.Client) -> None:
    """A sampled reply repeats with its seed and differs with others."""

    def content(seed: int) -> str:
        reply = chat(client, temperature=2, seed=seed, max_tokens=12)
        return str(reply["choices"][0]["message"]["content"])

    assert content(1) == content(1)
    assert len({content(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("stop", ["host", ["nowhere", " says", " host"]])
def test_text_ends_before_the_first_stop_string(stop: object) -> None:
    """The stop string and what follows are not in the text, in whatever order they are named."""
    with hosting(FakeEngine(script=scripted("more or less the host says"))) as client:
        reply = chat(client, stop=stop, logprobs=True)

    choice = reply["choices"][0]
    expected = {"host": "more or less the "}.get(str(stop), "more or less the")
    assert choice["message"]["content"] == expected
    assert choice["finish_reason"] == "stop"
    shown = "".join(entry["token"] for entry in choice["logprobs"]["content"])
    assert shown.startswith(expected)
    assert shown.removeprefix(expected) in ("", "host")  # the cut token is shown whole


def test_stop_string_at_the_token_limit_is_a_stop() -> None:
    """An engine that only knows the limit still has its text cut, and the reason says why."""

    class Deaf(FakeEngine):
        def generate(self, requests: Any) -> list[Generation]:
            heard = [
                GenerateRequest(prompt_ids=r.prompt_ids, max_tokens=r.max_tokens) for r in requests
            ]
            return super().generate(heard)

    with hosting(Deaf(script=scripted("the host says the reply"))) as client:
        reply = chat(client, stop=" says", max_tokens=4)

    assert reply["choices"][0]["message"]["content"] == "the host"
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_text_completion_continues_the_prompt(client: httpx.Client, engine: FakeEngine) -> None:
    """A string and its token ids are the same prompt; no template is applied."""
    ids = TOKENIZER.encode("the host")
    by_text, by_ids = complete(client, "the host"), complete(client, list(ids))

    assert [batch[0].prompt_ids for batch in engine.batches] == [ids, ids]
    assert by_text["object"] == "text_completion"
    assert by_text["id"].startswith("cmpl-")
    assert by_text["choices"] == by_ids["choices"]
    assert by_text["choices"][0]["logprobs"] is None
    assert by_text["usage"]["prompt_tokens"] == len(ids)
    assert by_text["choices"][0]["text"]


# -- log-probabilities -------------------------------------------------------------------------


def test_chat_logprobs_are_the_engines(client: httpx.Client) -> None:
    """Every visible token comes with its bytes, its log-probability and the alternatives."""
    made = greedy(top_logprobs=3)
    content = chat(client, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]

    visible = made.token_ids[:-1]
    assert [bytes(entry["bytes"]) for entry in content] == [
        TOKENIZER.token_bytes(token_id) for token_id in visible
    ]
    assert [entry["logprob"] for entry in content] == list(made.logprobs[:-1])
    assert [
        [(bytes(other["bytes"]), other["logprob"]) for other in entry["top_logprobs"]]
        for entry in content
    ] == [[(TOKENIZER.token_bytes(i), logprob) for i, logprob in top] for top in made.top[:-1]]
    assert content[0]["token"] == TOKENIZER.decode(visible[:1])


def test_logprobs_without_alternatives(client: httpx.Client) -> None:
    """logprobs alone gives the chosen tokens and empty lists of alternatives."""
    content = chat(client, logprobs=True)["choices"][0]["logprobs"]["content"]

    assert content
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_tokens_inside_a_character_keep_their_bytes() -> None:
    """Parts of a character show as U+FFFD, and their bytes still spell the text."""
    with hosting(FakeEngine(script=scripted("the 🙂 model"))) as client:
        choice = chat(client, logprobs=True)["choices"][0]
        pieces = [
            chunk["choices"][0]["delta"].get("content", "")
            for chunk in stream(client, "/chat/completions", chat_body())
        ]

    content = choice["logprobs"]["content"]
    assert choice["message"]["content"] == "the 🙂 model"
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "the 🙂 model"
    assert [entry["token"] for entry in content[2:6]] == ["\ufffd"] * 4
    assert [piece for piece in pieces if piece] == ["the", " ", "🙂", " model"]


def test_reply_cut_inside_a_character_is_still_text() -> None:
    """A token limit in mid-character leaves U+FFFD at the end, streamed or not."""
    with hosting(FakeEngine(script=scripted("the 🙂"))) as client:
        whole = chat(client, max_tokens=4)["choices"][0]["message"]["content"]
        chunks = stream(client, "/chat/completions", chat_body(max_tokens=4))

    assert whole == "the \ufffd"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole


def test_control_tokens_in_mid_reply_are_hidden() -> None:
    """A control token is not in the text, nor among the tokens, but it is counted."""
    ids = (*TOKENIZER.encode("the"), TURN, *TOKENIZER.encode(" host"))
    with hosting(FakeEngine(script=lambda _prompt: ids)) as client:
        reply = chat(client, logprobs=True)

    choice = reply["choices"][0]
    assert choice["message"]["content"] == "the host"
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["the", " host"]
    assert reply["usage"]["completion_tokens"] == 4


def test_legacy_logprobs_shape(client: httpx.Client) -> None:
    """Text completions give parallel lists, alternatives by text, and offsets into the text."""
    choice = complete(client, "the host", logprobs=2)["choices"][0]
    logprobs = choice["logprobs"]

    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert [
        choice["text"][start:].startswith(token)
        for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
    ] == [True] * len(logprobs["tokens"])
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())
        assert len(top) == 2


def test_minus_infinity_is_written_as_a_number() -> None:
    """JSON has no infinity: such a log-probability goes out as -9999, as OpenAI writes it."""

    class Certain(FakeEngine):
        def generate(self, requests: Any) -> list[Generation]:
            top = ((65, 0.0), (66, float("-inf")))
            made = Generation(token_ids=(65,), finish_reason="stop", logprobs=(0.0,), top=(top,))
            return [made for _ in requests]

    with hosting(Certain()) as client:
        reply = chat(client, logprobs=True, top_logprobs=2)

    top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert [other["logprob"] for other in top] == [0.0, -9999.0]


# -- streams -----------------------------------------------------------------------------------


def test_chat_stream_equals_the_whole_reply(client: httpx.Client) -> None:
    """Texts, log-probabilities, usage and reason of the events add up to the unstreamed reply."""
    fields = {"logprobs": True, "top_logprobs": 2}
    whole = chat(client, **fields)
    body = chat_body(**fields, stream_options={"include_usage": True})
    *events, last = stream(client, "/chat/completions", body)

    assert len(events) > 3
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events)
    assert {event["object"] for event in (*events, last)} == {"chat.completion.chunk"}
    assert len({event["id"] for event in (*events, last)}) == 1
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    message = whole["choices"][0]["message"]
    assert "".join(c["delta"].get("content", "") for c in choices) == message["content"]
    told = [c["logprobs"]["content"] for c in choices if c["logprobs"] is not None]
    assert list(chain.from_iterable(told)) == whole["choices"][0]["logprobs"]["content"]
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_completion_stream_equals_the_whole_reply(client: httpx.Client) -> None:
    """The same for text completions; without include_usage no event speaks of usage."""
    body = {"model": MODEL, "prompt": "the host", "temperature": 0, "logprobs": 1, "max_tokens": 3}
    whole = complete(client, "the host", logprobs=1, max_tokens=3)["choices"][0]
    events = stream(client, "/completions", body)

    assert all("usage" not in event for event in events)
    choices = [event["choices"][0] for event in events]
    assert "".join(c["text"] for c in choices) == whole["text"]
    told = [c["logprobs"] for c in choices if c["logprobs"] is not None]
    joined = {n: list(chain.from_iterable(part[n] for part in told)) for n in whole["logprobs"]}
    assert joined == whole["logprobs"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"] == "length"


def test_stream_survives_unusual_line_ends() -> None:
    """A line separator in a reply does not break an event for clients that split lines there."""
    with hosting(FakeEngine(script=scripted("the\u2028host"))) as client:
        events = stream(client, "/chat/completions", chat_body())

    pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == "the\u2028host"


# -- batches -----------------------------------------------------------------------------------


def ask_all_at_once(base_url: httpx.URL, texts: list[str]) -> list[str]:
    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
            replies = await asyncio.gather(
                *(client.post("/chat/completions", json=chat_body(text)) for text in texts)
            )
        return [r.json()["choices"][0]["message"]["content"] for r in replies]

    return asyncio.run(ask_all())


def test_requests_are_batched_and_keep_their_answers() -> None:
    """Requests that arrive together are generated together, each asker getting its own answer."""
    engine, texts = FakeEngine(), [f"question {n}" for n in range(8)]
    # the window never ends a batch here, so that a slow machine changes nothing
    with hosting(engine, max_batch=4, window_s=20) as client:
        contents = ask_all_at_once(client.base_url, texts)

    assert [len(batch) for batch in engine.batches] == [4, 4]
    assert contents == [TOKENIZER.decode(greedy(text).token_ids) for text in texts]
    assert len(set(contents)) == len(texts)
    assert len(engine.threads) == 1


def test_lone_request_waits_for_the_window_only() -> None:
    """A batch need not be full."""
    engine = FakeEngine()
    with hosting(engine, max_batch=16, window_s=0.01) as client:
        chat(client)
        chat(client)

    assert [len(batch) for batch in engine.batches] == [1, 1]


def test_bad_prompt_does_not_spoil_its_batch() -> None:
    """A prompt that cannot be read is refused alone; its neighbours are answered."""
    bodies = [{"model": MODEL, "prompt": [n], "temperature": 0} for n in (65, 10_000, 66)]

    async def ask_all(base_url: httpx.URL) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
            return await asyncio.gather(*(client.post("/completions", json=b) for b in bodies))

    engine = FakeEngine()
    with hosting(engine, max_batch=3, window_s=20) as client:
        replies = asyncio.run(ask_all(client.base_url))

    assert [reply.status_code for reply in replies] == [200, 400, 200]
    assert "10000" in replies[1].json()["error"]["message"]
    assert [len(batch) for batch in engine.batches] == [2]


# -- errors ------------------------------------------------------------------------------------


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_unknown_model_is_404(client: httpx.Client, path: str) -> None:
    """The error names both models."""
    body = chat_body(prompt="the") | {"model": "other"}
    error = error_of(client.post(path, json=body), 404)

    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "'other'" in error["message"]
    assert f"'{MODEL}'" in error["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"model": NaN}', b'"\\ud800"'])
def test_body_that_is_no_json_object_is_400(client: httpx.Client, raw: bytes) -> None:
    """So says the error, and nothing reaches the engine."""
    error = error_of(client.post("/chat/completions", content=raw), 400)

    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("messages", []),
        ("messages", "Hello"),
        ("messages", [{"role": "wizard", "content": "Hello"}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "refusal", "text": "x"}]}]),
        ("messages", [{"role": "user"}]),
        ("n", 9),
        ("n", 0),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("max_completion_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 3),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("seed", 2**63),
        ("stop", [""]),
        ("stop", ""),
        ("stop", 5),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("stream", "yes"),
    ],
)
def test_wrong_field_is_400(
    client: httpx.Client, engine: FakeEngine, param: str, value: object
) -> None:
    """The error names the field, and nothing reaches the engine."""
    body = chat_body(logprobs=True) | {param: value}
    error = error_of(client.post("/chat/completions", json=body), 400)

    assert error["param"] == param
    assert param in error["message"]
    assert engine.batches == []


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("prompt", ""),
        ("prompt", []),
        ("prompt", ["one", "two"]),
        ("prompt", [[1], [2]]),
        ("prompt", [-1]),
        ("prompt", [len(WORDS) + 258]),
        ("logprobs", True),
        ("logprobs", 21),
        ("echo", "yes"),
    ],
)
def test_wrong_completion_field_is_400(client: httpx.Client, param: str, value: object) -> None:
    """The same for text completions."""
    body = {"model": MODEL, "prompt": "the", param: value}
    error = error_of(client.post("/completions", json=body), 400)

    assert error["param"] == param


def test_an_echo_repeats_the_prompt_with_its_log_probabilities(client: httpx.Client) -> None:
    """Parallel lists as OpenAI has them: the prompt's first token has no number; texts add up."""
    plain = complete(client, "the now", max_tokens=2, logprobs=2)["choices"][0]
    found = complete(client, "the now", max_tokens=2, logprobs=2, echo=True)["choices"][0]
    lists, ids = found["logprobs"], TOKENIZER.encode("the now")
    asked = ScoreRequest(prompt_ids=ids[:1], reply_ids=ids[1:])
    (score,) = FakeEngine().score([asked])

    assert found["text"] == "the now" + plain["text"] == "".join(lists["tokens"])
    assert lists["token_logprobs"][0] is lists["top_logprobs"][0] is None
    assert lists["token_logprobs"][1 : len(ids)] == pytest.approx(list(score.logprobs))
    assert lists["token_logprobs"][len(ids) :] == plain["logprobs"]["token_logprobs"]
    starts = [0, *itertools.accumulate(map(len, lists["tokens"]))][:-1]
    assert lists["text_offset"] == starts


def test_an_echo_is_neither_streamed_nor_of_several(client: httpx.Client) -> None:
    """Refused rather than ignored."""
    for more in ({"stream": True}, {"n": 2}):
        body = {"model": MODEL, "prompt": "the", "echo": True, **more}
        assert "echo" in error_of(client.post("/completions", json=body), 400)["message"]


@pytest.mark.parametrize(
    "fields", [{"top_logprobs": 2}, {"stream_options": {"include_usage": True}}]
)
def test_fields_that_need_another_are_refused(
    client: httpx.Client, fields: dict[str, object]
) -> None:
    """top_logprobs needs logprobs, and stream_options needs stream."""
    error = error_of(client.post("/chat/completions", json=chat_body(**fields)), 400)

    assert "only allowed when" in error["message"]


def test_missing_field_is_400(client: httpx.Client) -> None:
    """A request without messages is told so."""
    error = error_of(client.post("/chat/completions", json={"model": MODEL}), 400)

    assert error["param"] == "messages"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "letmein"}],
    ids=["missing", "wrong", "no scheme"],
)
def test_wrong_or_missing_key_is_401(headers: dict[str, str]) -> None:
    """Every endpoint asks for the key, and no error repeats it."""
    with hosting(FakeEngine(), api_key="letmein") as client:
        replies = [
            client.get("/models", headers=headers),
            client.post("/chat/completions", json=chat_body(), headers=headers),
            client.post("/completions", json={"model": MODEL, "prompt": "a"}, headers=headers),
        ]

    for reply in replies:
        assert error_of(reply, 401)["code"] == "invalid_api_key"
        assert "letmein" not in reply.text


def test_right_key_opens() -> None:
    """With the key all is as without one."""
    with hosting(FakeEngine(), api_key="letmein") as client:
        client.headers["Authorization"] = "Bearer letmein"
        assert chat(client)["choices"]
        assert client.get("/models").status_code == 200


def test_unknown_path_and_method_have_openai_errors(client: httpx.Client) -> None:
    """404 and 405 come in the same shape."""
    assert "/v1/embeddings" in error_of(client.post("/embeddings", json={}), 404)["message"]
    error_of(client.get("/chat/completions"), 405)


@pytest.mark.parametrize("streamed", [False, True])
def test_engine_failure_is_500_and_the_host_lives_on(
    client: httpx.Client, engine: FakeEngine, streamed: bool
) -> None:
    """The error is one line that says what the engine said; the next request is answered."""
    engine.failures.append(ValueError("weights are\n on fire"))
    error = error_of(client.post("/chat/completions", json=chat_body(stream=streamed)), 500)

    assert error["type"] == "server_error"
    assert error["message"] == "the engine failed: ValueError: weights are on fire"
    assert chat(client)["choices"][0]["message"]["content"]


def test_number_json_cannot_hold_is_500() -> None:
    """NaN from broken weights is an error before the stream begins, not half a stream."""

    class Broken(FakeEngine):
        def generate(self, requests: Any) -> list[Generation]:
            nan = (float("nan"),)
            made = Generation(token_ids=(65,), finish_reason="stop", logprobs=nan, top=())
            return [made for _ in requests]

    with hosting(Broken()) as client:
        for streamed in (False, True):
            body = chat_body(logprobs=True, stream=streamed)
            error = error_of(client.post("/chat/completions", json=body), 500)
            assert "not a number" in error["message"]


def test_template_refusal_is_400() -> None:
    """A conversation that the chat template refuses is the client's error."""

    class Strict(FakeTokenizer):
        def render_text(self, prompt: Prompt) -> str:
            raise RenderingError(f"roles must alternate, not {prompt.messages[0]['role']}")

    with hosting(FakeEngine(), tokenizer=Strict()) as client:
        error = error_of(client.post("/chat/completions", json=chat_body()), 400)

    assert error["param"] == "messages"
    assert "roles must alternate" in error["message"]


# -- the server --------------------------------------------------------------------------------


def test_server_and_its_threads_are_gone_after_exit() -> None:
    """Leaving the block frees the port and leaves no thread, open connections or not."""
    before = {thread.name for thread in threading.enumerate()}
    app = create_app(Host(engine=FakeEngine(), tokenizer=TOKENIZER, model=MODEL))
    client = httpx.Client(timeout=30)
    with client, running(app) as url:
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/v1")
        client.post(f"{url}/chat/completions", json=chat_body())

    assert {thread.name for thread in threading.enumerate()} == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_app_can_be_served_again() -> None:
    """One app, two lives: nothing is left over from the first."""
    app = create_app(Host(engine=FakeEngine(), tokenizer=TOKENIZER, model=MODEL))
    for _ in range(2):
        with running(app) as url:
            assert httpx.post(f"{url}/chat/completions", json=chat_body()).status_code == 200


def test_app_that_does_not_start_is_an_error() -> None:
    """Nobody waits for ever for a host that failed to start."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(RuntimeError, match="did not start"), running(app):
        pass
    with pytest.raises(RuntimeError, match="did not start"):
        serve(app, port=0, announce=lambda _url: None)


def test_serve_returns_on_a_signal() -> None:
    """SIGTERM and SIGINT end `serve` cleanly, after it has announced and served."""
    script = textwrap.dedent(
        f"""
        from fakes_engine import FakeEngine, FakeTokenizer
        from verifier.lab.testbed.app import create_app
        from verifier.lab.testbed.host import Host
        from verifier.lab.testbed.server import serve
        host = Host(engine=FakeEngine(), tokenizer=FakeTokenizer(), model={MODEL!r})
        app = create_app(host)
        serve(app, port=0, announce=lambda url: print(url, flush=True))
        print("returned")
        """
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests' / 'support'}"}
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        ) as host:  # fmt: skip
            try:
                assert host.stdout is not None
                url = host.stdout.readline().strip()
                response = httpx.post(f"{url}/chat/completions", json=chat_body(), timeout=30)
                host.send_signal(number)
                out, err = host.communicate(timeout=30)
            finally:
                host.kill()
        assert response.status_code == 200
        assert (host.returncode, out, err) == (0, "returned\n", "")


def test_serve_refuses_a_taken_port() -> None:
    """The error names the address and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        app = create_app(Host(engine=FakeEngine(), tokenizer=TOKENIZER, model=MODEL))
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve(app, port=port, announce=lambda _url: None)
    with pytest.raises(ConfigError, match="0-65535"):
        serve(app, port=70_000, announce=lambda _url: None)


def test_faults_are_listed_with_the_honest_host_first() -> None:
    """Every variant can be named, each with a summary."""
    faults = list_faults()

    assert faults[0][0] == "none"
    names = [name for name, _ in faults[1:]]
    assert names[: len(VARIANTS)] == list(VARIANTS)
    kinds = [name.partition(":")[0] for name in names[len(VARIANTS) :]]
    order = [
        "weights", "template", "sampler", "context", "ceiling", "ignores", "spares", "forges",
        "cache", "seed", "streams", "refuses", "limits", "reports", "delivers",
    ]  # fmt: skip
    assert kinds == sorted(kinds, key=order.index)
    assert {"template:bos-doubled", "template:system-injected"} < set(names)
    assert "template:system-injected-2" not in names
    assert all(summary for _, summary in faults)


@pytest.mark.parametrize("name", [name for name, _ in list_faults()])
def test_every_listed_fault_can_be_served_alone_and_every_template_with_weights(name: str) -> None:
    """By the name that the list gives."""
    found = read_fault(name, layers=30, catalogue=catalogue())

    assert found.rendering.name == (name.partition("template:")[2] or REFERENCE)
    assert bool(found.sampler) == name.startswith("sampler:")
    if name.startswith("template:"):
        both = read_fault(f"int4-sym-g64+{name}", layers=30, catalogue=catalogue())
        assert both.weights == "int4-sym-g64"
        assert both.rendering.name == found.rendering.name


def test_another_model_can_be_served_with_faults_of_other_kinds() -> None:
    """Rounded, wrongly rendered and oddly sampled, as a host may well do."""
    name = "weights:models/other+int4-sym-g64+template:bos-doubled+sampler:top-k=4"
    found = read_fault(name, layers=30, catalogue=catalogue())

    assert found.directory == Path("models/other")
    assert found.weights == "int4-sym-g64"
    assert found.rendering.name == "bos-doubled"
    assert found.sampler == (("top_k", 4),)
    assert read_fault("none", layers=30, catalogue=catalogue()).directory is None


def test_a_template_that_no_catalogue_has_is_served_by_its_file(tmp_path: Path) -> None:
    """As the only template; a file that is not there is said at once."""
    path = tmp_path / "odd.jinja"
    path.write_text("{{ messages[0].content }}!")
    found = read_fault(f"int4-sym-g64+jinja:{path}", layers=30, catalogue=catalogue())
    assert found.rendering.change is not None
    prompt = found.rendering.change(make_prompt([Message(role="user", content="Hi")]))

    assert (found.weights, prompt.template) == ("int4-sym-g64", "{{ messages[0].content }}!")
    for name in (f"jinja:{tmp_path}/none", f"jinja:{path}+template:bos-doubled"):
        with pytest.raises(ConfigError, match=r"cannot be read as a template|two of the kind"):
            read_fault(name, layers=30, catalogue=catalogue())


@pytest.mark.parametrize(
    "name",
    [
        "int4-sym-g64+nf4-g64",
        "template:a+template:b",
        "template:x",
        "y",
        "sampler:heat=1",
        "sampler:top-k=4+sampler:top-k=5",
        "weights:a+weights:b",
    ],
)
def test_unknown_and_doubled_faults_are_refused(name: str) -> None:
    """In one line."""
    with pytest.raises(ConfigError):
        read_fault(name, layers=30, catalogue=catalogue())


# -- template faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [("generation-prompt-missing", -11), ("system-ignored", -15), ("reference", 0)],
)
def test_a_template_fault_shows_in_the_prompt_tokens(name: str, more: int) -> None:
    """The host renders as its fault says, and counts what it rendered."""
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Hello"}]
    with hosting(FakeEngine(), rendering=catalogue()[name]) as client:
        told = chat(client, messages=messages)["usage"]["prompt_tokens"]
    with hosting(FakeEngine()) as client:
        published = chat(client, messages=messages)["usage"]["prompt_tokens"]

    assert told - published == more


def test_a_host_that_ignores_the_end_of_turn_runs_on() -> None:
    """To the length asked for, although the model would have stopped."""
    with hosting(FakeEngine(), rendering=catalogue()["end-of-turn-ignored"]) as client:
        found = chat(client, max_tokens=40)

    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 40


def test_tools_calls_results_and_reasoning_reach_the_template() -> None:
    """As they were sent, in the shape that templates read."""
    seen: list[Prompt] = []

    class Noting(FakeTokenizer):
        def render_text(self, prompt: Prompt) -> str:
            seen.append(prompt)
            return super().render_text(prompt)

    probe = tool_talk(settings=(("reasoning_effort", "high"), ("enable_thinking", False)))
    body = {"messages": [wire_message(m) for m in probe.messages], **wire_extras(probe)}
    with hosting(FakeEngine(), tokenizer=Noting()) as client:
        chat(client, **body)

    assert seen == [prompt_of(probe)]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "assistant"}, "content is only left out"),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1"}}],
            },
            "not a JSON object",
        ),
    ],
)
def test_malformed_tool_messages_are_400(message: dict[str, Any], said: str) -> None:
    """A client's error, in words; the host lives on."""
    with hosting(FakeEngine()) as client:
        error = error_of(client.post("/chat/completions", json=chat_body(messages=[message])), 400)
        assert said in error["message"]
        chat(client)


def test_importing_the_testbed_loads_no_model_library() -> None:
    """The app itself needs neither torch nor transformers."""
    script = (
        "import sys, verifier.lab.testbed.app; "
        "sys.exit(bool({'torch', 'transformers', 'vllm'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
