"""What a reader must know beside the verdict, and in which order."""

from __future__ import annotations

from hosts import judge, rows_at
from simulate import decide, make_plan, replies

from verifier.checks.template.shown_prompts import Shown, ShownPrompt
from verifier.config import Policy
from verifier.evidence.ledger import Ledger
from verifier.records import REFERENCE, Failure, NotJudged


def test_a_report_says_what_of_its_card_nobody_has_checked() -> None:
    """Whatever the verdict."""
    notes = ("nobody has checked what the card says of sampling",)
    report = judge(rows_at(0.0, 1, seed=1), make_plan(card_notes=notes))

    assert set(notes) <= set(report.notes)
    assert not set(notes) & set(judge(rows_at(0.0, 1, seed=1)).notes)


def test_notes_come_in_their_order() -> None:
    """What was not judged, the card, the channels, the answers, the budget, what was beside."""
    policy = Policy(noise=("int8-class rounding", "another model"))
    plan = make_plan(policy=policy, card_notes=("the card",), budget_completion_tokens=320)
    rows = rows_at(0.05, 10, seed=1)
    outcomes = replies(rows) | {
        "x1": Failure(probe_id="x1", status=500, reason="boom", attempts=4),
        "x2": NotJudged(probe_id="x2", reason="empty", prompt_tokens=3, completion_tokens=0),
    }
    shown = Shown(
        prompts=(
            ShownPrompt(probe_id="c0", names=(REFERENCE,), differs_at=None, published="", shown=""),
        ),
        requests=1, prompt_tokens=9, completion_tokens=1,
    )  # fmt: skip
    report = decide(plan, Ledger(rows=tuple(rows)), outcomes=outcomes, shown=shown)
    words = (
        "int8-class rounding was not judged", "the card", "log-probabilities were not asked for",
        "1 probes failed, most often: boom", "1 answers say nothing about the weights",
        "1 prompts that the endpoint shows are rendered as published",
    )  # fmt: skip
    places = [next(n for n, note in enumerate(report.notes) if w in note) for w in words]

    assert places == sorted(places)


def test_an_audit_without_a_verdict_says_that_its_budget_ended() -> None:
    """Where the next reply would not be paid for; not beside a verdict."""
    rows = rows_at(0.05, 3, seed=1)
    short = decide(
        make_plan(budget_completion_tokens=100), Ledger(rows=tuple(rows)), outcomes=replies(rows)
    )
    enough = decide(make_plan(), Ledger(rows=tuple(rows)), outcomes=replies(rows))
    ended = "the budget of 100 completion tokens ended first"

    assert short.decision == enough.decision == "inconclusive"
    assert ended in short.notes
    assert not any("ended first" in note for note in enough.notes)
