"""The findings of a report by what they are: departures of the policy, names, and remarks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from verifier.checks import ASPECTS
from verifier.records import Finding, Report, Status

_STATUSES: Final[tuple[Status, ...]] = ("detected", "excluded", "undecided", "not run")


def departures(report: Report) -> tuple[Finding, ...]:
    """The findings on departures: without the best name, and what is only seen beside them.

    Classes of noise that are detected are one: each says no more than how far off the replies are
    at least, and a list of all would accuse of what only a name does.
    """
    found = [f for f in report.findings if _role(f) == "departure"]
    classes = [f for f in found if f.aspect == "noise" and f.decision == "detected"]
    if not classes:
        return tuple(found)
    place = found.index(classes[0])
    others = [f for f in found if f not in classes]
    return (*others[:place], _at_least(classes), *others[place:])


def _at_least(classes: list[Finding]) -> Finding:
    """Classes of noise that are detected as one: the farthest rounding, if one is among them.

    The farther a class, the less evidence speaks for it: every scale below has to be ruled out.
    """
    by_distance = sorted(classes, key=lambda f: 0.0 if f.log_e is None else f.log_e)
    rounding = next((f for f in by_distance if "rounding" in f.name), by_distance[0])
    name = f"at least as far off as {rounding.name}"
    return replace(rounding, name=name, detail=by_distance[0].detail)


def causes(report: Report) -> tuple[Finding, ...]:
    """The findings that give the best name for what was found."""
    return tuple(finding for finding in report.findings if _role(finding) == "name")


def count_statuses(report: Report) -> str:
    """How many departures ended in each status, in words; every status that occurs is named."""
    found = [finding.decision for finding in departures(report)]
    counts = (f"{found.count(status)} {status}" for status in _STATUSES if status in found)
    return ", ".join(counts) or "none named"


def describe_kind(finding: Finding) -> str:
    """What a finding is about, in words."""
    known = ASPECTS.get(finding.aspect)
    return finding.aspect if known is None else known.label


def remarks(report: Report) -> tuple[Finding, ...]:
    """The findings that were only seen beside the departures, and decide nothing."""
    return tuple(finding for finding in report.findings if _role(finding) == "remark")


def list_beside(report: Report) -> list[str]:
    """What was only seen beside the departures, in words, where no note says it already."""
    return [
        f"{describe_kind(found)}: {found.name}: {found.detail}"
        for found in remarks(report)
        if found.decision == "detected" and not any(found.detail in note for note in report.notes)
    ]


def _role(finding: Finding) -> str:
    """Of a finding; one that this version does not know is shown with the departures."""
    known = ASPECTS.get(finding.aspect)
    return "departure" if known is None else known.role
