"""What may be spent and what was: ceilings hold before the request, not after the bill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes_host import Answer, FakeHost, chat, error
from hypothesis import given
from hypothesis import strategies as st

from verifier.config import Prices
from verifier.host.budget import (
    NOTHING,
    Amount,
    Ceiling,
    Purse,
    forecast,
    may_be_billed,
    most_prompt_tokens,
    usual_prompt_tokens,
)
from verifier.host.collect import collect, read_attempts
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import Problem
from verifier.records import Message, NotJudged, Probe, Reply, Tool, ToolCall

PRICES = Prices(prompt=1.0, completion=10.0)  # USD per million tokens
ANSWER = chat()  # says that it took 7 prompt and 2 completion tokens


def probe(number: int = 0, *, text: str = "Hi.", max_tokens: int = 10) -> Probe:
    return Probe(
        id=f"p{number}",
        kind="open",
        messages=(Message(role="user", content=text),),
        max_tokens=max_tokens,
    )


def answer(prompt: int | None = 7, completion: int | None = 2) -> NotJudged:
    return NotJudged(probe_id="p0", reason="", prompt_tokens=prompt, completion_tokens=completion)


def ceiling(tokens: int, usd: float | None = None) -> Ceiling:
    return Ceiling(completion_tokens=tokens, usd=usd, prices=PRICES)


def count_paid(purse: Purse, asked: Probe) -> int:
    """How many requests can be paid for with nothing coming back."""
    paid = 0
    while purse.pay(asked):
        paid += 1
    return paid


def test_requests_under_way_are_paid_at_full_length() -> None:
    """35 tokens pay for three replies of up to ten, however many are asked for at once."""
    assert count_paid(Purse(ceiling(35)), probe()) == 3


def test_change_is_given_back() -> None:
    """Two tokens were used of ten: eight pay for others."""
    purse = Purse(ceiling(20))
    assert purse.pay(probe())
    purse.give_back(probe(), answer())

    assert count_paid(purse, probe()) == 1
    assert count_paid(purse, probe(max_tokens=8)) == 1


def test_an_answer_without_counts_costs_the_most() -> None:
    """What the host does not say is taken at its worst."""
    purse = Purse(ceiling(20))
    assert purse.pay(probe())
    purse.give_back(probe(), answer(prompt=None, completion=None))

    assert count_paid(purse, probe()) == 1


@pytest.mark.parametrize(
    ("status", "reason", "billed"),
    [
        (None, "no whole answer within 5 s", True),
        (None, "ReadError: peer closed", True),
        (None, "ConnectError: Connection refused", False),
        (200, "body is not JSON", True),
        (429, "HTTP 429", False),
        (503, "HTTP 503", False),
    ],
)
def test_what_broke_off_may_be_billed_and_an_error_is_not(
    status: int | None, reason: str, billed: bool
) -> None:
    """A host that answered may have counted, whatever arrived."""
    problem = Problem(status=status, reason=reason, retryable=True)
    purse = Purse(ceiling(20))
    purse.book(probe(), problem)

    assert may_be_billed(problem) is billed
    assert count_paid(purse, probe()) == (1 if billed else 2)


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "limit"}}, 5),
        ({"error": {"code": 429, "message": "slow"}}, 5),
        ({"error": {"code": 502, "message": "upstream"}}, 2),
        (b'data: {"error": {"code": 429, "message": "slow"}}\n\n', 2),
    ],
    ids=["MiniMax", "router", "fault", "in a stream"],
)
def test_a_full_minute_said_with_200_costs_nothing(tmp_path: Path, body: Any, asked: int) -> None:
    """Of a stream some may have been generated, and of a fault as well."""

    async def sleep(_seconds: float) -> None:
        return

    with FakeHost(lambda _asked: Answer(body=body)) as host:
        settings = Endpoint(base_url=host.url, model="m", top_logprobs=0, max_attempts=5)
        collect(tmp_path, settings, [probe()], ceiling=ceiling(20), sleep=sleep)

        assert len(host.asked) == asked


def test_dollars_bound_too() -> None:
    """A prompt of at most 67 tokens and ten at the dearer price: 167 millionths of a dollar."""
    assert most_prompt_tokens(probe()) == 67

    assert count_paid(Purse(ceiling(10**6, usd=0.000_34)), probe()) == 2


@given(st.text(max_size=200))
def test_no_prompt_counts_more_than_its_bound(text: str) -> None:
    """Bytes are the most tokens there can be; the usual is below."""
    one = probe(text=text)

    assert usual_prompt_tokens(one) <= most_prompt_tokens(one)
    assert most_prompt_tokens(one) >= len(text.encode())


def collected(tmp_path: Path, host: FakeHost, tokens: int, **how: Any) -> int:
    """Collect ten probes under a ceiling; how many requests went out."""

    async def at_once(_seconds: float) -> None:
        return

    endpoint = Endpoint(base_url=host.url, model="m", top_logprobs=0, concurrency=4)
    probes = [probe(n) for n in range(10)]
    collect(tmp_path, endpoint, probes, ceiling=ceiling(tokens), sleep=at_once, **how)
    return len(host.asked)


def test_collecting_stops_before_the_ceiling(tmp_path: Path) -> None:
    """Every reply at full length: 35 tokens pay for three requests, with four workers at it."""
    full = chat() | {"usage": {"prompt_tokens": 7, "completion_tokens": 10}}
    with FakeHost(lambda _asked: full) as host:
        assert collected(tmp_path, host, 35) == 3


def test_retries_are_paid_for_too(tmp_path: Path) -> None:
    """A host that breaks every answer off cannot make the audit spend more."""
    with FakeHost(lambda _asked: Answer(body=b"{")) as host:
        assert collected(tmp_path, host, 35) == 3


def test_errors_cost_nothing(tmp_path: Path) -> None:
    """A host that refuses with 503 is asked again as often as it may be."""
    with FakeHost(lambda asked: error(503) if asked.index < 5 else ANSWER) as host:
        collected(tmp_path, host, 10**4)

        assert len(host.asked) == 15


def test_what_the_folder_has_spent_counts(tmp_path: Path) -> None:
    """Also for probes that this call does not ask."""
    full = chat() | {"usage": {"prompt_tokens": 7, "completion_tokens": 10}}
    with FakeHost(lambda _asked: full) as host:
        collected(tmp_path, host, 35)
        others = [probe(n) for n in range(10, 20)]
        endpoint = Endpoint(base_url=host.url, model="m", top_logprobs=0)
        every = [probe(n) for n in range(20)]
        collect(tmp_path, endpoint, others, ceiling=ceiling(45), every=every)

    assert len(read_attempts(tmp_path)) == 4


def test_a_forecast_says_the_expected_and_the_most() -> None:
    """100 tokens pay for ten replies of ten; short ones let all twenty probes be asked."""
    expected, most = forecast(
        [probe(n) for n in range(20)], max_tokens=10, ceiling=ceiling(100), expected=NOTHING,
        most=NOTHING,
    )  # fmt: skip

    assert (expected.requests, expected.completion_tokens) == (10, 100)
    assert expected.prompt_tokens == 10 * usual_prompt_tokens(probe())
    assert (most.requests, most.completion_tokens) == (30, 100)
    assert most.prompt_tokens == 30 * 67
    assert most.usd(PRICES) == pytest.approx((30 * 67 + 100 * 10) / 1e6)
    assert most.usd(None) is None


def test_what_is_asked_beside_the_probes_is_forecast_too() -> None:
    """Requests and prompts; their completions come out of the same budget."""
    probes = [probe(n) for n in range(20)]
    plain = forecast(probes, max_tokens=10, ceiling=ceiling(100), expected=NOTHING, most=NOTHING)
    expected, most = forecast(
        probes, max_tokens=10, ceiling=ceiling(100),
        expected=Amount(requests=3, prompt_tokens=30, completion_tokens=0),
        most=Amount(requests=11, prompt_tokens=290, completion_tokens=0),
    )  # fmt: skip

    assert expected.requests - plain[0].requests == 3
    assert expected.prompt_tokens - plain[0].prompt_tokens == 30
    assert most.requests - plain[1].requests == 11
    assert most.prompt_tokens - plain[1].prompt_tokens == 290
    assert most.completion_tokens == 100


def test_tools_and_thoughts_of_a_prompt_are_paid_for() -> None:
    """They are rendered into it like any words."""
    tool = Tool(name="weather", description="of a town", parameters='{"type":"object"}')
    call = ToolCall(id="1", name="weather", arguments='{"town":"Oslo"}')
    turn = Message(role="assistant", content="", reasoning="I should look.", tool_calls=(call,))
    plain = probe()
    offered = replace(plain, tools=(tool,))
    called = replace(plain, messages=(*plain.messages, turn))

    assert most_prompt_tokens(offered) >= most_prompt_tokens(plain) + 300
    assert most_prompt_tokens(called) >= most_prompt_tokens(plain) + 30


def test_a_reply_is_booked_like_any_answer() -> None:
    """By its own counts."""
    reply = Reply(
        probe_id="p0", text="Hi.", finish_reason="stop", prompt_tokens=7, completion_tokens=2,
        logprobs=None, logprobs_problem=None,
    )  # fmt: skip
    purse = Purse(ceiling(12))
    purse.book(probe(), reply)

    assert count_paid(purse, probe()) == 1
