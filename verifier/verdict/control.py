"""The control: a trusted endpoint that is asked the same, and what its finding does to a verdict.

Its finding lies in the run folder of what it stands beside, so that a verdict can be decided anew
from that folder alone. It can only withdraw an accusation, never make one: the false-alarm rate of
"inconsistent" stays below alpha whatever the control is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from verifier.checks import ASPECTS
from verifier.files.run_folder import CONTROL_REPORT, write_json
from verifier.files.stored import read_record
from verifier.records import Control, Finding, Report
from verifier.report_file import plain
from verifier.wording import describe_replies


def write_control(run: Path, control: Control) -> None:
    """Keep in a run folder what the control beside it showed."""
    write_json(run / CONTROL_REPORT, plain(control))


def read_control(run: Path) -> Control | None:
    """What the control beside a run showed; None when it has none."""
    path = run / CONTROL_REPORT
    if not path.exists() and not path.is_symlink():
        return None
    return read_record(path, Control, advice="restore it from a copy, or run the audit again")


def judge_beside(report: Report, control: Control) -> Report:
    """The verdict as it stands beside its control.

    A consistent control changes nothing. While the control is inconsistent, or not judged yet,
    nothing is held against the endpoint: an accusation becomes inconclusive. One that failed or
    ended inconclusive vouches for nothing, and the verdict stands.
    """
    report = replace(report, control=control)
    match control.finding:
        case "consistent":
            return report
        case "inconclusive" | "failed":
            note = f"the control vouches for nothing: {control.finding}: {control.summary}"
            return replace(report, notes=(*report.notes, note))
        case "inconsistent":
            why = "the control, too, differs from the published weights"
            doubt = "the reference or its calibration is in doubt"
            note = f"the control differs from the published weights: {control.summary}"
            if report.decision != "consistent":
                note = f"{why}: {control.summary}; {doubt}"
        case "pending":
            why = "the control is not judged yet"
            doubt = "the same command goes on"
            note = f"{why}, and nothing is said against the endpoint before"
    return replace(
        report,
        decision="inconclusive" if report.decision == "inconsistent" else report.decision,
        summary=(
            f"nothing is held against the endpoint: {why}; {doubt}; "
            f"{describe_replies(report.usage.replies)}, "
            f"{report.usage.completion_tokens} completion tokens"
            if report.decision == "inconsistent"
            else report.summary
        ),
        findings=tuple(
            _unsaid(finding, why)
            for finding in report.findings
            if ASPECTS[finding.aspect].role != "name"
        ),
        notes=(*report.notes, note),
    )


def _unsaid(finding: Finding, why: str) -> Finding:
    """A departure that was detected against a reference in doubt is undecided."""
    if finding.decision != "detected" or ASPECTS[finding.aspect].without_reference:
        return finding
    detail = f"{finding.detail}; not held against the endpoint: {why}"
    return replace(finding, decision="undecided", detail=detail, tokens_needed=None)
