"""Where several targets stand: one summary, made from their run folders alone.

No model, no network, and the same bytes each time. What each target is said to be stands in its
own report; here is only added which accusations stand when so many endpoints are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from verifier.config import Fleet, RunFile, load_fleet
from verifier.errors import ConfigError
from verifier.evidence.e_values import e_bh
from verifier.evidence.ledger import Ledger
from verifier.files.run_folder import (
    CONTROL,
    ERRORS,
    FLEET,
    LEDGER,
    PLAN,
    SUMMARY,
    refuse_link,
    write_json,
)
from verifier.files.stored import read_record
from verifier.records import Control, Report, Standing, Summary, Usage
from verifier.report_file import plain, read_report
from verifier.reports.findings import causes
from verifier.verdict.case import read_case
from verifier.verdict.control import evidence_beside, read_control, with_replies, write_control
from verifier.verdict.decide import judge_folder
from verifier.verdict.usage import count_usage

SUMMARY_SCHEMA: Final = 1

#: What is said of a target whose audit was stopped before anything was scored.
UNFINISHED: Final = "nothing is scored yet; the same command goes on"


def folders_of(out: Path) -> tuple[Path, ...]:
    """The run folders of the targets of a folder, and of the control, that are there."""
    if not (out / FLEET).is_file():
        return ()
    fleet = load_fleet(out / FLEET, below=out).model_copy(update={"out": out})
    found = tuple(config.out for config in fleet.every_run_file.values() if config.out != out)
    for folder in found:
        refuse_link(folder)
    return found


def summarise(out: Path, *, writes: bool = True) -> Summary:
    """Decide the control and every target of a folder anew, and write the summary.

    Nothing is written without `writes`: what stands beside each target is then as it was. Raises
    ConfigError when it is no folder of several targets.
    """
    if not (out / FLEET).is_file():
        raise ConfigError(f"{out}: holds no {FLEET}; `verifier audit` of several targets writes it")
    fleet = load_fleet(out / FLEET, below=out).model_copy(update={"out": out})
    if fleet.targets is None:
        raise ConfigError(f"{out / FLEET}: targets: missing; restore the folder from a copy")
    for run in (*fleet.run_files.values(), *filter(None, [fleet.control_file])):
        refuse_link(run.out)
    errors = _read_errors(out)
    if fleet.control_file is not None:
        control = find_control(fleet.control_file, errors.get(CONTROL), writes=writes)
        if writes:
            place_control(control, fleet.run_files)
    summary = _summarise(fleet, errors, writes=writes)
    if writes:
        write_json(out / SUMMARY, plain(summary))
    return summary


def read_reports(out: Path, summary: Summary) -> dict[str, Report]:
    """The reports of the targets that were judged, by name."""
    judged = [target.name for target in summary.targets if target.decision is not None]
    return {name: read_report(out / name) for name in judged}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """All that `errors.json` holds."""

    errors: dict[str, str]  # target -> why it was not judged


def write_errors(out: Path, errors: Mapping[str, str]) -> None:
    """Keep why targets were not judged, one line each."""
    write_json(out / ERRORS, {"errors": dict(errors)})


def _read_errors(out: Path) -> dict[str, str]:
    if not (out / ERRORS).exists():
        return {}
    return read_record(out / ERRORS, Errors, advice="run the audit again").errors


# -- the control -------------------------------------------------------------------------------


def find_control(config: RunFile, error: str | None, *, writes: bool = True) -> Control:
    """What the control's run folder shows, judged exactly as a target; `error`: why it cannot."""
    pending = pending_control(config)
    if error is not None:
        return replace(pending, finding="failed", summary=error)
    if not (config.out / LEDGER).exists():
        return pending
    report, case = judge_folder(config.out, writes=writes)
    found = replace(pending, finding=report.decision, summary=report.summary, usage=report.usage)
    return with_replies(found, case)


def pending_control(config: RunFile) -> Control:
    """A control that is not judged yet."""
    return Control(
        base_url=config.endpoint.base_url,
        model=config.endpoint.model,
        finding="pending",
        summary=UNFINISHED,
        usage=None,
    )


def place_control(control: Control, run_files: Mapping[str, RunFile]) -> None:
    """Put what the control showed beside every target that is planned."""
    for config in run_files.values():
        if config.out.is_dir():
            write_control(config.out, control)


