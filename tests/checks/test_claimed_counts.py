"""Counts beyond what was asked: a finding of their own, and never what is reported as spent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import QUIET, configure, host_with
from fakes_engine import FakeEngine, FakeTokenizer, wordy_script
from simulate import decide, make_plan, simulate_row

from verifier.audit import audit
from verifier.checks.claimed_counts import judge_claimed, read_claimed
from verifier.config import Prices
from verifier.evidence.ledger import Ledger
from verifier.host.budget import charged_prompt, most_prompt_tokens
from verifier.host.exchange import most_prompt
from verifier.records import Attempt, Message, Outcome, Probe, Reply, Report, Request
from verifier.reference.loaded import Reference
from verifier.reports.junit import render_junit
from verifier.reports.markdown import render_markdown

ALLOWED = 30


def attempt(probe_id: str = "p0") -> Attempt:
    request = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": ALLOWED}
    return Attempt(
        probe_id=probe_id, number=1, started_at="", elapsed_s=0.1, request=json.dumps(request),
        status=200, body="", error=None,
    )  # fmt: skip


def reply(probe_id: str = "p0", *, prompt: int | None = 12, completion: int | None = 30) -> Reply:
    return Reply(
        probe_id=probe_id, text="words", finish_reason="length", prompt_tokens=prompt,
        completion_tokens=completion, logprobs=None, logprobs_problem=None,
    )  # fmt: skip


def judged(**counts: Any) -> Any:
    return judge_claimed(read_claimed([attempt()], {"p0": reply(**counts)}))


def decided(*, unanswered: tuple[Request, ...] = (), **counts: Any) -> Report:
    rng = np.random.default_rng(3)
    rows = tuple(simulate_row(rng, f"p{n}", scale=0.02) for n in range(14))
    outcomes: dict[str, Outcome] = {row.probe_id: reply(row.probe_id) for row in rows}
    outcomes["p3"] = reply("p3", **counts)
    return decide(
        make_plan(prices=Prices(prompt=1.0, completion=2.0)), Ledger(rows=rows),
        attempts=[attempt(row.probe_id) for row in rows], outcomes=outcomes, unanswered=unanswered,
    )  # fmt: skip


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"completion": 31},  # an end that is counted
        {"completion": 0, "prompt": 0},
        {"completion": None, "prompt": None},
        {"prompt": 340},  # a system prompt of the host's own
        {"prompt": 4_000},
    ],
    ids=str,
)
def test_counts_of_honest_hosts_are_no_finding(counts: dict[str, Any]) -> None:
    """A constant, a short prompt of the host's own, an end of turn: all of that is usual."""
    assert judged(**counts) is None


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"completion": 32}, "32 of 30 for p0: a limit that is not heeded, or a wrong count"),
        ({"completion": 10**9}, "1,000,000,000 of 30"),
        ({"prompt": 100_000}, "100,000 tokens where"),
        ({"prompt": 100_000}, "a long prompt of the host's own, or a wrong count"),
    ],
    ids=str,
)
def test_counts_beyond_what_was_asked_are_a_finding(counts: dict[str, Any], said: str) -> None:
    """With the numbers, and what they may come from; no motive."""
    found = judged(**counts)

    assert (found.aspect, found.decision, found.log_e) == ("usage", "detected", None)
    assert said in found.detail


# -- known answer --------------------------------------------------------------------------------


def test_what_a_plain_request_can_count_is_what_was_paid_for() -> None:
    """So that a claim which is not believed is reported at the price it was charged at."""
    said = ("Sei kurz. \u00e9\u4e2d\n", "Why?")
    messages = (
        Message(role="system", content=said[0]),
        Message(role="user", content=said[1]),
    )
    asked = Probe(id="p", kind="k", messages=messages, max_tokens=8)
    body = {"model": "m", "messages": [{"role": m.role, "content": m.content} for m in messages]}

    assert most_prompt(replace(attempt(), request=json.dumps(body))) == most_prompt_tokens(asked)
    assert charged_prompt(asked, 10**9) == most_prompt_tokens(asked)
    assert charged_prompt(asked, most_prompt_tokens(asked) + 300) == most_prompt_tokens(asked) + 300


# -- one audit -----------------------------------------------------------------------------------


def test_an_audit_reports_counts_beyond_its_limit(card: Path, tmp_path: Path) -> None:
    """Of a host that takes the limit and ignores it; the weights are not accused."""

    def talkative() -> FakeEngine:
        return FakeEngine(margin=3.5, script=lambda ids: (*wordy_script(ids), *wordy_script(ids)))

    reference = Reference(engine=talkative(), tokenizer=FakeTokenizer())
    with host_with("ignores:max_tokens", talkative()) as url:
        report = audit(
            configure(url, card, tmp_path / "run", max_tokens=8), api_key=None,
            load_reference=lambda: reference, show=QUIET,
        )  # fmt: skip

    (found,) = [f for f in report.findings if f.aspect == "usage"]
    assert (found.decision, found.name) == ("detected", "counts beyond what was asked")
    assert report.decision == "consistent"


# -- what is spent -------------------------------------------------------------------------------


def test_a_claim_moves_neither_verdict_nor_cost() -> None:
    """What was asked is reported as spent, and the claim is said where a reader sees it."""
    plain, boasting = decided(), decided(completion=10**9, prompt=10**8)

    assert (boasting.decision, boasting.summary) == (plain.decision, plain.summary)
    assert boasting.usage.completion_tokens == plain.usage.completion_tokens
    assert (boasting.usage.cost_usd or 0) < 2 * (plain.usage.cost_usd or 0)
    assert any("1,000,000,000 of 30" in note for note in boasting.notes)
    assert "1,000,000,000 of 30" in render_markdown(boasting)
    assert "usage" not in render_junit(boasting)  # no test of the policy
    assert [f.aspect for f in boasting.findings if f not in plain.findings] == ["usage"]


def test_a_count_below_the_text_is_not_reported() -> None:
    """Where we have the tokens, an endpoint that counts none is not believed."""
    assert decided(completion=0).usage.completion_tokens == decided().usage.completion_tokens - 1


def test_requests_without_an_answer_on_record_are_counted_and_said() -> None:
    """They may have been billed."""
    request = Request(
        of="exchanges.jsonl", probe_id="p9", number=1, sent_at="", max_tokens=30, prompt_tokens=70
    )
    plain, stopped = decided(), decided(unanswered=(request, request))

    assert stopped.usage.requests == plain.usage.requests + 2
    (note,) = [note for note in stopped.notes if note not in plain.notes]
    assert note.startswith("2 requests have no answer on record")
    assert "140 prompt and 60 completion tokens at most" in note
