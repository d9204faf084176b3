"""The control: a trusted endpoint that is asked the same, and what its finding does to a verdict.

What it showed lies in the run folder of what it stands beside, so that a verdict can be decided
anew from that folder alone. On a card that is calibrated it can only withhold an accusation, never
make one: the false-alarm rate of "inconsistent" stays below alpha whatever the control is.

An accusation that rests on noise alone rests on the honest floor, and a floor that is too low, or a
reference that is off, makes target and control noisy alike. So the two are held against each other
(`evidence.difference`), which needs no floor: the target's noise must be shown to exceed its
control's by more than `slack` allows, at alpha. Conditional on a control that serves the published
weights, in arithmetic of the same kind: one that serves coarse weights protects whoever does the
same, and one that computes more finely than the target guards less.

Under a provisional floor (`reference.provisional`) a consistent control narrows it: its own noise
is the floor then, times `slack`, and never less than the provisional floor itself. Half of the
evidence is that comparison, half what speaks without it, so that accusations by both together err
at alpha at most: conditional, as far as they rest on the comparison, on such a control.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from verifier.checks import ASPECTS
from verifier.checks.check import CAUSE, Case, above_floor
from verifier.checks.noise import NOISE
from verifier.errors import ConfigError
from verifier.evidence.arrays import Array
from verifier.evidence.difference import log_e_noisier
from verifier.evidence.e_values import log_e_value, mix_log_e
from verifier.evidence.ledger import TEXT_SCALES
from verifier.evidence.noise import ABOVE
from verifier.files.run_folder import CONTROL_REPORT, write_json
from verifier.files.stored import read_record
from verifier.records import Control, Finding, Report
from verifier.report_file import plain
from verifier.verdict.case import provisionally
from verifier.wording import describe_replies

#: How much noisier than its control an honest endpoint may be at least: two honest stacks differ.
#: Of three that compute in bfloat16 the noisiest had 1.3 times the scale of the quietest. A control
#: in a finer precision is quieter by far more, and so guards less.
SLACK: Final = 1.6

#: Ordinary replies of an endpoint and its control after which no more are asked to tell them apart.
#: Simulated, an endpoint of three times its control's noise (0.18 and 0.06) is told from it by 24
#: and 22 replies in 88 of 100, by 46 and 46 in 100.
ENOUGH: Final = 46

#: Decimals kept of what the control's replies say: far below any evidence.
_DECIMALS: Final = 4

#: Aspects that the difference from the control bears out, where it is shown.
_BORNE_OUT: Final = ("noise", "weights")

_ADVICE: Final = "restore it from a copy, or run the audit again"


def write_control(run: Path, control: Control) -> None:
    """Keep in a run folder what the control beside it showed."""
    write_json(run / CONTROL_REPORT, plain(control))


def read_control(run: Path) -> Control | None:
    """What the control beside a run showed; None when it has none. Raises ConfigError."""
    path = run / CONTROL_REPORT
    if not path.exists() and not path.is_symlink():
        return None
    control = read_record(path, Control, advice=_ADVICE)
    if control.text and len(control.text) != len(TEXT_SCALES):
        raise ConfigError(
            f"{path}: text: expected {len(TEXT_SCALES)} numbers or none, got {len(control.text)}; "
            f"{_ADVICE}"
        )
    return control


def with_replies(control: Control, case: Case) -> Control:
    """The control with what its ordinary replies say at each scale, to be held against others."""
    rows = case.text
    totals = tuple(round(float(total), _DECIMALS) for total in rows.sum(axis=0))
    return replace(control, replies=len(rows), text=totals if len(rows) else ())


# -- how far they differ -----------------------------------------------------------------------


def slack(case: Case) -> float:
    """How much noisier than its control an honest endpoint may be, on this card's calibration."""
    lent = case.plan.calibration.provisional
    if lent is not None:
        return max(SLACK, lent.kappa)
    tolerated = float(TEXT_SCALES[case.honest].max())
    return max(SLACK, tolerated / case.plan.calibration.text.honest_scale)


