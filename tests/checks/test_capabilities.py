"""What an endpoint can do, found out by effect on hosts that pretend, refuse and forge."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import NOWHERE, QUIET, configure, host, host_with, requests_of, run
from fakes_host import Answer, Asked, FakeHost, chat, error
from purses import plenty

from verifier.checks.capabilities import questions
from verifier.checks.capabilities.findings import judge_samples
from verifier.checks.capabilities.probe import (
    Capabilities,
    apply,
    describe,
    find_grid,
    log_e_forged,
    probe_capabilities,
    read_capabilities,
)
from verifier.errors import ConfigError, EndpointError
from verifier.files.run_folder import CAPABILITIES, CAPABILITY_EXCHANGES, PAGE, read_lines
from verifier.host.endpoint import Endpoint
from verifier.records import Candidate, ReportedToken
from verifier.steps import find_capabilities

VOCABULARY = 12


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def rows_of(host: dict[str, Any], asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Positions of one reply of a host with the given habits."""
    greedy = asked["temperature"] == 0 or asked.get("top_k") == 1
    seed = asked.get("seed", 0) if host.get("seed", True) else host["asked"]
    draw = np.random.default_rng([seed, 1])
    world, made = np.random.default_rng(7), []
    most = max(asked["max_tokens"], host.get("silent_floor", 0))
    for _ in range(min(most, 30) if host.get("limit", True) else 30):
        logits = world.normal(0, 2, VOCABULARY)
        log_p = logits - np.logaddexp.reduce(logits)
        served = log_p / host.get("served_at", 1.0)
        served -= np.logaddexp.reduce(served)
        at = int(log_p.argmax()) if greedy else int(draw.choice(VOCABULARY, p=np.exp(served)))
        named = [{"token": f"t{n}", "logprob": float(log_p[n])} for n in np.argsort(-log_p)[:5]]
        made.append({"token": f"t{at}", "logprob": float(log_p[at]), "top_logprobs": named})
    return made


def answer(host: dict[str, Any], asked: Asked) -> Answer | dict[str, Any]:
    body = asked.json
    if asked.path.endswith("/completions") and "prompt" in body:
        if not host.get("texts"):
            return error(404, "no such page")
        text = (body["prompt"] if body.get("echo") and host["texts"] == "echo" else "") + " Rhine"
        return {"choices": [{"index": 0, "text": text, "finish_reason": "length"}]}
    if body["temperature"] < host.get("least", 0.0):
        return error(400, "temperature too small")
    if body["max_tokens"] < host.get("floor", 1):
        return error(400, "max_tokens too small")
    host["asked"] = asked.index
    rows = rows_of(host, body)
    logprobs = {"content": rows} if host.get("logprobs", True) else None
    found = chat(" ".join(row["token"] for row in rows), logprobs=logprobs)
    if host.get("ids") and body.get("return_token_ids"):
        found["choices"][0]["token_ids"] = [1, 2, 3]
        found["prompt_logprobs"] = [None, {"5": {"logprob": -0.5}}]
    return found | {"usage": {"prompt_tokens": 9, "completion_tokens": len(rows)}}


def probe(tmp_path: Path, **habits: Any) -> Capabilities:
    with FakeHost(lambda asked: answer(habits, asked)) as host:
        endpoint = Endpoint(base_url=host.url, model="m", timeout_s=20)
        return probe_capabilities(tmp_path, endpoint, purse=plenty())


def sample(*, served_at: float, count: int, rng: np.random.Generator) -> list[ReportedToken]:
    """Tokens drawn at one temperature, reported as if at temperature 1."""
    rows = []
    for _ in range(count):
        logits = rng.normal(0, 2, VOCABULARY)
        log_p = logits - np.logaddexp.reduce(logits)
        served = log_p / served_at
        at = int(rng.choice(VOCABULARY, p=np.exp(served - np.logaddexp.reduce(served))))
        top = tuple(
            Candidate(token=f"t{n}", bytes=None, logprob=float(log_p[n]))
            for n in np.argsort(-log_p)[:5]
        )
        chosen = Candidate(token=f"t{at}", bytes=None, logprob=float(log_p[at]))
        rows.append(ReportedToken(chosen=chosen, top=top))
    return rows


