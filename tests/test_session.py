"""An audit under way reads once what it has: each exchange, no ledger, cells by the reply."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from audits import configure, host, run, write_card

from verifier.evidence.ledger import LedgerFile, Row
from verifier.files import stored
from verifier.files.run_folder import EXCHANGES, read_lines
from verifier.host import collect
from verifier.records import Attempt, Report
from verifier.scoring import score
from verifier.steps import write_page


@dataclass(kw_only=True)
class Counted:
    """How often an audit did what, until it wrote its page."""

    parsed: Counter[str] = field(default_factory=Counter)  # by probe: attempts as read back
    checked: Counter[str] = field(default_factory=Counter)  # by line: attempts
    ledgers: int = 0
    rows: Counter[str] = field(default_factory=Counter)  # by probe: cells computed
    asked: int = 0  # lines of the exchanges
    replies: int = 0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """An audit of an honest host, from its plan to its verdict."""
    folder, counted, open_ = tmp_path_factory.mktemp("audit"), Counted(), True
    parse, check, make_row = collect.parse, stored.check, score._row

    def count_parse(attempt: Attempt, **how: Any) -> Any:
        if open_ and how.get("claims", True):  # what is asked live is parsed without its claims
            counted.parsed[attempt.probe_id] += 1
        return parse(attempt, **how)

    def count_check(raw: bytes, kind: Any, *, where: str, advice: str) -> Any:
        if open_ and kind is Attempt:
            counted.checked[where] += 1
        if open_ and kind is LedgerFile:
            counted.ledgers += 1
        return check(raw, kind, where=where, advice=advice)

    def count_row(columns: Any) -> Row:
        made = make_row(columns)
        counted.rows[made.probe_id] += 1
        return made

    def end(run_: Path) -> Report:
        nonlocal open_
        open_ = False
        return write_page(run_)

    with pytest.MonkeyPatch.context() as patched, host() as url:
        patched.setattr(collect, "parse", count_parse)
        patched.setattr(stored, "check", count_check)
        patched.setattr(score, "_row", count_row)
        patched.setattr("verifier.audit.write_page", end)
        report = run(configure(url, write_card(folder), folder / "run"))
    counted.asked = len(list(read_lines(folder / "run" / EXCHANGES)))
    counted.replies = report.usage.replies
    assert 8 <= counted.asked <= 16
    return counted


def test_each_exchange_is_parsed_once(honest: Counted) -> None:
    """However many rounds it takes."""
    assert len(honest.parsed) == honest.asked
    assert set(honest.parsed.values()) == {1}


def test_each_line_of_the_exchanges_is_read_once(honest: Counted) -> None:
    """Whoever wants to know what was asked: outcomes, the budget, or what has no answer."""
    assert len(honest.checked) == honest.asked
    assert set(honest.checked.values()) == {1}


def test_the_ledger_is_not_read_back(honest: Counted) -> None:
    """It was scored here, and is at hand."""
    assert honest.ledgers == 0


def test_cells_of_a_reply_are_computed_once(honest: Counted) -> None:
    """Each look adds those of new replies to the book."""
    assert len(honest.rows) == honest.replies
    assert set(honest.rows.values()) == {1}
