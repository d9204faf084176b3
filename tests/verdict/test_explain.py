"""What accounts for the replies: the order among explanations, each beside what it precedes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hosts import routed_rows, rows_at
from simulate import case_of, make_plan, replies

from verifier.checks.check import Account
from verifier.checks.template.completions import Bypass, judge_completions
from verifier.checks.template.shown_prompts import Shown, ShownPrompt
from verifier.evidence.ledger import TEMPLATE, Ledger, Row
from verifier.records import REFERENCE, Finding
from verifier.verdict.combine import combine
from verifier.verdict.explain import explain, headline


def completions(rows: Sequence[Row]) -> Bypass:
    """Text completions of a host, whose prompts arrived as they were sent."""
    some = [replace(row, prompt_tokens=20, rendered={REFERENCE: 20}) for row in rows]
    return judge_completions(make_plan(), Ledger(rows=tuple(some)), list(replies(some).values()))


def shown_as(*names: str) -> Shown:
    """A prompt that the endpoint shows, and the renderings that give it."""
    prompt = ShownPrompt(probe_id="c0", names=names, differs_at=3, published="a", shown="b")
    return Shown(prompts=(prompt,), requests=1, prompt_tokens=9, completion_tokens=1)


def rendered_as(name: str, rows: Sequence[Row], *, ahead: float) -> list[Row]:
    """The rows, scored under another rendering too, that explains each by so many nats more."""
    return [
        replace(
            row, rendered={REFERENCE: 20, name: 24},
            text=row.text | {TEMPLATE + name: tuple(c + ahead for c in row.text[REFERENCE])},
        )
        for row in rows
    ]  # fmt: skip


def account_of(rows: Sequence[Row], **kept: Any) -> Account:
    """What accounts for these replies."""
    case = case_of(make_plan(), Ledger(rows=tuple(rows)), outcomes=replies(list(rows)), **kept)
    return explain(case, combine(case))


NOISY = rows_at(0.6, 8, seed=2)
QUIET_ROWS = rows_at(0.05, 8, seed=2)


def test_nothing_accounts_for_replies_that_fit() -> None:
    """Whatever is shown, and whatever completions say."""
    bypass = completions(rows_at(0.02, 12, seed=3))
    account = account_of(QUIET_ROWS, shown=shown_as("system-ignored"), completions=bypass)

    assert (account.by, account.names, account.differs) == ("published", None, False)
    assert account.faults == ()


def test_replies_that_differ_are_the_weights_where_nothing_else_is_known() -> None:
    """Of all replies."""
    account = account_of(NOISY)

    assert (account.by, account.names, account.members) == ("published", "weights", None)
    assert account.greedy_differs


def test_a_template_comes_before_what_is_shown_and_before_completions() -> None:
    """By its own evidence; completions change what noise is judged on, and not who names."""
    rows = rendered_as("no-template", QUIET_ROWS, ahead=5.0)
    bypass = completions(rows_at(0.02, 12, seed=3))
    alone, shown, both = (
        account_of(rows),
        account_of(rows, shown=shown_as("system-ignored")),
        account_of(rows, completions=bypass),
    )

    assert alone.template == "template:no-template"
    assert (alone.by, alone.names) == (shown.by, shown.names) == ("template", "template")
    assert alone.column == shown.column == both.column == "template:no-template"
    assert (both.by, both.names) == ("completions", "template")


def test_what_is_shown_comes_before_completions_and_before_weights() -> None:
    """Once the replies differ: it names, and decides nothing."""
    bypass = completions(rows_at(0.02, 12, seed=3))
    account = account_of(NOISY, shown=shown_as("system-ignored"), completions=bypass)

    assert (account.faults, account.names) == (("system-ignored",), "shown prompt")
    assert account_of(NOISY, shown=shown_as("system-ignored")).names == "shown prompt"


def test_completions_that_fit_come_before_weights() -> None:
    """The weights are the published ones, and chats are rendered in no way that is known."""
    fits, differs = (completions(rows_at(scale, 12, seed=3)) for scale in (0.02, 0.6))
    account = account_of(NOISY, completions=fits)

    assert (account.by, account.names, account.column) == ("completions", "completions", TEMPLATE)
    assert account_of(NOISY, completions=differs).names == "weights"


def test_a_part_of_the_replies_comes_before_all_of_them() -> None:
    """And says which: these alone are ranked for a name."""
    account = account_of(routed_rows(0.3, 40, seed=1))
    assert account.members is not None

    assert account.names == "part"
    assert 0 < account.members.sum() < 40


def test_the_longest_word_on_what_differs_is_the_last_checks() -> None:
    """What is long before what is sampled; neither of them is of the weights."""
    found = {
        aspect: Finding(
            aspect=aspect, decision="detected", name=f"a {aspect}", log_e=20.0, detail="",
            tokens_needed=None,
        )
        for aspect in ("sampler", "repeats", "context")
    }  # fmt: skip

    assert headline([]) is None
    assert headline([found["sampler"]]) == "the replies are not sampled as asked (a sampler)"
    assert headline(list(found.values())) == "what is long is cut without a word (a context)"
