"""The report as one self-contained HTML page, from a template beside this file.

Text from a host is untrusted: the template escapes every value, and shows control characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from verifier import wording
from verifier.records import Attempt, Failure, NotJudged, Outcome, Probe, Reply, Report
from verifier.reports import findings, telling
from verifier.reports import noise_dial as dial
from verifier.reports.next_steps import next_steps

if TYPE_CHECKING:
    from jinja2 import Template

#: Characters of each request and response body that the page shows; the run folder holds the rest.
BODY_LIMIT: Final = 4096

#: Characters of any other value that the page shows: a host may send as much as it likes.
VALUE_LIMIT: Final = 16_384

#: Keys of the signature, at any depth, that say what was audited.
_ABOUT: Final = {"base_url": "Endpoint", "model": "Model asked for", "card": "Reference card"}


def render_page(
    report: Report,
    *,
    outcomes: Mapping[str, Outcome],
    probes: Sequence[Probe],
    attempts: Sequence[Attempt],
    prompts: Mapping[str, str] | None = None,
) -> str:
    """The report as one HTML file that loads nothing and runs nothing.

    `prompts` is one prompt under two renderings: texts `published` and `served`, the `probe_id`
    and the `name` of the rendering. The same input gives the same text under the same matplotlib.
    """
    from markupsafe import Markup

    signature = _flatten(report.signature)
    return _template().render(
        report=report,
        host=telling.name_host(report),
        model=telling.name_model(report),
        headline=wording.HEADLINES[report.decision],
        sureness=telling.describe_sureness(report),
        steps=next_steps(report),
        differing=telling.describe_differing,
        places=telling.PLACES[report.decision],
        chance=telling.describe_chance,
        spelled_out=wording.spelled_out,
        sign=wording.SIGNS[report.decision],
        departures=findings.departures(report),
        causes=findings.causes(report),
        told=[*findings.list_beside(report), *report.notes],
        counts=findings.count_statuses(report),
        marks=dial.group_marks(report.noise_scale.marks),
        dial=Markup(dial.draw_dial(report.noise_scale)),  # noqa: S704 - its own words and numbers
        dial_words=dial.describe_dial(report.noise_scale),
        scale=wording.describe_scale(report.noise_scale),
        about=_about(signature, report),
        spent=[*wording.list_spending(report.usage), *wording.list_control(report)],
        signature=signature,
        share=wording.shown_share(report),
        belongs_at=wording.BELONGS_AT,
        share_words=wording.describe_share,
        prompts=prompts,
        prompt_lines=wording.diff_prompts(prompts["published"], prompts["served"])
        if prompts
        else [],
        exchanges=_pair_exchanges(outcomes, probes, attempts),
        drawn=len(probes),
        kind=findings.describe_kind,
        evidence=wording.describe_evidence,
        need=wording.describe_need,
        cause=wording.describe_cause,
        number=wording.describe_number,
        percent=wording.describe_percent,
        limit=BODY_LIMIT,
    )


def _about(signature: Sequence[tuple[str, str]], report: Report) -> list[tuple[str, str]]:
    """What was audited, as far as the signature tells, and when."""
    found = {path.rpartition(".")[2]: text for path, text in reversed(signature)}
    rows = [(label, found[key]) for key, label in _ABOUT.items() if key in found]
    return [*rows, ("Asked", wording.describe_asked(report.asked))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchange:
    """One probe with everything that came of it, for the page."""

    probe_id: str
    probe: Probe | None  # None: an exchange of no known probe
    label: str  # reply, failed, not judged, no outcome
    outcome: Outcome | None  # None: asked, and nothing settled yet
    attempts: tuple[Attempt, ...]


def _pair_exchanges(
    outcomes: Mapping[str, Outcome], probes: Sequence[Probe], attempts: Sequence[Attempt]
) -> list[_Exchange]:
    """Every probe that was asked, in the order of asking; exchanges of no known probe last."""
    by_probe: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_probe.setdefault(attempt.probe_id, []).append(attempt)
    known = {probe.id: probe for probe in probes}
    asked = {**by_probe, **outcomes}
    order = [*(name for name in known if name in asked), *(n for n in asked if n not in known)]
    return [
        _Exchange(
            probe_id=name,
            probe=known.get(name),
            label=_label(outcomes.get(name)),
            outcome=outcomes.get(name),
            attempts=tuple(by_probe.get(name, ())),
        )
        for name in order
    ]


def _label(outcome: Outcome | None) -> str:
    match outcome:
        case Reply():
            return "reply"
        case Failure():
            return "failed"
        case NotJudged():
            return "not judged"
        case None:
            return "no outcome"
        case _:
            assert_never(outcome)


def _flatten(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of a dotted path and a readable value, in their own order."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            rows += _flatten(item, f"{prefix}{key}.")
        else:
            shown = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            rows.append((f"{prefix}{key}", shown))
    return rows


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def clean(value: object) -> object:
        """Applied to every expression of the template, so that none can be forgotten."""
        if isinstance(value, Markup):
            return value
        text = str(value)
        cut = f" [cut: {VALUE_LIMIT:,} of {len(text):,} characters]"
        return wording.visible(text[:VALUE_LIMIT]) + (cut if len(text) > VALUE_LIMIT else "")

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    path = Path(__file__).with_name("report_page.html.jinja")
    return environment.from_string(path.read_text(encoding="utf-8"))
