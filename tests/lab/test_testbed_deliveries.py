"""How testbed hosts deliver what they generated: whatever the shape, the same is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audits import FAULT, configure, host_with, run
from fakes_engine import FakeEngine

from verifier.host.exchange import Problem, parse
from verifier.lab.testbed.deliveries import DELIVERIES, JSON, body_of, stream_of
from verifier.lab.testbed.wire import (
    Answer,
    ChatBody,
    CompletionBody,
    ShownToken,
    Stamp,
    reply_chunks,
    whole_reply,
)
from verifier.records import Attempt, NotJudged, Reply

WORDS = ("The", " cat", " sat", " sat", " on", " the", " mat", ",", " \u00e9t\u00e9", ".")
TEXT = "".join(WORDS)
SHORT = ("The", " cat", " sat", " on", " it")
STAMP = Stamp(id="x", created=1)

#: Deliveries of which a reply of some length may be set aside, where no running count is sent.
SET_ASIDE = ("one-twice", "one-twice-uncounted")
#: And of which a short one may be.
SHORT_SET_ASIDE = (*SET_ASIDE, "cumulative", "said-again", "each-twice")
#: Deliveries that cost a reply its log-probabilities.
WITHOUT_CLAIMS = {"empty-list", "characters", "message-alone"}


def answer(words: tuple[str, ...] = WORDS, *, end: int = 1) -> Answer:
    """A reply of these tokens, and its end."""
    starts = [sum(map(len, words[:n])) for n in range(len(words))]
    tokens = tuple(
        ShownToken(
            raw=word.encode(), start=start, logprob=-0.125 * (n + 1),
            top=((word.encode(), -0.125 * (n + 1)), (b"x", -3.0 - n)),
        )
        for n, (word, start) in enumerate(zip(words, starts, strict=True))
    )  # fmt: skip
    return Answer(
        text="".join(words), tokens=tokens, finish_reason="stop", prompt_tokens=7,
        completion_tokens=len(words) + end,
    )  # fmt: skip


def asked(*, chat: bool = True, stream: bool, counts: bool = True) -> dict[str, Any]:
    """A request that asks for log-probabilities."""
    how = {"model": "tiny", "stream": stream, "max_tokens": 30}
    if stream:
        how["stream_options"] = {"include_usage": True, "continuous_usage_stats": counts}
    if chat:
        said = [{"role": "user", "content": "Hi"}]
        return how | {"messages": said, "logprobs": True, "top_logprobs": 2}
    return how | {"prompt": "Hi", "logprobs": 2}


def delivered(
    name: str, made: Answer, *, stream: bool, chat: bool = True, counts: bool = True
) -> Attempt:
    """The attempt of a reply that was delivered so."""
    way, request = DELIVERIES[name], asked(chat=chat, stream=stream, counts=counts)
    shape: type[ChatBody] | type[CompletionBody] = ChatBody if chat else CompletionBody
    read = shape.model_validate_json(json.dumps(request))
    if stream or way.unasked:
        body, kind = "".join(stream_of(way, list(reply_chunks(read, made, STAMP)))), way.kind
    else:
        body, kind = body_of(way, whole_reply(read, made, STAMP)), JSON
    return Attempt(
        probe_id="p1", number=1, started_at="2026-01-01T00:00:00+00:00", elapsed_s=0.1,
        request=json.dumps(request), status=200, body=body, error=None,
        headers={"content-type": kind}, dialect="chat" if chat else "completions",
    )  # fmt: skip


@pytest.mark.parametrize("counts", [True, False], ids=["running count", "no running count"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", DELIVERIES)
def test_every_delivery_is_read_as_what_was_said(
    name: str, stream: bool, chat: bool, counts: bool
) -> None:
    """Text, end and counts; and of log-probabilities what belongs to it, or none."""
    found = parse(delivered(name, answer(), stream=stream, chat=chat, counts=counts))

    if isinstance(found, NotJudged):
        assert name in SET_ASIDE
        assert stream
        assert "more than one text" in found.reason
        return
    assert isinstance(found, Reply), found
    assert found.text == TEXT
    assert found.finish_reason == "stop"
    if name != ("cumulative-uncounted" if stream else "unasked"):
        assert (found.prompt_tokens, found.completion_tokens) == (7, len(WORDS) + 1)
    if found.logprobs is None:
        assert name in WITHOUT_CLAIMS
    else:
        assert [row.chosen.token for row in found.logprobs] == list(WORDS)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("name", DELIVERIES)
def test_short_replies_are_read_or_set_aside(name: str, end: int) -> None:
    """Of one token to five, with log-probabilities and without: never another text."""
    aside = 0
    for words in (SHORT[:n] for n in range(1, 6)):
        for plain in (True, False):
            kept = delivered(name, answer(words, end=end), stream=True, counts=False)
            request = json.loads(kept.request) | ({} if plain else {"logprobs": False})
            body = kept.body if plain else "".join(_without_claims(kept.body))
            found = parse(_changed(kept, request=json.dumps(request), body=body))
            if isinstance(found, Reply):
                assert found.text == "".join(words)
            aside += isinstance(found, NotJudged)
            assert not isinstance(found, Problem)
    assert aside == 0 or name.startswith(SHORT_SET_ASIDE)


def _without_claims(body: str) -> Iterator[str]:
    """A stream without log-probabilities."""
    for line in body.split("\n\n"):
        mark, told = line[: line.find("{")], line[line.find("{") :]
        if not line.lstrip("\ufeff").startswith("data: {"):
            yield line + "\n\n" if line else ""
            continue
        chunk = json.loads(told)
        for choice in chunk["choices"]:
            choice["logprobs"] = None
        yield f"{mark}{json.dumps(chunk)}\n\n"


def _changed(kept: Attempt, **fields: Any) -> Attempt:
    return Attempt(**{name: getattr(kept, name) for name in kept.__slots__} | fields)


# -- whole audits ----------------------------------------------------------------------------------


def test_twenty_audits_of_honest_hosts_that_deliver_in_every_way(
    card: Path, tmp_path: Path
) -> None:
    """None is accused, none is called dead, and few replies are set aside.

    Every request is answered in another way, in turn; streams are asked for in every second audit,
    with log-probabilities in every third.
    """
    audits, aside, failed, asked = [], 0, 0, 0
    with host_with("delivers:in-turn", FakeEngine(margin=5.0)) as url:
        for seed in range(20):
            report = run(
                configure(
                    url, card, tmp_path / f"run{seed}", seed=seed, max_tokens=8,
                    budget_completion_tokens=320, top_logprobs=3 if seed % 3 == 0 else 0,
                    endpoint={"stream": seed % 2 == 0, "concurrency": 1},
                )
            )  # fmt: skip
            audits.append(report.decision)
            asked += report.usage.requests
            aside += report.usage.not_judged
            failed += report.usage.failures

    assert audits == ["consistent"] * 20
    assert failed == 0
    # of half of the deliveries, those as streams, two in 34 where nothing numbers the events
    assert 0 < aside <= 0.04 * asked


@pytest.mark.parametrize("name", ["cumulative", "each-twice", "characters"])
def test_other_weights_are_found_however_they_are_delivered(
    card: Path, tmp_path: Path, name: str
) -> None:
    """What is read is what was served; some of it ends in no character, and is set aside."""
    with host_with(f"{FAULT}+delivers:{name}") as url:
        report = run(configure(url, card, tmp_path / "run", endpoint={"stream": True}))

    assert report.decision == "inconsistent"
    assert report.usage.failures == 0
