"""The proxy that spoils answers: each fault as a collector meets it, over real sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fakes_host import FakeHost, chat

from verifier.host.collect import collect, read_attempts, read_outcomes
from verifier.host.endpoint import Client, Endpoint
from verifier.host.exchange import Problem, parse
from verifier.lab.testbed.proxy import STORM, Answered, forward_to, running_proxy
from verifier.records import Attempt, Message, Probe, Reply

WORDS = ("The ", "cat ", "sat ", "on ", "the ", "mat.")


def probe(number: int) -> Probe:
    return Probe(
        id=f"p{number}", kind="open", messages=(Message(role="user", content="Hi."),), max_tokens=8
    )


async def canned(_method: str, _path: str, body: bytes) -> Answered:
    """A host that always says the same, as a stream where asked for one."""
    if not json.loads(body)["stream"]:
        whole = chat("".join(WORDS))
        return Answered(status=200, kind="application/json", body=json.dumps(whole).encode())
    chunks: list[dict[str, Any]] = [
        {
            "choices": [{"delta": {"content": word}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": n},
        }
        for n, word in enumerate(WORDS, 1)
    ]
    chunks += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
    return Answered(status=200, kind="text/event-stream", body="".join(lines).encode())


def ask(url: str, *, stream: bool) -> Attempt:
    endpoint = Endpoint(base_url=url, model="m", timeout_s=2, top_logprobs=0, stream=stream)

    async def once() -> Attempt:
        async with Client(endpoint) as client:
            return (await client.ask(probe(0), number=1, logprobs=False)).attempt

    return asyncio.run(once())


@pytest.mark.parametrize("stream", [False, True])
def test_without_faults_an_answer_passes_as_it_is(stream: bool) -> None:
    """Nothing is spoilt that the rates do not name."""
    with running_proxy(canned, rates={}, seed=1) as (url, proxy):
        found = parse(ask(url, stream=stream))

    assert isinstance(found, Reply)
    assert found.text == "".join(WORDS)
    assert proxy.done == {"": 1}


def test_a_drip_is_slow_and_whole() -> None:
    """Patience gets the answer."""
    with running_proxy(canned, rates={"drip": 1.0}, seed=1) as (url, _proxy):
        attempt = ask(url, stream=False)

    assert isinstance(parse(attempt), Reply)
    assert attempt.elapsed_s > 0.8


def test_an_event_that_comes_twice_is_read_once() -> None:
    """This host numbers them."""
    with running_proxy(canned, rates={"event twice": 1.0}, seed=1) as (url, proxy):
        attempt = ask(url, stream=True)

    found = parse(attempt)
    assert isinstance(found, Reply)
    assert found.text == "".join(WORDS)
    assert attempt.body.count("data:") == len(WORDS) + 3
    assert proxy.done == {"event twice": 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [f for f in STORM if f not in ("drip", "event twice")])
def test_every_fault_is_a_problem_that_is_tried_again(fault: str, stream: bool) -> None:
    """None of them reads as an answer, and none is taken for the host's last word."""
    only_streams = fault in ("events swapped", "error in stream")
    with running_proxy(canned, rates={fault: 1.0}, seed=1) as (url, proxy):
        attempt = ask(url, stream=stream)
        found = parse(attempt)

    if only_streams and not stream:
        assert isinstance(found, Reply)
        return
    assert isinstance(found, Problem), found
    assert found.retryable
    assert proxy.done == {fault: 1}
    assert len(attempt.body) <= 4096


@pytest.mark.parametrize("stream", [False, True])
def test_a_storm_loses_nothing_and_counts_nothing_twice(tmp_path: Path, stream: bool) -> None:
    """60 probes, seven faults in ten requests: each probe has one reply, the right one."""
    rates = {fault: 2.3 * share for fault, share in STORM.items() if fault != "stall"}
    probes = [probe(n) for n in range(60)]

    async def at_once(_seconds: float) -> None:
        await asyncio.sleep(0)

    with running_proxy(canned, rates=rates, seed=3) as (url, proxy):
        endpoint = Endpoint(
            base_url=url, model="m", concurrency=8, top_logprobs=0, max_attempts=60, stream=stream
        )
        collect(tmp_path, endpoint, probes, sleep=at_once)

    outcomes = read_outcomes(tmp_path, max_attempts=60)
    answered = [a for a in read_attempts(tmp_path) if isinstance(parse(a), Reply)]
    assert {o.text for o in outcomes.values() if isinstance(o, Reply)} == {"".join(WORDS)}
    assert sorted(outcomes) == sorted(p.id for p in probes)
    assert len(answered) == len(probes)
    assert len(proxy.done) > 8


def test_another_host_is_asked_over_sockets() -> None:
    """The proxy passes method, path and body on, and the answer back."""
    with (
        FakeHost(lambda asked: chat(f"re {asked.prompt}")) as host,
        running_proxy(forward_to(host.url), rates={}, seed=1) as (url, _proxy),
    ):
        found = parse(ask(url, stream=False))

        assert host.asked[0].path == "/v1/chat/completions"
    assert isinstance(found, Reply)
    assert found.text == "re Hi."
