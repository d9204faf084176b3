"""Speed and billing: quantiles of what was recorded, and tokens billed against tokens shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from audits import configure, host, run
from simulate import make_plan, make_reply

from verifier.checks.speed import CHECK, SHOWN_TOKENS, ShownTokens
from verifier.evidence.ledger import Ledger
from verifier.files.run_folder import read_lines
from verifier.records import Attempt, Finding, Outcome, Report
from verifier.verdict.case import make_case
from verifier.verdict.decide import decide

WISHED = make_plan(configuration={"audit": {"speed": True}})


def attempt(n: int, *, elapsed_s: float, status: int = 200, usage: object = None) -> Attempt:
    """An answer as it was recorded."""
    body = {"choices": [{"message": {"content": "words"}, "finish_reason": "stop"}], "usage": usage}
    return Attempt(
        probe_id=f"p{n}", number=1, started_at="2026-01-01T00:00:00.000+00:00",
        elapsed_s=elapsed_s, request="{}", status=status, body=json.dumps(body), error=None,
    )  # fmt: skip


def judge(*counts: tuple[int, int], attempts: tuple[Attempt, ...] = ()) -> Report:
    """The report on replies with so many tokens billed and shown."""
    outcomes: dict[str, Outcome] = {
        f"p{n}": replace(make_reply(f"p{n}"), completion_tokens=billed)
        for n, (billed, _) in enumerate(counts)
    }
    kept = tuple(
        ShownTokens(probe_id=f"p{n}", thought=0, answer=shown)
        for n, (_, shown) in enumerate(counts)
    )
    case = make_case(
        WISHED, Ledger(rows=()), outcomes=outcomes, attempts=attempts, kept={CHECK.name: kept}
    )
    return decide(case)


def billing(report: Report) -> list[Finding]:
    """What is said of tokens billed."""
    return [finding for finding in report.findings if finding.aspect == "billing"]


# -- level -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [0, 1, 4])
def test_the_end_of_a_reply_and_marks_of_a_thought_are_not_remarked(more: int) -> None:
    """Hosts count what they do not show: an end, and the marks around a thought."""
    assert billing(judge(*[(40 + more, 40)] * 8)) == []


# -- power -----------------------------------------------------------------------------------------


def test_thoughts_that_are_hidden_show_in_what_is_billed() -> None:
    """Far more tokens than the published tokenizer makes of what came."""
    (finding,) = billing(judge(*[(400, 40)] * 8))

    assert finding.decision == "detected"
    assert "3,200 completion tokens are counted for 8 replies, of which 320 are shown" in (
        finding.detail
    )


# -- known answer ----------------------------------------------------------------------------------


def test_quantiles_errors_and_cached_tokens_are_told() -> None:
    """Of what was recorded: three answers and one error."""
    usage = {"prompt_tokens_details": {"cached_tokens": 16}}
    attempts = (
        attempt(0, elapsed_s=0.5, usage=usage), attempt(1, elapsed_s=1.0),
        attempt(2, elapsed_s=1.5), attempt(3, elapsed_s=0.1, status=503),
    )  # fmt: skip
    notes = " ".join(judge((30, 30), (30, 30), (30, 30), attempts=attempts).notes)

    assert "3 answers in this audit, which is no load test: 1 s (9 in 10 between 0.55 and" in notes
    assert "30 completion tokens a second (9 in 10 between 21 and 57)" in notes
    assert "1 of 4 requests brought no answer (HTTP 503: 1)" in notes
    assert "billed for 3 replies: 90 completion tokens, where what is shown makes 90" in notes
    assert "16 said to be cached" in notes


def test_nothing_is_said_unless_it_is_wished() -> None:
    """So reports of audits that did not ask for it stay as they are."""
    case = make_case(make_plan(), Ledger(rows=()), attempts=(attempt(0, elapsed_s=1.0),))

    assert not [note for note in decide(case).notes if "load test" in note or "billed" in note]


# -- one audit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_audit_tells_speed_and_billing_beside_its_verdict(
    card: Path, tmp_path: Path, stream: bool
) -> None:
    """Streams with the time to their first bytes; nothing is asked for it."""
    out = tmp_path / "run"
    with host() as url:
        report = run(configure(url, card, out, speed=True, endpoint={"stream": stream}))

    notes = " ".join(report.notes)
    assert report.decision == "consistent"
    assert ("first bytes of" in notes) is stream
    assert "billed for" in notes
    assert billing(report) == []
    assert len(list(read_lines(out / SHOWN_TOKENS))) == report.usage.replies
