"""A case: a run folder, read once between two requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifier.checks import ASPECTS, CHECKS
from verifier.checks.check import Case
from verifier.evidence.defaults import judge_by_default
from verifier.evidence.ledger import Ledger, read_ledger
from verifier.evidence.stacks import read_beside
from verifier.files.run_folder import DEADLINE, LEDGER
from verifier.files.stored import read_record
from verifier.host.collect import Record, read_unanswered
from verifier.plan_file import Plan, read_plan, read_probes
from verifier.records import (
    Attempt,
    NotJudged,
    Outcome,
    Probe,
    Reply,
    Report,
    Request,
    Seconds,
)
from verifier.scoring.score_file import digest_of, refuse_others
from verifier.verdict.combine import needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the last command ended that came to no verdict: all that `deadline.json` holds."""

    deadline_s: Seconds


def read_case(
    run: Path, *, plan: Plan | None = None, ledger: Ledger | None = None,
    record: Record | None = None, digest: Callable[[Reply | NotJudged], str] = digest_of,
) -> Case:  # fmt: skip
    """What a run folder holds. Raises ConfigError where a record or a score is not as written.

    What is at hand already is not read again: `plan`, `ledger`, and the `record` of the exchanges.
    """
    plan = read_plan(run) if plan is None else plan
    record = Record(run) if record is None else record
    record.update()
    outcomes = record.outcomes(max_attempts=plan.max_attempts)
    return make_case(
        plan,
        own_ledger(run, outcomes, ledger=ledger, digest=digest),
        run=run,
        outcomes=outcomes,
        attempts=record.attempts,
        unanswered=_unanswered(run, record),
        probes=read_probes(run),
        kept={check.name: check.read(run, plan, outcomes) for check in CHECKS},
        deadline_s=read_deadline(run),
    )


def provisionally(plan: Plan, *, floor: str = "") -> str:
    """How the first line of a verdict begins that rests on a floor of other cards; "": it does not.

    `floor`: what the floor is in the place of theirs.
    """
    lent = None if plan.calibrated is None else plan.calibrated.provisional
    if lent is None or plan.by_texts:
        return ""
    taken = floor or f"the honest noise is taken from {lent.lent_by}"
    return f"provisional: nobody has calibrated {plan.card}; {taken}: "


def _unanswered(run: Path, record: Record) -> tuple[Request, ...]:
    """Requests without an answer on record, in the run folder and in those within it."""
    folders = dict.fromkeys(asked.folder for check in CHECKS for asked in check.asked)
    within = (read_unanswered(run / name) for name in folders if name)
    return (*read_unanswered(run, record), *(request for some in within for request in some))


def make_case(
    plan: Plan,
    ledger: Ledger,
    *,
    run: Path = Path(),
    outcomes: Mapping[str, Outcome] | None = None,
    attempts: Sequence[Attempt] = (),
    unanswered: tuple[Request, ...] = (),
    probes: tuple[Probe, ...] = (),
    kept: Mapping[str, Any] | None = None,
    deadline_s: float | None = None,
    report: Report | None = None,
) -> Case:
    """A case of what is at hand; checks that `kept` does not name have asked nothing.

    The plan's calibration is read as it holds for the reference that scored; before anything is
    scored there may be none.
    """
    why, default = "", ""
    if plan.calibrated is not None or ledger.rows or ledger.sampled:
        beside = read_beside(plan.calibration, ledger.engine)
        why = "" if plan.by_texts else beside.why
        if why:
            plan = plan.model_copy(update={"calibrated": beside.calibration})
        ledger, default = judge_by_default(ledger, [*plan.greedy_defaults], plan.calibration.text)
    return Case(
        run=run,
        plan=plan,
        ledger=ledger,
        default=default,
        outcomes=outcomes or {},
        attempts=attempts,
        unanswered=unanswered,
        probes=probes,
        kept={check.name: check.none for check in CHECKS} | dict(kept or {}),
        aspects=ASPECTS,
        needed=needed(plan),
        reference=why,
        deadline_s=deadline_s,
        report=report,
    )


def own_ledger(
    run: Path, outcomes: Mapping[str, Outcome], *, ledger: Ledger | None = None,
    digest: Callable[[Reply | NotJudged], str] = digest_of,
) -> Ledger:  # fmt: skip
    """The ledger of a run folder. Raises ConfigError when a row is not that of its answer."""
    ledger = read_ledger(run) if ledger is None else ledger
    carried = [(row.probe_id, row.reply_sha256) for row in ledger.rows]
    carried += [(row.probe_id, row.reply_sha256) for row in ledger.sampled]
    carried += [(one.probe_id, one.reply_sha256) for one in ledger.repeats]
    refuse_others(carried, outcomes, where=run / LEDGER, digest=digest)
    return ledger


def read_deadline(run: Path) -> float | None:
    """The deadline (seconds) at which the last command of a run folder ended; None: at none.

    Raises ConfigError for what is no such time.
    """
    if not (run / DEADLINE).exists():
        return None
    return read_record(run / DEADLINE, Ended, advice="remove it, and audit again").deadline_s