# -- level ---------------------------------------------------------------------------------------


def test_forged_log_probabilities_are_called_so_at_their_level() -> None:
    """Under the null the e-value reaches 20 in at most one of twenty audits."""
    rng = np.random.default_rng(3)
    crossed = [
        log_e_forged(sample(served_at=1.0, count=60, rng=rng), alternatives=5) >= math.log(20)
        for _ in range(120)
    ]

    slack = 3 * math.sqrt(120 * 0.05 * 0.95)
    assert sum(crossed) <= 120 * 0.05 + slack


# -- power ---------------------------------------------------------------------------------------


def test_forged_log_probabilities_are_found() -> None:
    """Samples at twice the temperature that the numbers claim: two replies of 48 mostly do."""
    rng = np.random.default_rng(4)
    found = [
        log_e_forged(sample(served_at=2.0, count=96, rng=rng), alternatives=5) >= math.log(1000)
        for _ in range(20)
    ]

    assert sum(found) >= 16


@pytest.mark.parametrize(
    ("habits", "name", "expected"),
    [
        ({"seed": False}, "seed", False),
        ({"limit": False}, "max_tokens_honoured", False),
        ({"logprobs": False}, "logprobs", False),
    ],
)
def test_a_field_that_is_taken_and_ignored_does_not_count(
    tmp_path: Path, habits: dict[str, Any], name: str, expected: object
) -> None:
    """HTTP 200 is no effect."""
    assert getattr(probe(tmp_path, **habits), name) is expected


# -- known answer --------------------------------------------------------------------------------


def test_a_factor_has_mean_one_under_the_null() -> None:
    """By hand for one position: the mean over all categories is exactly 1."""
    log_p = np.log([0.5, 0.3, 0.1, 0.1])
    top = tuple(Candidate(token=f"t{n}", bytes=None, logprob=float(log_p[n])) for n in range(2))

    def e_value(at: int) -> float:
        chosen = Candidate(token=f"t{at}", bytes=None, logprob=float(log_p[at]))
        return math.exp(log_e_forged([ReportedToken(chosen=chosen, top=top)], alternatives=2))

    mean = sum(math.exp(log_p[at]) * e_value(at) for at in range(4))
    assert mean == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-0.125 * n for n in range(1, 20)], 0.125),
        ([-0.01 * n for n in (1, 3, 7, 20, 33, 41, 57, 99)], 0.01),
        ([-math.pi * n for n in range(1, 20)], None),
        ([-0.5, -1.0], None),
    ],
)
def test_the_step_of_rounded_values_is_found(values: list[float], expected: float | None) -> None:
    """Decimal and binary steps; too few values tell nothing."""
    assert find_grid(values) == expected


# -- one audit -----------------------------------------------------------------------------------


def test_what_the_endpoint_can_do_is_found_out_first_and_reported(
    card: Path, tmp_path: Path
) -> None:
    """When the run file says so: on record, on the page, within the budget, and only once."""
    out = tmp_path / "run"
    with host() as url:
        config = configure(url, card, out, capabilities=True)
        report = run(config)
        run(config)

    assert report.decision == "consistent"
    assert dict(report.capabilities)["temperature 0 taken"] == "yes"
    assert "temperature 0 taken" in (out / PAGE).read_text(encoding="utf-8")
    assert [f.decision for f in report.findings if f.aspect == "samples"] == ["undecided"]
    asked = list(read_lines(out / CAPABILITY_EXCHANGES))
    assert len(asked) == 12
    assert report.usage.requests == len(requests_of(out)) + len(asked)


# -- what hosts can do, and what is said ---------------------------------------------------------


