"""Request parameters by their effect: honoured, ignored without a word, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audits import configure, run
from fakes_engine import FakeEngine, FakeTokenizer, scripted
from fakes_host import Answer, Asked, FakeHost, chat, error
from purses import plenty

from verifier.checks.capabilities.findings import PARAMETERS
from verifier.checks.capabilities.parameters import (
    Parameter,
    judge_bias,
    judge_n,
    judge_parameters,
    judge_stop,
    stop_string,
)
from verifier.checks.capabilities.probe import (
    Capabilities,
    describe,
    probe_capabilities,
    read_capabilities,
)
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import Problem
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import Attempt, Reply
from verifier.reference.renderings.catalogue import catalogue

SAID = "the host says yes now or less and a few more"


def probe(folder: Path, fault: str) -> Capabilities:
    """What is found of a testbed host with a fault."""
    served = read_fault(fault, layers=2, catalogue=catalogue())
    engine = FakeEngine(margin=5.0, script=scripted(SAID))
    app = create_app(
        Host(
            engine=engine,
            tokenizer=FakeTokenizer(),
            model="tiny",
            window_s=0.001,
            tricks=served.tricks,
        )
    )
    with running(app) as url:
        return probe_capabilities(folder, Endpoint(base_url=url, model="tiny"), purse=plenty())


def effects(found: Capabilities) -> dict[str, str]:
    return {one.name: one.effect for one in found.parameters}


def test_an_honest_host_honours_all(tmp_path: Path) -> None:
    """Thirteen requests in all; the record is read back, and described."""
    found = probe(tmp_path, "none")

    assert set(effects(found).values()) == {"honoured"}
    assert list(effects(found)) == ["max_tokens", "seed", "stop", "n", "logit_bias"]
    assert found.requests == 12
    assert read_capabilities(tmp_path) == found
    assert judge_parameters(found.parameters, PARAMETERS) is None
    assert dict(describe(found))["parameter stop"] == "honoured: the reply ends there"


def test_replies_that_came_as_events_tell_nothing_of_their_number() -> None:
    """A stream is put together for its first reply alone; a mark in front is no trouble."""
    body = chat() | {"choices": chat()["choices"] * 2}
    request = {"probe_id": "p", "number": 1, "started_at": "", "elapsed_s": 0.1, "request": "{}"}
    answer = Reply(
        probe_id="p", text="Paris.", finish_reason="stop", prompt_tokens=7, completion_tokens=2,
        logprobs=None, logprobs_problem=None,
    )  # fmt: skip

    def judged(text: str) -> str:
        return judge_n(Attempt(**request, status=200, body=text, error=None), answer).effect

    assert judged(f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n") == "not run"
    assert judged("\ufeff" + json.dumps(body)) == "honoured"


@pytest.mark.parametrize("name", ["stop", "n", "logit_bias", "max_tokens", "seed"])
def test_a_parameter_that_is_taken_and_ignored_is_found(tmp_path: Path, name: str) -> None:
    """And no other; a seed that is not kept is no departure."""
    found = probe(tmp_path, f"ignores:{name}")
    judged = judge_parameters(found.parameters, PARAMETERS)

    assert [n for n, effect in effects(found).items() if effect == "ignored"] == [name]
    assert (judged is None) == (name == "seed")
    assert judged is None or judged.name == f"ignored: {name}"


def test_a_refusal_is_no_departure(tmp_path: Path) -> None:
    """It says so, and the report shows its words."""

    def answer(asked: Asked) -> Answer | dict[str, object]:
        refused = {"stop", "logit_bias"} & asked.json.keys() or asked.json.get("n", 1) > 1
        return error(400, "not supported") if refused else chat("The Danube ends at the sea.")

    with FakeHost(answer) as host:
        found = probe_capabilities(tmp_path, Endpoint(base_url=host.url, model="m"), purse=plenty())

    assert {n: effects(found)[n] for n in ("stop", "n", "logit_bias")} == dict.fromkeys(
        ("stop", "n", "logit_bias"), "refused"
    )
    assert (
        judge_parameters([one for one in found.parameters if one.effect == "refused"], PARAMETERS)
        is None
    )


def test_a_dialect_without_them_is_not_asked(tmp_path: Path) -> None:
    """Messages have neither several replies nor a bias."""
    app = create_app(
        Host(engine=FakeEngine(), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001)
    )
    with running(app) as url:
        endpoint = Endpoint(base_url=url, model="tiny", dialect="messages", top_logprobs=0)
        found = probe_capabilities(tmp_path, endpoint, purse=plenty())

    assert list(effects(found)) == ["max_tokens", "seed"]


def test_an_audit_reports_ignored_parameters_and_decides_nothing_by_them(
    card: Path, tmp_path: Path
) -> None:
    """The weights are the published ones."""
    served = read_fault("ignores:n,stop", layers=2, catalogue=catalogue())
    engine = FakeEngine(margin=3.5)
    app = create_app(
        Host(
            engine=engine,
            tokenizer=FakeTokenizer(),
            model="tiny",
            window_s=0.001,
            tricks=served.tricks,
        )
    )
    with running(app) as url:
        report = run(configure(url, card, tmp_path / "run", capabilities=True))

    (found,) = [f for f in report.findings if f.aspect == "parameters"]
    assert (report.decision, found.decision) == ("consistent", "detected")
    assert "n" in found.name
    assert any(note.startswith("parameters are taken and ignored") for note in report.notes)


def reply(text: str) -> Reply:
    return Reply(
        probe_id="a", text=text, finish_reason="stop", prompt_tokens=1, completion_tokens=1,
        logprobs=None, logprobs_problem=None,
    )  # fmt: skip


def test_a_stop_string_is_a_word_that_comes_once_and_late() -> None:
    """Else a reply would not tell where it was to end."""
    assert stop_string("one two one one three four one") == "three"
    assert stop_string("a b c d") is None
    assert stop_string("") is None


@pytest.mark.parametrize(
    ("answer", "effect"),
    [
        (reply("one two one"), "honoured"),
        (reply("one two one three"), "honoured"),  # some hosts show the string itself
        (reply("one two one three four"), "ignored"),
        (reply("uno dos"), "not run"),
        (Problem(status=400, reason="HTTP 400: no", retryable=False), "refused"),
        (Problem(status=429, reason="HTTP 429", retryable=True, rate_limited=True), "not run"),
        (Problem(status=None, reason="reset", retryable=True), "not run"),
        (None, "not run"),
    ],
)
def test_stops_are_told_by_their_effect(answer: object, effect: str) -> None:
    """Another text than before tells nothing."""
    assert judge_stop("one two one three four", "three", answer).effect == effect


def test_a_bias_is_told_by_its_effect() -> None:
    """The wanted token again and again, the same text as before, or neither."""
    assert judge_bias("one two three", reply("xx xx xx")).effect == "honoured"
    assert judge_bias("one two three", reply("xxxxxx")).effect == "honoured"
    assert judge_bias("one two three", reply("one two")).effect == "ignored"
    assert judge_bias("one two three", reply("uno dos tres")).effect == "not run"
    told = Parameter(name="stop", effect="refused", detail="no")
    assert judge_parameters([told], PARAMETERS) is None