# -- the targets -------------------------------------------------------------------------------


def _summarise(fleet: Fleet, errors: Mapping[str, str], *, writes: bool) -> Summary:
    """Null of each target: its endpoint serves the published weights honestly.

    Its e-value is that of its own audit at the reply where that stopped, as it stands beside the
    control (`evidence_beside`), so e-BH keeps the false-discovery rate of the accusations that
    stand at alpha, whatever the targets have in common: the probes, the reference, the control, the
    host behind a router (Wang and Ramdas 2022). Assumes what each audit assumes. A target that was
    not judged counts as no evidence, log e 0.
    """
    found = [
        _find(name, config, errors.get(name), writes=writes)
        for name, config in fleet.run_files.items()
    ]
    rejected = e_bh([counts for _, counts in found], fleet.audit.alpha)
    targets = tuple(
        _accused(one, stands=number in rejected) for number, (one, _) in enumerate(found)
    )
    beside = None
    if fleet.control_file is not None:
        beside, _ = _find(CONTROL, fleet.control_file, errors.get(CONTROL), writes=writes)
    needed = math.log(len(targets) / (fleet.audit.alpha * min(len(targets), len(rejected) + 1)))
    return Summary(
        schema_version=SUMMARY_SCHEMA,
        summary=_say(targets, fleet.audit.alpha),
        alpha=fleet.audit.alpha,
        log_e_needed=math.ceil(needed * 1e4) / 1e4,
        targets=targets,
        control=beside,
        cost_usd=_total_usd([*targets, *filter(None, [beside])]),
    )


def _find(name: str, config: RunFile, error: str | None, *, writes: bool) -> tuple[Standing, float]:
    """What a run folder says before it is looked at among others, and the evidence (nats) that
    counts there."""
    if error is None and not (config.out / LEDGER).exists():
        error = UNFINISHED
    report, log_e, counts = None, None, 0.0
    if error is None:
        report, case = judge_folder(config.out, writes=writes)
        log_e = _rounded_down(case.log_e)
        counts = _rounded_down(evidence_beside(report, read_control(config.out), case))
    standing = Standing(
        name=name,
        base_url=config.endpoint.base_url,
        model=config.endpoint.model,
        decision=None if report is None else report.decision,
        summary=str(error) if report is None else report.summary,
        best_name=None if report is None else _best_name(report),
        noise_scale=None if report is None else report.noise_scale,
        log_e=log_e,
        accusation=None,
        usage=_spent(config.out) if report is None else report.usage,
        asked=None if report is None else report.asked,
    )
    return standing, counts


def _rounded_down(log_e: float) -> float:
    return math.floor(log_e * 1e4) / 1e4


def _spent(run: Path) -> Usage | None:
    """What was asked of an endpoint that was not judged; None when it was never planned."""
    if not (run / PLAN).exists():
        return None
    return count_usage(read_case(run, ledger=Ledger(rows=())))


def _best_name(report: Report) -> str | None:
    names = [finding.name for finding in causes(report)]
    return " and ".join(names) if names else None


def _accused(one: Standing, *, stands: bool) -> Standing:
    if one.decision != "inconsistent":
        return one
    return replace(one, accusation="stands" if stands else "does not stand")


def _total_usd(found: Sequence[Standing]) -> float | None:
    costs = [one.usage.cost_usd for one in found if one.usage is not None]
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), 6) if costs and len(known) == len(costs) else None


def _say(targets: Sequence[Standing], alpha: float) -> str:
    """One line: how many ended how, and which accusations stand among so many."""
    ended = [one.decision or "not judged" for one in targets]
    words = ("inconsistent", "inconclusive", "not judged", "consistent")
    counts = ", ".join(f"{ended.count(word)} {word}" for word in words if word in ended)
    line = f"{len(targets)} {'target' if len(targets) == 1 else 'targets'}: {counts}"
    standing = [one.name for one in targets if one.accusation == "stands"]
    fallen = [one.name for one in targets if one.accusation == "does not stand"]
    if standing:
        line += f"; stands among them at a false-discovery rate of {alpha:g}: {', '.join(standing)}"
    if fallen:
        line += f"; inconsistent alone, but not among so many: {', '.join(fallen)}"
    return line