def difference(control: Control, case: Case) -> float | None:
    """Log e-value that an endpoint is noisier than its control; None: nothing is kept of that."""
    if not control.text:
        return None
    target = np.asarray(case.text.sum(axis=0))
    return log_e_noisier(target, np.array(control.text), TEXT_SCALES, ratio=slack(case))


def narrowed(control: Control, case: Case) -> float | None:
    """Log e-value that an endpoint is noisier than its control and than the provisional floor.

    None: no floor is provisional, or the control vouches for nothing.
    """
    plan = case.plan
    lent = plan.calibrated is not None and plan.calibrated.provisional is not None
    if not lent or control.finding != "consistent" or not control.text:
        return None
    return log_e_noisier(
        np.asarray(case.text.sum(axis=0)), np.array(control.text), TEXT_SCALES,
        ratio=slack(case), floor=plan.calibration.text.honest_scale,
    )  # fmt: skip


def stands_apart(report: Report, case: Case) -> bool:
    """Whether an accusation has other grounds than noise: these suffice without any floor.

    A part of the replies, one way of asking, a template, a sampler, single tokens, a cut, or a
    build: by their evidence against the published weights with noise of any scale, or by the odds
    of a named build against everything else.
    """
    needed = math.log(1 / case.plan.alpha)
    named = any(
        f.aspect == CAUSE.name and f.decision == "detected" and (f.log_e or 0.0) >= needed
        for f in report.findings
    )  # fmt: skip
    return named or case.log_e_any_noise >= needed


def waits_for_replies(control: Control, case: Case) -> bool:
    """Whether more replies of an endpoint and its control may show that it is noisier.

    An accusation rests on that, or would be made under a provisional floor, and one of the two has
    fewer replies than ENOUGH.
    """
    report = case.report
    narrow = narrowed(control, case)
    if report is not None and narrow is not None and above_floor(case, case.interval):
        enough = evidence_beside(report, control, case) >= math.log(1 / case.plan.alpha)
        return not enough and min(control.replies, len(case.text)) < ENOUGH
    accused = report is not None and report.decision == "inconsistent"
    if report is None or not accused or stands_apart(report, case):
        return False
    apart = difference(control, case)
    if control.finding == "inconsistent" or not _speaks(control, case) or apart is None:
        return False
    fewest = min(control.replies, len(case.text))
    return apart < math.log(1 / case.plan.alpha) and fewest < ENOUGH


def _speaks(control: Control, case: Case) -> bool:
    """Whether a control that is not inconsistent has replies enough to be compared with."""
    enough = control.finding == "consistent" or control.replies >= case.plan.min_replies
    return enough and bool(control.text)


def evidence_beside(report: Report, control: Control | None, case: Case) -> float:
    """The evidence (nats) of an endpoint against honest serving, as it stands beside its control.

    `report` is the verdict as it stands beside it. Where that rests on noise, the smaller of the
    evidence against the floor and against the control: an e-value as long as either null holds.
    Under a provisional floor that counts half, and half the comparison that narrows it.
    """
    narrow = None if control is None else narrowed(control, case)
    known = _evidence_as_known(report, control, case)
    return known if narrow is None else mix_log_e([(0.5, known), (0.5, narrow)])


def _evidence_as_known(report: Report, control: Control | None, case: Case) -> float:
    total = case.log_e
    if control is None or control.finding == "failed":
        return total
    apart = difference(control, case)
    if control.finding in ("pending", "inconsistent"):
        doubted = apart is None or control.finding == "pending"
        return min(total, 0.0 if doubted else apart or 0.0)
    rests_on_noise = not stands_apart(report, case)
    if apart is not None and rests_on_noise and _speaks(control, case):
        return min(total, apart)
    return total


# -- the verdict beside it ---------------------------------------------------------------------


