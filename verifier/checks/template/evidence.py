"""The template evidence: ledger to odds between renderings, and against every valid one.

Noise is free in every template column: a column is a rendering times the whole grid of scales, so
neither precision nor the template can be blamed for the other. Evidence is the product of two
channels, the replies and the counts of prompt tokens (`prompt_counts`).

Null of the e-value: the host renders in one of the valid ways, with logit noise of any scale of the
grid, and counts as `prompt_counts` says. The alternative is the even mixture of all faults, noise
free. Faults that were scored on the first replies only keep their share of the mixture, so leaving
them off loses power, never the level.

To lead all others is not to fit: `Fitting` holds a rendering to the replies as honest serving would
make them (`goodness_of_fit`) and to the counts within one constant (`prompt_counts.fit_counts`), so
that a name is given only to what fits (`naming`). Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.calibration import Channel
from verifier.evidence.e_values import log_mean_exp
from verifier.evidence.goodness_of_fit import log_e_of_misfit
from verifier.evidence.ledger import TEMPLATE, TEXT_SCALES, Ledger
from verifier.evidence.noise import honest_scales, read_rows
from verifier.evidence.prompt_counts import (
    Accounting,
    CountFit,
    count_log_likelihoods,
    fit_counts,
    read_accounting,
    speaking_counts,
)
from verifier.records import REFERENCE
from verifier.reference.renderings.catalogue import Rendering

#: A group of names holds at least this posterior probability.
NAMED_AT: Final = 0.95

#: A rendering so many nats behind the best is scored no further.
BEHIND: Final = 15.0

#: Replies that a lead must rest on before it settles the name.
ENOUGH: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How well one rendering explains what a host does, beside no other."""

    replies: int  # scored under it
    misfit: float  # log e-value of the replies against honest serving under it
    scale: float  # of the noise that is left under it
    counts: CountFit  # of the counts of prompt tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateEvidence:
    """What a ledger says of the rendering, before any threshold."""

    scored: int  # replies scored under template columns
    counted: int  # replies with a count of prompt tokens
    ranked: tuple[str, ...]  # names, likeliest first; the published rendering is `reference`
    behind: dict[str, float]  # nats behind the likeliest
    among: dict[str, float]  # nats of each text behind the likeliest that stands for the same
    valid: frozenset[str]  # names of valid renderings
    columns: dict[str, str]  # name -> the ledger's column that speaks for it
    counts: dict[str, CountFit]  # name -> how well its column fits the counts by itself
    fits: dict[str, Fitting]  # the same of all that it does, for the names of `group`
    log_e: float  # of a fault, against every valid rendering at any noise
    scale: float  # the likeliest noise scale under the likeliest rendering
    accounting: Accounting  # how the counts relate to the published rendering

    @property
    def group(self) -> tuple[str, ...]:
        """The fewest names that hold NAMED_AT of the posterior, likeliest first."""
        return _group(self.behind)


def weigh_templates(
    ledger: Ledger, catalogue: Mapping[str, Rendering], channel: Channel
) -> TemplateEvidence | None:
    """The evidence of a ledger; None when no rendering other than the published one is in it."""
    rendered = {name for row in ledger.rows for name in row.rendered}
    scored = {name for row in ledger.rows for name in row.text}
    names = [name for name in catalogue if name in rendered or TEMPLATE + name in scored]
    faults = [name for name in names if catalogue[name].kind == "fault"]
    if not faults:
        return None
    differing = [name for name in names if name == REFERENCE or _differs(name, ledger)]
    faults = [name for name in faults if name in differing]
    counts = _count_evidence(ledger, differing, catalogue)
    cells = _Cells(ledger, channel)
    valid = [name for name in differing if catalogue[name].kind == "valid"]
    relative = {
        name: cells.marginal(name) - cells.marginal(REFERENCE, like=name)
        + counts[name] - counts[REFERENCE]
        for name in differing
    }  # fmt: skip
    merged, columns = _merge(relative, catalogue)
    e_values = [cells.against(name, valid, counts) for name in faults]
    best = max(merged.values())
    behind = {name: best - value for name, value in merged.items()}
    counted = _fit_counts(ledger, columns, catalogue)
    first = columns[max(merged, key=lambda name: merged[name])].removeprefix(TEMPLATE)
    return TemplateEvidence(
        scored=len(cells.rows),
        counted=sum(row.prompt_tokens is not None for row in ledger.rows),
        ranked=tuple(sorted(merged, key=lambda name: -merged[name])),
        behind=behind,
        among={
            name: relative[columns[catalogue[name].stands_for or name].removeprefix(TEMPLATE)]
            - relative[name]
            for name in differing
        },
        valid=frozenset(valid),
        columns=columns,
        counts=counted,
        fits={name: cells.fit(columns[name], counted[name]) for name in _group(behind)},
        log_e=log_mean_exp(np.array(e_values)) if e_values else 0.0,
        scale=float(TEXT_SCALES[cells.totals(first, like=first).argmax()]),
        accounting=read_accounting(
            [row.prompt_tokens for row in ledger.rows],
            [row.rendered.get(REFERENCE) for row in ledger.rows],
        ),
    )


def still_likely(
    evidence: TemplateEvidence,
    names: Sequence[str],
    catalogue: Mapping[str, Rendering],
    *,
    behind: float = BEHIND,
) -> tuple[str, ...]:
    """Those of `names` to go on with.

    At most `behind` nats behind the likeliest, or not seen to differ from the published rendering
    yet; valid ones always. Of texts that stand for one rendering, those near the likeliest of them.
    """
    return tuple(
        name
        for name in names
        if catalogue[name].kind == "valid"
        or (
            evidence.behind.get(catalogue[name].stands_for or name, 0.0) <= behind
            and evidence.among.get(name, 0.0) <= behind
        )
    )


