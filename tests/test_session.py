"""An audit under way reads once what it has: each exchange, no ledger, cells by the reply."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from audits import FAULT, configure, host, run, write_card

from verifier.evidence.ledger import LedgerFile, Row
from verifier.files import stored
from verifier.files.run_folder import EXCHANGES, read_lines
from verifier.host import collect
from verifier.progress import Meter, Show
from verifier.records import Attempt, Report
from verifier.scoring import score
from verifier.steps import write_page
from verifier.wording import describe_about


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

    def count_row(*given: Any) -> Row:
        made = make_row(*given)
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


# -- how long a cause takes ----------------------------------------------------------------------


def test_a_guess_is_the_work_that_is_left_at_the_pace_so_far() -> None:
    """By a clock that the test moves; what was found on disk tells nothing."""
    now, done = [0.0], [100]
    meter = Meter(lambda: now[0])
    with meter.running(lambda: done[0]):
        now[0] += 5  # nothing new
    assert meter.seconds(10) is None
    for seconds, work in ((4.0, 20), (8.0, 20)):
        with meter.running(lambda: done[0]):
            now[0] += seconds
            done[0] += work

    assert meter.seconds(400) == pytest.approx(12.0 / 40 * 400)
    assert meter.seconds(0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "1 min"), (61, "2 min"), (360, "6 min"), (5400, "90 min"), (5401, "2 h"), (9e4, "25 h")],
)
def test_a_guess_is_rounded_up(seconds: float, said: str) -> None:
    """In the unit that people plan in."""
    assert describe_about(seconds) == f"about {said}"


def test_it_is_said_how_long_the_cause_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many seconds a token and column as scoring took so far, once the verdict stands."""
    ticks = itertools.count(step=100.0)  # each look at the clock is 100 s after the last
    monkeypatch.setattr("verifier.session.monotonic", lambda: next(ticks))
    lines: list[str] = []
    with host(FAULT) as url:
        config = configure(url, write_card(tmp_path), tmp_path / "run")
        report = run(config, show=Show(tell=lines.append, step=lambda *_: None))
    (said,) = [line for line in lines if line.startswith("inconsistent")]

    assert report.decision == "inconsistent"
    found = re.fullmatch(
        r"inconsistent, and that stands: now looking for the cause, about (\d+) min "
        r"\(Ctrl-C keeps the verdict; the same command goes on\)",
        said,
    )
    assert found
    # two builds, for each reply scored once so far: twice the seconds of all rounds so far
    assert int(found[1]) == math.ceil(2 * 100 * rounds_of(lines) / 60)


def rounds_of(lines: list[str]) -> int:
    """Rounds of replies that were told of before the verdict was."""
    told = [line for line in lines if re.match(r"\d+ repl", line)]
    before = lines[: next(n for n, line in enumerate(lines) if line.startswith("inconsistent"))]
    return len([line for line in told if line in before])
