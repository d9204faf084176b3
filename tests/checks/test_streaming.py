"""Streams against whole replies: what differs is named, and honest hosts are not accused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audits import configure, make_engine, run
from fakes_engine import FakeTokenizer
from simulate import make_plan, make_reply

from verifier.checks.streaming import CHECK, PAIRS, Kept, read_streaming_probes
from verifier.evidence.ledger import Ledger
from verifier.host.collect import read_attempts
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import Failure, Finding, Outcome, Reply, Report
from verifier.reference.renderings.catalogue import catalogue
from verifier.verdict.case import make_case
from verifier.verdict.decide import decide


def audit(card: Path, out: Path, fault: str = "none", **changes: Any) -> Report:
    """An audit of a testbed host that asks both ways."""
    app = create_app(
        Host(
            engine=make_engine(), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001,
            tricks=read_fault(fault, layers=2, catalogue=catalogue()).tricks,
        )
    )  # fmt: skip
    with running(app) as url:
        return run(configure(url, card, out, streaming=True, **changes))


def found(report: Report) -> list[Finding]:
    """What is said of streams."""
    return [finding for finding in report.findings if finding.aspect == "streaming"]


def judge(*threes: tuple[Outcome, Outcome, Outcome]) -> list[Finding]:
    """What is said of an ordinary reply, the same asked again, and the same the other way."""
    outcomes: dict[str, Outcome] = {}
    for n, (first, again, other) in enumerate(threes, 1):
        outcomes |= {f"p{n}": first, f"stream-{n}-again": again, f"stream-{n}-other": other}
    kept = Kept(of={n: f"p{n}" for n in range(1, len(threes) + 1)})
    case = make_case(make_plan(), Ledger(rows=()), outcomes=outcomes, kept={CHECK.name: kept})
    return found(decide(case))


REPLY = make_reply("p")
OTHER = replace(REPLY, text="other words")


# -- level -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_honest_host_answers_alike_both_ways(card: Path, tmp_path: Path, stream: bool) -> None:
    """Whichever way the audit asks; the verdict is not touched."""
    report = audit(card, tmp_path / "run", endpoint={"stream": stream})

    (finding,) = found(report)
    assert report.decision == "consistent"
    assert finding.decision == "excluded"
    assert finding.detail == "3 questions asked both ways are answered alike, texts included"


def test_a_host_that_repeats_no_text_is_not_held_to_one() -> None:
    """Its texts and counts of replies may differ; nothing else may."""
    (finding,) = judge((REPLY, OTHER, replace(OTHER, text="third", completion_tokens=7)))

    assert finding.decision == "excluded"
    assert finding.detail.endswith("but for texts, as asking twice gives others")


# -- power -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"finish_reason": "stop"}, "finish_reason"),
        ({"prompt_tokens": 19}, "prompt_tokens"),
        ({"prompt_tokens": None}, "prompt_tokens"),
        ({"thought": "hm"}, "thought, text"),
        ({"token_ids": (1, 2)}, "token_ids"),
        ({"text": "other words"}, "text"),
        ({"completion_tokens": 31}, "completion_tokens"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], name: str) -> None:
    """By the field, as it is called where it is answered."""
    (finding,) = judge((REPLY, REPLY, replace(REPLY, **changes)), (REPLY, REPLY, REPLY))

    assert finding.decision == "detected"
    assert finding.name == f"streams differ from whole replies: {name}"
    assert "in 1 of 2" in finding.detail


# -- known answer ----------------------------------------------------------------------------------


def test_an_endpoint_without_streams_is_told_so() -> None:
    """Where every question fails the other way."""
    failure = Failure(probe_id="x", status=400, reason="HTTP 400: no streams", attempts=1)
    (finding,) = judge((REPLY, REPLY, failure))

    assert finding.name == "no answer as a stream"
    assert "no streams" in finding.detail


def test_nothing_is_said_where_nothing_was_asked() -> None:
    """As in every folder of an audit that did not wish it."""
    assert judge() == []


# -- one audit -------------------------------------------------------------------------------------


def test_a_host_whose_streams_count_and_end_in_their_own_way_is_named(
    card: Path, tmp_path: Path
) -> None:
    """Beside a consistent verdict: it says nothing of the weights. Asked once, and no more."""
    out = tmp_path / "run"
    report = audit(card, out, "streams:other")

    (finding,) = found(report)
    assert report.decision == "consistent"
    assert finding.name == "streams differ from whole replies: finish_reason, prompt_tokens"
    assert len(read_streaming_probes(out)) == 2 * PAIRS
    asked = [a for a in read_attempts(out) if a.probe_id.startswith("stream-")]
    assert len(asked) == 2 * PAIRS
    assert report.usage.failures == report.usage.not_judged == 0
    assert all(isinstance(reply, Reply) for reply in (REPLY, OTHER))