def is_settled(
    evidence: TemplateEvidence, names: Sequence[str], catalogue: Mapping[str, Rendering]
) -> bool:
    """Whether more replies would tell little: one name leads all `names` by far, on enough replies.

    Valid renderings need not be told from each other. A name that has not differed from the
    published rendering yet shares its place.
    """
    first = evidence.ranked[0]
    rivals = {catalogue[name].stands_for or name for name in names} - {first}
    if first in evidence.valid:
        rivals -= {name for name in names if catalogue[name].kind == "valid"}
    unseen = evidence.behind[REFERENCE]
    return evidence.scored >= ENOUGH and all(
        evidence.behind.get(name, unseen) > BEHIND for name in rivals
    )


def _differs(name: str, ledger: Ledger) -> bool:
    """Whether a rendering differs from the published one anywhere in a ledger."""
    column = TEMPLATE + name
    return any(
        row.rendered.get(name) != row.rendered.get(REFERENCE)
        or (column in row.text and row.text[column] != row.text[REFERENCE])
        for row in ledger.rows
    )


def _count_evidence(
    ledger: Ledger, names: Sequence[str], catalogue: Mapping[str, Rendering]
) -> dict[str, float]:
    return count_log_likelihoods(
        [row.prompt_tokens for row in ledger.rows],
        {name: [row.rendered.get(name) for row in ledger.rows] for name in names},
        unknown=frozenset(name for name in names if catalogue[name].stands_for),
    )


def _group(behind: Mapping[str, float]) -> tuple[str, ...]:
    """The fewest names that hold NAMED_AT of the posterior, likeliest first."""
    total = sum(math.exp(-gap) for gap in behind.values())
    held, found = 0.0, []
    for name in sorted(behind, key=lambda name: behind[name]):
        found.append(name)
        held += math.exp(-behind[name]) / total
        if held >= NAMED_AT:
            break
    return tuple(found)


def _fit_counts(
    ledger: Ledger, columns: Mapping[str, str], catalogue: Mapping[str, Rendering]
) -> dict[str, CountFit]:
    """How well each reported name fits the counts, by the column that speaks for it."""
    renderings = {name: column.removeprefix(TEMPLATE) for name, column in columns.items()}
    rendered = {
        name: [row.rendered.get(name) for row in ledger.rows] for name in renderings.values()
    }
    told = speaking_counts([row.prompt_tokens for row in ledger.rows], rendered)
    return {
        name: fit_counts(told, rendered[own], free=catalogue[own].stands_for is not None)
        for name, own in renderings.items()
    }


def _merge(
    values: Mapping[str, float], catalogue: Mapping[str, Rendering]
) -> tuple[dict[str, float], dict[str, str]]:
    """Values by the name that is reported: texts that stand for one entry are its mixture."""
    members: dict[str, list[str]] = {}
    for name in values:
        members.setdefault(catalogue[name].stands_for or name, []).append(name)
    merged = {
        name: log_mean_exp(np.array([values[one] for one in some]))
        for name, some in members.items()
    }
    best = {name: max(some, key=lambda one: values[one]) for name, some in members.items()}
    columns = {n: REFERENCE if c == REFERENCE else TEMPLATE + c for n, c in best.items()}
    return merged, columns


class _Cells:
    """The template columns of a ledger, read as calibrated."""

    def __init__(self, ledger: Ledger, channel: Channel) -> None:
        self.rows = [
            row for row in ledger.rows if any(column.startswith(TEMPLATE) for column in row.text)
        ]
        self._channel = channel
        self._honest = honest_scales(TEXT_SCALES, channel)

    def fit(self, column: str, counts: CountFit) -> Fitting:
        """How well the rows that were scored under a column fit it, beside its counts."""
        rows = self._read([row.text[column] for row in self.rows if column in row.text])
        return Fitting(
            replies=len(rows), misfit=log_e_of_misfit(rows, self._honest),
            scale=float(TEXT_SCALES[rows.sum(axis=0).argmax()]), counts=counts,
        )  # fmt: skip

    def totals(self, name: str, *, like: str) -> Array:
        """Totals [S] of a column over the rows that have the column `like`.

        Where the column itself is missing, the published one stands in.
        """
        column = _column(name)
        rows = [row for row in self.rows if _column(like) in row.text]
        cells = [row.text.get(column, row.text[REFERENCE]) for row in rows]
        return np.asarray(self._read(cells).sum(axis=0))

    def _read(self, cells: Sequence[Sequence[float]]) -> Array:
        found = np.array(cells, dtype=float).reshape(len(cells), len(TEXT_SCALES))
        return read_rows(found, TEXT_SCALES, self._channel)

    def marginal(self, name: str, *, like: str | None = None) -> float:
        """log p of the replies under a column, noise free."""
        return log_mean_exp(self.totals(name, like=like or name))

    def against(self, name: str, valid: Sequence[str], counts: Mapping[str, float]) -> float:
        """Log e-value of one fault, on the rows scored under it."""
        null = max(float(self.totals(v, like=name).max()) + counts[v] for v in valid)
        return self.marginal(name) + counts[name] - null


def _column(name: str) -> str:
    return REFERENCE if name == REFERENCE else TEMPLATE + name