def test_an_honest_host_shows_what_it_can(tmp_path: Path) -> None:
    """Everything that this host does is found, and everything asked is on record."""
    found = probe(tmp_path)

    assert found.temperature_zero is True
    assert found.greedy_fields == {}
    assert (found.repeatable, found.usage, found.max_tokens_honoured) == (True, True, True)
    assert (found.seed, found.logprobs, found.alternatives) == (True, True, 5)
    assert (found.logprobs_follow_temperature, found.grid) == (False, None)
    assert (found.greedy_is_likeliest, found.reasoning) == (True, "absent")
    assert found.forged_log_e is not None
    assert found.forged_log_e < math.log(1000)
    assert found.requests == len(list(read_lines(tmp_path / CAPABILITY_EXCHANGES))) == 13
    assert (found.least_max_tokens, found.reply_ids, found.prompt_logprobs) == (1, False, False)
    assert (found.text_completions, found.echo) == (False, None)
    assert read_capabilities(tmp_path) == found


@pytest.mark.parametrize(
    ("habits", "least", "honoured"),
    [
        ({"floor": 16}, 16, True),
        ({"silent_floor": 16}, 16, False),
        ({"limit": False}, None, False),
        ({"floor": 40}, None, None),
    ],
)
def test_the_fewest_tokens_that_a_host_takes_are_found(
    tmp_path: Path, habits: dict[str, Any], least: int | None, honoured: bool | None
) -> None:
    """Whether it refuses fewer or gives more all the same."""
    found = probe(tmp_path, **habits)

    assert (found.least_max_tokens, found.max_tokens_honoured) == (least, honoured)


def test_ids_and_log_probabilities_of_the_prompt_are_found_and_ids_then_asked_for(
    tmp_path: Path,
) -> None:
    """With a token's id, no text has to be tokenized again."""
    found = probe(tmp_path, ids=True)
    asked = apply(found, Endpoint(base_url="http://h/v1", model="m"))

    assert (found.reply_ids, found.prompt_logprobs) == (True, True)
    assert asked.extra_body == {"return_token_ids": True}


@pytest.mark.parametrize(("texts", "echo"), [("plain", False), ("echo", True)])
def test_text_completions_and_their_echo_are_found(tmp_path: Path, texts: str, echo: bool) -> None:
    """An echo counts where the prompt comes back, not where the field is taken."""
    found = probe(tmp_path, texts=texts)

    assert (found.text_completions, found.echo) == (True, echo)


def test_nothing_is_asked_that_the_budget_does_not_pay_for(tmp_path: Path) -> None:
    """Neither in tokens nor in dollars; what was not asked is a problem on record."""
    with FakeHost(lambda asked: answer({}, asked)) as host:
        endpoint = Endpoint(base_url=host.url, model="m")
        few = probe_capabilities(tmp_path, endpoint, purse=plenty(60))
        asked = len(host.asked)
        none = probe_capabilities(tmp_path, endpoint, purse=plenty(usd=1e-6))
        after = len(host.asked)

    assert few.completion_tokens <= 60
    assert any("the budget does not pay for it" in problem for problem in few.problems)
    assert 0 < asked == after
    assert none.requests == asked  # those of the call before are still counted
    assert none.completion_tokens == few.completion_tokens


@pytest.mark.parametrize(
    ("message", "reasoning"),
    [
        ({"reasoning": "Let me see."}, "shown"),
        ({"content": "<think>Let me see.</think>The Rhine."}, "inline"),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, "hidden"),
        ({"content": ""}, None),
    ],
)
def test_how_a_host_shows_thoughts_is_found(
    tmp_path: Path, message: dict[str, Any], reasoning: str | None
) -> None:
    """Apart, in the text, or not as they were."""
    body = chat("The Rhine.")
    body["choices"][0]["message"] |= message
    with FakeHost(lambda _asked: body) as host:
        endpoint = Endpoint(base_url=host.url, model="m")
        found = probe_capabilities(tmp_path, endpoint, purse=plenty(), sleep=lambda _s: None)

    assert found.reasoning == reasoning


def test_how_far_a_host_repeats_itself_is_said(tmp_path: Path) -> None:
    """The share of two answers to one question that is alike."""
    texts = iter(["abcd", "abXYZWVU"])
    with FakeHost(lambda _asked: chat(next(texts, "other"))) as host:
        endpoint = Endpoint(base_url=host.url, model="m")
        found = probe_capabilities(tmp_path, endpoint, purse=plenty(), sleep=lambda _s: None)

    assert (found.repeatable, found.alike) == (False, 0.25)
    assert ("the same twice", "no: the first 25% alike") in describe(found)


