"""A case: what a run folder holds, read once, and refused where it is not as written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hosts import rows_at
from simulate import case_of, make_plan, write_scored

from verifier.checks import CHECKS
from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger, Row, read_ledger
from verifier.files.run_folder import DEADLINE, EXCHANGES
from verifier.host.collect import Record
from verifier.plan_file import read_plan, write_plan
from verifier.verdict.case import read_case, read_deadline


def written(run: Path, scale: float = 0.05, count: int = 3) -> list[Row]:
    """A run folder of simulated replies."""
    rows = rows_at(scale, count, seed=1)
    write_plan(run, "", make_plan(), ())
    write_scored(run, rows)
    return rows


def test_a_case_holds_what_the_folder_does(tmp_path: Path) -> None:
    """Replies, their rows, and what each check keeps: nothing was asked beside."""
    rows = written(tmp_path / "run")
    case = read_case(tmp_path / "run")

    assert list(case.outcomes) == [row.probe_id for row in rows]
    assert [row.probe_id for row in case.scored] == [row.probe_id for row in rows]
    assert case.kept == {check.name: check.none for check in CHECKS}
    assert case.needed.keys() == case.kept.keys()
    assert (case.report, case.decision, case.findings) == (None, "inconclusive", ())
    assert (case.tokens_scored, case.deadline_s) == (90, None)


def test_what_is_at_hand_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the plan nor the ledger, nor a line of the exchanges."""
    run = tmp_path / "run"
    written(run)
    plan, ledger, record = read_plan(run), read_ledger(run), Record(run)
    record.update()

    def refuse(*_asked: object, **_how: object) -> None:
        raise AssertionError("read again")

    for name in ("verifier.verdict.case.read_plan", "verifier.verdict.case.read_ledger",
                 "verifier.host.collect.parse"):  # fmt: skip
        monkeypatch.setattr(name, refuse)
    case = read_case(run, plan=plan, ledger=ledger, record=record)

    assert case.plan is plan
    assert case.ledger is ledger


def test_a_row_of_another_reply_is_refused(tmp_path: Path) -> None:
    """Scores of one reply are held for no other."""
    run = tmp_path / "run"
    written(run)
    text = (run / EXCHANGES).read_text().replace("words", "others", 1)
    (run / EXCHANGES).write_text(text)

    with pytest.raises(ConfigError, match="the score is not that of the reply"):
        read_case(run)


@pytest.mark.parametrize("text", ["{}", '{"deadline_s": "soon"}', '{"deadline_s": null}', "["])
def test_a_deadline_that_is_no_time_is_refused(tmp_path: Path, text: str) -> None:
    """In one line that says what to do."""
    written(tmp_path / "run")
    (tmp_path / "run" / DEADLINE).write_text(text)

    with pytest.raises(ConfigError, match=r"deadline\.json: .*remove it"):
        read_deadline(tmp_path / "run")


def test_ordinary_rows_alone_are_read_as_calibrated() -> None:
    """Those of a panel speak of the template, and not of noise."""
    rows = rows_at(0.05, 4, seed=1)
    case = case_of(make_plan(), Ledger(rows=(*rows[:3], replace(rows[3], panel=True))))

    assert len(case.text) == len(case.scored) == 3
    assert len(case.ledger.rows) == 4