def judge_beside(report: Report, control: Control, case: Case) -> Report:
    """The verdict as it stands beside its control.

    Beside a control that is not inconsistent an accusation stands if it has other grounds than
    noise, or if the endpoint is shown to be noisier than the control. Beside an inconsistent one it
    stands in the second case only, and while the control is not judged yet in none: else nothing is
    held against the endpoint. A control that failed, or has too few replies, vouches for nothing,
    and the verdict stands.
    """
    apart = difference(control, case)
    shown = replace(control, text=(), noisier=None if apart is None else round(apart, 4))
    report = replace(report, control=shown)
    accused = report.decision == "inconsistent"
    noisier = apart is not None and apart >= math.log(1 / case.plan.alpha)
    match control.finding:
        case "pending":
            why = "the control is not judged yet"
            note = f"{why}, and nothing is said against the endpoint before"
            return _withhold(report, case, why, "the same command goes on", note)
        case "inconsistent" if accused and noisier:
            return _beyond(report, control, case)
        case "inconsistent":
            return _in_doubt(report, control, apart, case)
        case "inconclusive" if _speaks(control, case):
            note = f"the control vouches for no more than its noise: {control.summary}"
            report = replace(report, notes=(*report.notes, note))
            return _beside_a_quiet_one(report, case, noisier=noisier)
        case "consistent":
            if narrowed(control, case) is not None:
                return _narrow(report, control, case)
            beside = _beside_a_quiet_one(report, case, noisier=noisier)
            return beside if control.text else _without_its_replies(report, case)
    note = f"the control vouches for nothing: {control.finding}: {control.summary}"
    return replace(report, notes=(*report.notes, note))


def _narrow(report: Report, control: Control, case: Case) -> Report:
    """The verdict under the control's own noise as the floor, in the place of a provisional one."""
    needed = math.log(1 / case.plan.alpha)
    log_e = evidence_beside(report, control, case)
    floor = f"the floor is the noise of its control, times {slack(case):.2g}"
    begins, ends = provisionally(case.plan), provisionally(case.plan, floor=floor)
    if log_e < needed:
        if report.decision != "inconsistent":
            return replace(report, summary=report.summary.replace(begins, ends, 1))
        why = f"with the control's own noise as the floor, the evidence is log e {log_e:.1f}"
        doubt = f"{needed:.1f} is needed"
        return _withhold(report, case, why, doubt, f"{why}: {doubt}; more replies of both may tell")
    if report.decision == "inconsistent":
        return replace(report, summary=report.summary.replace(begins, ends, 1))
    summary = (
        f"{ends}the endpoint is noisier than its control, and than {_floor(case):.2g}: evidence "
        f"log e {log_e:.1f}, {needed:.1f} was needed; {describe_replies(report.usage.replies)}, "
        f"{report.usage.completion_tokens} completion tokens"
    )
    note = (
        "the accusation rests on the comparison with the control: on its serving the published "
        "weights, in arithmetic of the same kind"
    )
    return replace(
        report, decision="inconsistent", summary=summary, certificate=None,
        notes=(*report.notes, note),
    )  # fmt: skip


def _floor(case: Case) -> float:
    return case.plan.calibration.text.honest_scale


def _beside_a_quiet_one(report: Report, case: Case, *, noisier: bool) -> Report:
    """Beside a control that was compared, and is not inconsistent."""
    if report.decision != "inconsistent" or stands_apart(report, case):
        return report
    told = _told(report, case)
    if noisier:
        note = f"the endpoint is noisier than its control, whatever the honest floor is: {told}"
        return replace(report, notes=(*report.notes, note))
    why = f"it is not shown to be noisier than its control ({told})"
    doubt = "noise is all that speaks against it, and a floor that is too low would explain that"
    note = f"{why}: {doubt}; more replies of both may tell"
    return _withhold(report, case, why, doubt, note)


def _without_its_replies(report: Report, case: Case) -> Report:
    """Beside a control of whose replies nothing is kept: it cannot be compared with."""
    if report.decision != "inconsistent" or stands_apart(report, case):
        return report
    note = (
        "nothing is kept of the control's replies, so it does not tell a floor that is too low "
        "from noise of the endpoint's own; run `verifier summary` or the audit again"
    )
    return replace(report, notes=(*report.notes, note))