def test_a_host_under_load_is_asked_again(tmp_path: Path) -> None:
    """It refuses nothing: temperature 0 works, and its wish to wait is heeded."""
    waited: list[float] = []

    def busy(asked: Asked) -> Answer | dict[str, Any]:
        return error(429, "busy", retry_after="3") if asked.index % 2 == 0 else answer({}, asked)

    with FakeHost(busy) as host:
        endpoint = Endpoint(base_url=host.url, model="m")
        found = probe_capabilities(tmp_path, endpoint, purse=plenty(), sleep=waited.append)

    assert found.temperature_zero is True
    assert found.logprobs is True
    assert set(waited) == {3.0}


def test_a_host_that_refuses_everything_is_not_asked_everything(tmp_path: Path) -> None:
    """A wrong key costs one request, and a request that is refused one for each temperature."""
    for status, requests in ((401, 1), (422, 3)):
        folder = tmp_path / str(status)
        folder.mkdir()
        with FakeHost(lambda _asked, status=status: error(status)) as host:  # type: ignore[misc]
            endpoint = Endpoint(base_url=host.url, model="m", top_logprobs=0)
            found = probe_capabilities(folder, endpoint, purse=plenty(), sleep=lambda _s: None)

        assert found is not None
        assert found.requests == len(host.asked) == requests


def test_where_zero_is_refused_the_smallest_temperature_is_found(tmp_path: Path) -> None:
    """With the likeliest token alone; an audit then asks so."""
    found = probe(tmp_path, least=0.05)
    asked = apply(found, Endpoint(base_url="http://h/v1", model="m"))

    assert found.temperature_zero is False
    assert found.greedy_fields == {"temperature": 0.1, "top_k": 1}
    assert asked.extra_body == {"temperature": 0.1, "top_k": 1}
    assert "temperature too small" in found.problems[0]


def test_an_audit_does_not_ask_for_log_probabilities_that_never_come(tmp_path: Path) -> None:
    """They would be paid for with refusals."""
    found = probe(tmp_path, logprobs=False)

    assert apply(found, Endpoint(base_url="http://h/v1", model="m")).top_logprobs == 0


def test_a_host_that_answers_nothing_is_all_unknown(tmp_path: Path) -> None:
    """No exception, and no guess."""
    with FakeHost(lambda _asked: error(500)) as host:
        endpoint = Endpoint(base_url=host.url, model="m")
        found = probe_capabilities(tmp_path, endpoint, purse=plenty(), sleep=lambda _seconds: None)

    assert found.temperature_zero is None
    assert (found.logprobs, found.seed, found.streaming, found.reasoning) == (None,) * 4
    assert len(found.problems) == 1
    assert found.requests == 3  # it might only be busy; no other temperature is tried for that
    assert [name for name, _ in describe(found)] == ["nothing found out", "cost"]


@pytest.mark.parametrize("with_bytes", [True, False])
def test_tokens_that_look_alike_are_not_taken_for_one_another(with_bytes: bool) -> None:
    """Pieces of characters all read as U+FFFD: one that is not named is not the one that is."""

    def piece(n: int, logprob: float) -> Candidate:
        return Candidate(token="\ufffd", bytes=bytes([n]) if with_bytes else None, logprob=logprob)

    top = (piece(200, math.log(0.6)), piece(201, math.log(0.2)))
    row = ReportedToken(chosen=piece(202, math.log(0.01)), top=top)
    other = ReportedToken(
        chosen=Candidate(token="x", bytes=b"x", logprob=math.log(0.01)),
        top=tuple(replace(c, token=f"t{n}") for n, c in enumerate(top)),
    )
    expected = log_e_forged([other], alternatives=2) if with_bytes else 0.0

    assert log_e_forged([row], alternatives=2) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("log_e", "decision"), [(math.log(1000), "detected"), (6.9, "undecided"), (-3.0, "undecided")]
)
def test_forging_is_a_finding_from_one_in_a_thousand_on(
    tmp_path: Path, log_e: float, decision: str
) -> None:
    """Below that it is never acquitted either: numbers that agree can be copied."""
    finding = judge_samples(replace(probe(tmp_path), forged_log_e=log_e))

    assert finding is not None
    assert (finding.aspect, finding.decision) == ("samples", decision)


