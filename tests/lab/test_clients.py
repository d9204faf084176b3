"""Clients that we did not write: the official ones of OpenAI and Anthropic, on the testbed host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest
from fakes_engine import FakeEngine, FakeTokenizer

from verifier.host.collect import collect, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import GenerateRequest, Message, Probe, Reply

MODEL, KEY = "toy", "letmein"
TOKENIZER = FakeTokenizer()
QUESTION = "Hello"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = create_app(
        Host(engine=FakeEngine(), tokenizer=TOKENIZER, model=MODEL, api_key=KEY, window_s=0.0)
    )
    with running(app) as url:
        yield url


@pytest.fixture
def ai(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    base = url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=base, api_key=KEY, max_retries=0) as client:
        yield client


def said(*, system: str | None = None, max_tokens: int = 256) -> str:
    """What the engine says when nobody is between."""
    first = () if system is None else (Message(role="system", content=system),)
    ids = TOKENIZER.render([*first, Message(role="user", content=QUESTION)])
    (made,) = FakeEngine().generate([GenerateRequest(prompt_ids=ids, max_tokens=max_tokens)])
    return TOKENIZER.decode(made.token_ids)


ASKED = [{"role": "user", "content": QUESTION}]


# -- OpenAI ------------------------------------------------------------------------------------


def test_chats_are_answered_whole_and_as_streams(ai: openai.OpenAI) -> None:
    """The same text, with log-probabilities, usage and the reason for the end."""
    asked = {"model": MODEL, "messages": ASKED, "temperature": 0, "logprobs": True}
    whole = ai.chat.completions.create(**asked, top_logprobs=2)
    options = {"include_usage": True}
    events = list(ai.chat.completions.create(**asked, stream=True, stream_options=options))
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]

    assert whole.choices[0].message.content == said() == "".join(pieces)
    assert whole.choices[0].finish_reason == "stop"
    rows = whole.choices[0].logprobs.content
    assert "".join(row.token for row in rows) == said()
    assert all(row.logprob <= 0 and len(row.top_logprobs) == 2 for row in rows)
    assert events[-1].usage == whole.usage


def test_text_completions_are_answered_whole_and_as_streams(ai: openai.OpenAI) -> None:
    """The same text both ways."""
    asked = {"model": MODEL, "prompt": "Hello", "temperature": 0, "max_tokens": 8}
    whole = ai.completions.create(**asked, logprobs=1)
    pieces = [e.choices[0].text for e in ai.completions.create(**asked, stream=True)]

    assert whole.choices[0].text == "".join(pieces) != ""
    assert len(whole.choices[0].logprobs.tokens) == len(whole.choices[0].logprobs.token_logprobs)


def test_responses_are_answered_whole_and_as_streams(ai: openai.OpenAI) -> None:
    """The same text, the instructions in the system's place, and a cut said to be one."""
    asked = {"model": MODEL, "input": QUESTION, "temperature": 0}
    whole = ai.responses.create(**asked, include=["message.output_text.logprobs"], top_logprobs=2)
    events = list(ai.responses.create(**asked, stream=True))
    pieces = [e.delta for e in events if e.type == "response.output_text.delta"]
    told = ai.responses.create(**asked, instructions="Be brief.")
    cut = ai.responses.create(**asked, max_output_tokens=1)

    assert whole.output_text == said() == "".join(pieces)
    assert (whole.status, cut.status) == ("completed", "incomplete")
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert events[-1].response.output_text == said()
    assert told.output_text == said(system="Be brief.")
    rows = whole.output[0].content[0].logprobs
    assert "".join(row.token for row in rows) == said()


def test_what_is_wrong_is_the_clients_own_error(url: str, ai: openai.OpenAI) -> None:
    """A wrong key, another model, a past response: not just any failure."""
    stranger = ai.with_options(api_key="wrong")

    with pytest.raises(openai.AuthenticationError):
        stranger.responses.create(model=MODEL, input=QUESTION)
    with pytest.raises(openai.NotFoundError):
        ai.chat.completions.create(model="other", messages=ASKED)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        ai.responses.create(model=MODEL, input=QUESTION, previous_response_id="resp_1")


# -- Anthropic ---------------------------------------------------------------------------------


def test_messages_are_answered_whole_and_as_streams(claude: anthropic.Anthropic) -> None:
    """The same text, the system beside the messages, and a cut said to be one."""
    asked = {"model": MODEL, "messages": ASKED, "max_tokens": 256}
    zero = {"extra_body": {"temperature": 0}}
    whole = claude.messages.create(**asked, **zero)
    with claude.messages.stream(**asked, **zero) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    told = claude.messages.create(**asked, system="Be brief.", **zero)
    cut = claude.messages.create(**asked | {"max_tokens": 1}, **zero)

    assert whole.content[0].text == said() == "".join(pieces) == final.content[0].text
    assert (whole.stop_reason, cut.stop_reason) == ("end_turn", "max_tokens")
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    assert told.content[0].text == said(system="Be brief.")


def test_errors_of_messages_are_the_clients_own(claude: anthropic.Anthropic) -> None:
    """In Anthropic's shape."""
    stranger = claude.with_options(api_key="wrong")
    odd = [{"role": "system", "content": "x"}]

    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model=MODEL, messages=ASKED, max_tokens=8)
    with pytest.raises(anthropic.BadRequestError, match="roles user and assistant"):
        claude.messages.create(model=MODEL, messages=odd, max_tokens=8)


# -- our own collector -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_the_collector_reads_the_same_reply_in_every_dialect(
    url: str, tmp_path: Path, dialect: str, stream: bool
) -> None:
    """Text, counts and, where the dialect has them, log-probabilities."""
    probe = Probe(
        id="p", kind="chat", messages=(Message(role="user", content=QUESTION),), max_tokens=64
    )
    found = {}
    for name in ("chat", dialect):
        run = tmp_path / name
        run.mkdir()
        asked = Endpoint(
            base_url=url, model=MODEL, api_key=KEY, dialect=name, stream=stream, top_logprobs=2
        )
        collect(run, asked, (probe,))
        found[name] = read_outcomes(run, max_attempts=1)["p"]
    chat, other = found["chat"], found[dialect]

    assert isinstance(other, Reply)
    assert other.text == chat.text == said()
    assert other.prompt_tokens == chat.prompt_tokens
    assert other.completion_tokens == chat.completion_tokens
    assert (other.logprobs == chat.logprobs) == (dialect == "responses")
