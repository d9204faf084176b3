"""False alarms that another audit's changelog owns up to, each tried here: none accuses anybody.

jayson-yxj/relaycheck, CHANGELOG of 2026-09: sixteen places where an honest endpoint was alarmed
about, or something was called clean that had not been looked at. Each is given as the endpoint
sends it, by the name that it has there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from fakes_host import chat
from simulate import make_plan, make_reply, simulate_row

from verifier.checks.capabilities.parameters import judge_n
from verifier.checks.streaming import CHECK, Kept
from verifier.evidence.ledger import Ledger
from verifier.host.exchange import HIDDEN, UNSHOWN, Problem, parse
from verifier.records import Attempt, Failure, NotJudged, Outcome, Reply, Report
from verifier.verdict.case import make_case
from verifier.verdict.decide import decide

ALLOWED: Final = 40
REPLY: Final = make_reply("p")


def attempt(body: Any, *, status: int = 200, probe_id: str = "p0", **fields: Any) -> Attempt:
    """An answer as it came; the request allows 40 tokens and offers a tool."""
    tool = {"type": "function", "function": {"name": "add"}}
    asked = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": ALLOWED}
    return Attempt(
        probe_id=probe_id, number=1, started_at="2026-01-01T00:00:00+00:00",
        request=json.dumps(asked | {"tools": [tool]}), status=status,
        body=body if isinstance(body, str) else json.dumps(body), error=None,
        **({"elapsed_s": 0.1} | fields),
    )  # fmt: skip


def report_on(outcomes: dict[str, Outcome], attempts: Sequence[Attempt] = (), **how: Any) -> Report:
    """The report on these outcomes; replies among them are scored as honest ones."""
    rng = np.random.default_rng(3)
    rows = tuple(
        simulate_row(rng, name, scale=0.02)
        for name, outcome in outcomes.items()
        if isinstance(outcome, Reply) and not name.startswith("stream-")
    )
    plan = make_plan(configuration={"audit": {"speed": True}})
    return decide(make_case(plan, Ledger(rows=rows), outcomes=outcomes, attempts=attempts, **how))


def ends(finish: str, text: str | None, usage: dict[str, Any], **message: Any) -> dict[str, Any]:
    """A body that ends so."""
    body = chat(text, **message) | {"usage": usage}
    return body | {"choices": [body["choices"][0] | {"finish_reason": finish}]}


def assert_nobody_is_accused(report: Report) -> None:
    """No verdict against the endpoint, and no departure that is detected."""
    assert report.decision != "inconsistent"
    roles = {"usage", "streaming", "billing", "parameters", "named"}
    assert [f for f in report.findings if f.decision == "detected" and f.aspect not in roles] == []


def streams(*threes: tuple[Reply, Reply, Reply]) -> list[str]:
    """What is said of streams: decisions of its finding."""
    outcomes: dict[str, Outcome] = {}
    for n, (first, again, other) in enumerate(threes, 1):
        outcomes |= {f"p{n}": first, f"stream-{n}-again": again, f"stream-{n}-other": other}
    kept = Kept(of={n: f"p{n}" for n in range(1, len(threes) + 1)})
    found = report_on(outcomes, kept={CHECK.name: kept})
    assert_nobody_is_accused(found)
    return [f.decision for f in found.findings if f.aspect == "streaming"]


# -- what alarmed ----------------------------------------------------------------------------------


def bursts_of_429() -> None:
    """rel-100: a host that says "too many" was called unable to bear the load."""
    refused = attempt("slow down", status=429)
    found = parse(refused)
    assert isinstance(found, Problem)
    assert found.retryable
    assert found.rate_limited
    failures: dict[str, Outcome] = {
        f"p{n}": Failure(probe_id=f"p{n}", status=429, reason="HTTP 429: slow down", attempts=8)
        for n in range(12)
    }
    report = report_on(failures, [refused] * 12)
    assert report.decision == "inconclusive"
    assert any("HTTP 429: 12" in note for note in report.notes)


def squeezed_by_our_own_limit() -> None:
    """canary-100: a reply that the limit emptied was taken for one that lost the prompt."""
    found = parse(attempt(ends("length", "", {"completion_tokens": ALLOWED})))
    assert isinstance(found, NotJudged)
    assert found.reason.startswith(UNSHOWN)


def another_wording_of_an_answer() -> None:
    """stream-100: two wordings of one answer were called two backends."""
    told = replace(REPLY, text="37 * 41 = 1517")
    short = replace(REPLY, text="1517")
    assert streams((told, short, short), (short, told, told)) == ["excluded"]


def a_beginning_is_no_repetition() -> None:
    """stream-100: a host was called repeatable because one text began like the other."""
    long = replace(REPLY, text="one two three four five six seven eight nine ten")
    begun = replace(REPLY, text=long.text[:-4])
    assert streams((long, begun, replace(REPLY, text="another"))) == ["excluded"]


def cut_at_different_places() -> None:
    """stream-100: two texts that the limit cut were compared, after hidden thoughts."""
    cut = replace(REPLY, finish_reason="length", text="one two", completion_tokens=ALLOWED)
    shorter = replace(cut, text="one")
    assert streams((cut, shorter, replace(cut, text="one tw"))) == ["excluded"]


def a_refusal_that_quotes() -> None:
    """ctx-100: "I only see the mark X" was read as if X had been seen. No text is searched here."""
    said = replace(REPLY, text="I only see one mark: ALPHA. There is no BETA in the text.")
    assert_nobody_is_accused(report_on({f"p{n}": said for n in range(12)}))


# -- what was called clean without a look ----------------------------------------------------------


def every_answer_is_404() -> None:
    """bill-clean: six panels that were not there were "reachable"."""
    failures: dict[str, Outcome] = {
        f"p{n}": Failure(probe_id=f"p{n}", status=404, reason="HTTP 404", attempts=1)
        for n in range(12)
    }
    assert report_on(failures).decision == "inconclusive"


def empty_answers() -> None:
    """id-clean: an empty answer was a usable one."""
    found = parse(attempt(ends("stop", " ", {"completion_tokens": 1})))
    assert isinstance(found, NotJudged)
    assert report_on({f"p{n}": found for n in range(12)}).decision == "inconclusive"


def nothing_was_run() -> None:
    """params-clean: an empty table of parameters was clean."""
    assert streams() == []
    report = report_on({})
    assert report.decision == "inconclusive"
    assert not [f for f in report.findings if f.decision == "excluded"]


def thoughts_that_left_no_text() -> None:
    """An empty answer behind hidden thoughts was "ok"."""
    usage = {"completion_tokens": 40, "completion_tokens_details": {"reasoning_tokens": 40}}
    found = parse(attempt(ends("stop", "", usage)))
    assert isinstance(found, NotJudged)
    assert found.reason.startswith(HIDDEN)


# -- what a host may do ----------------------------------------------------------------------------


def prose_where_a_tool_was_offered() -> None:
    """tools: "auto" means that the model need not call."""
    assert isinstance(parse(attempt(chat("It is 4."))), Reply)


def a_page_with_status_200() -> None:
    """logprobs, n and tools: a body that is no JSON was "parameter ignored"."""
    page = attempt("<html><title>One moment</title></html>")
    found = parse(page)
    assert isinstance(found, Problem)
    assert judge_n(page, found).effect == "not run"


def thoughts_beyond_the_limit() -> None:
    """max_tokens: some limits bound what is shown, and thoughts are counted on top."""
    usage = {"completion_tokens": 900, "completion_tokens_details": {"reasoning_tokens": 870}}
    thinks = attempt(chat("4.") | {"usage": usage})
    found = parse(thinks)
    assert isinstance(found, NotJudged)
    outcomes: dict[str, Outcome] = {f"p{n}": replace(REPLY, probe_id=f"p{n}") for n in range(1, 13)}
    report = report_on(outcomes | {"p0": found}, [thinks])
    assert_nobody_is_accused(report)
    (told,) = [f for f in report.findings if f.aspect == "usage"]
    assert "a limit that is not heeded, or does not count thoughts, or a wrong count" in told.detail


def fenced_json() -> None:
    """response_format: JSON in a code fence was called none. A text is kept as it came."""
    text = '```json\n{"a": 1}\n```'
    found = parse(attempt(chat(text)))
    assert isinstance(found, Reply)
    assert found.text == text


def counts_by_other_names() -> None:
    """stream-101: counts in Anthropic's words were called missing."""
    usage = {"input_tokens": 7, "output_tokens": 2}
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "Hi."}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage},
    ]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    for body in (chat("Hi.") | {"usage": usage}, stream):
        found = parse(attempt(body))
        assert isinstance(found, Reply)
        assert (found.prompt_tokens, found.completion_tokens) == (7, 2)