def test_without_sampled_log_probabilities_nothing_is_said_of_forging(tmp_path: Path) -> None:
    """Missing data is no information."""
    assert judge_samples(probe(tmp_path, logprobs=False)) is None


def test_a_damaged_record_is_refused_by_name(tmp_path: Path) -> None:
    """An audit does not guess what it said."""
    (tmp_path / CAPABILITIES).write_text('{"logprobs": "maybe"}')

    with pytest.raises(ConfigError, match=CAPABILITIES):
        read_capabilities(tmp_path)


# -- hosts that refuse, and hosts that answer nothing ----------------------------------------------


@pytest.mark.parametrize(
    "refused", ["max_tokens", "stream_options", "logprobs", "max_tokens,stream_options,logprobs"]
)
def test_what_a_host_can_do_is_found_however_it_wants_to_be_asked(
    tmp_path: Path, refused: str
) -> None:
    """A field that it refuses under one name costs a request and no finding."""
    with host_with(f"refuses:{refused}") as url:
        endpoint = Endpoint(base_url=url, model="tiny")
        found = probe_capabilities(tmp_path, endpoint, purse=plenty())

    assert found is not None
    assert (found.temperature_zero, found.streaming, found.usage) == (True, True, True)
    assert found.logprobs is ("logprobs" not in refused)
    assert found.max_tokens_honoured is True


def test_streams_that_are_refused_are_not_found(tmp_path: Path) -> None:
    """They are what was asked for, so nothing is asked in their place."""
    with host_with("refuses:streams") as url:
        endpoint = Endpoint(base_url=url, model="tiny")
        found = probe_capabilities(tmp_path, endpoint, purse=plenty())

    assert found is not None
    assert (found.temperature_zero, found.streaming) == (True, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (error(401, "Invalid API key"), "wants an API key"),
        (error(402, "Top up"), "no balance"),
        (error(404, "no such model"), "does not serve the model 'tiny'"),
        (Answer(body=b"<html><title>Log in</title>"), "a web page titled 'Log in'"),
        (error(500, "broken"), "fails (HTTP 500: broken)"),
        (error(422, "too odd"), "refused what it was asked"),
        (None, "cannot reach"),
    ],
    ids=["key", "credit", "model", "page", "fault", "refusal", "closed port"],
)
def test_finding_nothing_out_is_an_error(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Answer | None, said: str
) -> None:
    """In the words of an audit, and asked again by the same command."""
    monkeypatch.setattr(questions, "_LONGEST_WAIT_S", 0.0)
    broken = True

    def script(asked: Asked) -> Answer | dict[str, Any]:
        return given if broken and given is not None else answer({}, asked)

    with FakeHost(script) as host:
        url = host.url if given is not None else NOWHERE
        config = configure(url, card, tmp_path / "run")
        with pytest.raises(EndpointError) as caught:
            find_capabilities(config, api_key=None, show=QUIET)
        if given is not None:
            broken = False
            found = find_capabilities(config, api_key=None, show=QUIET)

            assert found.answered
            assert found.requests == len(host.asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_audit_goes_on_where_nothing_was_found_out(card: Path, tmp_path: Path) -> None:
    """The host may only have been busy: the replies are judged, and no row says unknown."""

    def busy(asked: Asked) -> Answer | dict[str, Any]:
        return error(413) if asked.index == 0 else chat("Paris.")

    with FakeHost(busy) as host:
        report = run(configure(host.url, card, tmp_path / "run", capabilities=True))

        assert len(host.asked) > 5
    assert not any(finding == "unknown" for _, finding in report.capabilities)
    assert "nothing found out" in dict(report.capabilities)