def _in_doubt(report: Report, control: Control, apart: float | None, case: Case) -> Report:
    """Beside a control that differs as far as it does, for all that is shown."""
    why = "the control, too, differs from the published weights"
    doubt = "the reference or its calibration is in doubt"
    note = f"the control differs from the published weights: {control.summary}"
    if report.decision != "consistent":
        note = f"{why}: {control.summary}; {doubt}"
    if report.decision == "inconsistent" and apart is not None:
        note += f"; the endpoint is not shown to be noisier than it ({_told(report, case)})"
    return _withhold(report, case, why, doubt, note)


def _beyond(report: Report, control: Control, case: Case) -> Report:
    """Beside a control that differs too, by less than the endpoint does.

    A class of rounding is held against the endpoint only if the control excludes it. If there is
    one that it does not exclude, nothing has a name: all that is said is that the two differ.
    """
    totals, told = np.array(control.text), _told(report, case)
    findings = tuple(
        finding if _bears_out(finding, totals, case)
        else _unsaid(finding, "the control differs from the published weights, too")
        for finding in report.findings
    )  # fmt: skip
    note = (
        f"the control differs from the published weights too, by less: {control.summary}; the "
        f"endpoint is noisier than it: {told}; scales and names are measured against a reference "
        "that is in doubt"
    )
    report = replace(report, notes=(*report.notes, note))
    detected = [f for f in report.findings if f.decision == "detected" and f.aspect in _BORNE_OUT]
    if detected and all(finding in findings for finding in detected):
        return replace(report, findings=findings)
    summary = provisionally(case.plan) + (
        f"the endpoint differs from the published weights by more than its control does: {told}; "
        f"{describe_replies(report.usage.replies)}, {report.usage.completion_tokens} completion "
        "tokens"
    )
    return replace(report, summary=summary, findings=_unnamed(findings))


def _bears_out(finding: Finding, totals: Array, case: Case) -> bool:
    """Whether what was found holds although the control differs, too; names do as far as any."""
    if ASPECTS[finding.aspect].role == "name" or finding.decision != "detected":
        return True
    if finding.aspect != NOISE.name:
        return finding.aspect in _BORNE_OUT
    (scale,) = (c.scale for c in case.plan.calibration.classes if c.name == finding.name)
    members = np.asarray(scale <= TEXT_SCALES * ABOVE)
    return log_e_value(totals, totals[members]) >= math.log(1 / case.plan.beta)


def _told(report: Report, case: Case) -> str:
    """The evidence that an endpoint is noisier than its control, and what was needed."""
    control = report.control
    assert control is not None
    return (
        f"log e {control.noisier or 0.0:.1f} against at most {slack(case):.2g} times its noise, of "
        f"{describe_replies(len(case.text))} and {control.replies} of the control; "
        f"{math.log(1 / case.plan.alpha):.1f} is needed"
    )


def _withhold(report: Report, case: Case, why: str, doubt: str, note: str) -> Report:
    """The report with nothing held against the endpoint that needs the reference."""
    summary = report.summary
    if report.decision == "inconsistent":
        summary = provisionally(case.plan) + (
            f"nothing is held against the endpoint: {why}; {doubt}; "
            f"{describe_replies(report.usage.replies)}, "
            f"{report.usage.completion_tokens} completion tokens"
        )
    return replace(
        report,
        decision="inconclusive" if report.decision == "inconsistent" else report.decision,
        summary=summary,
        findings=_unnamed(tuple(_unsaid(finding, why) for finding in report.findings)),
        notes=(*report.notes, note),
    )


def _unnamed(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if ASPECTS[finding.aspect].role != "name")


def _unsaid(finding: Finding, why: str) -> Finding:
    """A departure that was detected against a reference in doubt is undecided."""
    if finding.decision != "detected" or ASPECTS[finding.aspect].without_reference:
        return finding
    detail = f"{finding.detail}; not held against the endpoint: {why}"
    return replace(finding, decision="undecided", detail=detail, tokens_needed=None)
