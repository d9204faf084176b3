"""The benchmark of packs: audits in orders of their own, and what is told of them."""

from __future__ import annotations

from hosts import rows_at
from simulate import make_plan, replies

from verifier.evidence.ledger import Ledger
from verifier.lab.bench.packs import repeated, sum_up, tabulate_packs


def test_each_audit_draws_in_an_order_of_its_own_and_comes_again() -> None:
    """By the seed alone; quiet replies are consistent, far ones are not."""
    quiet, far = (rows_at(scale, 60, seed=3) for scale in (0.05, 0.8))
    plan = make_plan(min_replies=10)

    first, again = (
        repeated(plan, Ledger(rows=tuple(quiet)), replies(quiet), audits=4, seed=7)
        for _ in range(2)
    )
    other = repeated(plan, Ledger(rows=tuple(far)), replies(far), audits=4, seed=7)

    assert first == again
    assert len({audit.log_e for audit in first}) > 1
    assert {audit.decision for audit in first} == {"consistent"}
    assert {audit.decision for audit in other} == {"inconsistent"}


def test_the_table_has_a_row_for_each_host() -> None:
    """With what the same replies cost under weights beside it."""
    rows = rows_at(0.05, 60, seed=3)
    made = sum_up(
        repeated(make_plan(min_replies=10), Ledger(rows=tuple(rows)), replies(rows), audits=3,
                 seed=7)
    )  # fmt: skip
    figure = {"host": "reference", "policy": "screen", "questions": 60}

    told = tabulate_packs({"figures": [{**figure, "pack": made, "weights": made, "texts": made}]})

    rows = told.splitlines()[2:]
    assert rows[0].startswith("| honest | pack of weights | screen | 3 | 3 | 0 | 0 |")
    assert rows[1].startswith("| honest | a host's texts | screen | 3 | 3 | 0 | 0 |")