def thought_first_and_then_at_once() -> None:
    """stream-102: a host that thinks for long and then streams fast was called buffered."""
    slow = attempt('data: {"choices": []}\n\n', elapsed_s=42.0, first_s=40.0)
    outcomes: dict[str, Outcome] = {f"p{n}": replace(REPLY, probe_id=f"p{n}") for n in range(12)}
    report = report_on(outcomes, [replace(slow, probe_id=name) for name in outcomes])
    assert_nobody_is_accused(report)
    assert [f for f in report.findings if f.aspect in ("streaming", "billing")] == []
    assert any("first bytes of 12 streams after 40 s" in note for note in report.notes)


ALARMS: Final[tuple[Callable[[], None], ...]] = (
    bursts_of_429, squeezed_by_our_own_limit, another_wording_of_an_answer,
    a_beginning_is_no_repetition, cut_at_different_places, a_refusal_that_quotes,
    every_answer_is_404, empty_answers, nothing_was_run, thoughts_that_left_no_text,
    prose_where_a_tool_was_offered, a_page_with_status_200, thoughts_beyond_the_limit,
    fenced_json, counts_by_other_names, thought_first_and_then_at_once,
)  # fmt: skip


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda alarm: alarm.__name__)
def test_no_false_alarm_is_raised_here(alarm: Callable[[], None]) -> None:
    """Each is what its docstring says."""
    alarm()
