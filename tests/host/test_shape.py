"""How requests are written to a host: what a refusal names, one change, asked once more."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audits import QUIET, configure, host_with, requests_of, run
from fakes_host import Answer, Asked, FakeHost, chat, error
from purses import plenty

from verifier.errors import EndpointError
from verifier.files.run_folder import EXCHANGES
from verifier.host.budget import Ceiling
from verifier.host.collect import ask_once, collect, read_attempts, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import asked_tokens
from verifier.host.refusals import read_error
from verifier.host.shape import heeds, proposed, written
from verifier.plan_file import read_plan
from verifier.progress import Show
from verifier.records import Failure, Message, Outcome, Probe, Reply
from verifier.session import Session
from verifier.steps import make_endpoint

Script = Callable[[Asked], "Answer | dict[str, Any]"]

STREAM = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
ASKED = {
    "model": "m", "messages": [], "max_tokens": 8, "temperature": 0, "stream": True, **STREAM,
}  # fmt: skip
WHOLE = {"model": "m", "messages": [], "max_tokens": 8, "temperature": 0, "stream": False}
LOGPROBS = {"logprobs": True, "top_logprobs": 5}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


def rows(*locs: list[str], kind: str = "extra_forbidden") -> list[dict[str, Any]]:
    return [{"type": kind, "loc": loc, "msg": "Extra inputs are not permitted"} for loc in locs]


OPTIONS = "without stream_options"
COUNT = "without stream_options.continuous_usage_stats"

#: Who, request, status, body, and the change that it asks for.
CHANGES: list[tuple[str, dict[str, Any], int, Any, str | None]] = [
    ("Mistral", ASKED, 422, {"object": "error", "message": {"detail": rows(
        ["body", "stream_options", "include_usage"],
        ["body", "stream_options", "continuous_usage_stats"])}}, OPTIONS),
    ("NIM", ASKED, 422, {"detail": rows(["body", "stream_options"])}, OPTIONS),
    ("Cohere", ASKED, 400, {"message": "invalid request: unknown field: parameter 'stream_options' "
     "is not a valid field"}, OPTIONS),
    ("Azure, old", ASKED, 400, openai("Unrecognized request argument supplied: stream_options"),
     OPTIONS),
    ("Groq", ASKED, 400, openai("property 'stream_options' is unsupported, did you mean 'stop'?"),
     OPTIONS),
    ("Databricks", ASKED, 400, {"error_code": "BAD_REQUEST", "message":
     "stream_options: Extra inputs are not permitted"}, OPTIONS),
    ("a union", ASKED, 422, {"detail": rows(["body", "ChatRequest", "stream_options"])}, OPTIONS),
    ("OpenAI, count", ASKED, 400, openai("Unknown parameter: 'stream_options.continuous_usage_"
     "stats'.", param="stream_options.continuous_usage_stats", code="unknown_parameter"), COUNT),
    ("Fireworks, count", ASKED, 400, openai("Extra inputs are not permitted, field: "
     "'stream_options.continuous_usage_stats', value: True"), COUNT),
    ("by place, count", ASKED, 422, {"detail": rows(
        ["body", "stream_options", "continuous_usage_stats"])}, COUNT),
    ("OpenAI, limit", WHOLE, 400, openai("Unsupported parameter: 'max_tokens' is not supported "
     "with this model. Use 'max_completion_tokens' instead.", param="max_tokens",
     code="unsupported_parameter"), "max_completion_tokens"),
    ("a gateway, limit", WHOLE, 400, openai("max_tokens is deprecated"), "max_completion_tokens"),
    ("by place, limit", WHOLE, 422, {"detail": rows(["body", "max_tokens"])},
     "max_completion_tokens"),
    ("missing, limit", WHOLE, 422, {"detail": rows(["body", "max_completion_tokens"],
     kind="missing")}, "max_completion_tokens"),
    ("vLLM, too much", WHOLE, 400, openai("'max_tokens' or 'max_completion_tokens' is too large: "
     "4096. This model's maximum context length is 4096 tokens"), None),
    ("OpenAI, too few", WHOLE, 400, openai("Invalid 'max_tokens': integer below minimum value. "
     "Expected a value >= 16, but got 8 instead.", param="max_tokens",
     code="integer_below_min_value"), None),
    ("a range", WHOLE, 400, openai("max_tokens must be between 16 and 8192; not supported"), None),
    ("Qwen", WHOLE, 400, openai("This model only support stream mode, please enable the stream "
     "parameter to access the model. "), "as a stream"),
    ("DashScope", WHOLE, 400, openai("parameter.enable_thinking must be set to false for "
     "non-streaming calls"), "as a stream"),
    ("true", WHOLE, 400, {"detail": "Stream must be set to true"}, "as a stream"),
    ("required", WHOLE, 422, {"detail": "streaming is required for this endpoint"}, "as a stream"),
    ("not whole", WHOLE, 400, openai("Non-streaming requests are not supported"), "as a stream"),
    ("by place, true", WHOLE, 422, {"detail": [{"type": "literal_error", "loc": ["body", "stream"],
     "msg": "Input should be True"}]}, "as a stream"),
    ("equals", WHOLE, 400, {"error": "stream=false is not supported"}, "as a stream"),
    ("set it", WHOLE, 400, {"error": "This endpoint only supports streaming. Set stream=true."},
     "as a stream"),
    ("by place, false", ASKED, 422, {"detail": [{"type": "literal_error", "loc": ["body",
     "stream"], "msg": "Input should be False"}]}, "whole"),
    ("equals true", ASKED, 400, {"error": "stream=true is not supported"}, "whole"),
    ("Joi", WHOLE, 400, {"message": '"max_tokens" is not allowed'}, "max_completion_tokens"),
    ("a keyword", WHOLE, 400, {"detail": "got an unexpected keyword argument 'max_tokens'"},
     "max_completion_tokens"),
    ("FastAPI, too few", WHOLE, 422, {"detail": [{"loc": ["body", "max_tokens"], "msg":
     "ensure this value is greater than or equal to 16", "type": "value_error.number.not_ge"}]},
     None),
    ("no streams", ASKED, 400, openai("Streaming is not supported for this model",
     param="stream"), "whole"),
    ("no streams yet", ASKED, 501, {"error": "stream is not yet supported"}, "whole"),
    ("does not", ASKED, 400, {"detail": "This model does not support streaming."}, "whole"),
    ("false", ASKED, 422, {"detail": "stream must be false"}, "whole"),
    ("whole alone", ASKED, 400, {"detail": "only non-streaming requests are taken"}, "whole"),
    ("the field itself", WHOLE, 400, openai("Unknown parameter: 'stream'", param="stream",
     code="unknown_parameter"), "without stream"),
    ("store", WHOLE | {"store": False}, 400, openai("Unknown parameter: 'store'."),
     "without store"),
    ("ids", WHOLE | {"return_token_ids": True}, 422, {"detail": rows(["body", "return_token_ids"])},
     "without return_token_ids"),
    ("logprobs", WHOLE | LOGPROBS, 400, openai("This model does not support the 'logprobs' "
     "parameter"), "without logprobs"),
    ("nothing named", WHOLE | LOGPROBS, 400, openai("bad request"), "without logprobs"),
    ("MiniMax", ASKED, 200, {"choices": None, "base_resp": {"status_code": 2013, "status_msg":
     "invalid params, unknown field stream_options"}}, OPTIONS),
    ("temperature", WHOLE | LOGPROBS, 400, openai("Unsupported value: 'temperature' does not "
     "support 0 with this model.", param="temperature", code="unsupported_value"), None),
    ("temperature alone", WHOLE, 400, openai("'temperature' must be above 0"), None),
    ("a tool", WHOLE | {"tools": []}, 400, openai("tools is not supported", param="tools"), None),
    ("a setting", WHOLE | {"chat_template_kwargs": {}}, 422,
     {"detail": rows(["body", "chat_template_kwargs"])}, None),
    ("a router's host", WHOLE | {"provider": {"only": ["x"]}}, 400,
     openai("provider: unknown field"), None),
    ("a word", WHOLE | {"store": False}, 400, openai("no room to store it"), None),
    ("what was sent", ASKED, 422, {"detail": [{"type": "missing", "loc": ["body", "x"],
     "msg": "Field required", "input": ASKED}]}, None),
    ("no field of ours", WHOLE, 400, openai("Unknown parameter: stream_options"), None),
    ("not found", ASKED, 404, openai("stream_options"), None),
    ("a fault", ASKED, 500, openai("stream_options"), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "status", "body", "change"), [row[1:] for row in CHANGES],
    ids=[row[0] for row in CHANGES],
)  # fmt: skip
def test_a_refusal_asks_for_one_change(
    request_: dict[str, Any], status: int, body: Any, change: Any
) -> None:
    """By what it names; never one of what is asked."""
    found = proposed(request_, status, read_error(body), dialect="chat")

    assert found == change
    if found is not None:
        assert not heeds(request_, found)


@pytest.mark.parametrize("dialect", ["completions", "messages"])
def test_only_chats_have_another_name_for_the_limit(dialect: str) -> None:
    """Others have one."""
    told = read_error(openai("Unsupported parameter: 'max_tokens'", code="unsupported_parameter"))

    assert proposed(WHOLE, 400, told, dialect=dialect) is None


def test_a_part_is_left_out_of_its_field() -> None:
    """And no other field is touched."""
    made = written(ASKED, frozenset({"without stream_options.continuous_usage_stats"}))

    assert made == ASKED | {"stream_options": {"include_usage": True}}


# -- collecting ----------------------------------------------------------------------------------


def probes(count: int, **changes: Any) -> list[Probe]:
    return [
        Probe(
            id=f"p{n}", kind="open", max_tokens=8,
            messages=(Message(role="user", content=f"p{n}"),), **changes,
        )
        for n in range(count)
    ]  # fmt: skip


def ask(
    folder: Path, host: FakeHost, count: int = 3, ceiling: Ceiling | None = None, **changes: Any
) -> dict[str, Outcome]:
    """Collect probes; no wait is waited."""

    async def sleep(_seconds: float) -> None:
        return

    settings = Endpoint(
        **{"base_url": host.url, "model": "m", "top_logprobs": 0, "concurrency": 1} | changes
    )
    rng = random.Random(1)  # noqa: S311 - jitter
    collect(folder, settings, probes(count), sleep=sleep, rng=rng, ceiling=ceiling)
    return read_outcomes(folder, max_attempts=settings.max_attempts)


def streamed(asked: Asked) -> Answer | dict[str, Any]:
    """A good answer, as a stream where one is asked for."""
    if not asked.json.get("stream"):
        return chat()
    events = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Paris"}}]},
        {"choices": [{"index": 0, "delta": {"content": "."}, "finish_reason": "stop"}]},
    ]
    body = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"
    return Answer(body=body.encode(), headers={"Content-Type": "text/event-stream"})


def refusing(refuses: Callable[[dict[str, Any]], bool], answer: Answer) -> Script:
    return lambda asked: answer if refuses(asked.json) else streamed(asked)


NO_OPTIONS = Answer(status=422, body={"message": {"detail": rows(["body", "stream_options"])}})
NO_COUNT = Answer(
    status=400, body=openai("Unknown parameter: 'stream_options.continuous_usage_stats'")
)
NO_LIMIT = Answer(status=400, body=openai("Unsupported parameter: 'max_tokens'"))
NO_WHOLE = Answer(status=400, body=openai("This model only support stream mode"))
NO_STREAM = Answer(status=400, body=openai("Streaming is not supported"))
WAYS = [
    (NO_OPTIONS, lambda body: "stream_options" in body, True),
    (NO_COUNT, lambda body: "continuous_usage_stats" in body.get("stream_options", {}), True),
    (NO_LIMIT, lambda body: "max_tokens" in body, False),
    (NO_WHOLE, lambda body: not body["stream"], False),
    (NO_STREAM, lambda body: body["stream"], True),
]


@pytest.mark.parametrize(
    ("answer", "refuses", "stream"), WAYS, ids=["options", "count", "limit", "whole", "stream"]
)
def test_a_shape_is_settled_once_and_remembered(
    tmp_path: Path, answer: Answer, refuses: Any, stream: bool
) -> None:
    """One refusal, no failure, no wait; a resumed folder asks right at once."""
    with FakeHost(refusing(refuses, answer)) as host:
        first = ask(tmp_path, host, 2, stream=stream, max_attempts=1)
        outcomes = ask(tmp_path, host, 4, stream=stream, max_attempts=1)

        assert [refuses(asked.json) for asked in host.asked] == [True, False, False, False, False]
        assert all(asked.json["temperature"] == 0 for asked in host.asked)
    assert [type(one) for one in first.values()] == [Reply] * 2
    assert [type(one) for one in outcomes.values()] == [Reply] * 4


def test_include_usage_stays_where_the_count_alone_is_refused(tmp_path: Path) -> None:
    """What the host counts is of use."""
    with FakeHost(refusing(WAYS[1][1], NO_COUNT)) as host:
        ask(tmp_path, host, stream=True)

        assert host.asked[-1].json["stream_options"] == {"include_usage": True}


def test_several_changes_add_up(tmp_path: Path) -> None:
    """A host may refuse one field after the other."""

    def script(asked: Asked) -> Answer | dict[str, Any]:
        body = asked.json
        if "max_tokens" in body:
            return NO_LIMIT
        if "stream_options" in body:
            return NO_OPTIONS
        return error(400, "logprobs?") if "logprobs" in body else streamed(asked)

    with FakeHost(script) as host:
        outcomes = ask(tmp_path, host, 3, stream=True, top_logprobs=5)

        assert len(host.asked) == 3 + 3
    assert all(isinstance(one, Reply) for one in outcomes.values())


def test_a_change_that_does_not_help_is_not_kept(tmp_path: Path) -> None:
    """The probe has failed, and the next is asked as before."""

    def script(asked: Asked) -> Answer | dict[str, Any]:
        return NO_OPTIONS if asked.prompt == "p1" else streamed(asked)

    with FakeHost(script) as host:
        outcomes = ask(tmp_path, host, 3, stream=True)

        assert ["stream_options" in a.json for a in host.asked] == [True, True, False, True]
    assert isinstance(outcomes["p1"], Failure)


def test_refusals_of_a_shape_are_none_in_a_row(tmp_path: Path) -> None:
    """Many at once, before the first is answered, do not end the collection."""
    with FakeHost(refusing(WAYS[2][1], NO_LIMIT)) as host:
        outcomes = ask(tmp_path, host, 8, concurrency=8)

    assert [type(one) for one in outcomes.values()] == [Reply] * 8


def test_a_kill_between_refusal_and_second_question_resumes(tmp_path: Path) -> None:
    """The folder holds the refusal alone: the same probe is then asked the other way."""
    with FakeHost(refusing(WAYS[2][1], NO_LIMIT)) as host:
        ask(tmp_path, host, 1)
        exchanges = tmp_path / EXCHANGES
        exchanges.write_bytes(exchanges.read_bytes().splitlines(keepends=True)[0])
        assert read_outcomes(tmp_path, max_attempts=4) == {}
        outcomes = ask(tmp_path, host, 1)

        assert ["max_tokens" in a.json for a in host.asked] == [True, False, False]
    assert isinstance(outcomes["p0"], Reply)


def test_the_budget_counts_the_limit_whatever_its_name(tmp_path: Path) -> None:
    """A refusal costs nothing; five answers of eight tokens do."""
    full = chat("One two three four five six seven eight.")
    full["usage"] = {"prompt_tokens": 7, "completion_tokens": 8}

    def script(asked: Asked) -> Answer | dict[str, Any]:
        return NO_LIMIT if "max_tokens" in asked.json else full

    with FakeHost(script) as host:
        ask(tmp_path, host, 9, Ceiling(completion_tokens=40, usd=None, prices=None))

        assert len(host.asked) == 6
    assert {asked_tokens(attempt) for attempt in read_attempts(tmp_path)} == {8}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_name_of_the_limit_may_be_chosen(tmp_path: Path, name: str) -> None:
    """Of chats; it is then no matter of refusals."""
    with FakeHost(streamed) as host:
        ask(tmp_path, host, 1, max_tokens_field=name)

        assert [name in asked.json for asked in host.asked] == [True]
        assert len({"max_tokens", "max_completion_tokens"} & host.asked[0].json.keys()) == 1


def test_a_refused_temperature_is_told(tmp_path: Path) -> None:
    """Greedy replies cannot be asked for without one: the operator chooses."""
    refusal = Answer(
        status=400,
        body=openai("'temperature' does not support 0 with this model", param="temperature"),
    )
    with FakeHost(lambda _asked: refusal) as host:
        with pytest.raises(EndpointError, match="verifier capabilities") as caught:
            ask(tmp_path, host, 9, top_logprobs=5)

        assert len(host.asked) == 3
        assert all("temperature" in asked.json for asked in host.asked)
    assert "\n" not in str(caught.value)


# -- whole audits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("refuses:stream_options", {"stream": True}),
        ("refuses:continuous_usage_stats", {"stream": True}),
        ("refuses:max_tokens", {}),
        ("refuses:max_tokens,stream_options,logprobs", {"stream": True}),
        ("refuses:streams", {"stream": True}),
        ("refuses:whole", {}),
        ("limits:minute", {"max_attempts": 4}),
        ("limits:in-200", {"max_attempts": 4}),
    ],
)
def test_an_honest_host_that_refuses_is_consistent(
    card: Path, tmp_path: Path, fault: str, changes: dict[str, Any]
) -> None:
    """Nothing that it refuses is a failure."""
    with host_with(fault) as url:
        report = run(configure(url, card, tmp_path / "run", endpoint=changes))

    assert report.decision == "consistent", report.summary
    assert report.usage.failures == 0
    assert report.usage.requests > report.usage.replies  # some were refused
    assert all(asked["temperature"] == 0 for asked in requests_of(tmp_path / "run"))


def test_waits_of_a_whole_audit_are_told_now_and_then(card: Path, tmp_path: Path) -> None:
    """Not once for each batch that it asks."""
    told: list[str] = []
    show = Show(tell=told.append, step=lambda _name, _done, _of: None)
    began = time.monotonic()
    with host_with("limits:minute") as url:
        run(configure(url, card, tmp_path / "run", endpoint={"max_attempts": 4}), show=show)
    refused = [attempt for attempt in read_attempts(tmp_path / "run") if attempt.status == 429]

    waits = [line for line in told if "asking again in" in line]
    assert len(refused) > 2
    assert 1 <= len(waits) <= 1 + (time.monotonic() - began) / 5
    assert "requests per minute" in waits[0]


def test_what_is_asked_beside_the_probes_is_written_so_too(card: Path, tmp_path: Path) -> None:
    """What the folder holds of the host, its endpoint knows from the start."""
    with host_with("refuses:max_tokens,stream_options") as url:
        config = configure(url, card, tmp_path / "run", endpoint={"stream": True})
        run(config)
        session = Session(
            config.out, read_plan(config.out), QUIET, config=config,
            endpoint=make_endpoint(config, api_key=None),
        )  # fmt: skip
        sent = ask_once(
            tmp_path, "shown.jsonl", session.endpoint, probes(1)[0], number=1, logprobs=False,
            purse=plenty(),
        )  # fmt: skip

    assert session.endpoint.shape == {"max_completion_tokens", OPTIONS}
    assert sent is not None
    assert sent.attempt.status == 200


def test_streams_that_are_refused_are_not_said_to_be_alike(card: Path, tmp_path: Path) -> None:
    """They are asked whole then, which compares nothing."""
    with host_with("refuses:streams") as url:
        report = run(configure(url, card, tmp_path / "run", streaming=True))

    (finding,) = [finding for finding in report.findings if finding.aspect == "streaming"]
    assert report.decision == "consistent"
    assert finding.name == "no answer as a stream"
    assert "Streaming is not supported" in finding.detail
